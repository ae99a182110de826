"""Judges what was measured by the gates of params.yaml, and says where a change loosens them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ml.pipeline.params import METRICS, Params
from ml.review.data import SURE
from ml.review.lock import Problem
from ml.review.verdict import GATES, Change, Column, Group, Metric, Result, Rows, SchemaChange, Slice

POWERED = 1.84  # (1.96 + 1.645) / 1.96: times half a 95 % interval, what 19 of 20 equal models stay above
FIRST = "nothing to compare with: this is the first model"
CALIBRATION = {"binary": "expected_calibration_error", "multiclass": "expected_calibration_error", "regression": "bias"}
COMPARING = ("harm", "predictions")
RETRAIN = "make pipeline, then commit dvc.lock and reports/"
OFF = "turned off in params.yaml"
TAKE = "make take brings what CI trained; then commit dvc.lock and reports/, make push"
PUSH = "make push"
# What looser means: 1 where a larger value lets more pass, -1 a smaller one. Any other difference counts as looser.
LOOSER = {
    "gates.data": 1,
    "gates.harm.margins": 1,
    "gates.calibration": 1,
    "gates.slices.floor": 0,  # as objective.metric runs
    "gates.fairness.difference": 1,
    "gates.fairness.ratio": -1,
    "gates.predictions.flips": 1,
    "gates.service.ratio.throughput": -1,
    "gates.service": 1,
    "evaluate.min_rows": 1,
}
WATCHED = {"objective": {"decision"}, "gates": set(), "review": set(), "evaluate": set(), "split": set()}
JUDGED_BY = ("objective", "gates", "review", "evaluate")  # sections that are taken from the base


@dataclass(frozen=True)
class Facts:
    """What a review measured; `unjudged` and `broken` give, by gate, why it could not and why it must not stand."""

    first: bool = False
    whole: dict[str, float] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    slices: list[Slice] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)
    schema_changes: list[SchemaChange] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)
    breaches: list[str] = field(default_factory=list)
    duplicates: float = 0.0
    overlap: float = 0.0
    leaks: list[str] = field(default_factory=list)
    flips: float | None = None
    behaviour: list[str] = field(default_factory=list)
    cases: int = 0
    parity: tuple[int, float] = (0, 0.0)
    misreported: list[str] = field(default_factory=list)
    lock: list[Problem] = field(default_factory=list)
    reproduced: dict[str, Any] | None = None
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    loosened: list[Change] = field(default_factory=list)
    unjudged: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)


def judge(facts: Facts, params: Params, approved: str = "") -> list[Result]:
    """Return one result a gate, in the order of `verdict.GATES`."""
    return [_of(gate, facts, params, approved) for gate in GATES]


def _of(gate: str, facts: Facts, params: Params, approved: str) -> Result:
    if gate == "gates":
        return _gates(facts, approved)
    if getattr(params.gates, gate) in (None, False):
        return Result(gate=gate, status="skipped", sentence=OFF)
    if reason := facts.broken.get(gate):
        return Result(gate=gate, status="failed", sentence=reason)
    if reason := facts.unjudged.get(gate):
        return Result(gate=gate, status="not judged", sentence=reason)
    if facts.first and gate in COMPARING:
        return Result(gate=gate, status="passed", sentence=FIRST)
    return JUDGES[gate](facts, params)


def _result(gate: str, faults: Iterable[str], fine: str, remedy: str = "", file: str = "", **more: str) -> Result:
    """Return a failure that names the first two faults, or a pass."""
    found = list(faults)
    if not found:
        return Result(gate=gate, status="passed", sentence=fine, **more)
    rest = f" and {len(found) - 2} more" if len(found) > 2 else ""
    return Result(gate=gate, status="failed", sentence="; ".join(found[:2]) + rest, remedy=remedy, file=file, **more)


def _gates(facts: Facts, approved: str) -> Result:
    if reason := facts.unjudged.get("gates"):
        return Result(gate="gates", status="not judged", sentence=reason, file="params.yaml")
    listed = [f"{change.name}: {change.before or 'none'} becomes {change.after or 'none'}" for change in facts.loosened]
    if listed and approved:
        rest = f" and {len(listed) - 2} more" if len(listed) > 2 else ""
        return Result(gate="gates", status="passed", sentence=f"{'; '.join(listed[:2])}{rest}, approved by {approved}")
    remedy = "take the change back, or have a code owner approve it"
    return _result("gates", listed, "no gate is looser than on the base", remedy, _home(facts.loosened))


def _home(loosened: list[Change]) -> str:
    return "" if not loosened else "tests/behaviour.yaml" if loosened[0].name.startswith("behaviour") else "params.yaml"


def _data(facts: Facts, params: Params) -> Result:
    gate = params.gates.data
    faults = [f"{name}, known only after the event, is an input" for name in facts.leaks]
    faults += [f"contract: {breach}" for breach in facts.breaches]
    if facts.duplicates > gate.duplicates:
        faults.append(f"{facts.duplicates:.2%} of rows share their keys, at most {gate.duplicates:.2%}")
    if facts.overlap > gate.overlap:
        faults.append(f"{facts.overlap:.1%} of holdout rows were learned from, at most {gate.overlap:.1%}")
    for change in facts.schema_changes:
        if change.breaking:
            faults.append(f"callers break: {change.field} {change.what}")
    for column in facts.columns:
        faults += _column_faults(column, gate.leak, gate.nulls)
    for rows in facts.rows:
        if rows.before and rows.after and abs(rows.after / rows.before - 1) > gate.rows:
            faults.append(f"{rows.period} has {rows.after:,} rows, {rows.before:,} on the base")
    compared = sum(column.effect is not None for column in facts.columns)
    fine = f"{compared} columns lie as on the base" if compared else "sound; the same data as the base"
    if facts.first:
        fine = f"sound; {FIRST}"
    return _result("data", faults, fine, "mend the source, schema.py or ingest.py", "src/ml/pipeline/schema.py")


def _column_faults(column: Column, leak: float, nulls: float) -> list[str]:
    faults = []
    if column.alone is not None and column.alone > leak:
        faults.append(f"{column.name} alone predicts too well ({column.alone:.3f}, at most {leak}): a leak?")
    if column.effect is not None and column.effect > column.limit and column.p <= SURE:
        faults.append(f"{column.name} lies {column.effect:.2f} from the base's, at most {column.limit:.2f}")
    if column.nulls_before is not None and abs(column.nulls_after - column.nulls_before) > nulls:
        faults.append(f"{column.name} is missing in {column.nulls_after:.1%}, {column.nulls_before:.1%} on the base")
    return faults


def _lock(facts: Facts, params: Params) -> Result:
    kinds = {problem.kind for problem in facts.lock}
    remedy = TAKE if "untaken" in kinds else RETRAIN if kinds - {"unpushed"} else PUSH
    fine = "dvc.lock is what params.yaml, code and data give"
    return _result("lock", [p.what for p in facts.lock], fine, remedy, "dvc.lock")


def _floor(facts: Facts, params: Params) -> Result:
    name = params.objective.metric
    wanted = {name: params.objective.floor, **params.gates.floor.metrics}
    faults = [
        f"{metric} {facts.whole[metric]:.4f}, {'at least' if _sign(params, metric) > 0 else 'at most'} {limit:g}"
        for metric, limit in wanted.items()
        # NaN is below every floor.
        if not _sign(params, metric) * facts.whole[metric] >= _sign(params, metric) * limit
    ]
    fine = f"{name} {facts.whole[name]:.4f}, floor {params.objective.floor:g}"
    seen, limits = f"{facts.whole[name]:.4f}", f"{params.objective.floor:g}"
    return _result("floor", faults, fine, "improve the model; ml tune searches", observed=seen, threshold=limits)


def _harm(facts: Facts, params: Params) -> Result:
    margins = [metric for metric in facts.metrics if metric.margin is not None]
    judged = [(metric, *harm(metric)) for metric in sorted(margins, key=lambda m: m.name != params.objective.metric)]
    failed = [sentence for _, status, sentence in judged if status == "failed"]
    unsure = [sentence for _, status, sentence in judged if status == "not judged"]
    if unsure and not failed:
        return Result(gate="harm", status="not judged", sentence="; ".join(unsure), remedy="judge by more rows")
    fine = f"{judged[0][0].name}: {judged[0][2]}" if judged else ""
    return _result("harm", failed, fine, "improve the model, or keep production's")


def harm(metric: Metric) -> tuple[str, str]:
    """Return the status and a sentence for one metric against production.

    It passes where the interval excludes a loss beyond the margin. Where so few rows would show two equal models as
    harm more often than one time in twenty, only a loss that is sure fails; the rest is not judged.
    """
    sign = 1 if metric.better == "higher" else -1
    delta = metric.delta
    if delta is None or delta.low is None:
        return "not judged", f"{metric.name} has no interval on {metric.rows:,} rows"
    gain, low = sign * delta.value, delta.low if sign > 0 else -delta.high
    high = delta.high if sign > 0 else -delta.low
    rows = f"on {metric.rows:,} rows"
    if metric.margin is not None and low < -metric.margin:
        if POWERED * (high - low) / 2 > metric.margin and (gain >= -metric.margin or high >= 0):
            return "not judged", (
                f"{metric.rows:,} rows are too few: {metric.name} could have lost {-low:.4f}, margin {metric.margin:g}"
            )
        return "failed", (
            f"{metric.name} lost {-gain:.4f} {rows}; a loss of {-low:.4f} cannot be excluded, margin {metric.margin:g}"
        )
    if low == high == 0:
        return "passed", f"the same {rows}"
    if low > 0:
        return "passed", f"better by {gain:.4f} ({low:.4f} to {high:.4f}) {rows}"
    if high < 0:
        ending = ", within what is allowed" if metric.margin is not None else "; no margin is set for it"
        return "passed", f"worse by {-gain:.4f} ({-high:.4f} to {-low:.4f}) {rows}{ending}"
    return "passed", f"no evidence of harm {rows}; a loss of up to {-low:.4f} cannot be excluded"


def _calibration(facts: Facts, params: Params) -> Result:
    gate, name = params.gates.calibration, CALIBRATION[params.task]
    found = next((metric for metric in facts.metrics if metric.name == name), None)
    error = abs(facts.whole[name])
    faults = [] if error <= gate.error else [f"{name} {error:.4f}, at most {gate.error:g}"]
    seen = {"observed": f"{error:.4f}", "threshold": f"{gate.error:g}"}
    rise = None
    if found and found.production is not None and found.delta is not None and found.delta.high is not None:
        rise, half = _rise(found), (found.delta.high - found.delta.low) / 2
        if rise > gate.margin and rise - half <= gate.margin < half and not faults:
            reason = f"{found.rows:,} rows are too few: {name} may have risen by {rise:.4f}, margin {gate.margin:g}"
            return Result(gate="calibration", status="not judged", sentence=reason, remedy="judge by more rows")
        if rise > gate.margin:
            faults.append(f"{name} may have risen by {rise:.4f} against production, margin {gate.margin:g}")
            if error <= gate.error:
                seen = {"observed": f"{rise:.4f}", "threshold": f"{gate.margin:g}"}
    against = f"; {FIRST}" if rise is None else f", at most {max(rise, 0):.4f} above production"
    remedy = "calibrate the scores, or change the estimator"
    return _result("calibration", faults, f"{name} {error:.4f}{against}", remedy, **seen)


def _rise(metric: Metric) -> float:
    """Return the upper end of the rise of a calibration error; a bias counts by its size."""
    if metric.name != "bias":
        return metric.delta.high
    half = (metric.delta.high - metric.delta.low) / 2
    return abs(metric.candidate.value) - abs(metric.production.value) + half


def _slices(facts: Facts, params: Params) -> Result:
    floor, sign = params.gates.slices.floor, _sign(params, params.objective.metric)
    judged = [part for part in facts.slices if part.candidate.value is not None and part.candidate.low is not None]
    if not judged:
        reason = f"no slice of evaluate.slices has {params.evaluate.min_rows} rows with a figure"
        return Result(gate="slices", status="not judged", sentence=reason, remedy="declare slices, or judge more rows")
    # Only what is surely below fails: of many slices, some lie low by chance.
    best = [(part, part.candidate.high if sign > 0 else -part.candidate.low) for part in judged]
    faults = [
        f"{part.name}: {params.objective.metric} {part.candidate.value:.4f} on {part.rows:,} rows, floor {floor:g}"
        for part, end in sorted(best, key=lambda pair: pair[1])
        if end < sign * floor
    ]
    worst = min(judged, key=lambda part: sign * part.candidate.value)
    fine = f"worst of {len(judged)}: {worst.name} {worst.candidate.value:.4f} on {worst.rows:,} rows, floor {floor:g}"
    return _result("slices", faults, fine, "look at these rows; more data or a feature may tell them apart")


def _fairness(facts: Facts, params: Params) -> Result:
    gate = params.gates.fairness
    faults, seen = [], []
    for attribute in gate.groups:
        groups = [group for group in facts.groups if group.attribute == attribute and group.judged]
        if len(groups) < 2:
            reason = f"{attribute} has fewer than two groups of {params.evaluate.min_rows} rows"
            return Result(gate="fairness", status="not judged", sentence=reason, remedy="judge by more rows")
        for name in {**gate.difference, **gate.ratio}:
            values = [group.figures[name] for group in groups if group.figures[name] is not None]
            if len(values) < len(groups):
                reason = f"{name} has no value in a group of {attribute}"
                return Result(gate="fairness", status="not judged", sentence=reason)
            difference, ratio = max(values) - min(values), min(values) / max(values) if max(values) else 1.0
            if difference > gate.difference.get(name, math.inf):
                faults.append(f"{name} differs by {difference:.3f} by {attribute}, at most {gate.difference[name]:g}")
            if ratio < gate.ratio.get(name, -math.inf):
                faults.append(f"{name} has a ratio of {ratio:.2f} by {attribute}, at least {gate.ratio[name]:g}")
            seen.append(f"{name} by {attribute} differs by {difference:.3f}")
    return _result("fairness", faults, "; ".join(seen[:3]), "look at the groups' data, labels and features")


def _behaviour(facts: Facts, params: Params) -> Result:
    if not facts.cases:
        reason = "tests/behaviour.yaml holds no case"
        return Result(gate="behaviour", status="not judged", sentence=reason, remedy="write one, or turn the gate off")
    fine = f"{facts.cases} case{'s' if facts.cases > 1 else ''} as expected"
    return _result("behaviour", facts.behaviour, fine, "mend the model, or the expectation", "tests/behaviour.yaml")


def _predictions(facts: Facts, params: Params) -> Result:
    limit = params.gates.predictions.flips
    faults = [f"{facts.flips:.1%} of decisions change, at most {limit:.1%}"] if facts.flips > limit else []
    seen = {"observed": f"{facts.flips:.4f}", "threshold": f"{limit:g}"}
    return _result("predictions", faults, f"{facts.flips:.1%} of decisions change", "look at what changed", **seen)


def _parity(facts: Facts, params: Params) -> Result:
    rows, largest = facts.parity
    faults = [f"the ONNX file differs from scikit-learn on {rows:,} rows, by up to {largest:.2g}"] if rows else []
    if facts.misreported:
        faults.append(
            f"reports/evaluate/metrics.json says another {', '.join(facts.misreported[:2])} than the model gives"
        )
    return _result("parity", faults, f"ONNX as scikit-learn, largest difference {largest:.1g}", RETRAIN, "dvc.lock")


def _determinism(facts: Facts, params: Params) -> Result:
    found = facts.reproduced
    if found is None:
        sentence = "no retrain of this lock was made here; ml reproduce makes one"
        return Result(gate="determinism", status="skipped", sentence=sentence)
    if found["same"] is True:
        return Result(gate="determinism", status="passed", sentence="a retrain gave the committed bytes")
    sentence = f"a retrain gave other bytes of {', '.join(found['differ'])}"
    if found["largest_difference"] is not None:
        sentence += f": scores differ by up to {found['largest_difference']:.2g}"
    if found["flips"] is not None:
        sentence += f", {found['flips']:.1%} of decisions"
    return _result("determinism", [sentence], "", RETRAIN, "dvc.lock")


def _elsewhere(gate: str) -> Callable[[Facts, Params], Result]:
    def judged(facts: Facts, params: Params) -> Result:
        if gate not in facts.measured:
            return Result(gate=gate, status="skipped", sentence="not measured here")
        return Result(gate=gate, **facts.measured[gate])

    return judged


JUDGES: dict[str, Callable[[Facts, Params], Result]] = {
    "data": _data,
    "lock": _lock,
    "floor": _floor,
    "harm": _harm,
    "calibration": _calibration,
    "slices": _slices,
    "fairness": _fairness,
    "behaviour": _behaviour,
    "predictions": _predictions,
    "parity": _parity,
    "determinism": _determinism,
    "service": _elsewhere("service"),
    "image": _elsewhere("image"),
}


def _sign(params: Params, metric: str) -> int:
    return -1 if METRICS[params.task].get(metric) == "minimize" else 1


def loosened(base: Params, own: Params) -> list[Change]:
    """Return what the change lets pass and the base does not; where no direction is known, any difference counts."""
    found = []
    if base.task != own.task:
        found.append(Change(name="task", before=base.task, after=own.task))
    for section, ignored in WATCHED.items():
        old, new = (
            flat(getattr(side, section).model_dump(mode="json", exclude=ignored), section) for side in (base, own)
        )
        found += [
            Change(name=key, before=text(old.get(key)), after=text(new.get(key)))
            for key in dict.fromkeys([*old, *new])
            if old.get(key) != new.get(key) and _is_looser(key, old.get(key), new.get(key), base)
        ]
    off = [f"gates.{name}" for name in GATES[1:] if getattr(base.gates, name) and not getattr(own.gates, name)]
    kept = [change for change in found if not change.name.startswith(tuple(off))]
    return kept + [Change(name=name, before="true", after="false") for name in off]


def _is_looser(key: str, before: Any, after: Any, base: Params) -> bool:
    name = key.rpartition(".")[2]
    direction = next((way for prefix, way in LOOSER.items() if key.startswith(prefix)), None)
    if key.startswith("gates.floor.metrics.") or key in ("objective.floor", "gates.slices.floor"):
        direction = -_sign(base, name if key.startswith("gates.floor.metrics.") else base.objective.metric)
    added = before is None
    if key.startswith("gates.") and added:
        return False  # one more rule, or a gate that was off
    if key.startswith("evaluate.slices.") and added:
        return False
    if key.startswith("split.leaks"):
        return not set(before or []) <= set(after or [])
    numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in (before, after)]
    if direction and all(numbers):
        return direction * (after - before) > 0
    return not (before is False and after is True)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted key; a list is one value."""
    if not isinstance(value, dict):
        return {prefix: value}
    joined = f"{prefix}." if prefix else ""
    return {key: item for name, part in value.items() for key, item in flat(part, f"{joined}{name}").items()}


def text(value: Any) -> str:
    """Return a setting as params.yaml would show it; empty for none."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
