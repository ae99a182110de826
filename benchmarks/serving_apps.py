"""What else would serve the model, run by the project's interpreter: each written as its users write it.

None of them checks the contract, limits a request, counts scores or says which model answers; ours does all of that.
"""

import json
import os
from collections.abc import Callable
from typing import Any

Rows = list[dict[str, Any]]
Model = Callable[[Rows], Rows]
THRESHOLD = 0.25


def answers(scores: list[float]) -> Rows:
    """Return one answer a row."""
    return [{"score": score, "decision": score >= THRESHOLD} for score in scores]


def scikit_model() -> Model:
    """Return what turns rows into answers with scikit-learn and pandas."""
    import mlflow.sklearn
    import pandas as pd

    model = mlflow.sklearn.load_model(os.environ["BENCH_PIPELINE"])

    def predict(rows: Rows) -> Rows:
        return answers(model.predict_proba(pd.DataFrame(rows))[:, 1].tolist())

    return predict


def onnx_model() -> Model:
    """Return what turns rows into answers with ONNX Runtime alone."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Its own threads (0) cost requests of one row more than they save them.
    options.intra_op_num_threads = int(os.environ.get("BENCH_THREADS", "1"))
    session = onnxruntime.InferenceSession(os.environ["BENCH_MODEL"], options)
    types = {entry.name: object if "string" in entry.type else np.float32 for entry in session.get_inputs()}

    def predict(rows: Rows) -> Rows:
        columns = {
            name: np.array([row.get(name) for row in rows], dtype=kind).reshape(-1, 1) for name, kind in types.items()
        }
        return answers(session.run(["probabilities"], columns)[0][:, 1].tolist())

    return predict


def fastapi_scikit() -> Any:
    """Return FastAPI with scikit-learn; `def`, so that it runs in Starlette's threads."""
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Request(BaseModel):
        rows: Rows

    app, model = FastAPI(), scikit_model()

    @app.post("/predict")
    def predict(request: Request) -> dict[str, Rows]:
        return {"predictions": model(request.rows)}

    return app


def fastapi_onnx() -> Any:
    """Return FastAPI with ONNX Runtime; `async def`, since a prediction is shorter than the way to a thread."""
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Request(BaseModel):
        rows: Rows

    app, model = FastAPI(), onnx_model()

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Rows]:
        return {"predictions": model(request.rows)}

    return app


def fastapi_typed() -> Any:
    """Return the same with a field of the model for each field of a row, which checks its type."""
    from fastapi import FastAPI
    from pydantic import BaseModel, create_model

    app, model, fields = FastAPI(), onnx_model(), json.loads(os.environ["BENCH_FIELDS"])
    types = {"string": str, "boolean": bool}
    own = {name: types.get(kind, float) for name, kind in fields.items()}
    row = create_model("Row", **{name: (kind | None, None) for name, kind in own.items()})

    class Request(BaseModel):
        rows: list[row]

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Rows]:
        return {"predictions": model([entry.model_dump() for entry in request.rows])}

    return app


def raw_onnx() -> Any:
    """Return an ASGI application that does nothing but read, score and answer: the ceiling."""
    model = onnx_model()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        body = message.get("body", b"")
        while message.get("more_body"):
            message = await receive()
            body += message.get("body", b"")
        answer = json.dumps({"predictions": model(json.loads(body)["rows"])}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


def bento_scikit() -> Any:
    """Return a BentoML service with scikit-learn and a typed method, as its quickstart shows."""
    import bentoml

    @bentoml.service
    class Plain:
        def __init__(self) -> None:
            self.model = scikit_model()

        @bentoml.api
        def predict(self, rows: Rows) -> Rows:
            return self.model(rows)

    return Plain


def __getattr__(name: str) -> Any:
    # BentoML wants an attribute; imported at the top, it would weigh on all others.
    if name == "Plain":
        return bento_scikit()
    raise AttributeError(name)
