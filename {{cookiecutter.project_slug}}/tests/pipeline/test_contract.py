from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pytest
from pandera.typing import Series

from ml.errors import ContractError, UserError
from ml.pipeline import contract

Change = Callable[[pd.DataFrame], pd.DataFrame]


class Parcel(pa.DataFrameModel):
    day: Series[int] = pa.Field(in_range={"min_value": 1, "max_value": 31})
    number: Series[int]
    carrier: Series[str] = pa.Field(isin=["AA", "UA"])
    delay: Series[float] = pa.Field(
        nullable=True, in_range={"min_value": -180, "max_value": 2880}, metadata={"max_null_share": 0.2}
    )
    note: Series[str] = pa.Field(nullable=True)

    class Config:
        strict = True
        unique = ["day", "number"]


@pytest.fixture
def parcels() -> pd.DataFrame:
    number = np.arange(50)
    return pd.DataFrame(
        {"day": number % 31 + 1, "number": number, "carrier": "UA", "delay": 5.0, "note": ["ok", None] * 25}
    )


def put(column: str, value: object, count: int) -> Change:
    """Return a change of the first `count` values of a column."""
    return lambda frame: frame.assign(**{column: frame[column].where(frame.index >= count, value)})


def twice(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame.head(3)])


def test_data_that_keeps_the_contract_has_no_breach(parcels: pd.DataFrame) -> None:
    assert contract.breaches(Parcel, parcels) == []
    assert contract.breaches(Parcel, parcels.iloc[::-1]) == []


@pytest.mark.parametrize(
    ("change", "column", "rule", "rows", "value"),
    [
        pytest.param(lambda f: f.drop(columns="carrier"), "", "carrier", 50, None, id="missing column"),
        pytest.param(lambda f: f.assign(weight=1), "", "weight", 50, None, id="extra column"),
        pytest.param(lambda f: f.rename(columns={"day": "dia"}), "", "dia", 50, None, id="renamed column"),
        pytest.param(
            lambda f: f.assign(day=f["day"].astype(str)), "day", "type must be int64, is str", 50, None, id="type"
        ),
        pytest.param(lambda f: f.assign(note=None), "note", "share of 1.000", 50, None, id="all null, though allowed"),
        pytest.param(
            lambda f: f.assign(day=np.nan),
            "day",
            "values are missing",
            50,
            None,
            id="all null, not allowed",
        ),
        pytest.param(put("delay", np.nan, 11), "delay", "share of 0.220, at most 0.2", 11, None, id="null share"),
        pytest.param(twice, "", "rows share day, number", 6, None, id="key twice"),
        pytest.param(put("carrier", "ZZ", 2), "carrier", "isin", 2, "ZZ", id="unknown carrier"),
        pytest.param(put("delay", 1e9, 1), "delay", "in_range(-180, 2880)", 1, 1e9, id="delay of a billion"),
        pytest.param(put("delay", np.inf, 1), "delay", "in_range", 1, np.inf, id="infinite delay"),
    ],
)
def test_a_breach_names_table_column_rule_rows_and_first_value(
    parcels: pd.DataFrame, change: Change, column: str, rule: str, rows: int, value: object
) -> None:
    first = contract.breaches(Parcel, change(parcels))[0]

    assert (first.table, first.column, first.rows) == ("Parcel", column, rows)
    assert rule in first.check
    assert (first.first[0].get("value") if first.first else None) == value


def test_a_null_share_at_its_limit_is_kept(parcels: pd.DataFrame) -> None:
    assert contract.breaches(Parcel, put("delay", np.nan, 10)(parcels)) == []


def test_every_breach_is_found_not_only_the_first(parcels: pd.DataFrame) -> None:
    broken = put("carrier", "ZZ", 1)(put("delay", 1e9, 1)(parcels)).assign(weight=1)

    assert {breach.column for breach in contract.breaches(Parcel, broken)} == {"", "carrier", "delay"}


@pytest.mark.parametrize(
    ("count", "kept"),
    [pytest.param(n, k, id=str(n)) for n, k in ((0, False), (49, False), (50, True), (60, True), (61, False))],
)
def test_the_number_of_rows_has_two_limits_both_allowed(count: int, kept: bool) -> None:
    found = contract.row_count(pd.DataFrame(index=range(count)), 50, 60)

    assert [breach.check for breach in found] == ([] if kept else [f"{count} rows, must be 50 to 60 as data.rows says"])


@pytest.mark.parametrize(
    ("period", "kept"),
    [
        pytest.param("2024-03", True, id="this month"),
        pytest.param("2024-04", False, id="next month"),
        pytest.param("2024-03-15", True, id="today"),
        pytest.param("2024-03-16", False, id="tomorrow"),
        pytest.param("2024", True, id="this year"),
        pytest.param("2025", False, id="next year"),
        pytest.param("winter", True, id="without a date"),
    ],
)
def test_a_period_must_have_begun(period: str, kept: bool) -> None:
    assert (contract.not_in_future(period, date(2024, 3, 15)) == []) is kept


