"""Prompts, conversations and pairs, from rows to token ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tulu_lite.datasets.chat import ChatTemplate
from tulu_lite.datasets.conversations import load_conversations
from tulu_lite.datasets.pairs import load_pairs, read_pairs, write_pairs
from tulu_lite.datasets.prompts import load_prompts
from tulu_lite.errors import TuluLiteError
from tulu_lite.recipe import DataSource, DpoStage, SftStage
from tulu_lite.records import PreferencePair, Prompt, Rollout
from verifiers import Verdict

Write = Callable[..., str]


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def prompts_of(path: str, template: ChatTemplate, limit: int | None = None, **how: Any) -> list[Prompt]:
    return load_prompts([DataSource(path=path, **how)], template, seed=0, max_prompt_tokens=limit)


def sft(data: Any, **how: Any) -> SftStage:
    return SftStage(name="sft", kind="sft", data=data, learning_rate=1e-3, **how)


def dpo(data: Any, **how: Any) -> DpoStage:
    return DpoStage(name="dpo", kind="dpo", init="base", data=data, learning_rate=1e-3, **how)


def decoded(template: ChatTemplate, ids: Any) -> str:
    return template.tokenizer.decode(list(ids))


# Prompts


def test_prompt_of_a_template(write: Write, template: ChatTemplate) -> None:
    path = write("svamp.jsonl", [{"Body": "A.", "Q": "B?", "out": {"n": 7}, "verifier": "number"}])
    (prompt,) = prompts_of(path, template, prompt="{Body} {Q}", reference="out.n", system="Think.")
    assert prompt.text == "<bos>[system]Think.[user]A. B?[assistant]"
    assert decoded(template, prompt.token_ids) == prompt.text
    assert (prompt.user, prompt.reference, prompt.verifier, prompt.source) == ("A. B?", 7, "number", "svamp")
    assert len(prompt.id) == 16
    assert int(prompt.id, 16) >= 0


def test_prompt_of_messages_drops_the_answer(write: Write, template: ChatTemplate) -> None:
    turns = [user("a"), assistant("b"), user("c")]
    rows = [{"messages": turns, "reference": 1}, {"messages": [*turns, assistant("d")], "reference": 1}]
    first, second = prompts_of(write("m.jsonl", rows), template, verifier="exact")
    assert first.text == second.text == "<bos>[user]a[assistant]b<eos>[user]c[assistant]"
    assert first.user == "c"
    assert second.id == f"{first.id}-2"


def test_prompt_ids_depend_on_source_text_and_reference_alone(write: Write, template: ChatTemplate) -> None:
    rows = [{"prompt": "p", "reference": {"a": 1, "b": 2}}, {"prompt": "q", "reference": 1}]
    here = prompts_of(write("x.jsonl", rows), template, verifier="exact", source="s")
    turned = [{"reference": 1, "prompt": "q"}, {"reference": {"b": 2, "a": 1}, "prompt": "p", "more": 0}]
    there = prompts_of(write("y.jsonl", turned), template, verifier="number", source="s")
    assert [p.id for p in here] == [p.id for p in reversed(there)]
    other = prompts_of(write("z.jsonl", rows), template, verifier="exact", source="t", repeat=2)
    assert len({p.id for p in here + other}) == 6


def test_verifiers_of_rows_and_sources(write: Write, template: ChatTemplate) -> None:
    spec = {"weighted": [{"use": "exact", "weight": 1}]}
    path = write("v.jsonl", [{"prompt": "p", "reference": None, "verifier": spec}])
    (prompt,) = prompts_of(path, template)
    assert prompt.verifier.startswith("{")
    assert json.loads(prompt.verifier) == spec
    assert prompt.reference is None
    assert prompts_of(path, template, verifier="exact")[0].verifier == "exact"


@pytest.mark.parametrize(
    ("row", "message", "cure"),
    [
        ({"prompt": "p", "reference": 1}, "names no verifier", "verifier: math"),
        (
            {"prompt": "p", "verifier": "exact"},
            "no 'reference'.*its fields are prompt, verifier",
            "reference: answer",
        ),
        ({"question": "p", "reference": 1}, "neither 'messages' nor 'prompt'", "{question}"),
        ({"prompt": " ", "reference": 1}, "prompt is empty", "remove"),
        ({"messages": [assistant("a")], "reference": 1}, "it is the user's turn", ""),
        ({"messages": [], "reference": 1}, "not a list of turns", "role"),
    ],
)
def test_prompt_faults_name_the_row(
    write: Write, template: ChatTemplate, row: Any, message: str, cure: str
) -> None:
    good = {"prompt": "p", "reference": 1, "verifier": "exact"}
    with pytest.raises(TuluLiteError, match=rf"rows\.jsonl:2: .*{message}") as caught:
        prompts_of(write("rows.jsonl", [good, row]), template)
    assert cure in caught.value.cure


def test_prompt_length_limit(write: Write, template: ChatTemplate) -> None:
    path = write("rows.jsonl", [{"prompt": "12345", "reference": 1, "verifier": "exact"}])
    length = len("[user]12345[assistant]") + 1
    assert len(prompts_of(path, template, length)) == 1
    with pytest.raises(
        TuluLiteError, match=rf"rows\.jsonl:1: the prompt has {length} tokens, more than the {length - 1}"
    ):
        prompts_of(path, template, length - 1)


# Conversations


def test_conversations_of_messages_and_of_columns(write: Write, template: ChatTemplate) -> None:
    path = write(
        "c.jsonl",
        [{"messages": [user("q"), assistant("a")]}, {"prompt": "q", "completion": "a", "source": "z"}],
    )
    examples, report = load_conversations(sft(path), template, seed=0)
    assert examples[0].token_ids == examples[1].token_ids
    assert examples[0].loss_mask == examples[1].loss_mask
    assert decoded(template, examples[0].token_ids) == "<bos>[user]q[assistant]a<eos>"
    assert [on for on in examples[0].loss_mask if on] == [True, True]
    assert [(e.source, e.file, e.line) for e in examples] == [("c", path, 1), ("z", path, 2)]
    assert (report.kept, report.tokens, report.loss_tokens) == (2, 2 * len(examples[0].token_ids), 4)
    assert report.by_source == {"c": 1, "z": 1}
    assert report.notes() == []


def test_long_conversations(write: Write, template: ChatTemplate) -> None:
    rows = [{"prompt": "q", "completion": "a" * n} for n in (1, 50, 51)]
    path = write("c.jsonl", rows)
    fits = len("[user]q[assistant]") + 2 + 50
    examples, report = load_conversations(sft(path, max_length=fits), template, seed=0)
    assert [e.line for e in examples] == [1, 2]
    assert report.notes() == [f"1 of 3 rows dropped: longer than {fits} tokens ({path}:3)"]
    with pytest.raises(
        TuluLiteError, match=rf"c\.jsonl:3: {fits + 1} tokens are more than max_length {fits}"
    ):
        load_conversations(sft(path, max_length=fits, too_long="error"), template, seed=0)
    with pytest.raises(
        TuluLiteError, match="stage sft: all rows were dropped 3 of 3 rows dropped: longer than 8 tokens"
    ):
        load_conversations(sft(path, max_length=8), template, seed=0)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([user("q")], "ends with the user's turn"),
        ([user("q"), user("r"), assistant("a")], "turn 2 is the user's"),
        ([user("q"), assistant("a"), assistant("b")], "turn 3 is the assistant's"),
        ([user("q"), {"role": "system", "content": "s"}, assistant("a")], "turn 2 is the system's"),
        ([{"role": "system", "content": "s"}], "no user turn"),
        ([{"role": "system", "content": "s"}, assistant("a")], "turn 2 is the assistant's"),
        ([user("q"), assistant("  \n")], r"turn 2 \(assistant\) is empty"),
        ([user("q"), assistant(3)], "turn 2 has content that is no text"),
        ([user("q"), {"role": "tool", "content": "t"}], "turn 2 has the role 'tool'"),
        ([{"from": "human", "value": "q"}], "turn 1 has the fields from, value"),
        (["q"], "turn 1 is 'q'"),
        ("q", "not a list of turns"),
    ],
)
def test_conversation_faults_name_the_row(
    write: Write, template: ChatTemplate, messages: Any, message: str
) -> None:
    path = write("c.jsonl", [{"messages": [user("q"), assistant("a")]}, {"messages": messages}])
    with pytest.raises(TuluLiteError, match=rf"c\.jsonl:2: .*{message}"):
        load_conversations(sft(path), template, seed=0)


def test_system_turn_of_the_source(write: Write, template: ChatTemplate) -> None:
    path = write("c.jsonl", [{"messages": [user("q"), assistant("a")]}, {"prompt": "q", "completion": "a"}])
    examples, _ = load_conversations(sft({"path": path, "system": "S"}), template, seed=0)
    assert {decoded(template, e.token_ids) for e in examples} == {"<bos>[system]S[user]q[assistant]a<eos>"}
    own = write("d.jsonl", [{"messages": [{"role": "system", "content": "T"}, user("q"), assistant("a")]}])
    with pytest.raises(TuluLiteError, match="a system turn of its own"):
        load_conversations(sft({"path": own, "system": "S"}), template, seed=0)


# Pairs


def pair_of(template: ChatTemplate) -> PreferencePair:
    prompt = Prompt("0123", "text\u2028 é", (1, 2, 3), "src", "math", {"a": [1, None]}, "user text")
    good = Verdict(1.0, "correct", "why", "72", 0.25, "math", "1")
    chosen = Rollout((9, 8, 2), (-0.1, -1 / 3, -1e-9), (4, 4, 4), "stop", "ok", good)
    return PreferencePair(
        prompt, chosen, Rollout((7,), (-2.5,), (4,), "length", "no\n"), {"stage": "p", "seed": 3}
    )


def test_pairs_come_back_as_they_were(tmp_path: Path, template: ChatTemplate) -> None:
    pair = pair_of(template)
    write_pairs(tmp_path / "pairs.jsonl", [pair, replace(pair, provenance={})])
    assert read_pairs(tmp_path / "pairs.jsonl") == [pair, replace(pair, provenance={})]
    assert [p.name for p in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_broken_pairs(tmp_path: Path, template: ChatTemplate) -> None:
    path = tmp_path / "pairs.jsonl"
    with pytest.raises(TuluLiteError, match="there is no file of pairs"):
        read_pairs(path)
    write_pairs(path, [pair_of(template)])
    whole = json.loads(path.read_text())
    broken: list[tuple[Any, str]] = [
        ({**whole, "chosen": {**whole["chosen"], "logprobs": [0.0]}}, "3 tokens but 1 logprobs"),
        ({k: v for k, v in whole.items() if k != "rejected"}, "'rejected' is missing"),
        ({**whole, "prompt": {**whole["prompt"], "token_ids": ["1"]}}, "whole numbers"),
        ({**whole, "prompt": {**whole["prompt"], "extra": 1}}, "extra"),
        ([1], "indices"),
    ]
    for data, message in broken:
        path.write_text(json.dumps(whole) + "\n" + json.dumps(data) + "\n")
        with pytest.raises(TuluLiteError, match=rf"pairs\.jsonl:2: this is not a pair.*{message}"):
            read_pairs(path)


def test_sampled_pairs_are_never_tokenized_again(tmp_path: Path, template: ChatTemplate) -> None:
    """Ids that no text has: what was sampled is what is trained on."""
    pair = pair_of(template)
    same = replace(pair, rejected=replace(pair.chosen, text="other"))
    long = replace(pair, chosen=Rollout((5,) * 9, (0.0,) * 9, (1,) * 9, "stop"))
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, [pair, same, long])
    stage = dpo({"stage": "prefs"}, max_length=8)
    (example,), report = load_pairs(stage, template, seed=0, stage_rows={"prefs": path}.__getitem__)
    assert (example.prompt_ids, example.chosen_ids, example.rejected_ids, example.source) == (
        (1, 2, 3), (9, 8, 2), (7,), "src",
    )  # fmt: skip
    assert (report.kept, report.tokens, report.loss_tokens) == (1, 10, 4)
    assert report.notes() == [
        f"1 of 3 rows dropped: chosen and rejected are the same ({path}:2)",
        f"1 of 3 rows dropped: longer than 8 tokens ({path}:3)",
    ]
    with pytest.raises(TuluLiteError, match=r"pairs\.jsonl:3: 12 tokens"):
        load_pairs(
            dpo({"stage": "prefs"}, max_length=8, too_long="error"),
            template,
            seed=0,
            stage_rows=lambda _: path,
        )
    with pytest.raises(TuluLiteError, match="not there yet"):
        load_pairs(stage, template, seed=0, stage_rows=None)


def test_pairs_of_text(write: Write, template: ChatTemplate) -> None:
    rows = [{"q": "Q", "good": "yes", "bad": "no"}, {"q": "Q", "good": "x", "bad": "x"}]
    source = {
        "path": write("p.jsonl", rows),
        "prompt": "{q}?",
        "chosen": "{good}",
        "rejected": "{bad}",
        "system": "S",
    }
    (example,), report = load_pairs(dpo(source), template, seed=0, stage_rows=None)
    assert decoded(template, example.prompt_ids) == "<bos>[system]S[user]Q?[assistant]"
    assert decoded(template, example.chosen_ids) == "yes<eos>"
    assert decoded(template, example.rejected_ids) == "no<eos>"
    assert report.dropped == {"chosen and rejected are the same": 1}
    with pytest.raises(TuluLiteError, match=r"p\.jsonl:1: this row has no 'chosen'"):
        load_pairs(dpo({**source, "chosen": "{chosen}"}), template, seed=0, stage_rows=None)


def test_pairs_all_dropped(write: Write, template: ChatTemplate) -> None:
    path = write("p.jsonl", [{"prompt": "Q", "chosen": "x", "rejected": "x"}])
    with pytest.raises(TuluLiteError, match="stage dpo: all rows were dropped"):
        load_pairs(dpo(path), template, seed=0, stage_rows=None)
