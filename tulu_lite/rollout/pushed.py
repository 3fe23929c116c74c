"""The files of pushed weights: where they lie, and which of them go. No torch.

Several processes may push to one server, in turns (`state.update_under_way`). Folders are made, written over and removed
in a turn, so that nobody takes another's for left over.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import ServerError
from .process import folder_within
from .state import SPILL_FOLDER, ServerState, UpdateHeld, read_push, update_under_way

TIDY_S = 5.0  # how long tidying up waits for its turn
SPARE = "spare-"  # folders of files that the next push writes over


def push_folder(state: ServerState) -> Path:
    """Where pushed weights go. Raises ServerError when the server took the folder with it."""
    folder = Path(state.push_dir)
    if not folder.is_dir():
        raise ServerError(
            f"the rollout server's folder for weights, {folder}, is gone", "was the server stopped?"
        )
    return folder


def make_folders(folder: Path, version: int, state: ServerState) -> list[Path]:
    """New folders for the files of a push: in shared memory, and on the disk for what finds no room there. In a turn."""
    target = folder_within(push_folder(state), f"push-{version}-")
    spill = folder / SPILL_FOLDER / target.name
    spill.mkdir(parents=True)
    return [target, spill]


def discard(folder: Path, made: Sequence[Path]) -> None:
    """Remove a push's own folders after a fault, unless a server that starts anew loads from them."""
    kept = _named(folder)
    for place in made:
        if place.name not in kept:
            shutil.rmtree(place, ignore_errors=True)


def spare_folder(target: Path) -> Path | None:
    """A folder of files that are no longer needed, to be written over; None when there is none. In a turn."""
    found = sorted(target.parent.glob(f"{SPARE}*"))
    for more in found[1:]:
        shutil.rmtree(more, ignore_errors=True)
    return found[0] if found else None


def tidy(folder: Path, push_dir: Path, spare: bool = True) -> None:
    """Remove the files of earlier pushes, here and on the disk; never those that last_push.json names.

    spare: those of the last one before are kept aside, for the next to write over, while shared memory has room for as
    much again. Takes a turn of its own: after the update others may have come, and one that is at it does this at its
    end.
    """
    with suppress(UpdateHeld), update_under_way(folder, wait_s=TIDY_S, lasts_s=TIDY_S):
        kept = _named(folder)
        _remove_others(push_dir, kept, spare)
        for spilled in (folder / SPILL_FOLDER).glob("push-*"):
            if spilled.name not in kept or not any(spilled.iterdir()):
                shutil.rmtree(spilled, ignore_errors=True)


def _named(folder: Path) -> set[str]:
    """The names of the folders whose files last_push.json names; a push's folder on the disk has the same name."""
    push = read_push(folder)
    return set() if push is None else {Path(file).parent.name for file in push.files}


def _remove_others(push_dir: Path, kept: set[str], spare: bool) -> None:
    folders = list(push_dir.glob("push-*"))
    others = [path for path in folders if path.name not in kept]
    spare = spare and len(others) < len(
        folders
    )  # a checkpoint is loaded from its own files: nothing is pushed here
    for old in sorted(others, key=lambda path: path.stat().st_mtime)[-1:] if spare else []:
        size = sum(file.stat().st_size for file in old.iterdir())
        if shutil.disk_usage(push_dir).free > 2 * size and not list(push_dir.glob(f"{SPARE}*")):
            old.rename(push_dir / f"{SPARE}{old.name}")
    for path in [*others, *([] if spare else push_dir.glob(f"{SPARE}*"))]:
        shutil.rmtree(path, ignore_errors=True)
