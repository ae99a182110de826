"""`python -m soak`: what takes too long for a test: thousands of generated requests, and minutes of mixed load.

Fails where an answer is a server error or breaks the OpenAPI document, where a good request is not answered, or
where file descriptors or memory of the workers grow. With `--keep` the figures go to docs/benchmarks-soak.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from statistics import linear_regression

from benchmarks import report
from benchmarks.measure import Found, exit_code
from tests.conftest import clean_environment
from tests.load import Load, example, fetch, held, hostile, send, workers

ROOT = Path(__file__).resolve().parent
PAGE = ROOT / "docs/benchmarks-soak.md"
PACKAGES = ("bentoml", "onnxruntime", "orjson", "uvicorn", "uvloop")
EXAMPLES = 1500  # of each route and kind of data in one run of schemathesis
EVERY = 2.0  # seconds between two looks at the workers
MOST = {"file descriptors": 1.0, "MB": 3.0}  # a minute
TARGETS = {
    "generated": "no server error, every answer as the OpenAPI document says",
    "load": "every good request is answered, no hostile one beside them is a server error, no stack trace in the log",
    "growth": f"at most {MOST['file descriptors']:g} file descriptor and {MOST['MB']:g} MB a minute",
}


def made(folder: Path) -> Path:
    """Bake a project into the folder and train its model."""
    subprocess.run(["cookiecutter", ROOT, "--no-input", "--output-dir", folder], check=True)
    project = next(folder.iterdir())
    for target in ("setup", "pipeline"):
        subprocess.run(["make", target], cwd=project, check=True, env=clean_environment())
    return project


@contextlib.contextmanager
def served(project: Path, log: Path) -> Iterator[tuple[str, int]]:
    """Yield address and process id of the project's service."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = f"{project / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"
    with log.open("w") as out:
        process = subprocess.Popen(
            ["ml", "serve", "--port", str(port)], cwd=project, env={**os.environ, "PATH": path}, stdout=out, stderr=out
        )
    address = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"{address}/readyz", timeout=5).status == 200:
                    break
            time.sleep(0.2)
        yield address, process.pid
    finally:
        process.terminate()
        process.wait(60)


def generated(address: str, least: int) -> Found:
    """Send at least so many generated requests."""
    count, seed = 0, 0
    while count < least:
        seed += 1
        words = [f"--max-examples={EXAMPLES}", f"--seed={seed}"]
        with tempfile.TemporaryDirectory() as scratch:
            done = subprocess.run(
                ["schemathesis", "run", f"{address}/docs.json", "--url", address, *words],
                capture_output=True,
                text=True,
                cwd=scratch,
                env={**os.environ, "NO_COLOR": "1"},
            )
        found = re.search(r"(\d+) generated", done.stdout)
        if done.returncode or not found:
            print(done.stdout[-3000:], file=sys.stderr)
            return Found("a wrong answer", False, f"schemathesis, seed {seed}")
        count += int(found[1])
    return Found(
        f"{count:,} requests, none wrong", True, f"schemathesis on every route, {seed} runs, each with its seed"
    )


def abused(address: str, row: dict, ended: threading.Event, told: list[int], wrong: list[str]) -> None:
    """Send hostile bodies until the end; append each answer's status, and what is wrong."""
    while not ended.is_set():
        for headers, body in hostile(row, 150):
            status, text = send(address, headers, body)
            told.append(status)
            if status >= 500:
                wrong.append(f"{status} for {headers} {body[:100]!r}: {text[:200]}")
            if ended.wait(0.05):
                return


def loaded(address: str, supervisor: int, minutes: float, log: Path) -> dict[str, Found]:
    """Load the service with small, large and hostile requests, and watch what its workers hold."""
    row, told, wrong, ended = example(address), list[int](), list[str](), threading.Event()
    bodies = [json.dumps({"rows": [row] * count}).encode() for count in (1, 1, 20, 1000)]
    seen: list[tuple[float, int, float]] = []
    attack = threading.Thread(target=abused, args=(address, row, ended, told, wrong))
    with contextlib.ExitStack() as stack:
        loads = [stack.enter_context(Load(address, 2, body, polite=False)) for body in bodies]
        attack.start()
        started = time.monotonic()
        while (passed := time.monotonic() - started) < minutes * 60:
            seen.append((passed / 60, *held(workers(supervisor))))
            time.sleep(EVERY)
        ended.set()
        attack.join()
    wrong += [f"{load.failed} of good requests" for load in loads if load.failed]
    if "Traceback" in log.read_text():
        wrong.append(f"the service's log holds a stack trace:\n{log.read_text()[-3000:]}")
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    answered, slowest = sum(load.outcomes["200"] for load in loads), max(load.slowest for load in loads)
    figure = f"{answered:,} good requests answered, {len(told):,} hostile ones, {len(wrong)} wrong"
    how = f"{minutes:g} minutes; 8 connections with 1, 1, 20 and 1,000 rows a request, one after the other"
    return {
        "load": Found(figure, not wrong, how, f"The slowest good request took {slowest:.2f} s."),
        "growth": growth(seen),
    }


def growth(seen: list[tuple[float, int, float]]) -> Found:
    """Return by how much descriptors and megabytes grew, from looks at a minute each."""
    # The first fifth fills caches and pools.
    later = seen[len(seen) // 5 :]
    slopes = {
        name: linear_regression([entry[0] for entry in later], [entry[index] for entry in later]).slope
        for index, name in enumerate(MOST, 1)
    }
    ends = [
        f"{name} {later[0][index]:.0f} after {later[0][0]:.1f} minutes, {later[-1][index]:.0f} at the end"
        for index, name in enumerate(MOST, 1)
    ]
    return Found(
        ", ".join(f"{name} {slope:+.2f} a minute" for name, slope in slopes.items()),
        all(slopes[name] <= most for name, most in MOST.items()),
        f"slope over the last four fifths of the load, a look every {EVERY:g} s at all workers",
        f"{'; '.join(ends)}.",
    )


def main() -> int:
    """Soak; return 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m soak", description="Soak the service of a project.")
    parser.add_argument("--project", type=Path, help="after make setup pipeline (default: one is baked and trained)")
    parser.add_argument("--minutes", type=float, default=10, help="of load (default: 10)")
    parser.add_argument("--cases", type=int, default=5000, help="generated requests (default: 5000)")
    parser.add_argument("--keep", action="store_true", help=f"write docs/{PAGE.name}")
    words = parser.parse_args()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        project = (words.project or made(Path(scratch))).resolve()
        log = Path(scratch) / "serve.log"
        with served(project, log) as (address, supervisor):
            rows = {"generated": generated(address, words.cases), **loaded(address, supervisor, words.minutes, log)}
            fetch(address, "/readyz")
        uv = [project / ".venv/bin/uv", "pip", "list", "--format", "json", "--python", project / ".venv"]
        listed = subprocess.run(uv, capture_output=True, text=True, check=True).stdout
    for name, found in rows.items():
        print(f"{'pass' if found.passed else 'MISS'}  {name}: {found.figure}\n      {found.note}", flush=True)
    if words.keep:
        load = (before, os.getloadavg()[0])
        text = report.page("Soak", "make soak", TARGETS, rows, report.versions(listed, PACKAGES), load)
        report.write(text, PAGE)
    return exit_code(rows)


if __name__ == "__main__":
    sys.exit(main())
