"""Which part of a response is the program.

1. Reasoning (<think>...</think>) is gone before a response comes here.
2. A fence is a line of three or more backticks or tildes, indented or not; what follows the opening one on
   its line names the language. A block ends at the first line that is a fence of the same character, at
   least as long, with nothing after it.
3. Blocks marked python, py, python3 or py3 count; only where none is so marked do unmarked ones. Blocks of other
   languages never do.
4. Where the tests call functions, the last such block that defines one of them is the program; where none
   does, or where the program is run as a whole, the last block. Blocks are never joined.
5. A block that is never closed is no program, and when it would have been the last, the response has none:
   it was cut off.
6. A response without any fence is the program as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

MAX_CODE = 200_000  # characters
MARKS = {"python", "py", "python3", "python2", "py3", "{python}", "{.python}"}
_FENCE = re.compile(r"[ \t>]{0,12}(`{3,}|~{3,})([^\n]*)")


@dataclass(frozen=True)
class Block:
    text: str
    mark: str  # the first word after the fence, lower case
    closed: bool


def blocks(response: str) -> list[Block]:
    """The fenced blocks in order."""
    found: list[Block] = []
    lines: list[str] = []
    fence = mark = ""
    indent = 0
    for line in re.split(r"\r?\n", response):
        match = _FENCE.fullmatch(line) if "```" in line or "~~~" in line else None
        if not fence:
            if match is not None and "`" not in match.group(2):
                fence, words = match.group(1), match.group(2).split()
                mark = words[0].lower() if words else ""
                indent = match.start(1)
                lines = []
        elif match is not None and not match.group(2).strip() and match.group(1).startswith(fence):
            found.append(Block("\n".join(lines), mark, True))
            fence = ""
        else:
            lines.append(line[indent:] if not line[:indent].strip() else line)
    if fence:
        found.append(Block("\n".join(lines), mark, False))
    return found


def defines(code: str, name: str) -> bool:
    """Whether a line at the margin of `code` defines `name`."""
    pattern = rf"^(?:(?:async[ \t]+)?def[ \t]+|class[ \t]+){re.escape(name)}\b|^{re.escape(name)}[ \t]*(?::[^=\n]*)?=(?!=)"
    return re.search(pattern, code, re.MULTILINE) is not None


def program(response: str, names: Sequence[str] = ()) -> tuple[str | None, str]:
    """The response's program, or None and why there is none. `names`: functions that the tests call."""
    response = response.replace("\ufeff", "")  # a byte order mark, which is no Python
    found = blocks(response)
    if not found:
        code = response.strip("\n")
        if not code.strip():
            return None, "the response is empty"
    else:
        candidates = [b for b in found if b.mark in MARKS] or [b for b in found if not b.mark]
        if not candidates:
            return None, "no code block is marked python"
        if not candidates[-1].closed:
            return None, "the last code block is not closed"
        defining = [b for b in candidates if any(defines(b.text, name) for name in names)]
        code = (defining or candidates)[-1].text
    if len(code) > MAX_CODE:
        return None, f"the program is longer than {MAX_CODE} characters"
    return (code, "") if code.strip() else (None, "the code block is empty")


def continuation(prompt: str, code: str) -> str:
    """A function's body that continues `prompt`, joined to it."""
    first, _, rest = code.lstrip("\n").partition("\n")
    if first and not first[0].isspace() and not re.match(r"(?:def|class|import|from|@|async)\b", first):
        others = [line for line in rest.split("\n") if line.strip()]
        if not others or any(line[0] in " \t" for line in others):
            first = "    " + first  # white space at the start of a response is easily lost
    return f"{prompt if prompt.endswith(chr(10)) else prompt + chr(10)}{first}\n{rest}"
