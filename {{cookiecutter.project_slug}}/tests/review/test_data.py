from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from ml.review import data
from ml.review.verdict import Column, Rows, SchemaChange

COUNT = 2000


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_every_row_that_shares_its_keys_counts_as_a_duplicate() -> None:
    rows = pd.DataFrame({"a": [1, 1, 2, 2, 3], "b": [1, 1, 1, 2, 1], "value": range(5)})

    assert data.duplicates(rows, ["a", "b"]) == pytest.approx(2 / 5)
    assert data.duplicates(rows, ["a"]) == pytest.approx(4 / 5)
    assert data.duplicates(rows, ["value"]) == 0


def test_an_overlap_is_a_holdout_row_whose_values_were_learned_from_whatever_its_keys() -> None:
    train = pd.DataFrame({"key": [1, 2, 3], "x": [0.5, np.nan, 0.1], "word": ["a", "b", None]})
    holdout = pd.DataFrame({"key": [4, 5, 6, 7], "x": [0.5, np.nan, 0.5, 0.1], "word": ["a", "b", "b", None]})

    assert data.overlap(train, holdout, ["x", "word"]) == pytest.approx(3 / 4)
    assert data.overlap(train, holdout, ["x"]) == 1
    assert data.overlap(train, holdout, ["key"]) == 0


def test_a_row_is_unseen_where_its_keys_together_were_not_learned_from() -> None:
    learned = pd.DataFrame({"at": pd.to_datetime(["2013-01-01", "2013-01-02"], utc=True), "job": [1, 2], "x": [0, 0]})
    rows = pd.DataFrame(
        {"at": pd.to_datetime(["2013-01-01", "2013-01-01", "2013-01-02"], utc=True), "job": [1, 2, 2], "x": [9, 9, 9]}
    )

    assert data.unseen(rows, learned, ["at", "job"]).tolist() == [False, True, False]
    assert data.unseen(rows, learned.head(0), ["at", "job"]).all()


def halves(column: Any, target: np.ndarray) -> tuple[pd.Series, np.ndarray, pd.Series, np.ndarray]:
    values = pd.Series(column)
    return values[: COUNT // 2], target[: COUNT // 2], values[COUNT // 2 :].reset_index(drop=True), target[COUNT // 2 :]


def outcome(task: str) -> np.ndarray:
    drawn = random(1).integers(0, 3, COUNT)
    return {"binary": drawn % 2, "multiclass": np.array(["a", "b", "c"], dtype=object)[drawn]}.get(
        task, random(1).normal(size=COUNT)
    )


def number(target: np.ndarray) -> np.ndarray:
    return np.searchsorted(["a", "b", "c"], target) if target.dtype == object else target.astype(float)


def gapped(values: Any) -> pd.Series:
    return pd.Series(values).mask(random().random(COUNT) < 0.02)


LEAKS = {
    "a number that rises": lambda t: number(t) * 5 + random().normal(0, 0.01, COUNT),
    "a number that falls": lambda t: -number(t) + random().normal(0, 0.01, COUNT),
    "a number of either sign": lambda t: (number(t) + 10) * random().choice([-1, 1], COUNT),
    "an integer": lambda t: np.round(number(t) * 10).astype(int) % 97,
    "text": lambda t: [f"v{round(value * 4)}" for value in number(t)],
    "text with gaps": lambda t: gapped([f"v{round(value * 4)}" for value in number(t)]),
    "a number with gaps": lambda t: gapped(number(t)),
    "a nullable integer": lambda t: gapped(np.round(number(t) * 10)).astype("Int64"),
}
NOISE = {
    "a number": lambda: random(5).normal(size=COUNT),
    "few numbers": lambda: random(5).integers(0, 9, COUNT),
    "a number with gaps": lambda: np.where(random(6).random(COUNT) < 0.3, np.nan, random(5).normal(size=COUNT)),
    "text": lambda: random(5).choice(["a", "b", "c"], COUNT),
    "a name a row": lambda: [f"row {at}" for at in range(COUNT)],
    "a constant": lambda: np.ones(COUNT),
    "nothing": lambda: np.full(COUNT, np.nan),
    "truth values": lambda: random(5).random(COUNT) < 0.5,
}
TASKS = pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])


@TASKS
@pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS)
def test_a_column_that_gives_the_target_away_predicts_it_alone(task: str, leak: Any) -> None:
    target = outcome(task)

    assert data.alone(*halves(leak(target), target), task) > 0.9


