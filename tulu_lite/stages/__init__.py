"""One file a stage kind, each a process of its own."""

from __future__ import annotations

import os
import signal

from ..pipeline.protocol import RUN_VARIABLE
from ..rollout.process import die_with_parent, is_alive

# Before torch is loaded: threads that wait sleep instead of spinning. On a machine that does anything else besides, two
# spinning threads make a training step ten times slower; on an idle one the difference is small.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _die_with_the_run() -> None:
    """Of a step's process that a run started: end when it does. Done before torch is imported, which takes seconds: a
    run that was killed meanwhile would leave a step behind that goes on alone and holds its lock.

    The variable is taken out of the environment: processes that the step starts have the step for a parent.
    """
    pid, _, started = os.environ.pop(RUN_VARIABLE, "").partition(":")
    if pid:
        die_with_parent(signal.SIGKILL)
        if not is_alive(int(pid), int(started)):
            os._exit(128 + signal.SIGKILL)


_die_with_the_run()
