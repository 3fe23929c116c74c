"""Makes a tiny language model of your own text: a byte-level BPE tokenizer, a small Llama, and some pre-training.

    python data/make_model.py --text train.jsonl --fields question answer --out runs/models/tiny --steps 200

For trying a recipe on real data without a GPU or a download. With --steps 0 the weights are random. The tokenizer has
no chat template: name one in the recipe (`chat_template: tulu`).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HEAD = 32  # a head size that vLLM's CPU attention has


def read_texts(files: list[Path], fields: list[str]) -> list[str]:
    """One text a row: the named fields, a line each."""
    texts = []
    for file in files:
        for number, line in enumerate(file.read_bytes().splitlines(), 1):
            row = json.loads(line)
            missing = [field for field in fields if field not in row]
            if missing:
                raise SystemExit(f"{file}:{number}: no field {missing[0]!r}; the row has {', '.join(row)}")
            texts.append("\n".join(str(row[field]) for field in fields))
    if not texts:
        raise SystemExit(f"no text in {', '.join(map(str, files))}")
    return texts


def train_tokenizer(texts: list[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE (any text round-trips), digits one by one, so that numbers are read digit by digit."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def build(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int, context: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=hidden // HEAD,
        num_key_value_heads=hidden // HEAD,
        head_dim=HEAD,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def load(folder: Path, context: int) -> tuple[PreTrainedTokenizerFast, LlamaForCausalLM]:
    """A model made before, and its tokenizer without its chat template, for sequences of up to `context` tokens."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.model_max_length = context
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.config.max_position_embeddings = context
    return tokenizer, model


def batches(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], rows: int, length: int, seed: int
) -> Iterator[torch.Tensor]:
    """[rows, length + 1] token ids for ever: the texts, shuffled anew each time round, one after another."""
    rng = random.Random(seed)
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    pages = [[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] for ids in encoded]
    buffer: list[int] = []
    need = rows * (length + 1)
    while True:
        rng.shuffle(pages)
        for page in pages:
            buffer += page
            while len(buffer) >= need:
                yield torch.tensor(buffer[:need]).view(rows, length + 1)
                buffer = buffer[need:]


def pretrain(model: LlamaForCausalLM, stream: Iterator[torch.Tensor], steps: int, peak: float) -> float:
    """Next-token cross-entropy, AdamW, linear warm-up over 5 % and a cosine to a tenth; returns the last loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.05)
    warmup, loss, began = max(1, steps // 20), float("nan"), time.monotonic()
    for step in range(1, steps + 1):
        falling = 0.1 + 0.45 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = peak * min(step / warmup, falling)
        ids = next(stream)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        value = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss = value.item()
        if step % 50 == 0 or step == steps:
            seconds = time.monotonic() - began
            left = seconds / step * (steps - step)
            print(f"step {step}/{steps}  loss {loss:.3f}  {seconds:.0f} s, {left:.0f} s left", flush=True)
    return loss


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path, record: dict) -> None:
    """The whole folder under another name, then renamed."""
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    (temporary / "TRAINING.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="JSONL files")
    parser.add_argument("--fields", nargs="+", required=True, help="the fields of a row that are its text")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="go on from this model and tokenizer instead of new ones")
    parser.add_argument("--vocabulary", type=int, default=2048, help="tokens")
    parser.add_argument("--hidden", type=int, default=128, help=f"a multiple of {HEAD}")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--context", type=int, default=1024, help="tokens")
    parser.add_argument("--steps", type=int, default=0, help="steps of pre-training; 0: random weights")
    parser.add_argument("--rows", type=int, default=32, help="rows of a step")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.hidden % HEAD:
        parser.error(f"--hidden must be a multiple of {HEAD}")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    texts = read_texts(args.text, args.fields)
    if args.init is not None:
        tokenizer, model = load(args.init, args.context)
    else:
        tokenizer = train_tokenizer(texts, args.vocabulary, args.context)
        model = build(tokenizer, args.hidden, args.layers, args.context)
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens, {len(texts)} texts"
    )
    stream = batches(tokenizer, texts, args.rows, args.length, args.seed)
    loss = pretrain(model, stream, args.steps, args.lr) if args.steps else None
    args.out.parent.mkdir(parents=True, exist_ok=True)
    arguments = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    arguments["text"] = [path.name for path in args.text]
    arguments["out"] = args.out.name
    arguments["init"] = args.init and args.init.name
    save(model, tokenizer, args.out, {"script": "data/make_model.py", "arguments": arguments, "loss": loss})
    print(f"saved {args.out}")


if __name__ == "__main__":
    main()
