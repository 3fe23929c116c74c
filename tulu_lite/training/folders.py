"""Folders that are whole or not there: filled under a temporary name, synced, then renamed."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..files import explain_os_error


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder that takes the place of `target` when the block ends well, and leaves nothing when it does not.

    What a killed process left of an earlier try is removed. Raises TuluLiteError for a full disk and the like.
    """
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for stale in target.parent.glob(f".{target.name}.*.tmp"):
            shutil.rmtree(stale, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
        temporary.chmod(0o755)
        yield temporary
        _sync_tree(temporary)
        _replace(temporary, target)
    except OSError as error:
        raise explain_os_error(error, target) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """One safetensors file. Raises OSError where safetensors has its own error for it."""
    try:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"}
        )
    except SafetensorError as error:
        if number := re.search(r"os error (\d+)", str(error)):
            code = int(number[1])
            raise OSError(code, os.strerror(code), str(path)) from error
        raise


def _replace(temporary: Path, target: Path) -> None:
    """Folders cannot be swapped in one call everywhere, so between two renames there is none: it then counts as not
    written, which the caller's record of what is done must say anyway."""
    if target.exists():
        old = temporary.with_suffix(".old.tmp")
        target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        temporary.rename(target)
    _sync(target.parent)


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
