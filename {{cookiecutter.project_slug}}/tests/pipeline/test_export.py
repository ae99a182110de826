from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import example
import numpy as np
import onnx
import pandas as pd
import pytest
from example import TARGETS, inputs
from sklearn.compose import ColumnTransformer
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, SplineTransformer

import ml
from ml.errors import ExportError
from ml.pipeline import estimators, export

FAST = {"linear": {}, "forest": {"n_estimators": 8}, "boosting": {"max_iter": 12}}


def truth(rows: pd.DataFrame, task: str) -> np.ndarray:
    return rows[TARGETS[task]].to_numpy(dtype=int if task == "binary" else None)


def with_numbers(step: object, estimator: object) -> Pipeline:
    """Return a pipeline whose numbers pass a step after they are filled."""
    ordinal = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, dtype=np.float32)
    parts = [("words", ordinal, example.TEXT), ("amounts", make_pipeline(SimpleImputer(), step), example.NUMBERS)]
    return Pipeline([("features", ColumnTransformer(parts)), ("estimator", estimator)])


def of_boosting(estimator: object) -> Pipeline:
    """Return a pipeline whose numbers keep their gaps."""
    return Pipeline([("features", example.transformer("boosting")), ("estimator", estimator)])


@pytest.mark.parametrize("task", list(TARGETS))
@pytest.mark.parametrize("name", list(FAST))
def test_the_file_answers_as_scikit_learn_does(rows: pd.DataFrame, name: str, task: str) -> None:
    table = inputs(rows)
    unseen = table.assign(material="ZZZ", temperature=np.float32("nan"))
    model = estimators.pipeline(name, task, FAST[name], seed=0).fit(table, truth(rows, task))

    converted = export.convert(model, table.head(1))
    actual, _, largest = export.prove(model, converted, pd.concat([table, unseen]))

    wanted = model.predict(table) if task == "regression" else model.predict_proba(table)
    np.testing.assert_allclose(actual[: len(table)], wanted, rtol=1e-5, atol=1e-5)
    assert actual.shape == {"binary": (6000, 2), "multiclass": (6000, 3), "regression": (6000,)}[task]
    assert largest < 1e-3
    assert np.ptp(actual[:3000], axis=0).min() > 0.1
    outputs = ["value"] if task == "regression" else ["label", "probabilities"]
    assert [output.name for output in converted.graph.output] == outputs
    assert [entry.name for entry in converted.graph.input] == list(table)


def test_scores_do_not_depend_on_the_size_of_a_chunk(rows: pd.DataFrame) -> None:
    table = inputs(rows)
    model = estimators.pipeline("boosting", "binary", FAST["boosting"], seed=0).fit(table, truth(rows, "binary"))
    runtime = export.session(export.convert(model, table.head(1)).SerializeToString())

    whole, parts = export.scores(runtime, table), export.scores(runtime, table, chunk=700)

    np.testing.assert_allclose(parts, whole, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        pytest.param(lambda: of_boosting(DummyClassifier()), "the estimator DummyClassifier", id="estimator"),
        pytest.param(
            lambda: with_numbers(FunctionTransformer(), NearestCentroid()), "the estimator NearestCentroid", id="other"
        ),
        pytest.param(
            lambda: with_numbers(FunctionTransformer(lambda x: x + 1), LogisticRegression()),
            "the transformer amounts (SimpleImputer → FunctionTransformer)",
            id="own function",
        ),
        pytest.param(
            lambda: with_numbers(SplineTransformer(), LogisticRegression()),
            "the transformer amounts (SimpleImputer → SplineTransformer)",
            id="transformer",
        ),
    ],
)
def test_a_step_without_an_onnx_form_is_refused_by_name(rows: pd.DataFrame, build, named: str) -> None:
    table = inputs(rows)
    model = build().fit(table, truth(rows, "binary"))

    with pytest.raises(ExportError) as caught:
        export.convert(model, table.head(1))

    assert str(caught.value).startswith(f"{named} has no ONNX form (")
    assert "choose another in src/ml/pipeline/features.py or train.estimator" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_estimator_that_converts_wrongly_is_refused_by_name(rows: pd.DataFrame) -> None:
    table = inputs(rows)
    model = of_boosting(RandomForestClassifier(10, random_state=0)).fit(table, truth(rows, "binary"))

    with pytest.raises(ExportError, match=r"^the estimator RandomForestClassifier converts to ONNX wrongly") as caught:
        export.prove(model, export.convert(model, table.head(1)), table)

    assert "rows differ, by up to 0." in str(caught.value)


def test_a_transformer_that_converts_wrongly_is_refused_by_name(rows: pd.DataFrame) -> None:
    table = inputs(rows)
    model = with_numbers(FunctionTransformer(), LogisticRegression()).fit(table, truth(rows, "binary"))
    converted = export.convert(model, table.head(1))
    imputer = model["features"].named_transformers_["amounts"][0]
    assert export.prove(model, converted, table)[2] < 1e-5
    # What the file holds no longer is what scikit-learn does: a stand-in for a faulty converter.
    imputer.transform = lambda X: type(imputer).transform(imputer, X) + 1

    with pytest.raises(ExportError, match=r"^the transformer amounts \(SimpleImputer → FunctionTransformer\) converts"):
        export.prove(model, converted, table)


