"""`python -m benchmarks.serving`: writes docs/benchmarks-serving.md; with `--only first,batch` to the screen alone."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median

from benchmarks import report
from benchmarks.measure import CommandFailedError, Found, chosen, cost, exit_code, measured
from benchmarks.rows import GB, Bench, only
from benchmarks.servers import Load, Server, Wrk, await_answer, hurry, processor_time, running
from tests.conftest import ROOT, clean_environment

PAGE = ROOT / "docs/benchmarks-serving.md"
APPS, PROBE = (Path(__file__).with_name(name) for name in ("serving_apps.py", "serving_probe.py"))
OURS, SCIKIT, ONNX, RAW = "ours", "FastAPI + scikit-learn", "FastAPI + ONNX", "raw ASGI + ONNX"
BENTO, MLFLOW, TYPED = "BentoML + scikit-learn", "mlflow models serve", "FastAPI + ONNX with typed rows"
THREADS = "FastAPI + ONNX with its own threads"
CONNECTIONS, ROUNDS, STARTS = 32, 5, 5
FEW, BULK = 8, 2  # connections with one row, and beside them with a thousand
MILLION = 1_000_000
SLOWER = 1.3
MIXED = (1, 1, 1, 1, 10, 100)  # rows, as in the load test
PACKAGES = ("bentoml", "fastapi", "mlflow", "numpy", "onnxruntime", "pandas", "scikit-learn", "uvicorn", "uvloop")
TARGETS = {
    "one_row": f"1-row requests, {CONNECTIONS} connections: requests/s ≥ 20 × {SCIKIT}, ≥ 1.0 × {ONNX}, ≥ 0.5 × {RAW}",
    "p99": f"at {CONNECTIONS} connections ≤ 2 × {ONNX}, and ≤ 0.1 × {SCIKIT}",
    "thousand": f"1,000-row requests: rows/s ≥ 1.5 × {ONNX}; 1-row requests beside them keep their p99 within 3 ×",
    "workers": "two workers ≥ 1.6 × one",
    "batch": "`ml score` rows/s ≥ 0.7 × ONNX Runtime alone on the same chunks; memory independent of the length",
    "first": "first request after `/readyz` ≤ 25 ms",
    "image": "≤ half the size of BentoML's own, ≤ 220 MB over the base; a new model rebuilds in ≤ 0.1 of a cold build",
    "load_test": f"A against A fails ≤ 2 %, a service {SLOWER} × slower fails ≥ 95 %; a run takes ≤ 90 s",
}
BURN = """
    def respond(self, body: bytes, identity: bytes, *turn: object) -> bytes:
        from time import thread_time

        start = thread_time()
        answer = self.usual(body, identity, *turn)
        end = thread_time()
        end += {share} * (end - start)
        while thread_time() < end:
            pass
        return answer

    def usual("""


class Serving(Bench):
    """A trained project, what serves its model, and what is measured of it."""

    def __init__(self, scratch: Path, words: argparse.Namespace) -> None:
        super().__init__(scratch, repeats=1)
        self.given, self.seconds, self.runs, self.urgent = words.project, words.seconds, words.runs, words.urgent
        self.recorded = words.recorded or scratch / "runs.jsonl"
        self.first_come = "; servers and wrk before the other work of the machine" if self.urgent else ""
        self.wrk, self.pids = Wrk(scratch), dict[str, int]()
        self.apps = scratch / "apps"
        self.apps.mkdir()
        shutil.copy(APPS, self.apps)

    @cached_property
    def project(self) -> Path:
        """A trained project of our own."""
        if self.given is None:
            return self.done
        own = self.scratch / "given"
        shutil.copytree(self.given, own, symlinks=True, ignore=only(self.given, ".venv"))
        (own / ".venv").symlink_to(self.given.resolve() / ".venv")
        return own

    def probe(self, *words: object, **more: str) -> object:
        """Return what serving_probe.py prints."""
        printed = self.run(self.project, "python", PROBE, *(str(word) for word in words), **more).printed
        return json.loads(printed.splitlines()[-1])

    @cached_property
    def rows(self) -> list[dict]:
        return self.probe("rows", 4000)

    @cached_property
    def fields(self) -> str:
        return json.dumps(self.probe("fields"))

    @cached_property
    def bento(self) -> Path:
        """The folder of the Bento that `ml build` makes."""
        self.tag = self.run(self.project, "ml", "build").printed.split()[-1]
        return self.project / ".bentoml/bentos" / Path(*self.tag.split(":"))

    def server(self, name: str) -> Server:
        """Return how one of those that are compared starts."""
        command, path, key = {
            OURS: (("bentoml", "serve", "ml.serving.service:Predictor"), "/predict", "rows"),
            SCIKIT: (("uvicorn", "--factory", "serving_apps:fastapi_scikit"), "/predict", "rows"),
            ONNX: (("uvicorn", "--factory", "serving_apps:fastapi_onnx"), "/predict", "rows"),
            TYPED: (("uvicorn", "--factory", "serving_apps:fastapi_typed"), "/predict", "rows"),
            THREADS: (("uvicorn", "--factory", "serving_apps:fastapi_onnx"), "/predict", "rows"),
            RAW: (("uvicorn", "--factory", "serving_apps:raw_onnx"), "/predict", "rows"),
            BENTO: (("bentoml", "serve", "serving_apps:Plain"), "/predict", "rows"),
            MLFLOW: (
                ("mlflow", "models", "serve", "--env-manager", "local", "--model-uri", self.pipeline),
                "/invocations",
                "dataframe_records",
            ),
        }[name]
        quiet = ("--no-access-log", "--log-level", "warning") if command[0] == "uvicorn" else ()
        place = self.bento / "src" if name == OURS else self.apps
        more = {"BENCH_THREADS": "0"} if name == THREADS else {}
        return Server(self.words(*command, *quiet), place, self.environment(**more), path, key)

    def words(self, program: str, *more: str | Path) -> list[str | Path]:
        """Return the words that start a server of the project's environment on the loopback."""
        return [self.project / ".venv/bin" / program, *more, "--host", "127.0.0.1", "--port", "{port}"]

    def environment(self, **more: str) -> dict[str, str]:
        """Return a server's environment; two with one folder of metrics would count together."""
        home = Path(tempfile.mkdtemp(prefix="home-", dir=self.scratch))
        own = {"BENTOML_HOME": str(home), "PROMETHEUS_MULTIPROC_DIR": str(home / "metrics"), "ML_DRAIN": "0"}
        own |= {"BENTOML_DO_NOT_TRACK": "True", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
        own |= {"BENCH_MODEL": str(self.project / "models/model.onnx"), "BENCH_PIPELINE": str(self.pipeline)}
        own |= {"BENCH_FIELDS": self.fields, "ORT_DISABLE_TELEMETRY": "1"}
        path = os.pathsep.join([str(self.project / ".venv/bin"), clean_environment()["PATH"]])
        return clean_environment(**own, PATH=path, **more)

    @cached_property
    def pipeline(self) -> Path:
        """The scikit-learn pipeline as training gave it to MLflow."""
        found = [path.parent for path in self.project.glob("mlruns/*/models/*/artifacts/MLmodel")]
        return max(found, key=lambda path: path.stat().st_mtime)

    @contextmanager
    def up(self, name: str, server: Server) -> Iterator[str]:
        """Yield where a server that is warm takes requests."""
        log = self.scratch / f"{name.replace(' ', '-')}.log"
        with running(server, log) as (root, pid):
            self.pids[root + server.path] = pid
            body = json.dumps({server.key: self.rows[:1]}).encode()
            await_answer(root + server.path, body, log)
            self.wrk.load(root + server.path, self.bodies(1, server.key), CONNECTIONS, 2)
            if self.urgent:
                hurry(pid)
            yield root + server.path

    def load(self, address: str, bodies: Path, connections: int) -> Load:
        """Return a round of wrk with the processor time that the server took for a request."""
        before = processor_time(self.pids[address])
        load = self.wrk.load(address, bodies, connections, self.seconds)
        used = processor_time(self.pids[address]) - before
        return replace(load, spent=1000 * used / (load.rate * self.seconds))

    def bodies(self, size: int, key: str = "rows") -> Path:
        """Return the file of requests with so many rows each."""
        return self.wrk.bodies(key, self.rows, [size], 64 if size == 1 else 4)

    @cached_property
    def one(self) -> tuple[dict[str, list[Load]], dict[str, str]]:
        """What each server did in short rounds of random order, and why a server is missing."""
        chance, absent = random.Random(0), {}
        with ExitStack() as stack:
            addresses = {}
            for name in (OURS, SCIKIT, BENTO, MLFLOW, ONNX, TYPED, RAW):
                server = self.server(name)
                try:
                    addresses[name] = stack.enter_context(self.up(name, server)), self.bodies(1, server.key)
                except CommandFailedError as error:
                    print(error, file=sys.stderr)
                    absent[name] = str(error).splitlines()[0]
            rounds: dict[str, list[Load]] = {name: [] for name in addresses}
            for _ in range(ROUNDS):
                for name in chance.sample([*addresses], len(addresses)):
                    rounds[name].append(self.wrk.load(*addresses[name], CONNECTIONS, self.seconds))
        return rounds, absent

    def one_row(self) -> Found:
        """Compare requests a second."""
        rounds, absent = self.one
        times = {name: over(rounds[OURS], loads, "rate") for name, loads in rounds.items() if name != OURS}
        said = ", ".join(f"{name} {middle(loads, 'rate'):,.0f}" for name, loads in rounds.items())
        return Found(
            f"{times[SCIKIT]:.0f} × {SCIKIT}, {times[ONNX]:.2f} × {ONNX}, {times[RAW]:.2f} × {RAW}",
            times[SCIKIT] >= 20 and times[ONNX] >= 1 and times[RAW] >= 0.5,
            f"wrk, one thread; {ROUNDS} rounds of {self.seconds} s each in random order, all servers up, one worker "
            f"each{self.first_come}; medians of the ratios of rounds",
            f"Requests/s: {said}. Ours is {times.get(BENTO, float('nan')):.0f} × {BENTO}"
            + (f" and {times[MLFLOW]:.0f} × {MLFLOW}" if MLFLOW in times else "")
            + ". The others are what their users write: no check of the contract, no limits, no metrics of the model; "
            f"uvicorn without its access log. wrk took {middle(rounds[OURS], 'cores'):.2f} cores beside ours."
            + "".join(f" {name} did not start: {reason}." for name, reason in absent.items()),
        )

    def p99(self) -> Found:
        """Compare the slowest percent."""
        rounds, _ = self.one
        times = {name: over(rounds[OURS], rounds[name], "p99") for name in (ONNX, SCIKIT)}
        said = ", ".join(f"{name} {middle(loads, 'p99'):.1f} ms" for name, loads in rounds.items())
        return Found(
            f"{times[ONNX]:.2f} × {ONNX}, {times[SCIKIT]:.3f} × {SCIKIT}",
            times[ONNX] <= 2 and times[SCIKIT] <= 0.1,
            "the rounds of `one_row`; medians of the ratios of rounds",
            f"p99: {said}.",
        )

    def thousand(self) -> Found:
        """Load with large requests, and with small ones beside them."""
        chance = random.Random(0)
        rounds: dict[str, list[Load]] = {OURS: [], ONNX: [], THREADS: [], TYPED: []}
        small: dict[str, tuple[list[Load], list[Load]]] = {OURS: ([], []), ONNX: ([], [])}
        one, many = self.bodies(1), self.bodies(1000)
        with ExitStack() as stack, ThreadPoolExecutor() as pool:
            addresses = {name: stack.enter_context(self.up(name, self.server(name))) for name in rounds}
            for _ in range(ROUNDS):
                for name in chance.sample([*addresses], len(addresses)):
                    address, seconds = addresses[name], self.seconds
                    rounds[name].append(self.load(address, many, BULK))
                    if name not in small:
                        continue
                    small[name][0].append(self.wrk.load(address, one, FEW, seconds))
                    beside = pool.submit(self.wrk.load, address, many, BULK, seconds + 1)
                    time.sleep(0.5)
                    small[name][1].append(self.wrk.load(address, one, FEW, seconds))
                    beside.result()
        # The faster of the two is what ours is held to.
        times = min(over(rounds[OURS], rounds[name], "rate") for name in (ONNX, THREADS))
        parts = self.probe("parts", 1000)
        rates = ", ".join(f"{name} {1000 * middle(loads, 'rate'):,.0f}" for name, loads in rounds.items())
        kept = {name: over(beside, quiet, "p99") for name, (quiet, beside) in small.items()}
        return Found(
            f"{times:.2f} × {ONNX}; p99 beside them {kept[OURS]:.1f} ×",
            times >= 1.5 and kept[OURS] <= 3,
            f"{ROUNDS} rounds of {self.seconds} s each in random order, {BULK} connections with 1,000 rows; beside "
            f"them {FEW} with one row, against these alone{self.first_come}; medians of the ratios of rounds",
            f"Rows/s: {rates} (ours is {over(rounds[OURS], rounds[TYPED], 'rate'):.2f} × the last, which checks types "
            "as ours does). p99 of the small ones alone and beside: "
            + "; ".join(
                f"{name} {middle(quiet, 'p99'):.1f} and {middle(beside, 'p99'):.1f} ms ({kept[name]:.1f} ×), "
                f"{middle(beside, 'rate'):,.0f} requests/s beside"
                for name, (quiet, beside) in small.items()
            )
            + ". Processor time of a request: "
            + ", ".join(f"{name} {middle(loads, 'spent'):.1f} ms" for name, loads in rounds.items())
            + "; of ours, "
            + ", ".join(f"{name} takes {milliseconds:.1f}" for name, milliseconds in parts.items())
            + " where it runs alone.",
        )

    def workers(self) -> Found:
        """Load one worker and two."""
        chance, rounds = random.Random(0), {"1": [], "2": []}
        server = self.server(OURS)
        with ExitStack() as stack:
            addresses = {
                count: stack.enter_context(
                    self.up(
                        f"{count} workers",
                        Server(server.command, server.cwd, self.environment(ML_WORKERS=count)),
                    )
                )
                for count in rounds
            }
            for _ in range(ROUNDS):
                for count in chance.sample([*rounds], 2):
                    rounds[count].append(self.load(addresses[count], self.bodies(1), CONNECTIONS))
        times = over(rounds["2"], rounds["1"], "rate")
        return Found(
            f"{times:.2f} ×",
            times >= 1.6,
            f"{ROUNDS} rounds of {self.seconds} s each in random order, {CONNECTIONS} connections, one row"
            f"{self.first_come}; median of the ratios of rounds",
            f"Requests/s: {middle(rounds['1'], 'rate'):,.0f} and {middle(rounds['2'], 'rate'):,.0f}. wrk shares the "
            f"{os.cpu_count()} cores: it took {middle(rounds['1'], 'cores'):.2f} of them beside one worker and "
            f"{middle(rounds['2'], 'cores'):.2f} beside two, so {os.cpu_count()} cores leave two workers at most "
            f"{(os.cpu_count() or 1) - middle(rounds['2'], 'cores'):.2f}. Processor time of a request: "
            f"{middle(rounds['1'], 'spent'):.2f} ms with one worker, {middle(rounds['2'], 'spent'):.2f} ms with two.",
        )

    def batch(self) -> Found:
        """Score one and ten million rows."""
        folder = self.scratch / "batch"
        folder.mkdir()
        sources = {count: folder / f"{count}.parquet" for count in (MILLION, 10 * MILLION)}
        try:
            for count, path in sources.items():
                self.probe("tile", count, path)
            alone = [self.probe("alone", sources[MILLION])]
            used = {}
            for count, path in sources.items():
                used[count] = self.run(self.project, "ml", "score", path, folder / "scores.parquet")
                alone.append(self.probe("alone", sources[MILLION]))
        finally:
            shutil.rmtree(folder)
        rates = {count: count / found.wall for count, found in used.items()}
        few, many = (used[count].rss for count in sources)
        by = {name: median(found[name] for found in alone) for name in alone[0]}
        share = rates[10 * MILLION] / max(by.values())
        return Found(
            f"{share:.2f} ×; {few / GB:.2f} GB and {many / GB:.2f} GB",
            share >= 0.7 and many <= 1.2 * few,
            "the holdout's inputs again and again as Parquet; wall time of the command for 10,000,000 rows, start and "
            "both files included, against ONNX Runtime alone for 1,000,000 (same chunks, all cores, the better of two "
            "ways, each a median of 3); largest resident set at 1,000,000 and 10,000,000 rows",
            f"Rows/s: {rates[10 * MILLION]:,.0f} at 10,000,000 ({used[10 * MILLION].wall:.0f} s), "
            f"{rates[MILLION]:,.0f} at 1,000,000 ({used[MILLION].wall:.1f} s). ONNX Runtime alone: {by['across']:,.0f} "
            f"where each core has a chunk, as in `ml score`, {by['within']:,.0f} where the cores share each chunk. "
            f"Processor time at 10,000,000: {used[10 * MILLION].cpu:.0f} s.",
        )

    def first(self) -> Found:
        """Ask once, as soon as the service says it is ready."""
        body, seconds = json.dumps({"rows": self.rows[:1]}).encode(), []
        for index in range(STARTS):
            log = self.scratch / f"first-{index}.log"
            with running(self.server(OURS), log) as (root, _):
                await_answer(f"{root}/readyz", None, log, pause=0.05)
                start = time.perf_counter()
                client = http.client.HTTPConnection(root.removeprefix("http://"))
                client.request("POST", "/predict", body, {"content-type": "application/json"})
                client.getresponse().read()
                seconds.append(time.perf_counter() - start)
                client.close()
        return Found(
            f"{1000 * median(seconds):.1f} ms",
            median(seconds) <= 0.025,
            f"median of {STARTS} starts; connection, request and answer",
            f"Each: {', '.join(f'{1000 * value:.1f}' for value in seconds)} ms.",
        )

    def image(self) -> Found:
        """Build our image and BentoML's own of the same Bento."""
        base, network = os.environ.get("BASE_IMAGE", ""), "host"
        try:
            assert self.bento
            engine, *words = self.probe("words", self.tag, base, network)
        except CommandFailedError as error:
            return Found("not measured", False, "needs a container engine", str(error).splitlines()[-1])
        run = partial(cost, cwd=self.scratch, environment=clean_environment())
        cold = run([engine, words[0], "--no-cache", *words[1:]])
        tag = self.probe("retouch")
        warm = run(self.probe("words", tag, base, network))
        theirs, note = self._theirs(engine, base, network)
        start = base or re.findall(r"(?m)^FROM (\S+)", self._generated())[0]
        sizes = [
            int(run([engine, "image", "inspect", "--format", "{{.Size}}", image]).printed) / 1e6
            for image in (start, self.tag, theirs)
            if image
        ]
        run([engine, "image", "rm", "--force", *(image for image in (self.tag, tag, theirs) if image)])
        more, share = sizes[1] - sizes[0], warm.wall / cold.wall
        half = sizes[1] / sizes[2] if theirs else float("nan")
        compared = f"{half:.2f} of BentoML's" if theirs else "BentoML's not measured"
        return Found(
            f"{compared}, {more:.0f} MB over the base, a new model {share:.2f} of a cold build",
            half <= 0.5 and more <= 220 and share <= 0.1,
            f"sizes as the engine says them; wall time of a build with `--no-cache` ({cold.wall:.0f} s) and of one "
            f"after only the model changed ({warm.wall:.1f} s)",
            f"Base {sizes[0]:.0f} MB, ours {sizes[1]:.0f} MB"
            + (f", BentoML's {sizes[2]:.0f} MB" if theirs else "")
            + f". {note}",
        )

    def _generated(self) -> str:
        return (self.bento / "env/docker/Dockerfile").read_text()

    def _theirs(self, engine: str, base: str, network: str) -> tuple[str, str]:
        """Return the image that BentoML's own Dockerfile makes, none where it cannot be built, and what to say."""
        text, file, tag, note = self._generated(), self.scratch / "Dockerfile.theirs", "bench-theirs:latest", ""
        if base:
            # Another base may have another Python and certificates of its own, and Debian's pip must be told.
            known = "PIP_BREAK_SYSTEM_PACKAGES=1 UV_SYSTEM_CERTS=1 UV_NATIVE_TLS=1"
            text = re.sub(r"(?m)^FROM .*$", f"FROM {base} AS base-container\nENV {known}", text)
            text, note = re.sub(r"uv venv --python [\d.]+", "uv venv", text), " Its `FROM` and Python are this base's."
        file.write_text(text)
        try:
            cost(
                [engine, "build", "--quiet", f"--tag={tag}", f"--file={file}", f"--network={network}", self.bento],
                self.scratch,
                clean_environment(),
            )
        except CommandFailedError as error:
            print(error, file=sys.stderr)
            return "", "BentoML's own Dockerfile could not be built here."
        return tag, "BentoML's is of the Dockerfile in the same Bento, which `bentoml containerize` builds." + note

    def load_test(self) -> Found:
        """Load the service against itself and against one made slower, many times."""
        slower = shutil.copytree(self.bento, self.bento.parent / "slower", dirs_exist_ok=True)
        wanted = {"same": self.runs, "slow": (self.runs + 1) // 2}
        lines = self.recorded.read_text().splitlines() if self.recorded.exists() else []
        done = [json.loads(line)["kind"] for line in lines]
        try:
            missing = any(done.count(kind) < count for kind, count in wanted.items())
            asked = {
                "candidates": {"same": self.tag, "slow": f"{slower.parent.name}:{slower.name}"},
                "baseline": self.tag,
                "runs": wanted,
                "recorded": str(self.recorded),
                "how": self._slow(slower / "src") if missing else "",
            }
            found = self.probe("loadtest", json.dumps(asked))
        finally:
            shutil.rmtree(slower)
        kinds, longest = found["kinds"], found["longest"]
        alarms, caught = kinds["same"]["share"]["failed"], kinds["slow"]["share"]["failed"]
        seen = {kind: kinds[kind]["seen"] for kind in kinds}
        said = "; ".join(
            f"{what}: {kinds[kind]['runs']} runs of {kinds[kind]['starts']:.1f} starts each, of which "
            f"{seen[kind]['failed']} failed, "
            f"{seen[kind]['not judged']} not judged, {seen[kind]['passed']} passed (resampled "
            f"{', '.join(f'{share:.1%} {status}' for status, share in kinds[kind]['share'].items())}), ratios "
            + ", ".join(f"{name} {value:.2f}" for name, value in kinds[kind]["ratios"].items())
            for kind, what in (("same", "A against A"), ("slow", "slower"))
        )
        return Found(
            f"{alarms:.1%} and {caught:.1%}; {longest:.0f} s",
            alarms <= 0.02 and caught >= 0.95 and longest <= 90,
            f"real runs as `make loadtest` makes them ({found['users']} users, up to {found['starts']} starts with "
            f"{found['rounds']} rounds of {found['seconds']:g} s a side, limits of `params.yaml`); shares of "
            f"{kinds['same']['draws']:,} runs drawn from their recorded starts; the longest run",
            f"{said[0].upper()}{said[1:]}. {' '.join(found['how'])}",
        )

    def _slow(self, place: Path) -> str:
        """Make the handler of a copy of our service burn time, and say how much slower it measurably is.

        Slower by processor time, which other work on the machine does not change.
        """
        chance, server, share, times = random.Random(0), self.server(OURS), SLOWER - 1, 0.0
        code = place / "ml/serving/service.py"
        usual = code.read_text()
        bodies = self.wrk.bodies("rows", self.rows, MIXED, 60)
        with self.up("usual", server) as address:
            for attempt in range(6):
                share *= (SLOWER - 1) / max(times - 1, 0.05) if attempt else 1
                code.write_text(usual.replace("\n    def respond(", BURN.format(share=share), 1))
                slow = Server(server.command, place, self.environment())
                with self.up("slow", slow) as other:
                    rounds: dict[str, list[Load]] = {address: [], other: []}
                    for _ in range(ROUNDS):
                        for side in chance.sample([*rounds], 2):
                            rounds[side].append(self.load(side, bodies, FEW))
                times = over(rounds[other], rounds[address], "spent")
                if abs(times - SLOWER) < 0.03:
                    break
            else:
                raise CommandFailedError(f"no service {SLOWER} × slower came of it, the last one was {times:.2f} ×")
        return (
            f"The slower service burns {share:.2f} × the processor time of its handler, so that a request takes "
            f"{times:.2f} × the processor time of the usual one ({middle(rounds[address], 'spent'):.2f} ms)."
        )


def middle(loads: Sequence[Load], what: str) -> float:
    """Return the median over rounds."""
    return median(getattr(load, what) for load in loads)


def over(ours: Sequence[Load], theirs: Sequence[Load], what: str) -> float:
    """Return the median of the ratios of rounds."""
    return median(getattr(a, what) / getattr(b, what) for a, b in zip(ours, theirs, strict=True))


def main() -> int:
    """Measure; return 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description="Measure the service.")
    add: Callable[..., object] = parser.add_argument
    only = f"rows, of {','.join(TARGETS)}; docs/benchmarks-serving.md is left alone without --keep"
    add("--only", type=partial(chosen, TARGETS), help=only)
    add("--keep", action="store_true", help="with --only: put the rows into docs/benchmarks-serving.md")
    add("--project", type=Path, help="a trained project (default: one is baked and trained)")
    add("--seconds", type=int, default=3, help="of a round of wrk (default: 3)")
    add("--runs", type=int, default=40, help="load tests of A against A, and half as many of A slower (default: 40)")
    add("--recorded", type=Path, help="a file of finished load tests; those that stand there are not run again")
    add("--urgent", action="store_true", help="servers and wrk go before other work of the machine (Linux, as root)")
    words = parser.parse_args()
    if words.urgent:
        if os.getsid(0) != os.getpid():
            os.setsid()
        hurry(os.getpid())
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        try:
            bench = Serving(Path(scratch).resolve(), words)
        except CommandFailedError as error:
            parser.exit(1, f"{error}\n")
        rows = {name: measured(bench, name) for name in words.only or TARGETS}
        if not words.only:
            listed = bench.run(bench.project, "uv", "pip", "list", "--format", "json").printed
            heading, load = ("Benchmarks of the service", "make bench-serving"), (before, os.getloadavg()[0])
            report.write(report.page(*heading, TARGETS, rows, report.versions(listed, PACKAGES), load), PAGE)
        elif words.keep:
            report.write(report.merged(PAGE.read_text(), TARGETS, rows, (before, os.getloadavg()[0])), PAGE)
    return exit_code(rows)


if __name__ == "__main__":
    sys.exit(main())
