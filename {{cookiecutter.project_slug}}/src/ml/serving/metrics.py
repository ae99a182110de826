"""The model's own metrics beside BentoML's: scores, refused values, unknown categories, dropped lines of the log."""

from __future__ import annotations

import math
from collections import Counter as Count
from typing import Any

import numpy as np
import prometheus_client

from ml.serving.request import Contract, Problem

NO_FIELD = "(none of the contract)"
NOT_A_ROW = "must be an object of named fields"
UNKNOWN_FIELD = "unknown field"
LONGEST = 120
FEW = 8  # values that are faster counted one by one
# 1-2-5 steps either side of zero: nobody knows a target's unit beforehand.
STEPS = [step * 10.0**power for power in range(-1, 6) for step in (1, 2, 5)]
BUCKETS = {"regression": [-step for step in reversed(STEPS)] + [0.0] + STEPS}
SHARES = [share / 20 for share in range(1, 21)]


class Scores(prometheus_client.Histogram):
    """A histogram that takes a column at once: value by value, a thousand cost as much as to score them."""

    def observe_all(self, values: np.ndarray) -> None:
        """Count values of shape (n,) that are finite."""
        if values.size < FEW:
            for value in filter(math.isfinite, values.tolist()):
                self.observe(value)
        else:
            values = values[np.isfinite(values)]
            self._sum.inc(float(values.sum(dtype=np.float64)))
            places = np.searchsorted(self._upper_bounds, values)
            for place, count in zip(*np.unique(places, return_counts=True), strict=True):
                self._buckets[place].inc(int(count))


class Metrics:
    """What the service counts; every label is known at the start, so that no client can make a time series."""

    def __init__(self, contract: Contract, info: dict[str, str]) -> None:
        regression = contract.task == "regression"
        name = "value" if regression else "score"
        text = {"binary": "Scores", "multiclass": "Probabilities of the label that was answered"}
        self.scores = Scores(
            f"ml_{name}", text.get(contract.task, "Predicted values"), buckets=BUCKETS.get(contract.task, SHARES)
        )
        rejected = prometheus_client.Counter("ml_rejected_rows", "Values refused", ["field", "rule"])
        unknown = prometheus_client.Counter("ml_unknown_categories", "Categories not seen in training", ["field"])
        dropped = prometheus_client.Counter("ml_log_dropped", "Lines that the prediction log lost", ["reason"])
        model = prometheus_client.Gauge("ml_model_info", "The model", list(info), multiprocess_mode="max")
        model.labels(**info).set(1)
        self.rejected = {pair: rejected.labels(*pair) for pair in known_rules(contract)}
        self.unknown = {f.name: unknown.labels(f.name) for f in contract.fields if f.categories is not None}
        self.dropped = {reason: dropped.labels(reason) for reason in ("full", "disk")}

    def count_scores(self, scores: np.ndarray, task: str) -> None:
        """Count scores of shape (n_rows, n_outputs) as the task says."""
        self.scores.observe_all(scores.max(axis=1) if task == "multiclass" else scores[:, -1])

    def count_problems(self, problems: list[Problem]) -> None:
        """Count problems by field and rule."""
        pairs = Count((problem.field, problem.rule[:LONGEST]) for problem in problems)
        for (field, rule), count in pairs.items():
            whole = UNKNOWN_FIELD if rule.startswith(UNKNOWN_FIELD) else NOT_A_ROW
            self.rejected.get((field, rule), self.rejected[NO_FIELD, whole]).inc(count)

    def count_unknown(self, unknown: dict[str, int]) -> None:
        """Count unknown categories by field."""
        for field, count in unknown.items():
            self.unknown[field].inc(count)


def known_rules(contract: Contract) -> list[tuple[str, str]]:
    """Return every pair of field and rule that a problem can have."""
    pairs: list[tuple[str, str]] = [(NO_FIELD, NOT_A_ROW), (NO_FIELD, UNKNOWN_FIELD)]
    for field in contract.fields:
        pairs += [] if field.optional else [(field.name, "required")]
        pairs += [(field.name, rule[:LONGEST]) for _, rule in field.tests]
    return pairs


def labels(info: dict[str, Any]) -> dict[str, str]:
    """Return the labels of `ml_model_info`."""
    return {key: str(info[key] or "") for key in ("model", "version", "stage")}
