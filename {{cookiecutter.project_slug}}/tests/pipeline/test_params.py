from __future__ import annotations

from pathlib import Path

import example
import numpy as np
import pydantic
import pytest
from ruamel.yaml import YAML

from ml.errors import ParamsError
from ml.pipeline import metrics, params


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(example.PARAMS)
    return path


@pytest.fixture
def refusal(tmp_path: Path):
    """Return the message that a changed params.yaml is refused with."""

    def refused(old: str, new: str) -> str:
        text = example.PARAMS
        assert text.count(old) == 1
        path = tmp_path / "params.yaml"
        path.write_text(text.replace(old, new))
        with pytest.raises(ParamsError) as caught:
            params.read(path)
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith(f"{path}")
        return message.removeprefix(f"{path}").removeprefix(": ")

    return refused


def test_the_settings_are_read_as_they_are_written(written: Path) -> None:
    found = params.read(written)

    assert found.task == "binary"
    assert found.objective.costs == params.Costs(false_alarm=1, miss=3)
    assert found.data.periods == ["2013-01", "2013-02", "2013-03", "2013-04", "2013-05"]
    assert found.data.sources["machines"] == "package:workshop/machines.csv"
    assert found.split.by == "time"
    assert found.split.holdout == 1
    assert found.train.settings["max_iter"] == 150
    assert found.evaluate.slices["hot"] == "temperature > 40"


