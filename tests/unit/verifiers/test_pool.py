"""The pool under faults: nothing hangs, nothing is lost, no process is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from verifiers import (
    Sample,
    Status,
    Verdict,
    VerifierError,
    VerifierPool,
    dispatch,
    inside,
    process,
    protocol,
)
from verifiers.jobs import Job

FAULTS = """
import os, re, signal, sys, time

def fault(response, reference):
    what = response.split()[0]
    if what == "sleep":
        time.sleep(float(response.split()[1]))
    elif what == "hang":
        time.sleep(600)
    elif what == "hang_in_c":
        re.match(r"(a+)+$", "a" * 60 + "!")
    elif what == "exit":
        os._exit(3)
    elif what == "sysexit":
        sys.exit(0)
    elif what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "memory":
        hoard = []
        while True:
            hoard.append(bytearray(1 << 30))
    elif what == "print":
        print("garbage" * 1000); sys.stderr.write("x" * 100000); sys.stdout.flush()
        os.write(1, b"\\xff" * 100000)
    elif what == "garbage":
        for name in os.listdir("/proc/self/fd"):
            try:
                if "socket" in os.readlink(f"/proc/self/fd/{name}"):
                    os.write(int(name), b"\\xff" * 4096)
            except OSError:
                pass
    elif what == "fork":
        if os.fork() == 0:
            time.sleep(600)
    elif what == "recurse":
        def deeper(): return deeper()
        deeper()
    elif what == "pid":
        return 1.0, str(os.getpid())
    return response == reference
