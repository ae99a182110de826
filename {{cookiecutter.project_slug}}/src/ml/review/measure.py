"""Measures the work tree's model and data beside production's: facts, which `gates` then judges."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ml.errors import UserError
from ml.pipeline import contract as rules
from ml.pipeline import evaluate, export, metrics, repeat, schema, split, train
from ml.pipeline.features import inputs
from ml.pipeline.params import METRICS, Params
from ml.pipeline.tables import read_output
from ml.review import compare, data, gates, reproduce, sides
from ml.review.verdict import Bin, Flip, Metric, Result, SchemaChange, Slice

SLICE_RESAMPLES = 500
LARGEST = 10  # changes of a prediction that are shown


@dataclass(frozen=True)
class Candidate:
    """The work tree's model and data; scores are of every holdout row."""

    model: bytes
    contract: dict[str, Any]
    importance: dict[str, float]
    runtime: Any
    train: pd.DataFrame
    holdout: pd.DataFrame
    truth: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Production:
    """The model that is compared with, on the holdout rows of `mask`, which it did not learn from.

    `same` says that its importance was measured on this very holdout.
    """

    contract: dict[str, Any]
    importance: dict[str, float]
    same: bool
    mask: np.ndarray
    scores: np.ndarray


def candidate(params: Params) -> Candidate:
    """Return the work tree's side; raise UserError where an output, a column or every row of it is missing."""
    if not train.MODEL.exists():
        raise UserError(f"{train.MODEL} is missing: run make pipeline, or pull it")
    model, learned, holdout = train.MODEL.read_bytes(), read_output(split.TRAIN), read_output(split.HOLDOUT)
    runtime = export.session(model)
    kept = described(runtime, str(train.MODEL))
    fields = [field["name"] for field in kept["contract"]["fields"]]
    needed = dict.fromkeys([*rules.keys(schema.Row), *fields, params.data.target, "period"])
    for path, side in ((split.TRAIN, learned), (split.HOLDOUT, holdout)):
        if absent := [name for name in needed if name not in side]:
            raise UserError(f"{path} lacks {', '.join(absent)}: run make pipeline")
        if side.empty:
            raise UserError(f"{path} has no rows: run make pipeline")
    truth, scores = train.target(holdout, params), export.scores(runtime, inputs(holdout))
    return Candidate(model, kept["contract"], kept["importance"], runtime, learned, holdout, truth, scores)


