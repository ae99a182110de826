"""Reads params.yaml once into a frozen object; unknown and mistyped keys are refused by name."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from ml.errors import ParamsError

PATH = Path("params.yaml")
METRICS = {
    "binary": {
        "roc_auc": "maximize",
        "average_precision": "maximize",
        "average_precision_skill": "maximize",
        "log_loss": "minimize",
        "brier": "minimize",
        "expected_calibration_error": "minimize",
        "precision": "maximize",
        "recall": "maximize",
        "cost": "minimize",
    },
    "multiclass": {
        "accuracy": "maximize",
        "balanced_accuracy": "maximize",
        "f1_macro": "maximize",
        "roc_auc": "maximize",
        "log_loss": "minimize",
        "log_loss_skill": "maximize",
        "brier": "minimize",
        "expected_calibration_error": "minimize",
    },
    "regression": {
        "mean_absolute_error": "minimize",
        "root_mean_squared_error": "minimize",
        "median_absolute_error": "minimize",
        "r2": "maximize",
    },
}
FAIRNESS = {
    "binary": ("selection_rate", "true_positive_rate", "false_positive_rate"),
    "multiclass": ("accuracy",),
    "regression": ("mean_absolute_error",),
}


def _period(value: str) -> str:
    if not re.fullmatch(r"\d{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?)?|[a-z][a-z0-9_]*", value):
        raise ValueError("must be a year, month or day such as 2013, 2013-01 or 2013-01-31, or one lower-case word")
    return value


Period = Annotated[str, AfterValidator(_period)]
Share = Annotated[float, Field(ge=0, le=1)]
Limit = Annotated[float, Field(ge=0)]


def _off(value: Any) -> Any:
    if value is None or value is True:
        raise ValueError("needs its settings below it; false turns it off")
    return None if value is False else value


OFF = BeforeValidator(_off)  # settings, or false


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Costs(Section):
    """What a wrong decision costs, in any one unit."""

    false_alarm: float = Field(gt=0)
    miss: float = Field(gt=0)


class Objective(Section):
    decision: str = Field(min_length=1)
    metric: str
    floor: float
    costs: Costs | None = None


class Rows(Section):
    """How many rows a period may have, both ends included."""

    min: int = Field(ge=1)
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _agree(self) -> Rows:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Data(Section):
    target: str
    sources: dict[str, str] = {}
    periods: list[Period] = Field(min_length=1)
    rows: Rows


class Split(Section):
    by: Literal["time", "group", "random"]
    holdout: int | float = Field(gt=0)
    group: str | None = None
    seed: int = 0
    leaks: list[str] = []

    @model_validator(mode="after")
    def _agree(self) -> Split:
        if self.by == "time" and not isinstance(self.holdout, int):
            raise ValueError("holdout must be a whole number of newest periods when by is time")
        if self.by != "time" and self.holdout >= 1:
            raise ValueError(f"holdout must be a share below 1 when by is {self.by}")
        if self.by == "group" and not self.group:
            raise ValueError("group must name a column when by is group")
        return self


class Train(Section):
    estimator: str
    settings: dict[str, Any] = {}
    seed: int = 0


class Evaluate(Section):
    bins: int = Field(ge=2)
    min_rows: int = Field(ge=1)
    slices: dict[str, str] = {}


class Tune(Section):
    estimators: list[str] = Field(min_length=1)
    folds: int = Field(ge=1)
    trials: int = Field(ge=1)
    rows: int = Field(ge=1)


class Repeat(Section):
    """How often the recipe is trained again, to know what a retrain alone moves."""

    seeds: int = Field(ge=2)


class Review(Section):
    """How the review draws its intervals."""

    resamples: int = Field(ge=200)
    confidence: float = Field(gt=0.5, lt=1)
    seed: int = 0


class DataGate(Section):
    duplicates: Share
    overlap: Share
    leak: Share
    shift: Share
    nulls: Share
    rows: Limit


class FloorGate(Section):
    metrics: dict[str, float] = {}


class HarmGate(Section):
    margins: dict[str, Limit] = Field(min_length=1)


class CalibrationGate(Section):
    error: Limit
    margin: Limit


class SlicesGate(Section):
    floor: float


class FairnessGate(Section):
    """`difference` is the largest allowed between groups, `ratio` the smallest; both by figure."""

    groups: dict[str, str] = Field(min_length=1)
    difference: dict[str, Limit] = {}
    ratio: dict[str, Share] = {}


class PredictionsGate(Section):
    flips: Share


class Ratios(Section):
    """Candidate over baseline; each the largest allowed, the throughput's the smallest."""

    p50: float = Field(gt=0)
    p95: float = Field(gt=0)
    p99: float = Field(gt=0)
    throughput: float = Field(gt=0)


class ServiceGate(Section):
    ratio: Ratios
    errors: Share
    p99_ms: float = Field(gt=0)


class Gates(Section):
    """What a change must show; each key must stand, and `false` turns its gate off."""

    data: Annotated[DataGate | None, OFF]
    lock: bool
    floor: Annotated[FloorGate | None, OFF]
    harm: Annotated[HarmGate | None, OFF]
    calibration: Annotated[CalibrationGate | None, OFF]
    slices: Annotated[SlicesGate | None, OFF]
    fairness: Annotated[FairnessGate | None, OFF]
    behaviour: bool
    predictions: Annotated[PredictionsGate | None, OFF]
    parity: bool
    determinism: bool
    service: Annotated[ServiceGate | None, OFF]
    image: bool