@TASKS
@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE)
def test_noise_alone_predicts_nothing(task: str, noise: Any) -> None:
    assert 0.5 <= data.alone(*halves(noise(), outcome(task)), task) < 0.56


@pytest.mark.parametrize("kind", ["text", "number"])
def test_a_gap_that_gives_the_target_away_is_seen_among_other_values(kind: str) -> None:
    target = outcome("binary")
    mostly = pd.Series(np.where(random(6).random(COUNT) < 0.05, 1 - target, target))
    values = mostly.map({0: "no", 1: "yes"}) if kind == "text" else mostly.astype(float)
    values = values.mask((target == 1) & (random(7).random(COUNT) < 0.9))

    assert data.alone(*halves(values, target), "binary") > 0.97


def test_a_leak_into_one_class_of_many_is_seen() -> None:
    target = outcome("multiclass")

    assert data.alone(*halves((target == "b").astype(float), target), "multiclass") > 0.99


def test_a_holdout_of_one_class_judges_no_column() -> None:
    target = np.r_[outcome("binary")[: COUNT // 2], np.ones(COUNT // 2, dtype=int)]

    assert data.alone(*halves(target.astype(float), target), "binary") == 0.5


SAMPLES = {
    "numbers": (random(0).normal(size=500), random(1).normal(size=500)),
    "numbers with gaps": (np.r_[random(0).normal(size=400), [np.nan] * 100], random(1).normal(size=500)),
    "integers and numbers": (random(0).integers(0, 50, 500), random(1).integers(0, 50, 500).astype(float)),
    "text": (random(0).choice(["a", "b"], 500), random(1).choice(["a", "b"], 500)),
    "nullable integers": (
        pd.array(random(0).integers(0, 2, 500), dtype="Int8"),
        pd.array([*random(1).integers(0, 2, 499), None], dtype="Int8"),
    ),
}
APART = {
    "numbers": (np.zeros(50), np.ones(50), 1.0),
    "half the numbers": (np.zeros(100), np.r_[np.zeros(50), np.ones(50)], 0.5),
    "text": (["a"] * 80 + ["b"] * 20, ["a"] * 50 + ["b"] * 30 + ["c"] * 20, 0.3),
    "other words": (["a"] * 50, ["b"] * 50, 1.0),
    "numbers that became text": (np.zeros(50), ["late"] * 50, 1.0),
    "nothing left": (np.zeros(50), [np.nan] * 50, 1.0),
    "nothing before": ([np.nan] * 50, np.zeros(50), 1.0),
}


@pytest.mark.parametrize("pair", SAMPLES.values(), ids=SAMPLES)
def test_two_samples_of_one_source_are_near_and_may_be_chance(pair: tuple[Any, Any]) -> None:
    effect, p = data.distance(*(pd.Series(side) for side in pair))

    assert effect < 0.1
    assert p > 0.01


@pytest.mark.parametrize(("before", "after", "wanted"), APART.values(), ids=APART)
def test_what_differs_lies_apart_by_its_share_and_not_by_chance(before: Any, after: Any, wanted: float) -> None:
    effect, p = data.distance(pd.Series(before), pd.Series(after))

    assert effect == pytest.approx(wanted)
    assert p < 0.001


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param([np.nan] * 9, [np.nan] * 5, id="all missing"),
        pytest.param(["a"] * 9, ["a"] * 5, id="one word"),
        pytest.param([3.0] * 9, [3.0] * 5, id="one number"),
    ],
)
def test_what_is_the_same_has_no_distance(before: list[Any], after: list[Any]) -> None:
    assert data.distance(pd.Series(before), pd.Series(after)) == (0, 1)


def table(periods: dict[str, float], rows: int = 400, seed: int = 0) -> pd.DataFrame:
    """Return rows of periods, each with its own mean of `warmth`; `noise` and `word` are the same everywhere."""
    drawn = random(seed)
    parts = [
        pd.DataFrame(
            {
                "period": period,
                "warmth": drawn.normal(mean, 1, rows),
                "noise": drawn.normal(size=rows),
                "word": drawn.choice(["a", "b"], rows),
            }
        )
        for period, mean in periods.items()
    ]
    return pd.concat(parts, ignore_index=True)


def shifted(before: pd.DataFrame, after: pd.DataFrame, *names: str) -> dict[str, Column]:
    return {column.name: column for column in data.shifts(before, after, list(names) or ["warmth", "noise"], 0.15)}


def beyond(column: Column) -> bool:
    return column.effect > column.limit and column.p <= 0.01


