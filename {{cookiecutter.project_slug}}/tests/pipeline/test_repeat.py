from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ml.errors import UserError
from ml.pipeline import metrics, repeat, split
from ml.pipeline.tables import write_parquet

FOREST = {"train.estimator": "forest", "train.settings": {"n_estimators": 5, "max_depth": 4}, "repeat.seeds": 3}
NAIVE = {"train.estimator": "sklearn.naive_bayes.GaussianNB", "train.settings": {}}


def result() -> dict:
    return json.loads(repeat.METRICS.read_text())


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_the_seeds_that_follow_move_the_metrics_and_the_decisions(project: Path, settings, small, task: str) -> None:
    repeat.run(settings({**small[task], **FOREST, "train.seed": 7}))

    found = result()
    assert (found["draws"], found["seeds"]) == (True, [8, 9, 10])
    name = {"binary": "roc_auc", "multiclass": "log_loss", "regression": "r2"}[task]
    entry = found["metrics"][name]
    assert len(set(entry["values"])) == 3
    assert entry["standard_deviation"] == pytest.approx(np.std(entry["values"], ddof=1), abs=2e-6)
    assert found["metrics"]["rows"] == {"values": [600, 600, 600], "standard_deviation": 0.0}
    if task == "regression":
        assert found["flips"] is None
    else:
        assert len(found["flips"]["values"]) == 3
        assert 0 < found["flips"]["mean"] < 0.5
        assert found["flips"]["mean"] == pytest.approx(np.mean(found["flips"]["values"]), abs=2e-6)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(NAIVE, id="an estimator that draws nothing"),
        pytest.param({"train.settings": {"max_iter": 3, "random_state": 5}}, id="a seed among the settings"),
    ],
)
def test_a_recipe_without_random_numbers_is_trained_once(project: Path, settings, small, changes) -> None:
    repeat.run(settings({**small["binary"], **changes, "repeat.seeds": 4}))

    found = result()
    assert (found["draws"], found["seeds"]) == (False, [1])
    assert {entry["standard_deviation"] for entry in found["metrics"].values()} == {0.0}
    assert {len(entry["values"]) for entry in found["metrics"].values()} == {1}
    assert found["flips"] == {"values": [], "mean": 0.0}


def test_the_same_settings_and_data_give_the_same_bytes(project: Path, settings, small) -> None:
    repeat.run(settings({**small["binary"], **FOREST}))
    first = repeat.METRICS.read_bytes()

    repeat.run(settings({**small["binary"], **FOREST}))

    assert repeat.METRICS.read_bytes() == first


def test_a_metric_that_is_not_defined_is_null(project: Path, settings, small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "of_task", lambda *_: {"roc_auc": float("nan"), "rows": 600})

    repeat.run(settings({**small["binary"], **FOREST}))

    assert result()["metrics"]["roc_auc"] == {"values": [None] * 3, "standard_deviation": None}


def test_a_single_class_is_refused(project: Path, settings, small) -> None:
    frame = pd.read_parquet(split.TRAIN)
    write_parquet(frame.assign(failed=pd.array([1] * len(frame), "Int8")), split.TRAIN)

    with pytest.raises(UserError, match=r"^every label of the train rows is 1; a binary task needs two classes"):
        repeat.run(settings(small["binary"]))

    assert not repeat.METRICS.exists()


def test_flips_are_counted_for_each_pair() -> None:
    decided = [np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), np.array([1, 1, 1, 1])]

    assert repeat.flips(decided) == {"values": [0.25, 0.5, 0.25], "mean": pytest.approx(1 / 3)}
