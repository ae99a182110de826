"""Checks requests against the model's contract and scores them, with nothing but NumPy and ONNX Runtime.

The contract is data that training writes into the model: the fields of the pandera schema with their built-in checks.
A value is refused here where pandera refuses it in training, with these differences, all of them deliberate:

- a string outside `categories` is scored and counted, since the world may grow a carrier that training never saw
- infinite numbers, and numbers beyond float32, are refused whatever the range: the model cannot tell them apart
- text that is not valid Unicode is refused
- 5.0 is an integer, since JSON has one kind of number

As in pandas, None and NaN are missing: allowed where the field is optional and then not checked.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import itertools
import json
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ml.errors import UserError

VERSION = 1
HINTS = 20
MANY = 8  # rows from which a column is looked at as a whole first
# A value between two that pass passes too.
ORDERED = {"greater_than", "greater_than_or_equal_to", "less_than", "less_than_or_equal_to", "in_range"}
FLOAT32_MAX = float(np.finfo(np.float32).max)
Test = tuple[Callable[[Any], bool], str]


class Problem(NamedTuple):
    """One value that breaks one rule; `field` is empty where the row itself does."""

    row: int
    field: str
    value: Any
    rule: str


class Checked(NamedTuple):
    """Columns of shape (n_rows, 1), what is wrong with the rows, and unknown categories by field.

    A value with a problem is a missing one in its column.
    """

    columns: dict[str, np.ndarray]
    problems: list[Problem]
    unknown: dict[str, int]


@dataclass(frozen=True)
class Field:
    """One field of a request, its rules compiled."""

    name: str
    type: str
    optional: bool
    tests: tuple[Test, ...]
    categories: frozenset[str] | None
    ordered: bool

    @classmethod
    def parse(cls, entry: Mapping[str, Any]) -> Field:
        """Compile an entry of the contract; raise UserError for a type or check that this code does not know."""
        name, kind = entry["name"], entry["type"]
        if kind not in TYPES:
            raise UserError(f"contract: {name} has the unknown type {kind}: run make pipeline")
        for check in entry["checks"]:
            if check["check"] not in CHECKS:
                raise UserError(f"contract: {name} has the unknown check {check['check']}: run make pipeline")
        tests = [TYPES[kind], *(_test(check) for check in entry["checks"])]
        categories = frozenset(entry["categories"]) if "categories" in entry else None
        ordered = kind in ("integer", "number") and all(check["check"] in ORDERED for check in entry["checks"])
        return cls(name, kind, entry["optional"], tuple(tests), categories, ordered)

    def column(self, values: Sequence[Any], problems: list[Problem]) -> tuple[np.ndarray, int]:
        """Return the column of shape (n_rows, 1) and how many of its categories are unknown; append the problems."""
        if len(values) >= MANY and (found := self._at_once(values)):
            return found
        name, tests, categories = self.name, self.tests, self.categories
        missing: Any = "" if self.type == "string" else np.nan
        kept, unknown = [], 0
        for index, value in enumerate(values):
            if value is None or value != value:
                if not self.optional:
                    problems.append(Problem(index, name, None, "required"))
                value = missing
            else:
                for passes, rule in tests:
                    if not passes(value):
                        problems.append(Problem(index, name, value, rule))
                        value = missing
                        break
                else:
                    if categories is not None and value not in categories:
                        unknown += 1
            kept.append(value)
        dtype = object if self.type == "string" else np.float32
        return np.array(kept, dtype=dtype).reshape(-1, 1), unknown

    def _at_once(self, values: Sequence[Any]) -> tuple[np.ndarray, int] | None:
        """Return what `column` does for values without a problem; None where they must be looked at one by one."""
        kinds = set(map(type, values))
        gaps = type(None) in kinds
        kinds.discard(type(None))
        if kinds not in KINDS[self.type] or (gaps and not self.optional):
            return None
        return self._texts(values, gaps) if self.type == "string" else self._numbers(values)

    def _texts(self, values: Sequence[str | None], gaps: bool) -> tuple[np.ndarray, int] | None:
        samples = set(values) - {None}
        if not self._pass(samples):
            return None
        strange = () if self.categories is None else samples - self.categories
        filled = ["" if value is None else value for value in values] if gaps else values
        return np.array(filled, dtype=object).reshape(-1, 1), sum(map(values.count, strange))

    def _numbers(self, values: Sequence[float | None]) -> tuple[np.ndarray, int] | None:
        try:
            column = np.fromiter(values, np.float64, len(values))
        except OverflowError:
            return None
        known = column[~np.isnan(column)]
        if not len(known) or not (self.optional or len(known) == len(column)):
            return None
        least, most = float(known.min()), float(known.max())
        # Beyond, neighbouring integers are one float64.
        if max(-least, most) >= 2**53 or not self._pass({least, most} if self.ordered else set(values) - {None}):
            return None
        return column.astype(np.float32).reshape(-1, 1), 0

    def _pass(self, values: Iterable[Any]) -> bool:
        return all(passes(value) for value in values for passes, _ in self.tests)


@dataclass(frozen=True)
class Contract:
    """What a model was trained to be asked and to answer."""

    task: str
    target: str
    fields: tuple[Field, ...]
    classes: tuple[str, ...]
    threshold: float | None
    entries: dict[str, Any]

    @classmethod
    def parse(cls, entries: dict[str, Any]) -> Contract:
        """Compile a contract; raise UserError for a version that this code does not know."""
        if entries.get("version") != VERSION:
            raise UserError(f"contract version {entries.get('version')}, must be {VERSION}: run make pipeline")
        fields = tuple(Field.parse(entry) for entry in entries["fields"])
        classes = tuple(entries.get("classes", ()))
        return cls(entries["task"], entries["target"], fields, classes, entries.get("threshold"), entries)

    @classmethod
    def read(cls, path: Path) -> Contract:
        """Read a contract file; raise UserError where there is none."""
        try:
            return cls.parse(json.loads(path.read_text(encoding="utf-8")))
        except OSError:
            raise UserError(f"{path} is missing: run ml build or make serve, which write it") from None

    def example(self) -> dict[str, Any]:
        """Return the row that the schema's examples make."""
        return {entry["name"]: entry["example"] for entry in self.entries["fields"]}

    def columns(self, rows: list[Any]) -> Checked:
        """Check rows of named fields and turn them into the model's inputs."""
        values, complete = self._values(rows)
        problems: list[Problem] = []
        columns, unknown = {}, {}
        for field, column in zip(self.fields, values, strict=True):
            columns[field.name], count = field.column(column, problems)
            if count:
                unknown[field.name] = count
        strangers = [] if complete else list(self._strangers(rows))
        if strangers:
            whole = {problem.row for problem in strangers if not problem.field}
            problems = strangers + [problem for problem in problems if problem.row not in whole]
        problems.sort(key=lambda problem: problem.row)
        return Checked(columns, problems, unknown)

    @functools.cached_property
    def _take(self) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
        names = [field.name for field in self.fields]
        return operator.itemgetter(*names) if len(names) > 1 else lambda row: (row[names[0]],)

    def _values(self, rows: list[Any]) -> tuple[list[Sequence[Any]], bool]:
        """Return the values by field, and whether each row is known to have all fields and no other."""
        count = len(self.fields)
        try:
            values = list(itertools.chain.from_iterable(map(self._take, rows)))
            return [values[at::count] for at in range(count)], set(map(len, rows)) == {count}
        except (KeyError, TypeError):
            named = [row if type(row) is dict else {} for row in rows]
            return [[row.get(field.name) for row in named] for field in self.fields], False

    def _strangers(self, rows: list[Any]) -> Iterable[Problem]:
        names = {field.name for field in self.fields}
        hints = HINTS
        for index, row in enumerate(rows):
            if type(row) is not dict:
                yield Problem(index, "", row, "must be an object of named fields")
            elif not row.keys() <= names:
                for name in row.keys() - names:
                    # Nearness costs time by the length of the name, and both come from outside.
                    near = difflib.get_close_matches(name[:60], names, 1) if hints > 0 else []
                    hints -= 1
                    yield Problem(
                        index, name, row[name], "unknown field" + (f", did you mean {near[0]}?" if near else "")
                    )