def described(runtime: Any, what: str) -> dict[str, Any]:
    """Return what a model says of itself; raise UserError where it says nothing, since another tool made it."""
    try:
        kept = export.metadata(runtime)
        _ = kept["contract"]["fields"], kept["contract"]["task"], kept["importance"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{what} carries no contract: it was not made by this pipeline") from None
    return kept


def production(commit: sides.Commit, ours: Candidate, own_lock: dict[str, str]) -> Production:
    """Return the other side, scored on the values that its own pipeline gave to these rows, where it knew them.

    Raises SourceError where it cannot be read, UserError where it cannot be compared.
    """
    runtime = export.session(commit.read(str(train.MODEL)))
    kept = described(runtime, f"the model of {commit.ref}")
    if (task := kept["contract"]["task"]) != ours.contract["task"]:
        raise UserError(f"the model of {commit.ref} answers a {task} task: the two cannot be compared")
    keys, mask = rules.keys(schema.Row), np.ones(len(ours.holdout), dtype=bool)
    if commit.outputs().get(str(split.TRAIN)) != own_lock.get(str(split.TRAIN)):
        mask = data.unseen(ours.holdout, commit.table(str(split.TRAIN), keys), keys)
    fields = [field["name"] for field in kept["contract"]["fields"]]
    rows = ours.holdout
    same = commit.outputs().get(str(split.HOLDOUT)) == own_lock.get(str(split.HOLDOUT))
    if not same:
        known = commit.table(str(split.HOLDOUT), [*dict.fromkeys([*keys, *fields])])
        rows, complete = _as_known(rows, known, keys, fields)
        mask &= complete
    return Production(kept["contract"], kept["importance"], same, mask, export.scores(runtime, _as_fields(rows, kept)))


def _as_known(
    rows: pd.DataFrame, known: pd.DataFrame, keys: list[str], fields: list[str]
) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the fields as the other side knows them, else as they are here, and a mask (n,) of rows that have all."""
    found = rows[keys].merge(known.drop_duplicates(keys), on=keys, how="left", indicator=True)
    theirs = (found["_merge"] == "both").to_numpy()
    values = {
        name: found[name].where(theirs, rows[name].to_numpy()) if name in rows else found[name] for name in fields
    }
    return pd.DataFrame(values), theirs | all(name in rows for name in fields)


def _as_fields(rows: pd.DataFrame, kept: dict[str, Any]) -> pd.DataFrame:
    columns = {}
    for field in kept["contract"]["fields"]:
        values = rows[field["name"]]
        text = field["type"] == "string"
        columns[field["name"]] = values.fillna("").astype(str).astype(object) if text else values.astype(np.float32)
    return pd.DataFrame(columns)


def flipped(ours: Candidate, theirs: Production) -> np.ndarray:
    """Return a mask (n,), True where the decision changed; a value counts as changed by production's usual error."""
    now, before = metrics.decisions(ours.contract, ours.scores), metrics.decisions(theirs.contract, theirs.scores)
    if now is not None and before is not None:
        return now != before
    usual = np.mean(np.abs(theirs.scores - ours.truth)[theirs.mask])
    return np.abs(ours.scores - theirs.scores) > usual


def one_score(scores: np.ndarray) -> np.ndarray:
    """Return one number a row: of two classes the second's probability, of more the largest, or the value."""
    return scores if scores.ndim == 1 else scores[:, 1] if scores.shape[1] == 2 else scores.max(axis=1)


def compared(params: Params, ours: Candidate, theirs: Production | None, noise: dict[str, float]) -> list[Metric]:
    """Return every metric of both models on the same rows, with intervals of the same draws."""
    mask = np.ones(len(ours.truth), dtype=bool) if theirs is None else theirs.mask
    truth, count = ours.truth[mask], int(mask.sum())
    measures = {"candidate": compare.measure(params, ours.contract, truth, ours.scores[mask])}
    if theirs is not None:
        measures["production"] = compare.measure(params, theirs.contract, truth, theirs.scores[mask])
    drawn = compare.bootstrap(measures, count, params.review.resamples, params.review.seed)
    whole = {side: compare.at_once(found, count) for side, found in measures.items()}
    return [_metric(params, name, count, whole, drawn, noise) for name in whole["candidate"]]


def _metric(
    params: Params,
    name: str,
    count: int,
    whole: dict[str, dict[str, float]],
    drawn: dict[str, dict[str, np.ndarray]],
    noise: dict[str, float],
) -> Metric:
    sure = params.review.confidence
    found = {side: compare.interval(whole[side][name], drawn[side][name], sure) for side in whole}
    better = {"maximize": "higher", "minimize": "lower"}.get(METRICS[params.task].get(name), "neither")
    metric = Metric(name=name, better=better, rows=count, noise=noise.get(name), **found)
    if "production" not in found:
        return metric
    draws = drawn["candidate"][name] - drawn["production"][name]
    metric = metric.model_copy(
        update={
            "delta": compare.interval(whole["candidate"][name] - whole["production"][name], draws, sure),
            "detectable": compare.detectable(draws, sure),
            "margin": params.gates.harm.margins.get(name) if params.gates.harm else None,
        }
    )
    return metric if better == "neither" else metric.model_copy(update={"sentence": gates.harm(metric)[1]})


def whole(params: Params, ours: Candidate) -> dict[str, float]:
    """Return every metric on all holdout rows."""
    return compare.at_once(compare.measure(params, ours.contract, ours.truth, ours.scores), len(ours.truth))


def sliced(params: Params, ours: Candidate, theirs: Production | None) -> list[Slice]:
    """Return the objective's metric of each slice with enough rows; production's on those it did not learn from."""
    name = params.objective.metric
    masks = evaluate.sliced(ours.holdout, params.evaluate.slices, params.evaluate.min_rows)
    places = {key: np.flatnonzero(mask.to_numpy()) for key, mask in masks.items()}
    own = {
        key: compare.measure(params, ours.contract, ours.truth[at], ours.scores[at], only=name)
        for key, at in places.items()
    }
    whole = {key: compare.at_once(measure, len(places[key]))[name] for key, measure in own.items()}
    spread = {key: compare.within(measure, places[key]) for key, measure in own.items()}
    drawn = compare.bootstrap(spread, len(ours.truth), SLICE_RESAMPLES, params.review.seed) if spread else {}
    changed = flipped(ours, theirs) if theirs else None
    found = []
    for key, at in places.items():
        judged = at[theirs.mask[at]] if theirs else at[:0]
        before = None
        if len(judged):
            before = compare.measure(params, theirs.contract, ours.truth[judged], theirs.scores[judged], only=name)
        found.append(
            Slice(
                name=key,
                rows=len(at),
                candidate=compare.interval(whole[key], drawn[key][name], params.review.confidence),
                production=compare.at_once(before, len(judged))[name] if before else None,
                flips=float(changed[judged].mean()) if len(judged) else None,
            )
        )
    return found


def to_group(params: Params, ours: Candidate) -> tuple[str, np.ndarray, np.ndarray, dict[str, np.ndarray], int]:
    """Return what `groups.figures` takes: task, truth and decisions (n,), each attribute's groups (n,), least rows."""
    attributes = params.gates.fairness.groups if params.gates.fairness else {}
    decided = metrics.decisions(ours.contract, ours.scores)
    given = ours.scores if decided is None else decided.astype(int) if params.task == "binary" else decided
    values = {
        name: evaluate.values(ours.holdout, expression, f"gates.fairness.groups.{name}").astype(str).to_numpy(object)
        for name, expression in attributes.items()
    }
    return params.task, ours.truth, given, values, params.evaluate.min_rows


def columns(params: Params, ours: Candidate, base: sides.Commit | None, own_lock: dict[str, str]) -> dict[str, Any]:
    """Return the facts of the data gate; raise SourceError where the base's data cannot be read."""
    fields, keys = [field["name"] for field in ours.contract["fields"]], rules.keys(schema.Row)
    target = params.data.target
    learned = ours.train.iloc[:: max(1, len(ours.train) // data.SAMPLED)]
    labels = train.target(learned, params)
    alone = {name: data.alone(learned[name], labels, ours.holdout[name], ours.truth, params.task) for name in fields}
    both = pd.concat([ours.train, ours.holdout], ignore_index=True)
    before, found = None, []
    theirs = base.outputs() if base else {}
    paths = [str(split.TRAIN), str(split.HOLDOUT)]
    if theirs.get(paths[0]) and any(theirs.get(path) != own_lock.get(path) for path in paths):
        before = pd.concat([base.table(path) for path in paths], ignore_index=True)
        limit = params.gates.data.shift if params.gates.data else 1.0
        found = data.shifts(before, both, [*fields, target], limit)
    known = {column.name: column for column in found}
    empty = {name: data.Column(name=name) for name in fields if name not in known}
    return {
        "columns": [
            column.model_copy(update={"alone": alone.get(column.name)}) for column in [*found, *empty.values()]
        ],
        "rows": data.rows(both if before is None and theirs else before, both),
        "breaches": [breach for side in (ours.train, ours.holdout) for breach in breaches(side)],
        "duplicates": data.duplicates(both, keys),
        "overlap": data.overlap(ours.train, ours.holdout, [*fields, target]),
        "leaks": [name for name in fields if name in params.split.leaks],
    }


def breaches(rows: pd.DataFrame) -> list[str]:
    """Return the rules of the contract that rows break, without their values; shared keys are `data.duplicates`'."""
    found = rules.breaches(schema.Row, rows[[name for name in rows if name != "period"]])
    return [
        f"{breach.column or 'a row'} breaks {breach.check} ({breach.rows:,} of {len(rows):,} rows)"
        for breach in found
        if not breach.check.startswith("rows share")
    ]


def schema_changes(ours: Candidate, base: sides.Commit | None) -> list[SchemaChange]:
    """Return what callers of the base's model would notice; none where it has no model."""
    if base is None or str(train.MODEL) not in base.outputs():
        return []
    kept = described(export.session(base.read(str(train.MODEL))), f"the model of {base.ref}")
    return data.schema_changes(kept["contract"], ours.contract)


def parity(ours: Candidate) -> tuple[int, float]:
    """Return on how many holdout rows the ONNX file differs from scikit-learn's answers, and by how much at most."""
    wanted = read_output(train.EXPECTED).to_numpy(dtype=float)
    actual = ours.scores if ours.scores.ndim == 2 else ours.scores[:, None]
    if actual.shape != wanted.shape:
        return len(actual), float("inf")
    return export.disagreement(actual, wanted)


def misreported(whole: dict[str, float]) -> list[str]:
    """Return the metrics that the committed report gives otherwise than the model does."""
    try:
        read = json.loads(evaluate.METRICS.read_text())
        written = {name: np.nan if value is None else float(value) for name, value in read.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        raise UserError(f"{evaluate.METRICS} is missing or not readable: run make pipeline") from None
    return [
        name
        for name, value in whole.items()
        if not np.isclose(written.get(name, np.nan), value, atol=2e-6, equal_nan=True)
    ]


def noise() -> dict[str, float]:
    """Return the standard deviation of each metric between retrains; empty where the stage wrote none."""
    try:
        found = json.loads(repeat.METRICS.read_text())["metrics"]
        spread = {name: entry["standard_deviation"] for name, entry in found.items()}
        return {name: float(value) for name, value in spread.items() if value is not None}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def claim(path: Path) -> str:
    """Return why a result that git tracks counts for nothing; empty for one that was made here."""
    tracked = sides.git("ls-files", "--", str(path))
    return f"{path} is in git, where anyone may write it: take it out, and measure again" if tracked else ""


def results(model: str) -> dict[str, dict[str, Any]]:
    """Return the results that the load test and the image's checks left in `reports/`, where they are of the model
    with this SHA-256."""
    found = {}
    for gate in ("service", "image"):
        path = Path("reports") / gate / "result.json"
        if not path.exists():
            continue
        try:
            content = json.loads(path.read_text())
            of = content.pop("model")
            Result(gate=gate, **content)
        except (ValueError, KeyError, TypeError, AttributeError):
            content, of = {"status": "not judged", "sentence": f"{path} is not readable: measure again"}, None
        if of is not None and of != model:
            content = {"status": "not judged", "sentence": f"{path} is of another model: measure again"}
        if said := claim(path):
            content = {"status": "not judged", "sentence": said}
        found[gate] = content
    return found


def reproduced(own_lock: Path = Path("dvc.lock")) -> dict[str, Any] | None:
    """Return what `ml reproduce` found for this very lock, None where it was not run; raise UserError for else."""
    if not (reproduce.RESULT.exists() and own_lock.exists()):
        return None
    if said := claim(reproduce.RESULT):
        raise UserError(said)
    try:
        found = json.loads(reproduce.RESULT.read_text())
        of, _ = found["lock_sha256"], [found[key] for key in ("same", "differ", "largest_difference", "flips")]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{reproduce.RESULT} is not readable: run ml reproduce again") from None
    return found if of == hashlib.sha256(own_lock.read_bytes()).hexdigest() else None


def shown(row: pd.Series, names: list[str], mode: str) -> dict[str, str]:
    """Return a row of data as `report.rows` allows: whole, or numbers alone, to one digit."""
    if mode == "full":
        return {name: str(row[name]) for name in names}
    numbers = [name for name in names if isinstance(row[name], float | int | np.number)]
    return {name: f"{float(f'{row[name]:.0e}'):g}" for name in numbers}


def largest(params: Params, ours: Candidate, theirs: Production) -> list[Flip]:
    """Return the rows whose prediction changed most; none where `report.rows` is none."""
    if params.report.rows == "none":
        return []
    now, before = one_score(ours.scores), one_score(theirs.scores)
    moved = np.where(theirs.mask, np.abs(now - before), -1.0)
    names = [*dict.fromkeys([*(schema.Row.to_schema().unique or []), *(f["name"] for f in ours.contract["fields"])])]
    return [
        Flip(row=shown(ours.holdout.iloc[at], names, params.report.rows), before=before[at], after=now[at])
        for at in np.argsort(-moved, kind="stable")[:LARGEST]
        if moved[at] > 0
    ]


def reliability(params: Params, truth: np.ndarray, scores: np.ndarray, contract: dict[str, Any]) -> list[Bin]:
    """Return the reliability table: of the second class, of the likeliest one, or of values."""
    score, outcome = one_score(scores), truth
    if params.task == "multiclass":
        outcome = (metrics.decisions(contract, scores) == truth).astype(float)
    table = metrics.calibration(outcome.astype(float), score, params.evaluate.bins)
    return [Bin(**row) for row in table.astype({"rows": int}).to_dict("records")]
