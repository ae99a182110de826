from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import example
import numpy as np
import pandas as pd
import pytest

from ml.errors import UserError
from ml.pipeline import export, split, train
from ml.pipeline.params import Params
from ml.review import behaviour

JOB = {"plant": "north", "material": "AB1", "minute": 600, "length": 5000, "load": 50, "temperature": 30, "age": 10}
# What each task's target follows from, how it is told low and high, and the class of the high one.
DRIVEN = {
    "binary": ({"load": 5, "age": 1}, {"load": 99, "age": 39, "plant": "south"}, "1"),
    "multiclass": ({"length": 100}, {"length": 9900}, "long"),
    "regression": ({"length": 100}, {"length": 9900}, None),
}


class Subject(NamedTuple):
    """A small model, and what tells its target low and high."""

    task: str
    contract: dict[str, Any]
    runtime: Any
    holdout: pd.DataFrame
    low: dict[str, Any]
    high: dict[str, Any]
    label: str | None

    @property
    def of(self) -> dict[str, str]:
        return {"of": self.label} if self.task == "multiclass" else {}

    def score(self, rows: pd.DataFrame) -> np.ndarray:
        scores = export.scores(self.runtime, example.inputs(rows))
        return scores if self.task == "regression" else scores[:, self.contract["classes"].index(self.label)]

    def failures(self, kind: str, *cases: dict[str, Any]) -> list[str]:
        parsed = behaviour.Cases.model_validate({kind: [{"name": "it", **case} for case in cases]})
        return behaviour.failures(parsed, self.runtime, self.contract, self.holdout)


@pytest.fixture(scope="session")
def subject(trained: tuple[Path, Params]) -> Subject:
    folder, params = trained
    runtime = export.session((folder / train.MODEL).read_bytes())
    holdout = pd.read_parquet(folder / split.HOLDOUT)
    return Subject(params.task, export.metadata(runtime)["contract"], runtime, holdout, *DRIVEN[params.task])


