"""Models that give a number at every token: reward models, and PPO's value models.

B sequences, T positions, D hidden size. On disk such a model is an ordinary sequence-classification folder with one
label, which transformers and vLLM load; the number of the last token is then the sequence's.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.utils import logging as hf_logging

from ..errors import TuluLiteError
from ..recipe.training import LoraSettings
from .head import logit_dtype
from .logprobs import hidden_at
from .model import without_dropout
from .wrapper import Wrapper

HEAD = "score"  # what transformers calls the linear layer over the last hidden states of a decoder


class ScalarModel(Wrapper):
    """A transformers sequence-classification model with one label, whose forward pass gives every token's number."""

    def forward(self, ids: Tensor, attention: Tensor | None = None) -> Tensor:
        """[B, T], float32 (float64 of a float64 model): the number at each token, which depends on those up to it.

        ids: [B, T], padded on the right: attention is causal, so no real token sees padding, and what stands at
        padding is 0. attention: [B, T], 1 on real tokens; by default all are.
        """
        real, hidden = self._hidden(ids, attention)
        scalars = getattr(self.base, HEAD)(hidden).squeeze(-1)  # [N]
        scalars = scalars.to(logit_dtype(scalars.dtype))
        return scalars.new_zeros(ids.numel()).index_copy(0, real, scalars).view_as(ids)

    def _hidden(self, ids: Tensor, attention: Tensor | None) -> tuple[Tensor, Tensor]:
        """Places [N] of the real tokens in [B * T], and their last hidden states [N, D]."""
        attention = torch.ones_like(ids) if attention is None else attention
        real = attention.reshape(-1).nonzero().squeeze(1)
        return real, hidden_at(self, ids, attention, real)

    def probe(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Numbers [B, T] that packing must leave as they are: not the model's own, since a fresh head says 0 to all."""
        real, hidden = self._hidden(ids, attention)
        mixed = (
            hidden.float() @ torch.arange(hidden.shape[1], device=ids.device).cos() / hidden.shape[1] ** 0.5
        )
        return mixed.new_zeros(ids.numel()).index_copy(0, real, mixed).view_as(ids)


def at_last(scalars: Tensor, lengths: Tensor) -> Tensor:
    """[B]: each sequence's number, that of its last token. scalars: [B, T]; lengths: [B] real tokens, 1 or more."""
    return scalars.gather(1, lengths[:, None] - 1).squeeze(1)


def load_scalar_model(
    folder: str | Path,
    device: torch.device | str,
    *,
    lora: LoraSettings | None = None,
    gradient_checkpointing: bool = False,
    fresh_head: Literal["zeros", "normal"] = "zeros",
    revision: str | None = None,
) -> ScalarModel:
    """A ScalarModel in float32, in training mode, from a sequence-classification folder or a causal language model's.

    A causal model's head for tokens is left out and one for a number is new: zeros, so that every number is 0 at
    first (a value model), or normal with standard deviation 1 / sqrt(D + 1), the same for the same D and device type
    (a reward model: Stiennon et al. 2020, arXiv:2009.01325, C.2, as Tülu 3's code has it). Dropout is off. With `lora`
    only adapters and the head are trained. Raises TuluLiteError for a folder that is neither, lacks weights, has
    another number of labels, or whose model pools its tokens in another way.
    """
    model, fresh = _from_pretrained(str(folder), revision)
    head = getattr(model, HEAD)
    if fresh:
        _initialise(head, fresh_head)
    model.to(device)
    without_dropout(model)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    _check_scalars(model, str(folder))
    return ScalarModel(model if lora is None else _with_adapters(model, lora, str(folder)))


def _from_pretrained(name: str, revision: str | None) -> tuple[Any, bool]:
    """The model, and whether its head is a fresh one."""
    cure = "name the folder of a causal language model, or of a reward model with one label"
    if not Path(name).exists() and name.startswith((".", "/", "~")):
        raise TuluLiteError(f"there is no model folder {name}", cure=cure)
    bars = hf_logging.is_progress_bar_enabled()
    level = hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()  # that the head is new is said by us, and only where it should not be
    try:
        config: Any = AutoConfig.from_pretrained(name, revision=revision or "main")
        classifies = any("SequenceClassification" in kind for kind in config.architectures or ())
        if classifies and config.num_labels != 1:
            raise TuluLiteError(
                f"{name} tells {config.num_labels} classes apart; a reward model has one label", cure=cure
            )
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name,
            revision=revision or "main",
            num_labels=1,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError) as error:
        why = str(error).strip().split("\n")[0]
        raise TuluLiteError(
            f"{name} cannot be loaded as a model that gives numbers", why=why, cure=cure
        ) from error
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
    if not isinstance(getattr(model, HEAD, None), nn.Linear):
        raise TuluLiteError(
            f"{name}: a {type(model).__name__} has no linear layer `{HEAD}` over its last hidden states",
            why="only decoders with such a head give a number at every token",
            cure="use a model of another architecture, such as Llama, Qwen or OLMo",
        )
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # as in load_model: sdpa leaves the cap out
    lacking = sorted(report["missing_keys"]) + sorted(str(key) for key in report.get("mismatched_keys", ()))
    missing = [key for key in lacking if classifies or key.partition(".")[0] != HEAD]
    if missing:
        raise TuluLiteError(
            f"{name} lacks {len(missing)} of the model's weights, the first being {missing[0]}",
            why="they would be trained from random values",
            cure="check that config.json and the safetensors files belong together",
        )
    return model, not classifies


