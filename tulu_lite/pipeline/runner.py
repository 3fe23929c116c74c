"""Runs a plan: each step in its own process, one rollout server for all of them, and goes on where it was."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from .. import __version__
from ..errors import ServerError
from ..files import write_atomic, write_json
from ..recipe import Recipe, dump_recipe, serving
from ..recipe.placement import Placement, share, visible
from ..rollout.client import RolloutClient
from ..rollout.fleet import RolloutFleet, open_servers
from ..rollout.generation import check_port
from ..rollout.process import start_time
from ..rollout.server import RolloutServer
from ..rollout.sleeping import put_to_sleep
from .command import processes_of, shown, step_command
from .expand import expand
from .judges import Judges
from .ledger import Ledger
from .lock import exclusive
from .models import local_model
from .placing import placement
from .plan import PlannedStep, make_plan
from .processes import StepFailed, StepProcess, end_groups, several_failed, tail
from .protocol import RUN_VARIABLE, SERVER_VARIABLE, SHARED_VARIABLE
from .select import choice_result
from .show import Display
from .steps import Step, model_path

POLL_S = 0.25  # between looks at the processes that run


class Interrupted(BaseException):
    """The user (SIGINT) or the system (SIGTERM) asked the run to stop.

    No Exception, as KeyboardInterrupt is none: it may come while a library's error of any kind is being caught.
    """


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
    return runner.order


class Runner:
    """What the steps of one run share: the rollout server, started when first needed, and the display."""

    def __init__(self, recipe: Recipe, recipe_file: Path, ledger: Ledger, display: Display) -> None:
        self.recipe, self.recipe_file, self.ledger, self.display = recipe, recipe_file, ledger, display
        self.server: RolloutServer | RolloutFleet | None = None
        self.judges = Judges(recipe)
        self.order: list[Step] = []
        self.placement = Placement()

    def do(self, plan: list[PlannedStep]) -> None:
        """Each step that is not done. After a choice the recipe is taken apart anew: what hangs on it has its key now."""
        self.order = [planned.step for planned in plan]
        waiting = [step for step in self.order if not step.done]
        settings = self.recipe.server
        self.placement = placement(self.recipe, waiting)
        if settings.port and not settings.urls and any(step.samples for step in waiting):
            for number in range(settings.replicas):  # hours before the first step that needs it
                check_port(settings.host, settings.port + number)
        seen: set[str] = set()
        while left := [step for step in self.order if step.id not in seen]:
            step = left[0]
            seen.add(step.id)
            if step.done:
                self.display.already_done(*self._place(step), step)
            elif step.kind == "select":
                self._select(step)
                self.order = expand(self.recipe, self.ledger)
            else:
                self._keep_server([other for other in left if not other.done], step)
                runs = together(left)
                self._train_or_sample(runs)
                seen |= {run.id for run in runs}
                if any("stopped_early" in run.summary for run in runs):
                    self.order = expand(self.recipe, self.ledger)  # those do not go on longer

    @property
    def steps(self) -> dict[str, Step]:
        return {step.id: step for step in self.order}

    def _place(self, step: Step) -> tuple[int, int]:
        """(number, of how many), as shown."""
        return [other.id for other in self.order].index(step.id) + 1, len(self.order)

    def _select(self, step: Step) -> None:
        self.ledger.start_step(step, step.origins(self.steps))
        result = choice_result(step, [self.steps[name] for name in step.inputs])
        write_json(step.result_file, result)
        self.ledger.end_step(step.key, "done", summary=result["summary"])
        self.display.ended(*self._place(step), step, 0.0)

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
            self.judges.start(self.steps)
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

    def _train_or_sample(self, steps: list[Step]) -> None:
        """The steps' processes: one, or runs of one stage at the same time, as many as it says.

        A run that fails leaves the others going; what failed is said when all have ended. Raises StepFailed.
        """
        waiting, running, failures = list(steps), dict[int, StepProcess](), list[StepFailed]()
        slots = list(range(getattr(steps[0].stage, "at_once", 1)))
        runs = min(len(slots), len(steps))
        try:
            while waiting or running:
                while waiting and slots:
                    slot = slots.pop(0)
                    running[slot] = self._start(waiting.pop(0), slot, runs)
                for slot, one in [(slot, one) for slot, one in running.items() if one.ended()]:
                    end_groups([one])  # it may have left children
                    failures += self._finish(one)
                    del running[slot]
                    slots.append(slot)
                self._show(list(running.values()))
                time.sleep(POLL_S)
        finally:
            end_groups(list(running.values()))
        if failures:
            raise several_failed(failures, len(steps))

    def _start(self, step: Step, slot: int, runs: int) -> StepProcess:
        command = step_command(step, self.recipe, self.recipe_file)
        self.display.started(*self._place(step), step, shown(command))
        return StepProcess(step, command, self._environment(step, slot, runs))

    def _finish(self, one: StepProcess) -> list[StepFailed]:
        """Tell how a step's process ended; its failure, if it is one."""
        failure = one.failure()
        if failure is None:
            self.display.ended(*self._place(one.step), one.step, one.seconds)
            return []
        known = self.ledger.step(one.step.key)
        if known is None or known["status"] != "failed":  # it could not say so itself
            self.ledger.end_step(one.step.key, "failed", error=failure.what.partition("its process ")[2])
        self.display.failed(*self._place(one.step), one.step, failure.what)
        return [failure]

    def _show(self, running: list[StepProcess]) -> None:
        self.display.progress({one.step.id: one.progress() for one in running})
        if self.server is not None:
            troubled = self.judges.state_text()
            self.display.server(self.server.state_text() + (f"; {troubled}" if troubled else ""))

    def _environment(self, step: Step, slot: int = 0, runs: int = 1) -> dict[str, str]:
        """slot: which of the places for runs at the same time it has; runs: how many of them are taken."""
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
        devices = () if self.placement.colocated else self.placement.training
        if self.placement.training and step.trains and step.stage.at_once > 1:  # type: ignore[union-attr]
            devices = share(self.placement.training, slot, processes_of(settings))
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = visible(devices, os.environ)
        if self.server is not None:
            environment[SERVER_VARIABLE] = str(self.server.state_file)
            environment[SHARED_VARIABLE] = str(runs if step.shares else 1)
        return environment

    def close(self) -> None:
        self.judges.stop()
        if self.server is not None:
            self.server.stop()
            self.server = None


def together(left: list[Step]) -> list[Step]:
    """The first step, and those after it that train at the same time: runs of its stage that need nothing not done."""
    first = left[0]
    runs = [first]
    if not first.trains or first.stage.at_once == 1:  # type: ignore[union-attr]
        return runs
    for step in left[1:]:
        if step.kind != first.kind or step.stage.name != first.stage.name:
            break
        begun = {run.id for run in runs}
        if not step.done and step.waits_for is None and not begun & set(step.inputs):
            runs.append(step)
    return runs


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
