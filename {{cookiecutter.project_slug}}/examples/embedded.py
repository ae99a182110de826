"""Scores rows inside another program, with NumPy and ONNX Runtime alone: embedded.py MODEL '[{"field": value}]'."""

import json
import sys

import numpy as np
import onnxruntime


def load(path):
    """Return the session and the contract that the file carries."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session, json.loads(session.get_modelmeta().custom_metadata_map["contract"])


def score(session, contract, rows):
    """Return an array (n_rows, n_classes), or (n_rows, 1) for values; a value that is left out is missing."""
    inputs = {}
    for field in contract["fields"]:
        missing, dtype = ("", object) if field["type"] == "string" else (np.nan, np.float32)
        values = [missing if row.get(field["name"]) is None else row[field["name"]] for row in rows]
        inputs[field["name"]] = np.array(values, dtype=dtype).reshape(-1, 1)
    return session.run(["value" if contract["task"] == "regression" else "probabilities"], inputs)[0]


if __name__ == "__main__":
    print(score(*load(sys.argv[1]), json.loads(sys.argv[2])).tolist())
