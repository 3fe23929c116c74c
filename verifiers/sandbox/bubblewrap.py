"""The bubblewrap tier: how the `bwrap` program is called, and what runs first inside.

The walls are bubblewrap's, put up anew for each program. Landlock can only be set from within, after the
mounts, so a small trusted start-up comes before the program.
"""

from __future__ import annotations

import os
import sys

from verifiers.sandbox import landlock, linux, lockdown, view

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

BUBBLEWRAP_TIER = 4
ORDER, LINE, FIRST_PASSED = 3, 4, 5  # descriptors that go through bwrap
# The modules that `inner` needs are loaded without the rest of their package.
_INNER = """
import sys
for name, path in zip(("verifiers", "verifiers.sandbox"), sys.argv[1:3]):
    sys.modules[name] = type(sys)(name)
    sys.modules[name].__path__ = [path]
from verifiers.sandbox import bubblewrap, lockdown
source = bubblewrap.inner()
if source is not None:
    lockdown.run_source(source)
"""


def needed_inside() -> list[str]:
    """Files of this package that the start-up reads."""
    return [os.path.dirname(os.path.abspath(__file__))]


def arguments(prefix: str, reads: Sequence[str], writes: Sequence[str], file_mb: int) -> list[str]:
    """bwrap's argument list. `prefix` is where the host's files are found, "" for their own places."""
    made = ["bwrap", "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    made += [
        "--unshare-cgroup-try",
        "--uid",
        "65534",
        "--gid",
        "65534",
        "--hostname",
        "sandbox",
        "--cap-drop",
        "ALL",
    ]
    made += ["--die-with-parent", "--new-session", "--as-pid-1", "--clearenv"]
    made += ["--setenv", "PYTHONHASHSEED", "0"]  # and so not -I, which would ignore it
    for path in reads:
        made += ["--ro-bind", prefix + path, path]
    for path in view.DEVICES:
        made += ["--dev-bind-try", prefix + path, path]
    for path in writes:
        made += ["--bind", prefix + path, path]
    made += ["--perms", "0700", "--size", str(file_mb << 20), "--tmpfs", view.PRIVATE]
    if not any(path == view.LINK or path.startswith(view.LINK + "/") for path in [*reads, *writes]):
        made += ["--symlink", view.PRIVATE, view.LINK]
    made += ["--remount-ro", "/"]
    made += ["--chdir", view.PRIVATE, "--", sys.executable, "-P", "-s", "-S", "-c", _INNER]
    package = needed_inside()[0]
    return [*made, os.path.dirname(package), package]


def inner() -> str | None:
    """Inside the walls: take the order, give up the rest, and start. Returns source to run."""
    line = LINE
    try:
        order = lockdown.receive_order(ORDER)
        passed = range(FIRST_PASSED, FIRST_PASSED + len(order["numbers"]))
        lockdown.write_files(order["files"])
        line = lockdown.arrange_descriptors([0, 1, 2], passed, order["numbers"], line)
        lockdown.drop_user(None)
        linux.prctl(linux.PR_SET_PDEATHSIG, 9)
        lockdown.set_limits(order["limits"], count_processes=True)
        lockdown.restrict(BUBBLEWRAP_TIER, order["rules"], order["filter_program"])
        return lockdown.start(order, line)
    except BaseException as fault:
        lockdown.report_error(line, f"{type(fault).__name__}: {fault}")
        os._exit(125)


def private_rules(reads: Sequence[str], writes: Sequence[str]) -> list[tuple[str, int]]:
    """Landlock's rules in a file system of our own: they say once more what its mounts say.

    What may be read may be started, what the program writes may not.
    """
    rules = [("/", landlock.READ & ~landlock.EXECUTE), (view.PRIVATE, landlock.WRITE)]
    rules += [(path, landlock.DEVICE) for path in view.DEVICES]
    rules += [(path, landlock.READ) for path in reads]
    return rules + [(path, landlock.WRITE) for path in writes]
