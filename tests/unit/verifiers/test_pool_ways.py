"""Ways of running: deadlines of their own, async verifiers, compositions whose parts run in different places."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from verifiers import Sample, Status, VerifierError, VerifierPool, build, eventloop
from verifiers.sandbox import SandboxUnavailable, probe

FILE = """
import asyncio, os, threading, time
from verifiers import verifier

@verifier("brief", timeout_s=0.4)
def brief(response):
    time.sleep(float(response)); return True

@verifier("patient")
class Patient:
    def __init__(self, seconds: float):
        self.timeout_s = seconds
    def verify(self, response):
        time.sleep(float(response)); return True

@verifier("where")
def where(response):
    return 1.0, str(os.getpid())

@verifier("there", timeout_s=30)
async def there(response, reference=None):
    if response == "raise": raise RuntimeError("oh")
    if response == "timeout": raise TimeoutError("theirs")
    await asyncio.sleep(0)
    return (1.0 if reference in (None, response) else 0.0), f"{os.getpid()} {threading.current_thread().name}"

@verifier("waits", timeout_s=0.4)
async def waits(response):
    await asyncio.sleep(float(response)); return True

@verifier("stubborn", timeout_s=0.3, concurrency=1)
async def stubborn(response):
    if response == "ok": return True
    while True:
        try: await asyncio.sleep(600)
        except asyncio.CancelledError: pass

@verifier("blocks", timeout_s=60)
async def blocks(response):
    time.sleep(float(response)); return True

@verifier("together", concurrency=4, cache=False)
class Together:
    def __init__(self): self.now = self.most = 0
    async def verify(self, response):
        self.now += 1; self.most = max(self.most, self.now)
        await asyncio.sleep(0.02)
        self.now -= 1
        return 1.0, str(self.most)
    def stats(self): return {"most": self.most}
    async def aclose(self): open("closed", "w").close()

@verifier("counts")
def counts(response):
    with open("calls", "a") as file: file.write("x")
    return response == "yes"
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all: an async verifier's file is loaded by this process, and its names with it."""
    folder = tmp_path_factory.mktemp("ways")
    (folder / "ways.py").write_text(FILE)
    return folder


@pytest.fixture(autouse=True)
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, which the verifiers write into."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pool(here: Path) -> Iterator[VerifierPool]:
    with VerifierPool(workers=2, timeout_s=5.0, base_dir=here) as made:
        yield made


def test_a_verifiers_own_deadline_counts_shorter_and_longer(pool: VerifierPool) -> None:
    pool.timeout_s = 1.0
    patient = {"use": "ways.py:Patient", "args": {"seconds": 6.0}}
    short, long, default = pool.verify(
        [
            ("ways.py:brief", Sample("600")),
            (patient, Sample("1.3")),
            ({"use": "ways.py:Patient", "args": {"seconds": 6.0}, "timeout_s": 0.3}, Sample("600")),
        ]
    )
    assert short.reason == "timed out after 0.4 s"
    assert long.score == 1.0
    assert default.reason == "timed out after 0.3 s"


def test_async_verifiers_run_in_this_process_many_at_once(pool: VerifierPool) -> None:
    verdicts = pool.verify([("ways.py:there", Sample(str(i), str(i % 2))) for i in range(200)])
    assert [v.score for v in verdicts] == [1.0, 1.0] + [0.0] * 198
    assert {v.reason for v in verdicts} == {f"{os.getpid()} verifier-async"}
    verdicts = pool.verify([("ways.py:Together", Sample(str(i))) for i in range(20)])
    assert max(int(v.reason) for v in verdicts) == 4
    assert pool.report()["own"] == {"together": {"most": 4}}