@torch.no_grad()
def _initialise(head: nn.Linear, how: str) -> None:
    """By a generator of its own: neither the stage's random state nor the number of processes has a part in it."""
    if head.bias is not None:
        head.bias.zero_()
    if how == "zeros":
        head.weight.zero_()
        return
    values = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(0))
    head.weight.copy_(values / math.sqrt(head.in_features + 1))


@torch.no_grad()
def _check_scalars(model: Any, name: str) -> None:
    """On four tokens, our number at the last in training mode is the model's own output in evaluation."""
    if any(parameter.is_meta or hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return  # sharded from the start: it cannot run before the engine is there
    pad = model.config.get_text_config().pad_token_id
    ids = torch.tensor([[i for i in range(1, 7) if i != pad][:4]], device=model.device)
    ids = ids % model.config.get_text_config().vocab_size
    ours = ScalarModel(model)(ids)[0, -1]
    model.eval()
    theirs = model(input_ids=ids, use_cache=False).logits[0, 0].float()
    model.train()
    if not torch.allclose(ours, theirs, atol=1e-4):
        raise TuluLiteError(
            f"{name}: a {type(model).__name__} makes its number in a way that is not supported",
            why=f"its own differs by {(ours - theirs).abs():.3g} from what training would use",
            cure="use a model of another architecture",
        )


def _with_adapters(model: Any, lora: LoraSettings, name: str) -> Any:
    """Adapters on the backbone; the head is trained itself, since an adapter on one row would be of full rank anyway."""
    from peft import LoraConfig, get_peft_model

    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    if not isinstance(targets, str) and HEAD in targets:
        raise TuluLiteError(f"lora.targets names `{HEAD}`, which is trained whole", cure="take it out")
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=lora.dropout,
        target_modules=targets,
        exclude_modules=[HEAD] if isinstance(targets, str) else None,
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        linear = sorted(
            {key.rsplit(".", 1)[-1] for key, module in model.named_modules() if isinstance(module, nn.Linear)}
            - {HEAD}
        )
        raise TuluLiteError(
            f"lora.targets does not fit {name}: {error}", cure=f"its linear modules are {', '.join(linear)}"
        ) from error
    getattr(model, HEAD).requires_grad_(True)
    return adapted


# The finished model


def is_classifier(model: Any) -> bool:
    """Whether a transformers model (or the PeftModel around it) gives numbers rather than tokens."""
    return isinstance(getattr(model, HEAD, None), nn.Linear)


def classifier_config(model: Any, template: Any) -> dict[str, Any]:
    """What config.json says besides what the initial model's says. template: tokenizer and end tokens, as for export."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    return {
        "architectures": [type(base).__name__],
        "id2label": {"0": "reward"},  # transformers and vLLM count the labels from it
        "label2id": {"reward": 0},
        "pad_token_id": padding_token(template.tokenizer, template.end_token_ids),
    }


def padding_token(tokenizer: Any, end_token_ids: tuple[int, ...]) -> int | None:
    """The token that a reward model's folder pads with: one that no sequence ends with.

    transformers takes the number at the last token that is not padding; were the end token the padding, as in many
    language models, it would take the one before. None where there is no such token: transformers then refuses
    batches, which is better than wrong numbers.
    """
    others = sorted(set(getattr(tokenizer, "all_special_ids", ())))
    candidates = [tokenizer.pad_token_id, getattr(tokenizer, "unk_token_id", None), *others]
    return next((int(i) for i in candidates if i is not None and i not in end_token_ids), None)
