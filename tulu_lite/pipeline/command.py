"""The command of each step, as it is run and as it is printed to be run by hand."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import yaml

from ..errors import TuluLiteError
from ..recipe import AccelerateSettings, Recipe
from .steps import Step


def step_command(step: Step, recipe: Recipe, recipe_file: Path) -> list[str]:
    """`accelerate launch -m tulu_lite.stages.KIND ...` for what trains, `python -m ...` for what only samples."""
    module = ["-m", f"tulu_lite.stages.{step.kind}", "--recipe", str(recipe_file), "--stage", step.stage.name]
    run = step.id.partition("/")[2] if step.trains else ""
    if run:
        module += (
            ["--seed", run.removeprefix("seed-")] if re.fullmatch(r"seed--?\d+", run) else ["--run", run]
        )
    if step.kind == "evaluate":
        module += ["--model", step.model]
    if not step.trains:
        return [sys.executable, *module]
    settings = getattr(step.stage, "accelerate", None) or recipe.accelerate
    return [
        sys.executable,
        "-m",
        "accelerate.commands.accelerate_cli",
        "launch",
        *launch_arguments(settings, alone=step.stage.at_once == 1),  # type: ignore[union-attr]
        *module,
    ]


def processes_of(settings: AccelerateSettings) -> int:
    """How many training processes these settings start. Raises TuluLiteError for a config file that cannot be read."""
    if settings.num_processes is not None or settings.config_file is None:
        return settings.num_processes or 1
    try:
        config = yaml.safe_load(Path(settings.config_file).read_text(encoding="utf-8"))
        return int(config.get("num_processes", 1))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise TuluLiteError(
            f"cannot read accelerate.config_file {settings.config_file}: {error}",
            cure="see recipes/accelerate/",
        ) from None


def launch_arguments(settings: AccelerateSettings, alone: bool = True) -> list[str]:
    """Arguments of `accelerate launch`. What a config file says stands unless the recipe says otherwise.

    alone: no other training runs on this machine at the same time; else its processes meet at a port that is free.
    """
    arguments: list[str] = []
    if not alone and processes_of(settings) > 1:
        arguments += ["--main_process_port", "0"]
    if settings.config_file is not None:
        arguments += ["--config_file", settings.config_file]
        if settings.num_processes is not None:
            arguments += ["--num_processes", str(settings.num_processes)]
        if settings.mixed_precision != "no":
            arguments += ["--mixed_precision", settings.mixed_precision]
    else:
        # all said, so that accelerate neither asks, nor reads a config left in the home folder, nor warns
        processes = settings.num_processes or 1
        arguments += ["--num_processes", str(processes), "--num_machines", "1", "--dynamo_backend", "no"]
        arguments += ["--mixed_precision", settings.mixed_precision]
        arguments += ["--num_cpu_threads_per_process", str(settings.threads)]
        if (
            processes > 1
        ):  # on a CPU too, where --cpu would start one alone: so accelerate calls starting several
            arguments += ["--multi_gpu"]
        elif settings.device == "cpu":
            arguments += ["--cpu"]
    return [*arguments, *settings.extra_args]


def shown(command: list[str]) -> str:
    """The command as a person would type it."""
    if command[0] == sys.executable:
        command = ["python", *command[1:]]
    if command[1:4] == ["-m", "accelerate.commands.accelerate_cli", "launch"]:
        command = ["accelerate", *command[3:]]
    return shlex.join(command)
