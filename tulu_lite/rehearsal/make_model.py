"""Makes one tiny model: a tokenizer of the rows' text, random weights, and a moment of training on the rows.

    python -m tulu_lite.rehearsal.make_model SPEC.json FOLDER

The training is what makes a rehearsal go through: samples of purely random weights are noise that no verifier tells
apart, so that there would be no pair, no response to keep and no group with signal.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from ..datasets.chat import ChatTemplate
from ..datasets.templates import CHATML
from .models import WITH_BOS

VOCABULARY = 768  # tokens, bytes and special ones included
SPECIAL = (
    "<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<｜User｜>", "<｜Assistant｜>",
)  # fmt: skip
ROWS, LONGEST, PEAK = 12, 192, 3e-3  # of a training step: rows, tokens of a row, learning rate


def main() -> None:
    torch.set_num_threads(1)  # sums in one order: the same model each time
    make(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))


def make(spec: dict[str, Any], out: Path) -> None:
    """Make the folder `out` of what a TinyModel says."""
    torch.manual_seed(spec["seed"])
    tokenizer = make_tokenizer(spec)
    config = AutoConfig.for_model(**spec["config"], **_ids(tokenizer, spec["reward"]))
    model: Any
    if spec["reward"]:
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        show(model, encoded(spec, tokenizer), spec["steps"], spec["seed"])
        model.generation_config = GenerationConfig(
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        )
    save(model, tokenizer, out)


def make_tokenizer(spec: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of the rows' text, digits one by one; any text round-trips."""
    texts = [turn["content"] for dialogue in spec["dialogues"] for turn in dialogue] + spec["texts"]
    special = tuple(dict.fromkeys([*SPECIAL, *spec["special_tokens"]]))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(texts), trainer)
    bos = {"bos_token": "<bos>"} if spec["config"]["model_type"] in WITH_BOS else {}
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<eos>",
        pad_token="<pad>",
        model_max_length=spec["config"]["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
        **bos,
    )
    made.chat_template = spec["own_template"] or CHATML
    return made


def _ids(tokenizer: PreTrainedTokenizerFast, reward: bool) -> dict[str, Any]:
    ids = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    return ids | {"pad_token_id": tokenizer.pad_token_id} | ({"num_labels": 1} if reward else {})


def encoded(spec: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """The dialogues' token ids by the recipe's template; those that are too long are left out."""
    template = ChatTemplate.load(spec["chat_template"], tokenizer, "")
    ids = [ids for ids, _ in template.conversations(spec["dialogues"])]
    return [row for row in ids if len(row) <= LONGEST] or [row[:LONGEST] for row in ids]


def show(model: Any, rows: list[list[int]], steps: int, seed: int) -> None:
    """A few steps of next-token cross-entropy on the rows."""
    choice = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.98))
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = PEAK * min(step / 10, 1.0, 1.1 - step / steps)
        batch = [choice.choice(rows) for _ in range(ROWS)]
        longest = max(len(row) for row in batch)
        ids = torch.zeros(ROWS, longest, dtype=torch.long)
        attention = torch.zeros(ROWS, longest, dtype=torch.long)
        for place, row in enumerate(batch):
            ids[place, : len(row)] = torch.tensor(row)
            attention[place, : len(row)] = 1
        labels = ids.masked_fill(attention == 0, -100)
        model(input_ids=ids, attention_mask=attention, labels=labels, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def save(model: Any, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """The whole folder under another name, then renamed."""
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)


if __name__ == "__main__":
    main()
