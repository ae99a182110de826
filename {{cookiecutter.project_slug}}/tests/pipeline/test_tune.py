from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import example
import numpy as np
import optuna
import pandas as pd
import pytest
from example import KEYS
from mlflow import MlflowClient
from ruamel.yaml import YAML

from ml.errors import UserError
from ml.pipeline import params as settings_file
from ml.pipeline import split, tune

SEARCH = {"tune.estimators": ["linear", "boosting"], "tune.folds": 2, "tune.rows": 500}


@pytest.fixture
def learned(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["period"] != "2013-05"].reset_index(drop=True)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_by_time_a_fold_learns_only_from_periods_before_the_one_it_is_judged_on(
    learned: pd.DataFrame, settings, count: int
) -> None:
    shuffled = learned.sample(frac=1, random_state=0)
    parts = tune.folds(shuffled, settings({"tune.folds": count}), KEYS)

    judged = []
    for learn, judge in parts:
        before, newest = shuffled["period"].iloc[learn], shuffled["period"].iloc[judge].unique()
        judged.extend(newest)
        assert len(newest) == 1
        assert before.max() < newest[0]
        assert set(before) == {period for period in shuffled["period"] if period < newest[0]}
        assert shuffled["started"].iloc[learn].max() <= shuffled["started"].iloc[judge].min()
    assert judged == ["2013-02", "2013-03", "2013-04"][-count:]


@pytest.mark.parametrize("by", ["group", "random"])
def test_otherwise_each_row_or_group_is_judged_once_by_a_model_that_did_not_see_it(
    learned: pd.DataFrame, settings, by: str
) -> None:
    chosen = settings({"split.by": by, "split.holdout": 0.2, "split.group": "machine", "tune.folds": 3})

    parts = tune.folds(learned, chosen, KEYS)

    assert sorted(np.concatenate([judge for _, judge in parts])) == list(range(len(learned)))
    for learn, judge in parts:
        assert set(learn) & set(judge) == set()
        assert len(learn) + len(judge) == len(learned)
        if by == "group":
            assert set(learned["machine"].iloc[learn]) & set(learned["machine"].iloc[judge]) == set()


def test_more_folds_than_periods_are_refused(learned: pd.DataFrame, settings) -> None:
    with pytest.raises(UserError, match=r"^tune\.folds = 4 needs 5 training periods, there are 4; lower tune\.folds"):
        tune.folds(learned, settings({"tune.folds": 4}), KEYS)


def test_a_family_without_a_search_space_is_refused() -> None:
    trial = optuna.create_study().ask()

    with pytest.raises(UserError, match=r"^tune\.estimators: 'bagging' has no search space"):
        tune.suggestion(trial, ["bagging"], "binary")


