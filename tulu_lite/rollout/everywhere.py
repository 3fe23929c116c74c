"""Weights for every server behind a client: gathered and written once, loaded by all."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import TuluLiteError
from . import weights
from .client import RolloutClient
from .member import Member
from .state import Push, read_push

if TYPE_CHECKING:
    import torch


def push_everywhere(
    client: RolloutClient, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int
) -> None:
    """Give new weights to every server behind the client; returns when all that live hold them.

    The first one's push gathers and writes the tensors; the others load the same files. A server that is restarting
    is waited for, so that none answers with older weights; one that failed for good is left out.
    Raises TuluLiteError, ServerError as weights.push_weights.
    """
    first, others = _first_and_others(client)
    reference = getattr(named_tensors, "reference", None)
    weights.push_weights(client.only(first), named_tensors, version)
    _pass_on(client, first, others, reference)


def load_everywhere(client: RolloutClient, model_dir: Path, version: int) -> None:
    """Have every server behind the client serve a folder's model. Raises TuluLiteError, ServerError."""
    for member in client.living():
        weights.serve_model(client.only(member), model_dir, version)


def _first_and_others(client: RolloutClient) -> tuple[Member, list[Member]]:
    living = client.living()
    ready = [member for member in living if member.state().state == "ready"]
    first = (ready or living)[0]
    return first, [member for member in living if member is not first]


def _pass_on(client: RolloutClient, first: Member, others: Sequence[Member], reference: Any) -> None:
    """Have the others load the files that the first one was given. Links, not copies: each removes its own."""
    if not others:
        return
    assert first.folder is not None
    push = read_push(first.folder)
    assert push is not None
    failures: list[BaseException] = []

    def update(member: Member) -> None:
        try:
            _update_from(client.only(member), push, reference)
        except TuluLiteError as error:
            if member.state().state not in ("failed", "stopped"):  # one that failed for good is left out
                failures.append(error)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=update, args=(member,)) for member in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def _update_from(client: RolloutClient, push: Push, reference: Any) -> None:
    state = client.wait_ready()
    assert client.folder is not None
    target = Path(tempfile.mkdtemp(prefix=f"push-{push.version}-", dir=state.push_dir))
    try:
        files = tuple(str(_link(Path(file), target)) for file in push.files)
        own = Push(push.version, files, push.digest, state.model)
        weights._update(client, client.folder, own, reference)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    for former in target.parent.glob("*-*"):
        if former != target and former.name.startswith(("push-", weights.SPARE)):
            shutil.rmtree(former, ignore_errors=True)


def _link(file: Path, folder: Path) -> Path:
    target = folder / file.name
    try:
        os.link(file, target)
    except OSError:  # another file system
        shutil.copyfile(file, target)
    return target


def next_version(client: RolloutClient) -> int:
    """One more than any living server holds."""
    client.wait_ready()
    return 1 + max(member.state().weight_version for member in client.living())
