"""How large a stage is in a rehearsal. Sizes alone: what is computed stays as written."""

from __future__ import annotations

from typing import Any

from ..recipe import AnyStage, Recipe

ROWS = 12  # of a data source
STEPS = 3  # of rlvr
PROMPTS, SAMPLES = 4, 4  # of a step; of a prompt
RESPONSE = 40  # tokens
BATCH = 4  # rows of an optimiser step
LENGTH = 512  # tokens of a row
EPOCHS = 2

# Fields that only say how much of a machine is used, by what they become
_MACHINE = {
    "accelerate": None, "gradient_checkpointing": False, "micro_batch_tokens": 2048, "at_once": 1, "torch_compile": False,
    "compile": False, "activation_offload": False, "cpu_offload": False,
}  # fmt: skip


def scale_stage(stage: dict[str, Any], given: AnyStage) -> None:
    """Make a stage small, in place. given: the stage as it is in the recipe."""
    for field, value in _MACHINE.items():
        if field in stage:
            stage[field] = value
    _at_most(stage, "epochs", EPOCHS)
    _at_most(stage, "batch_size", BATCH)
    _at_most(stage, "max_length", LENGTH)
    _at_most(stage, "samples_per_prompt", SAMPLES)
    _at_most(stage, "max_tokens", RESPONSE)
    _at_most(stage, "keep_per_prompt", SAMPLES)
    _at_most(stage.get("sampling") or {}, "max_tokens", RESPONSE)
    if stage.get("pass_at"):
        stage["pass_at"] = sorted({min(k, stage["samples_per_prompt"]) for k in stage["pass_at"]} - {0})
    mix = stage.get("mix") or {}
    if mix.get("total"):
        mix["total"] = min(mix["total"], ROWS)
    for source in stage.get("data") or []:
        _at_most(source, "repeat", 2)
    filters = [
        stage.get("filters") or {},
        *(source.get("filters") or {} for source in stage.get("data") or []),
    ]
    for one in filters:  # rows of a rehearsal are short
        if "min_tokens" in one:
            one["min_tokens"] = 0
    if given.kind == "rlvr":
        _scale_rlvr(stage, given)
    else:
        _at_most(stage, "validate_every_steps", STEPS)


def _scale_rlvr(stage: dict[str, Any], given: Any) -> None:
    steps = stage["steps"] = min(given.steps, STEPS)
    shrunk = steps / given.steps
    updates = stage["updates_per_step"]
    stage["prompts_per_step"] = min(given.prompts_per_step, max(PROMPTS, updates))
    stage["prompts_per_step"] -= stage["prompts_per_step"] % updates
    for field in ("validate_every_steps", "reference_refresh_steps", "no_signal_steps"):
        if stage.get(field):
            stage[field] = max(1, min(stage[field], round(stage[field] * shrunk)))
    stage["no_signal"] = "warn"  # a tiny model gets little right
    value = stage.get("value") or {}
    if value.get("warmup_steps"):
        value["warmup_steps"] = min(value["warmup_steps"], steps - 1)
    if stage.get("stop_early"):
        stage["stop_early"]["after_steps"] = max(1, round(stage["stop_early"]["after_steps"] * shrunk))
    for extension in stage.get("extend") or []:
        extension["steps"] = min(extension["steps"], 2)
    overlong = stage.get("overlong") or {}
    if overlong.get("buffer_tokens"):
        budget = stage["sampling"]["max_tokens"]
        overlong["buffer_tokens"] = max(
            1, round(overlong["buffer_tokens"] * budget / given.sampling.max_tokens)
        )


def _at_most(settings: dict[str, Any], field: str, most: int) -> None:
    if isinstance(settings.get(field), int):
        settings[field] = min(settings[field], most)


def told(recipe: Recipe) -> list[str]:
    """What became smaller, in words."""
    kinds = {stage.kind for stage in recipe.stages}
    lines = []
    if kinds & {"sft", "dpo", "reward"}:
        lines.append(
            f"sft, dpo, reward: {BATCH} rows a batch, {LENGTH} tokens a row, {EPOCHS} epochs at most"
        )
    if kinds & {"preferences", "reject", "evaluate", "rlvr"}:
        lines.append(f"sampling: {SAMPLES} samples a prompt and {RESPONSE} tokens a response at most")
    if "rlvr" in kinds:
        lines.append(
            f"rlvr: {STEPS} steps of {PROMPTS} prompts (or as many as there are updates); what is said in steps (validation, refreshed references) shrinks "
            "in proportion"
        )
    return lines
