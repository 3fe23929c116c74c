"""Turns on one server: whoever holds the lease has its own weights there, while others train; or, where nobody's weights
are in the way, so many at a time as there are places. No torch.

Fair: turns are given in the order in which they were asked for. Bounded: a turn that lasts longer than its term is
over, and whoever held it learns so. Nobody waits for the dead: a process that ends, however it ends, holds nothing and
waits for nothing. All by files in the server's folder:

lease/NUMBER.json  a ticket: who (holder, pid, when that process started), and from the turn's beginning until when
lease/next         the next ticket's number
lease/lock         held for moments, while tickets are looked at or changed
lease/weights.json whose weights the server holds (`Held`)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import ServerError, TuluLiteError
from ..files import locked, read_json, write_json
from .process import is_alive, start_time

POLL_S = 0.02
FOLDER = "lease"


class LeaseNotGiven(ServerError):
    """The turn did not come within the time that was given to wait for it."""


class LeaseLost(ServerError):
    """The turn's term ended before it was given back; the server may hold another's weights."""


@dataclass(frozen=True)
class Turn:
    """A lease that is held."""

    folder: Path
    holder: str
    number: int
    until: float  # time.monotonic(), one clock for all processes of a machine
    waited_s: float

    def check(self) -> None:
        """Raise LeaseLost when the turn is over."""
        with _locked(self.folder):
            if self.number not in _living_tickets(self.folder):
                raise LeaseLost(
                    f"{self.holder} held the rollout server's lease for longer than its term",
                    "others wait for their turn, and may have pushed their weights meanwhile",
                    "give the lease a longer term, or sample less in one turn",
                )


@contextmanager
def lease(folder: Path, holder: str, wait_s: float, term_s: float) -> Iterator[Turn]:
    """Hold the server of `folder` for a turn.

    wait_s: how long to wait for it. term_s: how long it may last; then it goes to the next.
    Raises LeaseNotGiven, and at the block's end LeaseLost when the term was over before it.
    """
    turn = _take(Path(folder), holder, wait_s, term_s)
    try:
        yield turn
        turn.check()
    finally:
        _give_back(turn.folder, turn.number)


@contextmanager
def place(folder: Path, holder: str, places: int, *, wait_s: float, term_s: float) -> Iterator[None]:
    """One of `places` in the folder, in the order in which they are asked for. A courtesy, not a right: whoever does not
    get one within wait_s goes on without, and one that is held for longer than term_s is given to the next."""
    try:
        number = _take(Path(folder), holder, wait_s, term_s, places).number
    except LeaseNotGiven:
        number = None
    try:
        yield
    finally:
        if number is not None:
            _give_back(Path(folder), number)


def _take(folder: Path, holder: str, wait_s: float, term_s: float, places: int = 1) -> Turn:
    asked = time.monotonic()
    with _locked(folder):
        number = _draw(folder, holder)
    try:
        while True:
            with _locked(folder):
                tickets = _living_tickets(folder)
                if number in sorted(tickets)[:places]:
                    until = time.monotonic() + term_s
                    write_json(_ticket(folder, number), tickets[number] | {"until": until})
                    return Turn(folder, holder, number, until, time.monotonic() - asked)
                first = tickets[min(tickets)]
            if time.monotonic() - asked > wait_s:
                raise LeaseNotGiven(
                    f"{holder} waited {wait_s:.0f} s for its turn on the rollout server",
                    f"{first['holder']} (process {first['pid']}) holds it, and {len(tickets) - 2} others wait",
                    "wait longer, or shorten the turns",
                )
            time.sleep(POLL_S)
    except BaseException:
        _give_back(folder, number)
        raise


def _draw(folder: Path, holder: str) -> int:
    """A ticket with a number higher than any before."""
    number = int((read_json(folder / FOLDER / "next") or {"next": 1})["next"])
    write_json(folder / FOLDER / "next", {"next": number + 1})
    pid = os.getpid()
    ticket = {"holder": holder, "pid": pid, "started": start_time(pid), "until": None}
    write_json(_ticket(folder, number), ticket)
    return number


def _living_tickets(folder: Path) -> dict[int, dict]:
    """Tickets by number; those of dead processes, and turns whose term is over, are thrown away."""
    living = {}
    for file in (folder / FOLDER).glob("[0-9]*.json"):
        ticket = read_json(file)
        if ticket is None:
            continue
        over = ticket["until"] is not None and time.monotonic() > ticket["until"]
        if over or not is_alive(int(ticket["pid"]), ticket["started"]):
            file.unlink(missing_ok=True)
        else:
            living[int(file.stem)] = ticket
    return living


def _give_back(folder: Path, number: int) -> None:
    _ticket(folder, number).unlink(missing_ok=True)


def _ticket(folder: Path, number: int) -> Path:
    return folder / FOLDER / f"{number:09d}.json"


def _locked(folder: Path) -> AbstractContextManager[None]:
    """For moments only."""
    lock = folder / FOLDER / "lock"
    lock.parent.mkdir(parents=True, exist_ok=True)

    def held() -> TuluLiteError:
        return TuluLiteError(
            f"{lock} is held for more than a minute",
            "a process that holds it is stopped (state T)",
            f"continue or end it; `fuser {lock}` names it",
        )

    return locked(lock, 60.0, held, POLL_S / 4)


# Whose weights the server holds


@dataclass(frozen=True)
class Held:
    """weights.json: the weights that were pushed in the last turn that pushed any."""

    holder: str
    mark: int  # the holder's own count of its updates
    version: int  # the weight version they got on the server


@contextmanager
def own_weights(
    folder: Path,
    holder: str,
    mark: int,
    push: Callable[[], int],
    held_version: Callable[[], int],
    *,
    wait_s: float,
    term_s: float,
) -> Iterator[tuple[Turn, int]]:
    """A turn in which the server holds this holder's weights; gives the turn and their version on the server.

    mark: which of its own weights, such as the number of its optimiser steps.
    push: pushes them and returns their version; called only when the server holds others.
    held_version: the version that the server holds now.
    """
    with lease(folder, holder, wait_s, term_s) as turn:
        held = _read_held(folder)
        if held is None or (held.holder, held.mark) != (holder, mark) or held.version != held_version():
            version = push()
            turn.check()  # before others are told, and before anything is sampled
            held = Held(holder, mark, version)
            write_json(folder / FOLDER / "weights.json", asdict(held))
        yield turn, held.version


def forget_held(folder: Path) -> None:
    """Whoever starts a server says so: what the one before held under some version, this one does not."""
    (folder / FOLDER / "weights.json").unlink(missing_ok=True)


def _read_held(folder: Path) -> Held | None:
    data = read_json(folder / FOLDER / "weights.json")
    return None if data is None else Held(**data)
