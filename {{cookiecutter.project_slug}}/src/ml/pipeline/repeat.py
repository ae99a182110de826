"""Trains the recipe again with other seeds, so that a change can be told from what a retrain alone moves."""

from __future__ import annotations

import warnings
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ml.pipeline import export, features, metrics, split
from ml.pipeline.params import Params
from ml.pipeline.tables import read_output, rounded, write_json
from ml.pipeline.train import contract, fit, refuse_one_class, target
from ml.progress import steps

METRICS = Path("reports/repeat/metrics.json")


def flips(decided: list[np.ndarray]) -> dict[str, Any]:
    """Return for each pair of trainings the share of rows that they decide differently, and the mean of the shares."""
    values = [float(np.mean(one != other)) for one, other in combinations(decided, 2)]
    return {"values": values, "mean": float(np.mean(values)) if values else 0.0}


def spread(figures: list[dict[str, float]]) -> dict[str, Any]:
    """Return each metric's values and their standard deviation (n - 1 in the denominator; 0 for a single value)."""
    columns = {name: [figure[name] for figure in figures] for name in figures[0]}
    return {
        name: {"values": values, "standard_deviation": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}
        for name, values in columns.items()
    }


def run(params: Params) -> None:
    """Write what the holdout's metrics and decisions are under other seeds; the converter is not asked."""
    from ml.pipeline.estimators import pipeline as unfitted

    train, holdout = read_output(split.TRAIN), read_output(split.HOLDOUT)
    truth, holdout_truth = target(train, params), target(holdout, params)
    refuse_one_class(truth, "train", params.task)
    refuse_one_class(holdout_truth, "holdout", params.task)
    rows, held = features.inputs(train), features.inputs(holdout)
    recipe = params.train
    estimator = unfitted(recipe.estimator, params.task, recipe.settings, recipe.seed)[-1]
    # A seed among the settings stands above the recipe's.
    draws = "random_state" in estimator.get_params() and "random_state" not in recipe.settings
    seeds = [recipe.seed + 1 + place for place in range(params.repeat.seeds if draws else 1)]
    figures, decided = [], []
    with steps("repeat", len(seeds)) as bar, warnings.catch_warnings():
        # A metric that is not defined for these rows is NaN, written as null.
        warnings.simplefilter("ignore", UserWarning)
        for seed in seeds:
            model = fit(unfitted(recipe.estimator, params.task, recipe.settings, seed), rows, truth)
            agreement, scores = contract(params, model), export.expected(model, held)
            figures.append(metrics.of_task(params, agreement, holdout_truth, scores))
            decided.append(metrics.decisions(agreement, scores))
            bar.update()
    found = {"draws": draws, "seeds": seeds, "metrics": spread(figures)}
    found["flips"] = None if params.task == "regression" else flips(decided)
    write_json(_nulls(rounded(found)), METRICS)


def _nulls(value: Any) -> Any:
    match value:
        case dict():
            return {key: _nulls(item) for key, item in value.items()}
        case list():
            return [_nulls(item) for item in value]
        case _:
            return None if value != value else value
