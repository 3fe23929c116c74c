"""Formats of a whole response: <think> and <answer>, JSON, a JSON schema."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from verifiers.base import Verdict, correct, incorrect
from verifiers.constraints.measure import visible, words
from verifiers.errors import BadReference, SpecError
from verifiers.registry import verifier

# ---------------------------------------------------------------- <think> and <answer>

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_THINK_ANSWER = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
# Also tags in another spelling: capitals, spaces, attributes, full-width or similar brackets.
_ANY_TAG = re.compile(
    r"[<\uff1c\u2039\u3008\u27e8]\s{0,9}[/\uff0f]?\s{0,9}(?:think(?:ing)?|answer)\b[^<>\n]{0,40}[>\uff1e\u203a\u3009\u27e9]",
    re.IGNORECASE,
)


@verifier("think_answer", version="2", runs="inline", strip_thinking=False)
def think_answer(response: str, opened: bool = False, min_words: int = 1) -> Verdict:
    """<think>...</think><answer>...</answer>, each once, neither empty, nothing around them (DeepSeek-R1,
    arXiv:2501.12948, section 2.2.2).

    opened: the chat template already wrote the first <think>. min_words: how many the reasoning has at least.
    """
    text = "<think>" + response if opened else response
    for tag in _TAGS:
        if text.count(tag) != 1:
            return incorrect(f"{tag} occurs {text.count(tag)} times")
    other = next((found.group() for found in _ANY_TAG.finditer(text) if found.group() not in _TAGS), None)
    if other is not None:
        return incorrect(f"{other} is another spelling of a tag")
    match = _THINK_ANSWER.fullmatch(text)
    if match is None:
        return incorrect("is not <think>...</think><answer>...</answer>")
    reasoning, answer = match.groups()
    if not visible(reasoning).strip() or not visible(answer).strip():
        return incorrect("the reasoning or the answer is empty")
    if (count := words(visible(reasoning))[0]) < min_words:
        return incorrect(f"the reasoning has {count} words, at least {min_words} asked for")
    return correct(extracted=answer.strip())


# ---------------------------------------------------------------- JSON

_OPENING = re.compile(r"```(?:json|JSON)?[ \t]*\n")
MAX_DEPTH = 64  # of JSON: schemas that refer to themselves are checked by recursion
Kind = Literal["any", "object", "array"]


def read_json(response: str) -> Any:
    """The JSON value that a response is, alone or in one fence. Raises ValueError.

    Stricter than Python's reader: no NaN or number beyond a float's range, no key twice, at most MAX_DEPTH deep.
    """
    text = response.strip(" \t\r\n")
    if (fence := _OPENING.match(text)) and text.endswith("```") and len(text) >= fence.end() + 3:
        text = text[fence.end() : -3]
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_no_repeats)
    except RecursionError as fault:
        raise ValueError("nested too deep") from fault
    _check_depth(value)
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError(f"{digits[:40]} is too large")
    return number


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key occurs twice")
    return made


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [child for one in level for child in _children(one)]
        if not level:
            return
    raise ValueError(f"nested deeper than {MAX_DEPTH}")


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


@verifier("json", version="2")
def json_only(response: str, kind: Kind = "any") -> Verdict:
    """The whole response is one JSON value, alone or in one ```json fence.

    kind: "object" or "array" where a lone number or word is too little.
    """
    try:
        value = read_json(response)
    except ValueError as fault:
        return incorrect(f"no JSON: {fault}")
    wanted = {"any": object, "object": dict, "array": list}[kind]
    return correct() if isinstance(value, wanted) else incorrect(f"JSON, but no {kind}")


# ---------------------------------------------------------------- JSON schema


def _check_schema(schema: Any) -> Any:
    """A validator of the schema. Raises SpecError without jsonschema, BadReference for a wrong schema."""
    try:
        import jsonschema  # type: ignore[import-untyped]
        from referencing import Registry
        from referencing.exceptions import Unresolvable
    except ImportError as fault:
        raise SpecError("json_schema needs the package jsonschema", cure="pip install jsonschema") from fault
    if isinstance(schema, str):  # as columns of text hold it
        try:
            schema = json.loads(schema)
        except ValueError as fault:
            raise BadReference(
                f"a JSON schema is a mapping, or one as JSON, got {schema[:80]!r}: {fault}"
            ) from fault
    if not isinstance(schema, (Mapping, bool)):
        raise BadReference(f"a JSON schema is a mapping, got {type(schema).__name__}")
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as fault:
        raise BadReference(f"not a JSON schema: {fault.message}") from fault
    for pattern in _patterns(schema):
        _check_pattern(pattern)
    kind = jsonschema.validators.extend(kind, {"uniqueItems": _unique_items})
    registry: Any = Registry()  # empty: a $ref must not fetch anything
    made = kind(schema, registry=registry)
    try:
        _resolve_all(made, schema)
        next(made.iter_errors(None), None)
    except Unresolvable as fault:
        raise BadReference(
            f"the schema refers to {fault.ref!r}, which is not in it; nothing is fetched"
        ) from fault
    except RecursionError as fault:
        raise BadReference("the schema refers to itself without end") from fault
    return made


def _unique_items(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[Any]:
    """uniqueItems in linear time: jsonschema compares every pair of objects, which a huge array makes endless."""
    import jsonschema

    if wanted and validator.is_type(instance, "array"):
        seen: set[str] = set()
        for number, item in enumerate(instance):
            seen.add(json.dumps(_canonical(item), sort_keys=True))
            if len(seen) <= number:
                yield jsonschema.ValidationError(f"item {number} occurs twice")
                return


def _canonical(value: Any) -> Any:
    """A value of which equal ones, in JSON's sense, are written alike: 1.0 as 1; true stays apart from 1."""
    if isinstance(value, dict):
        return {key: _canonical(one) for key, one in value.items()}
    if isinstance(value, list):
        return list(map(_canonical, value))
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _resolve_all(validator: Any, schema: Any) -> None:
    """Look every $ref of a schema up. Raises Unresolvable."""
    if any(isinstance(node, Mapping) and "$id" in node for node in _children(schema)):
        return  # parts with addresses of their own: what is missing shows when it is met, as an error
    for node in _nodes(schema):
        if isinstance(node, Mapping) and isinstance(node.get("$ref"), str):
            validator._resolver.lookup(node["$ref"])


def _nodes(schema: Any) -> Iterator[Any]:
    waiting = [schema]
    while waiting:
        yield (node := waiting.pop())
        waiting += _children(node)


def _patterns(schema: Any) -> Iterator[str]:
    for node in _nodes(schema):
        if isinstance(node, Mapping):
            if isinstance(node.get("pattern"), str):
                yield node["pattern"]
            if isinstance(node.get("patternProperties"), Mapping):
                yield from node["patternProperties"]


def _check_pattern(pattern: str) -> None:
    """Raises BadReference for a pattern that a response could make run without end."""
    from re import _parser  # type: ignore[attr-defined]

    try:
        parsed = _parser.parse(pattern)
    except (re.error, OverflowError, RecursionError) as fault:
        raise BadReference(f"the pattern {pattern!r} is no regular expression: {fault}") from fault
    if _nested_repeat(parsed, False):
        raise BadReference(
            f"the pattern {pattern!r} repeats a repetition, which takes exponential time on some texts",
            cure="Write it without the inner or the outer + or *.",
        )


def _nested_repeat(part: Any, inside: bool) -> bool:
    """Whether a parsed pattern has an unbounded repetition within another one."""
    if isinstance(part, tuple) and len(part) == 2 and str(part[0]) in ("MAX_REPEAT", "MIN_REPEAT"):
        _, most, body = part[1]
        unbounded = most > 100
        return (inside and unbounded) or _nested_repeat(body, inside or unbounded)
    if isinstance(part, (str, int)) or part is None:
        return False
    try:
        return any(_nested_repeat(one, inside) for one in part)
    except TypeError:
        return False


@verifier("json_schema", version="2")
class JsonSchema:
    """The response is one JSON value that the schema allows; the schema is the argument or the reference.

    Refused when it is loaded: a schema that refers to another document (nothing is fetched), that refers to
    itself without end, or with a pattern that takes exponential time.
    """

    def __init__(self, schema: dict[str, Any] | None = None) -> None:
        self.validator = None
        if schema is not None:
            try:
                self.validator = _check_schema(schema)
            except BadReference as fault:
                raise SpecError(f"json_schema: {fault}") from fault

    def check_reference(self, reference: Any) -> None:
        if self.validator is None:
            _check_schema(reference)

    def verify(self, response: str, reference: Any = None) -> Verdict:
        validator = self.validator if self.validator is not None else _check_schema(reference)
        try:
            value = read_json(response)
            miss = next(validator.iter_errors(value), None)
        except ValueError as fault:
            return incorrect(f"no JSON: {fault}")
        except RecursionError:
            return incorrect("nested too deep for the schema")
        return correct() if miss is None else incorrect(f"{miss.json_path}: {miss.message}")