def test_a_fold_learns_from_no_more_rows_than_allowed_and_never_from_the_judged_period(
    project: Path, settings, small, rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings({**small["binary"], **SEARCH, "tune.rows": 300})
    fitted = []

    class Watched:
        classes_ = np.array([0, 1])

        def fit(self, table: pd.DataFrame, truth: np.ndarray) -> Watched:
            fitted.append(set(rows["period"].iloc[table.index]))
            assert len(table) == len(truth) == 300
            return self

    monkeypatch.setattr(tune, "pipeline", lambda *_: Watched())
    monkeypatch.setattr(tune.export, "expected", lambda _, table: np.full((len(table), 2), 0.5))
    learned = rows[rows["period"] != "2013-05"]
    parts = tune.folds(learned, chosen, KEYS)

    tune.cross_validated(learned, learned["failed"].to_numpy(dtype=int), parts, chosen, "linear", {})

    assert fitted == [{"2013-01", "2013-02"}, {"2013-01", "2013-02", "2013-03"}]


def trials() -> list[tuple[dict[str, Any], float]]:
    (summary,) = optuna.get_all_study_summaries(tune.STUDIES)
    found = tune.finished(optuna.load_study(study_name=summary.study_name, storage=tune.STUDIES))
    return [(trial.params, trial.value) for trial in found]


def test_a_search_that_was_interrupted_and_resumed_ends_as_one_that_was_not(
    folder, settings, small, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Beyond Optuna's ten random trials, so that each also depends on those before it.
    chosen = settings({**small["binary"], **SEARCH, "tune.trials": 13})
    interrupts: set[int] = set()
    calls = []

    def judged(_rows, _truth, _parts, _params, name: str, found: dict[str, Any]) -> list[float]:
        calls.append(name)
        if len(calls) in interrupts:
            raise KeyboardInterrupt
        return [float(np.sin(sum(found.values()))), float(len(name))]

    monkeypatch.setattr(tune, "cross_validated", judged)
    folder(monkeypatch)
    tune.run(chosen)
    wanted, written = trials(), Path("params.yaml").read_bytes()
    folder(monkeypatch)
    calls.clear()
    # The first call judges the present settings; then the 3rd trial and, two calls lost, the 12th.
    interrupts |= {4, 14}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            tune.run(chosen)
    assert len(trials()) == 11
    tune.run(chosen)

    assert trials() == wanted
    assert len({str(params) for params, _ in wanted}) == 13
    assert Path("params.yaml").read_bytes() == written
    assert written.decode() != example.PARAMS
    assert len(calls) == 1 + 13 + 2


def test_a_search_records_each_trial_below_one_run_and_writes_the_best(
    project: Path, settings, small, capsys: pytest.CaptureFixture[str]
) -> None:
    poor = {"train.settings": {"max_iter": 40, "learning_rate": 1.0}, "objective.metric": "log_loss"}
    chosen = settings({**small["binary"], **SEARCH, **poor, "tune.estimators": ["linear"]})

    tune.run(chosen, trials=1)
    tune.run(chosen, trials=3)

    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("workshop").experiment_id])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    best = min(children, key=lambda run: run.data.metrics["log_loss"])
    assert [run.data.metrics["log_loss"] for run in children] == [
        pytest.approx((run.data.metrics["fold_0.log_loss"] + run.data.metrics["fold_1.log_loss"]) / 2)
        for run in children
    ]
    assert sorted(run.data.metrics["log_loss"] for run in children) == pytest.approx(sorted(v for _, v in trials()))
    after = settings_file.read(Path("params.yaml")).train
    assert after.estimator == best.data.params["estimator"]
    assert {key: str(value) for key, value in after.settings.items()} == {
        key: value for key, value in best.data.params.items() if key != "estimator"
    }
    assert f"train is now {after.estimator}" in capsys.readouterr().out


