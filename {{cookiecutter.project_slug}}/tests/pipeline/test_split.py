from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from example import KEYS
from pandera.typing import Series

from ml.errors import UserError
from ml.pipeline import periods, schema, split
from ml.pipeline.tables import write_parquet

RANDOM = {"split.by": "random", "split.holdout": 0.3}
GROUP = {"split.by": "group", "split.holdout": 0.3, "split.group": "machine"}


@pytest.fixture
def ingested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: pd.DataFrame) -> pd.DataFrame:
    """Write five periods of which the last row of each has no label, and return their rows."""
    monkeypatch.chdir(tmp_path)
    last = ~rows["period"].duplicated(keep="last")
    found = rows.assign(failed=rows["failed"].mask(last))
    for period, frame in found.groupby("period"):
        write_parquet(frame.drop(columns="period"), periods.path(str(period)))
    return found


@pytest.fixture
def chosen(settings, small):
    return lambda changes=None: settings({**small["binary"], **(changes or {})})


def sides() -> tuple[pd.DataFrame, pd.DataFrame]:
    return pd.read_parquet(split.TRAIN), pd.read_parquet(split.HOLDOUT)


def keys(frame: pd.DataFrame) -> set[tuple]:
    return set(frame[KEYS].itertuples(index=False, name=None))


@pytest.mark.parametrize("newest", [1, 2])
def test_by_time_the_newest_periods_are_the_holdout(ingested: pd.DataFrame, chosen, newest: int) -> None:
    split.run(chosen({"split.holdout": newest, "data.periods": sorted(ingested["period"].unique(), reverse=True)}))

    train, holdout = sides()
    listed = sorted(ingested["period"].unique())
    assert sorted(train["period"].unique()) == listed[:-newest]
    assert sorted(holdout["period"].unique()) == listed[-newest:]
    assert train["started"].max() <= holdout["started"].min()


@pytest.mark.parametrize("changes", [{}, RANDOM, GROUP], ids=["time", "random", "group"])
def test_every_labelled_row_is_on_one_side_and_no_other_row(ingested: pd.DataFrame, chosen, changes) -> None:
    split.run(chosen(changes))

    train, holdout = sides()
    labelled = ingested[ingested["failed"].notna()]
    assert len(train) + len(holdout) == len(labelled) == 2995
    assert keys(train) | keys(holdout) == keys(labelled)
    assert keys(train) & keys(holdout) == set()


def test_by_group_no_group_is_on_both_sides(ingested: pd.DataFrame, chosen) -> None:
    split.run(chosen(GROUP))

    train, holdout = sides()
    assert set(train["machine"]) & set(holdout["machine"]) == set()
    assert set(train["machine"]) | set(holdout["machine"]) == set(ingested["machine"])
    assert len(set(holdout["machine"])) > 10


def test_at_random_the_share_is_the_one_asked_for(ingested: pd.DataFrame, chosen) -> None:
    split.run(chosen(RANDOM))

    train, holdout = sides()
    assert 0.27 < len(holdout) / (len(train) + len(holdout)) < 0.33
    assert abs(holdout["failed"].mean() - train["failed"].mean()) < 0.06


def test_at_random_a_row_keeps_its_side_when_rows_are_added_or_reordered(ingested: pd.DataFrame, chosen) -> None:
    params = chosen(RANDOM)
    some = ingested.sample(500, random_state=0)

    before = split.in_holdout(some, params, KEYS)
    after = split.in_holdout(ingested, params, KEYS)

    assert before.equals(after.loc[some.index])
    assert 0 < before.sum() < len(before)


def test_the_seed_changes_the_draw(ingested: pd.DataFrame, chosen) -> None:
    one, same, other = (split.in_holdout(ingested, chosen({**RANDOM, "split.seed": seed}), KEYS) for seed in (1, 1, 2))

    assert one.equals(same)
    # Two independent draws of 0.3 differ in a share of 2 · 0.3 · 0.7.
    assert abs((one != other).mean() - 0.42) < 0.04


def test_the_same_data_give_the_same_bytes(ingested: pd.DataFrame, chosen) -> None:
    split.run(chosen(RANDOM))
    first = [path.read_bytes() for path in (split.TRAIN, split.HOLDOUT, split.REPORT)]

    split.run(chosen(RANDOM))

    assert [path.read_bytes() for path in (split.TRAIN, split.HOLDOUT, split.REPORT)] == first


def test_the_report_counts_rows_labels_and_rows_without_label(ingested: pd.DataFrame, chosen) -> None:
    split.run(chosen())

    report = json.loads(split.REPORT.read_text())
    held = ingested[(ingested["period"] == "2013-05") & ingested["failed"].notna()]
    assert report["holdout"] == {
        "rows": 599,
        "periods": ["2013-05"],
        "target_mean": round(held["failed"].astype(float).mean(), 6),
    }
    assert report["train"]["rows"] == 2396
    assert report["without_label"] == {f"2013-0{month}": 1 for month in range(1, 6)}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        pytest.param({"split.leaks": ["repair_minutes", "length", "age"]}, "length, age", id="leaks"),
        pytest.param({"data.target": "load"}, "load", id="target"),
    ],
)
def test_a_column_known_only_after_the_event_is_refused_by_name(ingested, chosen, changes, named: str) -> None:
    with pytest.raises(UserError, match=f"^{named}: known only after the event"):
        split.run(chosen(changes))

    assert not split.TRAIN.exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param({**GROUP, "split.group": "planet"}, "split.group = 'planet' is not a column", id="group"),
        pytest.param({"data.target": "tardy"}, "data.target = 'tardy' is not a column of Row", id="target"),
        pytest.param({**RANDOM, "split.holdout": 1e-9}, "holdout has no labelled row", id="empty holdout"),
        pytest.param({**RANDOM, "split.holdout": 0.999999999}, "train has no labelled row", id="empty train"),
        pytest.param(
            {"data.periods": ["2013-01", "2013-02", "2013-03", "2013-05"]},
            "data/ingest/2013-04.parquet is not in data.periods",
            id="stale partition",
        ),
    ],
)
def test_a_split_that_cannot_be_made_is_refused_and_writes_nothing(ingested, chosen, changes, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        split.run(chosen(changes))

    assert sentence in str(caught.value)
    assert not split.TRAIN.exists()
    assert not split.HOLDOUT.exists()


def test_a_column_of_the_name_that_split_gives_to_the_period_is_refused(
    ingested, chosen, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dated(schema.Row):
        period: Series[str]

    monkeypatch.setattr(schema, "Row", Dated)

    with pytest.raises(UserError, match=r"^Row has a column named period"):
        split.run(chosen())


def test_a_key_on_both_sides_is_refused_with_the_key(ingested: pd.DataFrame, chosen) -> None:
    old = ingested[ingested["period"] == "2013-01"].head(2)
    newest = pd.concat([ingested[ingested["period"] == "2013-05"], old])
    write_parquet(newest.drop(columns="period"), periods.path("2013-05"))

    with pytest.raises(UserError, match=r"^2 keys stand in train and in holdout \(first: started=2013-01-01") as caught:
        split.run(chosen())

    assert f"job={old['job'].iloc[0]}" in str(caught.value)
    assert not split.TRAIN.exists()
