"""A server by hand: it says where it is, answers, and ends cleanly on Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

from tulu_lite.records import Prompt
from tulu_lite.rollout.client import RolloutClient, Sampling
from tulu_lite.rollout.process import group_members
from tulu_lite.rollout.serve import status

CODE = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tulu_lite.recipe.server import ServerSettings
from tulu_lite.rollout.serve import serve
serve(Path({model!r}), ServerSettings.model_validate_json({settings!r}), Path({run!r}))
"""


def test_serve_until_interrupted(tiny_dir, tmp_path, server_settings):
    assert status(tmp_path) == {"state": "none", "answers": False}
    settings = server_settings().model_dump_json()
    code = CODE.format(
        root=str(Path(__file__).parents[2]), model=str(tiny_dir), run=str(tmp_path), settings=settings
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    timer = threading.Timer(180, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("ready"):
                break
        now = status(tmp_path)
        assert now["answers"]
        assert lines[-1] == f"ready, weights 0, {now['url']}\n"
        with RolloutClient(tmp_path) as client:
            groups = client.generate([Prompt("a", "", (3, 4), "test")], Sampling(2, 1.0, 4, 0))
        assert [len(rollout.token_ids) for rollout in groups[0].rollouts] == [4, 4]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stdout.read().splitlines()[-1] == "stopped: stopped by its owner"
    finally:
        timer.cancel()
        process.kill()
    after = status(tmp_path)
    assert (after["state"], after["answers"]) == ("stopped", False)
    assert not group_members(now["pid"])
    assert not Path(now["push_dir"]).exists()
