"""A step's process: started, watched, ended with all that it started, and its end explained."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import TuluLiteError
from ..files import read_json
from ..rollout.process import die_with_parent
from .command import shown
from .steps import Step

GRACE_S = 15.0  # between asking a step's processes to end and ending them

# How accelerate launch, which itself ends with 1, tells the end of a stage: that of one process, or the first of several.
LAUNCHER_SAYS = re.compile(
    r"died with <Signals\.SIG\w+: (?P<signal>\d+)>|returned non-zero exit status (?P<status>\d+)"
    r"|Root Cause.*?exitcode +: (?P<first>-?\d+)",
    re.DOTALL,
)


class StepFailed(TuluLiteError):
    """A step's process ended without a result."""


class StepProcess:
    """The process group of one step. It dies with this process, however that ends."""

    def __init__(self, step: Step, command: list[str], environment: dict[str, str]) -> None:
        self.step, self.started = step, time.monotonic()
        step.folder.mkdir(parents=True, exist_ok=True)
        for stale in ("progress.json", "error.json"):
            (step.folder / stale).unlink(missing_ok=True)
        with step.log.open("ab") as log:
            log.write(f"\n$ {shown(command)}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches this process, which then stops the step in good order
                preexec_fn=partial(die_with_parent, signal.SIGKILL, os.getpid()),
            )

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def ended(self) -> bool:
        return self.process.poll() is not None

    def progress(self) -> dict[str, Any] | None:
        """What it last said of how far it is."""
        return read_json(self.step.folder / "progress.json")

    def failure(self) -> StepFailed | None:
        """None when the step is done; else what it said of its failure, or what can be known of it."""
        return None if self.step.done else explain(self.step, self.process.returncode)


def explain(step: Step, code: int) -> StepFailed:
    """Why a step's process ended with this code and no result."""
    told = read_json(step.folder / "error.json")
    if told:  # whatever the code: accelerate's launcher has one of its own
        return StepFailed(
            f"step {step.id} failed: {told['what']}", told["why"], _with_log(told["cure"], step)
        )
    lines = tail(step.log, 200)
    if step.trains and code > 0:
        code, lines = _behind_launcher(code, lines)
    how = (
        f"was killed by signal {-code} ({signal.Signals(-code).name})"
        if code < 0
        else f"ended with exit code {code}"
    )
    last = "\n".join(f"      {line}" for line in lines[-12:])
    return StepFailed(
        f"step {step.id} failed: its process {how}",
        f"the last lines of its log are\n{last}",
        _with_log(
            "run the same command again to go on from its last save; if it was killed, memory may have run out",
            step,
        ),
    )


def _behind_launcher(code: int, lines: list[str]) -> tuple[int, list[str]]:
    """The stage's own code (below 0: the signal that killed it), and the log without the launcher's own traceback, which
    would push the stage's last words out of sight. Both as they are where the launcher says nothing of the stage."""
    # "$ ": the command of this try; what comes before is of an earlier one
    start = max((i for i, line in enumerate(lines) if line.startswith(("Traceback", "$ "))), default=0)
    said = LAUNCHER_SAYS.search("\n".join(lines[start:]))
    if said is None:
        return code, lines
    return (-int(said["signal"]) if said["signal"] else int(said["status"] or said["first"])), lines[:start]


def several_failed(failures: Sequence[StepFailed], together: int) -> StepFailed:
    """One error for the runs that failed while others went on."""
    if together == 1:
        return failures[0]
    others = [failure.what for failure in failures[1:]]
    done = f"the other {together - len(failures)} of {together} runs ended well and are kept; "
    return StepFailed(
        "\n".join([failures[0].what, *others]),
        failures[0].why,
        (done if len(failures) < together else "") + failures[0].cure,
    )


def _with_log(cure: str, step: Step) -> str:
    return f"{cure}\n  log:  {step.log}".lstrip()


def tail(file: Path, lines: int) -> list[str]:
    """The last lines of a text file, read from its end."""
    try:
        with file.open("rb") as handle:
            handle.seek(max(0, file.stat().st_size - 16_384))
            return handle.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return []


def end_groups(processes: Sequence[StepProcess]) -> None:
    """End whole process groups, all at once: asked first, then made to."""
    for number, wait in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, 5.0)):
        left = [one.process for one in processes if _lives(one.process)]
        if not left:
            return
        for process in left:
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline and any(_lives(process) for process in left):
            time.sleep(0.05)


def _lives(process: subprocess.Popen[Any]) -> bool:
    """Whether anything of its group does."""
    if process.poll() is None:
        return True
    try:
        os.killpg(process.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