class Scorer:
    """A model and its contract, ready to score; read-only, so one serves all requests."""

    def __init__(self, model: Path, contract: Contract | None = None, threads: int = 1) -> None:
        """Load the model and make a first prediction from the contract's examples.

        Without a contract, take the one that the model carries.
        Raises UserError for a file that is not a model of this project or not the contract's own.
        """
        import onnxruntime

        try:
            content = model.read_bytes()
        except FileNotFoundError:
            raise UserError(f"{model} is missing: run make pipeline") from None
        self.digest = hashlib.sha256(content).hexdigest()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            carried = json.loads(self.session.get_modelmeta().custom_metadata_map["contract"])
        except Exception as error:  # ONNX Runtime raises its own unrelated types
            reason = str(error).strip().splitlines()[0][:160]
            raise UserError(f"{model} is not a model of this project ({reason}): run make pipeline") from None
        self.contract = contract or Contract.parse(carried)
        if self.contract.entries.get("model", {}).get("sha256", self.digest) != self.digest:
            raise UserError(f"{model} is not the model of its contract.json: run ml build or make serve again")
        inputs = [entry.name for entry in self.session.get_inputs()]
        if sorted(inputs) != sorted(field.name for field in self.contract.fields):
            raise UserError(f"{model} has the inputs {inputs}, which are not its contract's fields: run make pipeline")
        self.output = "value" if self.contract.task == "regression" else "probabilities"
        self.score(self.contract.columns([self.contract.example()]).columns)

    def score(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        """Return probabilities of shape (n_rows, n_classes), or values of shape (n_rows, 1)."""
        found = self.session.run([self.output], columns)[0]
        # A sum of many 32-bit leaves may end a last bit outside.
        return found if self.output == "value" else np.minimum(np.maximum(found, 0.0), 1.0)

    def predictions(self, scores: np.ndarray) -> list[dict[str, Any]]:
        """Return one answer a row; a score that is not finite is null, for JSON has no other word for it."""
        contract = self.contract
        match contract.task:
            case "regression":
                return [{"value": value} for value in _listed(scores[:, 0])]
            case "binary":
                at = contract.threshold
                return [
                    {"score": score, "decision": score is not None and score >= at} for score in _listed(scores[:, 1])
                ]
            case _:
                labels = scores.argmax(axis=1).tolist()
                return [
                    {"label": contract.classes[label], "probabilities": dict(zip(contract.classes, row, strict=True))}
                    for label, row in zip(labels, _listed(scores), strict=True)
                ]


def _listed(scores: np.ndarray) -> list[Any]:
    finite = np.isfinite(scores)
    return (scores if finite.all() else np.where(finite, scores, None)).tolist()


def _whole(value: Any) -> bool:
    return (type(value) is int or (type(value) is float and value.is_integer())) and -(2**63) <= value < 2**63


def _number(value: Any) -> bool:
    return type(value) in (int, float) and -FLOAT32_MAX <= value <= FLOAT32_MAX


def _text(value: Any) -> bool:
    return type(value) is str and (value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value))


