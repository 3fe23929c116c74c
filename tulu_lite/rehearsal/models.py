"""Tiny models of the architectures that a recipe names: their configurations, and the process that makes them. No torch."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import TuluLiteError
from ..files import write_json

MAKE_S = 300.0  # seconds that making one model may take
PROBE_S = 3.0  # for a connection to the hub
CONTEXT = 4096
# What config.json would say of the families that published recipes start from, where the hub cannot be reached.
FAMILIES: tuple[tuple[str, dict[str, Any]], ...] = (
    (r"llama-?3\.2|smollm", {"model_type": "llama", "num_key_value_heads": 1, "tie_word_embeddings": True}),
    (r"llama|tulu", {"model_type": "llama", "num_key_value_heads": 1}),
    (r"qwen-?2\.5-(0\.5|1\.5|3)b|qwen2-(0\.5|1\.5)b", {"model_type": "qwen2", "num_key_value_heads": 1, "tie_word_embeddings": True}),
    (r"qwen-?2|deepseek-r1-distill-qwen", {"model_type": "qwen2", "num_key_value_heads": 1}),
    (r"qwen-?3", {"model_type": "qwen3", "num_key_value_heads": 1}),
    (r"olmo-?2", {"model_type": "olmo2", "num_key_value_heads": 2}),
    (r"mistral|ministral", {"model_type": "mistral", "num_key_value_heads": 1}),
    (r"gemma-?2", {"model_type": "gemma2", "num_key_value_heads": 1, "tie_word_embeddings": True}),
)  # fmt: skip
TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 32,
    "max_position_embeddings": CONTEXT,
}  # fmt: skip
WITH_BOS = ("llama", "mistral", "gemma2", "gemma3_text")  # families whose texts begin with a bos token


@dataclass(frozen=True)
class TinyModel:
    """What one model is made from. The same values make the same model."""

    config: dict[str, Any]
    dialogues: list[list[dict[str, str]]]  # what it is shown for a moment
    chat_template: str  # the recipe's: a name or a .jinja file
    own_template: str | None  # jinja text that is saved with it
    special_tokens: tuple[str, ...]  # that its vocabulary has besides the usual ones
    texts: tuple[str, ...] = ()  # which its tokenizer knows besides the dialogues
    reward: bool = False  # a number instead of text
    steps: int = 100
    seed: int = 0

    def make(self, folder: Path) -> Path:
        """The model's folder in `folder`, made in a process of its own unless it is there. Raises TuluLiteError."""
        text = json.dumps(asdict(self), sort_keys=True)
        out = folder / f"{self.config['model_type']}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
        if (out / "config.json").exists():
            return out
        spec = out.with_suffix(".json")
        write_json(spec, asdict(self))
        run_maker(spec, out)
        return out


def run_maker(spec: Path, out: Path) -> None:
    """Have a process make the model, which needs torch. Raises TuluLiteError."""
    command = [sys.executable, "-m", "tulu_lite.rehearsal.make_model", str(spec), str(out)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=MAKE_S, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired:
        raise TuluLiteError(
            f"the tiny model for the rehearsal was not made within {MAKE_S:.0f} s",
            cure="this machine is very busy; run the same command again",
        ) from None
    if done.returncode:
        raise TuluLiteError(
            f"the tiny model for the rehearsal could not be made: {spec}",
            why="\n".join(done.stderr.strip().splitlines()[-6:]),
            cure="an architecture that transformers does not know needs a newer version of it",
        )


def tiny_config(model: str, revision: str | None) -> tuple[dict[str, Any], str]:
    """(configuration of a tiny model of the same architecture, where the architecture was read).

    model: a folder or a hub id. Raises TuluLiteError when the architecture cannot be known.
    """
    known, where = _config_of(model, revision)
    known = known.get("text_config", known)  # of a model that also sees
    tiny = {name: value for name, value in known.items() if _kept(name, value)} | TINY
    heads, kv_heads = known.get("num_attention_heads", 2), known.get("num_key_value_heads")
    if kv_heads is not None:
        tiny["num_key_value_heads"] = 1 if kv_heads < heads else 2
    if "layer_types" in known:
        kinds = list(dict.fromkeys(known["layer_types"]))
        tiny["layer_types"] = (kinds * 2)[: TINY["num_hidden_layers"]]
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        if name in known:
            tiny[name] = 4
    for name in ("moe_intermediate_size", "shared_expert_intermediate_size"):
        if name in known:
            tiny[name] = 64
    return tiny, where


def own_template(model: str) -> tuple[str | None, tuple[str, ...]]:
    """(jinja text, special tokens) of a local folder's tokenizer; nothing of a hub id's."""
    folder = Path(model)
    if not folder.is_absolute() or not folder.exists():
        return None, ()
    from ..datasets.chat import load_tokenizer

    tokenizer = load_tokenizer(model)
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
    return template, tuple(sorted(tokenizer.all_special_tokens))


def _kept(name: str, value: Any) -> bool:
    """Settings of the architecture itself; sizes, ids of a vocabulary, long-context scaling and storage are not."""
    return (
        name
        in (
            "model_type",
            "tie_word_embeddings",
            "sliding_window",
            "num_experts_per_tok",
            "num_experts_per_token",
        )
        or isinstance(value, (bool, float))
        or name in ("hidden_act", "hidden_activation")
    ) and name not in ("use_cache", "attention_dropout")


def _config_of(model: str, revision: str | None) -> tuple[dict[str, Any], str]:
    if Path(model).is_absolute():
        named = _by_name(Path(model).name)
        if named is not None and not Path(model).exists():  # what a rehearsal comes before downloading
            return named, "its name (the folder is not there yet)"
        try:
            return json.loads((Path(model) / "config.json").read_text(encoding="utf-8")), "its config.json"
        except (OSError, ValueError) as error:
            raise TuluLiteError(
                f"cannot read {model}/config.json: {error}",
                cure="`model` is a folder in Hugging Face format, or a hub id",
            ) from None
    from huggingface_hub import hf_hub_download

    try:
        offline = not hub_answers()  # what was downloaded before is found all the same
        file = hf_hub_download(model, "config.json", revision=revision, local_files_only=offline)
        return json.loads(Path(file).read_text(encoding="utf-8")), "its config.json"
    except Exception:  # no network, no access, no such model: the hub raises errors of many kinds
        named = _by_name(model)
        if named is not None:
            return named, "its name (the hub cannot be reached)"
        raise TuluLiteError(
            f"cannot rehearse with {model}: its config.json cannot be downloaded, and its name tells no architecture",
            cure="download the model's config.json and tokenizer files, and set `model` to the folder",
        ) from None


def _by_name(name: str) -> dict[str, Any] | None:
    for pattern, known in FAMILIES:
        if re.search(pattern, name, re.IGNORECASE):
            return {"num_attention_heads": 2, **known}
    return None


@lru_cache(maxsize=1)
def hub_answers() -> bool:
    """Whether the hub can be connected to: found out in seconds, where its client tries again for half a minute."""
    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), timeout=PROBE_S):
            return True
    except OSError:
        return False
