"""The owner of a run's rollout server: starts it, proves that it lives, starts it again when it does not. No torch."""

from __future__ import annotations

import os
import queue
import shutil
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..errors import ServerError, TuluLiteError
from ..files import suppress_os_errors
from ..recipe.server import ServerSettings
from .adapter_state import forget_adapters, read_adapters
from .control import Control
from .generation import (
    Generation,
    PortTaken,
    StartFailed,
    Stopping,
    check_model,
    check_port,
    shared_memory_folder,
    short_temporary_folder,
)
from .lease import forget_held
from .machine import cuda_build
from .process import private_folder, start_time, sweep_folders
from .signs import forget_abandoned_update, forget_sleep
from .state import (
    STATE_FILE,
    Phase,
    Push,
    ServerState,
    StateFile,
    UpdateHeld,
    forget_push,
    read_push,
    send_request,
    take_requests,
    update_under_way,
)

TICK_S = 0.1
OWED_S = 1.0  # between tries to write a last state that found no room
BUDGET_WINDOW_S = 3600.0
JOIN_S = 60.0


class RolloutServer:
    """One vLLM server for a whole run, owned by this process; other processes find it through `state_file`.

    A thread that lives as long as the server forks its processes (they die with the thread that forked them),
    watches them, and within `max_restarts` an hour replaces a dead or hung server by a new one that holds the weights
    last pushed. When the owner dies, however it dies, the server's processes end and its folders go.
    """

    def __init__(
        self, settings: ServerSettings, model_dir: Path, run_dir: Path, log_path: Path, replica: int = 0
    ) -> None:
        self.settings, self.replica = settings, replica
        self.folder, self.log = Path(run_dir).resolve(), Path(log_path).resolve()
        self.state_file = self.folder / STATE_FILE
        self._told = StateFile(self.state_file)
        self._model, self._base_version = Path(model_dir).resolve(), 0
        self._changed = threading.Condition()
        self._state = ServerState("stopped", reason="not started")
        self._stop = threading.Event()
        self._over = threading.Event()  # nobody takes orders any more
        self._thread: threading.Thread | None = None
        self._orders: queue.Queue[tuple[Path, int, Future[None] | None]] = queue.Queue()
        self._restarts: list[float] = []
        self._failure: ServerError | None = None
        self._current: Generation | None = None

    # What the owner calls

    def start(self) -> None:
        """Begin to start the server; returns at once. Raises TuluLiteError on what can be told before: a port in use,
        a missing key, a model that is not there."""
        if self._thread is not None:
            raise RuntimeError("this server was started already")
        check_model(self._model)
        self._check_key()
        if self.settings.port:
            check_port(self.settings.host, self.settings.port)
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep_folders(short_temporary_folder())
        forget_push(self.folder)
        forget_adapters(self.folder)
        forget_held(self.folder)
        (self.folder / "update.json").unlink(missing_ok=True)
        take_requests(self.folder)
        self._push_dir = private_folder(shared_memory_folder())
        self._set("starting", reason="")
        if self._told.failure is not None:  # here nothing is lost by saying so
            shutil.rmtree(self._push_dir, ignore_errors=True)
            raise self._told.failure
        self._thread = threading.Thread(target=self._supervise, name="rollout-server", daemon=True)
        self._thread.start()

    def wait_ready(self, deadline_s: float | None = None) -> None:
        """Block until the server answers. Raises ServerError when it failed or was stopped, or after `deadline_s`
        seconds (by default what starting may take, with all restarts)."""
        if deadline_s is None:
            deadline_s = self.settings.ready_timeout_s * (1 + self.settings.max_restarts)
        with self._changed:
            self._changed.wait_for(lambda: self._state.state in ("ready", "failed", "stopped"), deadline_s)
            if self._state.state != "ready":
                raise self._failure or ServerError(
                    f"the rollout server is {self._state.state}, not ready after {deadline_s:.0f} s: {self._state.reason}",
                    cure=f"its log is {self.log}",
                )

    def serve_model(self, model_dir: Path, version: int = 0, deadline_s: float | None = None) -> None:
        """Start the server again on another model (for one of the same shape, load_checkpoint is faster).

        version: what its weights are called. Blocks until it is ready; raises TuluLiteError, ServerError.
        """
        model = Path(model_dir).resolve()
        check_model(model)
        if self._thread is None:
            raise RuntimeError("start the server first")
        done: Future[None] = Future()
        self._orders.put((model, version, done))
        if self._over.is_set():
            self._refuse_orders()
        try:
            done.result(self.settings.ready_timeout_s * 2 if deadline_s is None else deadline_s)
        except TimeoutError:
            raise ServerError(
                f"the rollout server did not serve {model} in time", cure=f"its log is {self.log}"
            ) from None

    def stop(self) -> None:
        """End the server; leave no process, folder or weight file. May be called twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(JOIN_S)
            if self._thread.is_alive():
                raise ServerError(f"the rollout server's processes (group {self._state.pid}) do not end")
            self._told.settle()

    @property
    def state(self) -> ServerState:
        return self._state

    @property
    def url(self) -> str:
        return self._state.url

    def state_text(self) -> str:
        """One line for a display: ready, weights 12; restarting: its process ended (exit code 0)."""
        state = self._state
        if state.state == "ready":
            text = f"ready, weights {state.weight_version}"
        else:
            text = f"{state.state}: {state.reason.splitlines()[0]}" if state.reason else state.state
        return text + self._told.note

    def __enter__(self) -> RolloutServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # The supervising thread

    def _supervise(self) -> None:
        generation: Generation | None = None
        phase: Phase
        phase, reason = "stopped", "stopped by its owner"
        try:
            generation = self._first_start()
            while generation is not None and not self._stop.wait(TICK_S):
                generation = self._tick(generation)
        except Stopping:
            pass  # as when it is seen between two looks
        except TuluLiteError as error:
            self._failure = (
                error if isinstance(error, ServerError) else ServerError(error.what, error.why, error.cure)
            )
            phase, reason = "failed", "\n".join(error.lines())
        except Exception as error:  # the owner must learn of it, whatever it is
            self._failure = ServerError(f"the rollout server's supervision failed: {error!r}")
            phase, reason = "failed", str(self._failure)
        finally:
            try:
                if self._current is not None:
                    self._current.end()
            finally:
                shutil.rmtree(self._push_dir, ignore_errors=True)
                with suppress_os_errors():
                    forget_push(self.folder)
                    forget_adapters(self.folder)
                self._set(phase, reason=reason)
                self._over.set()
                self._refuse_orders()
            while not self._told.settle() and not self._stop.wait(OWED_S):
                pass  # clients read in server.json that there is nothing to wait for

    def _first_start(self) -> Generation | None:
        """A first start that was killed is tried again, within the budget; one whose log names an error is not."""
        try:
            return self._bring_up(first=True)
        except StartFailed as error:
            if error.explained or self._current is None:
                raise
            return self._again(self._current, error.what)

    def _tick(self, generation: Generation) -> Generation | None:
        """Look at the server once; returns the generation that serves after it, None when stopped."""
        self._told.settle()
        reason = generation.fault()
        for request in take_requests(self.folder):
            if request.get("action") == "serve":
                self._orders.put((Path(request["model"]), int(request["version"]), None))
            elif request.get("generation") == self._state.generation:
                reason = reason or str(request.get("reason"))
        if reason is not None:
            return self._again(generation, reason)
        if not self._orders.empty():
            return self._serve_next(generation)
        fault = self._follow_updates(generation)
        return generation if fault is None else self._again(generation, fault)

    def _follow_updates(self, generation: Generation) -> str | None:
        """Note a new weight version; load it when the server restarted just before it was recorded.

        Returns what went wrong with the server, or None.
        """
        push = read_push(self.folder)
        if push is None or push.version == self._state.weight_version or push.model != str(self._model):
            return None
        try:
            with update_under_way(self.folder, wait_s=0.0, lasts_s=8 * self.settings.control_timeout_s):
                push = read_push(self.folder) or push
                generation.attended(partial(self._load, generation.control, push), self._stop.is_set)
        except UpdateHeld:
            return None  # look again when it has ended
        except ServerError as error:
            return f"loading weight version {push.version} again failed: {error}"
        except TuluLiteError:
            return None  # no room for update.json: look again
        self._set("ready", weight_version=push.version)
        return None

    def _load(self, control: Control, push: Push) -> None:
        """Give a server the weights last pushed, unless it holds them."""
        if control.version() != push.version:
            control.load(push.files, push.digest, push.version, self.settings.weight_update)

    def _fill(self, control: Control) -> tuple[int, int]:
        """Give a new server what it should hold; returns its weight version, and the tokens it takes at most."""
        version = self._base_version
        control.set_version(version)
        push = read_push(self.folder)
        if push is not None and push.model == str(self._model):
            control.load(push.files, push.digest, push.version, "wait")
            version = push.version
        for adapter in read_adapters(self.folder).values():
            control.load_adapter(adapter.served_name, adapter.folder)
        return version, control.max_model_len()

    def _again(self, generation: Generation, reason: str) -> Generation | None:
        """Replace a server that failed, within the budget."""
        while True:
            self._set("restarting", reason=reason)
            tail = generation.log_tail()
            generation.end(at_once=True)
            with suppress_os_errors(), self.log.open("a") as log:  # the disk may be full
                log.write(f"\n=== rollout server, start {generation.number} ended: {reason}\n")
            now = time.monotonic()
            self._restarts = [when for when in self._restarts if now - when < BUDGET_WINDOW_S]
            if len(self._restarts) >= self.settings.max_restarts:
                raise ServerError(
                    f"the rollout server failed {len(self._restarts) + 1} times within an hour, last because {reason}",
                    f"the last lines of its log are\n{tail}",
                    f"the whole log is {self.log}; server.max_restarts is {self.settings.max_restarts}",
                )
            self._restarts.append(now)
            try:
                return self._bring_up(first=False)
            except TuluLiteError as error:
                reason = error.what
                assert self._current is not None
                generation = self._current

    def _serve_next(self, generation: Generation) -> Generation | None:
        model, version, done = self._orders.get()
        try:
            check_model(model)
        except TuluLiteError as error:
            if done is not None:
                done.set_exception(error)
            return generation
        self._set("restarting", reason=f"it is to serve {model}")
        generation.end()
        forget_push(self.folder)
        forget_adapters(self.folder)
        self._model, self._base_version = model, version
        try:
            after = self._bring_up(first=False)
        except (TuluLiteError, Stopping) as error:
            if done is not None:
                done.set_exception(_stopped() if isinstance(error, Stopping) else error)
            raise
        if done is not None and after is None:
            done.set_exception(_stopped())
        elif done is not None:
            done.set_result(None)
        return after

    def _bring_up(self, first: bool) -> Generation | None:
        """Start a server and give it the weights it should hold; None when the owner stops it meanwhile."""
        for attempt in range(3):
            number = self._state.generation + 1
            generation = Generation(
                self.settings, self._model, self.log, number, self._push_dir, self.replica
            )
            self._current = generation
            phase: Phase = "starting" if first else "restarting"
            self._set(
                phase,
                generation=number,
                pid=generation.process.pid,
                model=str(self._model),
                url=generation.url,
            )
            try:
                if not generation.wait_until_up(self._stop.is_set):
                    return None
                break
            except PortTaken:
                generation.end()
                if self.settings.port or attempt == 2:
                    raise
        forget_sleep(self.folder)
        forget_abandoned_update(self.folder)
        version, longest = generation.attended(partial(self._fill, generation.control), self._stop.is_set)
        generation.watch(self.folder)
        self._set("ready", reason="", weight_version=version, max_model_len=longest)
        return generation

    def _check_key(self) -> None:
        try:
            key = self.settings.api_key()
        except KeyError:
            key = ""
        if key == "":
            raise TuluLiteError(
                f"server.api_key_env: the environment variable {self.settings.api_key_env} is not set",
                "every request to the rollout server must bring its key",
                f"export {self.settings.api_key_env}=... and start again",
            )

    def _refuse_orders(self) -> None:
        """Tell those who wait for another model. Called by the supervising thread at its end, and by whoever orders
        after it."""
        while True:
            try:
                done = self._orders.get_nowait()[2]
            except queue.Empty:
                return
            if done is not None:
                done.set_exception(
                    ServerError(f"the rollout server is {self._state.state}: {self._state.reason}")
                )

    def _set(self, phase: Phase, **changes: object) -> None:
        """Change the state and tell everyone; only the supervising thread does, after start()."""
        settings = self.settings
        constant = {
            "owner_pid": os.getpid(),
            "owner_started": start_time(os.getpid()) or 0,
            "push_dir": str(self._push_dir),
            "max_num_seqs": settings.max_num_seqs,
            "max_loras": settings.max_loras or 0,
            "max_lora_rank": settings.max_lora_rank or 16,
            "on_cpu": settings.device != "cuda" and not cuda_build(),
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


def _stopped() -> ServerError:
    return ServerError("the rollout server was stopped by its owner before it served another model")


def request_restart(folder: Path, generation: int, reason: str) -> None:
    """Ask the owner to start the server anew, unless it has done so since `generation`."""
    send_request(folder, {"action": "restart", "generation": generation, "reason": reason})
