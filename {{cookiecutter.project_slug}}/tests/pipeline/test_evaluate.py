from __future__ import annotations

import json
import shutil
from pathlib import Path

import example
import numpy as np
import pandas as pd
import pytest

from ml.errors import ParamsError
from ml.pipeline import evaluate, split

DRAWN = {
    "binary": {"roc", "precision_recall", "calibration", "confusion", "scores", "importance"},
    "multiclass": {"calibration", "confusion", "importance"},
    "regression": {"calibration", "residuals", "importance"},
}


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory: pytest.TempPathFactory):
    """Return the folder, the settings and the holdout of a model of each task that was evaluated there."""
    source, params = trained
    path = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(source / "data", path / "data")
    shutil.copytree(source / "models", path / "models")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        example.install(patch)
        evaluate.run(params)
    return path, params, pd.read_parquet(path / split.HOLDOUT)


def test_every_row_of_the_holdout_has_its_keys_truth_and_prediction(evaluated) -> None:
    path, params, holdout = evaluated
    found = pd.read_parquet(path / evaluate.PREDICTIONS)

    first = [*example.KEYS, "period", params.data.target]
    pd.testing.assert_frame_equal(found[first], holdout[first])
    figures = json.loads((path / evaluate.METRICS).read_text())
    truth = holdout[params.data.target]
    match params.task:
        case "binary":
            assert list(found)[len(first) :] == ["score", "decision"]
            assert found["score"].between(0, 1).all()
            assert found["decision"].equals(found["score"] >= 0.25)
            assert figures["brier"] == pytest.approx(np.mean((found["score"] - truth.astype(float)) ** 2), abs=1e-6)
        case "multiclass":
            shares = found[["share_long", "share_middle", "share_short"]]
            assert shares.sum(axis=1).between(0.999, 1.001).all()
            assert found["label"].equals(shares.idxmax(axis=1).str.removeprefix("share_"))
            assert figures["accuracy"] == pytest.approx((found["label"] == truth).mean(), abs=1e-6)
        case _:
            assert figures["mean_absolute_error"] == pytest.approx((found["value"] - truth).abs().mean(), abs=1e-6)
            assert figures["r2"] > 0.5


def test_each_plot_of_the_task_has_the_columns_that_dvc_is_told_to_draw(evaluated) -> None:
    path, params, _ = evaluated
    entries = json.loads((path / evaluate.PLOTS_FILE).read_text())["plots"]
    shown = {name: spec for entry in entries for name, spec in entry.items()}

    assert set(shown) == {f"plots/{name}.csv" for name in DRAWN[params.task]}
    assert {f"plots/{file.name}" for file in (path / evaluate.PLOTS).iterdir()} == set(shown)
    for name, spec in shown.items():
        table = pd.read_csv(path / evaluate.REPORTS / name)
        wanted = [spec["x"], *([spec["y"]] if isinstance(spec["y"], str) else spec["y"])]
        assert set(wanted) <= set(table.columns)
        assert 0 < len(table) <= 600
        assert table[wanted].notna().all().all()


def test_a_slice_is_judged_on_its_rows_alone(evaluated) -> None:
    path, params, holdout = evaluated
    slices = json.loads((path / evaluate.SLICES).read_text())
    counts = holdout["plant"].value_counts()

    assert {f"plant={name}" for name in counts[counts >= 50].index} == {s for s in slices if s.startswith("plant")}
    assert counts.min() < 50
    assert slices["plant=south"]["rows"] == (holdout["plant"] == "south").sum()
    found = pd.read_parquet(path / evaluate.PREDICTIONS)[holdout["plant"] == "south"]
    truth = found[params.data.target]
    if params.task == "binary":
        assert slices["plant=south"]["brier"] == pytest.approx(
            ((found["score"] - truth.astype(int)) ** 2).mean(), abs=1e-6
        )
    elif params.task == "multiclass":
        assert slices["plant=south"]["accuracy"] == pytest.approx((found["label"] == truth).mean(), abs=1e-6)
    else:
        assert slices["plant=south"]["bias"] == pytest.approx((found["value"] - truth).mean(), abs=1e-6)


