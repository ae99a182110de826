"""Does the model behave as people expect, whatever its metrics: the cases of tests/behaviour.yaml on the ONNX file.

Invariance, direction and minimum functionality, after Ribeiro et al. (2020), CheckList.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnxruntime
import pandas as pd
from pydantic import Field, ValidationError, model_validator

from ml.errors import UserError
from ml.pipeline import export, features
from ml.pipeline.params import Section

PATH = "tests/behaviour.yaml"
SAMPLED = 500  # holdout rows that a case without `row` is tried on
Values = dict[str, str | int | float | bool | None]


class Case(Section):
    """One expectation; `row` replaces values of the contract's example, and without it holdout rows are taken.

    `of` names the class whose probability is meant, where there are more than two.
    """

    name: str = Field(min_length=1)
    row: Values | None = None
    of: str | None = None
    share: float = Field(default=1.0, gt=0, le=1)


class Invariance(Case):
    """The score stays within a distance when values change."""

    change: Values = Field(min_length=1)
    within: float = Field(default=1e-6, ge=0)


class Direction(Case):
    """The score moves one way, by `by` or more, when values change."""

    change: Values = Field(min_length=1)
    score: Literal["rises", "falls"]
    by: float = Field(default=0.0, ge=0)


class Minimum(Case):
    """A plain case: the score is below or above a bound, or the label is known."""

    row: Values
    below: float | None = None
    above: float | None = None
    label: str | None = None

    @model_validator(mode="after")
    def _something(self) -> Minimum:
        if self.below is None and self.above is None and self.label is None:
            raise ValueError("needs below, above or label")
        return self


class Cases(Section):
    invariance: list[Invariance] = []
    direction: list[Direction] = []
    minimum: list[Minimum] = []

    def all(self) -> list[Case]:
        return [*self.invariance, *self.direction, *self.minimum]

    def by_name(self) -> dict[str, Case]:
        return {case.name: case for case in self.all()}


def parse(content: bytes, where: str = PATH) -> Cases:
    """Return the cases; raise UserError with one line for what is not one."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        raw = YAML(typ="safe").load(content.decode()) or {}
    except (YAMLError, ValueError) as error:  # ValueError: a date such as 2013-02-31, or not UTF-8
        raise UserError(f"{where}: not valid YAML ({str(error).splitlines()[0]})") from None
    try:
        cases = Cases.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(": ".join(part for part in (where, place, first["msg"]) if part)) from None
    names = [case.name for case in cases.all()]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{where}: two cases are called {twice!r}; give each a name of its own")
    return cases


def failures(
    cases: Cases, runtime: onnxruntime.InferenceSession, contract: dict[str, Any], holdout: pd.DataFrame
) -> list[str]:
    """Return a sentence for each case that the model does not meet; raise UserError for one that cannot be tried."""
    found = []
    for case in cases.all():
        before = _rows(case, contract, holdout)
        answers = export.scores(runtime, features.inputs(before))
        if isinstance(case, Minimum):
            met, seen = _meets(case, contract, answers)
        else:
            after = export.scores(runtime, features.inputs(_typed(case, before, case.change, contract)))
            moved = _scores(case, contract, after) - _scores(case, contract, answers)
            met, seen = _as_said(case, moved), f"the score moves by {moved.min():+.4f} to {moved.max():+.4f}"
        if met.mean() < case.share:
            rows = "" if len(met) == 1 else f" on {np.sum(~met)} of {len(met)} rows"
            found.append(f"{case.name}: not so{rows}, {seen}")
    return found


def _as_said(case: Invariance | Direction, moved: np.ndarray) -> np.ndarray:
    if isinstance(case, Invariance):
        return np.abs(moved) <= case.within
    return (moved if case.score == "rises" else -moved) >= case.by


def _meets(case: Minimum, contract: dict[str, Any], answers: np.ndarray) -> tuple[np.ndarray, str]:
    met, seen = True, []
    if case.below is not None or case.above is not None:
        score = float(_scores(case, contract, answers)[0])
        met = (case.below is None or score < case.below) and (case.above is None or score > case.above)
        seen.append(f"score {score:.4f}")
    if case.label is not None:
        label = _label(contract, answers[0])
        _refuse_class(case, case.label, contract.get("classes", []))
        met &= label == case.label
        seen.append(f"label {label}")
    return np.array([met]), ", ".join(seen)


def _label(contract: dict[str, Any], answer: np.ndarray) -> str:
    match contract["task"]:
        case "binary":
            return contract["classes"][int(answer[1] >= contract["threshold"])]
        case "multiclass":
            return contract["classes"][int(np.argmax(answer))]
        case _:
            return "none"


def _refuse_class(case: Case, name: str, classes: list[str]) -> None:
    if name not in classes:
        known = f"choose one of {', '.join(classes)}" if classes else "this task has none"
        raise UserError(f"{PATH}: {case.name}: {name!r} is not a class; {known}")


def _rows(case: Case, contract: dict[str, Any], holdout: pd.DataFrame) -> pd.DataFrame:
    fields = [field["name"] for field in contract["fields"]]
    if case.row is None:
        return holdout.iloc[:: max(1, -(-len(holdout) // SAMPLED))][fields]
    return _typed(
        case, pd.DataFrame([{field["name"]: field["example"] for field in contract["fields"]}]), case.row, contract
    )


def _typed(case: Case, rows: pd.DataFrame, values: Values, contract: dict[str, Any]) -> pd.DataFrame:
    """Return the rows with the values in place of their own, all of the types that the model takes."""
    types = {field["name"]: "str" if field["type"] == "string" else float for field in contract["fields"]}
    if strange := next((name for name in values if name not in types), None):
        raise UserError(f"{PATH}: {case.name}: {strange!r} is not a field of a request; choose of {', '.join(types)}")
    for name, value in values.items():
        if value is not None and (types[name] == "str") != isinstance(value, str):
            wanted = "text" if types[name] == "str" else "a number"
            raise UserError(f"{PATH}: {case.name}: {name} = {value!r} must be {wanted}")
    return rows.assign(**values).astype(types)


def _scores(case: Case, contract: dict[str, Any], answers: np.ndarray) -> np.ndarray:
    if answers.ndim == 1:
        return answers
    classes = contract["classes"]
    if case.of is None and len(classes) > 2:
        raise UserError(f"{PATH}: {case.name}: of is missing; name one of {', '.join(classes)}")
    if case.of is not None:
        _refuse_class(case, case.of, classes)
    return answers[:, classes.index(case.of) if case.of is not None else 1]
