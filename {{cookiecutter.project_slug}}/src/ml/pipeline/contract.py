"""Holds data to its pandera schema, and gives the service the same rules as plain data."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandera.errors
import pandera.pandas as pa

from ml.errors import ContractError, UserError
from ml.pipeline.tables import write_json

if TYPE_CHECKING:
    import pandas as pd

REPORTS = Path("reports/contract")
SHOWN = 20
BUILT_IN = {
    "equal_to",
    "not_equal_to",
    "greater_than",
    "greater_than_or_equal_to",
    "less_than",
    "less_than_or_equal_to",
    "in_range",
    "isin",
    "notin",
    "str_matches",
    "str_contains",
    "str_startswith",
    "str_endswith",
    "str_length",
}
WORDS = {
    "column_in_dataframe": "a column is missing",
    "column_in_schema": "a column is not in the schema",
    "not_nullable": "values are missing",
    "field_uniqueness": "values are not unique",
}
REQUEST_TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}


@dataclass(frozen=True)
class Breach:
    """One rule that a table breaks: how many rows do, and the first of them."""

    table: str
    column: str
    check: str
    rows: int
    first: list[Any]

    def sentence(self) -> str:
        what = f"{self.table}.{self.column}" if self.column else self.table
        rule = f"{what}: {textwrap.shorten(self.check, 80, placeholder=' …')}"
        if not self.column and not self.first:
            return rule
        seen = f", first {self.first[0]['value']!r}" if self.first and "value" in self.first[0] else ""
        return f"{rule} ({self.rows} rows{seen})"


def breaches(model: type[pa.DataFrameModel], frame: pd.DataFrame) -> list[Breach]:
    """Return every rule of the schema that the frame breaks, null shares included; empty where it holds.

    Raises UserError for a schema that converts, since what is checked must be what is written.
    """
    table, schema = model.__name__, model.to_schema()
    if schema.coerce or any(column.coerce for column in schema.columns.values()):
        raise UserError(f"{table}: coerce checks other values than are written; remove it and convert in ingest.py")
    frame = frame.reset_index(drop=True)
    try:
        model.validate(frame, lazy=True)
        found = []
    except pandera.errors.SchemaErrors as error:
        cases = error.failure_cases
        # Pandera lists rows that share their keys once a key.
        shared = cases["check"] == "multiple_fields_uniqueness"
        cases.loc[shared, "column"] = table
        cases.loc[shared, "check"] = f"rows share {', '.join(schema.unique or [])}"
        groups = cases.groupby(["column", "check"], sort=False, dropna=False)
        found = [_breach(table, str(column), str(check), cases, frame) for (column, check), cases in groups]
        # A missing column and a wrong value come first: either is often why rows share their keys.
        found.sort(key=lambda breach: (breach.check.startswith("rows share"), bool(breach.column)))
    return found + list(_null_shares(model, frame))


def _breach(table: str, column: str, check: str, cases: pd.DataFrame, frame: pd.DataFrame) -> Breach:
    # Pandera names the schema where a rule is about the whole frame and gives the column as the failing case.
    column, check = "" if column == table else column, _worded(check)
    indexed = cases.dropna(subset=["index"])
    if indexed.empty:
        value = cases["failure_case"].iloc[0]
        joined = f"{check} {value}" if check.endswith(" is") else f"{check}: {value}"
        return Breach(table, column, joined, len(frame), [])
    unique = indexed.drop_duplicates("index")
    rows = frame.loc[unique["index"].iloc[:SHOWN]].astype(object)
    values = unique["failure_case"].iloc[:SHOWN] if column else [None] * len(rows)
    first = [
        {**({"value": _plain(value)} if column else {}), "row": {k: _plain(v) for k, v in row.items()}}
        for value, row in zip(values, rows.to_dict("records"), strict=True)
    ]
    return Breach(table, column, check, len(unique), first)


def _worded(check: str) -> str:
    kind = re.fullmatch(r"dtype\('(.+)'\)", check)
    return f"type must be {kind[1]}, is" if kind else WORDS.get(check, check)


def _plain(value: Any) -> Any:
    if value is None or value != value:
        return None
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, bool | int | float | str) else str(value)


def _null_shares(model: type[pa.DataFrameModel], frame: pd.DataFrame) -> Iterable[Breach]:
    for name, column in model.to_schema().columns.items():
        if not column.nullable or name not in frame:
            continue
        limit = (column.metadata or {}).get("max_null_share", 1.0)
        missing = frame[name].isna()
        share = float(missing.mean()) if len(frame) else 0.0
        # A column without a single value carries no information, whatever share is allowed.
        if share > limit or (len(frame) and share == 1.0):
            yield Breach(model.__name__, name, f"missing in a share of {share:.3f}, at most {limit}", missing.sum(), [])


def row_count(frame: pd.DataFrame, least: int, most: int) -> list[Breach]:
    """Return a breach where the number of rows is outside the limits, both ends allowed."""
    if least <= len(frame) <= most:
        return []
    return [Breach("Row", "", f"{len(frame)} rows, must be {least} to {most} as data.rows says", len(frame), [])]


def not_in_future(period: str, today: date) -> list[Breach]:
    """Return a breach where a dated period begins after `today`."""
    if period[0].isdigit() and period > today.isoformat():
        return [Breach("period", "", f"{period} lies in the future", 0, [])]
    return []


def hold(period: str, found: list[Breach], reports: Path = REPORTS) -> None:
    """Report breaches in `reports/contract/<period>.json` and raise; remove an old report where there are none.

    Raises ContractError with one line: the first breach, how many more, and where the rest stands.
    """
    report = reports / f"{period}.json"
    if not found:
        report.unlink(missing_ok=True)
        return
    write_json({"period": period, "breaches": [_countable(breach) for breach in found]}, report)
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    raise ContractError(
        f"{period} breaks the contract: {found[0].sentence()}{more}; see {report}, "
        "then mend the source, or change the rule in src/ml/pipeline/schema.py or params.yaml"
    )


def _countable(breach: Breach) -> dict[str, Any]:
    return {**asdict(breach), "rows": int(breach.rows)}


def check(model: type[pa.DataFrameModel], frame: pd.DataFrame, period: str) -> pd.DataFrame:
    """Return the frame with the schema's columns in their order; raise ContractError where it breaks a rule."""
    hold(period, breaches(model, frame))
    return frame[list(model.to_schema().columns)]


