"""Which curves of a stage are drawn, by its kind: each panel's metrics, unit and scale."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Panel:
    """One picture of a stage's curves.

    metrics: what is drawn, as far as it was logged; a name that ends in / stands for all that begin so, each a line.
    The first of `metrics` alone is drawn unless `all_of` says that each is. share: a value in [0, 1], drawn in %.
    """

    title: str
    unit: str
    metrics: tuple[str, ...]
    all_of: bool = False
    scale: Literal["linear", "log", "auto"] = "linear"
    share: bool = False
    markers: bool = False  # logged now and then
    smooth: bool = True
    growth: bool = False  # a second axis: how many times the first steps' value
    names: dict[str, str] = field(default_factory=dict)  # of metrics, in the legend
    stacked: bool = False  # all metrics that end in _s, on top of one another


_GRADIENT = Panel("Gradient norm", "norm before clipping", ("grad_norm",), scale="auto")
_RATE = Panel("Learning rate", "learning rate", ("learning_rate",), smooth=False)
_SPEED = Panel("Throughput", "tokens / s", ("tokens_per_second",))
_MFU = Panel("Model FLOPs utilisation", "% of the device's peak", ("mfu",), share=True)
_MEMORY = Panel("Peak memory", "GB", ("peak_memory_gb", "memory_gb"))
_VALIDATION_LOSS = Panel("Validation loss", "nats / token", ("validation_loss",), markers=True)
_VALIDATION = Panel("Validation accuracy", "% correct", ("validation_accuracy",), share=True, markers=True)

RLVR = (
    Panel("Reward", "mean reward", ("reward",)),
    Panel("Pass rate by source", "% correct", ("pass_rate/", "pass_rate"), share=True),
    _VALIDATION,
    Panel("Response length", "tokens", ("response_tokens",), growth=True),
    Panel("Truncated responses", "% of responses", ("truncated_share",), share=True),
    Panel("Groups without signal", "% of groups", ("silent_groups_share",), share=True),
    Panel("Entropy", "nats / token", ("entropy", "negative_logprob")),
    Panel("KL to the reference", "nats / token", ("kl",)),
    Panel("Clipped tokens", "% of tokens", ("clip_share",), share=True),
    Panel(
        "Sampler against trainer", "|log p difference|", ("logprob_gap_mean", "logprob_gap_max"), all_of=True, scale="log",
        names={"logprob_gap_mean": "mean", "logprob_gap_max": "max"},
    ),
    Panel(
        "Staleness", "updates behind", ("staleness_mean", "staleness_max", "staleness"), all_of=True,
        names={"staleness_mean": "mean", "staleness_max": "max"},
    ),
    _GRADIENT,
    Panel("Time of a step", "s", (), stacked=True),
    _SPEED,
    Panel("Value model", "explained variance", ("value_explained_variance", "explained_variance")),
)  # fmt: skip

SUPERVISED = (
    Panel("Loss", "nats / token", ("loss",)), _VALIDATION_LOSS, _GRADIENT, _RATE, _SPEED, _MFU, _MEMORY,
)  # fmt: skip

PAIRS = (
    Panel("Loss", "nats / pair", ("loss",)),
    Panel("Pairs ranked right", "% of pairs", ("accuracy",), share=True),
    Panel("Margin", "reward of chosen - rejected", ("margin",)),
    Panel(
        "Log-probability against the reference", "nats", ("chosen_gain", "rejected_gain"), all_of=True,
        names={"chosen_gain": "chosen", "rejected_gain": "rejected"},
    ),
    Panel(
        "Rewards", "reward", ("chosen_reward", "rejected_reward"), all_of=True,
        names={"chosen_reward": "chosen", "rejected_reward": "rejected"},
    ),
    Panel("Validation loss", "nats / pair", ("validation_loss",), markers=True),
    _VALIDATION, _GRADIENT, _RATE, _SPEED, _MFU, _MEMORY,
)  # fmt: skip

PANELS = {"rlvr": RLVR, "sft": SUPERVISED, "dpo": PAIRS, "reward": PAIRS}


def shown_panels(kind: str, logged: Iterable[str]) -> list[tuple[Panel, list[str]]]:
    """The kind's panels for which something was logged, with the metrics that each draws."""
    names = sorted(set(logged))
    found = []
    for panel in PANELS.get(kind, ()):
        if panel.stacked:
            metrics = [name for name in names if name.endswith("_s") and name != "step_s"]  # the whole
        else:
            metrics = []
            for wanted in panel.metrics:
                if wanted.endswith("/"):
                    these = [name for name in names if name.startswith(wanted)]
                    these = these if len(these) > 1 else []  # of one source the plain metric says the same
                else:
                    these = [name for name in names if name == wanted]
                metrics += these if panel.all_of or not metrics else []
        if metrics:
            found.append((panel, metrics))
    return found
