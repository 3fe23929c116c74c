"""All samples of a step, with verdicts, on disk: to be read by people, and to be trained on again. No torch.

rollouts/step-000012.jsonl (.jsonl.gz when large) has one line for each response. Where several processes train, each
writes its own share: step-000012.part-1.jsonl and so on.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

from verifiers import Verdict

from ..errors import TuluLiteError
from ..files import json_lines, write_atomic
from ..judging import response_row
from ..records import Prompt, Rollout, RolloutGroup
from .collect import Collected
from .rollout_files import NAME, parts_of

GZIP_ABOVE = 1 << 20  # bytes of text


def rollout_rows(
    groups: Mapping[int, RolloutGroup],
    rewards: Mapping[tuple[int, int], float] | None = None,
    advantages: Mapping[tuple[int, int], Any] | None = None,
) -> list[dict[str, Any]]:
    """One row of JSON data for each response. groups: by place in the step's batch; rewards and advantages (a number,
    or one for each token): by place and number of the sample."""
    rows = []
    for place, group in sorted(groups.items()):
        for sample, rollout in enumerate(group.rollouts):
            value = (rewards or {}).get((place, sample))
            row = response_row(group, rollout, "train") | {
                "place": place,
                "sample": sample,
                "verifier": group.prompt.verifier,
                "prompt_token_ids": group.prompt.token_ids,
                "token_ids": rollout.token_ids,
                "logprobs": rollout.logprobs,
                "weight_versions": _spans(rollout.weight_versions),
                "reward": None if value is None or value != value else value,
                "advantage": (advantages or {}).get((place, sample)),
            }
            rows.append(row)
    return rows


def groups_of(rows: Iterable[Mapping[str, Any]]) -> dict[int, RolloutGroup]:
    """The groups of rollout_rows, by place. Raises KeyError, TypeError, ValueError for other rows."""
    found = {}
    ordered = sorted(rows, key=lambda row: (row["place"], row["sample"]))
    for place, mine in groupby(ordered, key=lambda row: row["place"]):
        members = list(mine)
        first = members[0]
        prompt = Prompt(
            id=first["prompt_id"],
            text="",
            token_ids=tuple(first["prompt_token_ids"]),
            source=first["source"],
            verifier=first["verifier"],
            reference=first["reference"],
            user=first["prompt"],
        )
        found[int(place)] = RolloutGroup(prompt, tuple(_rollout(row) for row in members))
    return found


def _rollout(row: Mapping[str, Any]) -> Rollout:
    verdict = None if row["verdict"] is None else Verdict.from_json(row["verdict"])
    versions = tuple(version for version, count in row["weight_versions"] for _ in range(count))
    return Rollout(
        tuple(row["token_ids"]),
        tuple(row["logprobs"]),
        versions,
        row["finish_reason"],
        row["response"],
        verdict,
    )


def _spans(versions: Sequence[int]) -> list[tuple[int, int]]:
    """(version, tokens) of each stretch of tokens."""
    return [(version, len(list(same))) for version, same in groupby(versions)]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of one step, those of all its parts. Raises TuluLiteError for a file that is none."""
    path = Path(path)
    named = NAME.fullmatch(path.name)
    parts = parts_of(path.parent).get(int(named[1]), []) if named else [path]
    rows: list[dict[str, Any]] = []
    for part in parts or [path]:
        try:
            data = gzip.decompress(part.read_bytes()) if part.suffix == ".gz" else part.read_bytes()
            rows += json_lines(data)
        except (OSError, ValueError, EOFError) as error:
            raise TuluLiteError(f"{part} holds no rollouts that can be read: {error}") from None
    return rows


def read_rollouts(path: Path) -> list[RolloutGroup]:
    """The groups of one step's file, in the order of the batch, as they were trained on.

    Raises TuluLiteError where the file is not what an rlvr stage writes.
    """
    rows = read_rows(path)
    try:
        return [group for _, group in sorted(groups_of(rows).items())]
    except (KeyError, TypeError, ValueError) as error:
        raise TuluLiteError(
            f"{path} holds rows that are not whole rollouts: {type(error).__name__}: {error}",
            why="training needs token ids, log-probabilities and verdicts of each response",
            cure="name the rollouts folder of an rlvr step, or one of the files in it",
        ) from None


class Recording:
    """A folder of recorded rollouts, as the batches of the steps they were recorded in."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.parts = folder, parts_of(folder)

    def batch(self, step: int, rank: int, world: int) -> Collected:
        """A process's share of the groups of a step that was recorded."""
        groups = groups_of(read_rows(self.parts[step][0]))
        own = {place: group for place, group in groups.items() if place % world == rank}
        return Collected(step, {place: group.prompt for place, group in own.items()}, own)


class RolloutLog:
    """Writes each step's rows in a thread of its own, and keeps the folder within its bound."""

    def __init__(self, folder: Path, keep_mb: int, rank: int = 0) -> None:
        self.folder, self.keep_bytes, self.rank = folder, keep_mb << 20, rank
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self._last: Future[None] | None = None

    def put(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Have the rows written. Waits for those before them: no more than one step's are held in memory."""
        self.flush()
        self._last = self._writer.submit(self._write, step, rows)

    def flush(self) -> None:
        """Wait until all that was put is on disk. Raises what its writing raised."""
        if self._last is not None:
            last, self._last = self._last, None
            last.result()

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self._writer.shutdown()

    def _write(self, step: int, rows: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)
        data = text.encode("utf-8", "surrogatepass")
        part = f".part-{self.rank}" if self.rank else ""
        plain = self.folder / f"step-{step:06d}{part}.jsonl"
        packed = plain.with_suffix(".jsonl.gz")
        large = len(data) > GZIP_ABOVE
        write_atomic(packed if large else plain, gzip.compress(data, 1, mtime=0) if large else data)
        (plain if large else packed).unlink(missing_ok=True)  # of an earlier try
        if self.rank == 0:
            self._bound(step)

    def _bound(self, newest: int) -> None:
        parts = parts_of(self.folder)
        sizes = {step: sum(path.stat().st_size for path in paths) for step, paths in parts.items()}
        for step in parts:
            if sum(sizes.values()) <= self.keep_bytes:
                return
            if step == newest and self.keep_bytes:
                return  # one step alone is above the bound: it is kept all the same
            for path in parts[step]:
                path.unlink(missing_ok=True)
            del sizes[step]
