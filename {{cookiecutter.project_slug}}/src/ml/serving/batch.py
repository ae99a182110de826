"""Scores files in chunks: the rules, the model and the answers are the service's, whatever the length."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from ml.errors import RejectedRowsError, UserError
from ml.progress import steps
from ml.serving.request import Contract, Field, Scorer

CHUNK = 16_384  # rows held at once
FORMATS = (".parquet", ".csv", ".csv.gz")
READ_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError, ImportError, ValueError)
WORDS = {"true": True, "false": False}
Problems = dict[int, list[dict[str, str]]]  # by row of a chunk
Scored = tuple[pa.RecordBatch, Problems, dict[str, int]]
Item, Result = TypeVar("Item"), TypeVar("Result")


@dataclass
class Told:
    """What a run did."""

    files: int = 0
    rows: int = 0
    rejected: int = 0
    unknown: dict[str, int] = field(default_factory=dict)


def run(model: Path, source: str, target: str, chunk: int = CHUNK) -> Told:
    """Write the source's rows with the model's answers beside them, and bad rows with reasons to a side file.

    Source: a file, a folder or a glob, and target: a file; Parquet or CSV, here or at any URL that fsspec opens.
    Both outputs are written elsewhere first and appear whole. Raises RejectedRowsError, after both are written, where
    rows were rejected, and UserError, with nothing written, where the source cannot be scored.
    """
    # One thread for each chunk and as many chunks: reading, checking and writing then wait for nobody.
    scorer, told, cores = Scorer(model, threads=1), Told(), os.cpu_count() or 1
    if not target.endswith((".parquet", ".csv")):
        raise UserError(f"{target} must end in .parquet or .csv, such as scores.parquet")
    paths = files_of(source)
    side = f"{target.rpartition('.')[0]}.rejected.jsonl"
    with TemporaryDirectory(prefix="score-") as scratch, ExitStack() as stack:
        good, bad = Path(scratch, f"good.{target.rpartition('.')[2]}"), Path(scratch, "bad.jsonl")
        output = stack.enter_context(_writing(good, target))
        rejected = stack.enter_context(bad.open("w", encoding="utf-8"))
        bar = stack.enter_context(steps("score", _length(paths)))
        for path in paths:
            told.files += 1
            work = partial(_beside, scorer=scorer, text=not path.endswith(".parquet"))
            for batch, (kept, found, unknown) in in_order(work, batches(path, chunk, scorer.contract), cores):
                output(kept)
                for name, count in unknown.items():
                    told.unknown[name] = told.unknown.get(name, 0) + count
                for place, problems in found.items():
                    row = batch.slice(place, 1).to_pylist()[0]
                    entry = {"file": path, "row": told.rows + place, "problems": problems, "values": row}
                    rejected.write(json.dumps(entry, default=str) + "\n")
                told.rows += len(batch)
                told.rejected += len(found)
                bar.update(len(batch))
        stack.close()
        if not told.rows:
            raise UserError(f"{source} holds no row: there is nothing to score")
        publish(good, target)
        if told.rejected:
            publish(bad, side)
        else:
            _remove(side)
    if told.rejected:
        raise RejectedRowsError(f"{told.rejected:,} of {told.rows:,} rows were rejected: {side} says why")
    return told


def in_order(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Yield the work on each item in the items' order, done in threads; one item more than threads is held."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, "chunks") as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _beside(batch: pa.RecordBatch, scorer: Scorer, text: bool) -> tuple[pa.RecordBatch, Scored]:
    return batch, score(batch, scorer, text=text)


def files_of(source: str) -> list[str]:
    """Return the files that a path, a folder or a glob names, sorted; raise UserError where there are none."""
    system, path = _located(source)
    try:
        if system.isdir(path):
            found = [name for name in system.ls(path, detail=False) if str(name).endswith(FORMATS)]
        else:
            found = system.glob(path) if set(path) & set("*?[") else [path] if system.exists(path) else []
    except READ_ERRORS as error:
        raise UserError(f"{source} cannot be listed: {_first_line(error)}") from None
    if not found:
        raise UserError(f"{source} names no file: give a file, a folder with {', '.join(FORMATS)} files, or a glob")
    if strange := next((name for name in found if not name.endswith(FORMATS)), None):
        raise UserError(f"{strange} is neither Parquet nor CSV by its name: it must end in {', '.join(FORMATS)}")
    return sorted(system.unstrip_protocol(name) for name in found)


def batches(path: str, chunk: int, contract: Contract) -> Iterator[pa.RecordBatch]:
    """Yield a file's rows in chunks; raise UserError where it cannot be read or lacks a required field."""
    shown = path.removeprefix("file://")
    try:
        with fsspec.open(path, compression="infer") as content:
            if path.endswith(".parquet"):
                parts = pa.parquet.ParquetFile(content, pre_buffer=False).iter_batches(chunk)
            else:
                parts = _csv(content, chunk)
            for part in parts:
                _refuse_missing(part.schema.names, contract, shown)
                yield _with_types(part, contract)
    except READ_ERRORS as error:
        raise UserError(f"{shown} cannot be read: {_first_line(error)}") from None