def keys(model: type[pa.DataFrameModel]) -> list[str]:
    """Return the columns that name a row: the schema's unique ones, else all."""
    schema = model.to_schema()
    return list(schema.unique or schema.columns)


def request_fields(model: type[pa.DataFrameModel]) -> list[dict[str, Any]]:
    """Return the fields of a request: name, type, whether optional, built-in checks by name and values.

    An `isin` on a string becomes `categories`: training data must keep to them, the service scores and counts others.
    Raises UserError for a rule that the service cannot apply, by field and name.
    """
    schema = model.to_schema()
    if frame_wide := [c.name or type(c).__name__ for c in schema.checks or []] + list(schema.unique or []):
        raise UserError(
            f"{model.__name__}: {frame_wide[0]} is a rule over the whole frame, which a single request cannot be "
            "held to; move it to Row in src/ml/pipeline/schema.py"
        )
    return [_field(model.__name__, name, column) for name, column in schema.columns.items()]


def _field(table: str, name: str, column: pa.Column) -> dict[str, Any]:
    kind = next((v for k, v in REQUEST_TYPES.items() if str(column.dtype).lower().startswith(k)), None)
    if kind is None or column.unique:
        what = "unique" if column.unique else f"of type {column.dtype}"
        raise UserError(
            f"{table}.{name} is {what}, which a request cannot hold; use str, int, float or bool and no unique "
            "in src/ml/pipeline/schema.py"
        )
    rules = [_rule(table, name, rule) for rule in column.checks]
    metadata = column.metadata or {}
    categories = next((r["allowed_values"] for r in rules if r["check"] == "isin" and kind == "string"), None)
    return {
        "name": name,
        "type": kind,
        "optional": column.nullable,
        "description": metadata.get("description", ""),
        "example": metadata.get("example"),
        **({"personal": True} if metadata.get("personal") else {}),
        **({"categories": categories} if categories is not None else {}),
        "checks": [r for r in rules if r["check"] != "isin" or categories is None],
    }


def _rule(table: str, name: str, rule: pa.Check) -> dict[str, Any]:
    custom = rule.name not in BUILT_IN or not rule.statistics
    flags = [value.flags & ~re.UNICODE for value in (rule.statistics or {}).values() if isinstance(value, re.Pattern)]
    why = (
        f"the check {rule.name or rule} is not built into pandera"
        if custom
        else f"{rule.name} takes regular expression flags from outside the pattern"
        if any(flags)
        else f"{rule.name} is softened by ignore_na or raise_warning"
        if rule.raise_warning or not rule.ignore_na
        else ""
    )
    if why:
        raise UserError(
            f"{table}.{name}: {why}, so the service cannot apply it as pandera does; "
            "use a plain built-in check, or move it to Row in src/ml/pipeline/schema.py"
        )
    return {"check": rule.name, **{k: _jsonable(v) for k, v in rule.statistics.items()}}


def _jsonable(value: Any) -> Any:
    if isinstance(value, re.Pattern):
        return value.pattern
    return list(value) if isinstance(value, list | tuple | set | frozenset) else value
