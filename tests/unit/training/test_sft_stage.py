"""The SFT stage as its process runs it: exact whatever the micro-batches and packing, measured on held-out rows."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tulu_lite.datasets.batching import token_batches
from tulu_lite.pipeline.expand import expand
from tulu_lite.pipeline.ledger import Ledger
from tulu_lite.pipeline.protocol import read_metrics, read_validation
from tulu_lite.pipeline.steps import Step
from tulu_lite.recipe import SftStage, load_recipe
from tulu_lite.stages import context, sft
from tulu_lite.stages.context import step_context

WORDS = ["<pad>", "<bos>", "<eos>", "<|user|>", "<|assistant|>", *(f"w{number}" for number in range(30))]
Make = Callable[..., Step]


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


def row(number: int) -> dict[str, str]:
    filler = " ".join(f"w{10 + (number * k) % 20}" for k in range(1, 2 + number % 9))
    return {"prompt": f"w{number % 30} w3 {filler}", "completion": f"w1 {filler} w1"}


@pytest.fixture
def make(tmp_path: Path, model: Path) -> Make:
    """make(**fields) -> the step of a recipe with that one stage, not run."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(12)))
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(40, 46)))

    def of(out: str = "out", **fields: Any) -> Step:
        stage = {
            "name": "sft", "kind": "sft", "data": "rows.jsonl", "learning_rate": 1e-2, "batch_size": 6,
            "max_length": 60, "epochs": 2, "warmup_ratio": 0.0, **fields,
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
    recipe = step.folder.parents[3] / "recipe.yaml"
    with step_context(SftStage, ["--recipe", str(recipe), "--stage", "sft"]) as ctx:
        sft.train(ctx)
    return step.summary


def rows(step: Step) -> list[dict[str, Any]]:
    return read_metrics(step.folder / "metrics.jsonl")


def weights(step: Step) -> dict[str, torch.Tensor]:
    return load_file(step.folder / "model" / "model.safetensors")


def ids_and_mask(folder: Path, line: dict[str, str]) -> tuple[list[int], list[int]]:
    """Of the `tulu` template, worked out here."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    prompt, answer = (tokenizer(line[name])["input_ids"] for name in ("prompt", "completion"))
    return [3, *prompt, 4, *answer, 2], [0] * (len(prompt) + 2) + [1] * (len(answer) + 1)


@pytest.mark.parametrize("loss", ["token_mean", "token_sum"])
def test_micro_batches_and_packing_change_nothing(make: Make, loss: str) -> None:
    runs = []
    for fields in ({}, {"micro_batch_tokens": 40}, {"packing": "bucket"}):
        step = make(f"run-{len(runs)}", loss=loss, epochs=1, **fields)
        run(step)
        runs.append((rows(step), weights(step)))
    logged, first = runs[0]
    assert len(logged) == 2
    assert logged[1]["loss"] < logged[0]["loss"]
    for other, tensors in runs[1:]:
        for one, two in zip(logged, other, strict=True):
            for name in ("loss", "grad_norm"):
                assert one[name] == pytest.approx(two[name], rel=1e-5), (name, one, two)
        apart = torch.cat([(first[name] - tensors[name]).abs().flatten() for name in first])
        assert (apart > 1e-4).float().mean() < 0.01
    assert {row["padding_share"] for row in logged} == {0.0}
    assert runs[2][0][0]["padding_share"] > 0.1


def test_the_first_loss_and_gradient_are_those_of_a_plain_implementation(make: Make, model: Path) -> None:
    step = make(batch_size=12, epochs=1)
    run(step)
    causal = AutoModelForCausalLM.from_pretrained(model)
    total, count = torch.zeros(()), 0
    for number in range(12):
        ids, mask = ids_and_mask(model, row(number))
        logits = causal(input_ids=torch.tensor([ids])).logits[0, :-1]
        chosen = logits.log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None]).squeeze(1)
        total = total - (chosen * torch.tensor(mask[1:])).sum()
        count += sum(mask[1:])
    loss = total / count
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in causal.parameters() if p.grad is not None]).norm()
    (logged,) = rows(step)
    assert logged["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert logged["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert logged["loss_tokens"] == count


def test_held_out_rows_are_measured(make: Make, model: Path) -> None:
    step = make(validation="held.jsonl", validate_every_steps=3)
    summary = run(step)
    assert [row["step"] for row in rows(step) if "validation_loss" in row] == [3, 4]
    values = read_validation(step.folder / "validation.jsonl")
    assert len(values) == 6
    assert summary["validation"] == {
        "metric": "loss", "value": pytest.approx(sum(values.values()) / 6), "better": "lower",
    }  # fmt: skip
    trained = AutoModelForCausalLM.from_pretrained(step.folder / "model")
    ids, mask = ids_and_mask(model, row(40))
    with torch.no_grad():
        log_p = trained(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    chosen = log_p.gather(-1, torch.tensor(ids[1:])[:, None]).squeeze(1) * torch.tensor(mask[1:])
    assert -chosen.sum().item() / sum(mask[1:]) == pytest.approx(next(iter(values.values())), rel=1e-4)
    assert not list((step.folder / "checkpoints").glob("best"))


def test_the_best_weights_go_on(make: Make) -> None:
    """The rate is far too high at the end, so that the last weights are worse than earlier ones."""
    fields = {
        "validation": "held.jsonl",
        "validate_every_steps": 1,
        "schedule": "constant",
        "learning_rate": 0.9,
    }
    best = make("best", export="best", **fields)
    summary = run(best)
    last = make("last", **fields)
    other = run(last)
    losses = [row["validation_loss"] for row in rows(best)]
    assert losses == [row["validation_loss"] for row in rows(last)]
    assert min(losses) < losses[-1]
    assert summary["validation"]["value"] == min(losses)
    assert summary["step"] == losses.index(min(losses)) + 1
    assert other["validation"]["value"] == losses[-1]
    assert not torch.equal(weights(best)["model.norm.weight"], weights(last)["model.norm.weight"])
    again = sum(read_validation(best.folder / "validation.jsonl").values()) / 6
    assert again == pytest.approx(min(losses))


def test_rows_that_are_trained_on_are_no_validation(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(make(validation="rows.jsonl"))
    assert "conversations are in its data and in its validation" in capsys.readouterr().err


def test_best_needs_a_validation(make: Make) -> None:
    with pytest.raises(Exception, match="export: best needs `validation`"):
        make(export="best")


def test_a_step_said_in_tokens(make: Make) -> None:
    step = make(batch_tokens=50)
    run(step)
    logged = rows(step)
    assert all(row["tokens"] <= 50 for row in logged)
    assert len(logged) > 4
    assert sum(row["tokens"] for row in logged) == 2 * sum(
        len(row(i)["prompt"].split()) + len(row(i)["completion"].split()) + 3 for i in range(12)
    )


def test_token_batches_by_hand() -> None:
    every = token_batches([5, 5, 5, 30, 5], 12, 2, seed=1)
    lengths = [[(5, 5, 5, 30, 5)[i] for i in part] for part in every]
    assert sorted(i for part in every for i in part) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert all(sum(part) <= 12 or part == [30] for part in lengths)
    half = len(every) // 2
    assert token_batches([5, 5, 5, 30, 5], 12, 1, seed=1) == every[:half] or len(every) % 2