def test_the_settings_cannot_be_changed_once_read(written: Path) -> None:
    found = params.read(written)

    with pytest.raises(pydantic.ValidationError, match="frozen"):
        found.train.seed = 1


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        pytest.param("bins:", "binz:", "evaluate.binz is not a known key; did you mean bins?", id="typo"),
        pytest.param("    miss:", "    mis:", "objective.costs.mis is not a known key; did you mean miss?", id="deep"),
        pytest.param("\ntune:", "\ntunes:", "tunes is not a known key; did you mean tune?", id="section"),
        pytest.param(
            "  trials: 30",
            "  trials: 30\n  zzz: 1",
            "tune.zzz is not a known key; valid keys: estimators, folds, trials, rows",
            id="like none",
        ),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_valid_one(refusal, old: str, new: str, sentence: str) -> None:
    assert sentence in refusal(old, new)


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        pytest.param("- 2013-02", "- 2013", ["data.periods.1", "= 2013", "put it in quotes"], id="bare year"),
        pytest.param("min: 100", "min: 50000", ["data.rows.min 50000 is above max"], id="limits the wrong way round"),
        pytest.param("bins: 15", "bins: many", ["evaluate.bins", "'many'", "integer"], id="text for a number"),
        pytest.param("bins: 15", "bins: 1", ["evaluate.bins", "= 1", "greater than or equal to 2"], id="too small"),
        pytest.param("folds: 3", "folds: 3.5", ["tune.folds", "3.5", "integer"], id="part of a whole number"),
        pytest.param("holdout: 1", "holdout: newest", ["split.holdout", "'newest'", "number"], id="either of two"),
        pytest.param("floor: 0.12", "floor: '0.12'", ["objective.floor", "'0.12'", "number"], id="quoted number"),
        pytest.param("task: binary", "task: binry", ["task", "'binry'", "'binary', 'multiclass'"], id="choice"),
        pytest.param("by: time", "by: year", ["split.by", "'year'", "'time', 'group' or 'random'"], id="nested choice"),
        pytest.param("floor: 0.12", "floor: .nan", ["objective.floor", "finite"], id="no number"),
        pytest.param("    floor: 0.0", "    floor: -.inf", ["gates.slices.floor", "finite"], id="a limit that is none"),
        pytest.param("false_alarm: 1", "false_alarm: 0", ["costs.false_alarm", "greater than 0"], id="free"),
        pytest.param(
            "- 2013-02", "- 2013-13", ["data.periods.1", "'2013-13'", "a year, month or day"], id="month thirteen"
        ),
        pytest.param("- 2013-02", "- 2013-02-31", ["not valid YAML", "day is out of range"], id="day thirty-one"),
        pytest.param("- 2013-02", "- ../2013", ["data.periods.1", "'../2013'", "lower-case word"], id="path"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_the_rule(refusal, old: str, new: str, parts: list[str]) -> None:
    message = refusal(old, new)

    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        pytest.param(
            "metric: average_precision_skill",
            "metric: accuracy",
            "objective.metric: 'accuracy' is not a metric of a binary task; choose one of average_precision,",
            id="metric of another task",
        ),
        pytest.param(
            "  costs: # of one wrong decision\n"
            "    false_alarm: 1 # a check for nothing\n"
            "    miss: 3 # a failure out of the blue\n",
            "",
            "objective.costs is missing",
            id="binary without costs",
        ),
        pytest.param("holdout: 1", "holdout: 0.2", "a whole number of newest periods when by is time", id="share"),
        pytest.param("holdout: 1", "holdout: 5", "5 of 5 periods leaves none to train on", id="all held out"),
        pytest.param("by: time", "by: random", "must be a share below 1 when by is random", id="count of rows"),
        pytest.param(
            "by: time # time, group or random\n  holdout: 1",
            "by: group\n  holdout: 0.2",
            "group must name a column",
            id="no group",
        ),
        pytest.param("- 2013-02", "- 2013-01", "data.periods: a period is listed twice", id="period twice"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(refusal, old: str, new: str, sentence: str) -> None:
    assert sentence in refusal(old, new)


@pytest.mark.parametrize("section", ["objective", "task", "data", "split", "train", "evaluate", "tune"])
def test_a_missing_section_is_named(tmp_path: Path, section: str) -> None:
    raw = YAML(typ="safe").load(example.PARAMS)
    del raw[section]
    path = tmp_path / "params.yaml"
    YAML().dump(raw, path)

    with pytest.raises(ParamsError, match=rf": {section} is missing$"):
        params.read(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param("objective: [}", ", line 1: not valid YAML", id="brackets"),
        pytest.param("a: 1\nb: 2\na: 3\n", ", line 3: not valid YAML", id="key twice"),
        pytest.param("", "holds no sections", id="empty"),
        pytest.param("- objective\n", "holds no sections", id="list"),
        pytest.param("\xff".encode("latin-1"), "not valid YAML", id="not text"),
    ],
)
def test_a_file_that_is_not_yaml_is_refused_in_one_line(tmp_path: Path, text: str | bytes, sentence: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())

    with pytest.raises(ParamsError) as caught:
        params.read(path)

    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"absent\.yaml is missing: run this in the project's folder"):
        params.read(tmp_path / "absent.yaml")


def test_the_metrics_of_each_task_are_those_that_are_computed_and_point_the_right_way() -> None:
    truth, random = np.tile([0, 1, 0, 1], 50), np.random.default_rng(0)
    good, poor = 0.1 + 0.8 * truth, random.uniform(0.05, 0.6, 200)
    costs = params.Costs(false_alarm=1, miss=1)
    text, names = np.array(["a", "b"], dtype=object)[truth], ["a", "b"]
    figures = {
        "binary": [metrics.binary(truth, score, 0.5, costs, 10) for score in (good, poor)],
        "multiclass": [metrics.multiclass(text, np.c_[1 - score, score], names, 10) for score in (good, poor)],
        "regression": [metrics.regression(truth.astype(float), score) for score in (good, poor)],
    }
    described = {
        "binary": {"rows", "base_rate", "threshold", "selection_rate", "cost_of_never", "cost_of_always"},
        "multiclass": {"rows"},
        "regression": {"rows", "bias"},
    }

    for task, (better, worse) in figures.items():
        assert set(better) - described[task] == set(params.METRICS[task])
        sign = {"maximize": 1, "minimize": -1}
        assert [
            name for name, way in params.METRICS[task].items() if sign[way] * (better[name] - worse[name]) <= 0
        ] == []
