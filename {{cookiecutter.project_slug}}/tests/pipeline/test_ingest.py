"""YOURS: tests the example's fetch on its flights. Replace it with tests of your own fetch.

The tests beside it hold whatever the four files say.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest

from ml.pipeline import ingest, params, schema
from ml.pipeline.tables import read_source

AFTERWARDS = ["dep_time", "dep_delay", "arr_time", "air_time"]


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return params.read(Path(__file__).parents[2] / "params.yaml").data.sources


@pytest.fixture(scope="module")
def tables(sources: dict[str, str]) -> dict[str, pd.DataFrame]:
    return {
        "weather": read_source(sources["weather"])[list(schema.Weather.to_schema().columns)],
        "planes": read_source(sources["planes"])[list(schema.Planes.to_schema().columns)],
        "airports": read_source(sources["airports"])[list(schema.Airports.to_schema().columns)],
    }


@pytest.fixture(scope="module")
def flights(sources: dict[str, str]) -> pd.DataFrame:
    return read_source(sources["flights"])


@pytest.fixture(scope="module")
def january(flights: pd.DataFrame) -> pd.DataFrame:
    """Return the flights of January as they arrive."""
    return ingest.in_month(flights, "2013-01")


@pytest.fixture(scope="module")
def month(sources: dict[str, str]) -> pd.DataFrame:
    """Return the rows of January."""
    return ingest.fetch("2013-01", sources)


@pytest.fixture(scope="module")
def joined(january: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    return ingest.join(january, **tables)


def test_a_month_has_each_of_its_flights_once(month: pd.DataFrame, january: pd.DataFrame) -> None:
    keys = ["time_hour", "carrier", "flight"]
    arrived = january.assign(time_hour=pd.to_datetime(january["time_hour"], utc=True))[keys].to_numpy().tolist()

    assert len(month) == len(january) == 27_004
    assert sorted(month[keys].to_numpy().tolist()) == sorted(arrived)


def test_a_month_is_the_month_of_the_local_schedule(january: pd.DataFrame) -> None:
    assert set(january["month"]) == {1}
    assert january["time_hour"].max().startswith("2013-02-01T0")


def test_the_label_is_an_arrival_fifteen_minutes_late_and_none_without_an_arrival(
    month: pd.DataFrame, january: pd.DataFrame
) -> None:
    late = {
        (row.time_hour, row.carrier, row.flight): None if np.isnan(row.arr_delay) else int(row.arr_delay >= 15)
        for row in january.itertuples()
    }
    stamps = month["time_hour"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    found = [None if value is pd.NA else int(value) for value in month["late"]]

    assert found == [late[key] for key in zip(stamps, month["carrier"], month["flight"], strict=True)]
    assert found.count(None) == 606
    assert found.count(1) == 6_201


def test_nothing_known_only_after_the_departure_is_a_column_or_changes_one(
    january: pd.DataFrame, joined: pd.DataFrame, tables: dict[str, pd.DataFrame]
) -> None:
    inputs = list(schema.Request.to_schema().columns)
    otherwise = january.assign(**dict.fromkeys([*AFTERWARDS, "arr_delay"], 1.0))

    assert not {*AFTERWARDS, "arr_delay", "late"} & set(inputs)
    assert not {*AFTERWARDS, "arr_delay"} & set(schema.Row.to_schema().columns)
    pd.testing.assert_frame_equal(ingest.join(otherwise, **tables)[inputs], joined[inputs])


@pytest.mark.parametrize("table", ["weather", "planes", "airports"])
def test_a_join_never_multiplies_rows(january: pd.DataFrame, tables: dict[str, pd.DataFrame], table: str) -> None:
    doubled = {**tables, table: pd.concat([tables[table]] * 2)}

    with pytest.raises(pd.errors.MergeError, match="many-to-one"):
        ingest.join(january, **doubled)


def test_weather_and_plane_are_those_of_the_flight(joined: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> None:
    weather = tables["weather"].set_index(["origin", "time_hour"])
    planes = tables["planes"].set_index("tailnum")
    for row in joined.sample(40, random_state=1).to_dict("records"):
        hour = (row["origin"], row["time_hour"].strftime("%Y-%m-%dT%H:%M:%SZ"))
        if hour in weather.index:
            assert row["temp"] == weather.loc[hour, "temp"]
        if row["tailnum"] in planes.index:
            plane = planes.loc[row["tailnum"]]
            assert row["seats"] == plane["seats"]
            np.testing.assert_equal(row["plane_age"], 2013 - plane["year"])


@pytest.mark.parametrize(
    ("origin", "dest", "zone"),
    [
        pytest.param("EWR", "PHX", "America/Phoenix", id="Phoenix keeps no summer time"),
        pytest.param("JFK", "HNL", "Pacific/Honolulu", id="Honolulu"),
        pytest.param("EWR", "ORD", "America/Chicago", id="Chicago"),
        pytest.param("JFK", "LAX", "America/Los_Angeles", id="Los Angeles"),
        pytest.param("LGA", "ATL", "America/New_York", id="Atlanta"),
    ],
)
@pytest.mark.parametrize("period", ["2013-01", "2013-03", "2013-07"])
def test_scheduled_minutes_agree_with_the_clocks_at_both_ends(
    flights: pd.DataFrame, tables: dict[str, pd.DataFrame], period: str, origin: str, dest: str, zone: str
) -> None:
    month = ingest.in_month(flights, period)
    some = month[(month["origin"] == origin) & (month["dest"] == dest)].iloc[::37][:8]

    found = ingest.join(some, **tables)

    assert len(found) > 0
    for row in found.itertuples():
        left = datetime(row.year, row.month, row.day, row.hour, row.minute, tzinfo=ZoneInfo("America/New_York"))
        there = left.astimezone(ZoneInfo(zone))
        clock = row.sched_arr_time // 100 * 60 + row.sched_arr_time % 100
        assert row.scheduled_minutes == (clock - there.hour * 60 - there.minute) % 1440
        assert 1 <= row.distance / (row.scheduled_minutes / 60) <= 600
        assert row.departure_minute == row.hour * 60 + row.minute
        assert row.day_of_week == left.isoweekday()


def test_two_flights_worked_out_by_hand(joined: pd.DataFrame) -> None:
    known = joined.set_index(["day", "carrier", "flight"])["scheduled_minutes"]

    # 05:15 in New York is 04:15 in Houston, and 08:19 there is 4 h 4 min later.
    assert known[(1, "UA", 1545)] == 244
    # 09:00 in New York is 04:00 in Honolulu, and 15:30 there is 11 h 30 min later.
    assert known[(1, "HA", 51)] == 690


def test_flights_to_airports_without_a_time_zone_have_no_duration(joined: pd.DataFrame) -> None:
    unknown = joined["tzone"].isna()

    assert set(joined.loc[unknown, "dest"]) == {"BQN", "SJU", "STT", "PSE"}
    assert joined["scheduled_minutes"].isna().equals(unknown)


def test_departures_are_counted_over_the_origin_and_the_hour(joined: pd.DataFrame) -> None:
    counts = joined.groupby(["origin", "day", "hour"]).size()
    some = joined.sample(40, random_state=2)

    assert [counts[key] for key in zip(some["origin"], some["day"], some["hour"], strict=True)] == list(
        some["departures_in_hour"]
    )


def test_a_wind_that_no_gauge_can_have_seen_becomes_missing(
    january: pd.DataFrame, joined: pd.DataFrame, tables: dict[str, pd.DataFrame]
) -> None:
    weather = tables["weather"]
    fault = weather.loc[weather["wind_speed"].idxmax()]
    struck = (weather["origin"] == "EWR") & (weather["time_hour"] == "2013-01-15T13:00:00Z")
    blown = weather.assign(wind_speed=weather["wind_speed"].mask(struck, fault["wind_speed"]))

    found = ingest.join(january, **{**tables, "weather": blown})["wind_speed"]

    hit = (joined["origin"] == "EWR") & (joined["time_hour"] == pd.Timestamp("2013-01-15T13:00Z"))
    assert fault[["origin", "time_hour"]].tolist() == ["EWR", "2013-02-12T08:00:00Z"]
    assert round(fault["wind_speed"]) == 1048
    assert joined.loc[hit, "wind_speed"].notna().all()
    assert found[hit].isna().tolist() == [True] * 28
    assert found[~hit].equals(joined.loc[~hit, "wind_speed"])


def test_the_month_of_the_fault_holds_no_such_wind(sources: dict[str, str]) -> None:
    rows = ingest.fetch("2013-02", sources)

    assert rows["wind_speed"].max() < 60


def test_a_month_that_the_source_does_not_have_is_empty(sources: dict[str, str]) -> None:
    assert len(ingest.fetch("2014-05", sources)) == 0
