"""A model small enough to know its answers by heart, and a project folder around it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node, make_tensor_value_info

import ml

# A child process must find the package where this one did, installed or not.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(ml.__file__).parents[1])}
FIELDS: list[dict[str, Any]] = [
    {
        "name": "carrier",
        "type": "string",
        "optional": False,
        "description": "Airline",
        "example": "UA",
        "categories": ["AA", "UA"],
        "checks": [],
    },
    {
        "name": "distance",
        "type": "integer",
        "optional": False,
        "description": "Miles",
        "example": 1000,
        "checks": [
            {"check": "in_range", "min_value": 1, "max_value": 10_000, "include_min": True, "include_max": True}
        ],
    },
    {
        "name": "temp",
        "type": "number",
        "optional": True,
        "description": "Temperature, °F",
        "example": None,
        "checks": [{"check": "greater_than_or_equal_to", "min_value": -60}],
    },
]


def contract(task: str = "binary") -> dict[str, Any]:
    """Return the contract of the small model, for each task."""
    answer = {
        "binary": {"classes": ["0", "1"], "threshold": 0.5},
        "multiclass": {"classes": ["early", "late"]},
        "regression": {},
    }[task]
    return {"version": 1, "task": task, "target": "late", "fields": FIELDS, **answer}


def small_model(agreement: dict[str, Any]) -> bytes:
    """Return an ONNX model whose score is the sigmoid of bonus(carrier) + distance / 1000 + (temp or 0) / 100.

    The bonus is 1 for UA and 0 for others.
    """
    names = {"string": TensorProto.STRING}
    inputs = [
        make_tensor_value_info(entry["name"], names.get(entry["type"], TensorProto.FLOAT), [None, 1])
        for entry in agreement["fields"]
    ]
    constants = {"thousand": 1000.0, "hundred": 100.0, "zero": 0.0, "one": 1.0}
    nodes = [
        make_node(
            "LabelEncoder",
            ["carrier"],
            ["bonus"],
            domain="ai.onnx.ml",
            keys_strings=["UA"],
            values_floats=[1.0],
            default_float=0.0,
        ),
        make_node("Div", ["distance", "thousand"], ["far"]),
        make_node("IsNaN", ["temp"], ["missing"]),
        make_node("Where", ["missing", "zero", "temp"], ["known"]),
        make_node("Div", ["known", "hundred"], ["warm"]),
        make_node("Add", ["bonus", "far"], ["partial"]),
        make_node("Add", ["partial", "warm"], ["sum"]),
    ]
    if agreement["task"] == "regression":
        nodes.append(make_node("Identity", ["sum"], ["value"]))
        outputs = [make_tensor_value_info("value", TensorProto.FLOAT, [None, 1])]
    else:
        nodes += [
            make_node("Sigmoid", ["sum"], ["second"]),
            make_node("Sub", ["one", "second"], ["first"]),
            make_node("Concat", ["first", "second"], ["probabilities"], axis=1),
            make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
        ]
        outputs = [
            make_tensor_value_info("label", TensorProto.INT64, [None]),
            make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2]),
        ]
    tensors = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "small", inputs, outputs, tensors),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)],
        ir_version=9,
    )
    onnx.checker.check_model(model)
    helper.set_model_props(model, {"contract": json.dumps(agreement)})
    return model.SerializeToString(deterministic=True)


def write_project(root: Path, task: str = "binary") -> Path:
    """Write a project folder with the small model and return it."""
    (root / "models").mkdir(parents=True)
    (root / "requirements").mkdir()
    (root / "pyproject.toml").write_text('[project]\nname = "small-model"\ndescription = "Small"\n')
    (root / "requirements/serving.txt").write_text("bentoml==1.4.39 \\\n    --hash=sha256:" + "0" * 64 + "\n")
    (root / "models/model.onnx").write_bytes(small_model(contract(task)))
    return root