def test_the_same_rows_do_not_shift() -> None:
    rows = table({"1": 0, "2": 0})

    found = shifted(rows, rows.sample(frac=1, random_state=0), "warmth", "noise", "word")

    assert [(column.effect, column.limit, column.p) for column in found.values()] == [(0, 0.15, 1)] * 3


def test_a_period_that_both_have_shifts_by_the_plain_limit_whatever_the_seasons() -> None:
    before, after = table({"1": 0, "2": 5}), table({"1": 0.8, "2": 5.8}, seed=1)

    found = shifted(before, after)

    assert found["warmth"].limit == found["noise"].limit == 0.15
    assert beyond(found["warmth"])
    assert not beyond(found["noise"])


def test_a_new_period_may_be_as_far_as_the_seasons_are() -> None:
    before = table({"1": 0, "2": 1, "3": 2})
    usual, strange = (table({"1": 0, "2": 1, "3": 2, "4": mean}) for mean in (1.8, 9))

    assert data.distance(before["warmth"], usual.loc[usual["period"] == "4", "warmth"])[0] > 0.15
    assert not beyond(shifted(before, usual)["warmth"])
    assert beyond(shifted(before, strange)["warmth"])


def test_with_one_period_alone_a_new_one_is_held_to_the_plain_limit() -> None:
    before = table({"1": 0})

    assert beyond(shifted(before, table({"1": 0, "2": 1}))["warmth"])
    assert not beyond(shifted(before, table({"1": 0, "2": 0}))["warmth"])


def test_a_period_that_is_gone_is_no_shift() -> None:
    found = shifted(table({"1": 0, "2": 5}), table({"2": 5}, seed=2))

    assert not beyond(found["warmth"])


def test_a_few_rows_of_a_new_period_do_not_hide_what_shifted_in_the_old_ones() -> None:
    before = table({"1": 0, "2": 0})
    few = table({"3": 0}, rows=4, seed=5).assign(warmth=[1.1, 1.2, 1.3, -0.2])
    after = pd.concat([table({"1": 0.6, "2": 0.6}, seed=1), few])

    assert beyond(shifted(before, after)["warmth"])


def test_a_column_that_the_base_did_not_have_is_not_compared() -> None:
    before = table({"1": 0}).drop(columns="noise")

    assert list(shifted(before, table({"1": 0}))) == ["warmth"]


def test_missing_values_are_told_as_shares_of_all_rows() -> None:
    before, after = table({"1": 0}), table({"1": 0, "2": 0})
    after["warmth"] = after["warmth"].mask(after.index < 200)

    found = shifted(before, after)["warmth"]

    assert (found.nulls_before, found.nulls_after) == (0, 0.25)


def test_a_column_without_a_value_is_as_far_as_can_be() -> None:
    found = shifted(table({"1": 0}), table({"1": 0}).assign(warmth=np.nan))["warmth"]

    assert (found.effect, found.p, found.nulls_after) == (1, 0, 1)


def test_p_values_are_adjusted_for_the_number_of_columns() -> None:
    before, after = (
        pd.DataFrame({"period": "1", **{f"x{at}": random(seed + at).normal(size=200) for at in range(200)}})
        for seed in (0, 1000)
    )
    names = [f"x{at}" for at in range(200)]
    raw = [data.distance(before[name], after[name])[1] for name in names]

    found = shifted(before, after, *names)

    assert min(raw) < 0.01
    assert [name for name, column in found.items() if column.p <= 0.01] == []
    assert all(found[name].p >= p for name, p in zip(names, raw, strict=True))


def test_large_sides_are_thinned_and_told_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = table({"1": 0}), table({"1": 2}, seed=1)
    whole = shifted(before, after)["warmth"].effect

    monkeypatch.setattr(data, "SAMPLED", 100)
    sizes = []
    measured = data.distance
    monkeypatch.setattr(data, "distance", lambda a, b: sizes.append((len(a), len(b))) or measured(a, b))
    thin = shifted(before, after)["warmth"].effect

    assert {*sizes} == {(100, 100)}
    assert thin == pytest.approx(whole, abs=0.1)


def test_rows_are_counted_by_period_on_both_sides() -> None:
    before, after = table({"1": 0, "2": 0}, rows=5), table({"2": 0, "3": 0}, rows=7)

    assert data.rows(before, after) == [
        Rows(period="1", before=5, after=None),
        Rows(period="2", before=5, after=7),
        Rows(period="3", before=None, after=7),
    ]
    assert data.rows(None, after)[0] == Rows(period="2", before=None, after=7)