def of(*tasks: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("trained", tasks, indirect=True)


ALL = b"""\
invariance:
  - {name: a, change: {x: 1}}
direction:
  - {name: b, row: {x: 1}, change: {x: 2.5}, score: falls, by: 0.1, share: 0.9}
minimum:
  - {name: c, row: {x: true, y: null, z: word}, above: 0.1, below: 0.9, label: late, of: late}
"""


def test_the_three_kinds_are_read_and_each_is_found_by_its_name() -> None:
    found = behaviour.parse(ALL)

    assert list(found.by_name()) == ["a", "b", "c"]
    assert [type(case) for case in found.all()] == [behaviour.Invariance, behaviour.Direction, behaviour.Minimum]
    assert found.minimum[0].row == {"x": True, "y": None, "z": "word"}


@pytest.mark.parametrize("content", [b"", b"# nothing yet\n", b"{}"], ids=["empty", "a comment", "an empty mapping"])
def test_a_file_without_a_case_is_none(content: bytes) -> None:
    assert behaviour.parse(content).all() == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"minimum: [", "not valid YAML", id="not YAML"),
        pytest.param(b"a: 1\na: 2\n", "not valid YAML", id="a key twice"),
        pytest.param(b"\xff\xfe", "not valid YAML", id="not UTF-8"),
        pytest.param(b"minimum:\n  - {name: a, row: {x: 2013-02-31}, above: 1}\n", "not valid YAML", id="no such date"),
        pytest.param(b"- name: a\n", "Input should be", id="a list"),
        pytest.param(b"minimums: []", "minimums: Extra inputs are not permitted", id="unknown kind"),
        pytest.param(b"minimum: 3", "minimum: Input should be a valid list", id="not a list"),
        pytest.param(b"minimum: [{name: a, row: {x: 1}}]", "minimum.0: ", id="nothing expected"),
        pytest.param(b"minimum: [{name: a, above: 1}]", "minimum.0.row: Field required", id="no row"),
        pytest.param(b"minimum: [{name: a, row: {x: [1]}, above: 1}]", "minimum.0.row.x", id="a list as value"),
        pytest.param(b"invariance: [{name: '', change: {x: 1}}]", "invariance.0.name", id="no name"),
        pytest.param(b"invariance: [{name: a, change: {}}]", "invariance.0.change", id="no change"),
        pytest.param(b"invariance: [{name: a, change: {x: 1}, within: -1}]", "invariance.0.within", id="negative"),
        pytest.param(b"direction: [{name: a, change: {x: 1}, score: up}]", "direction.0.score", id="no direction"),
        pytest.param(b"direction: [{name: a, change: {x: 1}, score: falls, share: 0}]", "share", id="no share"),
        pytest.param(
            b"minimum: [{name: a, row: {}, above: 1}]\ninvariance: [{name: a, change: {x: 1}}]",
            "two cases are called 'a'",
            id="a name twice",
        ),
    ],
)
def test_what_is_no_case_is_one_line_that_says_where(content: bytes, said: str) -> None:
    with pytest.raises(UserError) as caught:
        behaviour.parse(content, "behaviour.yaml of main")

    assert str(caught.value).startswith("behaviour.yaml of main: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ": : " not in str(caught.value)


def test_a_score_that_should_not_move_is_held_to_a_distance(subject: Subject) -> None:
    unseen = {"row": {**JOB, "material": "ZZ9"}, "change": {"material": "QQ9"}, **subject.of}
    driven = {"row": {**JOB, **subject.low}, "change": subject.high, **subject.of}

    assert subject.failures("invariance", unseen) == []
    assert subject.failures("invariance", {**driven, "within": 100}) == []
    assert subject.failures("invariance", driven)[0].startswith("it: not so, the score moves by +")


def test_a_score_moves_the_way_that_is_said_and_as_far(subject: Subject) -> None:
    up = {"row": {**JOB, **subject.low}, "change": subject.high, **subject.of}
    down = {"row": {**JOB, **subject.high}, "change": subject.low, **subject.of}

    assert subject.failures("direction", {**up, "score": "rises", "by": 0.1}, {**down, "score": "falls"}) == []
    assert len(subject.failures("direction", {**up, "score": "falls"}, {**down, "score": "rises"})) == 2
    assert len(subject.failures("direction", {**up, "score": "rises", "by": 50})) == 1


def test_a_plain_case_is_held_to_its_bounds(subject: Subject) -> None:
    high = {"row": {**JOB, **subject.high}, **subject.of}
    low = {"row": {**JOB, **subject.low}, **subject.of}
    middle = 5.0 if subject.task == "regression" else 0.5

    assert subject.failures("minimum", {**high, "above": middle}, {**low, "below": middle}) == []
    assert subject.failures("minimum", {**high, "above": -1, "below": middle})[0].startswith("it: not so, score ")
    assert len(subject.failures("minimum", {**low, "above": middle})) == 1


@of("binary", "multiclass")
def test_a_plain_case_may_say_the_label_alone(subject: Subject) -> None:
    other = next(name for name in subject.contract["classes"] if name != subject.label)
    row = {**JOB, **subject.high}

    assert subject.failures("minimum", {"row": row, "label": subject.label}) == []
    assert subject.failures("minimum", {"row": row, "label": other})[0].startswith("it: not so")


def test_a_label_that_the_model_does_not_give_is_named(subject: Subject) -> None:
    with pytest.raises(UserError, match=r"tests/behaviour.yaml: it: .*'huge'"):
        subject.failures("minimum", {"row": JOB, "label": "huge", **subject.of})


@of("binary")
def test_the_label_of_two_classes_follows_from_the_threshold_of_the_model(subject: Subject) -> None:
    score = subject.score(pd.DataFrame([JOB]))[0]
    for at, label in ((score - 0.01, "1"), (score + 0.01, "0")):
        moved = subject._replace(contract={**subject.contract, "threshold": at})

        assert moved.failures("minimum", {"row": JOB, "label": label}) == []


def test_without_a_row_the_holdout_is_tried_and_a_share_of_it_is_enough(subject: Subject) -> None:
    change = {"load": 50, "length": 5000}
    sides = (subject.holdout.iloc[::2], subject.holdout.iloc[::2].assign(**change))
    before, after = (subject.score(rows) for rows in sides)
    share = float(np.mean(after <= before))
    case = {"change": change, "score": "falls", **subject.of}

    found = subject.failures("direction", case)

    assert 0.2 < share < 0.9
    assert found[0].startswith(f"it: not so on {round((1 - share) * 300)} of 300 rows, the score moves by -")
    assert subject.failures("direction", {**case, "share": share}) == []
    assert len(subject.failures("direction", {**case, "share": share + 0.01})) == 1


def test_what_a_row_does_not_say_is_the_example_of_the_contract(subject: Subject) -> None:
    fields = [{**field, "example": JOB[field["name"]]} for field in subject.contract["fields"]]
    told = subject._replace(contract={**subject.contract, "fields": fields})
    score = float(subject.score(pd.DataFrame([{**JOB, **subject.high}]))[0])
    case = {"row": subject.high, "above": score - 1e-4, "below": score + 1e-4, **subject.of}

    assert told.failures("minimum", case) == []


@pytest.mark.parametrize("optional", ["temperature", "age"])
def test_a_value_may_be_missing(subject: Subject, optional: str) -> None:
    emptied = {"row": {**JOB, optional: None}, "change": {optional: None}, **subject.of}

    assert subject.failures("invariance", emptied) == []
    assert subject.failures("invariance", {"change": {optional: None}, "within": 100, **subject.of}) == []


@pytest.mark.parametrize(
    ("kind", "case", "said"),
    [
        pytest.param("minimum", {"row": {"speed": 3}, "above": 0}, "'speed' is not a field", id="field of a row"),
        pytest.param(
            "direction", {"change": {"hours": 3}, "score": "rises"}, "'hours' is not a field", id="of a change"
        ),
        pytest.param("minimum", {"row": {"load": "heavy"}, "above": 0}, "heavy", id="text in a row"),
        pytest.param("invariance", {"change": {"load": "heavy"}}, "heavy", id="text in a change"),
    ],
)
def test_a_case_that_cannot_be_tried_is_named_with_its_field(
    subject: Subject, kind: str, case: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        subject.failures(kind, {**case, **subject.of})

    assert str(caught.value).startswith("tests/behaviour.yaml: it: ")
    assert said in str(caught.value)


@of("multiclass")
def test_of_three_classes_one_must_be_named_and_known(subject: Subject) -> None:
    with pytest.raises(UserError, match="it: of is missing; name one of long, middle, short"):
        subject.failures("minimum", {"row": JOB, "above": 0.1})
    with pytest.raises(UserError, match="it: 'huge' is not a class; choose one of long, middle, short"):
        subject.failures("minimum", {"row": JOB, "above": 0.1, "of": "huge"})


@of("binary")
def test_of_two_classes_either_may_be_named(subject: Subject) -> None:
    row = {**JOB, **subject.high}

    assert subject.failures("minimum", {"row": row, "above": 0.5, "of": "1"}) == []
    assert subject.failures("minimum", {"row": row, "below": 0.5, "of": "0"}) == []


@of("binary")
def test_every_case_that_fails_is_told_and_none_that_holds(subject: Subject) -> None:
    cases = behaviour.Cases.model_validate(
        {
            "minimum": [
                {"name": "holds", "row": JOB, "above": -1.0},
                {"name": "fails", "row": JOB, "above": 2.0},
                {"name": "fails too", "row": JOB, "below": -1.0},
            ]
        }
    )

    found = behaviour.failures(cases, subject.runtime, subject.contract, subject.holdout)

    assert [line.partition(":")[0] for line in found] == ["fails", "fails too"]
