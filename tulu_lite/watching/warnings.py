"""Warnings: what in a history of metrics looks like a collapse, a runaway, or a reward that is being gamed.

Pure functions of the history and the thresholds (recipe.watching.WarningSettings), so that the run, its report and a
test see the same. t below is `trend_steps`; "lately" is the median of the last t values, "before" that of the t
values before these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from ..recipe.watching import WarningSettings
from .series import History, Series, rose

# What a warning looks at; the names that end in / are metrics by source, verifier or the like.
LOOKED_AT = (
    "reward", "pass_rate/", "score/", "validation_accuracy", "validation_loss", "response_tokens", "truncated_share",
    "silent_groups_share", "entropy", "negative_logprob", "kl", "grad_norm_growth",
)  # fmt: skip


@dataclass(frozen=True)
class Warned:
    """One thing that looks wrong: its name, what is seen, and what to do."""

    name: str
    what: str
    cure: str


def warnings_of(history: History, settings: WarningSettings) -> list[Warned]:
    """What looks wrong at the end of the history."""
    found = (rule(history, settings) for rule in RULES)
    return [warned for warned in found if warned is not None]


def length_runaway(history: History, settings: WarningSettings) -> Warned | None:
    """Responses are length_growth times as long lately as before, and the reward has not risen with them."""
    parts = _lately_and_before(history["response_tokens"], settings.trend_steps)
    if settings.length_growth is None or parts is None:
        return None
    before, lately = parts
    rewards = _lately_and_before(history["reward"], settings.trend_steps)
    if median(lately) <= settings.length_growth * median(before) or (rewards is not None and rose(*rewards)):
        return None
    return Warned(
        "length_runaway",
        f"responses grew from {median(before):.0f} to {median(lately):.0f} tokens in {settings.trend_steps} steps while the reward did not rise",
        "read some (tulu-lite rollouts); use aggregation and advantages without a length bias (dr_grpo), or reward the length",
    )


def truncation(history: History, settings: WarningSettings) -> Warned | None:
    """Most responses reach their budget."""
    share = _lately(history["truncated_share"], settings.trend_steps)
    if settings.truncated_share is None or share is None or share <= settings.truncated_share:
        return None
    return Warned(
        "truncation",
        f"{share:.0%} of the responses reach their budget, so they end in nothing that can be right",
        "raise sampling.max_tokens, or look whether the model has unlearnt to end (tulu-lite rollouts)",
    )


def no_signal(history: History, settings: WarningSettings) -> Warned | None:
    """Most groups are rewarded alike."""
    share = _lately(history["silent_groups_share"], settings.trend_steps)
    if settings.silent_groups_share is None or share is None or share <= settings.silent_groups_share:
        return None
    return Warned(
        "no_signal",
        f"{share:.0%} of the groups are rewarded alike, so nothing is learnt from them",
        "use prompts that are solved now and then (harder where the pass rate is near 1), or more samples a prompt",
    )


def entropy_collapse(history: History, settings: WarningSettings) -> Warned | None:
    """The policy's entropy (where it is not logged: the mean negative log-probability of what was sampled, an
    estimate of it) is lately below entropy_left of what it was in the first t steps."""
    series = history["entropy"] if len(history["entropy"]) else history["negative_logprob"]
    t = settings.trend_steps
    if settings.entropy_left is None or len(series) < 2 * t:
        return None
    first, lately = median(series.values[:t]), median(series.values[-t:])
    if not lately < settings.entropy_left * first:
        return None
    return Warned(
        "entropy_collapse",
        f"the policy's entropy fell from {first:.3g} to {lately:.3g} nats a token: it hardly tries anything new",
        "raise clip's upper bound or the KL term, lower the learning rate, or stop here if all is learnt",
    )


def kl_runaway(history: History, settings: WarningSettings) -> Warned | None:
    """The KL divergence from the reference is above its limit, or above a fifth of it and growing fast."""
    t = settings.trend_steps
    lately = _lately(history["kl"], t)
    if settings.kl is None or lately is None:
        return None
    parts = _lately_and_before(history["kl"], t)
    grown = (
        parts is not None
        and settings.kl_growth is not None
        and lately > settings.kl_growth * median(parts[0])
    )
    if not (lately > settings.kl or (grown and lately > settings.kl / 5)):
        return None
    how = f" and grew from {median(parts[0]):.3g} in {t} steps" if grown and parts is not None else ""
    return Warned(
        "kl_runaway",
        f"the policy is {lately:.3g} nats a token from its reference{how}",
        "raise kl_coefficient or lower the learning rate; read what it says now (tulu-lite rollouts)",
    )


def reward_hacking(history: History, settings: WarningSettings) -> Warned | None:
    """Since the best validation two in a row fell, while a source (or verifier) rose in training."""
    validation = history["validation_accuracy"]
    if settings.hacking_fall is None or len(validation) < 3:
        return None
    best = max(range(len(validation)), key=lambda i: validation.values[i])  # the first of equals
    top = validation.values[best]
    if best > len(validation) - 3 or max(validation.values[-2:]) > top - settings.hacking_fall:
        return None
    then, now = validation.steps[best], validation.steps[-1]
    risers = []
    for name in sorted(history):
        if name == "reward" or name.startswith(("reward/", "pass_rate/", "score/")):
            rise = _rise(history[name], then, now, settings.trend_steps)
            scale = max(abs(value) for value in history[name].values) if name.startswith("reward") else 1.0
            if rise is not None and rise >= settings.hacking_rise * (scale or 1.0):
                risers.append(f"{name} rose by {rise:.3g}")
    if not risers:
        return None
    return Warned(
        "reward_hacking",
        f"{', '.join(risers[:3])} since step {then}, while validation fell from {top:.3g} to {validation.values[-1]:.3g}",
        "read responses that were accepted (tulu-lite rollouts --verdict correct): a verifier may be gamed; `select: best` keeps the best weights",
    )


def gradient_growth(history: History, settings: WarningSettings) -> Warned | None:
    """The gradient norm grows."""
    grown = history["grad_norm_growth"]
    if settings.grad_norm_growth is None or not len(grown) or grown.values[-1] <= settings.grad_norm_growth:
        return None
    return Warned(
        "gradient_growth",
        f"the gradient norm is {grown.values[-1]:.1f} times what it was over the last {settings.spike_window} steps",
        "lower the learning rate or max_grad_norm; tulu-lite replay tells whose gradients they are",
    )


def overfit(history: History, settings: WarningSettings) -> Warned | None:
    """Each of the last validations has a higher loss than the one before them all."""
    losses, count = history["validation_loss"], settings.overfit_validations
    if count is None or len(losses) <= count or min(losses.values[-count:]) <= losses.values[-count - 1]:
        return None
    return Warned(
        "overfit",
        f"the validation loss rose from {losses.values[-count - 1]:.4g} to {losses.values[-1]:.4g} in {count} validations",
        "fewer epochs, a lower learning rate, or more data",
    )


RULES: tuple[Callable[[History, WarningSettings], Warned | None], ...] = (
    length_runaway, truncation, no_signal, entropy_collapse, kl_runaway, reward_hacking, gradient_growth, overfit,
)  # fmt: skip


def _lately(series: Series, t: int) -> float | None:
    return median(series.values[-t:]) if len(series) >= t else None


def _lately_and_before(series: Series, t: int) -> tuple[Sequence[float], Sequence[float]] | None:
    """The t values before the last t, and the last t."""
    if len(series) < 2 * t:
        return None
    return series.values[-2 * t : -t], series.values[-t:]


def _rise(series: Series, then: int, now: int, t: int) -> float | None:
    """Median of the last t values after step `then` and up to `now`, less that of the last t up to `then`; None where
    either has none."""
    early = [value for step, value in zip(series.steps, series.values, strict=True) if step <= then][-t:]
    late = [value for step, value in zip(series.steps, series.values, strict=True) if then < step <= now][-t:]
    return median(late) - median(early) if early and late else None
