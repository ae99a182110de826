"""Runs in the project's interpreter: `python serving_probe.py rows 1000`, `alone FILE` and so on print JSON."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

DRAWS = 2000


def rows(count: str) -> list[dict[str, Any]]:
    """Return the first rows of the holdout as a request holds them."""
    import pyarrow.parquet

    from ml.serving import build, loadtest
    from ml.serving.request import Scorer

    names = [field.name for field in Scorer(build.MODEL).contract.fields]
    return pyarrow.parquet.read_table(loadtest.HOLDOUT, columns=names).slice(0, int(count)).to_pylist()


def fields() -> dict[str, str]:
    """Return the type of each field of a request."""
    from ml.serving import build
    from ml.serving.request import Scorer

    return {field.name: field.type for field in Scorer(build.MODEL).contract.fields}


def tile(count: str, path: str) -> int:
    """Write the holdout's inputs, again and again, to a file of so many rows."""
    import pyarrow.parquet

    from ml.serving import build, loadtest
    from ml.serving.request import Scorer

    names = [field.name for field in Scorer(build.MODEL).contract.fields]
    holdout, left = pyarrow.parquet.read_table(loadtest.HOLDOUT, columns=names), int(count)
    with pyarrow.parquet.ParquetWriter(path, holdout.schema) as writer:
        while left:
            part = holdout.slice(0, left)
            writer.write_table(part)
            left -= len(part)
    return int(count)


def alone(path: str) -> dict[str, float]:
    """Return the rows a second of ONNX Runtime by itself on the chunks of `ml score`, by where its threads are.

    They share each chunk (`within`), as ONNX Runtime does by default, or have one chunk each (`across`).
    """
    import os
    from concurrent.futures import ThreadPoolExecutor

    from ml.serving import batch, build
    from ml.serving.request import Scorer

    cores, found = os.cpu_count() or 1, {}
    contract = Scorer(build.MODEL).contract
    chunks = [batch.checked(part, contract, text=False)[0] for part in batch.batches(path, batch.CHUNK, contract)]
    for name, threads, at_once in (("within", 0, 1), ("across", 1, cores)):
        scorer = Scorer(build.MODEL, threads=threads)

        def run(columns: dict[str, Any], scorer: Scorer = scorer) -> None:
            scorer.session.run([scorer.output], columns)

        with ThreadPoolExecutor(at_once) as pool:
            start = perf_counter()
            list(pool.map(run, chunks))
            found[name] = sum(len(next(iter(chunk.values()))) for chunk in chunks) / (perf_counter() - start)
    return found


def parts(count: str) -> dict[str, float]:
    """Return the milliseconds of processor time that the parts of an answer to so many rows take."""
    import orjson

    from ml.serving import build
    from ml.serving.body import read_rows
    from ml.serving.request import Scorer

    scorer = Scorer(build.MODEL)
    body = json.dumps({"rows": rows(count)}).encode()
    read = read_rows(body, int(count))
    columns = scorer.contract.columns(read).columns
    scores = scorer.score(columns)
    return {
        "reading the JSON": least(lambda: read_rows(body, int(count))),
        "the contract": least(lambda: scorer.contract.columns(read)),
        "the model": least(lambda: scorer.score(columns)),
        "the answer": least(lambda: orjson.dumps(scorer.predictions(scores))),
    }


def least(call: Callable[[], Any]) -> float:
    """Return the milliseconds of processor time of the quickest of some calls."""
    taken = []
    for _ in range(50):
        start = thread_time()
        call()
        taken.append(thread_time() - start)
    return 1000 * min(taken)


def words(tag: str, base: str, network: str) -> list[str]:
    """Return how `make image` calls its engine for a Bento."""
    from ml.serving import build, image
    from ml.serving.request import Scorer

    digest = Scorer(build.MODEL).digest
    return [image.find_engine(), *image.arguments(Path.cwd(), tag, digest, base or None, network or None)]


def retouch() -> str:
    """Change the model's bytes, as a retrain does, and return the tag of its Bento."""
    import onnx

    from ml.serving import build

    model = onnx.load(build.MODEL)
    model.doc_string = f"retouched at {perf_counter()}"
    build.MODEL.write_bytes(model.SerializeToString(deterministic=True))
    return build.build(Path.cwd())


