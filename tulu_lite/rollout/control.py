"""The server's control routes, each call with a deadline: health, canary, and the steps of a weight update."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from ..errors import ServerError
from .launch import MODEL_NAME


class NoAnswer(ServerError):
    """The server did not answer: nobody listens, the connection broke, or the deadline passed."""

    def __init__(self, message: str, timed_out: bool) -> None:
        super().__init__(message)
        self.timed_out = timed_out


class Refused(ServerError):
    """The server answered with an HTTP error, or (status 200) with what no rollout server says."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def engine_died(self) -> bool:
        """Whether the fault is the engine's death, not the request."""
        return self.status >= 500 and "EngineCore encountered an issue" in self.what


class Control:
    """Blocking calls to one server. deadlines in seconds. scores: it serves a reward model, which samples nothing and is
    never given other weights."""

    def __init__(self, url: str, key: str | None, timeout_s: float, scores: bool = False) -> None:
        self.scores = scores
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.host, self.port = parts.hostname, parts.port or 80
        self.headers = {"Content-Type": "application/json"}
        if key:
            self.headers["Authorization"] = f"Bearer {key}"
        self.timeout_s = timeout_s

    def call(self, method: str, path: str, body: Any = None, timeout_s: float | None = None) -> Any:
        """The answer's JSON, or None when it has none. Raises NoAnswer or Refused."""
        text = self._exchange(method, path, body, timeout_s)
        with _understood(path):
            return json.loads(text) if text else None

    def send(self, method: str, path: str, body: Any = None, timeout_s: float | None = None) -> None:
        """A call whose answer is no JSON and says nothing more. Raises NoAnswer or Refused."""
        self._exchange(method, path, body, timeout_s)

    def _exchange(self, method: str, path: str, body: Any, timeout_s: float | None) -> bytes:
        timeout = self.timeout_s if timeout_s is None else timeout_s
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        what = path.partition("?")[0]
        try:
            connection.request(method, path, None if body is None else json.dumps(body), self.headers)
            answer = connection.getresponse()
            text = answer.read()
        except TimeoutError:
            raise NoAnswer(f"the rollout server did not answer {what} within {timeout:.0f} s", True) from None
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(
                f"the connection to the rollout server broke at {what}: {error!r}", False
            ) from None
        finally:
            connection.close()
        if answer.status >= 400:
            raise Refused(
                f"the rollout server refused {what} (HTTP {answer.status}): {explain(text)}", answer.status
            )
        return text

    def healthy(self, timeout_s: float = 5.0) -> bool:
        """Whether the API server answers and thinks that its engine lives. A stopped engine passes this."""
        try:
            self.send(
                "GET", "/health", timeout_s=timeout_s
            )  # whether it is one of ours is asked by what follows
        except (NoAnswer, Refused):
            return False
        return True

    def canary(self, timeout_s: float) -> None:
        """Have one token sampled, or one scored. Raises NoAnswer or Refused."""
        if self.scores:
            self.call(
                "POST", "/classify", {"input": [[0]], "use_activation": False, "priority": -1}, timeout_s
            )
            return
        sampling = {"max_tokens": 1, "temperature": 0.0, "detokenize": False}
        body = {"token_ids": [0], "sampling_params": sampling, "priority": -1}
        self.call("POST", "/inference/v1/generate", body, timeout_s)

    def tokens_sampled(self, timeout_s: float) -> float:
        """How many tokens the engine has sampled (or scored) since it started. Raises NoAnswer or Refused."""
        counted = "vllm:prompt_tokens_total" if self.scores else "vllm:generation_tokens_total"
        text = self._exchange("GET", "/metrics", None, timeout_s)
        with _understood("/metrics"):
            lines = text.decode().splitlines()
            return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(counted))

    def max_model_len(self) -> int:
        answer = self.call("GET", "/v1/models")
        with _understood("/v1/models"):
            cards = answer["data"]
            named = [card for card in cards if card["id"] == MODEL_NAME]
            # One that somebody else started has names of its own.
            return int((named or cards)[0]["max_model_len"])

    def set_version(self, version: int) -> None:
        if self.scores:
            return
        self.call("POST", "/update_weight_version", {"new_version": str(version)})

    def version(self) -> int:
        answer = self.call("GET", "/weight_info")
        with _understood("/weight_info"):
            return int(answer["weight_version"])

    def load_adapter(self, name: str, folder: str) -> None:
        """Have the server read a LoRA adapter's files; again, if it did. Raises NoAnswer or Refused.

        Not by vLLM's `load_inplace`: every step that has a request for such an adapter reads its files again.
        """
        body = {"lora_name": name, "lora_path": folder}
        try:
            self.send("POST", "/v1/load_lora_adapter", body)
        except Refused as error:
            if error.status != 400:
                raise
            self.unload_adapter(name)
            self.send("POST", "/v1/load_lora_adapter", body)

    def unload_adapter(self, name: str) -> None:
        """Take an adapter's name away; its weights leave the engine when room is needed. None of that name is no
        fault."""
        try:
            self.send("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        except Refused as error:
            if error.status != 404:
                raise

    def load(self, files: Sequence[str], digest: str | None, version: int, mode: str) -> dict[str, Any]:
        """Replace the server's weights by those of safetensors files that it reads itself.

        mode: what becomes of responses in flight: wait, keep or abort.
        Returns what each worker says it loaded, merged: {digest, tensors, checked, unchecked}.
        Raises NoAnswer or Refused; after either the engine must be started again.
        """
        self.begin_update(mode)
        self.update({"files": list(files), "digest": digest})
        return self.finish_update(version, digest)

    def begin_update(self, mode: str) -> None:
        """Pause, and have each worker make ready for weights. Raises NoAnswer or Refused, as the two that follow."""
        self.call("POST", f"/pause?mode={mode}&clear_cache=true")
        self.call("POST", "/start_weight_update")

    def update(self, info: dict[str, Any]) -> None:
        """Some of an update's weights: what their route needs to say."""
        self.call("POST", "/update_weights", {"update_info": info})

    def finish_update(self, version: int, digest: str | None) -> dict[str, Any]:
        """Have every worker prove what it holds, and go on; returns the report, of several workers merged.

        digest: of all weights as they were sent; None: not known.
        """
        self.call("POST", "/finish_weight_update", {"weight_version": str(version)})
        reports = self._of_each_worker("tulu_lite_report")
        held = self.version()
        if held != version:
            raise ServerError(f"the rollout server says it holds weight version {held}, not {version}")
        for report in reports:
            if "checked" not in report or (digest is not None and report["digest"] != digest):
                raise ServerError(
                    f"a worker of the rollout server did not take weight version {version}: {report}"
                )
        self.call("POST", "/resume")
        unchecked = sorted({name for report in reports for name in report["unchecked"]})
        return reports[0] | {"checked": min(report["checked"] for report in reports), "unchecked": unchecked}

    def about(self) -> list[dict[str, Any]]:
        """What each worker says of itself: {dtype, device, gpu, host, sharded, wide}."""
        return self._of_each_worker("tulu_lite_about", "dtype", "device", "gpu", "host", "sharded", "wide")

    def _of_each_worker(self, method: str, *keys: str) -> list[dict[str, Any]]:
        """What a method of the worker extension gives in every worker, of which there is one at least."""
        answer = self.call("POST", "/collective_rpc", {"method": method})
        with _understood("/collective_rpc"):
            results = [dict(result) for result in answer["results"]]
            if missing := sorted(set(keys) - results[0].keys()):
                raise KeyError(*missing)
            return results

    def greedy(self, token_ids: Sequence[int], tokens: int) -> list[int]:
        """The most likely continuation of a prompt, of so many tokens."""
        sampling = {"max_tokens": tokens, "temperature": 0.0, "detokenize": False, "ignore_eos": True}
        body = {"token_ids": list(token_ids), "sampling_params": sampling}
        answer = self.call("POST", "/inference/v1/generate", body)
        with _understood("/inference/v1/generate"):
            return list(answer["choices"][0]["token_ids"])


@contextmanager
def _understood(path: str) -> Iterator[None]:
    """Reading an answer to `path`: one that has not the form it should is refused, whatever is wrong with it. Another
    program may listen there (server.urls, or a proxy's own page), and its answer must not end whoever asks."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        what = path.partition("?")[0]
        raise Refused(f"what answers {what} is no rollout server ({error!r})", 200) from error


def explain(text: bytes) -> str:
    """The message of an error answer."""
    try:
        data = json.loads(text)
        error = data.get("error", data)
        message = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        message = text.decode(errors="replace")
    return str(message)[:500]
