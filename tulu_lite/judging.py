"""From sampled responses to verdicts: each response goes to its prompt's verifier."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import verifiers

from .datasets.bad import BadRow
from .errors import TuluLiteError
from .recipe import Recipe
from .records import Prompt, Rollout, RolloutGroup


def verifier_spec(recipe: Recipe, name: str) -> Any:
    """What a prompt's verifier stands for: one of the recipe's own, a registered name, or a spec as JSON text."""
    if name in recipe.verifiers:
        return recipe.verifiers[name]
    return json.loads(name) if name.startswith(("{", "[")) else name


def also_judged_by(stage: Any) -> tuple[str, ...]:
    """Verifiers of a stage that judge the responses to all its prompts, besides each prompt's own."""
    rank_by = getattr(stage, "rank_by", None)
    return () if rank_by is None else (rank_by,)


def code_check(recipe: Recipe) -> Callable[[str, Any, str, bool], None]:
    """A check of a prompt, for DataSettings.checking: its row may not name a Python file or module. Rows are data, often
    somebody else's, and what they say is not run; nor could a step be keyed by such a file's content."""

    def check(verifier: str, reference: Any, source: str, of_row: bool) -> None:
        if not of_row or verifier in recipe.verifiers:
            return
        try:
            spec = verifier_spec(recipe, verifier)
        except json.JSONDecodeError:
            return  # no verifier at all
        if code := _code(spec):
            raise BadRow(
                "a verifier that is code",
                f"the row names the Python code {code[0]!r} as its verifier",
                why="rows are data, and what they say is not run",
                cure="name it in the recipe (`verifiers: {mine: path/to/file.py:function}`) and write `mine` in the rows, or "
                "set `verifier` on the data source",
            )

    return check


def _code(spec: Any) -> list[str]:
    """The Python files and modules that a verifier spec names."""
    if isinstance(spec, str):
        return [spec] if ":" in spec or spec.endswith(".py") else []
    if isinstance(spec, list):
        return [code for item in spec for code in _code(item)]
    if isinstance(spec, dict):
        return [
            code for key, item in spec.items() if key not in ("args", "name", "by") for code in _code(item)
        ]
    return []


def row_check(recipe: Recipe, where: str, *also: str) -> Callable[[str, Any, str, bool], None]:
    """A check of a prompt (its verifier, reference and source, and whether the row itself names that verifier): as
    code_check, and the verifier exists and can use the reference, and so can those in `also`.

    It raises BadRow for what is the row's fault, and TuluLiteError for what is the recipe's, with `where` that is.
    """
    built: dict[str, verifiers.Verifier | Exception] = {}
    no_code = code_check(recipe)

    def check(verifier: str, reference: Any, source: str, of_row: bool) -> None:
        no_code(verifier, reference, source, of_row)
        for name in (verifier, *also):
            if name not in built:
                built[name] = _build(recipe, name)
            found = built[name]
            if isinstance(found, Exception):
                _refuse(name, found, where, of_row and name == verifier and name not in recipe.verifiers)
                return
            try:
                found.check_reference(reference, {"source": source})
            except verifiers.VerifierError as error:
                raise BadRow(
                    "a reference that its verifier cannot use",
                    f"the verifier {name!r} cannot use the reference of this row: {error}",
                    why=f"its source is {source!r}, its reference {str(reference)[:80]!r}",
                    cure="mend or remove the row, or name another verifier or reference column",
                ) from None

    return check


def _build(recipe: Recipe, name: str) -> verifiers.Verifier | Exception:
    try:
        return verifiers.build(verifier_spec(recipe, name), base_dir=Path.cwd())
    except (verifiers.VerifierError, json.JSONDecodeError) as error:
        return error


def _refuse(name: str, error: Exception, where: str, of_row: bool) -> None:
    what = f"the verifier {name!r} cannot be used: {error}"
    cure = "name a registered verifier (`python -m verifiers list`), one of the recipe's `verifiers`, or path/to/file.py:function"
    if of_row:
        raise BadRow("a verifier that cannot be used", what, cure=cure)
    raise TuluLiteError(f"{where}: {what}", cure=cure)