def _csv(content: Any, chunk: int) -> Iterator[pa.RecordBatch]:
    # As text, since a type guessed from the first rows would not fit a later one.
    names = next(csv.reader([content.readline().decode("utf-8-sig")]), [])
    options = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    read = pa.csv.ReadOptions(column_names=names, block_size=1 << 22)
    for block in pa.csv.open_csv(content, read_options=read, convert_options=options):
        for start in range(0, len(block), chunk):
            yield block.slice(start, chunk)


def _with_types(batch: pa.RecordBatch, contract: Contract) -> pa.RecordBatch:
    """Return the batch with a type for columns that hold no value, which have none in their file."""
    numbers = {entry.name for entry in contract.fields if entry.type != "string"}
    for at, column in enumerate(batch.schema):
        if pa.types.is_null(column.type):
            typed = batch.column(at).cast(pa.float64() if column.name in numbers else pa.string())
            batch = batch.set_column(at, column.name, typed)
    return batch


def _refuse_missing(names: list[str], contract: Contract, path: str) -> None:
    absent = [entry.name for entry in contract.fields if entry.name not in names and not entry.optional]
    if absent:
        raise UserError(f"{path} lacks the column {absent[0]}, which the model needs; it has {', '.join(names)[:200]}")


def score(batch: pa.RecordBatch, scorer: Scorer, *, text: bool) -> Scored:
    """Return good rows with their answers, each bad row's problems, and unknown categories; `text`: all values are."""
    columns, problems, unknown = checked(batch, scorer.contract, text)
    if problems:
        good = np.setdiff1d(np.arange(len(batch)), list(problems))
        batch = batch.take(pa.array(good))
        columns = {name: column[good] for name, column in columns.items()}
    scores = scorer.score(columns) if len(batch) else np.empty((0, max(2, len(scorer.contract.classes))), np.float32)
    for name, values in answers(scores, scorer.contract).items():
        if name in batch.schema.names:
            raise UserError(f"the source has a column {name} already, which the answer would be called: rename it")
        batch = batch.append_column(name, values)
    return batch, problems, unknown


def checked(
    batch: pa.RecordBatch, contract: Contract, text: bool
) -> tuple[dict[str, np.ndarray], Problems, dict[str, int]]:
    """Return the model's inputs, the problems of each bad row, and the number of unknown categories by field."""
    arrays = {
        entry.name: batch.column(entry.name) if entry.name in batch.schema.names else pa.nulls(len(batch))
        for entry in contract.fields
    }
    found = {entry.name: at_once(entry, arrays[entry.name], text) for entry in contract.fields}
    if all(column is not None for column in found.values()):
        unknown = {name: column[1] for name, column in found.items() if column[1]}
        columns, problems = {name: column[0] for name, column in found.items()}, []
    else:
        rows = pa.RecordBatch.from_arrays([*arrays.values()], names=[*arrays]).to_pylist()
        if text:
            rows = [{entry.name: _value(entry.type, row[entry.name]) for entry in contract.fields} for row in rows]
        columns, problems, unknown = contract.columns(rows)
    grouped: Problems = {}
    for problem in problems:
        grouped.setdefault(problem.row, []).append({"field": problem.field, "rule": problem.rule})
    return columns, grouped, unknown


