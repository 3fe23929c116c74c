"""DPO and reward stages as a process runs them: exact whatever the micro-batches, resumable, measured on held-out pairs."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from tulu_lite.pipeline.expand import expand
from tulu_lite.pipeline.ledger import Ledger
from tulu_lite.pipeline.protocol import read_metrics
from tulu_lite.pipeline.steps import Step
from tulu_lite.recipe import DpoStage, RewardStage, load_recipe
from tulu_lite.stages import context, dpo, reward
from tulu_lite.stages.context import step_context
from tulu_lite.stages.pairing import Validation
from tulu_lite.training.loop import Training

STAGES = {"dpo": (DpoStage, dpo.train), "reward": (RewardStage, reward.train)}
WORDS = ["<pad>", "<bos>", "<eos>", "<|user|>", "<|assistant|>", *(f"w{number}" for number in range(30))]


@pytest.fixture(autouse=True)
def _stay_alive(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a stage's process does to itself must not happen to the one that runs the tests."""
    monkeypatch.setattr(context, "die_with_parent", lambda *_: None)
    monkeypatch.setattr(context.signal, "signal", lambda *_: signal.SIG_DFL)
    monkeypatch.delenv("RANK", raising=False)
    threads, state = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(state)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(folder)
    return folder


def pair(number: int) -> dict[str, str]:
    """The chosen response holds w1, the rejected one w2; lengths are skewed."""
    filler = " ".join(f"w{10 + (number * k) % 20}" for k in range(1, 2 + number % 7))
    return {"prompt": f"w{number % 30} w3 {filler}", "chosen": f"w1 {filler} w1", "rejected": "w2 w4"}


@pytest.fixture
def make(tmp_path: Path, model: Path) -> Callable[..., Step]:
    """make(kind, **fields) -> the step of a recipe with that one stage, not run."""
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair(i)) + "\n" for i in range(12)))
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(pair(i)) + "\n" for i in range(40, 46)))

    def of(kind: str, out: str = "out", **fields: Any) -> Step:
        stage = {
            "name": kind, "kind": kind, "init": "base", "data": "pairs.jsonl", "validation": "held.jsonl",
            "learning_rate": 1e-2, "batch_size": 6, "max_length": 60, "epochs": 2, "warmup_ratio": 0.0,
            "save_every_steps": 1, **fields,
        }  # fmt: skip
        recipe = {
            "name": "tiny", "model": str(model), "output": f"./{out}", "chat_template": "tulu",
            "accelerate": {"device": "cpu", "threads": 1}, "stages": [stage],
        }  # fmt: skip
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        loaded = load_recipe(tmp_path / "recipe.yaml")
        (step,) = expand(loaded, Ledger(Path(loaded.output)))
        return step

    return of


def run(step: Step) -> dict[str, Any]:
    """Run it as its process does; returns its summary."""
    stage, train = STAGES[step.kind]
    recipe = step.folder.parents[3] / "recipe.yaml"
    with step_context(stage, ["--recipe", str(recipe), "--stage", step.stage.name]) as ctx:
        train(ctx)
    return step.summary


def weights(step: Step) -> dict[str, torch.Tensor]:
    return load_file(step.folder / "model" / "model.safetensors")


def rows(step: Step) -> list[dict[str, Any]]:
    return read_metrics(step.folder / "metrics.jsonl")


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_one_batch_is_four_micro_batches(make: Callable[..., Step], kind: str) -> None:
    runs = []
    for out, tokens in (("whole", 8192), ("parts", 60)):
        step = make(kind, out, micro_batch_tokens=tokens)
        run(step)
        runs.append(rows(step))
    assert len(runs[0]) == 4
    for one, other in zip(*runs, strict=True):
        for name in ("loss", "grad_norm", "margin"):
            assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-5), (name, one, other)
    assert runs[0][-1]["loss"] < runs[0][0]["loss"] / 2
    assert runs[0][-1]["validation_accuracy"] == 1.0


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_killed_and_run_again_it_gives_the_same_bits(
    make: Callable[..., Step], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """With adapters and their dropout; all weights are trained in the tests that kill a process for real."""
    lora = {"rank": 2, "dropout": 0.2}
    whole = make(kind, "whole", lora=lora, validate_every_steps=2)
    summary = run(whole)
    torn = make(kind, "torn", lora=lora, validate_every_steps=2)
    save = Training.save_if_due

    def killed(self: Training, step: int, *rest: Any, **more: Any) -> Any:
        if step == 3:
            raise KeyboardInterrupt
        return save(self, step, *rest, **more)

    monkeypatch.setattr(Training, "save_if_due", killed)
    with pytest.raises(KeyboardInterrupt):
        run(torn)
    monkeypatch.setattr(Training, "save_if_due", save)
    assert run(torn) == summary
    assert all(
        torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(torn).values(), strict=True)
    )
    for name in ("validation.jsonl", "validation/step-000002.jsonl", "validation/step-000004.jsonl"):
        assert (whole.folder / name).read_text() == (torn.folder / name).read_text()