def field(name: str = "x", **changes: Any) -> dict[str, Any]:
    return {"name": name, "type": "number", "optional": False, "checks": [], "example": 1} | changes


def rule(check: str, **values: Any) -> dict[str, Any]:
    return field(checks=[{"check": check, **values}])


def contract(*fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"task": "binary", "classes": ["0", "1"], "fields": list(fields), **more}


@pytest.mark.parametrize(
    ("before", "after", "what", "breaking"),
    [
        pytest.param(None, field(), "new, required", True, id="new and required"),
        pytest.param(None, field(optional=True), "new, optional", False, id="new and optional"),
        pytest.param(field(), None, "no longer taken", True, id="gone"),
        pytest.param(field(type="integer"), field(), "integer becomes number", False, id="wider type"),
        pytest.param(field(), field(type="integer"), "number becomes integer", True, id="narrower type"),
        pytest.param(field(), field(type="string"), "number becomes string", True, id="another type"),
        pytest.param(field(), field(optional=True), "becomes optional", False, id="optional"),
        pytest.param(field(optional=True), field(), "becomes required", True, id="required"),
        pytest.param(field(), rule("le", max_value=5), "rule le max_value=5", True, id="a rule more"),
        pytest.param(rule("le", max_value=5), field(), "no longer le max_value=5", False, id="a rule less"),
        pytest.param(rule("le", max_value=5), rule("le", max_value=6), "rule le max_value=6", False, id="higher top"),
        pytest.param(rule("le", max_value=5), rule("le", max_value=4), "rule le max_value=4", True, id="lower top"),
        pytest.param(rule("ge", min_value=5), rule("ge", min_value=4), "rule ge min_value=4", False, id="lower end"),
        pytest.param(rule("ge", min_value=5), rule("ge", min_value=6), "rule ge min_value=6", True, id="higher end"),
        pytest.param(
            rule("in_range", min_value=0, max_value=5),
            rule("in_range", min_value=-1, max_value=4),
            "rule in_range min_value=-1 max_value=4",
            True,
            id="wider at one end only",
        ),
        pytest.param(
            rule("isin", allowed_values=[1, 2]),
            rule("isin", allowed_values=[1, 2, 3]),
            "rule isin allowed_values=[1, 2, 3]",
            False,
            id="values more",
        ),
        pytest.param(
            rule("isin", allowed_values=[1, 2]),
            rule("isin", allowed_values=[1, 3]),
            "rule isin allowed_values=[1, 3]",
            True,
            id="other values",
        ),
        pytest.param(
            rule("str_matches", pattern="a"),
            rule("str_matches", pattern="."),
            "rule str_matches pattern=.",
            True,
            id="pattern",
        ),
        pytest.param(
            rule("str_length", min_value=2, max_value=8, exact_value=None),
            rule("str_length", min_value=2, max_value=None, exact_value=None),
            "rule str_length min_value=2 max_value=None exact_value=None",
            False,
            id="no top any more",
        ),
        pytest.param(
            rule("str_length", min_value=None, max_value=8, exact_value=None),
            rule("str_length", min_value=2, max_value=8, exact_value=None),
            "rule str_length min_value=2 max_value=8 exact_value=None",
            True,
            id="an end where there was none",
        ),
        pytest.param(field(categories=["a"]), field(categories=["b"]), "other categories", False, id="categories"),
    ],
)
def test_a_changed_field_breaks_callers_or_does_not(
    before: dict[str, Any] | None, after: dict[str, Any] | None, what: str, breaking: bool
) -> None:
    sides = (contract(*([side] if side else [])) for side in (before, after))

    assert data.schema_changes(*sides) == [SchemaChange(field="x", what=what, breaking=breaking)]


@pytest.mark.parametrize(
    ("more", "what"),
    [
        pytest.param({"task": "regression"}, "answer.task", id="task"),
        pytest.param({"classes": ["0", "1", "2"]}, "answer.classes", id="classes"),
    ],
)
def test_another_answer_breaks_callers(more: dict[str, Any], what: str) -> None:
    found = data.schema_changes(contract(field()), contract(field(), **more))

    assert [(change.field, change.breaking) for change in found] == [(what, True)]


def test_what_no_caller_notices_is_no_change_of_the_schema() -> None:
    before = contract(field(), field("y", categories=["a", "b"]), threshold=0.2)
    after = contract(
        field("y", categories=["b", "a"]), field(description="new words", example=3), threshold=0.3, version=2
    )

    assert data.schema_changes(before, after) == []
