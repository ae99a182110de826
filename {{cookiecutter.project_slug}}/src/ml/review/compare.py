"""How sure are we of a figure, and of a difference: metrics under row weights, and their paired bootstrap.

A measure maps weights (b, n) to a figure for each of the b resamples; a resample is how often each row was drawn.
With weights of one it gives what `ml.pipeline.metrics` gives (a test holds the two together).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from statistics import NormalDist
from typing import Any

import numpy as np

from ml.pipeline import metrics
from ml.pipeline.params import METRICS, Costs, Params
from ml.review.verdict import Interval

Measure = Callable[[np.ndarray], dict[str, np.ndarray]]
CELLS = 250_000  # weights held at once, 8 bytes each: so few stay in the processor's cache
THREADS = min(4, os.cpu_count() or 1)  # numpy lets go of Python's lock where it counts
POWER = 0.8  # of the smallest detectable difference


def weights(rows: int, resamples: Iterable[int], seed: int) -> np.ndarray:
    """Return how often each row was drawn in each of the numbered resamples, (b, rows); a number has its own draws."""
    drawn = [np.random.default_rng([seed, number]).integers(0, rows, rows) for number in resamples]
    return np.stack([np.bincount(places, minlength=rows) for places in drawn])


def bootstrap(measures: dict[str, Measure], rows: int, resamples: int, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Return for each measure the figures (resamples,) by name, all of the same draws, so that differences are paired.

    Efron and Tibshirani (1993), chapter 13. Memory does not grow with rows times resamples.
    """
    step = max(1, CELLS // max(rows, 1))

    def figures(start: int) -> dict[str, dict[str, np.ndarray]]:
        drawn = weights(rows, range(start, min(start + step, resamples)), seed)
        with np.errstate(divide="ignore", invalid="ignore"):
            return {name: measure(drawn) for name, measure in measures.items()}

    # Of few rows, threads wait for each other's lock more than they gain, and take the second process's core.
    with ThreadPoolExecutor(THREADS if step <= 4 else 1) as pool:
        parts = list(pool.map(figures, range(0, resamples, step)))
    return {
        name: {key: np.concatenate([part[name][key] for part in parts]) for key in parts[0][name]} for name in measures
    }


def interval(value: float, draws: np.ndarray, confidence: float) -> Interval:
    """Return the value between the percentiles of its draws; draws without a figure (one class only) are left out."""
    drawn = draws[np.isfinite(draws)]
    if not len(drawn) or not np.isfinite(value):
        return Interval(value=float(value), low=None, high=None)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value=float(value), low=float(low), high=float(high))


def detectable(draws: np.ndarray, confidence: float) -> float:
    """Return the smallest true difference that so many rows show with a probability of 0.8 (Cohen, 1988)."""
    deviations = sum(map(NormalDist().inv_cdf, ((1 + confidence) / 2, POWER)))
    drawn = draws[np.isfinite(draws)]
    return float(deviations * np.std(drawn)) if len(drawn) else np.nan


