"""Whole programs: one fresh process a test, its input on standard input, what it prints compared here."""

from __future__ import annotations

import fcntl
import math
import os
import re
import time
from contextlib import ExitStack
from decimal import Decimal, InvalidOperation

from verifiers.code.granted import prelude
from verifiers.code.running import Clock, Outcome
from verifiers.code.session import START_S, Shelter, framed, site_folders
from verifiers.code.values import shown
from verifiers.errors import VerifierError
from verifiers.sandbox import launch_python

MAX_OUTPUT = 8 << 20  # bytes
_NUMBER = re.compile(r"[+-]?(?:\d{1,300}\.\d{0,300}|\.\d{1,300}|\d{1,300})(?:[eE][+-]?\d{1,3})?")

# The program comes first on standard input, framed; its own input follows, or takes the place of that pipe as a
# file, whose size programs ask for: os.read(0, os.fstat(0).st_size). The frame is read from the descriptor
# itself, so that nothing of the input is taken into a buffer. Some programs want half a gigabyte for the stack
# of a thread, of which Python needs little.
BOOT = """
import builtins, marshal, posix, sys
posix.write(1, b"+")
def read(size):
    data = b""
    while len(data) < size:
        part = posix.read(0, size - len(data))
        if not part:
            posix._exit(1)
        data += part
    return data
code, folders, prelude, given = marshal.loads(read(int.from_bytes(read(4), "big")))
if given >= 0:
    posix.dup2(given, 0)
    posix.close(given)
sys.path.extend(folders)
sys.argv[:] = ["program.py"]
builtins.exit = builtins.quit = sys.exit
import _thread, threading
def stack_size(size=0, set=_thread.stack_size):
    return set(min(size, 1 << 26))
_thread.stack_size = threading.stack_size = stack_size
exec(prelude, {})
main = sys.modules["__main__"] = type(sys)("__main__")
exec(compile(code, "program.py", "exec", dont_inherit=True), main.__dict__)
"""


def run(code: str, given: str, wanted: str, shelter: Shelter, clock: Clock, tolerance: float) -> Outcome:
    """Whether the program prints `wanted` when it reads `given`, and ends well. Raises VerifierError."""
    with ExitStack() as stack:
        file = _as_file(given.encode("utf-8", "surrogatepass"), stack)
        process = stack.enter_context(
            launch_python(BOOT, tier=shelter.tier, limits=shelter.limits, pass_fds=[file] * (file >= 0))
        )
        try:
            hello = process.read(1, time.monotonic() + START_S)
        except TimeoutError:
            hello = b""
        if hello != b"+":
            said = process.stderr_tail().strip()[-300:]
            raise VerifierError(f"a sandboxed process did not start ({process.kill()})", said)
        deadline = clock.test_deadline()
        try:
            data = framed((code, list(site_folders()), prelude(code), file))
            if file < 0:
                data += given.encode("utf-8", "surrogatepass")
            printed = process.communicate(data, MAX_OUTPUT, deadline)
            if len(printed) > MAX_OUTPUT:
                return Outcome(False, f"printed more than {MAX_OUTPUT} bytes")
            process.wait(deadline)
        except TimeoutError:
            return Outcome(False, "timed out")
        ending = process.ending
        if ending is None or ending.status != 0:
            error = process.stderr_tail().strip().rpartition("\n")[2][:200]
            return Outcome(
                False, f"ended with {ending.words if ending else 'nothing'}" + f": {error}" * bool(error)
            )
    found = printed.decode("utf-8", "replace")
    if same_output(found, wanted, tolerance):
        return Outcome(True)
    return Outcome(False, f"printed {shown(found.strip())}")


def _as_file(data: bytes, stack: ExitStack) -> int:
    """A descriptor of a file in memory that holds `data` and can be read only; -1 where there is no such thing."""
    if not hasattr(os, "memfd_create"):
        return -1
    try:
        file = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError:
        return -1
    stack.callback(os.close, file)
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]
    os.lseek(file, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
    return file


def same_output(found: str, wanted: str, tolerance: float = 0.0) -> bool:
    """The same lines but for white space at their ends, or else the same words one by one."""
    if _lines(found) == _lines(wanted):
        return True
    ours, theirs = found.split(), wanted.split()
    return len(ours) == len(theirs) and all(
        a == b or _same_number(a, b, tolerance) for a, b in zip(ours, theirs, strict=True)
    )


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _same_number(found: str, wanted: str, tolerance: float) -> bool:
    """Two numbers of which one is written with a decimal point or an exponent: 1.0 and 1, 0.5 and .5."""
    if not re.search(r"[.eE]", found + wanted):
        return False
    if not _NUMBER.fullmatch(found) or not _NUMBER.fullmatch(wanted):
        return False
    try:
        if Decimal(found) == Decimal(wanted):
            return True
        return tolerance > 0 and math.isclose(
            float(found), float(wanted), rel_tol=tolerance, abs_tol=tolerance
        )
    except (InvalidOperation, OverflowError, ValueError):
        return False
