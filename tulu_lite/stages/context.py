"""What a stage process is given: its settings, its inputs, its folder, and the ways to report.

    with step_context(SftStage) as ctx:
        ...
        ctx.finish(model=folder, summary={...})

The process is started by `tulu-lite run`, or by hand with the command that run prints. A fault the user can mend
ends it with exit code 2 and one clear message; everything it did until its last save is kept.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..datasets.cache import TokenCache
from ..datasets.report import DataReport
from ..errors import TuluLiteError
from ..files import suppress_os_errors, write_atomic, write_json
from ..judging import also_judged_by, code_check, row_check
from ..pipeline.expand import expand
from ..pipeline.fingerprint import token_cache
from ..pipeline.ledger import Ledger
from ..pipeline.lock import exclusive
from ..pipeline.models import local_model
from ..pipeline.protocol import (
    SHARED_VARIABLE,
    USER_ERROR,
    progress_text,
    read_validation,
    validation_file,
    write_validation,
)
from ..pipeline.select import hopeless
from ..pipeline.steps import Step, model_path
from ..recipe import BASE, Recipe, TrainingStage, dump_recipe, load_recipe, runs_of
from ..rollout.process import die_with_parent
from ..watching.sinks import Logged, Sinks
from ..watching.watch import Watch
from .metrics import MetricsLog


@dataclass
class StepContext:
    """One step as its process sees it."""

    recipe: Recipe
    stage: Any  # the stage's settings, of the class that was asked for
    step: Step
    steps: dict[str, Step]
    ledger: Ledger
    is_main: bool  # rank 0: the only one that writes
    metrics: MetricsLog = field(init=False)
    look: Callable[..., None] | None = (
        None  # of a replay: shown each update before it is done (doctor/replay.py)
    )
    finished: bool = False
    _started: float = field(default_factory=time.monotonic)
    _shown: float = 0.0
    _printed: float = 0.0
    _first: tuple[str, float, float] | None = None  # unit, time and count from which the rate is measured

    def __post_init__(self) -> None:
        if self.step.samples:
            check = code_check(self.recipe)
            if self.stage.bad_rows == "drop":  # as the plan does, so that both use the same rows
                check = row_check(self.recipe, f"stage {self.stage.name}", *also_judged_by(self.stage))
            self.stage = self.stage.checking(check)
        logged = Logged(self.step.id, self.step.key, self.dir, self.recipe.name, self.step.identity)
        sinks = Sinks(self.recipe.watch if self.is_main else (), logged)
        watch = Watch(self.dir, self.recipe.warnings, sinks) if self.is_main else None
        self.metrics = MetricsLog(self.dir / "metrics.jsonl", self.is_main, watch)

    @property
    def dir(self) -> Path:
        return self.step.folder

    @property
    def seed(self) -> int:
        return self.step.seed

    @property
    def base_dir(self) -> Path:
        """What relative paths are relative to. Those of a loaded recipe are absolute already."""
        return Path.cwd()

    @property
    def init_model(self) -> str:
        """The folder of the model this step starts from or samples with."""
        return self.model_of(self.step.model)

    def model_of(self, name: str) -> str:
        """The folder of an earlier step's model, or of the recipe's own (`base`)."""
        return str(local_model(self.recipe)) if name == BASE else model_path(self.steps, self.recipe, name)

    @property
    def token_cache(self) -> TokenCache:
        return token_cache(self.recipe, self.ledger)

    def tell_of_data(self, report: DataReport) -> None:
        """Print what became of the rows, and keep it beside the step's output."""
        if self.is_main:
            report.write(self.dir)
            for note in report.notes():
                print(note, flush=True)

    @property
    def checkpoints(self) -> Path:
        return self.dir / "checkpoints"

    # A stage of several runs

    @property
    def total_steps(self) -> int:
        """Of an rlvr run, those before it included when it goes on from another."""
        return int(self.stage.steps)

    @property
    def start_from(self) -> Path | None:
        """The save that a run which goes on from another starts at: model, optimiser, position and random states."""
        return None if self.step.extends is None else last_save(self.steps[self.step.extends], self.step)

    @property
    def runs_on_server(self) -> int:
        """How many runs sample from the same server at the same time, this one included. Of several, whole weights go
        there by a lease, and samples from adapters by places."""
        return int(os.environ.get(SHARED_VARIABLE, "1"))

    @property
    def adapter_name(self) -> str:
        """What the server calls this run's adapter."""
        return f"{self.step.stage.name}-{self.step.key[:12]}"

    def validated(
        self, step: int, metric: str, values: Mapping[str, float | None], better: str = "higher"
    ) -> dict[str, Any]:
        """Keep a validation, by held-out item (None: no score); returns what `summary["validation"]` is to be when it is
        this one that counts: {"metric", "value", "better"} with the mean of those that have a score."""
        if self.is_main:
            write_validation(validation_file(self.dir, step), values)
        known = [value for value in values.values() if value is not None]
        return {"metric": metric, "value": sum(known) / len(known) if known else math.nan, "better": better}

    def hopeless(self, step: int, value: float) -> str:
        """Why this run should end now, by the stage's `stop_early`; "" when it should go on. For after `validated`, on the
        main process: it reads what the other runs of the stage have validated at the same step."""
        rule = self.stage.stop_early
        if rule is None or step < rule.after_steps or step >= self.total_steps:
            return ""
        own = read_validation(validation_file(self.dir, step))
        others = {
            other.id: read_validation(validation_file(other.folder, step))
            for other in self.steps.values()
            if other.kind == self.step.kind
            and other.stage.name == self.step.stage.name
            and other.id != self.step.id
        }
        found = hopeless(own, others, rule.margin, higher=True)
        if found is None:
            return ""
        best, ahead = found
        return (
            f"validation {value:.3g} at step {step} is {ahead.value:.3g} [{ahead.low:.3g}, {ahead.high:.3g}] behind that "
            f"of {best}, more than stop_early.margin {rule.margin:g}"
        )

    def stage_rows(self, name: str) -> Path:
        """The rows of an earlier stage: pairs of a preferences stage, responses of a reject stage."""
        return self.steps[name].folder / self.steps[name].outcome["rows"]

    def saved(self, step: int, path: Path) -> None:
        """Tell the ledger of a checkpoint."""
        if self.is_main:
            self.ledger.add_checkpoint(self.step.key, step, str(path))

    def progress(self, done: int, total: int, unit: str = "steps", **shown: Any) -> None:
        """Show how far the step is. Cheap to call often: it writes at most twice a second."""
        now = time.monotonic()
        if self._first is None or self._first[0] != unit:
            self._first = (unit, now, done)  # a resumed step's rate counts only what this process did
        if not self.is_main or (done < total and now - self._shown < 0.5):
            return
        self._shown = now
        seconds, did = now - self._first[1], done - self._first[2]
        rate = did / seconds if seconds > 0 and did > 0 else None
        notes = self.metrics.watch.notes if self.metrics.watch is not None else []
        state = {"done": done, "total": total, "unit": unit, "rate": rate, "shown": shown, "notes": notes}
        write_json(self.dir / "progress.json", state)
        if now - self._printed >= 5 or done >= total:
            self._printed = now
            print(progress_text(state), flush=True)

    def model_card(self, figures: dict[str, Any]) -> str:
        """README.md of an exported model: what it is and how it was made."""
        chain, name = [self.step.id], self.step.model
        while name in self.steps:
            chain.append(name)
            name = self.steps[name].model
        lines = [
            f"# {self.recipe.name}: {self.step.id}",
            "",
            f"Made by tulu_lite {__version__} from the recipe below.",
            "",
        ]
        lines += [
            f"- base model: `{self.recipe.model}`",
            f"- stages: base -> {' -> '.join(reversed(chain))}",
            f"- seed: {self.seed}",
        ]
        lines += [
            f"- key of this step: `{self.step.key}`",
            *(f"- {name}: {value}" for name, value in figures.items() if value is not None),
        ]
        return "\n".join([*lines, "", "```yaml", dump_recipe(self.recipe).rstrip(), "```", ""])

    def finish(self, *, model: Path | None = None, rows: Path | None = None, summary: dict[str, Any]) -> None:
        """Declare the step done. result.json is written last, whole; before it, nothing counts."""
        if self.is_main:
            result: dict[str, Any] = {"step": self.step.id, "key": self.step.key, "summary": summary}
            result |= {"seconds": round(time.monotonic() - self._started, 1)}
            if model is not None:
                result["model"] = str(model.relative_to(self.dir))
                self.ledger.add_checkpoint(self.step.key, -1, str(model))
            if rows is not None:
                result["rows"] = str(rows.relative_to(self.dir))
            values = [
                (row["step"], name, float(value))
                for row in self.metrics.rows()
                for name, value in row.items()
                if name != "step" and isinstance(value, (int, float))
            ]
            self.ledger.set_metrics(self.step.key, values)
            counts = validation_file(self.dir, int(summary.get("step", -1)))
            if "validation" in summary and counts.exists():  # of several, the one of the weights that go on
                write_atomic(self.dir / "validation.jsonl", counts.read_bytes())
            write_json(self.step.result_file, result)
            self.ledger.end_step(self.step.key, "done", summary=summary)
        self.finished = True