def at_once(measure: Measure, rows: int) -> dict[str, float]:
    """Return the figures of the rows as they are."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return {name: float(values[0]) for name, values in measure(np.ones((1, rows), dtype=int)).items()}


def within(measure: Measure, places: np.ndarray) -> Measure:
    """Return the measure of a part of the rows: `places` are its row numbers in the whole."""
    return lambda drawn: measure(np.take(drawn, places, axis=1))


def measure(
    params: Params, contract: dict[str, Any], truth: np.ndarray, score: np.ndarray, only: str | None = None
) -> Measure:
    """Return the metrics of the task (or only one, which is quicker) for what `export.scores` gives."""
    bins = params.evaluate.bins
    match params.task:
        case "binary":
            found = _binary(truth, score[:, 1], contract["threshold"], params.objective.costs, bins)
        case "multiclass":
            found = _multiclass(truth, score, contract["classes"], bins)
        case _:
            found = _regression(truth, score)
    parts = {only: found[only]} if only else {name: found[name] for name in (*METRICS[params.task], *found)}
    return lambda drawn: _named(parts, drawn)


def _named(parts: dict[str, Measure], drawn: np.ndarray) -> dict[str, np.ndarray]:
    # Metrics of one family share a sort or a product of matrices.
    shared = {family: family(drawn) for family in set(parts.values())}
    return {name: shared[family][name] for name, family in parts.items()}


def _sums(columns: list[np.ndarray], combine: Callable[..., dict[str, np.ndarray]]) -> Measure:
    table = np.column_stack([np.asarray(column, dtype=float) for column in columns])
    return lambda drawn: combine(drawn.sum(axis=1), *(drawn.astype(float) @ table).T)


def ranking(truth: np.ndarray, score: np.ndarray) -> Measure:
    """Return the measure of `roc_auc` and `average_precision` (ties count half, and as one step).

    It looks only where a positive row stands: of the others it takes how many stand above. Whole numbers add up
    several times as fast as others do.
    """
    order = np.argsort(-score, kind="stable")
    falling, at = -score[order], np.flatnonzero(truth[order] == 1)
    steps, first, count = np.unique(falling[at], return_index=True, return_counts=True)
    sides = [np.searchsorted(falling, steps, side=side) for side in ("left", "right")]

    def figures(drawn: np.ndarray) -> dict[str, np.ndarray]:
        ranked = np.take(drawn, order, axis=1)
        all_, positive = _upto(ranked), _upto(np.take(ranked, at, axis=1))
        above, taken = (np.take(all_, side, axis=1) for side in sides)
        hits_above, hits = (np.take(positive, side, axis=1) for side in (first, first + count))
        positives, total = positive[:, -1], all_[:, -1]
        pairs, new_hits = positives * (total - positives), hits - hits_above
        lost = np.sum(new_hits * (above - hits_above + taken - hits), axis=1) / 2
        average = np.sum(new_hits * (hits / np.maximum(taken, 1)), axis=1) / positives
        base = positives / total
        return {
            "roc_auc": (pairs - lost) / pairs,
            "average_precision": average,
            "average_precision_skill": (average - base) / (1 - base),
        }

    return figures


def _upto(drawn: np.ndarray) -> np.ndarray:
    """Return the sum of the first k weights, k from 0 to n: (b, n + 1)."""
    found = np.zeros((len(drawn), drawn.shape[1] + 1), dtype=drawn.dtype)
    np.cumsum(drawn, axis=1, out=found[:, 1:])
    return found


def _gaps(outcome: np.ndarray, score: np.ndarray, bins: int) -> list[np.ndarray]:
    """Return for each bin of the calibration a column (n,) whose sum is the bin's gap."""
    place, gap = metrics.bin_of(score, bins), score - outcome
    return [np.where(place == number, gap, 0.0) for number in range(bins)]


def _binary(truth: np.ndarray, score: np.ndarray, at: float, costs: Costs, bins: int) -> dict[str, Measure]:
    decision, positive = score >= at, truth == 1
    sure = np.clip(score, np.finfo(float).eps, 1 - np.finfo(float).eps)
    loss = -np.where(positive, np.log(sure), np.log1p(-sure))

    def combine(n: np.ndarray, loss: Any, square: Any, taken: Any, hit: Any, late: Any, *gaps: Any) -> dict[str, Any]:
        return {
            "log_loss": loss / n,
            "brier": square / n,
            "precision": np.where(taken > 0, hit / np.maximum(taken, 1), 0.0),
            "recall": hit / late,
            "selection_rate": taken / n,
            "cost": ((taken - hit) * costs.false_alarm + (late - hit) * costs.miss) / n,
            "expected_calibration_error": np.sum(np.abs(gaps), axis=0) / n,
        }

    columns = [loss, (score - truth) ** 2, decision, decision & positive, positive, *_gaps(truth, score, bins)]
    sums = ("log_loss", "brier", "precision", "recall", "selection_rate", "cost", "expected_calibration_error")
    return {
        **dict.fromkeys(("roc_auc", "average_precision", "average_precision_skill"), ranking(truth, score)),
        **dict.fromkeys(sums, _sums(columns, combine)),
    }