def test_a_winner_that_is_not_better_leaves_the_file_as_it_was(
    project: Path, settings, small, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, stamp = Path("params.yaml").read_bytes(), Path("params.yaml").stat().st_mtime_ns
    monkeypatch.setattr(tune, "cross_validated", lambda *_: [0.5, 0.5])

    tune.run(settings({**small["binary"], **SEARCH}), trials=2)

    assert Path("params.yaml").read_bytes() == before
    assert Path("params.yaml").stat().st_mtime_ns == stamp
    assert "nothing beat the settings in params.yaml" in capsys.readouterr().out


def test_a_search_out_of_time_ends_without_a_trial(project: Path, settings, small, capsys) -> None:
    tune.run(settings({**small["binary"], **SEARCH}), timeout=0)

    assert trials() == []
    assert "no trial was completed" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_a_metric_that_a_fold_cannot_have_ends_the_search_with_one_line(
    project: Path, settings, small, rows: pd.DataFrame
) -> None:
    punctual = rows[rows["period"] != "2013-05"].copy()
    punctual.loc[punctual["period"] == "2013-04", "failed"] = 0
    punctual.to_parquet(split.TRAIN)

    with pytest.raises(UserError, match=r"^roc_auc cannot be computed on every fold"):
        tune.run(settings({**small["binary"], **SEARCH, "objective.metric": "roc_auc"}), trials=2)


def test_a_store_of_studies_that_cannot_be_written_is_one_line(project: Path, settings, small) -> None:
    (project / "tune.db").mkdir()

    with pytest.raises(UserError, match=r"^sqlite:///tune\.db cannot be written \(.*unable to open database file"):
        tune.run(settings(small["binary"]), trials=1)


def test_without_split_data_the_remedy_is_named(tmp_path: Path, settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(UserError, match=r"^data/split/train\.parquet is missing: run make pipeline$"):
        tune.run(settings())


WINNER = {"learning_rate": 0.05, "max_iter": 77, "l2_regularization": 0.001}
LAST = """\
a: [1,2]   # respelled by a dump
text: 'quoted'

train:
  # why boosting
  estimator: boosting # family
  settings:
    # slower is better
    learning_rate: 0.1 # per tree
    max_iter: 150 # trees
"""
MISSING = """\
train:
  estimator: linear # family
  seed: 3 # of all draws

# below
evaluate:
  bins: 15
"""
COMMENTED = """\
train:
  estimator: linear
  settings:
    C: 1.0
    max_iter: 5 # enough

  # of all draws
  seed: 3

evaluate: {bins: 15}
"""


def outside(text: str) -> str:
    """Return the text without its section train."""
    lines = text.splitlines(keepends=True)
    begin = lines.index("train:\n")
    rest = lines[begin + 1 :]
    end = next((i for i, line in enumerate(rest) if line[0] not in " #\n"), len(rest))
    return "".join(lines[:begin] + rest[end:])


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        pytest.param(example.PARAMS, ["estimator: boosting # linear, forest, "], id="as shipped"),
        pytest.param(
            LAST,
            ["  # why boosting\n  estimator: boosting # family\n", "    learning_rate: 0.05 # per tree\n", "# trees\n"],
            id="last section",
        ),
        pytest.param(
            MISSING, ["boosting # family\n", "  seed: 3 # of all draws\n\n# below\nevaluate:\n"], id="none yet"
        ),
        pytest.param(COMMENTED, ["\n\n  # of all draws\n  seed: 3\n\nevaluate: {bins: 15}\n"], id="comment at its end"),
    ],
)
@pytest.mark.parametrize("winner", [WINNER, {"C": 2.5}, {"learning_rate": 0.2, "max_iter": 9}], ids=["3", "1", "2"])
def test_the_winner_is_written_and_nothing_else_is_changed(
    tmp_path: Path, text: str, kept: list[str], winner: dict[str, Any]
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)

    tune.write_winner("boosting", winner, path)

    after = path.read_text()
    before, found = YAML(typ="safe").load(text), YAML(typ="safe").load(after)
    assert found["train"] == {**before["train"], "estimator": "boosting", "settings": winner}
    assert {**found, "train": None} == {**before, "train": None}
    assert list(found) == list(before)
    assert outside(after) == outside(text)
    assert after.count("\n\n") == text.count("\n\n")
    if winner == WINNER:
        assert [line for line in kept if line not in after] == []
    # The second time there is nothing to change.
    tune.write_winner("boosting", winner, path)
    assert path.read_text() == after


def test_the_file_differs_in_the_winner_alone(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(example.PARAMS)

    tune.write_winner("forest", {"n_estimators": 60, "max_features": 0.5}, path)

    old, new = example.PARAMS.splitlines(), path.read_text().splitlines()
    begin = old.index("  settings:") + 1
    # The comment keeps its column.
    assert [re.sub(" +#", " #", line) for line in new] == [
        *old[: begin - 2],
        "  estimator: forest # linear, forest, boosting, or the path of a scikit-learn class",
        "  settings:",
        "    n_estimators: 60",
        "    max_features: 0.5",
        *old[begin + 4 :],
    ]
    assert settings_file.read(path).train.settings == {"n_estimators": 60, "max_features": 0.5}
