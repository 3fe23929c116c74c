"""Turns: in the order asked for, bounded, and never given to or waited for by the dead. With real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tulu_lite.rollout import lease as leases
from tulu_lite.rollout.lease import LeaseLost, LeaseNotGiven, lease, own_weights, place

ROOT = Path(__file__).resolve().parents[3]

# Argument 1: the folder. Takes a turn, says so, and holds it until its standard input closes.
HOLDER = """
import sys
from pathlib import Path
from tulu_lite.rollout.lease import lease
with lease(Path(sys.argv[1]), sys.argv[2], wait_s=60, term_s=float(sys.argv[3])) as turn:
    print("held", turn.number, flush=True)
    sys.stdin.read()
print("given back", flush=True)
"""


def start_holder(folder: Path, name: str, term_s: float = 60.0) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), name, str(term_s)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def tickets(folder: Path) -> int:
    return len(list((folder / "lease").glob("[0-9]*.json")))


def wait_for(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_turns_come_in_the_order_in_which_they_were_asked_for(tmp_path):
    order: list[int] = []
    inside = threading.Lock()

    def take(number: int) -> None:
        with lease(tmp_path, f"seed-{number}", wait_s=30, term_s=30):
            assert inside.acquire(blocking=False), "two at once"
            order.append(number)
            time.sleep(0.01)
            inside.release()

    with lease(tmp_path, "first", wait_s=1, term_s=30):
        threads = []
        for number in range(6):
            threads.append(threading.Thread(target=take, args=(number,)))
            threads[-1].start()
            wait_for(lambda number=number: tickets(tmp_path) == number + 2)
    for thread in threads:
        thread.join(30)
    assert order == list(range(6))
    assert tickets(tmp_path) == 0


def test_whoever_had_a_turn_queues_behind_those_who_wait(tmp_path):
    """Asking again at once after giving back must not starve the others."""
    turns: list[str] = []

    def greedy(name: str, other: str) -> None:
        for _ in range(8):
            with lease(tmp_path, name, wait_s=30, term_s=30):
                turns.append(name)
                wait_for(lambda: tickets(tmp_path) == 2 or turns.count(other) == 8)

    threads = [threading.Thread(target=greedy, args=pair) for pair in ("ab", "ba")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert "".join(turns) in ("ab" * 8, "ba" * 8)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_holder_that_is_killed_holds_nothing(tmp_path, number):
    holder = start_holder(tmp_path, "doomed")
    try:
        assert holder.stdout.readline().startswith("held")
        with (
            pytest.raises(LeaseNotGiven, match=r"waited 0 s .* doomed \(process \d+\) holds it"),
            lease(tmp_path, "seed-1", wait_s=0.1, term_s=1),
        ):
            pass
        os.kill(holder.pid, number)
        with lease(tmp_path, "seed-1", wait_s=20, term_s=60):
            pass
    finally:
        holder.kill()
        holder.communicate()


def test_one_that_is_killed_while_it_waits_is_passed_over(tmp_path):
    with lease(tmp_path, "seed-1", wait_s=1, term_s=60):
        waiting = start_holder(tmp_path, "waits")
        wait_for(lambda: tickets(tmp_path) == 2)
        waiting.kill()
        waiting.communicate()
    with lease(tmp_path, "seed-2", wait_s=20, term_s=60) as turn:
        assert turn.number == 3
    assert tickets(tmp_path) == 0


def test_a_turn_beyond_its_term_goes_to_the_next_and_its_holder_learns_so(tmp_path):
    holder = start_holder(tmp_path, "slow", term_s=0.3)
    assert holder.stdout.readline().startswith("held")
    with lease(tmp_path, "seed-1", wait_s=20, term_s=60) as turn:  # it is stuck, not dead
        assert turn.waited_s < 15
        out, err = holder.communicate("", timeout=30)
        assert "given back" not in out
        assert "LeaseLost" in err
        turn.check()  # the late holder's end took nothing from the next


def test_a_pid_that_was_used_again_is_not_the_holder(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "start_time", lambda pid: 1)  # as if an older process had had this pid
    with leases._locked(tmp_path):
        leases._draw(tmp_path, "older")
    monkeypatch.undo()
    with lease(tmp_path, "seed-1", wait_s=5, term_s=60) as turn:
        assert turn.number == 2


def test_weights_are_pushed_only_when_the_server_holds_others(tmp_path):
    server = {"version": 0}
    pushed: list[tuple[str, int]] = []

    def turn(holder: str, mark: int) -> int:
        def push() -> int:
            pushed.append((holder, mark))
            server["version"] += 1
            return server["version"]

        with own_weights(tmp_path, holder, mark, push, lambda: server["version"], wait_s=5, term_s=60) as (
            _,
            version,
        ):
            assert version == server["version"]
            return version

    assert [turn("a", 1), turn("a", 1), turn("b", 1), turn("a", 1), turn("a", 2)] == [1, 1, 2, 3, 4]
    assert pushed == [("a", 1), ("b", 1), ("a", 1), ("a", 2)]
    server["version"] += 1  # somebody pushed without a lease
    assert turn("a", 2) == 6


def test_a_push_that_outlasts_the_term_is_not_sampled_from(tmp_path):
    with (
        pytest.raises(LeaseLost, match="a held the rollout server's lease for longer than its term"),
        own_weights(tmp_path, "a", 1, lambda: time.sleep(0.3) or 1, lambda: 0, wait_s=5, term_s=0.1),
    ):
        pytest.fail("nothing may be sampled")
    with own_weights(tmp_path, "b", 1, lambda: 2, lambda: 1, wait_s=5, term_s=60) as (_, version):
        assert version == 2


def test_what_an_earlier_server_held_is_forgotten_with_it(tmp_path):
    """Its successor counts versions anew, and comes to the same number with other weights."""
    pushed: list[int] = []

    def push() -> int:
        pushed.append(1)
        return 5

    def turn() -> None:
        with own_weights(tmp_path, "a", 1, push, lambda: 5, wait_s=5, term_s=60):
            pass

    turn()
    turn()
    assert len(pushed) == 1
    leases.forget_held(tmp_path)
    turn()
    assert len(pushed) == 2
    leases.forget_held(tmp_path / "where nothing was held")


# Places: several turns at the same time


def test_as_many_hold_a_place_as_there_are_and_they_are_given_in_order(tmp_path):
    entered: list[int] = []
    inside, most = [0], [0]
    counting = threading.Lock()

    def take(number: int) -> None:
        with place(tmp_path, f"seed-{number}", 2, wait_s=30, term_s=30):
            with counting:
                entered.append(number)
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            time.sleep(0.05)
            with counting:
                inside[0] -= 1

    threads = []
    with place(tmp_path, "first", 2, wait_s=1, term_s=30), place(tmp_path, "second", 2, wait_s=1, term_s=30):
        for number in range(6):
            threads.append(threading.Thread(target=take, args=(number,)))
            threads[-1].start()
            wait_for(lambda number=number: tickets(tmp_path) == number + 3)
        assert entered == []
    for thread in threads:
        thread.join(30)
    assert most == [2]
    # two may enter in the same moment, and be counted in either order
    assert [sorted(entered[at : at + 2]) for at in (0, 2, 4)] == [[0, 1], [2, 3], [4, 5]]
    assert tickets(tmp_path) == 0


def test_whoever_gets_no_place_goes_on_without_and_takes_none_away(tmp_path):
    with place(tmp_path, "holds", 1, wait_s=1, term_s=60):
        began = time.monotonic()
        with place(tmp_path, "waits", 1, wait_s=0.2, term_s=60):
            assert time.monotonic() - began >= 0.2
        assert tickets(tmp_path) == 1, "the place of another was given back"
    assert tickets(tmp_path) == 0


def test_a_place_is_given_back_when_sampling_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), place(tmp_path, "fails", 1, wait_s=1, term_s=60):
        raise ZeroDivisionError
    assert tickets(tmp_path) == 0


def test_a_place_held_beyond_its_term_is_given_on_and_its_holder_does_not_mind(tmp_path):
    with place(tmp_path, "slow", 1, wait_s=1, term_s=0.2):
        began = time.monotonic()
        with place(tmp_path, "next", 1, wait_s=20, term_s=60):
            assert time.monotonic() - began < 15
            assert tickets(tmp_path) == 1
    assert tickets(tmp_path) == 0


def test_the_place_of_a_run_that_is_killed_is_free(tmp_path):
    holder = start_holder(tmp_path, "doomed")
    try:
        assert holder.stdout.readline().startswith("held")
        os.kill(holder.pid, signal.SIGKILL)
        began = time.monotonic()
        with place(tmp_path, "seed-1", 1, wait_s=40, term_s=60):
            assert time.monotonic() - began < 20
    finally:
        holder.kill()
        holder.communicate()
