"""Writes the OpenAPI document: BentoML's own, with the contract's fields, our errors and real examples put in."""

from __future__ import annotations

from typing import Any

from ml.serving.request import FLOAT32_MAX, Contract

LIMITS = {"number": FLOAT32_MAX, "integer": 2**63 - 1}
ERRORS = {
    400: "The body or a row breaks the contract, or there are too many rows",
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "The body is not plain application/json",
    503: "Too many large bodies at once; ask again",
    504: "Not answered in time",
}


def field_schema(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI 3.0 schema of a field, its checks as far as OpenAPI has words for them."""
    schema: dict[str, Any] = {"type": entry["type"], "description": entry["description"]}
    if "categories" in entry:
        known = ", ".join(entry["categories"])
        schema["description"] += f". Known: {known}; others are scored as unknown"
    if entry["type"] in LIMITS:
        schema |= {"minimum": -LIMITS[entry["type"]], "maximum": LIMITS[entry["type"]]}
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


def prediction_schema(contract: Contract) -> dict[str, Any]:
    """Return the OpenAPI schema of the answer to one row, by the contract's task."""
    number = {"type": "number", "nullable": True}
    match contract.task:
        case "regression":
            return _object(value=number)
        case "binary":
            return _object(score=number, decision={"type": "boolean"})
        case _:
            shares = _object(**dict.fromkeys(contract.classes, number))
            return _object(label=_text(enum=list(contract.classes)), probabilities=shares)


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _text(description: str = "", **more: Any) -> dict[str, Any]:
    return {"type": "string", **({"description": description} if description else {}), **more}


def _list(items: dict[str, Any], description: str = "", **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, "description": description, **more}


PROBLEM = _object(
    row={"type": "integer", "description": "Counted from 0"},
    field=_text("Empty where the row itself is wrong"),
    value={"nullable": True, "description": "What was sent, shortened"},
    rule=_text(),
)


def components(contract: Contract, most_rows: int, info: dict[str, Any]) -> dict[str, Any]:
    """Return the schemas of what goes in and out."""
    rows = _list(_ref("Row"), "To be scored", minItems=1, maxItems=most_rows)
    predictions = _list(_ref("Prediction"), "One a row, in their order")
    about = {key: {"type": "integer"} if key == "fields" else _text(nullable=True) for key in info}
    return {
        "Row": row_schema(contract),
        "Rows": {**_object(rows=rows), "additionalProperties": False},
        "Prediction": prediction_schema(contract),
        "Answer": _object(model=_text("SHA-256 of the ONNX file"), predictions=predictions),
        "Error": _object(error=_text("One line"), problems=_list(PROBLEM, "The first ones")),
        "Info": _object(**about),
    }


def document(
    base: dict[str, Any], contract: Contract, most_rows: int, info: dict[str, Any], name: str, examples: dict[str, Any]
) -> dict[str, Any]:
    """Return BentoML's document with `/predict` and `/info` as they are; examples: answer and error as they were given.

    BentoML describes what its own parser would take and answer, and takes the class for the title.
    """
    paths = dict(base["paths"])
    predict = {
        "summary": "Score one row or many",
        "operationId": "predict",
        "tags": paths.pop("/predict")["post"]["tags"],
        "requestBody": {"required": True, "content": _json("Rows", {"rows": [contract.example()]})},
        "responses": {
            "200": _answer("Answer", "One prediction a row", examples["answer"]),
            **{str(status): _answer("Error", text, examples.get(status)) for status, text in ERRORS.items()},
        },
    }
    about = {
        "summary": "Say which model answers",
        "operationId": "info",
        "tags": paths["/livez"]["get"]["tags"],
        "responses": {"200": _answer("Info", "The model and its deployment", info)},
    }
    # Without a Bento, BentoML writes the word None.
    bento = base["info"]["version"].replace("None", "")
    return {
        **base,
        "info": {
            "title": name,
            "version": info["version"] or bento or info["model"][:16],
            "description": f"Predicts `{contract.target}` ({contract.task}).",
        },
        "paths": {"/predict": {"post": predict}, "/info": {"get": about}, **paths},
        "components": {"schemas": components(contract, most_rows, info)},
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(name: str, example: Any = None) -> dict[str, Any]:
    return {"application/json": {"schema": _ref(name), **({"example": example} if example else {})}}


def _answer(name: str, description: str, example: Any = None) -> dict[str, Any]:
    return {"description": description, "content": _json(name, example)}
