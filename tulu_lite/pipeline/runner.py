"""Runs a plan: each step in its own process, one rollout server for all of them, and goes on where it was."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import ServerError, TuluLiteError
from ..files import read_json, write_atomic, write_json
from ..recipe import Recipe, dump_recipe, serving
from ..recipe.placement import Placement, visible
from ..rollout.client import RolloutClient
from ..rollout.fleet import RolloutFleet, open_servers
from ..rollout.generation import check_port
from ..rollout.process import die_with_parent, start_time
from ..rollout.server import RolloutServer
from ..rollout.sleeping import put_to_sleep
from .command import shown, step_command
from .judges import Judges
from .ledger import Ledger
from .lock import exclusive
from .models import local_model
from .placing import placement
from .plan import PlannedStep, make_plan
from .protocol import RUN_VARIABLE, SERVER_VARIABLE
from .select import choice_result
from .show import Display
from .steps import Step, model_path

GRACE_S = 15.0  # between asking a step's processes to end and ending them

LAUNCHER_SAYS = re.compile(
    r"died with <Signals\.SIG\w+: (\d+)>"
)  # accelerate launch, of a stage that was killed


class StepFailed(TuluLiteError):
    """A step's process ended without a result."""


class Interrupted(Exception):
    """The user (SIGINT) or the system (SIGTERM) asked the run to stop."""


def run(recipe: Recipe, display: Display) -> list[Step]:
    """Do every step of the recipe that is not done. Returns all steps, in order.

    Raises TuluLiteError (StepFailed, ServerError) with what failed, why and where its log is; Interrupted.
    """
    output = Path(recipe.output)
    with exclusive(output / ".lock", f"the output folder {output}"):
        ledger = Ledger(output)
        plan = make_plan(recipe)
        recipe_file = output / "recipe.yaml"
        write_atomic(recipe_file, dump_recipe(recipe))
        display.plan(recipe, plan)
        run_id = ledger.start_run(recipe.name, dump_recipe(recipe), __version__)
        status = "failed"
        runner = Runner(recipe, recipe_file, ledger, display)
        try:
            with _stop_signals():
                runner.do(plan)
            status = "done"
        except (Interrupted, KeyboardInterrupt):
            status = "interrupted"
            raise Interrupted from None
        finally:
            runner.close()
            ledger.end_run(run_id, status)
    return [planned.step for planned in plan]


