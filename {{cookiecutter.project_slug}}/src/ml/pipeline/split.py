"""Parts the labelled rows into what the model learns from and what it is judged on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from ml.errors import UserError
from ml.pipeline import contract, periods, schema
from ml.pipeline.params import Params
from ml.pipeline.tables import rounded, write_json, write_parquet

TRAIN = Path("data/split/train.parquet")
HOLDOUT = Path("data/split/holdout.parquet")
REPORT = Path("reports/split/rows.json")


def refuse_leaks(columns: list[str], target: str, leaks: list[str]) -> None:
    """Raise UserError where a column that is known only after the event is an input."""
    found = [name for name in columns if name in {target, *leaks}]
    if found:
        raise UserError(
            f"{', '.join(found)}: known only after the event, so a model must not learn from it; "
            "take it out of Request in src/ml/pipeline/schema.py (or out of split.leaks in params.yaml)"
        )


def share(values: pd.DataFrame, seed: int) -> pd.Series:
    """Return a number in [0, 1) for each row, the same in every run and whatever rows stand beside it."""
    hashed = pd.util.hash_pandas_object(values.assign(seed=str(seed)), index=False)
    # Hashed twice, since the draws of two seeds are not independent after once.
    return pd.Series(pd.util.hash_array(hashed.to_numpy()) / 2**64, index=values.index)


def in_holdout(rows: pd.DataFrame, params: Params, keys: list[str]) -> pd.Series:
    """Return a mask, True where a row belongs to the holdout: the newest periods, or a share of groups or rows."""
    split = params.split
    if split.by == "time":
        newest = sorted(params.data.periods)[-int(split.holdout) :]
        return rows["period"].isin(newest)
    if split.by == "group" and split.group not in rows:
        raise UserError(f"split.group = {split.group!r} is not a column; choose one of {', '.join(rows.columns)}")
    columns = [split.group] if split.by == "group" else keys
    return share(rows[columns], split.seed) < split.holdout


def refuse_overlap(train: pd.DataFrame, holdout: pd.DataFrame, columns: list[str], what: str) -> None:
    """Raise UserError where both sides share values of the columns."""
    both = train[columns].drop_duplicates().merge(holdout[columns].drop_duplicates(), on=columns)
    if len(both):
        first = ", ".join(f"{name}={value}" for name, value in both.iloc[0].items())
        raise UserError(f"{len(both)} {what} stand in train and in holdout (first: {first}); remove the duplicates")


def summary(rows: pd.DataFrame, target: str, task: str) -> dict[str, Any]:
    """Return the rows, the periods and the mean (or class counts) of the target."""
    values = rows[target]
    described = (
        {"classes": {str(k): int(v) for k, v in values.value_counts().sort_index().items()}}
        if task == "multiclass"
        else {"target_mean": values.mean()}
    )
    return rounded({"rows": len(rows), "periods": sorted(rows["period"].unique()), **described})


def run(params: Params) -> None:
    """Write train and holdout in the order of the keys, and how many rows each has."""
    target = params.data.target
    row = schema.Row.to_schema()
    refuse_leaks(list(schema.Request.to_schema().columns), target, params.split.leaks)
    periods.refuse_stale(params.data.periods)
    if target not in row.columns:
        raise UserError(f"data.target = {target!r} is not a column of Row; choose one of {', '.join(row.columns)}")
    if "period" in row.columns:
        raise UserError("Row has a column named period, the name that split gives to the period; rename yours")
    parts = {period: periods.read(period) for period in sorted(params.data.periods)}
    rows = pd.concat([frame.assign(period=period) for period, frame in parts.items()], ignore_index=True)
    labelled = rows[rows[target].notna()]
    keys = contract.keys(schema.Row)
    mask = in_holdout(labelled, params, keys)
    train, holdout = labelled[~mask], labelled[mask]
    for side, name in ((train, "train"), (holdout, "holdout")):
        if side.empty:
            raise UserError(
                f"{name} has no labelled row; change split.holdout or list more data.periods in params.yaml"
            )
    refuse_overlap(train, holdout, keys, "rows" if row.unique is None else "keys")
    if params.split.by == "group":
        refuse_overlap(train, holdout, [params.split.group], "groups")
    write_parquet(train, TRAIN)
    write_parquet(holdout, HOLDOUT)
    report = {
        "train": summary(train, target, params.task),
        "holdout": summary(holdout, target, params.task),
        "without_label": {period: int(frame[target].isna().sum()) for period, frame in parts.items()},
    }
    write_json(report, REPORT)
