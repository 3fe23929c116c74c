"""A server that somebody else started: watched, and given its weights again when it comes back, never restarted."""

from __future__ import annotations

import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

from ..errors import ServerError, TuluLiteError
from ..recipe.server import ServerSettings
from .adapter_state import forget_adapters, read_adapters
from .control import Control, NoAnswer, Refused
from .generation import check_model, shared_memory_folder
from .process import private_folder, start_time
from .state import STATE_FILE, Phase, ServerState, StateFile, forget_push, read_push, take_requests

LOOK_S = 1.0
FAILED_LOOKS = 2  # in a row, before it is taken for gone


class RemoteServer:
    """One server of `server.urls`, with the interface of RolloutServer.

    It is `restarting` while it does not answer: whoever keeps it must bring it back. When it answers again it is
    first given the weights and adapters last pushed.
    """

    def __init__(self, settings: ServerSettings, url: str, model_dir: Path, run_dir: Path) -> None:
        self.settings, self.url = settings, url.rstrip("/")
        self.folder = Path(run_dir).resolve()
        self.state_file = self.folder / STATE_FILE
        self._told = StateFile(self.state_file)
        self._model = Path(model_dir).resolve()
        self._changed = threading.Condition()
        self._state = ServerState("stopped", reason="not started")
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to watch it. Raises TuluLiteError when the key is missing or the model is no model."""
        check_model(self._model)
        self.folder.mkdir(parents=True, exist_ok=True)
        forget_push(self.folder)
        forget_adapters(self.folder)
        take_requests(self.folder)
        parent = Path(self.settings.shared_folder) if self.settings.shared_folder else shared_memory_folder()
        parent.mkdir(parents=True, exist_ok=True)
        self._push_dir = private_folder(parent)
        os.chmod(self._push_dir, 0o755)  # the server may run as another user
        self._set("starting", reason="")
        if self._told.failure is not None:
            shutil.rmtree(self._push_dir, ignore_errors=True)
            raise self._told.failure
        self._state.key()  # raises when the variable is not set
        self.control = Control(self.url, self._state.key(), self.settings.control_timeout_s)
        self._thread = threading.Thread(target=self._watch, name="rollout-remote", daemon=True)
        self._thread.start()

    def wait_ready(self, deadline_s: float | None = None) -> None:
        """Block until it answers. Raises ServerError."""
        limit = self.settings.ready_timeout_s if deadline_s is None else deadline_s
        with self._changed:
            self._changed.wait_for(lambda: self._state.state in ("ready", "failed", "stopped"), limit)
            if self._state.state != "ready":
                raise ServerError(
                    f"the rollout server at {self.url} is {self._state.state}, not ready after {limit:.0f} s",
                    self._state.reason,
                    "see that it runs and that this machine reaches it; it is listed in server.urls",
                )

    def serve_model(self, model_dir: Path, version: int = 0, deadline_s: float | None = None) -> None:
        raise TuluLiteError(
            f"the rollout server at {self.url} cannot be made to serve {model_dir}",
            "somebody else started it, on a model of another shape",
            "start it on that model",
        )

    def stop(self) -> None:
        """Watch it no longer, and take away the files of pushed weights. The server itself goes on."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2 * self.settings.control_timeout_s)
            shutil.rmtree(self._push_dir, ignore_errors=True)
            forget_push(self.folder)
            forget_adapters(self.folder)
            if self._state.state != "failed":
                self._set("stopped", reason="stopped by its owner")

    @property
    def state(self) -> ServerState:
        return self._state

    # The watching thread

    def _watch(self) -> None:
        try:
            self._look_on()
        except Exception as error:  # nobody would learn of it: this thread is all that tells
            self._set("failed", reason=f"watching the server at {self.url} failed: {error!r}")

    def _look_on(self) -> None:
        failed = FAILED_LOOKS  # it must prove itself first
        while not self._stop.is_set():
            self._told.settle()
            asked = take_requests(self.folder)
            if any(request.get("action") == "serve" for request in asked):
                self._set("failed", reason=f"the server at {self.url} runs a model of another shape")
                return
            if any(request.get("generation") == self._state.generation for request in asked):
                failed = FAILED_LOOKS
                self._set("restarting", reason=str(asked[-1].get("reason")))
            if self.control.healthy():
                if failed >= FAILED_LOOKS:
                    self._welcome()
                failed = 0 if self._state.state == "ready" else failed
            else:
                failed += 1
                if failed == FAILED_LOOKS and self._state.state == "ready":
                    self._set("restarting", reason=f"the server at {self.url} does not answer")
            self._stop.wait(LOOK_S)

    def _welcome(self) -> None:
        """Give a server that answers, for the first time or again, what it should hold; then say that it is ready."""
        try:
            push = read_push(self.folder)
            version = 0
            if push is not None:
                self.control.load(push.files, push.digest, push.version, "wait")
                version = push.version
            else:
                self.control.set_version(0)
            for adapter in read_adapters(self.folder).values():
                self.control.load_adapter(adapter.served_name, adapter.folder)
            longest = self.control.max_model_len()
        except (NoAnswer, Refused, ServerError) as error:
            told = error.what
            if isinstance(error, Refused) and error.status == 404:
                told += "; it must be started by `tulu-lite serve`, or with VLLM_SERVER_DEV_MODE=1 and --enable-scale-out"
            self._set(self._state.state, reason=told)
            return
        self._set(
            "ready",
            reason="",
            generation=self._state.generation + 1,
            weight_version=version,
            max_model_len=longest,
        )

    def _set(self, phase: Phase, **changes: object) -> None:
        settings = self.settings
        constant = {
            "url": self.url,
            "model": str(self._model),
            "owner_pid": os.getpid(),
            "owner_started": start_time(os.getpid()) or 0,
            "push_dir": str(self._push_dir),
            "max_num_seqs": settings.max_num_seqs,
            "max_loras": settings.max_loras or 0,
            "max_lora_rank": settings.max_lora_rank or 16,
            "on_cpu": settings.device == "cpu",
            "weight_update": settings.weight_update,
            "api_key_env": settings.api_key_env,
            "ready_timeout_s": settings.ready_timeout_s,
            "request_timeout_s": settings.request_timeout_s,
            "control_timeout_s": settings.control_timeout_s,
        }
        with self._changed:
            self._state = replace(self._state, **{**constant, "state": phase, **changes})  # type: ignore[arg-type]
            self._changed.notify_all()
            self._told.write(self._state)
