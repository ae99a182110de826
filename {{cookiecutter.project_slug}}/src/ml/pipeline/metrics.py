"""What the predictions are worth; every figure is of the rows given and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ml.errors import UserError
from ml.pipeline.params import Costs, Params


def expected_calibration_error(truth: np.ndarray, score: np.ndarray, bins: int) -> float:
    """Return the mean gap between score and outcome over equal-width bins, weighted by rows (Naeini et al., 2015)."""
    table = calibration(truth, score, bins)
    return float(np.average(np.abs(table["predicted"] - table["observed"]), weights=table["rows"]))


def calibration(truth: np.ndarray, score: np.ndarray, bins: int) -> pd.DataFrame:
    """Return mean score, mean outcome and rows of each occupied bin; shape (at most `bins`, 3)."""
    place = bin_of(score, bins)
    grouped = pd.DataFrame({"predicted": score, "observed": truth}).groupby(place)
    return grouped.mean().assign(rows=grouped.size()).reset_index(drop=True)


def bin_of(score: np.ndarray, bins: int) -> np.ndarray:
    """Return the number of each score's equal-width bin (n,): of 0 to 1, or of the scores' wider range."""
    wide = score.max() > 1 or score.min() < 0
    edges = np.linspace(score.min(), score.max(), bins + 1) if wide else np.linspace(0, 1, bins + 1)
    return np.clip(np.digitize(score, edges[1:-1]), 0, bins - 1)


def threshold(costs: Costs) -> float:
    """Return the probability above which acting costs less than not acting (Elkan, 2001, section 2)."""
    return costs.false_alarm / (costs.false_alarm + costs.miss)


def decisions(contract: dict[str, Any], scores: np.ndarray) -> np.ndarray | None:
    """Return what is decided for each row (n,): act or not, the class; None where a value is the answer."""
    match contract["task"]:
        case "binary":
            return scores[:, 1] >= contract["threshold"]
        case "multiclass":
            return np.array(contract["classes"])[scores.argmax(axis=1)]
        case _:
            return None


def cost(truth: np.ndarray, decision: np.ndarray, costs: Costs) -> float:
    """Return the mean cost of a decision, in the unit of the costs."""
    false_alarm, miss = decision & (truth == 0), ~decision & (truth == 1)
    return float(np.mean(false_alarm * costs.false_alarm + miss * costs.miss))


def binary(truth: np.ndarray, score: np.ndarray, at: float, costs: Costs, bins: int) -> dict[str, float]:
    """Return the metrics of probabilities (n,) for outcomes 0 and 1 (n,), both of which must occur.

    `average_precision_skill` is (AP - base rate) / (1 - base rate): 0 for a constant score, 1 for a perfect one,
    and comparable between months with different base rates.
    """
    from sklearn import metrics as sk

    decision = score >= at
    base = float(np.mean(truth))
    average = float(sk.average_precision_score(truth, score))
    return {
        "rows": len(truth),
        "base_rate": base,
        "roc_auc": float(sk.roc_auc_score(truth, score)),
        "average_precision": average,
        "average_precision_skill": (average - base) / (1 - base) if base < 1 else float("nan"),
        "log_loss": float(sk.log_loss(truth, score, labels=[0, 1])),
        "brier": float(np.mean((score - truth) ** 2)),
        "expected_calibration_error": expected_calibration_error(truth, score, bins),
        "threshold": at,
        "precision": float(sk.precision_score(truth, decision, zero_division=0)),
        "recall": float(sk.recall_score(truth, decision)),
        "selection_rate": float(np.mean(decision)),
        "cost": cost(truth, decision, costs),
        "cost_of_never": cost(truth, np.zeros_like(decision), costs),
        "cost_of_always": cost(truth, np.ones_like(decision), costs),
    }


def multiclass(truth: np.ndarray, score: np.ndarray, classes: list[str], bins: int) -> dict[str, float]:
    """Return the metrics of probabilities (n, classes); `log_loss_skill` is 1 - log loss / that of the base rates."""
    from sklearn import metrics as sk

    if strange := sorted(set(truth) - set(classes)):
        raise UserError(f"the class {strange[0]} is judged but was not learned; list more data.periods or drop it")
    score = score / score.sum(axis=1, keepdims=True)
    one_hot = truth[:, None] == np.array(classes)[None, :]
    label = np.array(classes)[score.argmax(axis=1)]
    priors = np.tile(one_hot.mean(axis=0), (len(truth), 1))
    log_loss = float(sk.log_loss(truth, score, labels=classes))
    base = float(sk.log_loss(truth, priors, labels=classes))
    every = bool(one_hot.any(axis=0).all())
    return {
        "rows": len(truth),
        "accuracy": float(sk.accuracy_score(truth, label)),
        "balanced_accuracy": float(sk.balanced_accuracy_score(truth, label)),
        "f1_macro": float(sk.f1_score(truth, label, average="macro", zero_division=0)),
        "roc_auc": float(np.mean([sk.roc_auc_score(one_hot[:, i], score[:, i]) for i in range(len(classes))]))
        if every
        else float("nan"),
        "log_loss": log_loss,
        "log_loss_skill": 1 - log_loss / base if base else 0.0,
        "brier": float(np.mean(np.sum((score - one_hot) ** 2, axis=1))),
        "expected_calibration_error": expected_calibration_error(
            (label == truth).astype(float), score.max(axis=1), bins
        ),
    }


def regression(truth: np.ndarray, value: np.ndarray) -> dict[str, float]:
    """Return the metrics of values (n,), in the target's unit; `bias` is the mean of prediction minus truth."""
    from sklearn import metrics as sk

    return {
        "rows": len(truth),
        "mean_absolute_error": float(sk.mean_absolute_error(truth, value)),
        "root_mean_squared_error": float(sk.root_mean_squared_error(truth, value)),
        "median_absolute_error": float(sk.median_absolute_error(truth, value)),
        "r2": float(sk.r2_score(truth, value)),
        "bias": float(np.mean(value - truth)),
    }


def of_task(params: Params, contract: dict[str, Any], truth: np.ndarray, score: np.ndarray) -> dict[str, float]:
    """Return the metrics of the task for the scores that `export.scores` gives."""
    bins = params.evaluate.bins
    match params.task:
        case "binary":
            return binary(truth, score[:, 1], contract["threshold"], params.objective.costs, bins)
        case "multiclass":
            return multiclass(truth, score, contract["classes"], bins)
        case _:
            return regression(truth, score)
