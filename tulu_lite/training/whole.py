"""A model's weights, whole and under checkpoint names, for the rollout server, whatever spreads them over processes.

Nothing of the whole model's size is made on any device: one weight is gathered, used by the process that sends it, and
let go before the next (of a mixture of experts one layer). Works alike for one process, DDP, ZeRO-1 to 3 and FSDP2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .model import merged_weights, unwrapped
from .sharding import is_main
from .zero import shape_of

Samples = list[tuple[tuple[int, ...], tuple[int, ...]]]


class WholeWeights:
    """(checkpoint name, tensor) of every weight, as often as it is iterated; every process iterates, and then calls
    `follow` where it is not the main one.

    shapes() tells beforehand what comes, where that can be told without gathering. reference() is what a push asks when
    the server cannot compare its weights: log-probabilities under this model, to which all processes contribute.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return merged_weights(self.model)

    def shapes(self) -> dict[str, tuple[int, ...]] | None:
        inner: Any = unwrapped(self.model)
        adapted = hasattr(inner, "peft_config")
        base = inner.get_base_model() if adapted else inner
        if getattr(base, "_weight_conversions", None):
            return None  # their names in the checkpoint are others
        tied = set(getattr(base, "all_tied_weights_keys", None) or {})
        found = {}
        for key, value in inner.state_dict(keep_vars=True).items():
            name = key.removeprefix("base_model.model.").replace(".base_layer.", ".", 1) if adapted else key
            if "lora_" not in key and ".weight." not in key and name not in tied:
                found[name] = tuple(shape_of(value))
        return found

    @torch.no_grad()
    def reference(self, samples: Samples) -> list[Tensor]:
        """[T, V] log-probabilities at each response's tokens, float32 on the CPU. The main process calls it; the others
        are in `follow` meanwhile."""
        if _several():
            dist.broadcast_object_list([samples], src=0)
        return self._log_p(samples)

    def follow(self) -> None:
        """What a process that is not the main one does after iterating: its part of each reference(), until done()."""
        while _several() and not is_main():
            box: list[Any] = [None]
            dist.broadcast_object_list(box, src=0)
            if box[0] is None:
                return
            self._log_p(box[0])

    def done(self) -> None:
        """The main process lets the others go on. To be called whatever became of the push."""
        if _several() and is_main():
            dist.broadcast_object_list([None], src=0)

    @torch.no_grad()
    def _log_p(self, samples: Samples) -> list[Tensor]:
        causal: Any = unwrapped(self.model)
        device = next(iter(causal.parameters())).device
        rows = []
        for prompt, response in samples:
            ids = torch.tensor([[*prompt, *response]], device=device)
            logits = causal(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
            rows.append(logits.float().log_softmax(-1).cpu())
        return rows


def _several() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1
