"""Turns the name in `params.yaml` into an unfitted estimator: a family, or any scikit-learn class by its path."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from sklearn.base import BaseEstimator, is_regressor
from sklearn.pipeline import Pipeline

from ml.errors import ParamsError
from ml.pipeline.features import transformer

FAMILIES = {
    "linear": {
        "binary": "sklearn.linear_model.LogisticRegression",
        "multiclass": "sklearn.linear_model.LogisticRegression",
        "regression": "sklearn.linear_model.Ridge",
    },
    "forest": {
        "binary": "sklearn.ensemble.RandomForestClassifier",
        "multiclass": "sklearn.ensemble.RandomForestClassifier",
        "regression": "sklearn.ensemble.RandomForestRegressor",
    },
    "boosting": {
        "binary": "sklearn.ensemble.HistGradientBoostingClassifier",
        "multiclass": "sklearn.ensemble.HistGradientBoostingClassifier",
        "regression": "sklearn.ensemble.HistGradientBoostingRegressor",
    },
}
DEFAULTS = {
    # Fully grown trees make an ONNX file of hundreds of megabytes.
    "forest": {"min_samples_leaf": 20, "n_jobs": -1},
    "linear": {"max_iter": 1000},
    "boosting": {"early_stopping": False},
}


def family(name: str) -> str:
    """Return the family of a name in FAMILIES or of a class path; other trees are `forest`, all else is `other`."""
    found = (key for key, paths in FAMILIES.items() if name == key or name in paths.values())
    # Behind a scaler, rows on a tree's boundary fall to the other side in 32-bit arithmetic.
    return next(found, "forest" if name.startswith(("sklearn.ensemble.", "sklearn.tree.")) else "other")


def estimator(name: str, task: str, settings: dict[str, Any], seed: int) -> BaseEstimator:
    """Return the unfitted estimator, seeded where it draws random numbers.

    Raises ParamsError for a name or a setting that scikit-learn does not have.
    """
    path = FAMILIES[name][task] if name in FAMILIES else name
    module, _, attribute = path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), attribute)
        if not (inspect.isclass(kind) and issubclass(kind, BaseEstimator)):
            raise AttributeError(path)
    except (ImportError, AttributeError, ValueError):
        raise ParamsError(
            f"train.estimator = {name!r} is neither a family ({', '.join(FAMILIES)}) nor the path of a class "
            "such as sklearn.naive_bayes.GaussianNB"
        ) from None
    known = inspect.signature(kind).parameters
    unknown = next((key for key in settings if key not in known), None)
    if unknown is not None:
        raise ParamsError(f"train.settings.{unknown} is not a setting of {attribute}; it has {', '.join(known)}")
    seeded = {"random_state": seed} if "random_state" in known else {}
    defaults = {key: value for key, value in DEFAULTS.get(family(name), {}).items() if key in known}
    try:
        found = kind(**{**defaults, **seeded, **settings})
    except TypeError as error:
        raise ParamsError(f"train.estimator = {name!r} cannot be made from train.settings: {error}") from None
    if not (is_regressor(found) if task == "regression" else hasattr(found, "predict_proba")):
        needed = "a regressor" if task == "regression" else "a classifier with predict_proba"
        raise ParamsError(f"train.estimator = {name!r} is not {needed}, which a {task} task needs; choose another")
    return found


def pipeline(name: str, task: str, settings: dict[str, Any], seed: int) -> Pipeline:
    """Return features and estimator as the one object that is fitted, converted and served."""
    steps = [("features", transformer(family(name))), ("estimator", estimator(name, task, settings, seed))]
    return Pipeline(steps)
