"""Why sampler and trainer may disagree: each supposition is tried on the trainer's side and judged by what is left.

A supposition such as "the server divides its logits by 0.7" becomes log-probabilities of the trainer under it; where
they agree with the server's, that is the cause. N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..training.logprobs import LogprobModel
from ..training.model import adapters_off
from .figures import Array, Gap, Limits, gap_of, growth
from .trainer import (
    Said,
    few,
    has_rope,
    in_type,
    log_spaced,
    places,
    rope_kind,
    rope_theta,
    server_logprobs,
    trainer_logits,
    trainer_logprobs,
    with_attention,
    with_rope,
)

EXPLAINED = 0.25  # of the gap, or less, is left under the true supposition
ALL_OF_IT = 0.02  # what is left when no other supposition need be tried
LOGIT_ELEMENTS = 1 << 26  # 256 MiB of float32 for whole logits
PROBE_TOKENS = 2048
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
THETAS = (1e4, 1e5, 5e5, 1e6, 5e6, 1e7)


@dataclass(frozen=True)
class Trial:
    """One supposition and what it leaves: `left` is the mean gap under it."""

    cause: str
    supposed: str
    left: float
    says: str = ""  # the sentence for the verdict, should this be the one
    cure: str = ""
    certain: bool = False  # known without a trial (a version that differs, a tensor that differs)
    fits: bool = False  # the gap looks as this cause would make it, though it cannot be undone


@dataclass(frozen=True)
class Case:
    """What there is to explain, and what is known of both sides."""

    model: LogprobModel  # the trainer's, with whatever engine's wrapping taken off
    responses: Sequence[Said]
    temperature: float
    server_dtype: str = "float32"
    trainer_dtype: str = "float32"
    tokenizer_size: int | None = None
    bos_id: int | None = None
    version: int | None = None  # the weights that the server should have sampled with
    server_files: tuple[Path, ...] = ()  # the weights it says it holds
    others: dict[str, Callable[[], AbstractContextManager[nn.Module]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """The trials, the most telling first, and the one that explains the gap, if any."""

    gap: Gap
    trials: tuple[Trial, ...]
    cause: Trial | None


def diagnose(case: Case, limits: Limits, thorough: bool = False) -> Diagnosis:
    """Try suppositions on some of the responses, the plainest first, until one explains all of the gap.

    thorough: try them all. Costs some forty forward passes over 2,048 tokens at most.
    """
    vocabulary = int(case.model.config.get_text_config().vocab_size)
    responses = few(case.responses, min(PROBE_TOKENS, max(64, LOGIT_ELEMENTS // vocabulary)))
    server = server_logprobs(responses)
    plain = trainer_logprobs(case.model, responses, case.temperature)
    gap = gap_of(server, plain, places(responses))
    probe = _Probe(case, responses, server, plain, gap)
    trials: list[Trial] = []
    if thorough or not gap.within(limits):
        for suppositions in (
            _versions, _weights, _of_logits, _tokens, _adapters, _types, _positions, _attention
        ):  # fmt: skip
            trials += suppositions(probe)
            if not thorough and any(trial.certain or trial.left < ALL_OF_IT * gap.mean for trial in trials):
                break
    else:
        trials += _versions(probe)
    trials.sort(key=lambda trial: (not trial.certain, trial.left))
    return Diagnosis(gap, tuple(trials), _choose(trials, gap, limits))


def _choose(trials: Sequence[Trial], gap: Gap, limits: Limits) -> Trial | None:
    """What is certain; else what leaves a quarter of the gap or less; else what would look like this."""
    if gap.within(limits) and not any(trial.certain for trial in trials):
        return None
    for trial in trials:
        if trial.certain:
            return trial
    explaining = [trial for trial in trials if trial.left <= EXPLAINED * gap.mean]
    if explaining:  # of several that leave as little, the one tried first: the plainest
        least = min(trial.left for trial in explaining)
        return next(trial for trial in explaining if trial.left <= 1.2 * least + 1e-9)
    return next((trial for trial in trials if trial.fits), None)


@dataclass(frozen=True)
class _Probe:
    case: Case
    responses: Sequence[Said]
    server: Array
    plain: Array
    gap: Gap

    def left(self, other: Array) -> float:
        return float(np.abs(self.server - other).mean())

    def under(self, model: nn.Module, temperature: float | None = None) -> Array:
        return trainer_logprobs(model, self.responses, temperature or self.case.temperature)


def _versions(probe: _Probe) -> Iterator[Trial]:
    wanted = probe.case.version
    seen = {version for item in probe.case.responses for version in item.versions}
    if wanted is not None and seen - {wanted}:
        stale = ", ".join(str(version) for version in sorted(seen - {wanted}))
        yield Trial(
            "stale weights", f"weight version {stale}", probe.gap.mean,
            f"tokens were sampled with weight version {stale}, and the trainer is at {wanted}",
            "push the weights before sampling; a push that fails must stop the run", certain=True,
        )  # fmt: skip


def _of_logits(probe: _Probe) -> Iterator[Trial]:
    """Suppositions about what happens to the logits: temperature, truncation, padding of the vocabulary."""
    logits = trainer_logits(probe.case.model, probe.responses)
    targets = torch.tensor([token for item in probe.responses for token in item.token_ids])
    yield _temperature(probe, logits, targets)
    scaled = logits / probe.case.temperature
    yield from _truncation(probe, scaled, targets)
    yield from _padding(probe, scaled, targets)


def _at(logits: Tensor, targets: Tensor) -> Array:
    return -torch.nn.functional.cross_entropy(logits, targets, reduction="none").double().numpy()


def _temperature(probe: _Probe, logits: Tensor, targets: Tensor) -> Trial:
    """The temperature that explains most, to four digits."""

    def left(temperature: float) -> float:
        return probe.left(_at(logits / temperature, targets))

    own = probe.case.temperature
    best = _least(left, own / 4, own * 4, 17)
    if abs(best - 1.0) < 0.005:
        best = 1.0
    raw = " (raw logprobs, of logits that are not divided by the temperature)" if best == 1.0 != own else ""
    return Trial(
        "temperature", f"{best:.4g} instead of {own:g}", left(best),
        f"the server's log-probabilities are those of temperature {best:.4g}, the trainer's of {own:g}{raw}",
        "use one temperature on both sides, and processed_logprobs in the server",
    )  # fmt: skip


def _least(function: Callable[[float], float], low: float, high: float, points: int) -> float:
    """Where a function of a positive number is least: a logarithmic grid, then golden sections around its best."""
    grid = log_spaced(low, high, points)
    best = min(range(points), key=lambda i: function(grid[i]))
    a, b = grid[max(best - 1, 0)], grid[min(best + 1, points - 1)]
    for _ in range(24):
        left, right = b - (b - a) * 0.618034, a + (b - a) * 0.618034
        if function(left) < function(right):
            b = right
        else:
            a = left
    return (a + b) / 2


def _truncation(probe: _Probe, scaled: Tensor, targets: Tensor) -> Iterator[Trial]:
    """top_p, top_k, min_p: what is cut off makes the rest likelier, so the server's side is never below ours."""
    order = scaled.argsort(dim=-1, descending=True)
    ranked = scaled.gather(-1, order).log_softmax(-1)  # [N, V] by falling probability
    place = (order == targets[:, None]).int().argmax(-1)  # [N]
    own = ranked.gather(-1, place[:, None]).squeeze(-1)
    mass = ranked.exp().cumsum(-1)
    before = mass - ranked.exp()
    kept: dict[str, Tensor] = {f"top_p {p:g}": before < p for p in (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)}
    ranks = torch.arange(scaled.shape[-1])[None]
    kept |= {f"top_k {k}": (ranks < k).expand_as(scaled) for k in (5, 10, 20, 40, 50, 64, 100)}
    kept |= {f"min_p {p:g}": ranked >= ranked[:, :1] + np.log(p) for p in (0.01, 0.02, 0.05, 0.1)}
    best: tuple[float, str] | None = None
    for name, mask in kept.items():
        total = ranked.masked_fill(~mask, -torch.inf).logsumexp(-1)
        left = probe.left((own - total).double().numpy())
        if best is None or left < best[0]:
            best = (left, name)
    assert best is not None
    yield Trial(
        "truncated sampling", best[1], best[0],
        f"the server's log-probabilities are renormalised after {best[1]}",
        "sample without top_p, top_k and min_p while training: the gradient is of the whole distribution",
    )  # fmt: skip


