"""Scores the holdout with the ONNX file that is served, and writes what it is worth."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ml.errors import ParamsError
from ml.pipeline import export, metrics, schema, split
from ml.pipeline.features import inputs
from ml.pipeline.params import Params
from ml.pipeline.tables import read_output, rounded, write_csv, write_json, write_parquet
from ml.pipeline.train import MODEL, target

REPORTS = Path("reports/evaluate")
METRICS, SLICES = REPORTS / "metrics.json", REPORTS / "slices.json"
PREDICTIONS = REPORTS / "predictions.parquet"
PLOTS = REPORTS / "plots"
PLOTS_FILE = REPORTS / "dvc.yaml"
POINTS = 500  # of a curve
SHOWN = {
    "roc": {"x": "false_positive_rate", "y": "true_positive_rate", "title": "ROC"},
    "precision_recall": {"x": "recall", "y": "precision", "title": "Precision and recall"},
    "calibration": {"x": "predicted", "y": "observed", "title": "Calibration"},
    "confusion": {"x": "actual", "y": "predicted", "title": "Confusion", "template": "confusion"},
    "scores": {"x": "score", "y": ["negative", "positive"], "title": "Scores"},
    "residuals": {"x": "residual", "y": "rows", "title": "Residuals"},
    # Not "field": DVC keeps that name for itself and drops such a column from the drawing.
    "importance": {"x": "loss", "y": "input", "title": "Importance", "template": "bar_horizontal"},
}


def predictions(rows: pd.DataFrame, scores: np.ndarray, contract: dict[str, Any], target_name: str) -> pd.DataFrame:
    """Return keys, truth and prediction of each row: `score` and `decision`, a share a class, or `value`."""
    keys = schema.Row.to_schema().unique or []
    found = rows[[*dict.fromkeys([*keys, "period", target_name])]].reset_index(drop=True)
    match contract["task"]:
        case "binary":
            return found.assign(score=scores[:, 1], decision=scores[:, 1] >= contract["threshold"])
        case "multiclass":
            classes = contract["classes"]
            return found.assign(
                label=np.array(classes)[scores.argmax(axis=1)],
                **{f"share_{name}": scores[:, i] for i, name in enumerate(classes)},
            )
        case _:
            return found.assign(value=scores)


def sliced(rows: pd.DataFrame, slices: dict[str, str], least: int) -> dict[str, pd.Series]:
    """Return a mask for each value of each slice that has at least `least` rows.

    A slice is a pandas expression over the row's columns: one of truth values gives one mask, any other gives one
    a value. Raises ParamsError that names the slice when pandas cannot evaluate it.
    """
    masks = {}
    for name, expression in slices.items():
        found = values(rows, expression, f"evaluate.slices.{name}")
        if found.dtype == bool:
            masks[name] = found
        else:
            masks.update({f"{name}={value}": found == value for value in sorted(found.dropna().unique())})
    return {name: mask for name, mask in masks.items() if mask.sum() >= least}


def values(rows: pd.DataFrame, expression: str, where: str) -> pd.Series:
    """Return a pandas expression's value for each row; raise ParamsError that names the setting where it has none."""
    try:
        found = rows.eval(expression)
        if not isinstance(found, pd.Series):
            raise TypeError("does not give one value a row")
        return found
    except Exception as error:  # pandas lets through what its parser and numpy raise
        raise ParamsError(f"{where} = {expression!r}: {str(error).splitlines()[0]}") from None


def binary_plots(truth: np.ndarray, score: np.ndarray, at: float, bins: int) -> dict[str, pd.DataFrame]:
    """Return the curves of a binary task, at most 500 points each."""
    from sklearn import metrics as sk

    false_positive, true_positive, _ = sk.roc_curve(truth, score)
    precision, recall, _ = sk.precision_recall_curve(truth, score)
    decision = score >= at
    edges = np.linspace(0, 1, 41)
    counts = {label: np.histogram(score[truth == label], edges)[0] for label in (0, 1)}
    return {
        "roc": _thin(pd.DataFrame({"false_positive_rate": false_positive, "true_positive_rate": true_positive})),
        "precision_recall": _thin(pd.DataFrame({"recall": recall, "precision": precision})),
        "calibration": metrics.calibration(truth, score, bins),
        "confusion": pd.DataFrame({"actual": truth, "predicted": decision.astype(int)}),
        "scores": pd.DataFrame({"score": edges[:-1], "negative": counts[0], "positive": counts[1]}),
    }


def multiclass_plots(truth: np.ndarray, score: np.ndarray, classes: list[str], bins: int) -> dict[str, pd.DataFrame]:
    """Return the confusion and the calibration of the likeliest class."""
    label = np.array(classes)[score.argmax(axis=1)]
    return {
        "calibration": metrics.calibration((label == truth).astype(float), score.max(axis=1), bins),
        "confusion": pd.DataFrame({"actual": truth, "predicted": label}),
    }


def regression_plots(truth: np.ndarray, value: np.ndarray, bins: int) -> dict[str, pd.DataFrame]:
    """Return mean truth by mean prediction, and the histogram of the residuals."""
    counts, edges = np.histogram(value - truth, bins=40)
    return {
        "calibration": metrics.calibration(truth, value, bins),
        "residuals": pd.DataFrame({"residual": edges[:-1], "rows": counts}),
    }


def plots(params: Params, truth: np.ndarray, scores: np.ndarray, contract: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """Return the plots of the task by name."""
    bins = params.evaluate.bins
    match params.task:
        case "binary":
            return binary_plots(truth, scores[:, 1], contract["threshold"], bins)
        case "multiclass":
            return multiclass_plots(truth, scores, contract["classes"], bins)
        case _:
            return regression_plots(truth, scores, bins)


def _thin(curve: pd.DataFrame) -> pd.DataFrame:
    return curve.iloc[np.unique(np.linspace(0, len(curve) - 1, POINTS).astype(int))]


def run(params: Params) -> None:
    """Write metrics, slices, plots and the predictions of every holdout row."""
    holdout = read_output(split.HOLDOUT)
    runtime = export.session(MODEL.read_bytes())
    kept = export.metadata(runtime)
    truth, scores = target(holdout, params), export.scores(runtime, inputs(holdout))
    measured = partial(metrics.of_task, params, kept["contract"])
    with warnings.catch_warnings():
        # A slice of one class has no ROC; its figure is NaN, written as null.
        warnings.simplefilter("ignore", UserWarning)
        masks = sliced(holdout, params.evaluate.slices, params.evaluate.min_rows)
        slices = {name: measured(truth[mask], scores[mask]) for name, mask in masks.items()}
    whole = rounded(measured(truth, scores))
    write_json(_nulls(whole), METRICS)
    write_json(_nulls(rounded(slices)), SLICES)
    importance = pd.DataFrame(kept["importance"].items(), columns=["input", "loss"]).sort_values(
        ["loss", "input"], ascending=[False, True]
    )
    drawn = {**plots(params, truth, scores, kept["contract"]), "importance": importance}
    for name, table in drawn.items():
        write_csv(table, PLOTS / f"{name}.csv")
    # JSON is YAML; DVC finds the file by its name and draws just what this task has.
    write_json({"plots": [{f"plots/{name}.csv": SHOWN[name]} for name in drawn]}, PLOTS_FILE)
    write_parquet(predictions(holdout, scores, kept["contract"], params.data.target), PREDICTIONS)
    objective = params.objective
    print(f"{objective.metric} {whole[objective.metric]:.4f} on {len(holdout):,} rows (floor {objective.floor})")


def _nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nulls(item) for key, item in value.items()}
    return None if isinstance(value, float) and value != value else value
