"""A server that shares its GPUs with training sleeps while a stage trains: vLLM's sleep mode. [vLLM 0.32]

sleep.json in the server's folder says that it sleeps, so that the canary lets it. Whoever needs the server wakes it:
nobody has to live for that, so a trainer that dies leaves nothing to be mended. A server that starts anew is awake.
"""

from __future__ import annotations

import time

from ..files import write_json
from .client import RolloutClient
from .member import Member
from .signs import SLEEP_FILE, forget_sleep, is_asleep


def put_to_sleep(client: RolloutClient, level: int) -> None:
    """Have every server behind the client give back its GPU memory, when the responses under way have ended.

    level 1: weights move to main memory. 2: weights are dropped, and must be pushed again after waking.
    Raises ServerError.
    """
    for member in client.living():
        member.wait_ready()
        assert member.folder is not None
        write_json(member.folder / SLEEP_FILE, {"level": level, "since": time.time()})
        member.control().call("POST", f"/sleep?level={level}&mode=wait")


def wake(client: RolloutClient) -> None:
    """Wake every server that sleeps. After level 2 its weights are nothing until they are pushed. Raises ServerError."""
    for member in client.living():
        if member.folder is None or not is_asleep(member.folder):
            continue
        member.wait_ready()
        if _sleeps(member):  # not where it was started anew meanwhile
            member.control().call("POST", "/wake_up")
        forget_sleep(member.folder)


def _sleeps(member: Member) -> bool:
    return bool(member.control().call("GET", "/is_sleeping")["is_sleeping"])