def test_async_faults_are_errors_within_their_deadline(pool: VerifierPool) -> None:
    start = time.monotonic()
    verdicts = pool.verify(
        [
            ("ways.py:waits", Sample("600")),
            ("ways.py:waits", Sample("0.01")),
            ("ways.py:there", Sample("raise")),
            ("ways.py:there", Sample("timeout")),
            ("ways.py:there", Sample(None)),  # type: ignore[arg-type]
            ("ways.py:there", Sample("x", finished=False)),
        ]
    )
    assert [v.score for v in verdicts] == [None, 1.0, None, None, None, 0.0]
    assert [v.reason for v in verdicts[:4]] == [
        "timed out after 0.4 s",
        "",
        "RuntimeError: oh",
        "TimeoutError: theirs",
    ]
    assert verdicts[0].seconds >= 0.4
    assert time.monotonic() - start < 10


def test_one_that_ignores_its_cancelling_is_given_up_and_holds_no_slot(pool: VerifierPool) -> None:
    verdicts = pool.verify([("ways.py:stubborn", Sample(text)) for text in ("no", "ok", "never")])
    assert [v.score for v in verdicts] == [None, 1.0, None]
    assert verdicts[2].reason == "timed out after 0.3 s"


def test_one_that_blocks_the_loop_is_an_error_and_the_others_go_on(
    pool: VerifierPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eventloop, "BLOCKED_S", 0.8)
    items = [("ways.py:blocks", Sample("30")), *(("ways.py:there", Sample(str(i))) for i in range(20))]
    start = time.monotonic()
    verdicts = pool.verify(items)
    assert time.monotonic() - start < 25
    assert verdicts[0].reason == "it blocks the event loop: an async verifier must await, not compute"
    assert [v.score for v in verdicts[1:]] == [1.0] * 20
    assert pool.stats.loops == 1


def test_slow_async_items_hold_up_nothing_else(pool: VerifierPool) -> None:
    seen: list[int] = []
    slow = {"use": "ways.py:waits", "timeout_s": 20}
    items = [(slow, Sample("0.8")), ("ways.py:where", Sample("x")), ("number", Sample("1", 1))]
    verdicts = pool.verify(items, on_result=lambda index, _: seen.append(index))
    assert [v.score for v in verdicts] == [1.0] * 3
    assert seen[-1] == 0


def test_async_verifiers_without_a_pool_and_inside_a_loop(here: Path) -> None:
    built = build("ways.py:there", here)
    assert built.verify(Sample("a", "a")).score == 1.0

    async def inside() -> float | None:
        return built.verify(Sample("a", "b")).score

    assert asyncio.run(inside()) == 0.0
    assert build("ways.py:waits", here).verify(Sample("600")).reason == "timed out after 0.4 s"


def test_closing_ends_the_thread_and_lets_verifiers_close(here: Path, outputs: Path) -> None:
    before = set(threading.enumerate())
    with VerifierPool(base_dir=here) as pool:
        pool.verify([("ways.py:Together", Sample("x"))])
        made = set(threading.enumerate()) - before
        assert "verifier-async" in {thread.name for thread in made}
    assert not any(thread.is_alive() for thread in made)
    assert (outputs / "closed").exists()


def test_a_sum_of_parts_here_in_a_worker_and_in_the_loop(pool: VerifierPool) -> None:
    spec = {
        "weighted": [
            {"use": "number", "weight": 2},
            {"use": "ways.py:where", "weight": 1},
            {"spec": {"gate": ["ways.py:there", "no_commas"]}, "weight": 1},
        ]
    }
    verdict, other = pool.verify([(spec, Sample("7, 7", 7)), (spec, Sample("8", 7))])
    assert verdict.score == 0.5 + 0.25 + 0.0
    assert other.score == 0.0 + 0.25 + 0.0
    assert verdict.verifier == "weighted(number,where,gate(there,no_commas))"
    parts = dict(part.split("=", 1) for part in verdict.reason.split("; "))
    assert f"({os.getpid()} verifier-async)" not in parts["where"]
    assert parts["number"] == "1"
    alone = pool.verify([({"all_of": ["ways.py:there", "ways.py:where"]}, Sample("x"))])[0]
    assert alone.score == 1.0
    assert f"there=1 ({os.getpid()} verifier-async); where=1 (" in alone.reason