BAD = 5  # the row whose loss is not a number


def break_a_row(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    module = {"dpo": dpo, "reward": reward}[kind]
    losses_of = module.losses_of

    def broken(stage: Any, values: torch.Tensor, items: Any = ()) -> Any:
        found = losses_of(stage, values, items)
        bad = torch.tensor([math.nan if item.pair.line == BAD else 1.0 for item in items])
        return found._replace(losses_B=found.losses_B * bad) if items else found

    monkeypatch.setattr(module, "losses_of", broken)


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_a_row_whose_loss_is_not_finite_stops_the_step_by_name(
    make: Callable[..., Step], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    break_a_row(monkeypatch, kind)
    with pytest.raises(SystemExit):
        run(make(kind, batch_size=12, epochs=1, validation=[]))
    said = capsys.readouterr().err
    assert "the loss is nan" in said and f"pairs.jsonl:{BAD} by itself" in said and "bad_rows: drop" in said


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_or_it_is_dropped_and_counted_and_the_step_is_that_of_the_others(
    make: Callable[..., Step], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    others = [json.dumps(pair(i)) + "\n" for i in range(12) if i + 1 != BAD]
    (tmp_path / "others.jsonl").write_text("".join(others))
    step = make(kind, "others", data="others.jsonl", batch_size=12, epochs=1, validation=[])
    run(step)
    wanted, (row,) = weights(step), rows(step)
    break_a_row(monkeypatch, kind)
    step = make(kind, "dropped", batch_size=12, epochs=1, validation=[], bad_rows="drop")
    summary = run(step)
    (found,) = rows(step)
    assert (summary["dropped_rows"], found["dropped_rows"], row["dropped_rows"]) == (1, 1, 0)
    for name in ("loss", "grad_norm", "accuracy", "margin", "tokens"):
        assert found[name] == pytest.approx(row[name], rel=1e-5), name
    assert all(torch.allclose(weights(step)[name], wanted[name], atol=1e-6) for name in wanted)


def sides(folder: Path) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt, chosen, rejected as ids of the `tulu` template, worked out here."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    found = []
    for line in (pair(i) for i in range(12)):
        ids = [tokenizer(line[name])["input_ids"] for name in ("prompt", "chosen", "rejected")]
        found.append(([3, *ids[0], 4], [*ids[1], 2], [*ids[2], 2]))
    return found


def test_the_first_loss_and_gradient_are_those_of_a_plain_implementation(
    make: Callable[..., Step], model: Path
) -> None:
    """DPO against the model itself but one matrix changed, by transformers' whole logits; all pairs in one batch."""
    step = make("dpo", objective="ipo", beta=0.4, batch_size=12, epochs=1, validation=[])
    run(step)
    causal = AutoModelForCausalLM.from_pretrained(model)

    def mean_logprob(prompt: list[int], response: list[int]) -> torch.Tensor:
        ids = torch.tensor([prompt + response])
        logprobs = causal(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        return logprobs[len(prompt) - 1 :].mean()

    losses = []
    for prompt, chosen, rejected in sides(model):
        difference = mean_logprob(prompt, chosen) - mean_logprob(prompt, rejected)
        losses.append((difference - difference.detach() - 1 / 0.8) ** 2)
    loss = torch.stack(losses).mean()
    loss.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in causal.parameters() if p.grad is not None))
    (row,) = rows(step)
    assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize(
    ("fields", "first_loss"),
    [
        ({"objective": "dpo"}, math.log(2)),
        ({"objective": "dpo", "length_normalised": False, "beta": 0.1}, math.log(2)),
        ({"objective": "hinge"}, 1.0),
        ({"objective": "robust", "label_smoothing": 0.1}, math.log(2)),
    ],
    ids=str,
)
def test_every_objective_starts_at_the_reference_and_learns(
    make: Callable[..., Step], fields: dict[str, Any], first_loss: float
) -> None:
    step = make("dpo", **fields)
    summary = run(step)
    logged = rows(step)
    assert logged[0]["loss"] == pytest.approx(first_loss, abs=1e-5)
    assert logged[0]["chosen_gain"] == pytest.approx(0, abs=1e-5)
    assert summary["validation"] == {"metric": "accuracy", "value": 1.0, "better": "higher"}
    assert summary["held_out_accuracy"]["n"] == 6


def test_the_reference_is_computed_once_for_all_that_ask_for_the_same(
    make: Callable[..., Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    compute = dpo.logprobs_under
    monkeypatch.setattr(dpo, "logprobs_under", lambda *a: (calls.append(a[1]), compute(*a))[1])
    run(make("dpo", epochs=1))
    run(make("dpo", epochs=1, beta=1.0, seed=5, length_normalised=False, objective="hinge"))
    run(make("dpo", epochs=1, reference="base", learning_rate=1e-3))  # what it starts from anyway
    assert calls == [None] * 2  # once for the pairs, once for those held out
    run(make("dpo", epochs=1, objective="simpo", gamma=1.0))
    assert calls == [None] * 2  # needs none
    run(make("dpo", epochs=1, data={"path": "pairs.jsonl", "share": [0, 0.5]}))  # other pairs
    assert calls == [None] * 3
    folder = make("dpo").folder.parents[2] / "cache" / "reference"
    files = list(folder.iterdir())
    assert len(files) == 3
    for file in files:
        file.write_bytes(file.read_bytes()[:-5])  # torn
    run(make("dpo", epochs=1, beta=2.0))
    assert calls == [None] * 5


def test_the_reward_of_a_response_is_what_transformers_gives(make: Callable[..., Step], model: Path) -> None:
    step = make("reward", centring=0.01, margin=0.5)
    summary = run(step)
    assert rows(step)[-1]["chosen_reward"] > rows(step)[-1]["rejected_reward"]
    assert summary["validation"]["value"] == 1.0
    classifier = AutoModelForSequenceClassification.from_pretrained(step.folder / "model")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(step.folder / "model")
    text = [
        tokenizer.apply_chat_template(
            [
                {"role": "user", "content": pair(41)["prompt"]},
                {"role": "assistant", "content": pair(41)[side]},
            ],
            tokenize=False,
        )
        for side in ("chosen", "rejected")
    ]
    batch = tokenizer(text, return_tensors="pt", padding=True, add_special_tokens=False)
    batch.pop("token_type_ids", None)
    chosen, rejected = classifier(**batch).logits[:, 0].tolist()
    assert chosen > rejected


def test_the_best_weights_go_on(make: Callable[..., Step]) -> None:
    """All held-out pairs are ranked right before the last step: the first such step's weights are exported."""
    last = make("dpo", "last", validate_every_steps=1)
    run(last)
    step = make("dpo", "best", export="best", validate_every_steps=1)
    best = run(step)
    accuracies = [row["validation_accuracy"] for row in rows(step)]
    assert best["step"] == 1 + accuracies.index(1.0) < 4
    assert best["validation"]["value"] == 1.0
    kept = [json.loads(line)["value"] for line in (step.folder / "validation.jsonl").read_text().splitlines()]
    assert kept == [1.0] * 6
    assert not all(
        torch.equal(a, b) for a, b in zip(weights(last).values(), weights(step).values(), strict=True)
    )


def test_the_validation_that_counts() -> None:
    """Accuracies 1/2, 1, 0 (one tie: half): the second is kept, loaded at the end, and looked at again."""
    margins = iter([[1.0, -1.0], [2.0, 1.0], [0.0, -1.0], [2.0, 1.0]])
    saved: list[tuple[int, float]] = []
    training: Any = SimpleNamespace(
        save_best=lambda *what: saved.append(what), load_best=lambda: saved[-1][0]
    )
    ctx: Any = SimpleNamespace(
        stage=SimpleNamespace(validate_every_steps=2, export="best"),
        metrics=SimpleNamespace(rows=list),
        validated=lambda step, metric, values: {"at": step, "value": sum(values.values()) / len(values)},
        is_main=False,
    )
    pairs: Any = SimpleNamespace(held_out={"a": None, "b": None})
    validation = Validation(ctx, training, pairs, lambda: (torch.tensor(next(margins)), 0.5))
    assert validation.resume(0) == 0
    seen = [validation.if_due(step, 5).get("validation_accuracy") for step in range(1, 6)]
    assert seen == [None, 0.5, None, 1.0, 0.25]
    assert saved == [(2, 0.5), (4, 1.0)]
    summary = validation.summary(5)
    assert (summary["step"], summary["validation"]) == (4, {"at": 4, "value": 1.0})
    assert validation.values == {"a": 1.0, "b": 1.0}


def test_pairs_that_are_trained_on_are_not_held_out(make: Callable[..., Step], capsys: Any) -> None:
    step = make("reward", validation="pairs.jsonl")
    with pytest.raises(SystemExit):
        run(step)
    assert "12 prompts are in its data and in its validation" in capsys.readouterr().err
    shutil.rmtree(step.folder)
