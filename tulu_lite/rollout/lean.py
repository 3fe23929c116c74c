"""Answers to requests to sample that hold what the client reads and nothing else.  [vLLM 0.32: token_in_token_out]

vLLM makes three objects of each token's log-probability and writes them out with their names: after the last step of a
batch, when nothing else goes on, that is a twentieth of the time that sampling takes. A request with FLAG among its
extra_args is answered with two lists, of token ids and of log-probabilities; every other is answered as ever.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

FLAG = "tulu_lite_lean"
NO_LOGPROB = -9999.0  # vLLM's word for one that is NaN, -inf or missing
FLAT = {"extra_args": {FLAG: True}, "flat_logprobs": True}  # what a request adds to its sampling_params


def choice_of(output: Any) -> dict[str, Any]:
    """One response: a vLLM CompletionOutput with flat log-probabilities."""
    ids = [int(token) for token in output.token_ids]
    return {
        "index": output.index,
        "token_ids": ids,
        "logprobs": sampled_logprobs(ids, output.logprobs),
        "finish_reason": output.finish_reason or "stop",
        "weight_versions": [
            {"version": span.version, "start": span.start, "end": span.end}
            for span in output.weight_versions or ()
        ],
    }


def sampled_logprobs(ids: Sequence[int], flat: Any) -> list[float]:
    """[tokens] of the sampled tokens, each of which is the first of its position in vLLM's FlatLogprobs."""
    found = []
    for token, place in zip(ids, flat.start_indices, strict=True):
        value = flat.logprobs[place] if flat.token_ids[place] == token else math.nan
        found.append(NO_LOGPROB if math.isnan(value) else max(value, NO_LOGPROB))
    return found


def use_it() -> None:
    """In the API server's process, before it serves."""
    from vllm.entrypoints.scale_out.token_in_token_out.protocol import GenerateResponseBase
    from vllm.entrypoints.scale_out.token_in_token_out.serving import ServingTokens

    class Lean(GenerateResponseBase):
        choices: list[Any]

        def model_dump(self, **_: Any) -> dict[str, Any]:
            return {"request_id": self.request_id, "choices": self.choices}

    theirs = ServingTokens.serve_tokens_full_generator

    async def answer(
        self: Any, request: Any, results: Any, request_id: str, model_name: str, metadata: Any
    ) -> Any:
        if not (request.sampling_params.extra_args or {}).get(FLAG):
            return await theirs(self, request, results, request_id, model_name, metadata)
        final: Any = None
        async for found in results:
            final = found
        for output in final.outputs:
            self._raise_if_error(output.finish_reason, request_id)
        return Lean(request_id=request_id, choices=[choice_of(output) for output in final.outputs])

    ServingTokens.serve_tokens_full_generator = answer  # type: ignore
