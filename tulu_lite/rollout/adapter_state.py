"""adapters.json in a server's folder: the LoRA adapters it holds, and the files to load them from again.

On the server an adapter is called NAME@VERSION, a name of its own for each version: a request names the very weights
it wants, a response under way ends on those it began with, and the server's prefix cache, which is kept by name, never
mixes two versions. No torch.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import TuluLiteError
from ..files import locked, read_json, write_json
from .state import UpdateHeld

ADAPTERS_FILE = "adapters.json"


@dataclass(frozen=True)
class Adapter:
    """One adapter in its newest version."""

    name: str
    version: int
    folder: str  # adapter_config.json and adapter_model.safetensors, as peft writes them
    base_version: int  # weight version of the model it was made for
    model: str  # the folder of the model the server was started on

    @property
    def served_name(self) -> str:
        """What requests call it."""
        return f"{self.name}@{self.version}"


def check_adapter_name(name: str) -> None:
    """Raise TuluLiteError unless `name` can be part of a path and of a served name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}", name):
        raise TuluLiteError(
            f"an adapter cannot be called {name!r}", cure="use letters, digits, '.', '_' and '-' (at most 81)"
        )


def read_adapters(folder: Path) -> dict[str, Adapter]:
    """{name: adapter} of a server's folder; empty when none was ever pushed."""
    return {name: Adapter(**entry) for name, entry in (read_json(folder / ADAPTERS_FILE) or {}).items()}


def write_adapter(folder: Path, adapter: Adapter, wait_s: float = 60.0) -> None:
    """Record an adapter beside those of others, who may write theirs at the same time."""
    with _locked(folder, wait_s):
        known = read_adapters(folder)
        known[adapter.name] = adapter
        _write(folder, known)


def forget_adapter(folder: Path, name: str, wait_s: float = 60.0) -> None:
    with _locked(folder, wait_s):
        known = read_adapters(folder)
        if known.pop(name, None) is not None:
            _write(folder, known)


def forget_adapters(folder: Path) -> None:
    (folder / ADAPTERS_FILE).unlink(missing_ok=True)


def _write(folder: Path, adapters: dict[str, Adapter]) -> None:
    write_json(folder / ADAPTERS_FILE, {name: asdict(adapter) for name, adapter in adapters.items()})


def _locked(folder: Path, wait_s: float) -> AbstractContextManager[None]:
    lock = folder / "adapters.lock"
    return locked(lock, wait_s, lambda: UpdateHeld(f"{lock} was held for {wait_s:.0f} s"))
