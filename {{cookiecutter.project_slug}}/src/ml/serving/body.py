"""Reads a request's body as rows, and says in one line and a list why it cannot be answered."""

from __future__ import annotations

from typing import Any

import orjson

from ml.serving.request import Problem

SHOWN = 20


class RequestError(Exception):
    """A request that is not answered: its HTTP status, one line, and the problems by row and field."""

    def __init__(self, error: str, problems: list[Problem] | None = None, status: int = 400) -> None:
        super().__init__(error)
        self.problems = problems or []
        self.status = status

    @classmethod
    def of(cls, problems: list[Problem]) -> RequestError:
        """Return the refusal of rows with problems: the first in one line, and how many more."""
        first = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        field = f", {first.field[:100]}" if first.field else ""
        return cls(f"row {first.row}{field}: {first.rule}{more}", problems)

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
    # JSON has no word for what is not finite.
    return value if abs(value) < 2**63 else str(value)[:100]


def read_rows(body: bytes, most: int) -> list[Any]:
    """Return the rows of a request's body; raise RequestError where it has none, or more than `most`."""
    try:
        content = orjson.loads(body)
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows or len(content) > 1:
        raise RequestError('the body must be {"rows": [{field: value, …}, …]} with at least one row')
    if len(rows) > most:
        raise RequestError(f"{len(rows)} rows, at most {most} in one request")
    return rows