class Runner:
    """What the steps of one run share: the rollout server, started when first needed, and the display."""

    def __init__(self, recipe: Recipe, recipe_file: Path, ledger: Ledger, display: Display) -> None:
        self.recipe, self.recipe_file, self.ledger, self.display = recipe, recipe_file, ledger, display
        self.server: RolloutServer | RolloutFleet | None = None
        self.judges = Judges(recipe)
        self.steps: dict[str, Step] = {}
        self.placement = Placement()

    def do(self, plan: list[PlannedStep]) -> None:
        self.steps = {planned.step.id: planned.step for planned in plan}
        settings = self.recipe.server
        self.placement = placement(self.recipe, [planned.step for planned in plan if not planned.step.done])
        if (
            settings.port
            and not settings.urls
            and any(planned.step.samples and not planned.step.done for planned in plan)
        ):
            for number in range(settings.replicas):  # hours before the first step that needs it
                check_port(settings.host, settings.port + number)
        for number, planned in enumerate(plan, 1):
            step = planned.step
            if step.done:
                self.display.already_done(number, len(plan), step)
            elif step.kind == "select":
                self._select(number, len(plan), step)
            else:
                later = [other.step for other in plan[number - 1 :] if not other.step.done]
                self._keep_server(later, step)
                self._process(number, len(plan), step)

    def _select(self, number: int, total: int, step: Step) -> None:
        self.ledger.start_step(step, step.origins(self.steps))
        result = choice_result(step, [self.steps[name] for name in step.inputs])
        write_json(step.result_file, result)
        self.ledger.end_step(step.key, "done", summary=result["summary"])
        self.display.ended(number, total, step, 0.0)

    def _keep_server(self, later: list[Step], step: Step) -> None:
        """Have the server running when the step samples; start it beside the step before the first that does."""
        soon = later[:1] if self.placement.colocated else later[:2]  # or it would take what training needs
        if self.server is None and any(other.samples for other in soon):
            model = step.model if step.samples and step.model != "base" else None
            folder = Path(model_path(self.steps, self.recipe, model)) if model else local_model(self.recipe)
            server_dir = Path(self.recipe.output) / "server"
            self.server = open_servers(serving(self.recipe), folder, server_dir, server_dir / "log.txt")
            self.server.start()
        if any(other.samples for other in soon):
            self.judges.start()
        if step.samples and self.server is not None:
            if self.server.state.state != "ready":
                self.display.waiting("waiting for the rollout server")
            self.server.wait_ready()
            if self.judges.state_text():
                self.display.waiting("waiting for the judges")
            self.judges.wait_ready()
        if self.server is not None and not any(other.samples for other in later):
            self.close()  # nothing samples any more: give its memory and cores back
        if self.server is not None and self.placement.colocated and step.trains and not step.samples:
            with RolloutClient(
                self.server.state_file
            ) as client:  # a step that samples wakes it and lets it sleep
                put_to_sleep(client, self.recipe.server.sleep_level)

    def _process(self, number: int, total: int, step: Step) -> None:
        command = step_command(step, self.recipe, self.recipe_file)
        step.folder.mkdir(parents=True, exist_ok=True)
        (step.folder / "progress.json").unlink(missing_ok=True)
        (step.folder / "error.json").unlink(missing_ok=True)
        self.display.started(number, total, step, shown(command))
        started = time.monotonic()
        with step.log.open("ab") as log:
            log.write(f"\n$ {shown(command)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(step),
                start_new_session=True,  # Ctrl-C reaches this process, which then stops the step in good order
                preexec_fn=partial(die_with_parent, signal.SIGKILL, os.getpid()),
            )
        try:
            while process.poll() is None:
                self.display.progress(read_json(step.folder / "progress.json"))
                if self.server is not None:
                    troubled = self.judges.state_text()
                    self.display.server(self.server.state_text() + (f"; {troubled}" if troubled else ""))
                time.sleep(0.25)
        finally:
            _end_group(process)
        if not step.done:
            self._explain(step, process.returncode)
        self.display.ended(number, total, step, time.monotonic() - started)

    def _environment(self, step: Step) -> dict[str, str]:
        environment = dict(os.environ)
        settings = getattr(step.stage, "accelerate", None) or self.recipe.accelerate
        threads = settings.threads if step.trains else 1
        environment |= {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
        }
        environment |= {
            "PYTHONUNBUFFERED": "1",
            "DO_NOT_TRACK": "1",
            RUN_VARIABLE: f"{os.getpid()}:{start_time(os.getpid())}",
        }
        if self.placement.training and not self.placement.colocated:
            environment["CUDA_VISIBLE_DEVICES"] = visible(self.placement.training, os.environ)
        if self.server is not None:
            environment[SERVER_VARIABLE] = str(self.server.state_file)
        return environment

    def _explain(self, step: Step, code: int) -> None:
        """Raise what the step said of its failure, or what can be known of it."""
        told = read_json(step.folder / "error.json")
        if told:  # whatever the code: accelerate's launcher has one of its own
            raise StepFailed(
                f"step {step.id} failed: {told['what']}", told["why"], _with_log(told["cure"], step)
            )
        lines = tail(step.log, 60)
        killed = LAUNCHER_SAYS.search("\n".join(lines[-3:])) if code > 0 else None
        number = int(killed[1]) if killed else -code
        if killed:  # the launcher's own traceback would push the step's last words out of sight
            lines = lines[
                : max((i for i, line in enumerate(lines) if line.startswith("Traceback")), default=0)
            ]
        how = (
            f"was killed by signal {number} ({signal.Signals(number).name})"
            if number > 0
            else f"ended with exit code {code}"
        )
        self.ledger.end_step(step.key, "failed", error=how)
        last = "\n".join(f"      {line}" for line in lines[-12:])
        raise StepFailed(
            f"step {step.id} failed: its process {how}",
            f"the last lines of its log are\n{last}",
            _with_log(
                "run the same command again to go on from its last save; if it was killed, memory may have run out",
                step,
            ),
        )

    def close(self) -> None:
        self.judges.stop()
        if self.server is not None:
            self.server.stop()
            self.server = None


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


def _end_group(process: subprocess.Popen[Any]) -> None:
    """End the step's whole process group: asked first, then made to."""
    for number, wait in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, 5.0)):
        if process.poll() is not None and not _group_alive(process.pid):
            return
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline and (process.poll() is None or _group_alive(process.pid)):
            time.sleep(0.05)


def _group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


class _stop_signals:
    """Turn SIGTERM and SIGHUP into the exception that Ctrl-C is."""

    def __enter__(self) -> None:
        self.old = {number: signal.signal(number, self._raise) for number in (signal.SIGTERM, signal.SIGHUP)}

    def __exit__(self, *_: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)

    @staticmethod
    def _raise(*_: object) -> None:
        raise Interrupted


__all__ = ["Interrupted", "Runner", "ServerError", "StepFailed", "run", "tail"]