def test_a_closed_gate_starts_nothing_behind_it(pool: VerifierPool, outputs: Path) -> None:
    spec = {"gate": ["ways.py:there", "ways.py:counts"]}
    shut, open_ = pool.verify([(spec, Sample("no", "other")), (spec, Sample("yes", "yes"))])
    assert (shut.score, open_.score) == (0.0, 1.0)
    assert shut.reason.startswith("gate there: ")
    assert (outputs / "calls").read_text() == "x"


def test_a_part_without_a_score_leaves_a_mixed_whole_without_one(pool: VerifierPool) -> None:
    spec = {"all_of": ["ways.py:there", "ways.py:where"], "name": "both"}
    verdict = pool.verify([(spec, Sample("raise"))])[0]
    assert (verdict.score, verdict.reason, verdict.verifier) == (None, "there: RuntimeError: oh", "both")


def test_references_by_name_reach_the_parts_of_a_mixed_whole(pool: VerifierPool) -> None:
    spec = {"all_of": [{"use": "ways.py:there", "name": "a"}, {"use": "exact", "name": "b"}, "ways.py:where"]}
    reference = {"a": "x", "b": "x", "where": None}
    assert pool.verify([(spec, Sample("x", reference))])[0].score == 1.0


def test_a_choice_between_places(pool: VerifierPool) -> None:
    spec = {
        "choose": {"a": "ways.py:there", "b": {"scale": "ways.py:where", "by": 10}},
        "otherwise": "number",
    }
    rows = [Sample("1", "1", info={"source": source}) for source in ("a", "b", "c")]
    verdicts = pool.verify([(spec, row) for row in rows])
    assert [v.reward for v in verdicts] == [1.0, 10.0, 1.0]


def test_repeats_in_one_call_are_judged_once(pool: VerifierPool, outputs: Path) -> None:
    verdicts = pool.verify([("ways.py:counts", Sample("yes"))] * 50 + [("ways.py:counts", Sample("no"))] * 50)
    assert [v.score for v in verdicts] == [1.0] * 50 + [0.0] * 50
    assert (outputs / "calls").read_text() == "xx"
    assert pool.stats.cache_hits == 98
    assert pool.stats.to_json()["verifiers"]["counts"]["items"] == 100


def test_repeats_of_a_fault_and_of_what_changes_are_judged_each(pool: VerifierPool) -> None:
    verdicts = pool.verify([("ways.py:there", Sample("raise"))] * 5)
    assert {v.status for v in verdicts} == {Status.ERROR}
    assert pool.stats.cache_hits == 0
    pool.verify([("ways.py:Together", Sample("same"))] * 5)
    assert pool.stats.cache_hits == 0