def last_save(before: Step, step: Step) -> Path:
    """The last save of the run `before`, which `step` goes on from. Raises TuluLiteError where it left none."""
    saves = sorted(
        (before.folder / "checkpoints").glob("step-[0-9]*"),
        key=lambda save: int(save.name.removeprefix("step-")),
    )
    if not saves:
        raise TuluLiteError(
            f"{step.id} goes on from where {before.id} ended, and that left no save",
            f"there is none in {before.folder / 'checkpoints'}",
            f"restore it, or move {before.folder} away so that it is trained again",
        )
    return saves[-1]


@contextmanager
def step_context(stage_class: type, arguments: Sequence[str] | None = None) -> Iterator[StepContext]:
    """Open the step that the command line names; end the process with a clear message on a fault."""
    die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that `finally` blocks run
    options = _parse(stage_class, arguments)
    context: StepContext | None = None
    code = 0
    try:
        context = _open(stage_class, options)
        what = f"the step {context.step.id}"
        if context.is_main:
            with exclusive(context.dir / ".lock", what):
                _start(context)
                yield context
        else:
            yield context
        if not context.finished:
            raise RuntimeError(f"{what} ended without a result")
    except TuluLiteError as error:
        _fail(context, error.what, error)
        print("\n".join(error.lines()), file=sys.stderr, flush=True)
        code = USER_ERROR
    except Exception as error:
        traceback.print_exc()
        _fail(context, f"{type(error).__name__}: {error}", None)
        code = 1
    finally:
        if context is not None:
            context.metrics.close()
    _end(code, of_process=arguments is None)


