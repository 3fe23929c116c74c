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
from .head import Scaling, chunk_rows, is_one_matrix, logit_dtype, through, tiled_logprobs, tiled_sum
from .packing import Packing, packed_row
from .row import row_of
from .wrapper import Wrapper

Entropy = Literal["none", "measured", "trained"]

LEAST_CHUNK_ELEMENTS = (
    1 << 22
)  # 16 MiB of float32 logits: below it, cutting a batch in chunks only costs time


class LogprobModel(Wrapper):
    """A causal language model whose forward pass gives log-probabilities instead of logits.

    liger: sums of log-probabilities by Liger's kernel.
    """

    def __init__(self, causal_lm: nn.Module, packing: Packing = "bucket", liger: bool = False) -> None:
        super().__init__(causal_lm, packing)
        self.liger = liger

    def forward(
        self,
        ids: Tensor,
        attention: Tensor,
        mask: Tensor | None,
        chunk_tokens: int,
        temperature: float,
        entropy: Entropy = "none",
        summed: bool = False,
    ) -> Tensor:
        """[B, T-1], or with `summed` their sum; see token_logprobs and summed_logprobs. With entropy [2, B, T-1]; see
        token_logprobs_and_entropy."""
        if mask is None:
            mask = attention[:, 1:]
        wanted = F.pad(mask, (0, 1)).reshape(-1).nonzero().squeeze(1)  # [N] places in [B * T]
        nothing = wanted.numel() == 0
        if nothing:  # every process must use every weight, or those that wait for its gradients wait for ever
            wanted = wanted.new_zeros(1)
        targets = ids.reshape(-1)[wanted + 1]  # [N]
        hidden = hidden_at(self, ids, attention, wanted)  # [N, D]
        scaling = _scaling(self.config, temperature)
        if summed:
            total = _sum(self.base, hidden, targets, chunk_tokens, scaling, self.liger)
            return total * 0 if nothing else total
        found = _chunked(self.base, hidden, targets, chunk_tokens, scaling, entropy)  # [N] or [2, N]
        found = found * 0 if nothing else found
        out = hidden.new_zeros(ids.numel(), dtype=logit_dtype(hidden.dtype))
        if entropy == "none":
            return out.index_copy(0, wanted, found).view_as(ids)[:, :-1]
        return out.expand(2, -1).index_copy(1, wanted, found).view(2, *ids.shape)[:, :, :-1]

    def probe(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Numbers [B, T-1] that packing must leave as they are."""
        return token_logprobs(self, ids, attention, chunk_tokens=64)


def hidden_at(wrapper: Wrapper, ids: Tensor, attention: Tensor, wanted: Tensor) -> Tensor:
    """[N, D] last hidden states of a transformers model at the wanted places of [B * T].

    They are gathered by index_select: its backward pass is one index_add, in a fixed order.
    """
    model, packing = wrapper.base.base_model, wrapper.packing
    if packing == "bucket":
        # Padding is on the right and attention is causal, so no real token ever sees it: no mask is needed.
        hidden = model(input_ids=ids, use_cache=False).last_hidden_state  # [B, T, D]
        return hidden.reshape(-1, hidden.shape[-1]).index_select(0, wanted)
    varlen = packing == "varlen"
    row = row_of(ids, attention, shares=varlen and wrapper.shares)
    with packed_row(without_mask=varlen):
        hidden = model(
            input_ids=ids.reshape(-1)[row.places][None],
            position_ids=(row.places % ids.shape[1])[None],
            use_cache=False,
            **({"segments": row.segments} if varlen else {}),
        ).last_hidden_state[0]
    return hidden.index_select(0, row.where[wanted])


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
    right. mask: [B, T-1], where it is wanted (by default every real token); 0 elsewhere. chunk_tokens: at most so many
    tokens' logits exist at once (more where 16 MiB hold more), in the backward pass too, which computes them again.
    The result is float32 (float64 for a float64 model). Raises TuluLiteError for padding on the left.
    """
    _padded_right(attention)
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
    _padded_right(attention)
    both = model(ids, attention, mask, chunk_tokens, temperature, "trained" if trained else "measured")
    return both[0], both[1]


def summed_logprobs(
    model: nn.Module, ids: Tensor, attention: Tensor, *, chunk_tokens: int, mask: Tensor
) -> Tensor:
    """The sum of token_logprobs over the mask [B, T-1] of zeros and ones: quicker, since its gradient is computed while
    the logits are there. Its backward pass runs once."""
    _padded_right(attention)
    return model(ids, attention, mask, chunk_tokens, 1.0, "none", True)


def _padded_right(attention: Tensor) -> None:
    if attention.shape[0] and bool((attention[:, 1:] > attention[:, :-1]).any()):
        raise TuluLiteError(
            "token_logprobs: a batch is padded on the left or in the middle", cure="pad it on the right"
        )


def _sum(
    base: Any, hidden: Tensor, targets: Tensor, chunk_tokens: int, scaling: Scaling, liger: bool
) -> Tensor:
    head = base.get_output_embeddings()
    if not is_one_matrix(head) or _few(base, targets):
        return _chunked(base, hidden, targets, chunk_tokens, scaling).sum()

    def total(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if liger:
            return _liger_sum(inputs, weight, bias, targets, scaling)
        return tiled_sum(inputs, weight, bias, targets, scaling, chunk_tokens)

    return through(head, hidden, total)


def _liger_sum(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scaling: Scaling
) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    return -liger_fused_linear_cross_entropy(
        hidden * scaling.factor if scaling.factor != 1.0 else hidden,
        weight,
        targets,
        bias=bias,
        reduction="sum",
        softcap=scaling.cap,
        accum_dtype=torch.float32,
    )


def _few(base: Any, targets: Tensor) -> bool:
    """Whether all logits together are so few that keeping them costs less than computing them again."""
    return len(targets) * base.config.get_text_config().vocab_size <= LEAST_CHUNK_ELEMENTS


def _chunked(
    base: Any, hidden: Tensor, targets: Tensor, chunk_tokens: int, scaling: Scaling, entropy: Entropy = "none"
) -> Tensor:
    """[N], with entropy [2, N], from hidden [N, D] and targets [N]."""
    head = base.get_output_embeddings()
    if _few(base, targets):
        return _logprobs(head, hidden, targets, scaling, entropy)
    if is_one_matrix(head):

        def tiled(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
            return tiled_logprobs(inputs, weight, bias, targets, scaling, chunk_tokens, entropy != "none")

        logprobs, entropies = through(head, hidden, tiled)
        if entropy == "none":
            return logprobs
        return torch.stack([logprobs, entropies if entropy == "trained" else entropies.detach()])
    parts = []
    chunk = chunk_rows(hidden, base.config.get_text_config().vocab_size, chunk_tokens)
    for start in range(0, len(targets), chunk):
        rows = slice(start, start + chunk)
        arguments = (head, hidden[rows], targets[rows], scaling, entropy)
        if torch.is_grad_enabled():
            parts.append(checkpoint(_logprobs, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(_logprobs(*arguments))
    return torch.cat(parts, dim=-1)


def _logprobs(
    head: nn.Module, hidden: Tensor, targets: Tensor, scaling: Scaling, entropy: Entropy = "none"
) -> Tensor:
    """[N], with entropy [2, N]. The head is called as a module, so that engines which gather its weight when it is called do so."""
    logits = head(hidden)  # [N, V]
    logits = scaling.apply(logits.to(logit_dtype(logits.dtype)))
    logprobs = -F.cross_entropy(logits, targets, reduction="none")
    if entropy == "none":
        return logprobs
    if entropy == "measured":
        logits = logits.detach()
    mean = (logits.softmax(-1) * logits).sum(-1)  # of the logits
    return torch.stack([logprobs, logits.logsumexp(-1) - mean])


def _scaling(config: Any, temperature: float) -> Scaling:
    """What some models do to their logits after the head. load_model proves that nothing is missing here."""
    config = config.get_text_config()
    factor = 1.0
    if divisor := getattr(config, "logits_scaling", None):  # Granite
        factor /= divisor
    if scale := getattr(config, "logit_scale", None):  # Cohere
        factor *= scale
    return Scaling(
        factor, getattr(config, "final_logit_softcapping", None) or None, temperature
    )  # cap: Gemma 2
