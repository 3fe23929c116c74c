"""What is proven of a model before it is trained: that our log-probabilities are its own, and that packing is exact."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import TuluLiteError
from .logprobs import LogprobModel, token_logprobs
from .packing import VARLEN, Packing

AGREE = 1e-3  # between log-probabilities in float32 on whatever kernels
AGREE_NARROW = 0.1  # and in 16-bit types
WAYS = {
    "bucket": "rows padded to the longest of like lengths",
    "varlen": "no padding; each sequence attends to itself alone",
    "block": "no padding; one attention under a block-diagonal mask",
}
APART = (7, 3, 11, 5)  # lengths of the sequences that are packed to see whether they stay apart
ALIKE = (19, 23, 23, 18, 29, 17)  # and of those that begin alike, in twos and fours
SHARED = ", what neighbours begin with in common computed once"


def sharded(model: Any) -> bool:
    """Whether its weights are spread or not there yet, so that it cannot run before the engine is there."""
    return any(parameter.is_meta or hasattr(parameter, "ds_id") for parameter in model.parameters())


@torch.no_grad()
def check_logprobs(model: Any, name: str) -> None:
    """On four tokens, our log-probabilities in training mode are those of the model's own forward pass in evaluation."""
    if sharded(model):
        return
    ids = torch.tensor([[1, 2, 3, 5]], device=model.device) % model.config.get_text_config().vocab_size
    ours = token_logprobs(LogprobModel(model), ids, torch.ones_like(ids), chunk_tokens=8)
    model.eval()
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    model.train()
    theirs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    if not torch.allclose(ours, theirs, atol=AGREE):
        raise TuluLiteError(
            f"{name}: a {type(model).__name__} treats its logits, or training mode, in a way that is not supported",
            why=f"its own log-probabilities differ by {(ours - theirs).abs().max():.3g} from those that training would use",
            cure="use a model of another architecture",
        )


def choose_packing(
    model: Any, wanted: Packing | Literal["auto"], precision: str, name: str
) -> tuple[Packing, str]:
    """How this model's batches are made, which it is told, and a sentence about it for the log.

    auto: varlen where that is proven to be exact, else bucket. What the recipe asks for by name is proven too.
    model: a LogprobModel or ScalarModel. precision: of training ("no", "bf16", "fp16"): on a GPU it decides which kernels have to be proven.
    Raises TuluLiteError where the way asked for is not exact.
    """
    base, reason, model.shares = model.base, None, False
    training = base.training
    model.eval()  # dropout of adapters would hide what is to be seen
    if wanted in ("auto", "varlen"):
        reason = _enable_varlen(model, precision)
    elif wanted == "block":
        reason = _leak(model, "block", precision)
    model.train(training)
    if reason is not None and wanted != "auto":
        raise TuluLiteError(
            f"packing: {wanted} is not exact for {name}, a {type(base).__name__}",
            why=reason,
            cure="set packing: bucket, which is exact for every architecture",
        )
    model.packing = "bucket" if reason is not None else "varlen" if wanted == "auto" else wanted
    how = WAYS[model.packing] + (SHARED if model.shares else "")
    why = f", since varlen is not exact here: {reason}" if reason is not None else ""
    return model.packing, f"packing: {model.packing} ({how}){why}"


def beside(packing: Packing) -> Literal["auto", "bucket"]:
    """What to ask choose_packing for of a second model that reads the same micro-batches."""
    return "bucket" if packing == "bucket" else "auto"


def choose_liger(wanted: Literal["auto", "tiled", "liger"], device: torch.device) -> bool:
    """Whether Liger's kernel sums the log-probabilities. Raises TuluLiteError where it is asked for and cannot run."""
    there = device.type == "cuda" and find_spec("liger_kernel") is not None
    if wanted == "liger" and not there:
        raise TuluLiteError(
            "logits: liger needs a GPU and the package liger-kernel",
            why="training runs on the CPU" if device.type != "cuda" else "the package is not installed",
            cure="pip install liger-kernel (it is part of the cuda extra), or set logits: auto",
        )
    return there and wanted != "tiled"


def _enable_varlen(model: Any, precision: str) -> str | None:
    """Give the model our attention if that is proven to keep sequences apart; else why not, the model as it was."""
    base = model.base
    before, config = base.config._attn_implementation, base.config.get_text_config()
    if before != "sdpa":
        return f"its attention runs as {before}, not sdpa"
    if not getattr(base, "_supports_flash_attn", False):
        return "its attention layers do not take part in transformers' attention interface for packed rows"
    if getattr(config, "attention_chunk_size", None):
        return "it attends in chunks of a fixed size"
    base.set_attn_implementation(VARLEN)
    reason = _leak(model, "varlen", precision)
    if reason is not None:
        base.set_attn_implementation(before)
        return reason
    model.shares = True
    model.shares = _leak(model, "varlen", precision) is None
    return None


@torch.no_grad()
def _leak(model: Any, way: Packing, precision: str) -> str | None:
    """What tells a packed row from its sequences one by one; None if nothing does. With model.shares the sequences begin
    alike."""
    base, before = model.base, model.packing
    if sharded(base):
        return "its weights are spread before the proof that packing is exact can run"
    ids, attention = _sequences(base, ALIKE if model.shares else APART)
    other = ids.clone()
    other[::2] = (other[::2] * 3 + 7) % base.config.get_text_config().vocab_size
    narrow = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision) if ids.is_cuda else None

    def probed(how: Packing, tokens: Tensor) -> Tensor:
        model.packing = how
        return model.probe(tokens, attention)

    try:
        with torch.autocast(ids.device.type, dtype=narrow, enabled=narrow is not None):
            together, alone, changed = probed(way, ids), probed("bucket", ids), probed(way, other)
    except TuluLiteError as error:
        return error.what
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        said = (str(error).splitlines() or [""])[0][:120]
        return f"its layers do not take packed rows ({type(error).__name__}: {said})"
    finally:
        model.packing = before
    if not torch.allclose(together, alone, atol=AGREE if narrow is None else AGREE_NARROW):
        return f"a packed row's log-probabilities differ by {(together - alone).abs().max():.2g} from those of its sequences alone"
    if not torch.allclose(together[1::2], changed[1::2], atol=1e-4):
        return "a sequence's log-probabilities change with those packed beside it"
    return None


def _sequences(model: Any, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Token ids and attention [B, T] of these lengths. Of ALIKE the first two begin alike, and the other four do."""
    vocabulary = model.config.get_text_config().vocab_size
    numbers = torch.arange(len(lengths) * max(lengths)).view(len(lengths), -1)
    ids = (numbers * numbers * 31 + numbers * 17 + 1) % vocabulary  # of any vocabulary: no token alone
    if lengths == ALIKE:
        ids[1, :16], ids[3:, :16] = ids[0, :16], ids[2, :16]
    attention = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return ids.to(model.device), attention.to(model.device)