def _multiclass(truth: np.ndarray, score: np.ndarray, classes: list[str], bins: int) -> dict[str, Measure]:
    score = score / score.sum(axis=1, keepdims=True)
    names = np.array(classes)
    one_hot = truth[:, None] == names[None, :]
    chosen = names[score.argmax(axis=1)][:, None] == names[None, :]
    sure = np.clip(score, np.finfo(float).eps, 1)
    loss = -np.log(np.sum(np.where(one_hot, sure, 0.0), axis=1))
    square = np.sum((score - one_hot) ** 2, axis=1)
    ranked, k = [ranking(one_hot[:, i].astype(int), score[:, i]) for i in range(len(classes))], len(classes)

    def combine(n: np.ndarray, loss: Any, square: Any, *counts: Any) -> dict[str, np.ndarray]:
        right, actual, given, gaps = np.split(np.stack(counts), [k, 2 * k, 3 * k])
        share = actual / n
        entropy = -np.sum(np.where(share > 0, share * np.log(np.where(share > 0, share, 1)), 0), axis=0)
        seen = (actual + given) > 0
        f1 = np.where(seen, 2 * right / np.maximum(actual + given, 1), np.nan)
        return {
            "accuracy": right.sum(axis=0) / n,
            "balanced_accuracy": np.nanmean(np.where(actual > 0, right / np.maximum(actual, 1), np.nan), axis=0),
            "f1_macro": np.nanmean(f1, axis=0),
            "log_loss": loss / n,
            "log_loss_skill": 1 - (loss / n) / entropy,
            "brier": square / n,
            "expected_calibration_error": np.sum(np.abs(gaps), axis=0) / n,
        }

    hits = one_hot & chosen
    gaps = _gaps(hits.any(axis=1).astype(float), score.max(axis=1), bins)
    summed = _sums([loss, square, *hits.T, *one_hot.T, *chosen.T, *gaps], combine)
    sums = ("accuracy", "balanced_accuracy", "f1_macro", "log_loss", "log_loss_skill", "brier")
    return {
        **dict.fromkeys((*sums, "expected_calibration_error"), summed),
        "roc_auc": lambda drawn: {"roc_auc": np.mean([one(drawn)["roc_auc"] for one in ranked], axis=0)},
    }


def _regression(truth: np.ndarray, value: np.ndarray) -> dict[str, Measure]:
    error, centred = value - truth, truth - truth.mean()
    order = np.argsort(np.abs(error), kind="stable")
    ordered = np.abs(error)[order]

    def combine(n: np.ndarray, size: Any, square: Any, sum_: Any, sum_of_squares: Any, bias: Any) -> dict[str, Any]:
        # Rounding leaves a spread of about 1e-16 of the squares where one value alone was drawn.
        spread = sum_of_squares - sum_**2 / n
        return {
            "mean_absolute_error": size / n,
            "root_mean_squared_error": np.sqrt(square / n),
            "r2": 1 - square / np.where(spread > 1e-12 * sum_of_squares, spread, np.nan),
            "bias": bias / n,
        }

    def median(drawn: np.ndarray) -> dict[str, np.ndarray]:
        upto = np.cumsum(drawn[:, order], axis=1)
        last = upto[:, -1:]
        middle = [ordered[np.argmax(upto > rank, axis=1)] for rank in ((last - 1) // 2, last // 2)]
        return {"median_absolute_error": np.mean(middle, axis=0)}

    summed = _sums([np.abs(error), error**2, centred, centred**2, error], combine)
    return {
        **dict.fromkeys(("mean_absolute_error", "root_mean_squared_error", "r2", "bias"), summed),
        "median_absolute_error": median,
    }
