from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pandera.errors
import pandera.pandas as pa
import pytest
from pandera.typing import Series
from small import ENVIRONMENT, contract, small_model

from ml.errors import UserError
from ml.pipeline.contract import request_fields
from ml.pipeline.schema import Request
from ml.serving.request import CHECKS, Checked, Contract, Scorer

GOOD = {"carrier": "UA", "distance": 1000, "temp": 30.5}


def checked(*rows: Any) -> Checked:
    return Contract.parse(contract()).columns(list(rows))


def of_one_field(entry: dict[str, Any]) -> Contract:
    whole = {"name": "x", "optional": False, "description": "", "example": None, "checks": [], **entry}
    return Contract.parse({**contract("regression"), "fields": [whole]})


def test_good_rows_become_the_columns_of_the_model() -> None:
    columns, problems, unknown = checked(GOOD, {"carrier": "AA", "distance": 5.0})

    assert problems == []
    assert unknown == {}
    assert list(columns) == ["carrier", "distance", "temp"]
    assert columns["carrier"].tolist() == [["UA"], ["AA"]]
    assert columns["distance"].dtype == columns["temp"].dtype == np.float32
    assert columns["distance"].tolist() == [[1000], [5]]
    assert columns["temp"][0, 0] == 30.5
    assert math.isnan(columns["temp"][1, 0])


def test_a_missing_optional_string_is_empty_and_not_checked() -> None:
    agreement = of_one_field(
        {"type": "string", "optional": True, "categories": ["a"], "checks": [{"check": "str_matches", "pattern": "a"}]}
    )

    columns, problems, unknown = agreement.columns([{}, {"x": None}])

    assert columns["x"].tolist() == [[""], [""]]
    assert (problems, unknown) == ([], {})


@pytest.mark.parametrize(
    ("change", "field", "rule"),
    [
        pytest.param({"carrier": None}, "carrier", "required", id="null"),
        pytest.param({"distance": float("nan")}, "distance", "required", id="nan-is-missing"),
        pytest.param({"carrier": 5}, "carrier", "must be text", id="number-for-text"),
        pytest.param({"carrier": "\ud800"}, "carrier", "must be text", id="half-a-character"),
        pytest.param({"distance": 5.5}, "distance", "must be a whole number of at most 64 bits", id="fraction"),
        pytest.param({"distance": True}, "distance", "must be a whole number of at most 64 bits", id="boolean"),
        pytest.param({"distance": "5"}, "distance", "must be a whole number of at most 64 bits", id="quoted"),
        pytest.param({"distance": 10**30}, "distance", "must be a whole number of at most 64 bits", id="huge"),
        pytest.param({"distance": [1]}, "distance", "must be a whole number of at most 64 bits", id="list"),
        pytest.param({"distance": 0}, "distance", "must be >= 1 and <= 10000", id="below"),
        pytest.param({"distance": 10_001}, "distance", "must be >= 1 and <= 10000", id="above"),
        pytest.param({"temp": -60.01}, "temp", "must be >= -60", id="too-cold"),
        pytest.param({"temp": True}, "temp", "must be a finite number within ±3.4e38", id="boolean-for-number"),
        pytest.param({"temp": float("inf")}, "temp", "must be a finite number within ±3.4e38", id="infinite"),
        pytest.param({"temp": 10**400}, "temp", "must be a finite number within ±3.4e38", id="beyond-float"),
        pytest.param({"temp": 3.5e38}, "temp", "must be a finite number within ±3.4e38", id="beyond-float32"),
        pytest.param({"tmp": 1}, "tmp", "unknown field, did you mean temp?", id="misspelt"),
        pytest.param({"zzzzzzz": 1}, "zzzzzzz", "unknown field", id="unknown"),
    ],
)
def test_a_bad_value_is_refused_by_row_field_and_rule(change: dict[str, Any], field: str, rule: str) -> None:
    problems = checked(GOOD, {**GOOD, **change}).problems

    assert [(problem.row, problem.field, problem.rule) for problem in problems] == [(1, field, rule)]


