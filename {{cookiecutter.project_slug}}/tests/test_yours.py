"""The four files that are yours, whatever they say: what the other parts of the project take for granted of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ml.pipeline import contract, estimators, export, features, params, schema
from ml.serving.request import Contract

PARAMS = params.read(Path(__file__).parents[1] / "params.yaml")
FIELDS = contract.request_fields(schema.Request)
FAST = {"forest": {"n_estimators": 5}, "boosting": {"max_iter": 5}}


def read_by_the_service(rows: list[dict[str, Any]]) -> Any:
    entries = {"version": 1, "task": "regression", "target": PARAMS.data.target, "fields": FIELDS}
    return Contract.parse(entries).columns(rows)


def limits(entry: dict[str, Any]) -> tuple[float, float]:
    """Return a range around the example, within the limits that the field's checks set."""
    example = entry["example"] if isinstance(entry["example"], int | float) else 0
    low = [check["min_value"] for check in entry["checks"] if "min_value" in check]
    high = [check["max_value"] for check in entry["checks"] if "max_value" in check]
    return max([example - 100, *low]), min([example + 100, *high])


def some_rows(count: int) -> pd.DataFrame:
    """Return rows of the request's types that roughly keep its limits, a tenth of what may be missing missing."""
    random = np.random.default_rng(0)
    columns = {}
    for entry in FIELDS:
        dtype = str(schema.Request.to_schema().columns[entry["name"]].dtype)
        match entry["type"]:
            case "string":
                values = random.choice([*entry.get("categories", []), str(entry["example"] or "a")], count)
            case "boolean":
                values = random.uniform(size=count) < 0.5
            case kind:
                values = random.uniform(*limits(entry), count)
                values = np.ceil(values) if kind == "integer" else values
        column = pd.Series(values).astype(dtype)
        gaps = entry["optional"] and entry["type"] in ("string", "number")
        columns[entry["name"]] = column.mask(random.uniform(size=count) < 0.1) if gaps else column
    return pd.DataFrame(columns)


def targets(count: int) -> np.ndarray:
    draw = np.random.default_rng(1).permutation(count)
    return {"binary": draw % 2, "multiclass": np.array(["a", "b", "c"], dtype=object)[draw % 3]}.get(
        PARAMS.task, draw / count
    )


def test_the_target_and_the_group_are_columns_of_a_row_and_no_input_is_known_only_after_the_event() -> None:
    columns = schema.Row.to_schema().columns

    assert PARAMS.data.target in columns
    assert PARAMS.split.group is None or PARAMS.split.group in columns
    assert {field["name"] for field in FIELDS} <= set(columns)
    assert {field["name"] for field in FIELDS} & {PARAMS.data.target, *PARAMS.split.leaks} == set()


def test_the_examples_of_the_fields_make_a_row_that_the_service_takes() -> None:
    found = read_by_the_service([{field["name"]: field["example"] for field in FIELDS}])

    assert found.problems == []
    assert found.unknown == {}


def test_the_model_learns_from_the_inputs_that_the_service_makes_of_the_same_rows() -> None:
    rows = some_rows(50)
    records = [
        {key: None if value is pd.NA or value != value else value for key, value in row.items()}
        for row in rows.astype(object).to_dict("records")
    ]

    found = features.inputs(rows)

    served = read_by_the_service(records).columns
    assert set(found) == set(served)
    for name, column in served.items():
        assert found[name].dtype == column.dtype
        assert [None if value != value else value for value in found[name]] == [
            None if value != value else value for value in column[:, 0]
        ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted({PARAMS.train.estimator, *PARAMS.tune.estimators}))
def test_each_estimator_in_use_is_served_as_it_is_fitted_on_your_features(name: str) -> None:
    table = features.inputs(some_rows(400))
    settings = PARAMS.train.settings if name == PARAMS.train.estimator else {}
    model = estimators.pipeline(name, PARAMS.task, {**settings, **FAST.get(name, {})}, 0).fit(table, targets(400))

    scores, *_ = export.prove(model, export.convert(model, table.head(1)), table)

    assert len(scores) == 400
    assert np.isfinite(scores).all()
