"""Converts the fitted pipeline to ONNX and proves that the file answers as scikit-learn does."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pandas as pd

from ml.errors import ExportError

if TYPE_CHECKING:
    import onnx
    from sklearn.base import BaseEstimator
    from sklearn.pipeline import Pipeline

ABSOLUTE, RELATIVE = 1e-5, 1e-5
REMEDY = (
    "choose another in src/ml/pipeline/features.py or train.estimator in params.yaml "
    "(docs/make-it-yours.md lists what converts)"
)


def refuse_known_wrong(pipeline: Pipeline) -> None:
    """Raise ExportError for settings whose ONNX form is accepted by the converter and answers differently."""
    estimator = pipeline[-1]
    if getattr(estimator, "categorical_features", None) not in (None, "from_dtype"):
        raise ExportError(
            f"{type(estimator).__name__}(categorical_features=…) converts to ONNX without an error and scores wrongly; "
            "remove it from train.settings in params.yaml: features.py encodes categories as ordered numbers"
        )


def convert(pipeline: Pipeline, sample: pd.DataFrame) -> onnx.ModelProto:
    """Return the ONNX model: one input of shape (n, 1) a column, outputs `label` and `probabilities`, or `value`.

    Raises ExportError that names the step without an ONNX form.
    """
    refuse_known_wrong(pipeline)
    _round_thresholds(pipeline[-1])
    try:
        model = _convert(pipeline, sample)
    except Exception as error:  # skl2onnx raises a dozen unrelated types
        step = _first_failing(pipeline, sample)
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ExportError(f"{step} has no ONNX form ({reason.strip()[:160]}); {REMEDY}") from None
    model.graph.name = "model"
    return model


def _round_thresholds(estimator: BaseEstimator) -> None:
    # Histogram boosting parts two neighbouring floats at a 64-bit number between them; the converter rounds it to
    # the nearest 32-bit one, which may be the upper neighbour. For 32-bit inputs, rounding down changes no answer.
    for tree in (tree for trees in getattr(estimator, "_predictors", []) for tree in trees):
        exact = tree.nodes["num_threshold"]
        short = exact.astype(np.float32)
        tree.nodes["num_threshold"] = np.where(short > exact, np.nextafter(short, np.float32(-np.inf)), short)


def _convert(step: BaseEstimator, sample: pd.DataFrame) -> onnx.ModelProto:
    # Here, since what only scores need not wait for scikit-learn.
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType
    from sklearn.base import is_classifier

    types = [
        (name, StringTensorType([None, 1]) if sample[name].dtype == object else FloatTensorType([None, 1]))
        for name in sample
    ]
    options = {"zipmap": False} if is_classifier(step) else {}
    model = to_onnx(step, initial_types=types, options={id(_last(step)): options} if options else None)
    return _renamed(model, ["label", "probabilities"] if is_classifier(step) else ["value"])


def _last(step: BaseEstimator) -> BaseEstimator:
    return step[-1] if hasattr(step, "steps") else step


def _renamed(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    new = dict(zip([output.name for output in model.graph.output], names, strict=True))
    for node in model.graph.node:
        node.output[:] = [new.get(name, name) for name in node.output]
        node.input[:] = [new.get(name, name) for name in node.input]
    for output in model.graph.output:
        output.name = new[output.name]
    return model


def _first_failing(pipeline: Pipeline, sample: pd.DataFrame) -> str:
    for name, transformer, columns in pipeline["features"].transformers_:
        if transformer in ("drop", "passthrough"):
            continue
        try:
            _convert(transformer, sample[list(columns)])
        except Exception:
            return f"the transformer {name} ({_described(transformer)})"
    return f"the estimator {type(pipeline[-1]).__name__}"


def _described(transformer: BaseEstimator) -> str:
    steps = [step for _, step in getattr(transformer, "steps", [("", transformer)])]
    return " → ".join(type(step).__name__ for step in steps)


def session(model: bytes) -> onnxruntime.InferenceSession:
    """Return a quiet ONNX Runtime session; raise ExportError where the bytes are no model."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises types of its own
        raise ExportError(f"not a model that ONNX Runtime reads ({str(error)[:160]}): run make pipeline") from None


