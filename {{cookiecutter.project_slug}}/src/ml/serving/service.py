"""Serves the model: `POST /predict` takes rows of named fields, `GET /info` says which model answers.

Bodies are read here and not by BentoML's own input parsing: whatever a client sends, there is one parser, one check
(the contract) and one shape of error. BentoML describes the route in its OpenAPI document and runs everything else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Annotated, Any

import bentoml
import pydantic

from ml.serving.request import Contract, Problem, Scorer

ROOT = Path(__file__).parents[2]
CONTRACT = Contract.read(ROOT / "contract.json")
SHOWN = 20
NO_FIELD = "(none of the contract)"
Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


def field_schema(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI 3.0 schema of a field, its checks as far as OpenAPI has words for them."""
    schema: dict[str, Any] = {"type": entry["type"], "description": entry["description"]}
    if "categories" in entry:
        known = ", ".join(entry["categories"])
        schema["description"] += f". Known: {known}; others are scored as unknown"
    if entry["optional"]:
        schema["nullable"] = True
    if entry["example"] is not None:
        schema["example"] = entry["example"]
    for check in entry["checks"]:
        schema.update(_keywords(check))
    return schema


def _keywords(check: dict[str, Any]) -> dict[str, Any]:
    match check:
        case {"check": "in_range", "min_value": low, "max_value": high, **rest}:
            found = {"minimum": low, "maximum": high}
            found |= {} if rest.get("include_min", True) else {"exclusiveMinimum": True}
            return found | ({} if rest.get("include_max", True) else {"exclusiveMaximum": True})
        case {"check": "greater_than" | "greater_than_or_equal_to" as name, "min_value": low}:
            return {"minimum": low, **({"exclusiveMinimum": True} if name == "greater_than" else {})}
        case {"check": "less_than" | "less_than_or_equal_to" as name, "max_value": high}:
            return {"maximum": high, **({"exclusiveMaximum": True} if name == "less_than" else {})}
        case {"check": "equal_to", "value": value}:
            return {"enum": [value]}
        case {"check": "isin", "allowed_values": values}:
            return {"enum": values}
        case {"check": "str_matches", "pattern": pattern}:
            return {"pattern": pattern if pattern.startswith("^") else f"^(?:{pattern})"}
        case {"check": "str_length", **limits}:
            low, high = limits.get("exact_value") or limits.get("min_value"), limits.get("exact_value")
            high = high or limits.get("max_value")
            return {k: v for k, v in (("minLength", low), ("maxLength", high)) if v is not None}
    return {}


def row_schema(contract: Contract) -> dict[str, Any]:
    """Return the OpenAPI schema of a row, with the example that the schema's examples make."""
    entries = contract.entries["fields"]
    return {
        "type": "object",
        "properties": {entry["name"]: field_schema(entry) for entry in entries},
        "required": [entry["name"] for entry in entries if not entry["optional"]],
        "additionalProperties": False,
        "example": contract.example(),
    }


def answer_schema(contract: Contract) -> dict[str, Any]:
    """Return the OpenAPI schema of an answer, by the contract's task."""
    number = {"type": "number", "nullable": True}
    properties = {
        "regression": {"value": number},
        "binary": {"score": number, "decision": {"type": "boolean"}},
    }.get(
        contract.task,
        {
            "label": {"type": "string", "enum": list(contract.classes)},
            "probabilities": {"type": "object", "properties": dict.fromkeys(contract.classes, number)},
        },
    )
    prediction = {"type": "object", "properties": properties, "required": list(properties)}
    return {
        "type": "object",
        "properties": {
            "model": {"type": "string", "description": "SHA-256 of the ONNX file"},
            "predictions": {"type": "array", "items": prediction, "description": "One a row, in their order"},
        },
        "required": ["model", "predictions"],
    }


ROWS = {"type": "array", "minItems": 1, "items": row_schema(CONTRACT), "example": [CONTRACT.example()]}
Rows = Annotated[list[Any], pydantic.WithJsonSchema(ROWS)]
Answer = Annotated[dict[str, Any], pydantic.WithJsonSchema(answer_schema(CONTRACT))]