@pytest.mark.parametrize("row", [None, 3, "row", [GOOD]], ids=["null", "number", "text", "list"])
def test_a_row_that_is_no_object_is_one_problem(row: Any) -> None:
    problems = checked(GOOD, row, {"carrier": "UA"}).problems

    assert [(problem.row, problem.field) for problem in problems] == [(1, ""), (2, "distance")]


@pytest.mark.parametrize("value", [1, 10_000, 5.0, -0.0 + 1], ids=["least", "most", "float", "one"])
def test_a_whole_number_within_its_range_is_accepted(value: float) -> None:
    assert checked({**GOOD, "distance": value}).problems == []


def test_unknown_categories_are_scored_and_counted() -> None:
    columns, problems, unknown = checked(GOOD, {**GOOD, "carrier": "ZZ"}, {**GOOD, "carrier": "YY"})

    assert problems == []
    assert unknown == {"carrier": 2}
    assert columns["carrier"].tolist() == [["UA"], ["ZZ"], ["YY"]]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"version": 2}, "contract version 2, must be 1: run make pipeline"),
        ({"fields": [{"name": "x", "type": "date", "checks": []}]}, "contract: x has the unknown type date"),
        (
            {"fields": [{"name": "x", "type": "string", "checks": [{"check": "is_nice"}]}]},
            "contract: x has the unknown check is_nice",
        ),
    ],
    ids=["version", "type", "check"],
)
def test_a_contract_that_this_code_does_not_know_is_refused(broken: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        Contract.parse({**contract(), **broken})


class EveryCheck(pa.DataFrameModel):
    """Each built-in check at least once, on each type that takes it."""

    equal: Series[int] = pa.Field(eq=5)
    unequal: Series[float] = pa.Field(ne=0.5)
    greater: Series[float] = pa.Field(gt=0)
    at_least: Series[int] = pa.Field(ge=-3)
    less: Series[float] = pa.Field(nullable=True, lt=1e3)
    at_most: Series[float] = pa.Field(le=0.1)
    closed: Series[int] = pa.Field(in_range={"min_value": -1, "max_value": 3})
    open: Series[float] = pa.Field(
        nullable=True, in_range={"min_value": 0, "max_value": 1, "include_min": False, "include_max": False}
    )
    half_open: Series[float] = pa.Field(in_range={"min_value": 0, "max_value": 1, "include_max": False})
    chosen: Series[int] = pa.Field(isin=[1, 2, 7])
    category: Series[str] = pa.Field(isin=["a", "b"])
    forbidden: Series[str] = pa.Field(notin=["a", ""])
    forbidden_number: Series[int] = pa.Field(notin=[0, 3])
    matching: Series[str] = pa.Field(str_matches=r"[A-Z]\d|x$")
    anchored: Series[str] = pa.Field(nullable=True, str_matches=r"^[A-Z0-9]{3}$")
    either: Series[str] = pa.Field(str_matches=r"^a|A")
    containing: Series[str] = pa.Field(str_contains=r"b+|\s")
    starting: Series[str] = pa.Field(str_startswith="ab")
    ending: Series[str] = pa.Field(nullable=True, str_endswith=".")
    bounded: Series[str] = pa.Field(str_length={"min_value": 2, "max_value": 3})
    short: Series[str] = pa.Field(str_length={"max_value": 2})
    exact: Series[str] = pa.Field(str_length={"exact_value": 3})
    named: Series[str] = pa.Field(eq="ab", ne="b")
    flag: Series[bool]
    true: Series[bool] = pa.Field(eq=True)


ATOMS = [
    "",
    "a",
    "b",
    "ab",
    "abb.",
    "ABC",
    "JFK",
    "A1",
    "x",
    "xy",
    "ax",
    "-A1",
    "É9z",
    "١٢٣",
    "ABC\n",
    " ",
    ".",
    "😀a",
    "😀😀",
    "ſ",
]


FAR = 1e30


def interesting(entry: dict[str, Any], source: random.Random) -> Callable[[], Any]:
    """Return a source of values for a field: its limits, their neighbours, and what lies between and beyond."""
    limits = [v for check in entry["checks"] for k, v in check.items() if isinstance(v, int | float) and k[:3] != "inc"]
    chosen = [v for check in entry["checks"] for v in check.get("allowed_values", check.get("forbidden_values", []))]
    limits += [entry["example"], *chosen]
    edges = [float(v) for v in limits if isinstance(v, int | float) and abs(v) < FAR] or [0.0]
    if entry["type"] == "boolean":
        return lambda: source.random() < 0.8
    if entry["type"] == "string":
        texts = [v for check in entry["checks"] for v in check.values() if isinstance(v, str)]
        examples = [v for v in [entry["example"], *chosen] if isinstance(v, str)]
        return lambda: source.choice([*ATOMS, *texts, *examples, *entry.get("categories", [])])
    if entry["type"] == "integer":
        return lambda: int(source.choice(edges)) + source.choice([0, 0, 0, 1, -1, source.randint(-2000, 2000)])
    near = [
        lambda edge: edge,
        lambda edge: math.nextafter(edge, math.inf),
        lambda edge: math.nextafter(edge, -math.inf),
    ]
    far = [
        lambda edge: source.uniform(-2 * abs(edge) - 1, 2 * abs(edge) + 1),
        lambda edge: source.choice([FAR, -FAR]),
    ]
    return lambda: source.choice(near * 3 + far)(source.choice(edges))


def as_typed(values: list[Any], dtype: str) -> list[Any]:
    """Return the values as a column of the type holds them: a short integer or float has other neighbours."""
    kind = dtype.lower()
    if kind.startswith("int"):
        limits = np.iinfo(kind)
        return [min(max(value, limits.min), limits.max) for value in values]
    return [float(np.dtype(kind).type(value)) for value in values] if kind.startswith("float") else values


def conforming(name: str, model: type[pa.DataFrameModel], values: list[Any]) -> list[Any]:
    """Return those of the values that pandera accepts in this one column."""
    column = model.to_schema().columns[name]
    frame = pd.DataFrame({name: pd.Series(values, dtype=str(column.dtype))})
    try:
        pa.DataFrameSchema({name: column}).validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as error:
        return frame.drop(index=error.failure_cases["index"].dropna().unique())[name].tolist()
    return values


def random_rows(model: type[pa.DataFrameModel], fields: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return rows that mostly keep to the schema, with a bad value about every other row."""
    source = random.Random(20130101)
    columns = {}
    for entry in fields:
        draw = interesting(entry, source)
        drawn = as_typed([draw() for _ in range(count)], str(model.to_schema().columns[entry["name"]].dtype))
        good = conforming(entry["name"], model, sorted(set(drawn)))
        share = 0.7 / len(fields)
        columns[entry["name"]] = [
            None if source.random() < share / 2 and entry["type"] not in ("integer", "boolean") else
            value if source.random() < share or not good else source.choice(good)
            for value in drawn
        ]  # fmt: skip
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def refused_by_pandera(model: type[pa.DataFrameModel], rows: list[dict[str, Any]]) -> set[tuple[int, str]]:
    """Return the rows and fields that one lazy validation of the whole frame names; unknown categories excepted."""
    schema = model.to_schema()
    dtypes = {name: str(column.dtype) for name, column in schema.columns.items()}
    frame = pd.DataFrame({name: pd.Series([row[name] for row in rows], dtype=dtypes[name]) for name in dtypes})
    try:
        schema.validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as error:
        cases = error.failure_cases
        assert cases["index"].notna().all(), cases[cases["index"].isna()]
        texts = [name for name, dtype in dtypes.items() if dtype.startswith("str")]
        cases = cases[~(cases["column"].isin(texts) & cases["check"].str.startswith("isin"))]
        return set(zip(cases["index"].astype(int), cases["column"], strict=True))
    return set()


def refused_by_both(model: type[pa.DataFrameModel]) -> tuple[list[dict[str, Any]], set[tuple[int, str]]]:
    """Return the fields, and the rows and fields that contract and pandera both refuse of 4,000 random rows."""
    fields = json.loads(json.dumps(request_fields(model)))
    rows = random_rows(model, fields, 4000)

    problems = Contract.parse({**contract("regression"), "fields": fields}).columns(rows).problems

    expected = refused_by_pandera(model, rows)
    assert {(problem.row, problem.field) for problem in problems} == expected
    return fields, expected


def test_the_contract_refuses_the_rows_of_your_request_that_pandera_refuses() -> None:
    refused_by_both(Request)


def test_the_contract_refuses_the_rows_that_pandera_refuses_by_every_check() -> None:
    fields, expected = refused_by_both(EveryCheck)

    bad = len({row for row, _ in expected})
    assert 800 < bad < 3200, "the rows must try both answers"
    assert {field for _, field in expected} >= {
        entry["name"] for entry in fields if entry["checks"] or (not entry["optional"] and entry["type"] == "number")
    }


def test_the_schema_with_every_check_has_every_check() -> None:
    used = {check["check"] for entry in request_fields(EveryCheck) for check in entry["checks"]}

    assert used == set(CHECKS)


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("binary", {"score": pytest.approx(0.908877, abs=1e-6), "decision": True}),
        (
            "multiclass",
            {
                "label": "late",
                "probabilities": {
                    "early": pytest.approx(0.091123, abs=1e-6),
                    "late": pytest.approx(0.908877, abs=1e-6),
                },
            },
        ),
        ("regression", {"value": pytest.approx(2.3)}),
    ],
)
def test_each_task_answers_in_its_own_words(task: str, answer: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(small_model(contract(task)))
    scorer = Scorer(tmp_path / "model.onnx")

    columns = scorer.contract.columns([{**GOOD, "temp": 30}]).columns

    assert scorer.predictions(scorer.score(columns)) == [answer]


def test_a_score_that_is_not_finite_is_null(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(small_model(contract()))
    scorer = Scorer(tmp_path / "model.onnx")

    found = scorer.predictions(np.array([[np.nan, np.nan], [0.25, 0.75]], np.float32))

    assert found == [{"score": None, "decision": False}, {"score": 0.75, "decision": True}]


def test_a_decision_is_taken_at_the_threshold_itself(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(small_model(contract()))
    scorer = Scorer(tmp_path / "model.onnx")

    found = scorer.predictions(np.array([[0.5, 0.5], [0.5000001, 0.4999999]], np.float32))

    assert [answer["decision"] for answer in found] == [True, False]


def test_a_model_with_other_inputs_than_its_contract_is_refused(tmp_path: Path) -> None:
    agreement = contract()
    (tmp_path / "model.onnx").write_bytes(small_model(agreement))
    other = Contract.parse({**agreement, "fields": agreement["fields"][:2]})

    with pytest.raises(UserError, match="not its contract's fields"):
        Scorer(tmp_path / "model.onnx", other)


def test_a_model_that_is_not_the_one_of_its_contract_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(small_model(contract()))
    other = Contract.parse({**contract(), "model": {"sha256": "0" * 64}})

    with pytest.raises(UserError, match=r"is not the model of its contract\.json"):
        Scorer(tmp_path / "model.onnx", other)


def test_a_truncated_model_is_refused_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(small_model(contract())[:-300])

    with pytest.raises(UserError, match="is not a model of this project") as error:
        Scorer(tmp_path / "model.onnx")

    assert "\n" not in str(error.value)


def test_checking_and_scoring_import_neither_pandas_nor_its_company(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(small_model(contract()))
    program = f"""
import sys, pathlib
from ml.serving.request import Scorer
scorer = Scorer(pathlib.Path({str(tmp_path / "model.onnx")!r}))
scorer.score(scorer.contract.columns([{GOOD}]).columns)
print(sorted({{"pandas", "sklearn", "mlflow", "pandera", "bentoml", "onnx", "numpy"}} & set(sys.modules)))
"""

    found = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )

    assert (found.stdout.strip(), found.stderr) == ("['numpy']", "")


def test_scoring_reports_to_nobody(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(small_model(contract()))
    home = tmp_path / "home"
    home.mkdir()
    # ONNX Runtime is silent in CI by itself; otherwise it keeps what it will send below HOME.
    known = {
        key: value for key, value in ENVIRONMENT.items() if key not in ("CI", "GITHUB_ACTIONS", "ORT_DISABLE_TELEMETRY")
    }
    program = (
        f"import pathlib; from ml.serving.request import Scorer; Scorer(pathlib.Path({str(tmp_path / 'model.onnx')!r}))"
    )

    subprocess.run([sys.executable, "-c", program], env={**known, "HOME": str(home)}, check=True)

    assert list(home.rglob("*")) == []
