"""The data by period: one file each, checked before it exists."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pandas as pd

from ml.errors import UserError
from ml.pipeline import contract, ingest, schema
from ml.pipeline.params import Params
from ml.pipeline.prune import FOLDER, stale
from ml.pipeline.tables import Sources, read_output, write_parquet


def path(period: str) -> Path:
    """Return where a period's rows stand."""
    return FOLDER / f"{period}.parquet"


def read(period: str) -> pd.DataFrame:
    """Return a period's rows."""
    return read_output(path(period))


def run(period: str, params: Params, *, today: date | None = None) -> None:
    """Write one period as Parquet, sorted by its keys, or write nothing and report the breaches."""
    if period not in params.data.periods:
        raise UserError(f"{period} is not in data.periods of params.yaml; it lists {', '.join(params.data.periods)}")
    contract.hold(period, contract.not_in_future(period, today or date.today()))
    rows = ingest.fetch(period, Sources(params.data.sources))
    limits = params.data.rows
    contract.hold(period, contract.row_count(rows, limits.min, limits.max))
    rows = contract.check(schema.Row, rows, period)
    write_parquet(rows.sort_values(contract.keys(schema.Row), kind="stable"), path(period))


def refuse_stale(periods: list[str], folder: Path = FOLDER) -> None:
    """Raise UserError where the folder holds a period that params.yaml no longer lists."""
    if found := stale(periods, folder):
        raise UserError(f"{found[0]} is not in data.periods, and leaving it would change the lock; run make pipeline")
