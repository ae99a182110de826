"""Measures how alike groups of people or things are treated, by fairlearn."""

from __future__ import annotations

import numpy as np

from ml.review.verdict import Group


def figures(
    task: str, truth: np.ndarray, given: np.ndarray, attributes: dict[str, np.ndarray], least: int
) -> list[Group]:
    """Return the fairness figures of each group of each attribute; one with fewer rows than `least` is not judged.

    `truth` and `given` (decisions, or values) are (n,), as is each attribute's text of a row's group.
    """
    if not attributes:
        return []
    # Here, since this is measured in a process that does other things first.
    from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate
    from sklearn.metrics import accuracy_score, mean_absolute_error

    kinds = {
        "binary": (selection_rate, true_positive_rate, false_positive_rate),
        "multiclass": (accuracy_score,),
        "regression": (mean_absolute_error,),
    }
    measured = {one.__name__.removesuffix("_score"): one for one in kinds[task]}
    found = []
    for attribute, values in attributes.items():
        frame = MetricFrame(metrics=measured, y_true=truth, y_pred=given, sensitive_features=values)
        sizes = dict(zip(*np.unique(values.astype(str), return_counts=True), strict=True))
        found += [
            Group(
                attribute=attribute,
                value=str(value),
                rows=int(sizes[value]),
                judged=bool(sizes[value] >= least),
                figures={name: float(row[name]) for name in measured},
            )
            for value, row in frame.by_group.iterrows()
        ]
    return found
