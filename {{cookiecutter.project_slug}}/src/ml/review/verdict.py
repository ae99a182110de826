"""What a review found, as one document: `reports/review/verdict.json`.

`python -m ml.review.verdict` prints its JSON Schema, which docs/verdict.schema.json holds.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

VERSION = 1
GATES = (
    "gates",
    "data",
    "lock",
    "floor",
    "harm",
    "calibration",
    "slices",
    "fairness",
    "behaviour",
    "predictions",
    "parity",
    "determinism",
    "service",
    "image",
)
Status = Literal["passed", "failed", "not judged", "skipped"]
Number = Annotated[
    float | None,
    BeforeValidator(lambda value: None if isinstance(value, float) and not math.isfinite(value) else value),
]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Result(Part):
    """What one gate says; `not judged` blocks as `failed` does, `skipped` (turned off, or not measured yet) does not.

    `file` and `line` point to what the remedy would edit, where there is one place.
    """

    gate: str
    status: Status
    sentence: str
    observed: str = ""
    threshold: str = ""
    remedy: str = ""
    file: str = ""
    line: int | None = None


class Change(Part):
    """A value before and after; empty text where it did not exist."""

    name: str
    before: str
    after: str


class Interval(Part):
    """A figure with the ends of its confidence interval, in the figure's own unit."""

    value: Number
    low: Number
    high: Number


class Metric(Part):
    """One metric of both models on the same `rows`; a figure such as the selection rate is better neither way.

    `delta` is candidate minus production; `detectable` the smallest true difference that so many rows show with a
    probability of 0.8; `noise` the standard deviation between retrains of one recipe; `margin` what the gate allows.
    """

    name: str
    better: Literal["higher", "lower", "neither"]
    rows: int
    candidate: Interval
    production: Interval | None = None
    delta: Interval | None = None
    detectable: Number = None
    noise: Number = None
    margin: Number = None
    sentence: str = ""


class Slice(Part):
    """The objective's metric on the rows of one slice; `flips` is the share of decisions that changed."""

    name: str
    rows: int
    candidate: Interval
    production: Number = None
    flips: Number = None


class Group(Part):
    """The fairness figures of one group; a small one is reported and not judged."""

    attribute: str
    value: str
    rows: int
    judged: bool
    figures: dict[str, Number]


class Column(Part):
    """One column against the base's data.

    `effect` is Kolmogorov and Smirnov's distance for numbers and the total variation distance for text, both 0 to 1;
    `p` is adjusted for the number of columns; nulls are shares; `alone` is the ROC AUC (or its like for values) of
    the column alone on the holdout, empty where it is no input.
    """

    name: str
    effect: Number = None
    limit: Number = None
    p: Number = None
    nulls_before: Number = None
    nulls_after: Number = None
    alone: Number = None


class SchemaChange(Part):
    """A difference between the requests of two models; a breaking one makes a caller of today fail."""

    field: str
    what: str
    breaking: bool


class Rows(Part):
    """Rows of train and holdout together in one period; empty where a side has none."""

    period: str
    before: int | None
    after: int | None


class Bin(Part):
    """One bin of the reliability table: mean score, mean outcome, rows."""

    predicted: Number
    observed: Number
    rows: int


class Flip(Part):
    """One of the rows whose prediction changed most, shown as `report.rows` says."""

    row: dict[str, str]
    before: float
    after: float


class Importance(Part):
    """What the objective's metric loses when the input is shuffled; empty where a model has no such input."""

    name: str
    candidate: Number
    production: Number


class Side(Part):
    """One side of the comparison: where it stands in git and which model it is."""

    ref: str
    commit: str
    dirty: bool = False
    model: str = ""
    version: str = ""


class Code(Part):
    """One changed file and its lines; empty for a binary one."""

    path: str
    added: int | None
    removed: int | None


def _few(names: list[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 4 else ""
    return ", ".join(names[:3] if rest else names) + rest


class Verdict(Part):
    """Everything that the report, the page and the card show, but for the drawings.

    `results` decide. Where the change loosens gates, `base_results` and `own_results` are both readings of them.
    """

    version: int = VERSION
    project: str
    task: Literal["binary", "multiclass", "regression"]
    decision: str
    objective: str
    confidence: float
    candidate: Side
    production: Side | None
    base: Side | None
    approved: str = ""
    results: list[Result]
    base_results: list[Result] = []
    own_results: list[Result] = []
    loosened: list[Change] = []
    notes: list[str] = []
    metrics: list[Metric] = []
    slices: list[Slice] = []
    groups: list[Group] = []
    columns: list[Column] = []
    schema_changes: list[SchemaChange] = []
    rows: list[Rows] = []
    reliability: list[Bin] = []
    reliability_before: list[Bin] = []
    flips: Number = None
    largest: list[Flip] = []
    importance: list[Importance] = []
    params: list[Change] = []
    code: list[Code] = []
    service: dict[str, Any] = {}
    environment: dict[str, str] = {}
    commands: list[str] = []

    @property
    def blocked(self) -> list[Result]:
        """Return the gates that stop a merge, failed ones first."""
        found = [result for result in self.results if result.status in ("failed", "not judged")]
        return sorted(found, key=lambda result: result.status != "failed")

    @property
    def headline(self) -> str:
        """Return the verdict in one sentence."""
        if not (stopping := self.blocked):
            counts = [sum(result.status == status for result in self.results) for status in ("passed", "skipped")]
            passed = f"{counts[0]} gates passed, {counts[1]} skipped" if counts[1] else "every gate passed"
            return f"safe to merge: {passed if self.production else f'the first model, {passed}'}"
        names = {
            status: [result.gate for result in stopping if result.status == status]
            for status in ("failed", "not judged")
        }
        return "do not merge: " + "; ".join(f"{_few(found)} {status}" for status, found in names.items() if found)


def json_schema() -> str:
    """Return the JSON Schema (2020-12) of the document."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(schema | Verdict.model_json_schema(mode="serialization"), indent=2) + "\n"


if __name__ == "__main__":
    print(json_schema(), end="")