def test_the_report_holds_rule_count_and_the_first_twenty_rows(parcels: pd.DataFrame, tmp_path: Path) -> None:
    broken = put("delay", 1e9, 1)(put("carrier", "ZZ", 30)(parcels))

    with pytest.raises(ContractError) as caught:
        contract.hold("2024-03", contract.breaches(Parcel, broken), tmp_path)

    report = json.loads((tmp_path / "2024-03.json").read_text())
    assert report["period"] == "2024-03"
    first, second = report["breaches"]
    assert (first["column"], first["rows"], len(first["first"])) == ("carrier", 30, 20)
    assert first["check"] == "isin(['AA', 'UA'])"
    assert [entry["row"]["number"] for entry in first["first"]] == list(range(20))
    assert first["first"][1]["row"] == {"day": 2, "number": 1, "carrier": "ZZ", "delay": 5.0, "note": None}
    assert (second["column"], second["rows"], second["first"][0]["value"]) == ("delay", 1, 1e9)
    message = str(caught.value)
    assert message.startswith("2024-03 breaks the contract: Parcel.carrier: isin(['AA', 'UA']) (30 rows, first 'ZZ') ")
    assert f"and 1 more; see {tmp_path}/2024-03.json" in message
    assert "\n" not in message


def test_the_report_of_an_old_breach_is_removed_once_it_is_mended(tmp_path: Path) -> None:
    (tmp_path / "2024-02.json").write_text("of another period")
    with pytest.raises(ContractError):
        contract.hold("2024-03", contract.row_count(pd.DataFrame(), 1, 2), tmp_path)
    assert (tmp_path / "2024-03.json").exists()

    contract.hold("2024-03", [], tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["2024-02.json"]


def test_checked_data_has_the_columns_of_the_schema_in_its_order(
    parcels: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loose(pa.DataFrameModel):
        number: Series[int]
        day: Series[int]

    monkeypatch.chdir(tmp_path)

    assert list(contract.check(Loose, parcels, "2024-03")) == ["number", "day"]


def test_a_request_field_keeps_type_limits_and_words() -> None:
    class Ask(pa.DataFrameModel):
        carrier: Series[str] = pa.Field(isin=["UA", "AA"], metadata={"description": "Airline", "example": "UA"})
        code: Series[str] = pa.Field(str_matches="^[A-Z]+$")
        stops: Series[int] = pa.Field(isin=[0, 1])
        delay: Series[float] = pa.Field(nullable=True, ge=-180, lt=2880)
        direct: Series[bool] = pa.Field(metadata={"description": "Without a stop", "personal": True})

    carrier, code, stops, delay, direct = contract.request_fields(Ask)

    assert carrier == {
        "name": "carrier",
        "type": "string",
        "optional": False,
        "description": "Airline",
        "example": "UA",
        "categories": ["UA", "AA"],
        "checks": [],
    }
    assert code["checks"] == [{"check": "str_matches", "pattern": "^[A-Z]+$"}]
    assert "categories" not in code
    assert (stops["type"], stops["checks"]) == ("integer", [{"check": "isin", "allowed_values": [0, 1]}])
    assert "categories" not in stops
    assert (delay["type"], delay["optional"]) == ("number", True)
    assert delay["checks"] == [
        {"check": "greater_than_or_equal_to", "min_value": -180},
        {"check": "less_than", "max_value": 2880},
    ]
    assert (direct["type"], direct["checks"]) == ("boolean", [])
    assert [field.get("personal", False) for field in (carrier, code, direct)] == [False, False, True]
    json.dumps([carrier, code, stops, delay, direct])


class Custom(pa.DataFrameModel):
    day: Series[int]

    @pa.check("day")
    def no_thirteenth(self, days: pd.Series) -> pd.Series:
        return days != 13


class FrameWide(pa.DataFrameModel):
    day: Series[int]

    @pa.dataframe_check
    def ordered(self, frame: pd.DataFrame) -> bool:
        return frame["day"].is_monotonic_increasing


class Unique(pa.DataFrameModel):
    day: Series[int] = pa.Field(unique=True)


class UniqueKeys(pa.DataFrameModel):
    day: Series[int]

    class Config:
        unique = ["day"]


class Dated(pa.DataFrameModel):
    day: Series[pd.Timestamp]


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        pytest.param(Custom, ["Custom.day", "no_thirteenth", "not built into pandera"], id="custom check"),
        pytest.param(FrameWide, ["FrameWide: ordered", "over the whole frame"], id="frame-wide check"),
        pytest.param(Unique, ["Unique.day is unique"], id="unique column"),
        pytest.param(UniqueKeys, ["UniqueKeys: day", "over the whole frame"], id="unique keys"),
        pytest.param(Dated, ["Dated.day is of type datetime64[ns]"], id="date"),
    ],
)
def test_a_rule_that_a_single_request_cannot_be_held_to_is_refused_by_name(
    model: type[pa.DataFrameModel], parts: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        contract.request_fields(model)

    assert [part for part in [*parts, "src/ml/pipeline/schema.py"] if part not in str(caught.value)] == []


def test_a_schema_that_converts_is_refused(parcels: pd.DataFrame) -> None:
    class Converting(Parcel):
        class Config:
            coerce = True

    with pytest.raises(UserError, match=r"^Converting: coerce checks other values than are written"):
        contract.breaches(Converting, parcels.astype({"day": str}))
