"""python -m verifiers list | show NAME | score FILE.jsonl | check MY_FILE.py | sandbox"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from verifiers import registry
from verifiers.battery import run_battery
from verifiers.demand import TIERS
from verifiers.errors import VerifierError
from verifiers.pool import VerifierPool
from verifiers.registry import FIELDS
from verifiers.sandbox.report import add_command as add_sandbox
from verifiers.score import Columns, Summary, score_file
from verifiers.spec import Spec, build


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status (1: a check failed, 2: a mistake of the caller)."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except VerifierError as fault:
        print(f"error: {fault.what}", file=sys.stderr)
        for name, text in (("why", fault.why), ("cure", fault.cure)):
            if text:
                print(f"  {name}: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m verifiers", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="every verifier there is")
    listing.set_defaults(run=_list)

    show = commands.add_parser("show", help="one verifier: what it judges and its arguments")
    show.add_argument("name", help="a name, path/to/file.py:name or package.module:name")
    show.set_defaults(run=_show)

    score = commands.add_parser("score", help="judge a file of responses; a stopped run goes on where it was")
    score.add_argument("file", type=Path, help="one JSON row a line, with the columns named below")
    score.add_argument("--verifier", required=True, type=parse_spec, help="a name, or a spec as JSON or YAML")
    score.add_argument("--out", required=True, type=Path, help="one verdict a line, in the rows' order")
    for column in ("response", "reference", "prompt", "finished"):
        score.add_argument(f"--{column}", default=column, metavar="COLUMN", help=f"default: {column}")
    score.add_argument("--quiet", action="store_true", help="no progress")
    _pool_options(score)
    score.set_defaults(run=_score)

    check = commands.add_parser("check", help="try your own verifier on rows and on hostile input")
    check.add_argument("verifier", type=parse_spec, help="my_verifier.py, my_verifier.py:name, or a spec")
    check.add_argument("--rows", required=True, type=Path, help="JSON rows: reference, response, score (1)")
    _pool_options(check)
    check.set_defaults(run=_check)

    add_sandbox(commands)
    return parser


def _pool_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument(
        "--timeout", type=float, default=5.0, metavar="SECONDS", help="of one item (default 5)"
    )
    parser.add_argument("--memory", type=int, default=1024, metavar="MB", help="of a worker (default 1024)")
    parser.add_argument(
        "--sandbox", metavar="TIER", help=f"the least that code may run in: {', '.join(TIERS)}"
    )
    parser.add_argument(
        "--allow-weak-sandbox",
        action="store_true",
        help="consent to resource limits only, where the machine gives nothing better",
    )


def parse_spec(text: str) -> Spec:
    """A spec from the command line: a name, or JSON or YAML that begins with a brace."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        import yaml
    except ImportError as fault:
        raise argparse.ArgumentTypeError("not JSON, and PyYAML is not installed") from fault
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as fault:
        raise argparse.ArgumentTypeError(f"neither JSON nor YAML: {fault}") from fault


def _list(_: argparse.Namespace) -> int:
    for name in registry.names():
        try:
            definition = registry.find(name)
        except VerifierError as fault:  # an entry point that does not load must not hide the others
            print(f"{name:16} does not load: {fault}")
            continue
        print(f"{name:16} {definition.summary}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    definition = registry.find(arguments.name)
    target = definition.target
    print(f"{definition.name}  (version {definition.version}, runs {definition.runs}, {definition.origin})")
    if definition.timeout_s is not None:
        print(f"deadline: {definition.timeout_s:g} s")
    print()
    print(inspect.getdoc(target) or "no description")
    options = [p for p in inspect.signature(target).parameters.values() if p.name not in FIELDS]
    if options:
        print("\narguments:")
    for option in options:
        kind = "" if option.annotation is option.empty else f": {option.annotation}"
        default = "  (required)" if option.default is option.empty else f" = {option.default!r}"
        print(f"  {option.name}{kind}{default}")
    notes = {
        "strips <think>...</think> first": definition.strip_thinking,
        "judges truncated responses": definition.accepts_truncated,
        "checks references when data is loaded": definition.check_reference is not None
        or hasattr(target, "check_reference"),
    }
    print("\n" + "\n".join(f"{'yes' if holds else 'no ':3}  {note}" for note, holds in notes.items()))
    return 0


def _pool(arguments: argparse.Namespace) -> VerifierPool:
    return VerifierPool(
        arguments.workers,
        arguments.timeout,
        arguments.memory,
        sandbox=arguments.sandbox,
        allow_weak_sandbox=arguments.allow_weak_sandbox,
    )


def _score(arguments: argparse.Namespace) -> int:
    columns = Columns(arguments.response, arguments.reference, arguments.prompt, arguments.finished)
    build(arguments.verifier)  # a wrong spec is the caller's mistake, not every row's
    with _pool(arguments) as pool:
        progress = Ticker(sys.stderr, arguments.quiet)
        summary = score_file(arguments.file, arguments.out, arguments.verifier, columns, pool, progress)
        progress.end()
        own = pool.report()["own"]
    print(summary.text())
    for name, figures in own.items():
        print(f"{name}: " + ", ".join(f"{key} {value:g}" for key, value in figures.items()))
    return 1 if summary.rows and not summary.scored else 0  # nothing was judged: that is no success


class Ticker:
    """Progress on one line of a terminal, or a line now and then in a log: how many, how fast, how long still."""

    def __init__(self, stream: IO[str], quiet: bool) -> None:
        self._stream, self._quiet = stream, quiet
        self._terminal = stream.isatty()
        self._next = time.monotonic() + (0.5 if self._terminal else 10.0)
        self._width = 0

    def __call__(self, summary: Summary) -> None:
        now = time.monotonic()
        if self._quiet or now < self._next:
            return
        self._next = now + (0.5 if self._terminal else 10.0)
        text = progress_text(summary)
        if self._terminal:
            print(f"\r{text.ljust(self._width)}", end="", file=self._stream, flush=True)
            self._width = len(text)
        else:
            print(text, file=self._stream, flush=True)

    def end(self) -> None:
        if self._width:
            print(f"\r{' ' * self._width}\r", end="", file=self._stream, flush=True)


def progress_text(summary: Summary) -> str:
    share = summary.rows / summary.of if summary.of else 1.0
    left = summary.left_s
    time_left = "" if left is None else f", {duration(left)} left"
    mean = f", mean score {summary.total / summary.scored:.4f}" if summary.scored else ""
    errors = summary.statuses["error"]
    return (
        f"{summary.rows:,} of {summary.of:,} ({share:.0%}), {summary.rate:,.0f} a second{time_left}{mean}"
        f"{f', {errors} errors' if errors else ''}"
    )


def duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _check(arguments: argparse.Namespace) -> int:
    rows = list(_rows(arguments.rows))
    with _pool(arguments) as pool:
        findings = run_battery(arguments.verifier, rows, pool)
    for finding in findings:
        print(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.name}: {finding.detail}")
    failed = sum(not finding.ok for finding in findings)
    print(f"\n{len(findings) - failed} of {len(findings)} checks passed")
    return 1 if failed else 0


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise VerifierError(f"{path} does not exist")
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as fault:
                raise VerifierError(f"{path}, line {number}: not JSON: {fault}") from fault
            if not isinstance(row, dict):
                raise VerifierError(f"{path}, line {number}: a row must be a mapping")
            yield row
