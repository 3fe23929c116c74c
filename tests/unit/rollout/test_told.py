"""What a failed start's log is taken to say."""

from __future__ import annotations

from tulu_lite.rollout.generation import _told


def test_the_last_error_is_told_and_hints_are_not():
    log = (
        "ValueError: the model has 3 heads\n"
        "RuntimeError: Engine core failed. See root cause above.\n"
        "WARNING current ulimit 1024 can cause `OSError: [Errno 24] Too many open files`. Consider increasing with ulimit -n\n"
    )
    assert _told(log) == ": ValueError: the model has 3 heads"
    assert _told(log.splitlines()[2]) == ""