"""


@pytest.fixture
def faults(tmp_path: Path) -> str:
    (tmp_path / "faults.py").write_text(FAULTS)
    return f"{tmp_path / 'faults.py'}:fault"


@pytest.fixture
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(workers=2, timeout_s=1.0, memory_mb=512, cache_size=0) as made:
        yield made


def run(pool: VerifierPool, spec: str, responses: list[str], reference: str = "ok") -> list[Verdict]:
    return pool.verify([(spec, Sample(response, reference)) for response in responses])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pid: int, within: float = 10) -> bool:
    deadline = time.monotonic() + within
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def test_order_scores_and_names(pool: VerifierPool, faults: str) -> None:
    responses = [str(i) for i in range(300)]
    verdicts = run(pool, faults, responses, "7")
    assert [v.score for v in verdicts] == [float(r == "7") for r in responses]
    assert {v.verifier for v in verdicts} == {"fault"}
    assert verdicts[0].version.startswith("sha256:")
    assert len(pool.workers) == 2


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("hang", "timed out after 1 s"),
        ("hang_in_c", "timed out after 1 s"),
        ("stop", "timed out after 1 s"),
        ("exit", "its worker died (exit status 3)"),
        ("kill", "its worker died (SIGKILL, out of memory?)"),
        ("garbage", "its worker sent garbage"),
        ("memory", "MemoryError"),
        ("sysexit", "SystemExit"),
        ("recurse", "RecursionError"),
    ],
)
def test_a_fault_is_one_items_error_and_the_others_are_judged(
    pool: VerifierPool, faults: str, what: str, reason: str
) -> None:
    start = time.monotonic()
    verdicts = run(pool, faults, ["ok"] * 5 + [what] + ["ok"] * 5)
    assert time.monotonic() - start < 60
    assert verdicts[5].status is Status.ERROR
    assert verdicts[5].score is None
    assert verdicts[5].reason.startswith(reason)
    assert not reason.startswith("timed out") or verdicts[5].seconds >= 1.0
    assert [v.score for i, v in enumerate(verdicts) if i != 5] == [1.0] * 10
    assert pool.stats.errors == 1


def test_what_a_verifier_prints_is_no_message(pool: VerifierPool, faults: str) -> None:
    assert [v.score for v in run(pool, faults, ["print", "ok"])] == [0.0, 1.0]


def test_garbage_behind_good_messages_is_the_running_items_fault() -> None:
    reader = protocol.FrameReader(100)
    with pytest.raises(protocol.Garbage) as caught:
        reader.feed(protocol.encode([["start", 1, 0.0]]) + b"\xff" * 50)
    assert caught.value.before == [[["start", 1, 0.0]]]


def test_many_faults_at_once(pool: VerifierPool, faults: str) -> None:
    kinds = ["hang", "exit", "kill", "garbage", "ok", "sysexit"]
    verdicts = run(pool, faults, kinds * 2)
    assert [v.score for v in verdicts] == [1.0 if k == "ok" else None for k in kinds * 2]
    assert pool.stats.timeouts == 2


def test_a_killed_workers_children_die_with_it(pool: VerifierPool, faults: str) -> None:
    run(pool, faults, ["fork"])
    group = pool.workers[0].pid
    pool.close()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                assert os.getpgid(int(entry.name)) != group or gone(int(entry.name))
            except ProcessLookupError:
                continue


def test_worker_killed_from_outside_between_and_during_items(pool: VerifierPool, faults: str) -> None:
    run(pool, faults, ["ok"] * 4)
    for worker in pool.workers:
        os.kill(worker.pid, signal.SIGKILL)
    assert [v.score for v in run(pool, faults, ["ok"] * 4)] == [1.0] * 4

    def kill_soon() -> None:
        time.sleep(0.15)
        os.kill(pool.workers[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_soon)
    killer.start()
    verdicts = run(pool, faults, ["sleep 0.3", "sleep 0.3"])
    killer.join()
    assert sorted(str(v.status) for v in verdicts) == ["error", "incorrect"]


def test_a_verdict_that_comes_late_is_a_timeout_however_slow_we_were(pool: VerifierPool) -> None:
    judging = dispatch.Run(pool, [("late", Sample("x"))], None)
    worker = SimpleNamespace(spent=False)
    late = Verdict(1.0, Status.CORRECT, seconds=1.2)
    got: list[Verdict] = []
    job = Job(0, "late", '"late"', Sample("x"), 0, b"", got.append)
    judging.inside._done(worker, job, late)  # type: ignore[arg-type]
    assert (got[0].score, got[0].reason) == (None, "timed out after 1 s")


def test_loading_is_not_the_items_time(pool: VerifierPool, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(1.4)\ndef f(response): return True\n")
    assert pool.verify([(f"{tmp_path}/slow.py:f", Sample("x"))])[0].score == 1


def test_warming_is_not_the_items_time(pool: VerifierPool, tmp_path: Path) -> None:
    (tmp_path / "warmed.py").write_text(
        "import time\nfrom verifiers import verifier\nready = []\n"
        "def warm():\n    time.sleep(1.4)\n    ready.append(1)\n"
        "@verifier('warmed', warm=warm)\ndef f(response): return bool(ready)\n"
    )
    assert pool.verify([(f"{tmp_path}/warmed.py:f", Sample("x"))])[0].score == 1


def test_mathematics_is_imported_by_warming_and_not_before() -> None:
    code = (
        "import sys\nfrom verifiers import build\nbuilt = build('math')\nbefore = 'sympy' in sys.modules\n"
        "built.warm()\nprint(before, 'sympy' in sys.modules, 'math_verify' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["False", "True", "True"]


def test_a_verifier_that_never_loads(
    pool: VerifierPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inside, "LOAD_TIMEOUT_S", 0.5)
    (tmp_path / "never.py").write_text("import time\ntime.sleep(600)\n")
    (tmp_path / "dies.py").write_text("import os\nos._exit(9)\n")
    start = time.monotonic()
    verdicts = pool.verify(
        [(f"{tmp_path}/{f}.py:f", Sample(str(i))) for i in range(6) for f in ("never", "dies")]
    )
    assert time.monotonic() - start < 60  # and not ten minutes
    assert {v.status for v in verdicts} == {Status.ERROR}
    assert "did not load within" in verdicts[0].reason
    assert "while loading the verifier" in verdicts[1].reason


def test_workers_that_cannot_start(monkeypatch: pytest.MonkeyPatch, faults: str) -> None:
    monkeypatch.setattr(process.sys, "executable", "/bin/false")
    with VerifierPool(workers=2) as pool:
        verdicts = run(pool, faults, ["ok"] * 3)
    assert {v.reason.split(":")[0] for v in verdicts} == {"no verifier worker starts"}


def test_items_that_cannot_be_sent(pool: VerifierPool, faults: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_ITEM", 1000)
    items = [
        (faults, Sample("ok", "ok")),
        (faults, Sample("ok", object())),
        (faults, Sample("x" * 2000, "ok")),
        (faults, Sample(None, "ok")),  # type: ignore[arg-type]
        ("no_such", Sample("ok", "ok")),
        ({"use": object()}, Sample("ok", "ok")),
        (faults, Sample("\ud800 lone", "\ud800 lone")),
        ("exact", Sample("ok", "ok")),
    ]
    verdicts = pool.verify(items)  # type: ignore[arg-type]
    assert [v.score for v in verdicts] == [1.0, None, None, None, None, None, 1.0, 1.0]
    assert "not JSON serializable" in verdicts[1].reason
    assert "more than 1000" in verdicts[2].reason
    assert "no verifier is called" in verdicts[4].reason


def test_large_items_pass(pool: VerifierPool, faults: str) -> None:
    text = "y" * 3_000_000
    assert [v.score for v in run(pool, faults, [text] * 4, text)] == [1.0] * 4


def test_built_ins_that_are_cheap_run_here_and_long_ones_there(pool: VerifierPool) -> None:
    short = pool.verify([("number", Sample("72", 72))])[0]
    assert (short.score, pool.workers, pool.stats.inline) == (1.0, [], 1)
    assert pool.verify([("number", Sample("x" * 30_000 + " 72", 72))])[0].score == 1.0
    assert len(pool.workers) == 1


def test_the_cache_remembers_scores_and_no_errors(faults: str) -> None:
    with VerifierPool(workers=1, timeout_s=5, cache_size=2) as pool:
        first = run(pool, faults, ["pid"])[0].reason
        run(pool, faults, ["kill"])
        assert run(pool, faults, ["pid"])[0].reason == first  # another process would say another
        for _ in range(2):
            run(pool, faults, ["kill", "recurse"])
        assert pool.stats.cache_hits == 1
        run(pool, faults, ["a", "b"])  # pushes the first one out
        assert run(pool, faults, ["pid"])[0].reason != first


def test_workers_are_recycled(faults: str) -> None:
    with VerifierPool(workers=1, recycle_after=10, cache_size=0) as pool:
        pids = {v.reason for v in run(pool, faults, ["pid"] * 60)}
    assert 2 <= len(pids) <= 6


def test_results_are_handed_out_as_they_come(pool: VerifierPool, faults: str) -> None:
    seen: list[tuple[int, float | None]] = []
    items = [(faults, Sample(r, "ok")) for r in ("sleep 0.3", "ok", "ok")]
    pool.verify(items, on_result=lambda index, verdict: seen.append((index, verdict.score)))
    assert sorted(seen) == [(0, 0.0), (1, 1.0), (2, 1.0)]


def test_a_callback_that_raises_leaves_a_usable_pool(pool: VerifierPool, faults: str) -> None:
    def complain(index: int, verdict: Verdict) -> None:
        raise ValueError("mine")

    for item in (
        (faults, Sample("ok", "ok")),
        ("number", Sample("72", 72)),
        ("number", Sample("72", object())),
    ):
        with pytest.raises(ValueError, match="mine"):
            pool.verify([item] * 8, on_result=complain)
    assert [v.score for v in run(pool, faults, ["ok", "no"])] == [1.0, 0.0]


def test_several_threads_take_turns_and_ending_threads_kill_no_worker(
    pool: VerifierPool, faults: str
) -> None:
    results: dict[int, list[Verdict]] = {}

    def judge(number: int) -> None:
        results[number] = run(pool, faults, [str(number)] * 50, str(number))

    threads = [threading.Thread(target=judge, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert all([v.score for v in results[n]] == [1.0] * 50 for n in range(4))
    time.sleep(0.2)
    assert all(alive(worker.pid) for worker in pool.workers)
    assert pool.stats.restarts == 0


def test_a_forked_child_gets_workers_of_its_own(pool: VerifierPool, faults: str) -> None:
    run(pool, faults, ["ok"])
    child = os.fork()
    if child == 0:
        ok = [v.score for v in run(pool, faults, ["ok", "no"])] == [1.0, 0.0]
        pool.close()
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [v.score for v in run(pool, faults, ["ok"])] == [1.0]
    assert pool.stats.restarts == 0


def test_closing_leaves_no_process(faults: str) -> None:
    with VerifierPool(workers=2, cache_size=0) as pool:
        run(pool, faults, ["ok"] * 10)
        pids = [worker.pid for worker in pool.workers]
    assert len(pids) == 2
    assert not any(alive(pid) for pid in pids)
    with pytest.raises(VerifierError, match="closed"):
        run(pool, faults, ["ok"])


def test_workers_die_with_a_killed_parent(faults: str) -> None:
    code = f"""
        import os, sys, time
        from verifiers import Sample, VerifierPool
        pool = VerifierPool(workers=2, timeout_s=300, cache_size=0)
        pool.verify([({faults!r}, Sample("sleep 0.1", "ok"))] * 8)
        print(*[w.pid for w in pool.workers], flush=True)
        pool.verify([({faults!r}, Sample("hang_in_c", "ok"))] * 2)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert all(alive(pid) for pid in pids)
    time.sleep(0.3)  # both are inside a regular expression now and read no pipe
    parent.kill()
    parent.wait(timeout=10)
    parent.stdout.close()
    assert all(gone(pid) for pid in pids)