def test_categorical_features_of_boosting_are_refused_by_name() -> None:
    model = estimators.pipeline("boosting", "binary", {"categorical_features": [0]}, seed=0)

    with pytest.raises(ExportError, match=r"^HistGradientBoostingClassifier\(categorical_features=…\) converts"):
        export.refuse_known_wrong(model)


@pytest.mark.parametrize(
    ("actual", "rows"),
    [
        pytest.param([[1.0, 100.0], [0.0, 0.0]], 0, id="same"),
        pytest.param([[1.0 + 1.9e-5, 100.0], [0.0, 0.0]], 0, id="within both tolerances"),
        pytest.param([[1.0 + 2.1e-5, 100.0], [0.0, 0.0]], 1, id="outside"),
        pytest.param([[1.0, 100.0009], [0.0, 0.9e-5]], 0, id="large and small values"),
        pytest.param([[1.1, 100.1], [0.1, 0.0]], 2, id="a row counts once"),
        pytest.param([[1.0, 100.0], [np.nan, 0.0]], 1, id="missing"),
        pytest.param([[np.inf, 100.0], [0.0, 0.0]], 1, id="infinite"),
    ],
)
def test_rows_differ_beyond_an_absolute_and_a_relative_tolerance(actual: list[list[float]], rows: int) -> None:
    assert export.disagreement(np.array(actual), np.array([[1.0, 100.0], [0.0, 0.0]]))[0] == rows


def small_onnx() -> onnx.ModelProto:
    node = onnx.helper.make_node("Identity", ["x"], ["value"])
    x, value = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [None, 1]) for n in ("x", "value"))
    graph = onnx.helper.make_graph([node], "model", [x], [value])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)


def test_metadata_comes_back_as_it_was_given_and_its_order_does_not_change_the_bytes() -> None:
    entries = {"contract": {"fields": [{"name": 'é\n"', "example": None}], "threshold": 0.25}, "importance": {"a": 1}}
    backwards = {key: entries[key] for key in reversed(entries)}

    content = export.with_metadata(small_onnx(), {"contract": "older"})
    content = export.with_metadata(onnx.load_from_string(content), entries)

    assert export.metadata(export.session(content)) == entries
    assert export.with_metadata(small_onnx(), backwards) == export.with_metadata(small_onnx(), entries) == content


PROGRAM = """
import hashlib, json, sys
import pandas as pd
import example, pytest
from ml.pipeline import estimators, export

example.install(pytest.MonkeyPatch())
rows = pd.read_parquet("rows.parquet")
table = example.inputs(rows)
for name, settings in json.loads(sys.argv[1]).items():
    model = estimators.pipeline(name, "binary", settings, 0).fit(table, rows["failed"].to_numpy(dtype=int))
    content = export.with_metadata(export.convert(model, table.head(1)), {"contract": {"b": 1, "a": [2]}})
    print(hashlib.sha256(content).hexdigest())
"""


def test_two_processes_write_the_same_bytes_whatever_the_threads(rows: pd.DataFrame, tmp_path: Path) -> None:
    rows.head(600).to_parquet(tmp_path / "rows.parquet")
    source = f"{Path(ml.__file__).parents[1]}{os.pathsep}{Path(example.__file__).parent}"
    words = [sys.executable, "-c", PROGRAM, json.dumps(FAST)]

    both = [
        subprocess.Popen(
            ["env", "PYTHONHASHSEED=0", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": source, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed, threads in (("1", "1"), ("2", "2"))
    ]
    first, second = (process.communicate()[0].split() for process in both)

    assert len(set(first)) == len(FAST)
    assert first == second
    assert all(len(digest) == hashlib.sha256().digest_size * 2 for digest in first)


@pytest.mark.parametrize(
    "encoder",
    [
        pytest.param(OneHotEncoder(sparse_output=False), id="raises on a category that it has not seen"),
        pytest.param(
            OneHotEncoder(sparse_output=False, min_frequency=20, handle_unknown="infrequent_if_exist"),
            id="fails in ONNX Runtime on one",
        ),
    ],
)
def test_an_encoder_that_fails_on_an_unknown_category_is_refused_by_name(rows: pd.DataFrame, encoder: object) -> None:
    table = inputs(rows)
    parts = [("words", encoder, example.TEXT), ("amounts", SimpleImputer(), example.NUMBERS)]
    model = Pipeline([("features", ColumnTransformer(parts)), ("estimator", LogisticRegression())])
    model.fit(table, truth(rows, "binary"))

    with pytest.raises(ExportError, match=r"^the transformer words \(OneHotEncoder\) "):
        export.prove(model, export.convert(model, table.head(1)), table)
