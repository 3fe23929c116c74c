"""Other people's text inside a prompt, so that it stays data.

A quoted text is one JSON string between two marks that carry a nonce. JSON's own escapes keep it on one line
and keep it from ending early. What a chat template could take for a turn of its own is escaped, what cannot be
seen is written out, and what is too long loses its middle and says so. The nonce is a keyed hash of the texts:
whoever writes a text would have to know the key to guess it, and the same request stays the same.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

NONCE_CHARACTERS = 16
PLACEHOLDER = "0" * NONCE_CHARACTERS  # stands for the nonce in what is hashed for the cache
HEAD_SHARE = 0.6  # of a text that is too long: so much is kept of its beginning, the rest of its end
# Controls, format, surrogate, private and separator characters of Unicode 16, and those that draw nothing although
# they are called letters, marks or symbols (fillers, variation selectors, tag characters, the blank Braille cell).
_UNSEEN = (
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2"
    "\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164"
    "\ud800-\uf8ff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff\U000f0000-\U0010ffff"
)
_RUN = re.compile(f"([{_UNSEEN}])\\1*")
# `<` and its look-alikes before anything but a space, a digit or an equals sign: <|im_end|>, </s>, <<SYS>>;
# and [INST], [gMASK], [|assistant|].
_TURN = re.compile(
    r"[<\uff1c\ufe64\u2039\u276e](?![\s\d=])|[\[\uff3b](?=\s*[/|]?\s*[A-Za-z_|]{2,40}\s*[\]\uff3d])"
)


def visible(text: str) -> str:
    """The text with unseen characters written out as ⟦U+200B⟧, a run of one as ⟦U+200B ×7⟧."""
    if text.isascii() and text.isprintable():
        return text
    return _RUN.sub(_written, text)


def _written(run: re.Match[str]) -> str:
    count = run.end() - run.start()
    return f"⟦U+{ord(run.group(1)):04X}{f' ×{count}' if count > 1 else ''}⟧"


def shortened(text: str, limit: int) -> tuple[str, int]:
    """At most `limit` characters of a text, head and tail, and how many were left out."""
    if len(text) <= limit:
        return text, 0
    head = int(limit * HEAD_SHARE)
    tail = limit - head
    left_out = len(text) - limit
    return f"{text[:head]} ⟦{left_out} characters left out⟧ {text[len(text) - tail :]}", left_out


def as_data(text: str, limit: int) -> tuple[str, int]:
    """The text as a JSON string on one line, harmless to a chat template; and how many characters are missing."""
    roughly, cut = shortened(text, 4 * limit)  # a megabyte of zero-width spaces need not be written out
    shown, cut_again = shortened(visible(roughly), limit)
    encoded = json.dumps(shown, ensure_ascii=False)
    return _TURN.sub(lambda match: f"\\u{ord(match.group()):04x}", encoded), cut + cut_again


@dataclass(frozen=True, slots=True)
class Quotation:
    """Texts by their names (RESPONSE, REFERENCE ANSWER), ready to be put into a prompt."""

    encoded: Mapping[str, str]
    left_out: Mapping[str, int]
    nonce: str

    @classmethod
    def of(cls, texts: Mapping[str, str], limit: int) -> Quotation:
        """Each text is cut to `limit` characters."""
        pairs = {name: as_data(text, limit) for name, text in texts.items()}
        encoded = {name: data for name, (data, _) in pairs.items()}
        return cls(encoded, {name: count for name, (_, count) in pairs.items()}, nonce_for(encoded))

    def block(self, name: str, nonce: str | None = None) -> str:
        """One text between its marks, with a word about what is missing of it."""
        mark = self.nonce if nonce is None else nonce
        missing = self.left_out[name]
        note = f"(Its middle, {missing} characters, was left out.)\n" if missing else ""
        return f"<<<{name} {mark}\n{self.encoded[name]}\n{name} {mark}>>>\n{note}"


def nonce_for(encoded: Mapping[str, str]) -> str:
    """A mark that none of the texts has in it."""
    body = json.dumps(encoded, sort_keys=True).encode()
    for attempt in range(1000):
        digest = hmac.new(_secret(), b"%d %b" % (attempt, body), hashlib.sha256)
        nonce = digest.hexdigest()[:NONCE_CHARACTERS]
        if not any(nonce in text for text in encoded.values()):
            return nonce
    raise AssertionError("unreachable: a thousand hashes in one text")


def cache_folder() -> Path:
    """Where this user's judges keep what they keep."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root and root.startswith("/") else Path.home() / ".cache") / "tulu-lite"


@lru_cache(maxsize=1)
def _secret() -> bytes:
    """A key of this user on this machine, so that requests are the same from run to run; else of this process."""
    try:
        file = cache_folder() / "judge-key"
        if not file.exists():
            _write_new(file, secrets.token_hex(32))
        key = file.read_text(encoding="ascii").strip().encode()
        return key if len(key) >= 32 else secrets.token_bytes(32)
    except (OSError, ValueError, RuntimeError):
        return secrets.token_bytes(32)


def _write_new(file: Path, text: str) -> None:
    """Whole or not at all; the first of several writers wins."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, name = tempfile.mkstemp(dir=file.parent)
    try:
        os.write(descriptor, text.encode())
        os.close(descriptor)
        try:
            os.link(name, file)
        except FileExistsError:
            return
        except OSError:  # a file system without links
            os.replace(name, file)
            return
    finally:
        Path(name).unlink(missing_ok=True)