def _padding(probe: _Probe, scaled: Tensor, targets: Tensor) -> Iterator[Trial]:
    """Rows of the head beyond the tokenizer's size, on one side alone."""
    size = probe.case.tokenizer_size
    total = scaled.logsumexp(-1)
    own = scaled.gather(-1, targets[:, None]).squeeze(-1)
    suppositions: list[tuple[str, Tensor]] = []
    if size is not None and size < scaled.shape[-1] and int(targets.max()) < size:
        suppositions.append(
            (f"only the tokenizer's {size} tokens in its softmax", scaled[:, :size].logsumexp(-1))
        )
    for multiple in (64, 128, 256, 512, 1024):
        extra = -scaled.shape[-1] % multiple
        if extra:
            padded = torch.logaddexp(total, torch.full_like(total, float(np.log(extra))))
            suppositions.append((f"{extra} rows of padding with logit 0 in its softmax", padded))
    for name, normaliser in suppositions:
        yield Trial(
            "vocabulary padding", name, probe.left((own - normaliser).double().numpy()),
            f"the server has {name}, the trainer {scaled.shape[-1]} rows",
            "give both the same vocab_size in config.json, and set the logits of padded rows to -inf",
        )  # fmt: skip


def _tokens(probe: _Probe) -> Iterator[Trial]:
    """A token in front of the prompt that one side has and the other has not."""
    bos = probe.case.bos_id
    if bos is None:
        return
    with_it = [Said((bos, *item.prompt_ids), item.token_ids, item.logprobs) for item in probe.responses]
    without = [
        Said(item.prompt_ids[1:], item.token_ids, item.logprobs)
        if item.prompt_ids[0] == bos and len(item.prompt_ids) > 1
        else item
        for item in probe.responses
    ]
    for responses, what in ((with_it, "another BOS in front"), (without, "no BOS in front")):
        left = probe.left(trainer_logprobs(probe.case.model, responses, probe.case.temperature))
        yield Trial(
            "template", what, left, f"the server conditions on prompts with {what}",
            "let one side alone add the BOS token: send token ids, not text",
        )  # fmt: skip


