from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path

import example
import numpy as np
import pandas as pd
import pytest
import skops.io
from mlflow import MlflowClient
from mlflow.entities import Run

from ml.errors import ExportError, TrackingError, UserError
from ml.pipeline import export, metrics, split, train
from ml.pipeline.tables import write_parquet


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def runs_of(path: Path, query: str) -> list[Run]:
    client = MlflowClient(f"sqlite:///{path}/mlflow.db")
    return client.search_runs([e.experiment_id for e in client.search_experiments()], query)


def test_the_model_holds_its_contract_and_the_importance_of_every_field(trained) -> None:
    path, params = trained
    kept = export.metadata(export.session((path / train.MODEL).read_bytes()))

    agreement = kept["contract"]
    assert (agreement["version"], agreement["task"], agreement["target"]) == (1, params.task, params.data.target)
    names = [field["name"] for field in agreement["fields"]]
    assert names == [*example.TEXT, *example.NUMBERS]
    assert agreement.get("classes") == {"binary": ["0", "1"], "multiclass": ["long", "middle", "short"]}.get(
        params.task
    )
    assert agreement.get("threshold") == (0.25 if params.task == "binary" else None)
    assert set(kept["importance"]) == set(names)


def test_importance_is_largest_where_the_target_comes_from(trained) -> None:
    path, params = trained
    kept = export.metadata(export.session((path / train.MODEL).read_bytes()))
    largest = max(kept["importance"], key=kept["importance"].get)

    assert kept["importance"][largest] > 0
    assert largest == {"binary": "load", "multiclass": "length", "regression": "length"}[params.task]


def test_the_run_is_found_by_the_model_and_holds_what_made_it(trained) -> None:
    path, params = trained
    model = (path / train.MODEL).read_bytes()

    (run,) = runs_of(path, f"tags.\"model.md5\" = '{hashlib.md5(model).hexdigest()}'")

    assert run.info.status == "FINISHED"
    assert run.data.tags["model.sha256"] == hashlib.sha256(model).hexdigest()
    assert (run.data.tags["stage"], run.data.tags["git.commit"]) == ("train", "abc")
    assert run.data.tags["environment.python"] == platform.python_version()
    assert run.data.tags["train.periods"] == ", ".join(example.PERIODS[:-1])
    assert run.data.params["train.settings.max_iter"] == "12"
    assert run.data.params["objective.metric"] == params.objective.metric
    assert (run.data.metrics["train.rows"], run.data.metrics["holdout.rows"]) == (2400, 600)
    assert run.data.metrics["holdout.onnx_largest_difference"] < 1e-4
    datasets = {entry.tags[0].value: entry.dataset.digest for entry in run.inputs.dataset_inputs}
    assert datasets == {"train": md5(path / split.TRAIN), "holdout": md5(path / split.HOLDOUT)}


def test_the_recorded_figures_are_those_of_the_file_on_the_holdout(trained) -> None:
    path, params = trained
    holdout = pd.read_parquet(path / split.HOLDOUT)
    runtime = export.session((path / train.MODEL).read_bytes())

    wanted = metrics.of_task(
        params,
        export.metadata(runtime)["contract"],
        train.target(holdout, params),
        export.scores(runtime, example.inputs(holdout)),
    )

    (run,) = runs_of(path, "tags.stage = 'train'")
    found = {key.removeprefix("holdout."): value for key, value in run.data.metrics.items() if key != "train.rows"}
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, abs=1e-6)


def test_the_recorded_model_is_skops_never_pickle_and_answers_like_the_file(trained) -> None:
    path, _ = trained
    recorded = {file.name: file for file in path.rglob("*") if file.is_file()}
    holdout = example.inputs(pd.read_parquet(path / split.HOLDOUT))

    loaded = skops.io.load(recorded["model.skops"], trusted=skops.io.get_untrusted_types(file=recorded["model.skops"]))

    # A pickle ends with a full stop and begins with the mark of its protocol.
    assert [name for name in recorded if name.endswith((".pkl", ".pickle", ".joblib"))] == []
    assert [name for name, file in recorded.items() if file.read_bytes()[:2] in {b"\x80\x04", b"\x80\x05"}] == []
    file = export.session((path / train.MODEL).read_bytes())
    wanted = export.expected(loaded, holdout)
    np.testing.assert_allclose(export.scores(file, holdout), wanted, rtol=1e-4, atol=1e-5)


