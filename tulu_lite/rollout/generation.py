"""One life of the server: a process group from its start until its end. Used from the owner's supervising thread."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import TypeVar

from ..errors import ServerError, TuluLiteError
from ..files import write_json
from ..recipe.server import ServerSettings, is_loopback
from .control import Control, NoAnswer, Refused
from .guard import KEY_VARIABLE
from .process import end_group, private_folder
from .signs import StoppedProcess, abandoned_update, is_asleep
from .state import update_until

HEALTH_S = 1.0  # between looks at /health
STOP_S = 10.0  # for the warden to end its group in good order
ATTENDED_S = 0.1  # between looks at the server while a call to it is under way
LOG_LINES = 15
Answer = TypeVar("Answer")
_NOISE = re.compile(
    r"nanobind: | - leaked | - \.\.\. skipped|See https://nanobind"
)  # what libraries say at exit


_HINT = re.compile(
    r"See root cause above|Consider increasing with ulimit"
)  # of another error, or of one to come


class PortTaken(ServerError):
    """The port was free when it was chosen and is not any more."""


class StartFailed(ServerError):
    """A server that ended, or never answered, before it was ready."""

    def __init__(self, what: str, why: str, cure: str, explained: bool) -> None:
        super().__init__(what, why, cure)
        self.explained = explained  # its log names an error: another start would end the same way


class Stopping(Exception):
    """The owner ends the server; what was asked of it is not waited for."""


class Generation:
    """Starts the server, watches it, ends it. Not thread-safe: one thread owns it."""

    def __init__(
        self,
        settings: ServerSettings,
        model: Path,
        log: Path,
        number: int,
        push_dir: Path,
        replica: int = 0,  # which of several copies on this machine
    ) -> None:
        self.replica = replica
        self.settings, self.model, self.log, self.number = settings, model, log, number
        self.port = settings.port or free_port(settings.host)
        self.url = f"http://{'127.0.0.1' if settings.host == '0.0.0.0' else settings.host}:{self.port}"
        scores = settings.engine_args.get("runner") == "pooling"
        self.control = Control(self.url, settings.api_key(), settings.control_timeout_s, scores)
        self.folder = private_folder(short_temporary_folder())
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S")
            file.write(f"\n=== rollout server, start {number}, {stamp}, model {model}\n".encode())
            self._log_start = file.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tulu_lite.rollout.launch", str(self._spec(push_dir))],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                start_new_session=True,
            )
        self._health: Health | None = None
        self._canary: Canary | None = None
        self._stopped = StoppedProcess(self.process.pid)

    def _spec(self, push_dir: Path) -> Path:
        path = self.folder / "spec.json"
        spec = {
            "model": str(self.model),
            "host": self.settings.host,
            "port": self.port,
            "owner_pid": os.getpid(),
            "folders": [str(self.folder), str(push_dir)],
            "replica": self.replica,
            "settings": self.settings.model_dump(mode="json"),
        }
        write_json(path, spec)
        return path

    def _environment(self) -> dict[str, str]:
        environment = os.environ | {"TMPDIR": str(self.folder), "PYTHONUNBUFFERED": "1"}
        package_root = str(Path(__file__).resolve().parents[2])  # also when run from a checkout
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [package_root, environment.get("PYTHONPATH")])
        )
        key = self.settings.api_key()
        return environment if key is None else environment | {KEY_VARIABLE: key}

    def wait_until_up(self, stopping: Callable[[], bool]) -> bool:
        """Wait until the server answers a canary. False when `stopping` came true first.

        Raises ServerError at once when the process ends, or after `ready_timeout_s`.
        """
        deadline = time.monotonic() + self.settings.ready_timeout_s
        while not self.control.healthy(timeout_s=5.0):
            if stopping():
                return False
            if self.process.poll() is not None:
                raise self._start_failed(
                    f"ended with exit code {self.process.returncode} before it was ready"
                )
            if time.monotonic() > deadline:
                raise self._start_failed(f"was not ready within {self.settings.ready_timeout_s:.0f} s")
            time.sleep(0.1)
        try:
            self.attended(partial(self.control.canary, self.settings.canary_timeout_s), stopping)
        except Stopping:
            return False
        except ServerError as error:
            raise self._start_failed(f"did not answer its first request ({error})") from error
        self._health = Health(self.control)
        return True

    def _start_failed(self, how: str) -> ServerError:
        if self.process.poll() is not None and "address already in use" in self._log_text().lower():
            return PortTaken(
                f"port {self.port} was taken while the rollout server started", cure="start it again"
            )
        killed = self.process.poll() in (-signal.SIGKILL, 128 + signal.SIGKILL)  # whatever the log says
        told = "" if killed else _told(self._log_text())
        return StartFailed(
            f"the rollout server for {self.model} {how}{told}",
            f"the last lines of its log are\n{self.log_tail()}",
            f"the whole log is {self.log}",
            explained=bool(told),
        )

    def watch(self, folder: Path) -> None:
        """Begin to send canaries; `folder` is the server's, where weight updates announce themselves."""
        self._canary = Canary(self.control, self.settings, folder)

    def fault(self) -> str | None:
        """What is wrong with the server now, or None. Cheap: called several times a second."""
        if self.process.poll() is not None:
            return f"its process ended (exit code {self.process.returncode})"
        found = (self._health.fault if self._health else None) or self._stopped.look()
        if self._canary is None:
            return found
        return found or self._canary.fault or abandoned_update(self._canary.folder)

    def attended(self, call: Callable[[], Answer], stopping: Callable[[], bool]) -> Answer:
        """What a call to the server gives, for which its owner waits with an eye on the server: one that dies on the
        way may leave the call without an end. Raises what the call does, ServerError with the fault, or Stopping as soon
        as `stopping` comes true."""
        done: Future[Answer] = Future()

        def run() -> None:
            try:
                done.set_result(call())
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=run, name="rollout-call", daemon=True).start()
        while not wait([done], ATTENDED_S).done:
            if stopping():
                raise Stopping
            if fault := self.fault():
                raise ServerError(fault)
        return done.result()

    def _log_text(self) -> str:
        with self.log.open("rb") as file:
            file.seek(self._log_start)
            text = file.read()[-200_000:].decode(errors="replace")
        return "\n".join(line for line in text.splitlines() if not _NOISE.match(line))

    def log_tail(self) -> str:
        return "\n".join(f"    {line}" for line in self._log_text().rstrip().splitlines()[-LOG_LINES:])

    def end(self, at_once: bool = False) -> None:
        """End the whole group and remove its folder. Raises TimeoutError if a process survives SIGKILL.

        at_once: it failed, so nothing is gained by asking it to stop in good order, which takes seconds.
        """
        for watcher in (self._health, self._canary):
            if watcher is not None:
                watcher.stop()
        if self.process.poll() is None and not at_once:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_S)
        end_group(self.process.pid, grace_s=0.0)
        self.process.wait(STOP_S)
        shutil.rmtree(self.folder, ignore_errors=True)