def loadtest(content: str) -> dict[str, Any]:
    """Load service against service, run after run, and say how often the verdict is which.

    Each run is appended to a file as soon as it is done, and what stands there counts.
    """
    from ml.pipeline import params
    from ml.serving import loadtest

    asked, settings = json.loads(content), params.read()
    how, limits = settings.loadtest, settings.gates.service.model_dump()
    kept = Path(asked["recorded"])
    load = loadtest.Load(loadtest.bodies(Path.cwd(), tuple(how.sizes), how.invalid), how.users)
    done = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    left = {kind: count - sum(run["kind"] == kind for run in done) for kind, count in asked["runs"].items()}
    # In random order, so that whatever else the machine does falls on both kinds.
    queue = [kind for kind, count in left.items() for _ in range(count)]
    for kind in random.sample(queue, len(queue)):
        sides = {"candidate": asked["candidates"][kind], "baseline": asked["baseline"]}
        begin = perf_counter()

        def start(sides: dict[str, str] = sides) -> AbstractContextManager[dict[str, str]]:
            return loadtest.serving_all(Path.cwd(), sides, None)

        found = loadtest.paired(load, start, how.starts, how.rounds, how.seconds, how.budget)
        done.append({"kind": kind, "how": asked["how"], "seconds": perf_counter() - begin, "sides": recorded(found)})
        with kept.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
    kinds = {kind: [run for run in done if run["kind"] == kind] for kind in asked["candidates"]}
    said = {kind: {"runs": len(runs), **rates(runs, limits)} for kind, runs in kinds.items() if runs}
    slower = sorted({run["how"] for run in done if run["kind"] == "slow"})
    return {"kinds": said, "how": slower, "longest": max(run["seconds"] for run in done), **how.model_dump()}


def recorded(sides: dict[str, Any]) -> dict[str, list[list[dict[str, float]]]]:
    """Return what a verdict needs of each round."""
    return {
        side: [
            [{**part.figures(), "errors": part.errors, "sent": len(part.times)} for part in start] for start in starts
        ]
        for side, starts in sides.items()
    }


class Recorded:
    """A round that was written down."""

    def __init__(self, entry: dict[str, float]) -> None:
        self.entry, self.errors = entry, entry["errors"]

    @cached_property
    def times(self) -> range:
        return range(int(self.entry["sent"]))

    def figures(self) -> dict[str, float]:
        return {name: self.entry[name] for name in ("p50", "p95", "p99", "throughput")}


def rates(runs: list[dict[str, Any]], limits: dict[str, Any]) -> dict[str, Any]:
    """Return the verdicts of the runs, the shares in runs drawn from all their starts, and the usual ratios.

    A drawn run has as many starts as one of the runs.
    """
    import numpy as np

    from ml.serving.loadtest import ratios, verdict

    def judged(starts: list[tuple[list[Recorded], list[Recorded]]]) -> tuple[str, dict[str, float]]:
        candidate, baseline = ([start[at] for start in starts] for at in (0, 1))
        found = ratios(candidate, baseline)
        said = verdict({"candidate": candidate, "baseline": baseline}, limits, found)
        return said["status"], {name: ratio for name, (ratio, *_) in found.items()}

    chance = np.random.default_rng(0)
    real = [
        [*zip(*([[*map(Recorded, start)] for start in side] for side in run["sides"].values()), strict=True)]
        for run in runs
    ]
    starts = [start for run in real for start in run]
    lengths = chance.choice([len(run) for run in real], DRAWS)
    drawn = [judged([starts[at] for at in chance.integers(len(starts), size=length)])[0] for length in lengths]
    verdicts = [judged(run) for run in real]
    seen = [status for status, _ in verdicts]
    kinds = ("passed", "failed", "not judged")
    return {
        "seen": {kind: seen.count(kind) for kind in kinds},
        "share": {kind: drawn.count(kind) / DRAWS for kind in kinds},
        "draws": DRAWS,
        "starts": float(np.mean(lengths)),
        "ratios": {name: float(np.median([found[name] for _, found in verdicts])) for name in verdicts[0][1]},
    }


VERBS: dict[str, Callable[..., Any]] = {
    "rows": rows,
    "fields": fields,
    "tile": tile,
    "alone": alone,
    "parts": parts,
    "words": words,
    "retouch": retouch,
    "loadtest": loadtest,
}

if __name__ == "__main__":
    if sys.argv[1] == "loadtest":
        from gevent import monkey

        monkey.patch_all()
    print(json.dumps(VERBS[sys.argv[1]](*sys.argv[2:])))