def scores(runtime: onnxruntime.InferenceSession, inputs: pd.DataFrame, chunk: int = 50_000) -> np.ndarray:
    """Return probabilities (n, classes) or values (n,) of the inputs that `features.inputs` made."""
    output = "probabilities" if "probabilities" in [o.name for o in runtime.get_outputs()] else "value"
    parts = [
        runtime.run([output], {name: part[[name]].to_numpy() for name in part})[0]
        for part in (inputs.iloc[i : i + chunk] for i in range(0, len(inputs), chunk))
    ]
    found = np.concatenate(parts).astype(float)
    # A sum of many 32-bit leaves may end a last bit above 1.
    return found[:, 0] if output == "value" else np.clip(found, 0.0, 1.0)


def expected(pipeline: Pipeline, inputs: pd.DataFrame) -> np.ndarray:
    """Return what scikit-learn answers, in the shape of `scores`."""
    classifies = hasattr(pipeline, "predict_proba")
    return pipeline.predict_proba(inputs) if classifies else np.ravel(pipeline.predict(inputs))


def disagreement(actual: np.ndarray, wanted: np.ndarray) -> tuple[int, float]:
    """Return how many rows differ by more than 1e-5 + 1e-5·|y|, and the largest difference."""
    difference = np.abs(actual - wanted)
    wrong = ~(difference <= ABSOLUTE + RELATIVE * np.abs(wanted))
    by_row = wrong.any(axis=1) if wrong.ndim == 2 else wrong
    return int(by_row.sum()), float(np.nanmax(difference, initial=0.0))


def prove(
    pipeline: Pipeline, model: onnx.ModelProto, inputs: pd.DataFrame, optional: Collection[str] = ()
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return over all inputs the scores of the ONNX model, scikit-learn's own, and the largest difference.

    What a request may hold and the inputs may not is compared too: unknown text, and no value where it is optional.
    Raises ExportError that names the step which converts wrongly.
    """
    probed = pd.concat([inputs, unseen(inputs, optional)], ignore_index=True)
    try:
        runtime = session(model.SerializeToString())
        actual, wanted = scores(runtime, probed), expected(pipeline, probed)
    except Exception as error:  # types of ONNX Runtime's own, or scikit-learn's for a category it has not seen
        step, reason = _first_wrong(pipeline, probed), " ".join(str(error).split())[:200]
        raise ExportError(f"{step} cannot score every request ({reason}); {REMEDY}") from None
    rows, largest = disagreement(actual, wanted)
    if rows:
        step = _first_wrong(pipeline, probed)
        raise ExportError(
            f"{step} converts to ONNX wrongly: {rows} of {len(probed)} rows differ, by up to {largest:.2g}; {REMEDY}"
        )
    return actual[: len(inputs)], wanted[: len(inputs)], largest


def unseen(inputs: pd.DataFrame, optional: Collection[str]) -> pd.DataFrame:
    """Return the first row with text that training never saw, and with every optional value missing."""
    first, text = inputs.head(1), [name for name in inputs if inputs[name].dtype == object]
    unknown = first.assign(**dict.fromkeys(text, "never seen"))
    empty = first.assign(**{name: "" if name in text else np.float32("nan") for name in optional})
    return pd.concat([unknown, empty], ignore_index=True).astype(inputs.dtypes)


def _first_wrong(pipeline: Pipeline, inputs: pd.DataFrame) -> str:
    for name, transformer, columns in pipeline["features"].transformers_:
        if transformer in ("drop", "passthrough"):
            continue
        if not _agrees(transformer, inputs[list(columns)]):
            return f"the transformer {name} ({_described(transformer)})"
    return f"the estimator {type(pipeline[-1]).__name__}"


def _agrees(transformer: BaseEstimator, part: pd.DataFrame) -> bool:
    try:
        runtime = session(_convert(transformer, part).SerializeToString())
        actual = runtime.run(None, {column: part[[column]].to_numpy() for column in part})[0]
        wanted = np.asarray(transformer.transform(part), dtype=float)
    except Exception:  # as in `prove`
        return False
    missing = np.isnan(actual) & np.isnan(wanted)
    return not disagreement(np.where(missing, 0, actual), np.where(missing, 0, wanted))[0]


def with_metadata(model: onnx.ModelProto, entries: dict[str, Any]) -> bytes:
    """Return the serialised model that carries the entries as JSON; the same model and entries give the same bytes."""
    del model.metadata_props[:]
    for key, value in sorted(entries.items()):
        model.metadata_props.add(key=key, value=json.dumps(value, sort_keys=True, ensure_ascii=False))
    return model.SerializeToString(deterministic=True)


def metadata(runtime: onnxruntime.InferenceSession) -> dict[str, Any]:
    """Return the entries that `with_metadata` wrote."""
    return {key: json.loads(value) for key, value in runtime.get_modelmeta().custom_metadata_map.items()}
