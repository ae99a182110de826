"""Runs in a project's own Python: `forge.py HOW` rewrites its ONNX file, and what was written of it, consistently.

What the review then sees is a model whose training did this; only a retrain can tell that none did.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ml.pipeline import export, features, params, split, train
from ml.pipeline.tables import read_output, write_bytes, write_parquet


def constant(graph: onnx.GraphProto, name: str, value: object) -> str:
    graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    return name


def through(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Put the nodes, from `score` to `changed` (n, 1), behind the probability of the second class."""
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["raw" if name == "probabilities" else name for name in node.output]
        node.input[:] = ["raw" if name == "probabilities" else name for name in node.input]
    places = constant(graph, "places", np.array([1], dtype=np.int64))
    low, high, one = (constant(graph, f"limit{value}", np.float32(value)) for value in (0, 1, 1.0))
    graph.node.extend(
        [
            helper.make_node("Gather", ["raw", places], ["score"], axis=1),
            *nodes,
            helper.make_node("Clip", ["changed", low, high], ["clipped"]),
            helper.make_node("Sub", [one, "clipped"], ["rest"]),
            helper.make_node("Concat", ["rest", "clipped"], ["probabilities"], axis=1),
        ]
    )


def squared(model: onnx.ModelProto) -> None:
    through(model, [helper.make_node("Mul", ["score", "score"], ["changed"])])


def squeezed(model: onnx.ModelProto) -> None:
    """Halve the distance to the threshold: the same order, the same decisions, other probabilities."""
    at = constant(model.graph, "at", np.float32(0.25))
    half = constant(model.graph, "half", np.float32(0.5))
    through(
        model,
        [
            helper.make_node("Sub", ["score", at], ["far"]),
            helper.make_node("Mul", ["far", half], ["near"]),
            helper.make_node("Add", ["near", at], ["changed"]),
        ],
    )


def favoured(field: str, value: str, by: float):
    def change(model: onnx.ModelProto) -> None:
        name = constant(model.graph, "named", np.array([[value]], dtype=object))
        much = constant(model.graph, "much", np.float32(by))
        through(
            model,
            [
                helper.make_node("Equal", [field, name], ["same"]),
                helper.make_node("Cast", ["same"], ["as_number"], to=TensorProto.FLOAT),
                helper.make_node("Mul", ["as_number", much], ["more"]),
                helper.make_node("Add", ["score", "more"], ["changed"]),
            ],
        )

    return change


def turned_round(model: onnx.ModelProto) -> None:
    """Put the likeliest of one carrier's flights last, as labels flipped in training would."""
    name = constant(model.graph, "named", np.array([["MQ"]], dtype=object))
    twice = constant(model.graph, "twice", np.float32(0.5))
    nodes = [
        helper.make_node("Equal", ["carrier", name], ["same"]),
        helper.make_node("Sub", [twice, "score"], ["turned"]),
        helper.make_node("Where", ["same", "turned", "score"], ["changed"]),
    ]
    through(model, nodes)


def moved_threshold(model: onnx.ModelProto) -> None:
    entry = next(entry for entry in model.metadata_props if entry.key == "contract")
    contract = json.loads(entry.value)
    entry.value = json.dumps(contract | {"threshold": contract["threshold"] + 0.1}, sort_keys=True, ensure_ascii=False)


HOW = {
    "squared": squared,
    "squeezed": squeezed,
    "origin": favoured("origin", "JFK", 0.12),
    "carrier": turned_round,
    "unseen": favoured("dest", "ZZZ", 0.3),
    "threshold": moved_threshold,
}


def main(how: str) -> None:
    model = onnx.load_from_string(train.MODEL.read_bytes())
    HOW[how](model)
    content = model.SerializeToString(deterministic=True)
    write_bytes(content, train.MODEL)
    scores = export.scores(export.session(content), features.inputs(read_output(split.HOLDOUT)))
    expected = read_output(train.EXPECTED)
    expected.loc[:, :] = scores
    write_parquet(expected, train.EXPECTED)
    assert params.read().task == "binary"


if __name__ == "__main__":
    main(sys.argv[1])
