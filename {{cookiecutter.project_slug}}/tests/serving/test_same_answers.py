"""The service, the batch path and scikit-learn give the same score, whatever a row holds that the contract allows."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import example
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.pipeline import Pipeline

from ml.pipeline import contract, estimators, export
from ml.serving.request import Field, Scorer

FAMILIES = {"boosting": {"max_iter": 12, "min_samples_leaf": 20}, "forest": {"n_estimators": 8}, "linear": {}}
LARGEST = float(np.finfo(np.float32).max)


class Sides(NamedTuple):
    scorer: Scorer
    model: Pipeline


@pytest.fixture(scope="module", params=[(task, name) for task in example.TARGETS for name in FAMILIES], ids="-".join)
def sides(request: pytest.FixtureRequest, rows: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Sides:
    """The service's scorer and the fitted pipeline that its file was made of."""
    task, family = request.param
    table, truth = example.inputs(rows), rows[example.TARGETS[task]].to_numpy(dtype=int if task == "binary" else None)
    with pytest.MonkeyPatch.context() as patch:
        example.install(patch)
        model = estimators.pipeline(family, task, FAMILIES[family], seed=0).fit(table, truth)
    fields = contract.request_fields(example.Request)
    agreement: dict[str, Any] = {"version": 1, "task": task, "target": example.TARGETS[task], "fields": fields}
    if task != "regression":
        agreement |= {"classes": [str(name) for name in model.classes_], "threshold": 0.5}
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    path.write_bytes(export.with_metadata(export.convert(model, table.head(1)), {"contract": agreement}))
    # Without examples, the first prediction of the example's fields is one of missing values.
    return Sides(Scorer(path), model)


def request_rows() -> st.SearchStrategy[dict[str, Any]]:
    """Rows that keep the contract: gaps, unknown plants, the ends of every range, huge and tiny numbers."""
    gaps = st.sampled_from(["leave out", None, float("nan")])
    ends = st.sampled_from([-60, -0.0, 0, 1e-45, 1e-30, 1e6, 1e30, LARGEST])
    return st.fixed_dictionaries(
        {
            "plant": st.sampled_from(["north", "port"]) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
            "material": st.from_regex(r"\A[A-Z]{2}[0-9]\Z"),
            "minute": st.sampled_from([0, 1439, 719.0]) | st.integers(0, 1439),
            "length": st.sampled_from([1, 10_000]) | st.integers(1, 10_000),
            "load": st.sampled_from([0, 100, 1e-45, 99.99999999]) | st.floats(0, 100),
            "temperature": gaps | ends | st.floats(-60, 60),
            "age": gaps | st.sampled_from([0, 99.99999]) | st.floats(0, 99),
        }
    ).map(lambda row: {name: value for name, value in row.items() if value != "leave out"})


def table_of(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return the rows as the batch path reads them from a file."""
    columns = list(example.Request.to_schema().columns)
    text = dict.fromkeys(example.TEXT, "str")
    numbers = dict.fromkeys(example.NUMBERS, float)
    return example.inputs(pd.DataFrame(rows, columns=columns).astype(text | numbers))


@pytest.mark.filterwarnings("ignore")
@given(rows=st.lists(request_rows(), min_size=1, max_size=6))
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_service_batch_and_scikit_learn_agree(sides: Sides, rows: list[dict[str, Any]]) -> None:
    sent = json.loads(json.dumps(rows))
    columns, problems, _ = sides.scorer.contract.columns(sent)
    assert problems == []
    served = sides.scorer.score(columns)

    table = table_of(rows)
    batch = export.scores(sides.scorer.session, table)
    wanted = export.expected(sides.model, table)

    assert np.array_equal(served.astype(float).reshape(batch.shape), batch)
    assert export.disagreement(batch, wanted)[0] == 0
    one_by_one = [sides.scorer.score(sides.scorer.contract.columns([row]).columns) for row in sent]
    # A sum of products may end otherwise when it is computed alone.
    assert export.disagreement(np.concatenate(one_by_one), served.astype(float))[0] == 0


@given(values=st.lists(st.one_of(st.none(), st.booleans(), st.integers(-3, 12), st.floats(), st.text(max_size=2))))
@pytest.mark.parametrize("kind", ["string", "integer", "number", "boolean"])
@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize("checks", [[], [{"check": "in_range", "min_value": 0, "max_value": 9}]], ids=["any", "some"])
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_column_looked_at_as_a_whole_is_what_its_values_are(
    kind: str, optional: bool, checks: list[dict[str, Any]], values: list[Any]
) -> None:
    entry = {"name": "x", "type": kind, "optional": optional, "checks": checks if kind in ("integer", "number") else []}
    field = Field.parse(entry | ({"categories": ["a", "b"]} if kind == "string" else {}))
    values = values + values[:1] * 8

    whole, single = [], []
    column, unknown = field.column(values, whole)
    parts = [field.column([value], single) for value in values]

    assert [(p.field, p.rule) for p in whole] == [(p.field, p.rule) for p in single]
    assert unknown == sum(count for _, count in parts)
    expected = np.concatenate([part for part, _ in parts]) if parts else column
    assert np.array_equal(column, expected, equal_nan=kind != "string")


@pytest.mark.parametrize("kind", ["string", "integer", "number", "boolean"])
def test_many_good_values_of_one_kind_make_the_column_that_single_ones_make(kind: str) -> None:
    values = {
        "string": ["a", "b", "ü", None] * 5,
        "integer": [0, 9, 3, None] * 5,
        "number": [0.1, 9, 2**-140, None] * 5,
        "boolean": [True, False, True, None] * 5,
    }[kind]
    field = Field.parse({"name": "x", "type": kind, "optional": True, "checks": []})

    found = field._at_once(values)

    assert found is not None
    single = np.concatenate([field.column([value], [])[0] for value in values])
    assert np.array_equal(found[0], single, equal_nan=kind != "string")
    assert found[0].dtype == single.dtype
