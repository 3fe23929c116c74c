"""Log-probabilities under a frozen reference model, computed once and kept on disk by what decides them."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..files import write_atomic
from .model import adapters_off, load_model
from .packing import Packing
from .proof import beside, choose_packing
from .sequences import PromptResponse, response_logprobs, scored_by_all
from .sharding import from_all, is_main

FORMAT = 1  # raised when the values of a file come to mean something else


def reference_logprobs(
    folder: Path,
    model_key: str,
    how: tuple[Any, ...],
    sequences: Sequence[PromptResponse],
    compute: Callable[[], Tensor],
) -> Tensor:
    """[S] float32 log pi_ref(response | prompt) of each sequence, from a file in `folder` or, once, from `compute`.

    model_key: names the reference by content. how: it is computed. The file is named by a hash of these and of all
    tokens, so that whatever run asks for the same (another beta, another seed) finds it, and nothing stale is used.
    Every process calls it.
    """
    file = folder / f"{_digest((FORMAT, model_key, how), sequences)}.safetensors"
    known = _read(file, len(sequences))
    if all(part is not None for part in from_all(None if known is None else True)):
        assert known is not None
        return known
    values = compute()
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(file, save({"logprobs": values}))
    return values


def _digest(what: tuple[Any, ...], sequences: Sequence[PromptResponse]) -> str:
    digest = hashlib.sha256(repr(what).encode())
    for prompt, response in sequences:
        digest.update(array("q", (len(prompt), len(response), *prompt, *response)).tobytes())
    return digest.hexdigest()[:32]


def _read(file: Path, count: int) -> Tensor | None:
    """None where there is no file, or one that is torn."""
    try:
        with safe_open(file, "pt") as tensors:
            values = tensors.get_tensor("logprobs")
    except (OSError, SafetensorError):
        return None
    return values if values.shape == (count,) and bool(values.isfinite().all()) else None


def logprobs_under(
    training: Any,
    reference: str | None,
    sequences: Sequence[PromptResponse],
    pad_id: int,
    on_progress: Callable[[int], None],
) -> Tensor:
    """[S] by the reference: the model in the folder `reference`, loaded for this alone; None: the one that training
    starts from, which the trained model still is when this is called (its adapters, if any, switched off)."""
    settings = training.stage

    def by(model: nn.Module, packing: Packing) -> Tensor:
        def score(batch: Sequence[PromptResponse]) -> Tensor:
            return response_logprobs(
                model,
                batch,
                device=training.device,
                pad_id=pad_id,
                chunk_tokens=settings.logits_chunk_tokens,
            )

        return scored_by_all(model, score, sequences, settings.micro_batch_tokens, packing, on_progress)

    if reference is None:
        with adapters_off(training.model) as model:
            return by(model, training.packing)
    frozen = load_model(reference, training.device).eval().requires_grad_(False)
    precision = str(training.accelerator.mixed_precision)
    packing, _ = choose_packing(frozen, beside(training.packing), precision, reference)
    with training.accelerator.autocast():
        return by(frozen, packing)