def _adapters(probe: _Probe) -> Iterator[Trial]:
    if hasattr(probe.case.model.wrapped, "peft_config"):
        with adapters_off(probe.case.model) as bare:
            left = probe.left(probe.under(bare))
        yield Trial(
            "LoRA not applied", "no adapters", left, "the server samples without the trainer's adapters",
            "push merged weights, or load the adapter and name it in the requests",
        )  # fmt: skip
    for name, other in probe.case.others.items():
        with other() as model:
            left = probe.left(probe.under(model))
        yield Trial(
            "stale weights", name, left, f"the server samples from other weights: {name}",
            "push the trainer's weights; see that last_push.json and the version agree",
        )  # fmt: skip


def _types(probe: _Probe) -> Iterator[Trial]:
    """Rounding: the same type on both sides leaves little; else it makes a gap of its own size, alike in shape."""
    for name, dtype in DTYPES.items():
        if name == probe.case.trainer_dtype:
            continue
        with in_type(probe.case.model, dtype) as rounded:
            try:
                other = probe.under(rounded)
            except RuntimeError:  # a kernel that this device does not have
                continue
        own = np.abs(other - probe.plain)
        shared = _correlation(probe.server - probe.plain, other - probe.plain)
        fits = (
            name == probe.case.server_dtype != "float32" or shared > 0.3
        ) and 1 / 3 < probe.gap.mean / max(float(own.mean()), 1e-12) < 3
        yield Trial(
            "dtype", name, probe.left(other),
            f"the server computes in {name}, the trainer in {probe.case.trainer_dtype}",
            "use one type on both sides: server.dtype, accelerate.mixed_precision", fits=fits,
        )  # fmt: skip


def _correlation(one: Array, other: Array) -> float:
    if one.std() == 0 or other.std() == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def _positions(probe: _Probe) -> Iterator[Trial]:
    """Rotary positions of another base, or scaled on one side only."""
    model = probe.case.model
    if not has_rope(model):
        return
    own = rope_theta(model)

    def left(theta: float) -> float:
        with with_rope(model, theta) as other:
            return probe.left(probe.under(other))

    tried = {theta: left(theta) for theta in THETAS if theta != own}
    best = min(tried, key=lambda theta: tried[theta])
    near = tried[best] < 0.95 * probe.gap.mean or growth(probe.gap) > 2
    if (
        near and tried[best] > EXPLAINED * probe.gap.mean
    ):  # it may be a base that few models have: look closer
        best = _least(left, min(1e3, own / 10), max(1e8, own * 10), 17)
        tried[best] = left(best)
    yield Trial(
        "rope theta", f"{best:.6g} instead of {own:g}", tried[best],
        f"the server's rotary positions have base {best:.6g}, the trainer's {own:g}",
        "compare rope_theta (or rope_parameters) in the two config.json",
    )  # fmt: skip
    if rope_kind(model) != "default":
        with with_rope(model, None) as other:
            unscaled = probe.left(probe.under(other))
        yield Trial(
            "rope scaling", f"none instead of {rope_kind(model)}", unscaled,
            f"the server uses plain rotary positions, the trainer {rope_kind(model)} scaling",
            "compare rope_scaling (or rope_parameters) in the two config.json",
        )  # fmt: skip


def _attention(probe: _Probe) -> Iterator[Trial]:
    """Other kernels; and whether the gap grows along the sequence, as attention's faults do."""
    try:
        with with_attention(probe.case.model, "eager") as other:
            left = probe.left(probe.under(other))
    except (ValueError, ImportError, AttributeError):
        left = probe.gap.mean
    grows = growth(probe.gap)
    yield Trial(
        "attention kernels", "eager attention", left,
        f"the gap grows along the sequence, {grows:.1f} times from its first tokens to its last: attention over long "
        "contexts differs (kernels, a sliding window, scaling of positions)",
        "compare the attention backends, sliding_window and max_position_embeddings of the two sides", fits=grows > 4,
    )  # fmt: skip


def _weights(probe: _Probe) -> Iterator[Trial]:
    """The tensors that the server's files hold, against the trainer's."""
    if not probe.case.server_files:
        return
    from .weights import differing

    different, compared = differing(probe.case.model, probe.case.server_files)
    if different:
        some = ", ".join(name for name, _ in different[:3])
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        yield Trial(
            "weights", f"{len(different)} of {compared} tensors differ", probe.gap.mean,
            f"the server holds other weights than the trainer: {some}{more} "
            f"(relative difference {max(size for _, size in different):.2g})",
            "push the trainer's weights again, or give both the same folder", certain=True,
        )  # fmt: skip
