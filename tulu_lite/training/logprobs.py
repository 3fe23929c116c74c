"""Log-probabilities of given tokens, without the logits of a whole batch ever being there.

B responses with their prompts, T positions, N positions whose log-probability is wanted, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import TuluLiteError

Entropy = Literal["none", "measured", "trained"]

LEAST_CHUNK_ELEMENTS = (
    1 << 22
)  # 16 MiB of float32 logits: below it, cutting a batch in chunks only costs time


class LogprobModel(nn.Module):
    """A causal language model whose forward pass gives log-probabilities instead of logits.

    Being a module, it is what DDP, FSDP or DeepSpeed wraps, so that their forward hooks run. `causal_lm` is the
    transformers model, or the PeftModel around it.
    """

    def __init__(self, causal_lm: nn.Module) -> None:
        super().__init__()
        self.causal_lm = causal_lm

    @property
    def wrapped(self) -> nn.Module:
        """The transformers model or PeftModel, as `unwrapped` finds it."""
        return self.causal_lm

    @property
    def base(self) -> Any:
        """The transformers model, adapters (if any) inside."""
        model: Any = self.causal_lm
        return model.get_base_model() if hasattr(model, "peft_config") else model

    @property
    def config(self) -> Any:
        return self.base.config

    @property
    def _no_split_modules(self) -> Any:
        """The layers that accelerate's FSDP wraps one by one."""
        return self.base._no_split_modules

    def forward(
        self,
        ids: Tensor,
        attention: Tensor,
        mask: Tensor | None,
        chunk_tokens: int,
        temperature: float,
        entropy: Entropy = "none",
    ) -> Tensor:
        """[B, T-1]; see token_logprobs. With entropy [2, B, T-1]; see token_logprobs_and_entropy."""
        if mask is None:
            mask = attention[:, 1:]
        base = self.base
        # Padding is on the right and attention is causal, so no real token ever sees it: no mask is needed.
        hidden = base.base_model(input_ids=ids, use_cache=False).last_hidden_state  # [B, T, D]
        wanted = F.pad(mask, (0, 1)).reshape(-1).nonzero().squeeze(1)  # [N] places in [B * T]
        out = hidden.new_zeros(ids.numel(), dtype=_logit_dtype(hidden.dtype))
        nothing = wanted.numel() == 0
        if nothing:  # every process must use every weight, or those that wait for its gradients wait for ever
            wanted = wanted.new_zeros(1)
        targets = ids.reshape(-1)[wanted + 1]  # [N]
        # a gather by index_select: its backward pass is one index_add, in a fixed order
        selected = hidden.reshape(-1, hidden.shape[-1]).index_select(0, wanted)  # [N, D]
        found = _chunked(base, selected, targets, chunk_tokens, temperature, entropy)  # [N] or [2, N]
        found = found * 0 if nothing else found
        if entropy == "none":
            return out.index_copy(0, wanted, found).view_as(ids)[:, :-1]
        return out.expand(2, -1).index_copy(1, wanted, found).view(2, *ids.shape)[:, :, :-1]


def token_logprobs(
    model: nn.Module,
    ids: Tensor,
    attention: Tensor,
    *,
    chunk_tokens: int,
    temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """[B, T-1] natural log-probability of token t+1 given those up to t, with the logits divided by `temperature`.

    model: a LogprobModel, or what DDP, accelerate and the like make of it. ids, attention: [B, T], padded on the
    right. mask: [B, T-1], where it is wanted (by default every real token); 0 elsewhere. chunk_tokens: tokens whose
    logits exist at once (more where 16 MiB hold more), in the backward pass too, which computes them again.
    The result is float32 (float64 for a float64 model). Raises TuluLiteError for padding on the left.
    """
    if ids.shape[0] and bool((attention[:, 1:] > attention[:, :-1]).any()):
        raise TuluLiteError(
            "token_logprobs: a batch is padded on the left or in the middle", cure="pad it on the right"
        )
    return model(ids, attention, mask, chunk_tokens, temperature)


def token_logprobs_and_entropy(
    model: nn.Module,
    ids: Tensor,
    attention: Tensor,
    *,
    chunk_tokens: int,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    trained: bool = False,
) -> tuple[Tensor, Tensor]:
    """token_logprobs, and beside it [B, T-1] the exact entropy -sum_v p_v log p_v of the distribution that each token
    was drawn from, at the same temperature and from the same logits. trained: with its gradient, for an entropy bonus.
    """
    if ids.shape[0] and bool((attention[:, 1:] > attention[:, :-1]).any()):
        raise TuluLiteError("token_logprobs: a batch is padded on the left", cure="pad it on the right")
    both = model(ids, attention, mask, chunk_tokens, temperature, "trained" if trained else "measured")
    return both[0], both[1]


def _chunked(
    base: Any,
    hidden: Tensor,
    targets: Tensor,
    chunk_tokens: int,
    temperature: float,
    entropy: Entropy = "none",
) -> Tensor:
    """[N], with entropy [2, N], from hidden [N, D] and targets [N]."""
    head = base.get_output_embeddings()
    chunk = max(chunk_tokens, LEAST_CHUNK_ELEMENTS // base.config.get_text_config().vocab_size)
    if len(targets) <= chunk:
        return _logprobs(head, base.config, hidden, targets, temperature, entropy)
    parts = []
    for start in range(0, len(targets), chunk):
        rows = slice(start, start + chunk)
        arguments = (head, base.config, hidden[rows], targets[rows], temperature, entropy)
        if torch.is_grad_enabled():
            parts.append(checkpoint(_logprobs, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(_logprobs(*arguments))
    return torch.cat(parts, dim=-1)


def _logprobs(
    head: nn.Module, config: Any, hidden: Tensor, targets: Tensor, temperature: float, entropy: Entropy
) -> Tensor:
    """[N], with entropy [2, N]. The head is called as a module, so that engines which gather its weight when it is called do so."""
    logits = head(hidden)  # [N, V]
    logits = _as_model_scales(logits, config)
    logits = logits.to(_logit_dtype(logits.dtype))
    if temperature != 1.0:
        logits = logits / temperature
    logprobs = -F.cross_entropy(logits, targets, reduction="none")
    if entropy == "none":
        return logprobs
    if entropy == "measured":
        logits = logits.detach()
    mean = (logits.softmax(-1) * logits).sum(-1)  # of the logits
    return torch.stack([logprobs, logits.logsumexp(-1) - mean])


def _as_model_scales(logits: Tensor, config: Any) -> Tensor:
    """What some models do to their logits after the head. load_model proves that nothing is missing here."""
    config = config.get_text_config()
    if scaling := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / scaling
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
        logits = torch.tanh(logits / cap) * cap
    return logits


def _logit_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
