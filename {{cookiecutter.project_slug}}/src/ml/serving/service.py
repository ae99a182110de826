"""Serves the model: `POST /predict` takes rows of named fields, `GET /info` says which model answers.

Bodies are read here and not by BentoML's own input parsing: whatever a client sends, there is one parser, one check
(the contract) and one shape of error. BentoML runs the workers, the other routes, the metrics and, where it is
asked for, adaptive batching.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import bentoml
import numpy as np
import orjson
import pydantic

from ml.errors import UserError
from ml.serving import openapi
from ml.serving.body import RequestError, read_rows
from ml.serving.request import Contract, Scorer
from ml.serving.routes import Routes
from ml.serving.settings import Settings

ROOT = Path(__file__).parents[2]
ALONE = nullcontext()


def load(root: Path) -> tuple[Contract, Settings]:
    """Read what the service is made of; end the process with one line where that is not what was built.

    Here and not in the worker, whose failure BentoML reports by a stack trace, and repeats.
    """
    try:
        contract, settings = Contract.read(root / "contract.json"), Settings.read(root / "settings.json")
        digest = hashlib.sha256((root / "model.onnx").read_bytes()).hexdigest()
        if digest != contract.entries["model"]["sha256"]:
            raise UserError(f"{root / 'model.onnx'} is damaged or of another build: run ml build again")
    except (UserError, OSError, ValueError, KeyError) as error:
        raise SystemExit(f"ml: {' '.join(str(error).split())}") from None
    return contract, settings


CONTRACT, SETTINGS = load(ROOT)
BATCHING = SETTINGS.batching or {}
Rows = Annotated[list[Any], pydantic.WithJsonSchema({"type": "array", "items": openapi.row_schema(CONTRACT)})]
Predictions = Annotated[list[Any], pydantic.WithJsonSchema({"type": "array"})]


@bentoml.service(
    workers=SETTINGS.workers,
    # The routes keep the time; BentoML's own timer is the one behind them, and each costs memory until it ends.
    traffic={"timeout": SETTINGS.timeout + 1},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": "predict,info,docs.json,livez,readyz,healthz,metrics"},
)
class Predictor:
    """Scores rows with the model; `GET /info` says which."""

    bento_service: bentoml.Service

    def __init__(self) -> None:
        # prometheus_client must not be imported before BentoML has set up its folder for several workers.
        from ml.serving.log import opened
        from ml.serving.metrics import Metrics, labels

        self.scorer = Scorer(ROOT / "model.onnx", CONTRACT)
        self.batching = SETTINGS.batching is not None
        self.timeout, self.drain = SETTINGS.timeout, SETTINGS.drain
        self.most_bytes, self.most_rows = SETTINGS.limits["bytes"], SETTINGS.limits["rows"]
        about = {
            "model": self.scorer.digest,
            "task": CONTRACT.task,
            "target": CONTRACT.target,
            "fields": len(CONTRACT.fields),
            "commit": SETTINGS.commit,
            "version": SETTINGS.version,
            "stage": SETTINGS.stage,
        }
        self.about, self.info = about, orjson.dumps(about)
        self.example, self.document = orjson.dumps({"rows": [CONTRACT.example()]}), b""
        self.metrics = Metrics(CONTRACT, labels(about))
        personal = {entry["name"] for entry in CONTRACT.entries["fields"] if entry.get("personal")}
        self.log = opened(SETTINGS.log, self.scorer.digest, personal, self.metrics.dropped)

    @bentoml.api(
        batchable=SETTINGS.batching is not None,
        max_batch_size=BATCHING.get("rows", 100),
        max_latency_ms=BATCHING.get("milliseconds", 60_000),
    )
    async def predict(self, rows: Rows) -> Predictions:
        """Score rows that the routes have checked; only batches come this way."""
        return self.predicted(self.scorer.score(CONTRACT.columns(rows).columns))

    @bentoml.on_startup
    def describe(self) -> None:
        """Write the OpenAPI document, with examples that were answered here."""
        base = self.bento_service.openapi_spec.asdict()
        example = CONTRACT.example()
        answer = self.scorer.predictions(self.scorer.score(CONTRACT.columns([example]).columns))
        error = RequestError.of(CONTRACT.columns([example | {"unknown": 1}]).problems)
        examples = {"answer": self.whole(answer), 400: error.answer()}
        found = openapi.document(base, CONTRACT, self.most_rows, self.about, SETTINGS.name, examples)
        self.document = orjson.dumps(found)

    def warm_up(self) -> None:
        """Answer the example as a request would be answered, and count nothing."""
        rows = read_rows(self.example, 1)
        orjson.dumps(self.whole(self.scorer.predictions(self.scorer.score(CONTRACT.columns(rows).columns))))

    @bentoml.on_shutdown
    def close(self) -> None:
        """Write what the prediction log still holds."""
        if self.log:
            self.log.close()

    def checked(self, body: bytes) -> tuple[list[Any], dict[str, np.ndarray]]:
        """Return a body's rows and the model's inputs; raise RequestError where they break the contract."""
        rows = read_rows(body, self.most_rows)
        columns, problems, unknown = CONTRACT.columns(rows)
        if problems:
            self.metrics.count_problems(problems)
            raise RequestError.of(problems)
        if unknown:
            self.metrics.count_unknown(unknown)
        return rows, columns

    def predicted(self, scores: np.ndarray) -> list[dict[str, Any]]:
        """Return one prediction a row of scores, and count these."""
        self.metrics.count_scores(scores, CONTRACT.task)
        return self.scorer.predictions(scores)

    def answered(self, rows: list[Any], predictions: list[dict[str, Any]], identity: bytes) -> bytes:
        """Return the body of the answer, and log it."""
        if self.log:
            self.log.put(identity.decode("ascii"), rows, predictions)
        return orjson.dumps(self.whole(predictions))

    def whole(self, predictions: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the answer to all rows of a request."""
        return {"model": self.scorer.digest, "predictions": predictions}

    def respond(self, body: bytes, identity: bytes, turn: AbstractContextManager[Any] = ALONE) -> bytes:
        """Return the answer to a body; raise RequestError and nothing else for one that cannot be answered.

        `turn` is held while Python works, and not while the model does.
        """
        with turn:
            rows, columns = self.checked(body)
        scores = self.scorer.score(columns)
        with turn:
            return self.answered(rows, self.predicted(scores), identity)


Predictor.add_asgi_middleware(Routes)
