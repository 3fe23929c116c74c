"""What happens in the new process, before a line of the untrusted program: give everything up, for good.

Trusted code, run after the process was put where it belongs. Order matters: files are written before file
limits, the limit on processes is set in the innermost user namespace, Landlock needs no_new_privs, and
seccomp comes last because it forbids the calls that the rest needs.

Imports are few: under bubblewrap this is loaded anew for every program.
"""

from __future__ import annotations

import fcntl
import marshal
import os
import resource
import struct
import sys

from verifiers.sandbox import landlock, linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, NoReturn

    Order = dict[str, Any]  # one program to run, see `encode_order`

LENGTH = struct.Struct(">I")
LIMITS_TIER = 1


def encode_order(
    argv: Sequence[str],
    source: str | None,
    env: Mapping[str, str],
    limits: Mapping[str, Any],
    files: Mapping[str, bytes],
    numbers: Sequence[int],
    filter_program: bytes = b"",
    rules: Sequence[tuple[str, int]] = (),
) -> bytes:
    """One program to run, for `receive_order`.

    source   Python to run in the new process itself; argv are then its arguments
    numbers  what the passed descriptors are to be called
    filter_program, rules  for seccomp and Landlock, where not the supervisor's own child sets them
    """
    order = {
        "argv": list(argv),
        "source": source,
        "env": dict(env),
        "limits": dict(limits),
        "files": {name: bytes(data) for name, data in files.items()},
        "numbers": list(numbers),
        "filter_program": filter_program,
        "rules": list(rules),
    }
    body = marshal.dumps(order)
    return LENGTH.pack(len(body)) + body


def receive_order(pipe: int) -> Order:
    """Raises EOFError when the parent went away."""
    return marshal.loads(_exactly(pipe, *LENGTH.unpack(_exactly(pipe, LENGTH.size))))


def _exactly(pipe: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = os.read(pipe, min(size - len(data), 1 << 20))
        if not piece:
            raise EOFError("the parent went away")
        data += piece
    return bytes(data)


def arrange_descriptors(
    streams: Sequence[int], passed: Sequence[int], numbers: Sequence[int], line: int
) -> int:
    """0, 1 and 2 are the streams, the passed ones get their numbers, all others are closed but `line`.

    Returns the new number of `line`, the status socket, which closes when a program is started.
    """
    wanted = dict(zip([0, 1, 2, *numbers], [*streams, *passed], strict=True))
    above = max(wanted) + 1  # out of the way while the final numbers are filled
    moved = {number: fcntl.fcntl(fd, fcntl.F_DUPFD, above) for number, fd in wanted.items()}
    line = fcntl.fcntl(line, fcntl.F_DUPFD_CLOEXEC, above)
    for number, descriptor in moved.items():
        os.dup2(descriptor, number)  # inheritable
    linux.close_all_but({*wanted, line})
    return line


def drop_user(uid: int | None, keep: int = 0) -> None:
    """Become a user that nothing belongs to (as root), and give up every capability but those of `keep`."""
    if uid is not None:
        os.setgroups([])
        if keep:
            linux.prctl(linux.PR_SET_KEEPCAPS, 1)
        if linux.ON_LINUX:
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        else:
            os.setgid(uid)
            os.setuid(uid)
    if linux.ON_LINUX:
        linux.drop_capabilities(keep)


def own_user_namespace(proc: int) -> None:
    """A user namespace for this sandbox alone: its processes are counted apart, and it owns nothing outside."""
    uid, gid = os.geteuid(), os.getegid()
    linux.unshare(linux.CLONE_NEWUSER)
    map_user(proc, f"65534 {uid} 1", f"65534 {gid} 1")


def map_user(proc: int, uids: str, gids: str) -> None:
    """Write this process's identity maps; `proc` is a descriptor of a /proc."""
    for name, text in (("setgroups", "deny"), ("uid_map", uids), ("gid_map", gids)):
        descriptor = os.open(f"self/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


def write_files(files: Mapping[str, bytes]) -> None:
    """Into the working directory; names were checked by the parent."""
    for name, data in files.items():
        folder = os.path.dirname(name)
        if folder:
            os.makedirs(folder, exist_ok=True)
        descriptor = os.open(name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)


def set_limits(limits: Mapping[str, Any], count_processes: bool) -> None:
    """Resource limits, soft and hard at once; never above what this process has itself."""
    wanted = {
        "RLIMIT_CPU": limits["cpu_s"],
        "RLIMIT_AS": limits["memory_mb"] << 20,
        "RLIMIT_FSIZE": limits["file_mb"] << 20,
        "RLIMIT_NOFILE": limits["open_files"],
        "RLIMIT_NPROC": limits["processes"] + limits["threads"] if count_processes else None,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_RTPRIO": 0,
        "RLIMIT_SIGPENDING": 256,
    }
    for name, value in wanted.items():
        number = getattr(resource, name, None)
        if number is None or value is None:
            continue
        _, hard = resource.getrlimit(number)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(number, (value, value))
        except (ValueError, OSError):
            if linux.ON_LINUX:  # macOS refuses some, RLIMIT_AS among them
                raise


def restrict(tier: int, rules: Sequence[tuple[str, int]], filter_program: bytes) -> None:
    """No new privileges, then Landlock where the kernel has it, then seccomp. Raises OSError."""
    if not linux.ON_LINUX:
        return
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    if tier == LIMITS_TIER:
        return
    version = landlock.abi()
    if version:
        landlock.restrict(rules, version)
    linux.install_filter(filter_program)


def report_ready(line: int) -> None:
    os.write(line, b'{"ready": true}\n')


def report_error(line: int, words: str) -> None:
    import json

    os.write(line, json.dumps({"error": words}).encode() + b"\n")


def start(order: Order, line: int) -> str:
    """Tell the parent, then become the program; for Python source, return it for the caller to run.

    The caller runs it at the bottom of its stack, so that the interpreter's own end of life follows.
    """
    report_ready(line)
    if order["source"] is not None:
        os.environ.clear()
        os.environ.update(order["env"])
        os.close(line)
        sys.argv[:] = ["-c", *order["argv"]]
        return order["source"]
    try:
        os.execvpe(order["argv"][0], order["argv"], order["env"])
    except OSError as fault:
        report_error(line, f"{order['argv'][0]} cannot be started: {fault.strerror}")
    os._exit(127)


def run_source(source: str) -> NoReturn:
    """What `python -c source` does, in an interpreter that has forgotten our modules.

    The process ends as Python's does (threads, exit functions, buffers), but does not take its thousands of
    objects apart one by one, which would cost more than all else here.
    """
    import atexit

    for name in [name for name in sys.modules if name.split(".")[0] == "verifiers"]:
        del sys.modules[name]
    main = type(sys)("__main__")
    main.__dict__["__builtins__"] = sys.modules["builtins"]
    sys.modules["__main__"] = main
    code: object = 0
    try:
        try:
            exec(compile(source, "<string>", "exec", dont_inherit=True), main.__dict__)
        finally:
            if "threading" in sys.modules:
                sys.modules["threading"]._shutdown()
            atexit._run_exitfuncs()
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            code = code or 120  # as Python's own
    os._exit((code or 0) & 0xFF)
