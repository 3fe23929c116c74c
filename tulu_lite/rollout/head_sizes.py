"""Head sizes that vLLM's CPU attention has no kernel for, such as the 8 or 16 of very small models.  [vLLM 0.32]

Queries, keys and values are filled up with zeros to the next size there is, and the output is cut back. That is exact:
zeros add nothing to a query's product with a key, a padded value gives a padded output, and the softmax scale is
passed on by the model and stays that of the true size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def pad_heads(tensor: torch.Tensor, heads: int, true: int, padded: int) -> torch.Tensor:
    """[tokens, heads * true] or [tokens, heads, true] -> [tokens, heads * padded], zeros at the end of each head."""
    return F.pad(tensor.reshape(-1, heads, true), (0, padded - true)).reshape(-1, heads * padded)


def cut_heads(tensor: torch.Tensor, heads: int, true: int, padded: int) -> torch.Tensor:
    """[tokens, heads * padded] -> [tokens, heads * true]; undoes pad_heads."""
    return tensor.reshape(-1, heads, padded)[:, :, :true].reshape(-1, heads * true)


def allow_any_head_size() -> None:
    """Have vLLM's attention layers on the CPU take any head size up to the largest that has a kernel."""
    from vllm.model_executor.layers.attention.attention import Attention
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    sizes = sorted(CPUAttentionBackend.get_supported_head_sizes())
    make, attend = Attention.__init__, Attention.forward

    def make_padded(self: Any, num_heads: int, head_size: int, *rest: Any, **options: Any) -> None:
        fits = next((size for size in sizes if size >= head_size), head_size)
        if options.get("head_size_v") not in (None, head_size):
            fits = head_size  # values of another size than keys: vLLM's own business
        make(self, num_heads, fits, *rest, **options)
        self.true_head_size = head_size

    def attend_padded(
        self: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **options: Any
    ) -> torch.Tensor:
        true, padded = self.true_head_size, self.head_size
        if true == padded:
            return attend(self, query, key, value, *rest, **options)
        query = pad_heads(query, self.num_heads, true, padded)
        key, value = (pad_heads(tensor, self.num_kv_heads, true, padded) for tensor in (key, value))
        return cut_heads(attend(self, query, key, value), self.num_heads, true, padded)

    Attention.__init__ = make_padded  # type: ignore[method-assign]
    Attention.forward = attend_padded  # type: ignore[method-assign]