class Health:
    """A thread that asks after an engine that died while its API server goes on: `fault` says so within seconds.

    After its engine's death the API server closes its door at once, but ends only when every connection has been
    closed: one that waits for a weight update never is.
    """

    def __init__(self, control: Control) -> None:
        self.control = control
        self.fault: str | None = None
        self._stop = threading.Event()
        threading.Thread(target=self._run, name="rollout-health", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        closed = 0
        while not self._stop.wait(HEALTH_S) and self.fault is None:
            try:
                self.control.call("GET", "/health", timeout_s=30.0)
                closed = 0
            except Refused as error:
                self.fault = f"its engine died ({error})"
            except NoAnswer as error:
                closed = 0 if error.timed_out else closed + 1  # too slow is for the canary to judge
                if closed == 3:
                    self.fault = "it takes no connections any more: its engine died"


class Canary:
    """A thread that has one token sampled now and then; `fault` says what it found, None while all is well."""

    def __init__(self, control: Control, settings: ServerSettings, folder: Path) -> None:
        self.control, self.settings, self.folder = control, settings, folder
        self.fault: str | None = None
        self._stop = threading.Event()
        threading.Thread(target=self._run, name="rollout-canary", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        limit = self.settings.canary_timeout_s
        while not self._stop.wait(self.settings.canary_interval_s) and self.fault is None:
            if is_asleep(self.folder):
                continue
            before = self._tokens_sampled()
            try:
                self.control.canary(limit)
            except NoAnswer as error:
                # A server whose places are all taken by long responses lets the canary wait, and samples on.
                busy = self._tokens_sampled() not in (None, before) or time.time() <= update_until(
                    self.folder
                )
                if error.timed_out and not busy:
                    self.fault = (
                        f"it is hung: for {limit:.0f} s it sampled no token, though it was asked for one"
                    )
            except Refused as error:
                if error.status >= 500:
                    self.fault = f"its engine failed: {error}"

    def _tokens_sampled(self) -> float | None:
        try:
            return self.control.tokens_sampled(timeout_s=10.0)
        except (NoAnswer, Refused):
            return None


def _told(log: str) -> str:
    """The most telling line of a log, as the end of a sentence: the last error that is not about another error."""
    pattern = re.compile(r"\b([A-Z]\w*(?:Error|Exception|Exit)\b: .+|error: .+)")
    lines = [found.group(1) for line in log.splitlines() if (found := pattern.search(line))]
    lines = [line for line in lines if not _HINT.search(line)]
    return f": {lines[-1][:300]}" if lines else ""


def free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def check_port(host: str, port: int) -> None:
    """Raise TuluLiteError at once when a port fixed in the settings cannot be had."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise TuluLiteError(
                f"server.port: port {port} of {host} cannot be used: {error.strerror}",
                "another server, perhaps one of an earlier run, listens there" if is_loopback(host) else "",
                f"end what listens there (ss -ltnp 'sport = :{port}' shows it), or set server.port to 0 for a free one",
            ) from None


def short_temporary_folder() -> Path:
    """Where the server's unix sockets can live: their paths must stay under 108 bytes."""
    folder = Path(tempfile.gettempdir())
    return folder if len(str(folder)) <= 40 else Path("/tmp")


def shared_memory_folder() -> Path:
    """Where pushed weights go: memory where there is some, else the temporary folder."""
    folder = Path("/dev/shm")
    return folder if folder.is_dir() and os.access(folder, os.W_OK) else Path(tempfile.gettempdir())


def check_model(model: Path) -> None:
    """Raise TuluLiteError when `model` is not a folder with a model that vLLM can load."""
    cure = "give a folder in Hugging Face format: config.json and *.safetensors"
    if not model.is_dir():
        raise TuluLiteError(f"the rollout server's model {model} is not a folder", cure=cure)
    try:
        json.loads((model / "config.json").read_text())
    except FileNotFoundError:
        raise TuluLiteError(f"the rollout server's model {model} has no config.json", cure=cure) from None
    except ValueError as error:
        raise TuluLiteError(f"{model / 'config.json'} is not JSON: {error}", cure=cure) from None
