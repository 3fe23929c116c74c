"""Rows are tokenized once: a store for each combination of data, tokenizer, template and settings.

Any process may be killed at any moment, and several may want the same store: it is made in a folder of its own and
renamed into place whole, and one that is not whole, or was made of something else, is made again. Stores can be
deleted at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import TuluLiteError
from ..files import explain_os_error, suppress_os_errors
from .store import Store, StoreWriter, open_store

WAIT_S = 4 * 3600.0  # for another process that is tokenizing the same rows


def sha256_of(path: Path) -> str:
    """Of a file's content. Raises TuluLiteError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TuluLiteError(f"cannot read {path}: {error.strerror or error}") from None


class TokenCache:
    """A folder of stores. file_hash: of a data file's content."""

    def __init__(
        self, folder: Path, file_hash: Callable[[Path], str] = sha256_of, wait_s: float = WAIT_S
    ) -> None:
        self.folder, self.file_hash, self.wait_s = folder, file_hash, wait_s

    def store(
        self, identity: dict[str, Any], parts: int, build: Callable[[StoreWriter], dict[str, Any]]
    ) -> Store:
        """The store of this identity (plain data), built if it is not there. build: adds the rows, returns meta data."""
        key = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
        folder = self.folder / key[:32]
        found = _whole(folder, key)
        if found is not None:
            return found
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._alone(key):
                return _whole(folder, key) or self._build(folder, key, parts, build)
        except OSError as error:
            raise explain_os_error(error, folder) from error

    def _build(
        self, folder: Path, key: str, parts: int, build: Callable[[StoreWriter], dict[str, Any]]
    ) -> Store:
        for left in self.folder.glob(f".{folder.name}.*.tmp"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        made = Path(tempfile.mkdtemp(dir=self.folder, prefix=f".{folder.name}.", suffix=".tmp"))
        os.chmod(made, 0o755)
        writer = StoreWriter(made, parts)
        try:
            writer.finish({**build(writer), "key": key})
            _put_in_place(made, folder, key)
        finally:
            writer.close()
            shutil.rmtree(made, ignore_errors=True)
        return open_store(folder, key=key)

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """Hold the key's lock; the kernel lets go of it however the holder ends."""
        handle = os.open(self.folder / f".{key[:32]}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            deadline = time.monotonic() + self.wait_s
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise TuluLiteError(
                            f"another process has been tokenizing the same rows for {self.wait_s / 60:.0f} minutes",
                            why=f"it holds {self.folder / f'.{key[:32]}.lock'}",
                            cure="see whether it still works; stop it, or set another `output`",
                        ) from None
                    time.sleep(0.05)
                except OSError:  # a file system without locks: the renaming decides
                    break
            yield
        finally:
            with (
                suppress_os_errors()
            ):  # a process that was forked meanwhile has it open too, so closing is not enough
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)


def _whole(folder: Path, key: str) -> Store | None:
    try:
        return open_store(folder, key=key)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _put_in_place(made: Path, folder: Path, key: str) -> None:
    for _ in range(100):
        try:
            os.rename(made, folder)
            return
        except OSError:
            if not folder.exists():
                raise
            if _whole(folder, key) is not None:  # another process was first
                return
            aside = tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp")
            try:
                if folder.is_dir():
                    os.rename(folder, aside)
                else:
                    folder.unlink()
            except FileNotFoundError:
                pass
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    raise TuluLiteError(f"cannot put {folder} in place", cure="remove it by hand")