class RequestError(Exception):
    """A body that cannot be answered: one line, and the problems by row and field."""

    def __init__(self, error: str, problems: list[Problem] | None = None) -> None:
        super().__init__(error)
        self.problems = problems or []

    def answer(self) -> dict[str, Any]:
        """Return the body of the answer, with the first problems."""
        shown = [
            problem._replace(field=problem.field[:100], value=_shown(problem.value))._asdict()
            for problem in self.problems[:SHOWN]
        ]
        return {"error": str(self), "problems": shown}


def _shown(value: Any) -> Any:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, str):
        return value[:100]
    if isinstance(value, bool) or value is None:
        return value
    return value if abs(value) < 2**63 else str(value)[:100]


def read_rows(body: bytes) -> list[Any]:
    """Return the rows of a request's body; raise RequestError where it has none."""
    try:
        content = json.loads(body)
    except RecursionError:
        raise RequestError("the body is nested too deeply") from None
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows or len(content) > 1:
        raise RequestError('the body must be {"rows": [{field: value, …}, …]} with at least one row')
    return rows


def refuse(problems: list[Problem]) -> None:
    """Raise RequestError where there are problems."""
    if problems:
        first = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        field = f", {first.field[:100]}" if first.field else ""
        raise RequestError(f"row {first.row}{field}: {first.rule}{more}", problems)


class Routes:
    """ASGI middleware that answers `/predict` and `/info`; the rest is BentoML's."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Any) -> None:
        match scope.get("method"), scope.get("path"):
            case "POST", "/predict":
                status, content = bentoml.get_current_service().respond(await _body(receive))
            case "GET", "/info":
                status, content = 200, bentoml.get_current_service().info
            case _:
                return await self.app(scope, receive, send)
        body = json.dumps(content).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def _body(receive: Callable[[], Awaitable[Message]]) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


@bentoml.service(
    workers=1,
    traffic={"timeout": 10},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": "predict,info,livez,readyz,metrics"},
)
class Predictor:
    """Scores rows with the model; `GET /info` says which."""

    def __init__(self) -> None:
        self.scorer = Scorer(ROOT / "model.onnx", CONTRACT)
        self.unknown = bentoml.metrics.Counter("ml_unknown_categories", "Categories not seen in training", ["field"])
        self.rejected = bentoml.metrics.Counter("ml_rejected_rows", "Rows refused, by field", ["field"])
        self.fields = {field.name for field in CONTRACT.fields}
        for field in CONTRACT.fields:
            self.rejected.labels(field.name)
            if field.categories is not None:
                self.unknown.labels(field.name)
        self.info = {
            "model": self.scorer.digest,
            "task": CONTRACT.task,
            "target": CONTRACT.target,
            "fields": len(CONTRACT.fields),
        }

    @bentoml.api
    async def predict(self, rows: Rows) -> Answer:
        """Score one row or many."""
        try:
            return self.answer(rows)
        except RequestError as error:
            raise bentoml.exceptions.InvalidArgument(str(error)) from None

    def respond(self, body: bytes) -> tuple[int, dict[str, Any]]:
        """Return the status and the content of the answer to a body; a body cannot make it raise."""
        try:
            return 200, self.answer(read_rows(body))
        except RequestError as error:
            return 400, error.answer()

    def answer(self, rows: list[Any]) -> dict[str, Any]:
        """Return the model's hash and one prediction a row; raise RequestError for rows that break the contract."""
        columns, problems, unknown = CONTRACT.columns(rows)
        for field, count in Counter(problem.field for problem in problems).items():
            # Names that a client makes up would make as many time series.
            self.rejected.labels(field if field in self.fields else NO_FIELD).inc(count)
        refuse(problems)
        for field, count in unknown.items():
            self.unknown.labels(field).inc(count)
        return {"model": self.scorer.digest, "predictions": self.scorer.predictions(self.scorer.score(columns))}


Predictor.add_asgi_middleware(Routes)