def test_no_more_is_taken_in_than_there_is_room_for(
    pool: VerifierPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verifiers.dispatch.AHEAD_ITEMS", 16)
    verdicts = pool.verify([("ways.py:where", Sample(str(i))) for i in range(300)])
    assert [v.score for v in verdicts] == [1.0] * 300
    assert 0 < pool.stats.most_waiting <= 16


def test_figures_by_verifier(pool: VerifierPool) -> None:
    pool.verify(
        [("ways.py:brief", Sample("600")), ("ways.py:there", Sample("1")), ("number", Sample("1", 1))]
    )
    each = pool.stats.to_json()["verifiers"]
    assert each["brief"]["timeouts"] == each["brief"]["errors"] == 1
    assert each["there"]["items"] == each["number"]["items"] == 1
    assert 0 <= each["there"]["p50_s"] <= each["there"]["p95_s"] < 5


CONFINED = """
import os, socket, time
from verifiers import verifier

@verifier("shut_in", runs="sandbox", timeout_s=20)
def shut_in(response):
    if response == "hang":
        time.sleep(600)
    if response == "write":
        open(os.environ.get("NOTHING", "/") + "tmp/shut_in_was_here", "w")
    if response == "secret":
        return float("PRIVATE_KEY" in os.environ)
    if response == "net":
        socket.create_connection(("127.0.0.1", int(os.environ.get("PORT", "9"))), 2)
    return 1.0, str(os.getpid())
"""


def test_sandboxed_verifiers_have_confined_workers_of_their_own(
    pool: VerifierPool, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strongest = probe().strongest
    assert strongest is not None
    monkeypatch.setenv("PRIVATE_KEY", "x")
    for folder in (outputs, outputs.parent, outputs.parent.parent):  # root's workers become somebody else
        folder.chmod(0o755)
    (outputs / "confined.py").write_text(CONFINED)  # not in the pool's own folder
    spec, short = f"{outputs}/confined.py:shut_in", {"timeout_s": 0.5}
    items = [(spec, Sample(what)) for what in ("ok", "write", "secret", "net")]
    items.append(({"use": spec, **short}, Sample("hang")))
    items.append(({"all_of": [spec, "ways.py:where", "ways.py:there"]}, Sample("both")))
    with VerifierPool(base_dir=pool.base_dir, sandbox=str(strongest), allow_weak_sandbox=True) as confined:
        fine, write, secret, net, hang, both = confined.verify(items)
        assert {worker.kind for worker in confined.workers} <= {"worker", "sandbox"}
    assert (fine.score, fine.tier) == (1.0, str(strongest))
    assert write.status is Status.ERROR
    assert secret.score == 0.0
    assert net.status is Status.ERROR
    assert hang.reason == "timed out after 0.5 s"
    assert (both.score, both.tier) == (1.0, str(strongest))


def test_a_sandbox_that_is_not_to_be_had_is_an_error_and_nothing_else_stops(
    pool: VerifierPool, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise SandboxUnavailable("no such tier here")

    monkeypatch.setattr("verifiers.sandbox.choose", refuse)
    (outputs / "confined.py").write_text(CONFINED)
    spec = f"{outputs}/confined.py:shut_in"
    refused, fine = pool.verify([(spec, Sample("ok")), ("ways.py:where", Sample("x"))])
    assert refused.status is Status.ERROR
    assert refused.reason == "no sandboxed verifier worker starts: SandboxUnavailable: no such tier here"
    assert fine.score == 1.0


def test_the_demanded_tier_reaches_the_workers(here: Path, outputs: Path) -> None:
    (outputs / "asks.py").write_text(
        "from verifiers.demand import demanded\n"
        "def asks(response):\n    d = demanded().joined('landlock', False)\n"
        "    return 1.0, f'{demanded().tier} {d.tier} {d.allow_weak}'\n"
    )
    for demand, said in (
        ({"sandbox": "bubblewrap"}, "bubblewrap bubblewrap False"),
        ({"sandbox": "limits", "allow_weak_sandbox": True}, "limits landlock True"),
        ({}, "None landlock False"),
    ):
        with VerifierPool(workers=1, **demand) as pool:  # type: ignore[arg-type]
            assert pool.verify([(f"{outputs}/asks.py:asks", Sample("x"))])[0].reason == said
    with pytest.raises(VerifierError, match="no sandbox tier is called 'docker'"):
        VerifierPool(sandbox="docker")


def test_a_pools_demand_holds_for_programs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    strongest = str(probe().strongest)
    sample = Sample("```python\ndef one():\n    return 1\n```", ["assert one() == 1"])
    with VerifierPool(workers=1, sandbox=strongest, allow_weak_sandbox=True) as pool:
        verdict = pool.verify([("code_asserts", sample)])[0]
    assert (verdict.score, verdict.tier) == (1.0, strongest)
    monkeypatch.setenv("PATH", "/nowhere")  # no bubblewrap to be found
    with VerifierPool(workers=1, sandbox="bubblewrap") as pool:
        verdict = pool.verify([("code_asserts", sample)])[0]
    assert (verdict.score, verdict.status) == (None, Status.ERROR)
    assert "bubblewrap" in verdict.reason