class Batching(Section):
    """Requests that arrive together are scored together, by BentoML's adaptive batching."""

    rows: int = Field(ge=1)
    milliseconds: int = Field(ge=1)


class Limits(Section):
    bytes: int = Field(default=2_000_000, ge=1000)
    rows: int = Field(default=5000, ge=1)


class Log(Section):
    """The prediction log: `none`, `stdout`, or the path of a file."""

    to: str = Field(default="none", min_length=1)
    share: Share = 1.0
    bytes: int = Field(default=100_000_000, ge=1000)
    files: int = Field(default=5, ge=1)
    queue: int = Field(default=10_000, ge=1)


class Serve(Section):
    workers: int = Field(default=1, ge=1)
    timeout: float = Field(default=10, gt=0)
    drain: float = Field(default=5, ge=0)
    batching: Annotated[Batching | None, OFF] = None
    limits: Limits = Limits()
    log: Log = Log()


class Loadtest(Section):
    """How a service is loaded: so many rounds of each side and start, in turn."""

    users: int = Field(ge=1)
    seconds: float = Field(ge=0.5)
    starts: int = Field(ge=3)
    rounds: int = Field(ge=1)
    budget: float = Field(gt=0)
    sizes: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    invalid: Share


class Report(Section):
    rows: Literal["none", "masked", "full"]


class Card(Section):
    """What the model card says that no run knows."""

    intended_use: str = Field(min_length=1)
    out_of_scope: str = Field(min_length=1)
    limits: list[str] = Field(min_length=1)


class Deliver(Section):
    reproduce: Literal["full", "evaluate"] = "full"


class Params(Section):
    objective: Objective
    task: Literal["binary", "multiclass", "regression"]
    data: Data
    split: Split
    train: Train
    evaluate: Evaluate
    repeat: Repeat
    tune: Tune
    review: Review
    gates: Gates
    loadtest: Loadtest
    serve: Serve = Serve()
    deliver: Deliver = Deliver()
    report: Report
    card: Card

    @model_validator(mode="after")
    def _agree(self) -> Params:
        known = METRICS[self.task]
        if self.objective.metric not in known:
            raise ValueError(
                f"objective.metric: {self.objective.metric!r} is not a metric of a {self.task} task; "
                f"choose one of {', '.join(sorted(known))}"
            )
        floors = self.gates.floor.metrics if self.gates.floor else {}
        margins = self.gates.harm.margins if self.gates.harm else {}
        for where, names in (("floor.metrics", floors), ("harm.margins", margins)):
            if strange := next((name for name in names if name not in known), None):
                raise ValueError(
                    f"gates.{where}: {strange!r} is not a metric of a {self.task} task; "
                    f"choose one of {', '.join(sorted(known))}"
                )
        fairness = self.gates.fairness
        figures = FAIRNESS[self.task]
        for name in {**fairness.difference, **fairness.ratio} if fairness else {}:
            if name not in figures:
                raise ValueError(
                    f"gates.fairness: {name!r} is not a figure of a {self.task} task; "
                    f"choose one of {', '.join(figures)}"
                )
        if self.task == "binary" and self.objective.costs is None:
            raise ValueError("objective.costs is missing: a binary task needs false_alarm and miss")
        if self.split.by == "time" and self.split.holdout >= len(self.data.periods):
            raise ValueError(
                f"split.holdout: {self.split.holdout} of {len(self.data.periods)} periods leaves none to train on; "
                "list more in data.periods"
            )
        if len(set(self.data.periods)) < len(self.data.periods):
            raise ValueError("data.periods: a period is listed twice; list each once")
        return self


def read(path: Path = PATH) -> Params:
    """Return the settings.

    Raises ParamsError with one line that names the key, its value and the nearest valid key.
    """
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise ParamsError(f"{path} is missing: run this in the project's folder, or restore it with git") from None
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path}: not valid YAML ({error})") from None


def parse(text: str, where: str) -> Params:
    """Return the settings that a text holds; raise ParamsError as `read` does, with `where` before it."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        raw = YAML(typ="safe").load(text)
    except (YAMLError, ValueError) as error:  # ValueError: a date such as 2013-02-31
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ParamsError(f"{where}{line}: not valid YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(raw, dict):
        raise ParamsError(f"{where}: holds no sections; it must begin with objective, task, data, …")
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise ParamsError(f"{where}: " + "; ".join(dict.fromkeys(_sentence(e) for e in error.errors()[:5]))) from None


def _sentence(error: dict[str, Any]) -> str:
    # Pydantic ends the place of a union with the type that it tried.
    where = ".".join(str(part) for part in error["loc"] if part not in ("int", "float"))
    value = repr(error["input"])[:60]
    match error["type"]:
        case "extra_forbidden":
            valid = _keys(error["loc"][:-1])
            near = difflib.get_close_matches(str(error["loc"][-1]), valid, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"valid keys: {', '.join(valid)}"
            return f"{where} is not a known key; {hint}"
        case "missing":
            return f"{where} is missing"
        case "value_error" if isinstance(error["input"], dict):
            return f"{where}.{error['ctx']['error']}" if where else str(error["ctx"]["error"])
        case "value_error":
            return f"{where} = {value} {error['ctx']['error']}"
        case "string_type":
            return f"{where} = {value} must be text; put it in quotes"
        case _:
            return f"{where} = {value}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _keys(loc: tuple[Any, ...]) -> list[str]:
    section: Any = Params
    for part in loc:
        annotation = section.model_fields[part].annotation
        section = next(t for t in (annotation, *getattr(annotation, "__args__", ())) if hasattr(t, "model_fields"))
    return list(section.model_fields)
