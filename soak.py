"""`python -m soak`: what takes too long for a test: thousands of generated requests, and minutes of mixed load.

Fails where an answer is a server error or breaks the OpenAPI document, where a good request is not answered, or
where file descriptors or memory of the workers grow.
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

from tests.load import Load, example, fetch, held, hostile, send, workers

ROOT = Path(__file__).resolve().parent
EXAMPLES = 1500  # of each route and kind of data in one run of schemathesis
EVERY = 2.0  # seconds between two looks at the workers
MOST = {"file descriptors": 1.0, "MB": 3.0}  # a minute


def made(folder: Path) -> Path:
    """Bake a project into the folder and train its model."""
    subprocess.run(["cookiecutter", ROOT, "--no-input", "--output-dir", folder], check=True)
    project = next(folder.iterdir())
    subprocess.run(["make", "setup", "pipeline"], cwd=project, check=True)
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


def generated(address: str, least: int) -> list[str]:
    """Send at least so many generated requests; return what is wrong."""
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
            return [f"schemathesis, seed {seed}: {done.stdout[-3000:]}"]
        count += int(found[1])
    print(f"{count} generated requests: no server error, every answer as documented", flush=True)
    return []


def abused(address: str, row: dict, ended: threading.Event, wrong: list[str]) -> None:
    """Send hostile bodies until the end."""
    while not ended.is_set():
        for headers, body in hostile(row, 150):
            status, text = send(address, headers, body)
            if status >= 500:
                wrong.append(f"{status} for {headers} {body[:100]!r}: {text[:200]}")
            if ended.wait(0.05):
                return


def loaded(address: str, supervisor: int, minutes: float) -> list[str]:
    """Load the service with small, large and hostile requests; return what is wrong."""
    row, wrong, ended = example(address), [], threading.Event()
    bodies = [json.dumps({"rows": [row] * count}).encode() for count in (1, 1, 20, 1000)]
    seen: list[tuple[float, int, float]] = []
    attack = threading.Thread(target=abused, args=(address, row, ended, wrong))
    with contextlib.ExitStack() as stack:
        loads = [stack.enter_context(Load(address, 2, body, polite=False)) for body in bodies]
        attack.start()
        started = time.monotonic()
        while (passed := time.monotonic() - started) < minutes * 60:
            seen.append((passed / 60, *held(workers(supervisor))))
            time.sleep(EVERY)
        ended.set()
        attack.join()
    answered = sum(load.outcomes["200"] for load in loads)
    wrong += [f"{load.failed} of good requests" for load in loads if load.failed]
    # The first fifth fills caches and pools.
    later = seen[len(seen) // 5 :]
    slopes = {
        name: linear_regression([entry[0] for entry in later], [entry[index] for entry in later]).slope
        for index, name in enumerate(MOST, 1)
    }
    first, last = later[0], later[-1]
    print(f"{answered} good requests in {minutes:g} min, slowest {max(load.slowest for load in loads):.2f} s")
    for index, (name, slope) in enumerate(slopes.items(), 1):
        print(f"{name}: {first[index]:.0f} to {last[index]:.0f}, slope {slope:+.2f} a minute", flush=True)
    return wrong + [f"{name} grow by {slope:.2f} a minute" for name, slope in slopes.items() if slope > MOST[name]]


def main() -> int:
    """Soak; return 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m soak", description="Soak the service of a project.")
    parser.add_argument("--project", type=Path, help="after make setup pipeline (default: one is baked and trained)")
    parser.add_argument("--minutes", type=float, default=10, help="of load (default: 10)")
    parser.add_argument("--cases", type=int, default=5000, help="generated requests (default: 5000)")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        project = (words.project or made(Path(scratch))).resolve()
        log = Path(scratch) / "serve.log"
        with served(project, log) as (address, supervisor):
            wrong = generated(address, words.cases) + loaded(address, supervisor, words.minutes)
            fetch(address, "/readyz")
        if "Traceback" in log.read_text():
            wrong.append(f"the service's log holds a stack trace:\n{log.read_text()[-3000:]}")
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
