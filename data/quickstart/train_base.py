"""Pre-trains the quickstart's base model from scratch, on a CPU, from `generate.py`'s raw pages.

A 1.8M-parameter Llama over single characters. It reads problems solved well and badly, in no chat format, so
it *can* do what the recipe later asks for, but has no reason to prefer it.

    python data/quickstart/train_base.py

The learning rate warms up linearly and falls by a cosine to a tenth; the batch is packed without padding.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import generate
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>")
CONTEXT = 256

# Tulu's layout; what is between {% generation %} marks is what a loss mask keeps.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n<|assistant|>\n' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character (printable ASCII and newline), and the special tokens; decoding is exact."""
    characters = ["\n", *map(chr, range(32, 127))]
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int) -> LlamaForCausalLM:
    """A small Llama with heads of 32 (a size vLLM's CPU attention has) and tied embeddings."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        attention_bias=False,
        mlp_bias=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def packed_batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, tokens: int, short_steps: int
) -> Iterator[torch.Tensor]:
    """Token ids, shape (rows, length + 1): pages one after another, each `<bos> text <eos>`.

    `tokens` a step throughout. Rows are half a context for the first `short_steps` steps, because attention
    is half of the time on a CPU, and a whole context after that.
    """
    ids = tokenizer.get_vocab()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    buffer: list[int] = []
    text = generate.pages(seed)
    for step in itertools.count():
        length = CONTEXT // 2 if step < short_steps else CONTEXT
        rows = tokens // length
        need = rows * (length + 1)
        while len(buffer) < need:
            buffer += [bos, *(ids[c] for c in next(text)), eos]
        yield torch.tensor(buffer[:need]).view(rows, length + 1)
        buffer = buffer[need:]


def pages_digest(seed: int, count: int) -> str:
    """SHA-256 of the first `count` pages: says whether a base was made from this generator's text."""
    return hashlib.sha256("".join(itertools.islice(generate.pages(seed), count)).encode()).hexdigest()


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a cosine from `peak` to a tenth of it."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def train(model: LlamaForCausalLM, batches: Iterator[torch.Tensor], args: argparse.Namespace) -> float:
    """Next-token cross-entropy with AdamW; returns the last hundred steps' mean loss."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=True)
    recent: list[float] = []
    start = time.time()
    model.train()
    for step, ids in enumerate(itertools.islice(batches, args.steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr, args.warmup)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.autocast):
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent = [*recent[-99:], loss.item()]
        if (step + 1) % args.log_every == 0 or step + 1 == args.steps:
            seen = (step + 1) * args.batch_tokens
            seconds = time.time() - start
            mean = sum(recent[-args.log_every :]) / len(recent[-args.log_every :])
            print(
                f"step {step + 1:5d}  loss {mean:.4f}  {seen / 1e6:.1f}M tokens  {seconds:.0f} s", flush=True
            )
    return sum(recent) / len(recent)


@torch.no_grad()
def complete(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[str]:
    """Greedy continuations of texts, up to the end of the line."""
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    out = model.generate(**batch, max_new_tokens=56, do_sample=False)  # type: ignore[misc]
    ended = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.split("\n")[0] for text in ended]


def page_accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, careful: bool
) -> dict[str, float]:
    """Share of held-out problems (validation split) with the right answer, by kind, when a page's first two
    lines show the writer's style: what the base can do if it is led to it."""
    rng = random.Random("measure")
    right: dict[str, float] = {}
    for kind in generate.KINDS:
        texts, answers = [], []
        for _ in range(64):
            page = "<bos>"
            for shown in ("add", "reverse"):
                problem = generate.draw_problem(rng, "base", shown)
                style = (
                    generate.careful_response(problem, [])
                    if careful
                    else generate.hasty_response(problem, [], 0)
                )
                page += f"Q: {generate.prompt_text(problem, [])}\nA: {style}\n"
            problem = generate.draw_problem(rng, "validation", kind)
            texts.append(f"{page}Q: {generate.prompt_text(problem, [])}\nA: ")
            lead = "so" if careful else "Easy,"
            answers.append(f"{lead} {generate.KINDS[kind].answer(problem)}.")
        outputs = complete(model, tokenizer, texts)
        right[kind] = sum(o.endswith(a) for o, a in zip(outputs, answers, strict=True)) / len(answers)
    return right


def save(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path, record: dict[str, object]
) -> None:
    """The whole folder under another name, then renamed. Weights in bfloat16, used as float32."""
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.bfloat16().save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    (temporary / "TRAINING.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (temporary / "model.safetensors").chmod(0o644)
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Pre-train the quickstart's base model from scratch on a CPU."
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--short-steps", type=int, default=2900, help="steps with rows of half a context")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens a step")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument("--hidden", type=int, default=160)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log-every", type=int, default=100, help="steps between lines of progress")
    parser.add_argument(
        "--no-autocast", dest="autocast", action="store_false", help="float32 throughout (slower)"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "base")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, args.hidden, args.layers)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters / 1e6:.2f}M parameters, {args.steps * args.batch_tokens / 1e6:.1f}M tokens")

    start = time.time()
    batches = packed_batches(tokenizer, args.seed, args.batch_tokens, args.short_steps)
    loss = train(model, batches, args)
    seconds = time.time() - start
    for parameter in model.parameters():  # measure what is saved
        parameter.data = parameter.data.bfloat16().float()
    model.eval()
    accuracy = {
        "worked (careful pages)": page_accuracy(model, tokenizer, careful=True),
        "at once (hasty pages)": page_accuracy(model, tokenizer, careful=False),
    }
    for style, by_kind in accuracy.items():
        print(style, {k: round(v, 2) for k, v in by_kind.items()})
    record: dict[str, object] = {
        "script": "data/quickstart/train_base.py",
        "arguments": {k: v for k, v in vars(args).items() if k != "out"},
        "parameters": parameters,
        "tokens_seen": args.steps * args.batch_tokens,
        "sha256_of_first_10000_pages": pages_digest(args.seed, 10_000),
        "final_loss_nats_per_token": round(loss, 4),
        "seconds": round(seconds),
        "torch": torch.__version__,
        "greedy_accuracy_on_64_held_out_problems_per_kind": accuracy,
    }
    save(model, tokenizer, args.out, record)
    print(f"saved {args.out}")


if __name__ == "__main__":
    main()
