"""The parity plot: how large the differences are, and where in the sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .parity import Report


def plot_parity(report: Report, file: Path) -> None:
    """Left: a histogram of |log p_server - log p_trainer|. Right: the same by place in the sequence."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    assert report.server is not None and report.trainer is not None
    row = report.rows[0]
    assert row.gap is not None
    size = np.abs(report.server - report.trainer)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    _histogram(left, size, row.limits.max)
    right.scatter(report.places, np.maximum(size, 1e-9), s=3, alpha=0.3, label="a token")
    middle = [(bucket.first + bucket.last) / 2 for bucket in row.gap.buckets]
    right.plot(middle, [max(bucket.mean, 1e-9) for bucket in row.gap.buckets], "k.-", label="mean")
    right.axhline(row.limits.max, color="red", linewidth=0.8, label="limit of one token")
    right.set(yscale="log", xlabel="place in the sequence", ylabel="|log p server - log p trainer|")
    right.legend()
    figure.suptitle(
        f"{Path(report.model).name}: {row.server_dtype} server, {row.trainer_dtype} trainer, T = {report.temperature:g}"
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _histogram(axes: Any, size: np.ndarray, limit: float) -> None:
    exponents = np.log10(np.maximum(size, 1e-9))
    axes.hist(exponents, bins=60)
    axes.axvline(np.log10(limit), color="red", linewidth=0.8, label="limit of one token")
    axes.set(xlabel="log10 |log p server - log p trainer|", ylabel="tokens")
    axes.legend()
