"""How a server does: its state, versions, load and speed, its restarts and why, and how to ask it."""

from __future__ import annotations

import os
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from ..errors import ServerError
from ..recipe.server import is_loopback
from .adapter_state import read_adapters
from .control import Control
from .launch import MODEL_NAME
from .process import start_time
from .state import STATE_FILE, ServerState, read_push, read_state

_STARTED = re.compile(r"^=== rollout server, start (\d+), (\S+ \S+), model (.*)$")
_ENDED = re.compile(r"^=== rollout server, start (\d+) ended: (.*)$")
_METRICS = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "cache_used": "vllm:kv_cache_usage_perc",
    "tokens_sampled": "vllm:generation_tokens_total",
    "prompt_tokens": "vllm:prompt_tokens_total",
}
LOG_BYTES = 4 << 20  # of the log's end are searched for restarts


def status_of_folder(folder: Path, watch_s: float = 1.0) -> dict[str, Any]:
    """server.json's fields and what the server says of itself; state "none" where the folder has no server.

    watch_s: for how long tokens are counted to tell tokens a second.
    """
    folder = Path(folder)
    state = read_state(folder / STATE_FILE)
    if state is None:
        return {"state": "none", "answers": False, "folder": str(folder)}
    push = read_push(folder)
    version = push.version if push is not None and push.model == state.model else state.weight_version
    told: dict[str, Any] = asdict(state) | {"folder": str(folder), "weight_version": version}
    if state.members:
        told["members"] = [_member(name, watch_s) for name in state.members]
        told["answers"] = any(member["answers"] for member in told["members"])
        return told
    told |= {"answers": False, "uptime_s": uptime(state.pid) if state.state == "ready" else None}
    told["restarts"] = restarts(_log_of(folder))
    told["adapters"] = {name: adapter.version for name, adapter in read_adapters(folder).items()}
    if state.state == "ready":
        told |= _asked(state, watch_s)
        told["ask"] = how_to_ask(state)
    return told


def _log_of(folder: Path) -> Path:
    """log.txt; that of one of several copies lies beside their folders."""
    own = folder / "log.txt"
    return own if own.exists() else folder.parent / f"log-{folder.name.rpartition('-')[2]}.txt"


def _member(name: str, watch_s: float) -> dict[str, Any]:
    if not name.startswith(("http://", "https://")):
        return status_of_folder(Path(name), watch_s)
    remote = ServerState("ready", url=name, owner_pid=os.getpid())
    return {"state": "somebody else's", "url": name} | _asked(remote, watch_s)


def _asked(state: ServerState, watch_s: float) -> dict[str, Any]:
    """What only the server itself knows; {answers: False, trouble} when it does not say."""
    try:
        control = Control(state.url, state.key(), 5.0)
        if not control.healthy():
            return {"answers": False, "trouble": "it does not answer /health"}
        before = measures(control)
        time.sleep(watch_s)
        after = measures(control)
    except ServerError as error:
        return {"answers": False, "trouble": error.what}
    rate = (after["tokens_sampled"] - before["tokens_sampled"]) / watch_s if watch_s else 0.0
    return {"answers": True, **after, "tokens_per_s": round(rate, 1)}


def measures(control: Control) -> dict[str, float]:
    """The sums of vLLM's own metrics over its engines. Raises NoAnswer or Refused."""
    totals = dict.fromkeys(_METRICS, 0.0)
    for line in control._exchange("GET", "/metrics", None, 5.0).decode().splitlines():
        for name, metric in _METRICS.items():
            if line.startswith((metric + "{", metric + " ")):
                totals[name] += float(line.rpartition(" ")[2])
    return totals


def uptime(pid: int) -> float | None:
    """Seconds since the process started; None when it is gone."""
    ticks = start_time(pid)
    if ticks is None:
        return None
    since_boot = float(Path("/proc/uptime").read_text().split()[0])
    return round(since_boot - ticks / os.sysconf("SC_CLK_TCK"), 1)


def restarts(log: Path) -> list[dict[str, Any]]:
    """{start, when, reason} of each start that ended, oldest first, since the last first start; from the log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    found: list[dict[str, Any]] = []
    begun: dict[int, str] = {}
    for line in lines:
        if started := _STARTED.match(line):
            if int(started[1]) == 1:
                found.clear()
            begun[int(started[1])] = started[2]
        elif ended := _ENDED.match(line):
            found.append({"start": int(ended[1]), "began": begun.get(int(ended[1])), "reason": ended[2]})
    return found


def how_to_ask(state: ServerState) -> list[str]:
    """Commands that reach the server as it is."""
    key = f" -H 'Authorization: Bearer '${state.api_key_env}" if state.api_key_env else ""
    secret = f"os.environ['{state.api_key_env}']" if state.api_key_env else "'none needed'"
    return [
        f"curl{key} {state.url}/v1/models",
        f"curl{key} {state.url}/v1/chat/completions -H 'Content-Type: application/json' "
        f'-d \'{{"model": "{MODEL_NAME}", "messages": [{{"role": "user", "content": "Hello"}}]}}\'',
        f"openai.OpenAI(base_url='{state.url}/v1', api_key={secret})",
    ]


def show(told: dict[str, Any]) -> Table:
    """The status for people to read."""
    table = Table(show_header=False, pad_edge=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _lines(told):
        table.add_row(name, value)
    return table


def _lines(told: dict[str, Any]) -> list[tuple[str, str]]:
    if told["state"] == "none":
        return [("state", f"there is no server: {told['folder']} has no {STATE_FILE}")]
    reason = f" ({told['reason'].splitlines()[0]})" if told.get("reason") else ""
    lines = [("state", told["state"] + reason)]
    if told.get("members"):
        for number, member in enumerate(told["members"], 1):
            lines += [("", ""), (f"server {number}", member.get("url", ""))]
            lines += [(f"  {name}", value) for name, value in _lines(member)]
        return lines
    answers = "yes" if told["answers"] else f"no: {told.get('trouble', 'it is not ready')}"
    lines += [("answers", answers), ("url", told.get("url", ""))]
    if "model" in told:
        lines += [("model", told["model"]), ("weights", f"version {told['weight_version']}")]
        loaded = ", ".join(f"{name} (version {version})" for name, version in told["adapters"].items())
        lines.append(("adapters", loaded or "none"))
    if told["answers"]:
        load = f"{told['running']:.0f} running, {told['waiting']:.0f} waiting, cache {told['cache_used']:.0%} full"
        speed = (
            f"{told['tokens_per_s']:,.0f} tokens/s now, {told['tokens_sampled']:,.0f} sampled since its start"
        )
        lines += [("load", load), ("speed", speed)]
    if told.get("uptime_s") is not None:
        lines.append(("up for", f"{told['uptime_s'] / 60:.1f} min, start {told['generation']}"))
    if "restarts" in told:
        lines.append(("restarts", str(len(told["restarts"]))))
        lines += [("", f"start {row['start']} ended: {row['reason']}") for row in told["restarts"][-5:]]
    lines += [
        ("ask it" if number == 0 else "", command) for number, command in enumerate(told.get("ask", []))
    ]
    host = told.get("url", "").removeprefix("http://").rpartition(":")[0]
    if host and not is_loopback(host.strip("[]")) and told.get("api_key_env"):
        lines.append(("key", f"every request must bring the value of {told['api_key_env']}"))
    return lines
