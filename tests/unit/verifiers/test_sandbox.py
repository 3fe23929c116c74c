"""The sandbox as its callers see it: tiers, limits, input and output, and how things end."""

from __future__ import annotations

import mmap
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from verifiers.cli import main
from verifiers.errors import VerifierError
from verifiers.sandbox import (
    Limits,
    Process,
    SandboxUnavailable,
    Tier,
    attacks,
    choose,
    confine,
    landlock,
    launch,
    launch_python,
    linux,
    probe,
    probing,
    proving,
    report,
    seccomp,
    supervision,
    watch,
)
from verifiers.sandbox.cgroups import candidates
from verifiers.sandbox.visible import outermost

TIERS = probe().available
STRONGEST = TIERS[0]
each_tier = pytest.mark.parametrize("tier", TIERS, ids=str)
needs_namespaces = pytest.mark.skipif(STRONGEST < Tier.NAMESPACES, reason="this machine forbids namespaces")


def soon(seconds: float = 20.0) -> float:
    """A deadline that a slow machine keeps."""
    return time.monotonic() + seconds


# ---------------------------------------------------------------- choosing


def test_the_probe_says_why_a_tier_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = probe()
    assert set(found.why_not) == set(Tier)
    assert found.available == sorted(found.available, reverse=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    probing._try.cache_clear()
    try:
        assert "not on PATH" in probing.why_not(Tier.BUBBLEWRAP)
    finally:
        probing._try.cache_clear()


@pytest.mark.skipif(not shutil.which("unshare"), reason="no `unshare` program to compare with")
def test_where_namespaces_can_be_made_the_tier_is_there() -> None:
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", *user, "--mount", "--net", "--pid", "--fork", "true"]
    if subprocess.run(command, capture_output=True, check=False).returncode == 0 and seccomp.supported():
        assert probing.why_not(Tier.NAMESPACES) == ""
    if landlock.abi() and seccomp.supported():
        assert probing.why_not(Tier.LANDLOCK) == ""


@pytest.mark.parametrize(
    ("there", "demand", "weak", "expected"),
    [
        (set(Tier), None, False, Tier.BUBBLEWRAP),
        ({Tier.LIMITS, Tier.LANDLOCK}, None, False, Tier.LANDLOCK),
        ({Tier.LIMITS, Tier.LANDLOCK}, "landlock", False, Tier.LANDLOCK),
        ({Tier.LIMITS, Tier.LANDLOCK}, "namespaces", False, None),
        ({Tier.LIMITS, Tier.LANDLOCK}, Tier.NAMESPACES, True, None),
        ({Tier.LIMITS}, None, False, None),  # never without consent
        ({Tier.LIMITS}, None, True, Tier.LIMITS),
        ({Tier.LIMITS}, "limits", False, Tier.LIMITS),
        (set(Tier), "LIMITS", False, Tier.BUBBLEWRAP),  # that or stronger
        (set(), None, True, None),
    ],
)
def test_choose_is_the_strongest_that_was_demanded_or_an_error(
    monkeypatch: pytest.MonkeyPatch,
    there: set[Tier],
    demand: Tier | str | None,
    weak: bool,
    expected: Tier | None,
) -> None:
    monkeypatch.setattr(probing, "why_not", lambda tier: "" if tier in there else "forbidden here")
    if expected is not None:
        assert choose(demand, weak) is expected
        return
    with pytest.raises(SandboxUnavailable) as fault:
        choose(demand, weak)
    assert isinstance(fault.value, VerifierError)
    assert "forbidden here" in fault.value.why and fault.value.cure


def test_an_unknown_tier_is_named_with_those_there_are() -> None:
    with pytest.raises(
        SandboxUnavailable, match="no tier 'docker'.*bubblewrap, namespaces, landlock, limits"
    ):
        choose("docker")


@pytest.mark.parametrize(
    "wrong", [{"memory_mb": 8}, {"cpu_s": 0}, {"processes": 0}, {"open_files": 2.5}, {"file_mb": True}]
)
def test_limits_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(VerifierError, match=next(iter(wrong))):
        Limits(**wrong)  # type: ignore[arg-type]


# ---------------------------------------------------------------- input and output


@each_tier
def test_a_program_reads_writes_and_ends(tier: Tier) -> None:
    source = "import sys\nprint(int(input()) + 1, flush=True)\nprint('note', file=sys.stderr)\nsys.exit(3)"
    with launch_python(source, tier=tier, files={"a/b.txt": b"x"}) as program:
        program.write(b"41\n", soon())
        assert program.read(100, soon()) == b"42\n"
        assert program.read(100, soon()) == b""
        assert program.wait(soon()) == "exit status 3"
        assert program.stderr_tail() == "note\n"
        assert program.tier is tier and program.ending and program.ending.status == 3


@each_tier
def test_any_program_can_be_launched_with_files_environment_and_arguments(tier: Tier) -> None:
    source = (
        "import os, sys\nprint(sys.argv[1:], open('a/b').read(), os.environ.get('WORD'), len(os.environ) < 4)"
    )
    argv = [sys.executable, "-I", "-S", "-c", source, "x", "y z"]
    with launch(argv, tier=tier, files={"a/b": b"inside"}, env={"WORD": "w"}) as program:
        assert program.communicate(b"", 1000, soon()) == b"['x', 'y z'] inside w True\n"


def test_in_place_has_only_the_given_environment() -> None:
    with launch_python("import os; print(dict(os.environ))", tier=STRONGEST, env={"WORD": "w"}) as program:
        assert program.communicate(b"", 1000, soon()) == b"{'WORD': 'w'}\n"


def test_in_place_is_as_a_fresh_interpreter() -> None:
    source = (
        "import sys, __main__, random\nprint(__name__, sys.argv, sys.flags.no_site, sys.path == sys.path[:],\n"
        "      'verifiers' in sys.modules, __main__.__dict__ is globals(), [k for k in globals() if k[0] != '_'])\n"
        "import atexit, threading\natexit.register(print, 'at exit')\n"
        "threading.Thread(target=lambda: (__import__('time').sleep(0.1), print('thread'))).start()"
    )
    with launch_python(source, ["x"], tier=STRONGEST) as program:
        said = program.communicate(b"", 1000, soon()).decode()
    names = "['sys', 'random']"
    assert said == f"__main__ ['-c', 'x'] 1 True False True {names}\nthread\nat exit\n"


@pytest.mark.parametrize(
    ("source", "status", "error"),
    [
        ("raise ValueError('why')", 1, "ValueError: why"),
        ("import sys; sys.exit('words')", 1, "words"),
        ("import sys; sys.exit(256 + 7)", 7, ""),
        ("x = (", 1, "SyntaxError"),
        ("import os; os._exit(9)", 9, ""),
    ],
)
def test_endings_are_pythons_own(source: str, status: int, error: str) -> None:
    with launch_python(source, tier=STRONGEST) as program:
        assert program.wait(soon()) == f"exit status {status}"
        assert error in program.stderr_tail()


def test_two_randoms_differ() -> None:
    def draw() -> bytes:
        with launch_python("import random; print(random.random())", tier=STRONGEST) as program:
            return program.communicate(b"", 100, soon())

    assert draw() != draw()


def test_large_input_and_output_at_once_do_not_lock() -> None:
    data = b"line of text\n" * 300_000
    source = "import sys\nfor line in sys.stdin: sys.stdout.write(line)"
    with launch_python(source, tier=STRONGEST) as program:
        assert program.communicate(data, 1 << 24, soon()) == data


def test_output_is_cut_at_the_cap_and_not_waited_for() -> None:
    with launch_python("while True: print('x' * 1000)", tier=STRONGEST) as program:
        assert 100_000 < len(program.communicate(b"", 100_000, soon())) < 300_000


def test_reading_stops_at_the_deadline() -> None:
    with launch_python("import time; time.sleep(100)", tier=STRONGEST) as program:
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            program.read(10, start + 0.2)
        with pytest.raises(TimeoutError):
            program.wait(time.monotonic() + 0.1)
        with pytest.raises(TimeoutError):
            program.write(b"x" * (1 << 20), time.monotonic() + 0.2)
        assert time.monotonic() - start < 10


def test_a_flood_of_errors_blocks_nothing_and_its_end_is_kept() -> None:
    source = "import sys\nfor n in range(100000): sys.stderr.write(f'{n}\\n')\nprint('done')"
    with launch_python(source, tier=STRONGEST) as program:
        assert program.communicate(b"", 100, soon()) == b"done\n"
        program.wait(soon())
        assert program.stderr_tail().endswith("99999\n") and len(program.stderr_tail()) <= 4096


def test_writing_to_a_program_that_ended_is_a_broken_pipe() -> None:
    with launch_python("", tier=STRONGEST) as program:
        program.wait(soon())
        with pytest.raises(BrokenPipeError):
            program.write(b"x", soon())


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", "a\0b"])
def test_file_names_stay_inside(name: str) -> None:
    with pytest.raises(SandboxUnavailable, match="no relative name"):
        launch_python("", tier=STRONGEST, files={name: b""})


def test_a_program_that_is_not_there_is_said_so() -> None:
    with launch(["/no/such/program"], tier=STRONGEST) as program:
        assert "cannot be started" in program.wait(soon())


def test_passed_descriptors_keep_their_numbers() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        source = f"import socket\ns = socket.socket(fileno={theirs.fileno()})\ns.send(s.recv(10) + b'!')"
        with launch_python(source, tier=STRONGEST, pass_fds=[theirs.fileno()]):
            ours.settimeout(20)
            ours.send(b"hello")
            assert ours.recv(10) == b"hello!"


# ---------------------------------------------------------------- limits and ends


@pytest.mark.parametrize("tier", {STRONGEST, TIERS[-1]}, ids=str)
def test_limits_end_it_in_words(tier: Tier) -> None:
    with launch_python("while True: pass", tier=tier, limits=Limits(cpu_s=1)) as program:
        assert program.wait(soon(30)) == "killed: over its limit of 1 s of CPU time"
    with launch_python("x = bytearray(1 << 29)", tier=tier, limits=Limits(memory_mb=200)) as program:
        assert program.wait(soon()) == "exit status 1"
        assert "MemoryError" in program.stderr_tail()


@needs_namespaces
def test_memory_is_counted_over_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there are no control groups: then the supervisor adds up."""
    monkeypatch.setenv("VERIFIERS_CGROUP", "/nowhere")
    supervision.shut_down()
    source = (
        "import os, time\nfor _ in range(5):\n    if os.fork() == 0:\n"
        "        x = b'x' * (80 << 20); time.sleep(60)\ntime.sleep(60)"
    )
    try:
        with launch_python(source, tier=STRONGEST, limits=Limits(processes=8, memory_mb=200)) as program:
            assert program.wait(soon()) == "killed: its processes used more than 200 MB together"
    finally:
        supervision.shut_down()


def test_a_tree_is_weighed() -> None:
    proc = os.open("/proc", os.O_PATH)
    before = watch.tree_mb(proc, os.getpid())
    with mmap.mmap(-1, 50 << 20) as held:  # pages of its own: a heap may have room from before
        held.write(b"x" * (50 << 20))
        assert 40 < watch.tree_mb(proc, os.getpid()) - before < 110
    os.close(proc)


def test_kill_can_be_called_again_and_leaving_the_block_kills() -> None:
    with launch_python("import time; time.sleep(100)", tier=STRONGEST) as program:
        assert program.kill() == "killed" == program.kill()
    with (
        pytest.raises(RuntimeError),
        launch_python("import time; time.sleep(100)", tier=STRONGEST) as program,
    ):
        raise RuntimeError
    assert program.ending and program.ending.words == "killed"
    with pytest.raises(ProcessLookupError):
        os.kill(program.pid, 0)


@each_tier
def test_a_killed_supervisor_takes_all_with_it_and_is_replaced(tier: Tier) -> None:
    with launch_python("import time; time.sleep(100)", tier=tier) as program:
        handle = next(h for place, h in supervision._supervisors.items() if place.tier is tier)
        handle._popen.kill()
        assert program.wait(soon()) == "killed with its supervisor"
    with launch_python("print(1)", tier=tier) as program:
        assert program.read(10, soon()) == b"1\n"


def test_launches_from_many_threads() -> None:
    said: list[bytes] = []

    def one(number: int) -> None:
        with launch_python(f"print({number})", tier=STRONGEST) as program:
            said.append(program.communicate(b"", 100, soon()))

    threads = [threading.Thread(target=one, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == [b"%d\n" % n for n in range(8)]


def test_a_fork_of_this_process_has_supervisors_of_its_own() -> None:
    with launch_python("input(); print('still')", tier=STRONGEST) as program:
        child = os.fork()
        if child == 0:
            with launch_python("print(1)", tier=STRONGEST) as other:
                said = other.read(10, soon())
            supervision.shut_down()
            os._exit(0 if said == b"1\n" else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert program.communicate(b"\n", 100, soon()) == b"still\n"


# ---------------------------------------------------------------- a worker inside


@pytest.mark.parametrize("tier", [tier for tier in TIERS if tier >= Tier.LANDLOCK], ids=str)
def test_a_confined_worker_reads_and_writes_only_where_it_may(tier: Tier, tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and str(folder).startswith(str(tmp_path.parent.parent)):
            folder.chmod(0o755)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "rules.py").write_text("answer = 42")
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o777)
    source = (
        "import socket, sys\nsys.path.insert(0, sys.argv[2] + '/lib')\nimport rules, numpy\n"
        "from verifiers import Sample, build\n"
        "s = socket.socket(fileno=int(sys.argv[1]))\n"
        "score = build('exact').verify(Sample('a', 'a')).score\n"
        "open(sys.argv[2] + '/out/mark', 'w').write('x')\n"
        "try: open(sys.argv[2] + '/bad', 'w'); wrote = True\n"
        "except OSError: wrote = False\n"
        "try: socket.socket(); net = True\nexcept OSError: net = False\n"
        "s.send(repr((rules.answer, int(numpy.ones(3).sum()), score, wrote, net)).encode())\ns.recv(1)"
    )
    ours, theirs = socket.socketpair()
    root = str(Path(__file__).resolve().parents[3])
    with ours, theirs, open(tmp_path / "errors", "w+b") as errors:
        worker: Process = confine(
            [sys.executable, "-c", source, str(theirs.fileno()), str(tmp_path)],
            tier=tier,
            limits=Limits(cpu_s=None, memory_mb=4096),
            read_paths=[str(tmp_path / "lib")],
            write_dir=str(tmp_path / "out"),
            pass_fds=[theirs.fileno()],
            env={"PYTHONPATH": root, "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
            stderr=errors.fileno(),
        )
        theirs.close()
        with worker:
            ours.settimeout(30)
            said = ours.recv(100)
        errors.seek(0)
        assert said == b"(42, 3, 1.0, False, False)", errors.read().decode()
    assert (tmp_path / "out" / "mark").read_text() == "x"


# ---------------------------------------------------------------- parts


@pytest.mark.skipif(not seccomp.supported(), reason="no seccomp here")
def test_the_filter_fits_and_names_no_dangerous_call() -> None:
    strict = seccomp.program(seccomp.Rules(may_fork=False))
    assert len(strict) % 8 == 0 and len(strict) // 8 <= 4096
    for column, dangerous in (
        (0, {101, 165, 272, 308, 310, 41, 42, 49, 50, 321, 425}),
        (1, {117, 40, 97, 268}),
    ):
        for low, high in seccomp._ranges(column):
            assert not [number for number in dangerous if low <= number <= high]


def test_the_report_fails_when_the_chosen_tier_lets_through_what_it_claims_to_stop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attack = attacks.FILES[0]
    outcomes = {tier: [proving.Outcome(attack, tier, tier > Tier.LIMITS, "seen")] for tier in Tier}
    monkeypatch.setattr(report, "prove", outcomes.__getitem__)
    monkeypatch.setattr(report, "probe", lambda: probing.Probe(dict.fromkeys(Tier, "")))
    assert main(["sandbox"]) == 0
    assert "not stopped" in capsys.readouterr().out  # of the limits tier, which does not claim it
    outcomes[Tier.BUBBLEWRAP] = [proving.Outcome(attack, Tier.BUBBLEWRAP, False, "GOT it")]
    assert main(["sandbox"]) == 1
    said = capsys.readouterr().out
    assert "BROKEN read a secret: GOT it" in said and "0 of 1 attacks stopped, 1 against" in said


def test_the_report_tells_why_and_what_would_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reasons = {tier: "forbidden here" if tier > Tier.LIMITS else "" for tier in Tier}
    monkeypatch.setattr(report, "probe", lambda: probing.Probe(reasons))
    assert main(["sandbox", "--probe"]) == 1  # nothing that shuts a program in
    said = capsys.readouterr().out
    assert said.count("no: forbidden here") == 3 and said.count("cure: ") == 3


def test_nested_paths_are_covered_by_the_outer_one() -> None:
    assert outermost(["/usr/lib/x", "/usr/lib", "/usr/lib64", "/usr/lib/"]) == ["/usr/lib", "/usr/lib64"]


def test_control_groups_are_looked_for_where_this_process_is(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/user.slice/a\n")
    (tmp_path / "proc/self/mounts").write_text("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n")
    base = str(tmp_path / "sys/fs/cgroup/user.slice/a")
    assert candidates("", str(tmp_path)) == [(2, {"memory": base, "pids": base})]
    (tmp_path / "proc/self/cgroup").write_text("5:memory:/m\n4:pids:/\n")
    (tmp_path / "proc/self/mounts").write_text(
        "c /cg/memory cgroup rw,memory 0 0\nc /cg/pids cgroup rw,pids 0 0\n"
    )
    found = candidates("", str(tmp_path))
    assert found == [(1, {"memory": str(tmp_path / "cg/memory/m"), "pids": str(tmp_path / "cg/pids") + "/"})]
    assert candidates("/given") == [(2, {"memory": "/given", "pids": "/given"})]


def test_elsewhere_the_calls_fail_softly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "ON_LINUX", False)
    assert landlock.abi() == 0 and linux.capabilities() == 0
    with pytest.raises(OSError, match="not on"):
        linux.unshare(0)
    assert not seccomp.supported()
