"""Judges: an LLM behind any OpenAI-compatible chat endpoint says how good a response is.

    {use: judge_reference, args: {base_url: "http://127.0.0.1:8000/v1", model: my-model}}

quoting   the candidate's text as data that cannot close its own quotation or address the judge
prompts   what is asked, in words and as a JSON schema; reading: what is taken from a reply, and what is not
endpoint  HTTP: retries, limits of rate, deadlines, caps;  memory: replies kept on disk;  meter: cost and latency
verdicts  the verifiers themselves;  pairwise: two responses compared, also as a function
reward    a reward model that gives a number

An outage or a reply that cannot be read is an error without a score, never a 0.
"""

from verifiers.judges.pairwise import Comparison, acompare, compare

__all__ = ["Comparison", "acompare", "compare"]
