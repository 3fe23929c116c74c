"""The reference policy of the KL term: frozen, the adapter switched off, or the policy of some steps ago."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..errors import TuluLiteError
from ..recipe import RlvrStage
from ..training.folders import write_tensors
from ..training.logprobs import LogprobModel
from ..training.model import adapters_off, load_model, unwrapped
from ..training.proof import beside, choose_packing
from ..training.sharding import assign, is_main, whole
from ..training.zero import is_zero

FILE = "reference.safetensors"


class Reference:
    """`with reference(model) as frozen: token_logprobs(frozen, ...)`, under torch.no_grad().

    model: the one that is trained, not wrapped yet. init_model: what it started from. own: the recipe's own reference,
    a folder. precision: of training, as choose_packing takes it.
    """

    def __init__(
        self,
        model: LogprobModel,
        stage: RlvrStage,
        init_model: str,
        own: str | None,
        device: torch.device,
        precision: str = "no",
    ) -> None:
        self.every = stage.reference_refresh_steps
        self.adapted = hasattr(unwrapped(model), "peft_config")
        self.refreshed = 0  # the step after which it was refreshed last; 0: never
        self._adapters: dict[str, Tensor] | None = None
        if self.every and self.adapted and any(is_zero(weight) for weight in model.parameters()):
            raise TuluLiteError(
                "reference_refresh_steps with LoRA is not there under DeepSpeed",
                why="the adapter of before would have to be put into weights that the engine holds in parts",
                cure="use DDP or FSDP2, or train all weights",
            )
        self.frozen: nn.Module | None = None  # a model beside the trained one
        if own is not None or not self.adapted:
            name = init_model if own is None else own
            self.frozen = load_model(name, device).eval().requires_grad_(False)
            choose_packing(self.frozen, beside(model.packing), precision, name)

    @contextmanager
    def __call__(self, model: nn.Module) -> Iterator[nn.Module]:
        if self._adapters is not None:
            with _adapters_of(model, self._adapters):
                yield model
        elif self.frozen is not None:
            yield self.frozen
        else:
            with adapters_off(model) as before:
                yield before

    def refresh(self, model: nn.Module, step: int) -> bool:
        """After a step: whether its turn has come, and then the policy of now is the reference. All processes call it."""
        if not self.every or step % self.every:
            return False
        self.refreshed = step
        if self.adapted:
            self._adapters = {name: weight.detach().clone() for name, weight in _trained(model).items()}
            return True
        assert self.frozen is not None
        targets = dict(unwrapped(self.frozen).named_parameters())
        with torch.no_grad():
            for name, weight in unwrapped(model).named_parameters():
                targets[name].copy_(whole(weight))
        return True

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write what a refreshed reference is; nothing while it is the first one. All processes call it."""
        if not self.refreshed:
            return
        if self._adapters is not None:
            tensors = {name: whole(tensor).cpu() for name, tensor in self._adapters.items()}
        else:
            assert self.frozen is not None
            tensors = {name: weight.cpu() for name, weight in unwrapped(self.frozen).named_parameters()}
        if is_main():
            write_tensors(folder / FILE, tensors)

    def restore(self, model: nn.Module, folder: Path, refreshed: int) -> None:
        """Take up what `save` wrote, after a resume. refreshed: the step after which it was refreshed; 0: never."""
        self.refreshed = refreshed
        if not refreshed:
            return
        with safe_open(folder / FILE, "pt") as file, torch.no_grad():
            if self.adapted:
                self._adapters = {name: weight.detach().clone() for name, weight in _trained(model).items()}
                for name, tensor in self._adapters.items():
                    assign(tensor, file.get_tensor(name))
            else:
                assert self.frozen is not None
                for name, weight in unwrapped(self.frozen).named_parameters():
                    weight.copy_(file.get_tensor(name))


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight for name, weight in unwrapped(model).named_parameters() if weight.requires_grad}


@contextmanager
def _adapters_of(model: nn.Module, adapters: dict[str, Tensor]) -> Iterator[None]:
    """The model with these adapters in place of its own, for as long."""
    own = _trained(model)
    now = {name: weight.detach().clone() for name, weight in own.items()}
    try:
        _put(own, adapters)
        yield
    finally:
        _put(own, now)


@torch.no_grad()
def _put(weights: dict[str, Tensor], values: dict[str, Any]) -> None:
    for name, weight in weights.items():
        weight.copy_(values[name])


def check_vocabulary(name: str, what: str, tokenizer: Any, config: Any, own_config: Any) -> None:
    """Raise TuluLiteError when the model of a folder reads other tokens than the policy.

    tokenizer: the policy's. config, own_config: the other model's and the policy's config.json, as mappings.
    """
    from ..datasets.chat import load_tokenizer

    sizes = [int((one.get("text_config") or one)["vocab_size"]) for one in (own_config, config)]
    cure = f"name a model of the policy's own family as {what}, or leave it out"
    if sizes[0] != sizes[1]:
        raise TuluLiteError(
            f"{what} {name} has a vocabulary of {sizes[1]} tokens, and the policy one of {sizes[0]}",
            why="it would be asked about tokens that are others to it",
            cure=cure,
        )
    if not any((Path(name) / file).exists() for file in ("tokenizer.json", "tokenizer_config.json")):
        return
    theirs, ours = load_tokenizer(name).get_vocab(), tokenizer.get_vocab()
    if theirs != ours:
        other = next(token for token in {**ours, **theirs} if theirs.get(token) != ours.get(token))
        raise TuluLiteError(
            f"{what} {name} has another tokenizer than the policy: token {other!r} is {theirs.get(other)} to it and "
            f"{ours.get(other)} to the policy",
            why="it would be asked about tokens that are others to it",
            cure=cure,
        )
