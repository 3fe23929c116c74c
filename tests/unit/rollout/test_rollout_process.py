"""Processes and folders that do not outlive their owner."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tulu_lite.files import write_json
from tulu_lite.rollout.process import (
    PREFIX,
    boot_id,
    end_group,
    group_members,
    is_alive,
    is_librarys,
    pid_namespace,
    private_folder,
    shared_memory_of,
    start_time,
    sweep_folders,
)

ROOT = Path(__file__).parents[3]


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def python(code, **options):
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **options)


def test_child_dies_with_its_parent_however_the_parent_dies(tmp_path):
    child = "import signal, time\nfrom tulu_lite.rollout.process import die_with_parent\ndie_with_parent(signal.SIGKILL)\ntime.sleep(60)"
    parent = python(
        f"import subprocess, sys, time\np = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid) + '\\n')\ntime.sleep(60)"
    )
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n"))
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: b"die_with_parent" in Path(f"/proc/{pid}/cmdline").read_bytes())
    time.sleep(0.5)  # until it has asked the kernel
    parent.kill()
    parent.wait()
    wait_for(lambda: not is_alive(pid))


def test_child_whose_parent_is_gone_already_ends_at_once():
    code = "import signal\nfrom tulu_lite.rollout.process import die_with_parent\ndie_with_parent(signal.SIGKILL, 1)\nprint('still here')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=30)
    assert done.stdout == b""


def test_end_group_kills_what_ignores_sigterm_and_removes_its_shared_memory():
    name = Path(f"/dev/shm/psm_test_{os.getpid()}")
    code = (
        "import signal, subprocess, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"f = open({str(name)!r}, 'w+')\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\nprint('up', flush=True)\ntime.sleep(60)"
    )
    leader = python(code, start_new_session=True, stdout=subprocess.PIPE)
    assert leader.stdout.readline() == b"up\n"
    members = group_members(leader.pid)
    assert len(members) == 2
    assert shared_memory_of(members) == {name}
    end_group(leader.pid, grace_s=0.3)
    leader.wait(5)
    assert leader.returncode == -signal.SIGKILL
    assert not group_members(leader.pid)
    assert not name.exists()


def test_end_group_leaves_the_users_own_files_in_shared_memory():
    """A model that was put there, a log at its top, and what a process of another group has open."""
    folder = Path(tempfile.mkdtemp(prefix="run-", dir="/dev/shm"))
    model, log = folder / "psm_model.safetensors", Path(f"/dev/shm/log-{os.getpid()}.txt")
    shared = Path(f"/dev/shm/psm_test_shared_{os.getpid()}")
    for file in (model, log, shared):
        file.write_bytes(b"x" * 10)
    code = (
        f"import time\nfiles = [open(name) for name in {[str(model), str(log), str(shared)]!r}]\n"
        "print('up', flush=True)\ntime.sleep(60)"
    )
    leader = python(code, start_new_session=True, stdout=subprocess.PIPE)
    try:
        assert leader.stdout.readline() == b"up\n"
        with shared.open():
            end_group(leader.pid, grace_s=0)
        leader.wait(5)
        assert model.exists()
        assert log.exists()
        assert shared.exists()
    finally:
        shutil.rmtree(folder)
        for file in (log, shared):
            file.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("path", "librarys"),
    [
        ("/dev/shm/psm_1a2b3c4d", True),
        ("/dev/shm/VLLM_OBJECT_STORAGE_SHM_BUFFER_ab12", True),
        ("/dev/shm/vllm_offload_0.mmap", True),
        ("/dev/shm/model.safetensors", False),
        ("/dev/shm/run/psm_1a2b3c4d", False),
        ("/tmp/psm_1a2b3c4d", False),
    ],
)
def test_which_shared_memory_is_a_librarys(path, librarys):
    assert is_librarys(Path(path)) is librarys


def test_end_group_leaves_pushed_files_that_were_being_read():
    """An engine that dies with an adapter's file mapped must find it again when it is started anew."""
    folder = private_folder(Path("/dev/shm"))
    file = folder / "adapter-seed-1@31-x" / "adapter_model.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"x" * 10)
    code = f"import time\nf = open({str(file)!r})\nprint('up', flush=True)\ntime.sleep(60)"
    leader = python(code, start_new_session=True, stdout=subprocess.PIPE)
    try:
        assert leader.stdout.readline() == b"up\n"
        assert shared_memory_of(group_members(leader.pid)) == {file}
        end_group(leader.pid, grace_s=0)
        leader.wait(5)
        assert file.exists()
    finally:
        shutil.rmtree(folder)


def test_sweep_takes_folders_of_dead_owners_only(tmp_path):
    mine = private_folder(tmp_path)
    dead = subprocess.Popen(["true"])
    dead.wait()
    here = {"boot": boot_id(), "pid_namespace": pid_namespace()}
    gone = {"pid": dead.pid, "started": 5}
    folders = {}
    for name, owner in {
        "dead": gone | here,
        "reused": {"pid": os.getpid(), "started": 5} | here,  # our pid, another process's start time
        "alive": {"pid": os.getpid(), "started": start_time(os.getpid())} | here,
        "another-machine": gone | here | {"boot": "x"},
        "another-container": gone | here | {"pid_namespace": "pid:[1]"},
        "earlier-version": gone,
        "earlier-version-old": gone,
        "earlier-version-alive": {"pid": os.getpid(), "started": start_time(os.getpid())},
    }.items():
        folders[name] = tmp_path / f"{PREFIX}{name}"
        folders[name].mkdir()
        write_json(folders[name] / "owner.json", owner)
    for name in ("earlier-version-old", "earlier-version-alive"):
        os.utime(folders[name], (time.time() - 90_000,) * 2)
    (tmp_path / f"{PREFIX}being-made").mkdir()
    other = tmp_path / "another-program"
    other.mkdir()
    swept = {folders["dead"], folders["reused"], folders["earlier-version-old"]}
    assert set(sweep_folders(tmp_path)) == swept
    assert {folder for folder in folders.values() if not folder.exists()} == swept
    assert mine.exists()
    assert other.exists()
    assert (tmp_path / f"{PREFIX}being-made").exists()
    assert mine.stat().st_mode & 0o077 == 0


def test_a_folder_says_where_its_owners_pid_counts(tmp_path):
    dead = python(
        "from pathlib import Path\nfrom tulu_lite.rollout.process import private_folder\n"
        f"private_folder(Path({str(tmp_path)!r}))"
    )
    assert dead.wait(30) == 0
    (left,) = tmp_path.iterdir()
    owner = json.loads((left / "owner.json").read_text())
    assert (owner["boot"], owner["pid_namespace"]) == (boot_id(), os.readlink("/proc/self/ns/pid"))
    assert sweep_folders(tmp_path) == [left]


def test_zombie_is_not_alive():
    child = subprocess.Popen(["true"])
    wait_for(lambda: not is_alive(child.pid))
    child.wait()
