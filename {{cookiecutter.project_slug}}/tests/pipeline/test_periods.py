from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import example
import pandas as pd
import pytest

from ml.errors import ContractError, SourceError, UserError
from ml.pipeline import ingest, periods

JANUARY = Path("data/ingest/2013-01.parquet")
REPORT = Path("reports/contract/2013-01.json")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> dict[str, pd.DataFrame]:
    """Return where a test puts the rows that the source is to answer with."""
    answers = {"2013-01": example.fetch("2013-01", {}).head(400)}
    monkeypatch.setattr(ingest, "fetch", lambda period, sources: answers[period])
    return answers


@pytest.fixture
def few(settings):
    return settings({"data.rows": {"min": 100, "max": 500}})


def refusal(few) -> str:
    with pytest.raises(ContractError) as caught:
        periods.run("2013-01", few)
    return str(caught.value)


def test_a_period_is_written_in_the_order_of_its_keys_whatever_order_it_came_in(source, few) -> None:
    periods.run("2013-01", few)
    written = JANUARY.read_bytes()
    source["2013-01"] = source["2013-01"].sample(frac=1, random_state=3)

    periods.run("2013-01", few)

    assert JANUARY.read_bytes() == written
    keys = periods.read("2013-01")[example.KEYS].apply(tuple, axis=1).tolist()
    assert keys == sorted(keys)
    assert len(keys) == 400


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        pytest.param(lambda f: f.drop(columns="material"), "Row: a column is missing: material;", id="missing column"),
        pytest.param(lambda f: f.assign(repair=1.0), "Row: a column is not in the schema: repair;", id="extra column"),
        pytest.param(lambda f: f.assign(failed=pd.array([2] * len(f), "Int8")), "Row.failed: isin([0, 1])", id="label"),
        pytest.param(
            lambda f: f.assign(failed=f["failed"].astype(float)),
            "Row.failed: type must be Int8, is float64 (",
            id="re-typed label",
        ),
        pytest.param(
            lambda f: pd.concat([f, f.head(1)]), "Row: rows share started, plant, job (2 rows)", id="key twice"
        ),
        pytest.param(lambda f: f.assign(age=float("nan")), "Row.age: missing in a share of 1.000", id="all null"),
        pytest.param(lambda f: f.head(99), "Row: 99 rows, must be 100 to 500", id="too few rows"),
        pytest.param(lambda f: f.head(0), "Row: 0 rows, must be 100 to 500", id="no rows"),
    ],
)
def test_nothing_is_written_when_the_contract_breaks_and_an_older_good_file_stays(
    source, few, change, sentence
) -> None:
    good = source["2013-01"]
    source["2013-01"] = change(good)
    assert sentence in refusal(few)
    assert not JANUARY.exists()
    source["2013-01"] = good
    periods.run("2013-01", few)
    written = JANUARY.read_bytes()
    source["2013-01"] = change(good)

    assert sentence in refusal(few)

    assert JANUARY.read_bytes() == written
    assert [path.name for path in JANUARY.parent.iterdir()] == [JANUARY.name]
    assert json.loads(REPORT.read_text())["period"] == "2013-01"


def test_a_mended_period_is_written_and_its_report_removed(source, few) -> None:
    good = source["2013-01"]
    source["2013-01"] = good.head(5)
    refusal(few)
    assert REPORT.exists()
    source["2013-01"] = good

    periods.run("2013-01", few)

    assert JANUARY.exists()
    assert not REPORT.exists()


def test_a_period_that_has_not_begun_is_refused_before_its_source_is_read(source, few) -> None:
    source.clear()

    with pytest.raises(ContractError, match=r"period: 2013-01 lies in the future"):
        periods.run("2013-01", few, today=date(2012, 12, 31))

    assert not JANUARY.exists()


def test_a_period_that_is_not_listed_is_refused(few) -> None:
    with pytest.raises(UserError, match=r"^2014-01 is not in data\.periods of params\.yaml; it lists 2013-01, 2013-02"):
        periods.run("2014-01", few)


def test_a_period_without_its_file_is_one_line() -> None:
    with pytest.raises(SourceError, match=r"^data/ingest/2013-01\.parquet is missing: run make pipeline$"):
        periods.read("2013-01")
