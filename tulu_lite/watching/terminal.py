"""Text that a model or a data set wrote, made safe to print: no escape codes, nothing that hides or reorders."""

from __future__ import annotations

import unicodedata

KEPT = "\n"
# Format characters that scripts and emoji need: the joiners, and selectors of a variant.
HARMLESS = frozenset({0x200C, 0x200D})


def safe_text(text: str) -> str:
    """The text with every character that a terminal would act on written out as \\xNN or \\uNNNN.

    Those are control characters (C0 but the line feed, DEL, C1: escape sequences begin with one), format characters
    (overrides of the writing direction, tags that are invisible), lone surrogates, and line and paragraph separators.
    A tab becomes four spaces; a carriage return before a line feed goes.
    """
    return "".join(map(_shown, text.replace("\r\n", "\n").replace("\t", "    ")))


def safe_line(text: str) -> str:
    """The same on one line: line feeds become spaces."""
    return safe_text(text).replace("\n", " ")


def _shown(letter: str) -> str:
    if letter in KEPT or letter.isprintable() or unicodedata.category(letter) == "Zs":
        return letter
    code = ord(letter)
    if code in HARMLESS:
        return letter
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