def test_importance_is_drawn_from_the_largest_down(evaluated) -> None:
    path, _, _ = evaluated
    table = pd.read_csv(path / evaluate.PLOTS / "importance.csv")

    assert table["loss"].is_monotonic_decreasing
    assert sorted(table["input"]) == sorted([*example.TEXT, *example.NUMBERS])


ONE_SIDED = {
    "binary": ("failed", "failed=1", ["roc_auc", "average_precision_skill"], "recall"),
    "multiclass": ("grade", "grade=long", ["roc_auc"], "accuracy"),
    "regression": ("hours == hours.max()", "one", ["r2"], "mean_absolute_error"),
}


def test_a_figure_that_a_slice_cannot_have_is_null_and_nothing_is_warned_of(
    project: Path, trained, settings, small, recwarn: pytest.WarningsRecorder
) -> None:
    source, params = trained
    expression, name, open_figures, known = ONE_SIDED[params.task]
    shutil.copytree(source / "models", project / "models")
    slices = {name.partition("=")[0]: expression, "all": "length > 0"}

    evaluate.run(settings({**small[params.task], "evaluate.slices": slices, "evaluate.min_rows": 1}))

    found = json.loads(evaluate.SLICES.read_text(), parse_constant=lambda value: pytest.fail(f"{value} in JSON"))
    assert {key for key, value in found[name].items() if value is None} == set(open_figures)
    assert found[name][known] > 0
    assert found["all"] == json.loads(evaluate.METRICS.read_text())
    assert [str(warning.message) for warning in recwarn if issubclass(warning.category, UserWarning)] == []


FRAME = pd.DataFrame({"carrier": ["AA"] * 3 + ["UA"] * 2 + [None], "rain": [0.0, 0.1, 0.2, np.nan, 0.0, 0.3]})


@pytest.mark.parametrize(
    ("slices", "least", "wanted"),
    [
        pytest.param({"wet": "rain > 0"}, 1, {"wet": [1, 2, 5]}, id="truth values"),
        pytest.param({"by": "carrier"}, 1, {"by=AA": [0, 1, 2], "by=UA": [3, 4]}, id="values, none for missing"),
        pytest.param({"by": "carrier"}, 3, {"by=AA": [0, 1, 2]}, id="too few rows"),
        pytest.param({"by": "carrier"}, 4, {}, id="none large enough"),
        pytest.param({"amount": "rain * 10 // 2"}, 1, {"amount=0.0": [0, 1, 4], "amount=1.0": [2, 5]}, id="computed"),
        pytest.param({"a": "carrier == 'UA'", "b": "rain < 0.15"}, 1, {"a": [3, 4], "b": [0, 1, 4]}, id="two"),
    ],
)
def test_a_slice_is_an_expression_over_the_columns(slices, least: int, wanted) -> None:
    found = evaluate.sliced(FRAME, slices, least)

    assert {name: np.flatnonzero(mask).tolist() for name, mask in found.items()} == wanted


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        pytest.param("rian > 0", "name 'rian' is not defined", id="unknown column"),
        pytest.param("rain >", "invalid syntax", id="syntax"),
        pytest.param("carrier > 3", "", id="text and number"),
        pytest.param("2 > 1", "does not give one value a row", id="no column"),
        pytest.param("wet = rain > 0", "does not give one value a row", id="assignment"),
        pytest.param("", "cannot be an empty string", id="empty"),
        pytest.param("__import__('os').system('true')", "", id="code"),
    ],
)
def test_an_expression_that_cannot_be_evaluated_names_its_slice(expression: str, reason: str) -> None:
    with pytest.raises(ParamsError) as caught:
        evaluate.sliced(FRAME, {"fine": "rain > 0", "wet": expression}, 1)

    assert str(caught.value).startswith(f"evaluate.slices.wet = {expression!r}: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 2, 5000)

    drawn = evaluate.binary_plots(truth, random.uniform(size=5000), 0.5, 10)

    assert len(drawn["roc"]) == evaluate.POINTS
    assert drawn["roc"].iloc[0].tolist() == [0, 0]
    assert drawn["roc"].iloc[-1].tolist() == [1, 1]
    assert drawn["scores"][["negative", "positive"]].sum().tolist() == [(truth == 0).sum(), truth.sum()]