TYPES: dict[str, Test] = {
    "string": (_text, "must be text"),
    "integer": (_whole, "must be a whole number of at most 64 bits"),
    "number": (_number, "must be a finite number within ±3.4e38"),
    "boolean": (lambda value: type(value) is bool, "must be true or false"),
}


KINDS: dict[str, list[set[type]]] = {
    "string": [{str}],
    "integer": [{int}],
    "number": [{int}, {float}, {int, float}],
    "boolean": [{bool}],
}


def _test(check: Mapping[str, Any]) -> Test:
    return CHECKS[check["check"]](**{key: value for key, value in check.items() if key != "check"})


def _in_range(min_value: Any, max_value: Any, include_min: bool = True, include_max: bool = True) -> Test:
    above, below = operator.ge if include_min else operator.gt, operator.le if include_max else operator.lt
    rule = f"must be {'>=' if include_min else '>'} {min_value} and {'<=' if include_max else '<'} {max_value}"
    if include_min and include_max:
        return lambda value: min_value <= value <= max_value, rule
    return lambda value: above(value, min_value) and below(value, max_value), rule


def _str_length(min_value: int | None = None, max_value: int | None = None, exact_value: int | None = None) -> Test:
    if exact_value is not None:
        return lambda value: len(value) == exact_value, f"must have {exact_value} characters"
    if max_value is None:
        return lambda value: len(value) >= min_value, f"must have at least {min_value} characters"
    least = min_value or 0
    return lambda value: least <= len(value) <= max_value, f"must have {least} to {max_value} characters"


def _among(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in values)


CHECKS: dict[str, Callable[..., Test]] = {
    "equal_to": lambda value: (lambda v: v == value, f"must be {value}"),
    "not_equal_to": lambda value: (lambda v: v != value, f"must not be {value}"),
    "greater_than": lambda min_value: (lambda v: v > min_value, f"must be > {min_value}"),
    "greater_than_or_equal_to": lambda min_value: (lambda v: v >= min_value, f"must be >= {min_value}"),
    "less_than": lambda max_value: (lambda v: v < max_value, f"must be < {max_value}"),
    "less_than_or_equal_to": lambda max_value: (lambda v: v <= max_value, f"must be <= {max_value}"),
    "in_range": _in_range,
    "isin": lambda allowed_values: (frozenset(allowed_values).__contains__, f"must be one of {_among(allowed_values)}"),
    "notin": lambda forbidden_values: (
        lambda v, forbidden=frozenset(forbidden_values): v not in forbidden,
        f"must not be one of {_among(forbidden_values)}",
    ),
    "str_matches": lambda pattern: (lambda v, match=re.compile(pattern).match: bool(match(v)), f"must match {pattern}"),
    "str_contains": lambda pattern: (
        lambda v, search=re.compile(pattern).search: bool(search(v)),
        f"must contain {pattern}",
    ),
    "str_startswith": lambda string: (lambda v: v.startswith(string), f"must start with {string}"),
    "str_endswith": lambda string: (lambda v: v.endswith(string), f"must end with {string}"),
    "str_length": _str_length,
}
