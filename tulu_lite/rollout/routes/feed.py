"""Files handed to a server one by one, by a thread, while the caller writes the next. No torch."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from typing import Any

from ..control import Control
from ..digest import combined_digest

JOIN_S = 5.0


class Feed:
    """One weight update of one server. put the files, then finish; or abandon.

    The server is first spoken to when the first file is there. A fault of the server's is kept until `finish`, so
    that the caller goes on to write what it was writing: all of it is needed for a server that takes its place.
    mode: what becomes of responses in flight: wait, keep or abort.
    """

    def __init__(self, control: Control, version: int, mode: str) -> None:
        self.version = version
        self._control, self._mode = control, mode
        self._infos: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._given_up = False
        self.spoken = False  # to the server, by somebody else (a transfer between GPUs)

    def put(self, path: str, digests: dict[str, str]) -> None:
        """A whole file, and the digests of the tensors in it."""
        self._give({"files": [path], "digest": combined_digest(digests)})

    def put_all(self, files: Sequence[str], digest: str | None) -> None:
        """Files that together hold every weight. digest: of all of them; None: not known."""
        self._give({"files": list(files), "digest": digest})

    def finish(self, digest: str | None) -> dict[str, Any]:
        """Wait until all is loaded and proven; returns the workers' report. Raises NoAnswer, Refused, ServerError.

        digest: of all weights; None: not known.
        """
        self._infos.put(None)
        if self._thread is not None:
            self._thread.join()  # each call it makes has a deadline
        if self._error is not None:
            raise self._error
        return self._control.finish_update(self.version, digest)

    def abandon(self) -> bool:
        """Hand over nothing more. Returns whether the server was spoken to: its weights are then a mixture."""
        self._given_up = True
        self._infos.put(None)
        if self._thread is not None:
            self._thread.join(JOIN_S)
        return self.spoken or self._thread is not None

    def _give(self, info: dict[str, Any]) -> None:
        self._infos.put(info)
        if self._thread is None:
            self._thread = threading.Thread(target=self._load, name="weight-feed", daemon=True)
            self._thread.start()

    def _load(self) -> None:
        try:
            self._control.begin_update(self._mode)
            while (info := self._infos.get()) is not None and not self._given_up:
                self._control.update(info)
        except BaseException as error:
            self._error = error
