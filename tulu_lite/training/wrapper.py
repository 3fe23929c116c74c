"""What stands around a transformers model, so that its forward pass gives what training needs."""

from __future__ import annotations

from typing import Any

from torch import nn

from .packing import Packing


class Wrapper(nn.Module):
    """A transformers model, or the PeftModel around it, as `wrapped`.

    Being a module, it is what DDP, FSDP or DeepSpeed wraps, so that their forward hooks run. packing: how rows of several
    lengths go through it (see training.packing); the result is the same. shares: whether what neighbours in a packed row
    begin with in common is computed once; choose_packing proves it.
    """

    def __init__(self, wrapped: nn.Module, packing: Packing = "bucket") -> None:
        super().__init__()
        self.wrapped, self.packing, self.shares = wrapped, packing, False

    @property
    def base(self) -> Any:
        """The transformers model, adapters (if any) inside."""
        model: Any = self.wrapped
        return model.get_base_model() if hasattr(model, "peft_config") else model

    @property
    def config(self) -> Any:
        return self.base.config

    @property
    def _no_split_modules(self) -> Any:
        """The layers that accelerate's FSDP wraps one by one."""
        return self.base._no_split_modules
