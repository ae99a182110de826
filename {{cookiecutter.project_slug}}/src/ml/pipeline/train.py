"""Fits the model on train, converts it, proves the conversion on the holdout and records the run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ml.errors import UserError
from ml.pipeline import export, metrics, schema, split, tracking
from ml.pipeline.contract import request_fields
from ml.pipeline.features import inputs
from ml.pipeline.params import METRICS, Params
from ml.pipeline.tables import read_output, rounded, write_bytes, write_parquet
from ml.progress import steps

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

MODEL = Path("models/model.onnx")
EXPECTED = Path("reports/train/expected.parquet")
SAMPLED = 20_000  # rows that importance is measured on
CONTRACT_VERSION = 1


def target(rows: pd.DataFrame, params: Params) -> np.ndarray:
    """Return the labels (n,): 0 and 1, text, or floats, as the task has them.

    Raises UserError where the values do not fit the task.
    """
    values = rows[params.data.target]
    if params.task == "multiclass":
        return values.astype(str).to_numpy(dtype=object)
    numbers = values.to_numpy(dtype=float)
    if params.task == "binary" and not np.isin(numbers, (0, 1)).all():
        odd = numbers[~np.isin(numbers, (0, 1))][0]
        raise UserError(f"data.target = {params.data.target!r} holds {odd:g}; a binary target holds 0 and 1")
    return numbers.astype(int) if params.task == "binary" else numbers


def refuse_one_class(truth: np.ndarray, name: str, task: str) -> None:
    """Raise UserError where a classifier would see a single class."""
    if task != "regression" and len(np.unique(truth)) < 2:
        raise UserError(f"every label of the {name} rows is {truth[0]}; a {task} task needs two classes or more")


def fit(model: Pipeline, rows: pd.DataFrame, truth: np.ndarray) -> Pipeline:
    """Fit and return the model; raise UserError with scikit-learn's reason where it refuses settings or data."""
    try:
        return model.fit(rows, truth)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{type(model[-1]).__name__} cannot be fitted: {reason}; see train in params.yaml") from None


def contract(params: Params, model: Pipeline) -> dict[str, Any]:
    """Return what the service must know of the model: the fields of a request, the classes, the threshold."""
    found: dict[str, Any] = {
        "version": CONTRACT_VERSION,
        "task": params.task,
        "target": params.data.target,
        "fields": request_fields(schema.Request),
    }
    if params.task != "regression":
        found["classes"] = [str(label) for label in model.classes_]
    if params.task == "binary":
        found["threshold"] = metrics.threshold(params.objective.costs)
    return found


def expected(scores: np.ndarray, contract: dict[str, Any]) -> pd.DataFrame:
    """Return the scores that `export.expected` gave as columns: `share_<class>`, or `value`.

    The review compares them with what the ONNX file answers on the same rows, without the fitted pipeline.
    """
    names = [f"share_{name}" for name in contract.get("classes", [])] or ["value"]
    return pd.DataFrame(scores.reshape(len(scores), len(names)).astype(float), columns=names)


def importance(score: Any, rows: pd.DataFrame, truth: np.ndarray, better: int, seed: int) -> dict[str, float]:
    """Return what the objective loses when one field is shuffled (Breiman, 2001, section 10).

    `score` maps inputs and truth to the objective's metric; `better` is 1 where more is better, else -1.
    """
    random = np.random.default_rng(seed)
    whole = score(rows, truth)
    found = {
        name: better * (whole - score(rows.assign(**{name: random.permutation(rows[name].to_numpy())}), truth))
        for name in rows
    }
    return rounded(found)


def run(params: Params) -> None:
    """Write what scikit-learn answers on the holdout and models/model.onnx, then record the run in MLflow.

    Raises ExportError for a model that cannot be served as it was fitted, TrackingError when only the record failed.
    """
    from ml.pipeline.estimators import pipeline as unfitted

    train, holdout = read_output(split.TRAIN), read_output(split.HOLDOUT)
    truth, holdout_truth = target(train, params), target(holdout, params)
    refuse_one_class(truth, "train", params.task)
    refuse_one_class(holdout_truth, "holdout", params.task)
    # Before the fit, since it refuses what the service could not check.
    optional = [field["name"] for field in request_fields(schema.Request) if field["optional"]]
    recipe = params.train
    model = unfitted(recipe.estimator, params.task, recipe.settings, recipe.seed)
    export.refuse_known_wrong(model)
    with steps("train", 5) as bar:
        fit(model, inputs(train), truth)
        bar.update()
        converted, held = export.convert(model, inputs(train.head(1))), inputs(holdout)
        bar.update()
        scores, wanted, difference = export.prove(model, converted, held, optional)
        bar.update()
        runtime, agreement = export.session(converted.SerializeToString()), contract(params, model)
        measured = partial(metrics.of_task, params, agreement)
        sample = slice(None, None, max(1, len(held) // SAMPLED))
        weights = importance(
            lambda rows, labels: measured(labels, export.scores(runtime, rows))[params.objective.metric],
            held.iloc[sample],
            holdout_truth[sample],
            1 if METRICS[params.task][params.objective.metric] == "maximize" else -1,
            recipe.seed,
        )
        bar.update()
        content = export.with_metadata(converted, {"contract": agreement, "importance": weights})
        write_parquet(expected(wanted, agreement), EXPECTED)
        write_bytes(content, MODEL)
        tracking.log_training(
            params=_flat(params.model_dump(mode="json")),
            metrics={**rounded(measured(holdout_truth, scores)), "onnx_largest_difference": difference},
            data={split.TRAIN: train, split.HOLDOUT: holdout},
            target=params.data.target,
            importance=weights,
            model=content,
            pipeline=model,
            sample=held.head(100),
        )
        bar.update()


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(_flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item})
    return flat
