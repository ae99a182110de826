"""YOURS: what the data must look like, from the source to the request.

`Flights`, `Weather`, `Planes` and `Airports` are the sources as they arrive. `Request` is what is known when
a prediction is asked for: the model's inputs and the service's request. `Row` adds the keys and the target:
one row of the data that the model learns from.

A field of `Request` takes only pandera's built-in checks, since the service applies the same ones without pandera.
Its metadata goes to the service's documentation, but for `max_null_share`, which bounds the missing values of a period,
and `personal`, which masks the field in the service's prediction log.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import pandera.pandas as pa
from pandera.typing import Series

CARRIERS = ["9E", "AA", "AS", "B6", "DL", "EV", "F9", "FL", "HA", "MQ", "OO", "UA", "US", "VX", "WN", "YV"]
ORIGINS = ["EWR", "JFK", "LGA"]
AIRPORT = r"^[A-Z0-9]{3}$"
HOUR = r"^\d{4}-\d{2}-\d{2}T\d{2}:00:00Z$"


def about(
    description: str, example: object = None, *, max_null_share: float = 0.0, personal: bool = False
) -> dict[str, Any]:
    """Return a field's metadata; `max_null_share` is a share from 0 to 1 of one period's rows.

    What is `personal` is masked in the service's prediction log.
    """
    return {"description": description, "example": example, "max_null_share": max_null_share, "personal": personal}


def within(
    low: float,
    high: float,
    description: str = "",
    example: object = None,
    *,
    nulls: float = 0.0,
    personal: bool = False,
) -> Any:
    """Return a field for numbers from `low` to `high`, of which a share of at most `nulls` may be missing."""
    limits = {"min_value": low, "max_value": high}
    metadata = about(description, example, max_null_share=nulls, personal=personal)
    return pa.Field(in_range=limits, nullable=nulls > 0, metadata=metadata)


class Flights(pa.DataFrameModel):
    """Departures as the Bureau of Transportation Statistics reports them; an unknown column is a breach."""

    year: Series[int] = within(1987, 2100)
    month: Series[int] = within(1, 12)
    day: Series[int] = within(1, 31)
    dep_time: Series[float] = within(1, 2400, nulls=0.2)
    sched_dep_time: Series[int] = within(0, 2359)
    dep_delay: Series[float] = within(-120, 2880, nulls=0.2)
    arr_time: Series[float] = within(1, 2400, nulls=0.2)
    sched_arr_time: Series[int] = within(0, 2400)
    arr_delay: Series[float] = within(-180, 2880, nulls=0.2)
    carrier: Series[str] = pa.Field(isin=CARRIERS)
    flight: Series[int] = within(1, 9999)
    tailnum: Series[str] = pa.Field(nullable=True, str_length={"min_value": 2, "max_value": 8})
    origin: Series[str] = pa.Field(isin=ORIGINS)
    dest: Series[str] = pa.Field(str_matches=AIRPORT)
    air_time: Series[float] = within(5, 1200, nulls=0.2)
    distance: Series[int] = within(1, 10_000)
    hour: Series[int] = within(0, 23)
    minute: Series[int] = within(0, 59)
    time_hour: Series[str] = pa.Field(str_matches=HOUR)

    class Config:
        strict = True
        unique = ["time_hour", "carrier", "flight"]


class Weather(pa.DataFrameModel):
    """Hourly observations at the three origins; columns that are not named here are left out."""

    origin: Series[str] = pa.Field(isin=ORIGINS)
    time_hour: Series[str] = pa.Field(str_matches=HOUR)
    temp: Series[float] = pa.Field(nullable=True)
    dewp: Series[float] = pa.Field(nullable=True)
    humid: Series[float] = pa.Field(nullable=True)
    wind_dir: Series[float] = pa.Field(nullable=True)
    wind_speed: Series[float] = pa.Field(nullable=True)
    wind_gust: Series[float] = pa.Field(nullable=True)
    precip: Series[float] = pa.Field(nullable=True)
    pressure: Series[float] = pa.Field(nullable=True)
    visib: Series[float] = pa.Field(nullable=True)

    class Config:
        unique = ["origin", "time_hour"]


class Planes(pa.DataFrameModel):
    """The register of planes."""

    tailnum: Series[str] = pa.Field(unique=True)
    year: Series[float] = within(1920, 2100, nulls=0.1)
    seats: Series[int] = within(1, 900)


class Airports(pa.DataFrameModel):
    """Airports and their time zones."""

    faa: Series[str] = pa.Field(unique=True)
    tzone: Series[str] = pa.Field(nullable=True, str_matches=r"^[A-Za-z_]+/[A-Za-z_/]+$")


class Request(pa.DataFrameModel):
    """What is known of a flight at its scheduled departure.

    The shares of nulls bound what the other tables do not know: airports of arrival (scheduled_minutes),
    planes (seats, plane_age), hours of weather.
    """

    carrier: Series[str] = pa.Field(isin=CARRIERS, metadata=about("Airline, two-character code", "UA"))
    origin: Series[str] = pa.Field(isin=ORIGINS, metadata=about("Airport of departure", "EWR"))
    dest: Series[str] = pa.Field(str_matches=AIRPORT, metadata=about("Airport of arrival", "IAH"))
    day_of_week: Series[int] = within(1, 7, "Local day of departure, 1 is Monday", 2)
    departure_minute: Series[int] = within(0, 1439, "Scheduled departure, local minutes after midnight", 315)
    scheduled_minutes: Series[float] = within(0, 1439, "Scheduled minutes from gate to gate", 244, nulls=0.05)
    distance: Series[int] = within(1, 10_000, "Distance flown, miles", 1400)
    departures_in_hour: Series[int] = within(1, 200, "Departures scheduled from the origin in that hour", 11)
    seats: Series[float] = within(1, 900, "Seats of the plane", 149, nulls=0.25)
    plane_age: Series[float] = within(-1, 100, "Years since the plane was built", 14, nulls=0.25)
    temp: Series[float] = within(-60, 140, "Temperature at the origin, °F", 39, nulls=0.1)
    dewp: Series[float] = within(-80, 100, "Dew point at the origin, °F", 28, nulls=0.1)
    humid: Series[float] = within(0, 100, "Relative humidity at the origin, percent", 64, nulls=0.1)
    wind_dir: Series[float] = within(0, 360, "Wind direction at the origin, degrees", 240, nulls=0.15)
    wind_speed: Series[float] = within(0, 200, "Wind speed at the origin, mph", 12.7, nulls=0.1)
    wind_gust: Series[float] = within(0, 250, "Gusts at the origin, mph; missing without gusts", None, nulls=0.95)
    precip: Series[float] = within(0, 20, "Precipitation at the origin, inches an hour", 0, nulls=0.1)
    pressure: Series[float] = within(850, 1100, "Sea-level pressure at the origin, millibars", 1012, nulls=0.4)
    visib: Series[float] = within(0, 100, "Visibility at the origin, miles", 10, nulls=0.1)


class Row(Request):
    """A flight with its keys and, unless it never arrived, its label."""

    time_hour: Series[pd.DatetimeTZDtype] = pa.Field(dtype_kwargs={"unit": "us", "tz": "UTC"})
    flight: Series[int]
    tailnum: Series[str] = pa.Field(nullable=True, metadata=about("Tail number", max_null_share=0.05))
    late: Series[pd.Int8Dtype] = pa.Field(
        nullable=True, isin=[0, 1], metadata=about("Arrived 15 minutes late or more", max_null_share=0.1)
    )

    class Config:
        strict = True
        unique = ["time_hour", "carrier", "flight"]