def _end(code: int, of_process: bool) -> None:
    """End with this exit code. One of several processes of a group ends at once: python's own clearing up may never end,
    since DDP's reducer, freed there with the interpreter's lock held, joins gloo's thread, which may wait for that lock.
    """
    if of_process and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        sys.exit(code)


def _parse(stage_class: type, arguments: Sequence[str] | None) -> argparse.Namespace:
    kind = stage_class.model_fields["kind"].annotation.__args__[0]  # type: ignore[attr-defined]
    parser = argparse.ArgumentParser(
        prog=f"python -m tulu_lite.stages.{kind}", description=stage_class.__doc__
    )
    parser.add_argument("--recipe", required=True, help="the recipe's YAML file")
    parser.add_argument("--stage", required=True, help=f"the name of a stage of kind {kind} in it")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="override a field, such as seed=7"
    )
    parser.add_argument("--run", help="which of the runs of a stage with seeds or a sweep, such as seed-2")
    parser.add_argument("--seed", type=int, help="short for --run seed-N")
    if kind == "evaluate":
        parser.add_argument(
            "--model",
            required=True,
            help="the stage (or one of its runs, as rlvr/seed-2) whose model is evaluated, or base",
        )
    return parser.parse_args(arguments)


def _open(stage_class: type, options: argparse.Namespace) -> StepContext:
    recipe = load_recipe(options.recipe, options.set)
    ledger = Ledger(Path(recipe.output))
    steps = {step.id: step for step in expand(recipe, ledger)}
    wanted = step_id(recipe, options.stage, options.run, options.seed, getattr(options, "model", None))
    if wanted not in steps or not isinstance(steps[wanted].stage, stage_class):
        fitting = [
            id for id, step in steps.items() if isinstance(step.stage, stage_class) and step.kind != "select"
        ]
        raise TuluLiteError(
            f"{options.recipe} has no such step as {wanted!r} for this command",
            cure=f"it has {', '.join(fitting) or 'none'}",
        )
    step = steps[wanted]
    if step.done:
        print(f"{step.id} is already done: {step.folder}", flush=True)
        sys.exit(0)
    missing = [name for name in step.inputs if not steps[name].done]
    if missing:
        raise TuluLiteError(
            f"{step.id} needs the result of {', '.join(missing)}, which is not done",
            cure=f"run it first, or run everything: tulu-lite run {options.recipe}",
        )
    is_main = int(os.environ.get("RANK", "0")) == 0
    return StepContext(recipe, step.stage, step, steps, ledger, is_main)


def step_id(
    recipe: Recipe, stage: str, run: str | None = None, seed: int | None = None, model: str | None = None
) -> str:
    """The id of the step that --stage, --run (or --seed, short for --run seed-N) and --model name."""
    named = next((found for found in recipe.stages if found.name == stage), None)
    target = model if model is not None else stage
    compared = next((found for found in recipe.stages if found.name == target), None)
    known = [one.name for one in runs_of(compared)] if isinstance(compared, TrainingStage) else [""]
    if run is None and seed is not None:
        run = f"seed-{seed}"
    if run is None and known[0]:
        if len(known) > 1:
            raise TuluLiteError(
                f"stage {target!r} has the runs {', '.join(known)}", cure="say which with --run"
            )
        run = known[0]
    id = f"{target}/{run}" if run else target
    return f"{stage}/{id}" if named is not None and named.kind == "evaluate" else id


def _start(context: StepContext) -> None:
    step = context.step
    for stale in ("error.json", "progress.json"):
        (step.folder / stale).unlink(missing_ok=True)
    write_json(step.folder / "identity.json", step.identity)
    context.ledger.start_step(step, step.origins(context.steps))


def _fail(context: StepContext | None, message: str, error: TuluLiteError | None) -> None:
    """Leave the reason where the runner finds it; a second fault here (a full disk) must not hide the first."""
    if context is None or not context.is_main:
        return
    with suppress_os_errors():
        try:
            context.ledger.end_step(context.step.key, "failed", error=message)
            if error is not None:
                write_json(
                    context.dir / "error.json", {"what": error.what, "why": error.why, "cure": error.cure}
                )
        except TuluLiteError as second:
            print(second, file=sys.stderr)