class Judge:
    """The verifier pool of a stage, and the limit on how many of its judgements may fail."""

    def __init__(self, recipe: Recipe, pool: verifiers.VerifierPool, max_error_share: float) -> None:
        self.recipe, self.pool, self.max_error_share = recipe, pool, max_error_share

    def __call__(self, groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
        """The groups with a verdict on every rollout.

        Raises TuluLiteError when more than max_error_share of the verdicts are errors: a broken verifier
        must stop a run, not teach it.
        """
        judged = self.judged(groups)
        verdicts = [rollout.verdict for group in judged for rollout in group.rollouts]
        self.check_errors([verdict for verdict in verdicts if verdict is not None])
        return judged

    def judged(self, groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
        """The same without the check, for a part of what will be judged."""
        items = [
            (
                verifier_spec(self.recipe, group.prompt.verifier),
                verifiers.Sample(
                    rollout.text,
                    group.prompt.reference,
                    group.prompt.user,
                    rollout.finished,
                    self._info(group.prompt, rollout),
                ),
            )
            for group in groups
            for rollout in group.rollouts
        ]
        return list(_with_verdicts(groups, iter(self.pool.verify(items))))

    def _info(self, prompt: Prompt, rollout: Rollout) -> dict[str, Any]:
        """What verifiers are told besides; a reward model of this recipe's own scores the tokens themselves."""
        info: dict[str, Any] = {"source": prompt.source}
        if any(judge.kind == "reward" for judge in self.recipe.judges.values()):
            info["token_ids"] = [*prompt.token_ids, *rollout.token_ids]
        return info

    def check_errors(self, verdicts: Sequence[verifiers.Verdict], total: int | None = None) -> None:
        """Raises TuluLiteError when more than max_error_share of `total` verdicts are errors. total: those that there
        will be, of which `verdicts` are the first; by default these are all."""
        total = len(verdicts) if total is None else total
        errors = Counter(
            f"{verdict.verifier}: {verdict.reason}" for verdict in verdicts if verdict.score is None
        )
        failed = sum(errors.values())
        if failed > self.max_error_share * total:
            common, times = errors.most_common(1)[0]
            raise TuluLiteError(
                f"verifiers failed on {failed} of {total} responses, more than the {self.max_error_share:.0%} allowed",
                why=f"an error is never a score, so these would be left out; the most common ({times} times) is {common}",
                cure="mend the verifier (`python -m verifiers check` tries it), raise verifier_timeout_s, or raise max_error_share",
            )


def _with_verdicts(
    groups: Sequence[RolloutGroup], verdicts: Iterator[verifiers.Verdict]
) -> Iterator[RolloutGroup]:
    for group in groups:
        yield RolloutGroup(group.prompt, tuple(rollout.judged(next(verdicts)) for rollout in group.rollouts))


@contextmanager
def judging(recipe: Recipe, max_error_share: float) -> Iterator[Judge]:
    """A Judge whose worker processes live as long as the block."""
    with verifiers.VerifierPool(
        workers=recipe.verifier_workers,
        timeout_s=recipe.verifier_timeout_s,
        base_dir=Path.cwd(),
        sandbox=recipe.verifier_sandbox,
        allow_weak_sandbox=recipe.verifier_allow_weak_sandbox,
    ) as pool:
        yield Judge(recipe, pool, max_error_share)
        print("verifiers:", json.dumps(pool.report()), flush=True)  # rates, errors, what judge models cost


def response_row(group: RolloutGroup, rollout: Rollout, kind: str) -> dict[str, Any]:
    """A judged response as JSON data."""
    return {
        "kind": kind,
        "prompt_id": group.prompt.id,
        "source": group.prompt.source,
        "prompt": group.prompt.user,
        "reference": group.prompt.reference,
        "response": rollout.text,
        "tokens": len(rollout.token_ids),
        "finish_reason": rollout.finish_reason,
        "verdict": None if rollout.verdict is None else rollout.verdict.to_json(),
    }
