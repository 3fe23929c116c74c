"""How the pool and its workers speak: frames of JSON with a length before them, over a socket pair.

JSON and not pickle: a worker that was taken over can send wrong verdicts but cannot run code here. Frames
are capped, so garbage is noticed instead of waited for.

To the worker     {"specs": {id: spec}, "items": [[index, spec id, [response, reference, prompt, finished, info]]]}
From the worker   a list of events: ["hello", pid]                          ready for work
                                    ["load", index, monotonic seconds]      building or warming its verifier
                                    ["loaded", index, layout]               built; where it runs and for how long
                                    ["moved", index]                        not mine to judge: see the layout
                                    ["start", index, monotonic seconds]     the item's clock starts
                                    ["done", index, verdict]
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

LENGTH = struct.Struct(">I")
MAX_TO_WORKER = 64 << 20  # bytes a frame
MAX_ITEM = 8 << 20  # bytes one encoded item
MAX_FROM_WORKER = 1 << 20  # a verdict's texts are clipped, so more than this is garbage


class Garbage(Exception):
    """What came was no frame of this protocol; `before` are the messages that came whole before it."""

    def __init__(self, reason: str, before: list[Any]) -> None:
        super().__init__(reason)
        self.before = before


def encode(message: Any) -> bytes:
    """Raises TypeError or ValueError when `message` is not JSON data."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return LENGTH.pack(len(body)) + body


class FrameReader:
    """Cuts a byte stream into messages. Raises Garbage; never holds more than `limit` bytes of a frame."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        self._buffer += data
        messages: list[Any] = []
        while len(self._buffer) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._buffer)
            if length > self._limit:
                raise Garbage(f"a frame of {length} bytes, over the limit of {self._limit}", messages)
            end = LENGTH.size + length
            if len(self._buffer) < end:
                break
            body = bytes(self._buffer[LENGTH.size : end])
            del self._buffer[:end]
            try:
                messages.append(json.loads(body))
            except (ValueError, RecursionError) as fault:
                raise Garbage(f"a frame that is not JSON: {fault}", messages) from fault
        return messages


def receive(connection: socket.socket, reader: FrameReader) -> list[Any] | None:
    """The next messages on a blocking socket; None at its end."""
    while True:
        data = connection.recv(1 << 18)
        if not data:
            return None
        messages = reader.feed(data)
        if messages:
            return messages