def test_settings_are_checked() -> None:
    for wrong in (
        {"workers": 0},
        {"timeout_s": 0},
        {"memory_mb": 1},
        {"recycle_after": 0},
        {"cache_size": -1},
    ):
        with pytest.raises(VerifierError, match=next(iter(wrong))):
            VerifierPool(**wrong)  # type: ignore[arg-type]


def test_stats_add_up(pool: VerifierPool, faults: str) -> None:
    run(pool, faults, ["sleep 0.2", "sleep 0.2", "exit"])
    stats = pool.stats.to_json()
    assert (stats["items"], stats["errors"], stats["restarts"]) == (3, 1, 1)
    assert 0.2 < stats["busy_s"] < 1
    assert 0 < stats["busy_share"] <= 1
    assert stats["items_per_s"] > 0


def test_workers_killed_while_loading_cost_no_verdict(tmp_path: Path) -> None:
    """From outside, and less often than a verifier that kills its worker by itself would need to be given up."""
    (tmp_path / "dies_once.py").write_text(
        "import os\nfrom pathlib import Path\n"
        f"tries = Path({str(tmp_path / 'tries')!r})\n"
        "with tries.open('a') as file: file.write('x')\n"
        "if len(tries.read_text()) in (1, 3, 4, 5): os.kill(os.getpid(), 9)\n"
        "def f(response):\n    return 1.0 if response != 'exit' else os._exit(1)\n"
    )
    with VerifierPool(workers=1, cache_size=0) as pool:
        assert run(pool, f"{tmp_path}/dies_once.py:f", ["a", "b"])[0].score == 1.0  # at the second try
        verdicts = run(
            pool, f"{tmp_path}/dies_once.py:f", ["exit", "c", "d"]
        )  # then dies three times, loading
        assert [v.score for v in verdicts] == [None, None, 1.0]
        assert verdicts[1].reason == "its worker died 3 times before it started on it"
