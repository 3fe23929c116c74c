"""Weights for every server behind a client: gathered and written once, loaded by all."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import TuluLiteError
from . import pushed, weights
from .client import RolloutClient
from .member import Member
from .process import folder_within
from .routes.feed import Feed
from .state import Push, ServerState

if TYPE_CHECKING:
    import torch


def push_everywhere(
    client: RolloutClient, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int
) -> None:
    """Give new weights to every server behind the client; returns when all that live hold them.

    The first one's push gathers and writes the tensors; the others load the same files at the same time, once all are
    there. A server that is restarting is waited for, so that none answers with older weights; one that failed for good
    is left out. When the first one's update fails, the others may hold these weights or those before.
    Raises TuluLiteError, ServerError as weights.push_weights.
    """
    first, others = _first_and_others(client)
    reference = _one_at_a_time(getattr(named_tensors, "reference", None))
    passing = _PassOn(client, others, reference)
    try:
        weights.push_weights(client.only(first), named_tensors, version, reference, passing.begin)
    finally:
        passing.join()
    if passing.failures:
        raise passing.failures[0]


def load_everywhere(client: RolloutClient, model_dir: Path, version: int) -> None:
    """Have every server behind the client serve a folder's model. Raises TuluLiteError, ServerError."""
    for member in client.living():
        weights.serve_model(client.only(member), model_dir, version)


def _first_and_others(client: RolloutClient) -> tuple[Member, list[Member]]:
    living = client.living()
    ready = [member for member in living if member.state().state == "ready"]
    first = (ready or living)[0]
    return first, [member for member in living if member is not first]


def _one_at_a_time(reference: weights.Reference | None) -> weights.Reference | None:
    """The same for several threads: a model, and processes that take part, can be asked by one alone."""
    if reference is None:
        return None
    lock = threading.Lock()

    def ask(samples: Any) -> Any:
        with lock:
            return reference(samples)

    return ask


class _PassOn:
    """The others load the files that the first one is given, each in a thread of its own."""

    def __init__(self, client: RolloutClient, others: Sequence[Member], reference: Any) -> None:
        self.client, self.others, self.reference = client, others, reference
        self.failures: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    def begin(self, push: Push) -> None:
        for member in self.others:
            self._threads.append(threading.Thread(target=self._update, args=(member, push)))
            self._threads[-1].start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _update(self, member: Member, push: Push) -> None:
        try:
            _update_from(self.client.only(member), push, self.reference)
        except TuluLiteError as error:
            if member.state().state not in ("failed", "stopped"):  # one that failed for good is left out
                self.failures.append(error)
        except BaseException as error:
            self.failures.append(error)


def _update_from(client: RolloutClient, push: Push, reference: Any) -> None:
    state = client.wait_ready()
    assert client.folder is not None
    folder = client.folder
    # Linked at once, while the files are there, under a name that no other push takes for left over.
    made = [folder_within(Path(state.push_dir), f"coming-{push.version}-")]

    def produce(feed: Feed, now: ServerState) -> Push:
        if made[0].name.startswith("coming-"):
            made[0] = made[0].rename(made[0].with_name(made[0].name.replace("coming-", "push-", 1)))
        files = tuple(str(made[0] / Path(file).name) for file in push.files)
        feed.put_all(files, push.digest)
        return Push(push.version, files, push.digest, now.model)

    try:
        for file in push.files:
            _link(Path(file), made[0])
        weights._updated(client, folder, push.version, produce, reference, push.digest is not None)
    except BaseException:
        pushed.discard(folder, made)
        raise
    pushed.tidy(folder, Path(state.push_dir), spare=False)  # they would be the first one's files


def _link(file: Path, folder: Path) -> None:
    target = folder / file.name
    try:
        os.link(file, target)
    except OSError:  # another file system
        shutil.copyfile(file, target)


def next_version(client: RolloutClient) -> int:
    """One more than any living server holds."""
    client.wait_ready()
    return 1 + max(member.state().weight_version for member in client.living())