def test_what_scikit_learn_answers_is_kept_for_every_row_of_the_holdout_in_its_order(trained) -> None:
    path, params = trained
    recorded = next(path.rglob("model.skops"))
    loaded = skops.io.load(recorded, trusted=skops.io.get_untrusted_types(file=recorded))
    holdout = example.inputs(pd.read_parquet(path / split.HOLDOUT))

    kept = pd.read_parquet(path / train.EXPECTED)

    names = {"binary": ["0", "1"], "multiclass": ["long", "middle", "short"]}.get(params.task)
    assert list(kept) == ([f"share_{name}" for name in names] if names else ["value"])
    assert set(kept.dtypes) == {np.dtype("float64")}
    # scikit-learn's own answer, to the last bit: what the ONNX file answers differs.
    found = kept.to_numpy() if names else kept["value"].to_numpy()
    np.testing.assert_array_equal(found, export.expected(loaded, holdout))
    assert not np.array_equal(found, export.scores(export.session((path / train.MODEL).read_bytes()), holdout))


@pytest.fixture
def quick(settings, small):
    return settings({**small["binary"], "train.settings": {"max_iter": 3}})


def relabel(path: Path, label: float) -> None:
    frame = pd.read_parquet(path)
    write_parquet(frame.assign(failed=pd.array([label] * len(frame), "Int8")), path)


@pytest.mark.parametrize("side", ["train", "holdout"])
def test_a_single_class_is_refused(project: Path, quick, side: str) -> None:
    relabel(project / f"data/split/{side}.parquet", 1)

    with pytest.raises(UserError, match=f"^every label of the {side} rows is 1; a binary task needs two classes"):
        train.run(quick)

    assert not train.MODEL.exists()


def test_a_label_other_than_nought_and_one_is_refused(project: Path, quick) -> None:
    relabel(split.HOLDOUT, 2)

    with pytest.raises(UserError, match=r"^data\.target = 'failed' holds 2; a binary target holds 0 and 1$"):
        train.run(quick)


def test_a_setting_that_scikit_learn_refuses_is_one_line(project: Path, settings, small) -> None:
    with pytest.raises(UserError) as caught:
        train.run(settings({**small["binary"], "train.settings": {"max_iter": "many"}}))

    assert str(caught.value).startswith("HistGradientBoostingClassifier cannot be fitted: The 'max_iter' parameter")
    assert "\n" not in str(caught.value)


def test_a_model_that_converts_wrongly_is_not_kept(project: Path, settings, small) -> None:
    wrong = settings({**small["binary"], "train.settings": {"max_iter": 3, "categorical_features": [0]}})

    with pytest.raises(ExportError, match="categorical_features"):
        train.run(wrong)

    assert not train.MODEL.exists()
    assert not train.EXPECTED.exists()
    assert runs_of(project, "tags.stage = 'train'") == []


def test_an_unwritable_store_is_one_line_and_the_model_is_not_lost(
    project: Path, quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    train.run(quick)
    undisturbed = train.MODEL.read_bytes()
    train.MODEL.unlink()
    (project / "taken").write_text("a file where the store's folder should be")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/taken/mlflow.db")

    with pytest.raises(TrackingError) as caught:
        train.run(quick)

    assert train.MODEL.read_bytes() == undisturbed
    assert f"the MLflow store sqlite:///{project}/taken/mlflow.db cannot be written (" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_same_settings_and_data_give_the_same_bytes(project: Path, quick) -> None:
    train.run(quick)
    first = md5(train.MODEL), md5(train.EXPECTED)
    train.EXPECTED.unlink()

    train.run(quick)

    assert (md5(train.MODEL), md5(train.EXPECTED)) == first


def test_shuffling_a_field_that_the_score_does_not_read_costs_nothing() -> None:
    rows = pd.DataFrame({"read": np.arange(100.0), "ignored": np.arange(100.0)})
    truth = rows["read"].to_numpy()

    def loss(table: pd.DataFrame, wanted: np.ndarray) -> float:
        return float(np.mean(np.abs(table["read"] - wanted)))

    found = train.importance(loss, rows, truth, better=-1, seed=0)

    assert found["ignored"] == 0
    # Two draws from 0 to 99 lie a third of the range apart.
    assert found["read"] == pytest.approx(33, abs=6)
    assert found == train.importance(loss, rows, truth, better=-1, seed=0)
    assert json.loads(json.dumps(found)) == found