def at_once(entry: Field, array: pa.Array, text: bool = False) -> tuple[np.ndarray, int] | None:
    """Return a column (n_rows, 1) and its number of unknown categories; None where values must be looked at singly."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_null(array.type):
        array = array.cast(pa.string() if entry.type == "string" else pa.float64())
    if array.null_count and not entry.optional:
        return None
    if entry.type == "string":
        return _text(entry, array)
    try:
        kind = pa.bool_() if entry.type == "boolean" else pa.float64()
        return _numbers(entry, array.cast(kind) if text else array)
    except pa.ArrowInvalid:
        return None


def _text(entry: Field, array: pa.Array) -> tuple[np.ndarray, int] | None:
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        return None
    coded = array.dictionary_encode()
    values = coded.dictionary.to_pylist()
    if not all(passes(value) for value in values for passes, _ in entry.tests):
        return None
    codes = pc.fill_null(coded.indices, len(values)).to_numpy(zero_copy_only=False)
    strange = np.array([entry.categories is not None and value not in entry.categories for value in values] + [False])
    return np.array([*values, ""], dtype=object)[codes].reshape(-1, 1), int(strange[codes].sum())


def _numbers(entry: Field, array: pa.Array) -> tuple[np.ndarray, int] | None:
    if pa.types.is_boolean(array.type) != (entry.type == "boolean"):
        return None
    if entry.type == "boolean":
        return pc.cast(array, pa.float32()).to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, 1), 0
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        return None
    values = array.to_numpy(zero_copy_only=False)
    present = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    if len(present) < len(values) and not entry.optional:
        return None
    whole = present.dtype.kind in "iu" or entry.type != "integer" or bool(np.all(present == np.floor(present)))
    samples = ([present.min(), present.max()] if entry.ordered else np.unique(present)) if len(present) else []
    if not whole or not all(passes(value.item()) for value in samples for passes, _ in entry.tests):
        return None
    return values.astype(np.float32).reshape(-1, 1), 0


def _value(kind: str, value: Any) -> Any:
    if kind == "string" or not isinstance(value, str):
        return value
    if kind == "boolean":
        return WORDS.get(value.lower(), value)
    try:
        return float(value)
    except ValueError:
        return value


def answers(scores: np.ndarray, contract: Contract) -> dict[str, pa.Array]:
    """Return the columns of an answer, as the service names them; a class has its probability in a column."""
    match contract.task:
        case "regression":
            return {"value": _finite(scores[:, 0])}
        case "binary":
            score = scores[:, 1].astype(float)
            return {"score": _finite(score), "decision": pa.array(np.isfinite(score) & (score >= contract.threshold))}
        case _:
            labels = np.array(contract.classes, dtype=object)[scores.argmax(axis=1)]
            shares = {f"probability_{name}": _finite(scores[:, at]) for at, name in enumerate(contract.classes)}
            return {"label": pa.array(labels, pa.string()), **shares}


def _finite(values: np.ndarray) -> pa.Array:
    return pa.array(values.astype(float), mask=~np.isfinite(values))


@contextmanager
def _writing(path: Path, target: str) -> Iterator[Any]:
    made: list[tuple[Any, pa.Schema]] = []

    def write(batch: pa.RecordBatch) -> None:
        if not made:
            kind = pa.parquet.ParquetWriter if target.endswith(".parquet") else pa.csv.CSVWriter
            made.append((kind(str(path), batch.schema), batch.schema))
        writer, schema = made[0]
        if not batch.schema.equals(schema):
            raise UserError("the source's files differ in columns or types: score them one by one")
        writer.write_batch(batch)

    try:
        yield write
    finally:
        for writer, _ in made:
            writer.close()


def publish(path: Path, target: str) -> None:
    """Move a finished file to its place, where it appears whole; raise UserError where that fails."""
    system, place = _located(target)
    try:
        if "file" in system.protocol:
            final = Path(place)
            final.parent.mkdir(parents=True, exist_ok=True)
            fresh = final.with_name(f"{final.name}.tmp")
            shutil.copyfile(path, fresh)
            fresh.replace(final)
        else:
            system.put_file(str(path), place)
    except READ_ERRORS as error:
        raise UserError(f"{target} cannot be written: {_first_line(error)}") from None


def _remove(target: str) -> None:
    system, place = _located(target)
    if system.exists(place):
        system.rm_file(place)


def _located(url: str) -> tuple[Any, str]:
    try:
        return fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise UserError(f"{url} cannot be opened: {_first_line(error)}") from None


def _length(paths: list[str]) -> int | None:
    try:
        return sum(pa.parquet.ParquetFile(path.removeprefix("file://")).metadata.num_rows for path in paths)
    except READ_ERRORS:
        return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
