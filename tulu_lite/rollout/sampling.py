"""How responses are sampled, and the request that says so to the server. No torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from ..errors import TuluLiteError
from ..records import Prompt
from .lean import FLAT
from .state import ServerState

# What each setting is when it changes nothing. With any other value the logprobs kept are those of a distribution
# that the trainer, which knows the temperature alone, does not compute.
NEUTRAL: dict[str, float] = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


@dataclass(frozen=True, slots=True)
class Sampling:
    """How responses are sampled. temperature 0 is greedy: all n responses are then the same one.

    for_training: the logprobs will be learnt from, so they must be those of softmax(logits / temperature); settings
    that cut or bend that distribution are refused. For evaluation and preference data they are allowed.
    """

    n: int  # responses a prompt
    temperature: float
    max_tokens: int  # tokens a response, the end token included
    seed: int
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    stop_token_ids: tuple[int, ...] = ()  # nothing else ends a response early: give the template's end token
    min_p: float = 0.0  # tokens less likely than this share of the likeliest one are never sampled
    repetition_penalty: float = (
        1.0  # logits of tokens seen before are divided (multiplied, if negative) by this
    )
    presence_penalty: float = 0.0  # subtracted from the logits of tokens sampled before
    frequency_penalty: float = 0.0  # the same, once for each time
    for_training: bool = False

    def __post_init__(self) -> None:
        for name, ok, need in (
            ("n", self.n >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "at least 0"),
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "at least 0 (0: all tokens)"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", 0 < self.repetition_penalty <= 2, "above 0 and at most 2"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "between -2 and 2"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "between -2 and 2"),
        ):
            if not ok:
                raise TuluLiteError(f"sampling.{name} is {getattr(self, name)}; it must be {need}")
        if self.for_training:
            self._check_true()

    def _check_true(self) -> None:
        why = "training needs the log-probabilities of the very distribution that was sampled from"
        for name, neutral in NEUTRAL.items():
            if getattr(self, name) != neutral:
                raise TuluLiteError(
                    f"sampling.{name} is {getattr(self, name)}, which cannot be used for training",
                    f"{why}; with {name} that is not softmax(logits / temperature), which the trainer computes",
                    f"leave {name} at {neutral:g}; set the temperature alone",
                )
        if self.temperature == 0:
            raise TuluLiteError(
                "sampling.temperature is 0, which cannot be used for training",
                f"{why}; greedy responses come from none",
                "set a temperature above 0",
            )


def request_seed(seed: int, prompt_id: str, position: int) -> int:
    """The seed of a prompt's first response; response i uses it plus i. Below 2^62.

    A function of the sampling seed, the prompt and its position alone: a request that is sent again samples the same
    tokens, and the same prompt twice in a batch samples different ones. CPU generators use the low 32 bits only, so
    these are all random: two of 512 equal prompts with 16 responses overlap with probability 1e-3.
    """
    text = f"{seed}\0{position}\0{prompt_id}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 2


def request_body(prompt: Prompt, sampling: Sampling, n: int, seed: int) -> dict[str, Any]:
    """The body of one request for n responses, for /inference/v1/generate."""
    parameters: dict[str, Any] = {
        "n": n,
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_tokens,
        "logprobs": 0,  # of the sampled token alone
        "detokenize": False,
        "ignore_eos": True,  # what ends a response is said here, not in a config file
        "stop_token_ids": list(sampling.stop_token_ids),
        **FLAT,
    }
    for name in (
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
    ):  # these bend greedy choices too
        if getattr(sampling, name) != NEUTRAL[name]:
            parameters[name] = getattr(sampling, name)
    if sampling.temperature > 0:
        parameters |= {"seed": seed, "top_p": sampling.top_p, "top_k": sampling.top_k}
        if sampling.min_p:
            parameters["min_p"] = sampling.min_p
    return {"token_ids": list(prompt.token_ids), "sampling_params": parameters}


def check_fits(prompt: Prompt, sampling: Sampling, state: ServerState) -> None:
    """Raise TuluLiteError when the server cannot take the prompt with its response."""
    if not prompt.token_ids:
        raise TuluLiteError(f"prompt {prompt.id!r} has no tokens")
    length = len(prompt.token_ids) + sampling.max_tokens
    if state.max_model_len and length > state.max_model_len:
        raise TuluLiteError(
            f"prompt {prompt.id!r} has {len(prompt.token_ids)} tokens; with {sampling.max_tokens} for the response that "
            f"is {length}, and the server takes {state.max_model_len}",
            cure="lower max_tokens, drop long prompts, or raise server.max_model_len",
        )
    if sampling.n > state.max_num_seqs:
        raise TuluLiteError(
            f"sampling.n is {sampling.n}, and the server samples at most {state.max_num_seqs} at once",
            cure="raise server.max_num_seqs",
        )
