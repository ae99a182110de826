"""YOURS: where the data comes from. Replace `fetch`; the rest of the project reads what it returns."""

from __future__ import annotations

import re

import pandas as pd

from ml.errors import UserError
from ml.pipeline import contract, schema
from ml.pipeline.tables import read_source

LATE = 15  # minutes after schedule; the US Department of Transportation counts from here
STRONGEST_WIND = 200  # mph; above, it is a fault of the gauge (1,048 mph at EWR on 2013-02-12)


def fetch(period: str, sources: dict[str, str]) -> pd.DataFrame:
    """Return the rows of one month in the columns of `schema.Row`; flights that never arrived have no label."""
    tables = {
        name: contract.check(model, read_source(sources[name]), period)
        for name, model in (("weather", schema.Weather), ("planes", schema.Planes), ("airports", schema.Airports))
    }
    flights = in_month(read_source(sources["flights"]), period)
    rows = join(contract.check(schema.Flights, flights, period), **tables)
    return rows.filter(list(schema.Row.to_schema().columns))


def in_month(flights: pd.DataFrame, period: str) -> pd.DataFrame:
    """Return the flights that were scheduled to leave in a month such as 2013-01, local time."""
    if not {"year", "month"} <= set(flights.columns):
        return flights  # for the contract to name what is missing
    if not re.fullmatch(r"\d{4}-\d{2}", period):
        raise UserError(f"{period} is not a month such as 2013-01: correct data.periods in params.yaml")
    year, month = (int(part) for part in period.split("-"))
    return flights[(flights["year"] == year) & (flights["month"] == month)]


def join(flights: pd.DataFrame, weather: pd.DataFrame, planes: pd.DataFrame, airports: pd.DataFrame) -> pd.DataFrame:
    """Return the flights with the weather of their hour, the plane they are booked on and the calendar.

    Nothing that becomes known only after the scheduled departure is read, but for the label.
    """
    rows = (
        flights.merge(weather, on=["origin", "time_hour"], how="left", validate="m:1")
        .merge(planes.rename(columns={"year": "built"}), on="tailnum", how="left", validate="m:1")
        .merge(airports.rename(columns={"faa": "dest"}), on="dest", how="left", validate="m:1")
    )
    local = pd.to_datetime(rows[["year", "month", "day"]])
    return rows.assign(
        time_hour=pd.to_datetime(rows["time_hour"], format="%Y-%m-%dT%H:%M:%SZ", utc=True).astype(
            "datetime64[us, UTC]"
        ),
        day_of_week=(local.dt.day_of_week + 1).astype("int64"),
        departure_minute=rows["hour"] * 60 + rows["minute"],
        scheduled_minutes=scheduled_minutes(rows),
        departures_in_hour=rows.groupby(["origin", "time_hour"])["flight"].transform("size"),
        seats=rows["seats"].astype("float64"),
        plane_age=rows["year"] - rows["built"],
        wind_speed=rows["wind_speed"].where(rows["wind_speed"] <= STRONGEST_WIND),
        late=(rows["arr_delay"] >= LATE).astype("Int8").where(rows["arr_delay"].notna()),
    )


def scheduled_minutes(rows: pd.DataFrame) -> pd.Series:
    """Return the minutes from scheduled departure to scheduled arrival; missing where the time zone is unknown."""
    departure = pd.to_datetime(rows["time_hour"], utc=True) + pd.to_timedelta(rows["minute"], unit="min")
    arrival = rows["sched_arr_time"] // 100 * 60 + rows["sched_arr_time"] % 100
    minutes = pd.Series(float("nan"), index=rows.index)
    for zone, group in rows.groupby("tzone").groups.items():
        there = departure.loc[group].dt.tz_convert(zone)
        minutes.loc[group] = (arrival.loc[group] - there.dt.hour * 60 - there.dt.minute) % 1440
    return minutes
