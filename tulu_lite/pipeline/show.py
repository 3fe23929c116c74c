"""What a run shows while it goes: the plan, each step's progress with rate and time left, and how it ended.

On a terminal the current step is a live line; elsewhere (a log, CI) a plain line is printed now and then.
"""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..recipe import Recipe
from ..watching.watch import counted
from .plan import PlannedStep
from .protocol import progress_text
from .steps import Step

PLAIN_EVERY_S = 15.0


class Display:
    """Console output of one run."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.live: Live | None = None
        self.running: dict[str, tuple[str, float]] = {}  # by step id: its head, and when it began
        self.printed = time.monotonic()
        self.server_text = ""
        self.noted: set[tuple[str, str]] = set()  # (step, spike or warning) that was shown

    def plan(self, recipe: Recipe, plan: list[PlannedStep]) -> None:
        self.console.print(plan_table(recipe, plan))

    def already_done(self, number: int, total: int, step: Step) -> None:
        self.console.print(f"[dim]\\[{number}/{total}] {step.id}: done before[/dim]")

    def started(self, number: int, total: int, step: Step, command: str) -> None:
        head = f"[{number}/{total}] {step.id}"
        if not self.running:
            self.printed = time.monotonic()
        self.running[step.id] = (head, time.monotonic())
        self.console.print(f"[bold]{escape(head)}[/bold]  [dim]$ {escape(command)}[/dim]", soft_wrap=True)
        if self.console.is_terminal and self.live is None:
            self.live = Live(
                Text(f"{head} starting"), console=self.console, refresh_per_second=4, transient=True
            )
            self.live.start()

    def waiting(self, what: str) -> None:
        self.console.print(f"[dim]{what} ...[/dim]")

    def server(self, text: str) -> None:
        self.server_text = text

    def progress(self, states: dict[str, dict[str, Any] | None]) -> None:
        """How far each running step is, by id: a live line for each, or on no terminal plain lines now and then."""
        lines = [self._line(id, state) for id, state in states.items() if id in self.running]
        if lines and self.server_text and self.server_text != "ready":
            lines[-1] += f"  server: {self.server_text}"
        if self.live is not None:
            self.live.update(Text("\n".join(lines)))
        elif lines and time.monotonic() - self.printed >= PLAIN_EVERY_S:
            self.printed = time.monotonic()
            self.console.print(escape("\n".join(lines)), soft_wrap=True)

    def _line(self, id: str, state: dict[str, Any] | None) -> str:
        """[4/9] rlvr/seed-2  12/40 steps, 1.3 steps/s, 0:21 left, reward 0.5  (0:40 so far)"""
        head, began = self.running[id]
        for note in (state or {}).get("notes", ()):  # spikes and warnings, each once
            if (id, note) not in self.noted:
                self.noted.add((id, note))
                self.console.print(f"[yellow]{escape(f'{head}  {note}')}[/yellow]", soft_wrap=True)
        seconds = int(time.monotonic() - began)
        text = progress_text(state) if state else "starting"
        return f"{head}  {text}  ({seconds // 60}:{seconds % 60:02d} so far)"

    def failed(self, number: int, total: int, step: Step, what: str) -> None:
        self._gone(step)
        self.console.print(f"[red]\\[{number}/{total}] {escape(what)}[/red]", soft_wrap=True)

    def _gone(self, step: Step) -> None:
        self.running.pop(step.id, None)
        if not self.running:
            self.close()

    def ended(self, number: int, total: int, step: Step, seconds: float) -> None:
        self._gone(step)
        result = step.result or {"summary": {}}
        self.console.print(
            f"[green]\\[{number}/{total}] {step.id}: done[/green] in {seconds:.0f} s  {escape(headline(step, result['summary']))}",
            soft_wrap=True,
        )
        if why := result["summary"].get("stopped_early"):
            self.console.print(f"[yellow]  stopped early: {escape(str(why))}[/yellow]", soft_wrap=True)
        if told := counted(step.folder):
            self.console.print(f"[yellow]  {escape(told)}[/yellow]", soft_wrap=True)

    def close(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None


def headline(step: Step, summary: dict[str, Any]) -> str:
    """A step's result in a few words."""
    if step.kind == "evaluate":
        accuracy = summary["accuracy"]
        return f"accuracy {100 * accuracy['value']:.1f} % [{100 * accuracy['low']:.1f}, {100 * accuracy['high']:.1f}]"
    if step.kind == "select":
        told = validation_text(summary["validation"]) if "validation" in summary else "the only run"
        return f"{summary['chosen']} goes on: {told}"
    validated = [validation_text(summary["validation"])] if "validation" in summary else []
    shown = validated + [
        f"{name} {value:.4g}"
        for name, value in summary.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    return ", ".join(shown[:5])


def validation_text(validation: dict[str, Any]) -> str:
    """validation accuracy 62.5 %, validation loss 1.234"""
    value = float(validation["value"])
    figure = f"{100 * value:.1f} %" if validation["metric"] == "accuracy" else f"{value:.4g}"
    return f"validation {validation['metric']} {figure}"


def plan_table(recipe: Recipe, plan: list[PlannedStep]) -> Table:
    """Each step with its size, its state and why. `≤` where lengths are known only once sampled."""
    table = Table(title=f"{recipe.name}: {recipe.output}", title_justify="left", pad_edge=False)
    table.add_column("step", overflow="fold", min_width=24)  # names of a sweep's runs are long
    table.add_column("what", overflow="fold", min_width=14)
    for name in ("prompts", "completions", "tokens", "updates"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", overflow="fold", min_width=20)
    colours = {"done": "green", "resume": "yellow", "run": "cyan"}
    for planned in plan:
        step, size = planned.step, planned.size
        what = "choose the run" if step.kind == "select" else f"{step.kind} < {step.model}"
        numbers = ["", "", "", ""]
        if size is not None:
            most = "≤" if size.at_most else ""
            numbers = [
                short_number(size.prompts),
                short_number(size.completions),
                most + short_number(size.tokens),
            ]
            numbers.append(short_number(size.updates) if size.updates else "")
        colour = colours[planned.state]
        table.add_row(step.id, what, *numbers, f"[{colour}]{planned.state}[/]: {escape(planned.reason)}")
    return table


def short_number(value: int) -> str:
    """1536 -> 1,536; 926640 -> 927k; 1234567890 -> 1.23G"""
    for unit, scale in (("T", 10**12), ("G", 10**9), ("M", 10**6)):
        if value >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value // 1000}k" if value >= 100_000 else f"{value:,}"


def plan_notes(plan: list[PlannedStep]) -> list[str]:
    """What the sizes do not show: rows that were dropped, how a step is made up."""
    notes: dict[str, None] = {}
    for planned in plan:
        for note in planned.size.notes if planned.size else ():
            notes[f"{planned.step.stage.name}: {note}"] = None
    return list(notes)
