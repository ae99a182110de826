"""Is the candidate as fast as the baseline: both under the same load, side by side, in short rounds of random order.

Rounds a second apart share what else the machine does, so their ratio is steadier than either figure. Two processes
of one service may differ by a tenth for as long as they live, so both are started anew several times.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ml.errors import UserError
from ml.progress import steps
from ml.serving import build, image
from ml.serving.request import Contract, Scorer

HOLDOUT = Path("data/split/holdout.parquet")
FOLDER = Path("reports/service")
RESULT = FOLDER / "result.json"
BODIES = 400
START = 90.0  # seconds
WARM = 0.5
PATIENCE = 10  # seconds for the first answer of a round
LEAST = 2  # starts, whatever they take
CONFIDENCE = 0.98
SIDES = ("candidate", "baseline")
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
LIMITS = {"cpus": "1", "memory": "1g"}  # of a container


Start = Callable[[], AbstractContextManager[dict[str, str]]]
Ended = Callable[[], str | None]


@dataclass(frozen=True)
class Body:
    """A request as it is sent, and the status that must come back."""

    content: bytes
    rows: int
    status: int


@dataclass(frozen=True)
class Round:
    """What one round of load saw; times in milliseconds."""

    times: list[float]
    seconds: float
    errors: int

    def figures(self) -> dict[str, float]:
        """Return the quantiles in milliseconds and the throughput in requests a second."""
        found = {name: float(np.quantile(self.times, at)) for name, at in QUANTILES.items()}
        return found | {"throughput": len(self.times) / self.seconds}


Rounds = list[list[Round]]  # by start of the services


def bodies(root: Path, sizes: tuple[int, ...] = (1, 1, 1, 1, 10, 100), invalid: float = 0.02) -> list[Body]:
    """Return requests of rows drawn from the holdout; a share of them breaks the contract and must be refused.

    Raises UserError without a model or a holdout.
    """
    import pyarrow.parquet

    contract = Scorer(root / build.MODEL).contract
    names = [field.name for field in contract.fields]
    try:
        table = pyarrow.parquet.read_table(root / HOLDOUT, columns=names)
    except (OSError, pyarrow.ArrowException):
        raise UserError(f"{HOLDOUT} is missing or not readable: run make pipeline") from None
    chance = random.Random(0)
    rows = [table.slice(chance.randrange(len(table)), 1).to_pylist()[0] for _ in range(BODIES)]
    return [_body(chance, rows, contract, chance.choice(sizes), chance.random() < invalid) for _ in range(BODIES)]


def _body(chance: random.Random, rows: list[dict[str, Any]], contract: Contract, size: int, spoil: bool) -> Body:
    chosen = [{name: _plain(value) for name, value in chance.choice(rows).items()} for _ in range(size)]
    if spoil:
        chosen[-1] = {**chosen[-1], contract.fields[0].name: {"no": "value"}}
    return Body(json.dumps({"rows": chosen}).encode(), size, 400 if spoil else 200)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def send(client: Any, body: Body) -> None:
    """Send a request through a Locust client; another status than the expected one is a failure."""
    headers = {"content-type": "application/json"}
    name = f"/predict {body.rows} rows" if body.status == 200 else "/predict refused"
    with client.post("/predict", body.content, headers=headers, name=name, catch_response=True) as answer:
        if answer.status_code == body.status:
            answer.success()
        else:
            answer.failure(f"status {answer.status_code} where {body.status} was due")


class Load:
    """Locust in this process: rounds of load against one address at a time."""

    def __init__(self, requests: list[Body], users: int) -> None:
        from locust import FastHttpUser, task
        from locust.env import Environment

        self.users, self.times, self.errors = users, list[float](), 0

        class Caller(FastHttpUser):
            @task
            def predict(self) -> None:
                send(self.client, random.choice(requests))

        self.environments: dict[str, Any] = {}
        self.make = lambda: Environment(user_classes=[Caller])

    def environment(self, side: str) -> Any:
        """Return the Locust environment of a side, which keeps the statistics of all its rounds."""
        if side not in self.environments:
            found = self.environments[side] = self.make()
            found.create_local_runner()
            found.events.request.add_listener(self._note)
        return self.environments[side]

    def _note(self, response_time: float, exception: Exception | None, **_: Any) -> None:
        self.times.append(response_time)
        self.errors += exception is not None

    def round(self, side: str, host: str, seconds: float) -> Round:
        """Return what `users` callers, each with one connection, saw in so many seconds."""
        import gevent

        self.environment(side).host = host
        runner = self.environment(side).runner
        self.times, self.errors = [], 0
        start = time.perf_counter()
        runner.start(self.users, spawn_rate=100)
        gevent.sleep(seconds)
        while not self.times and time.perf_counter() - start < PATIENCE:
            gevent.sleep(seconds)
        times, errors, took = self.times, self.errors, time.perf_counter() - start
        runner.stop()
        if not times:
            raise UserError(f"{host} answered nothing in {PATIENCE} s: look at its log")
        return Round(times, took, errors)

    def page(self, side: str) -> str:
        """Return Locust's own report on a side."""
        from locust.html import get_html_report

        return get_html_report(self.environment(side), show_download_link=False)


def paired(
    load: Load, start: Start, starts: int, rounds: int, seconds: float, budget: float = math.inf
) -> dict[str, Rounds]:
    """Return the rounds of each side by start, taken in pairs whose order is random, after a warm-up.

    There are fewer starts where another one would end beyond `budget` seconds.
    """
    chance = random.Random(0)
    found: dict[str, Rounds] = {}
    began, longest = time.monotonic(), 0.0
    with steps("load test", starts * rounds) as bar:
        for count in range(starts):
            now = time.monotonic()
            if count >= LEAST and now - began + longest > budget:
                break
            with start() as hosts:
                for side in hosts:
                    load.round(side, hosts[side], WARM)
                    found.setdefault(side, []).append([])
                for _ in range(rounds):
                    for side in chance.sample([*hosts], len(hosts)):
                        found[side][-1].append(load.round(side, hosts[side], seconds))
                    bar.update()
            longest = max(longest, time.monotonic() - now)
    return found


def ratios(candidate: Rounds, baseline: Rounds) -> dict[str, tuple[float, float, float]]:
    """Return candidate over baseline of each figure, and the interval of that over the pairs of all starts."""
    pairs = [*zip(flat(candidate), flat(baseline), strict=True)]
    return {
        name: tuple(np.exp(_middle([math.log(a.figures()[name] / b.figures()[name]) for a, b in pairs])))
        for name in (*QUANTILES, "throughput")
    }


def _middle(values: list[float]) -> tuple[float, float, float]:
    """Return the mean of the middle half, which disturbed pairs do not move, and its interval.

    The quarter at each end counts as its border for the deviation (Tukey and McLaughlin 1963, Sankhya A 25).
    """
    from scipy import stats

    ordered = np.sort(values)
    cut = len(ordered) // 4
    kept = ordered[cut : len(ordered) - cut]
    deviation = np.clip(ordered, kept[0], kept[-1]).std(ddof=1) * len(ordered) / len(kept)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(kept) - 1) * deviation / math.sqrt(len(ordered))
    return kept.mean(), kept.mean() - half, kept.mean() + half


def verdict(
    rounds: dict[str, Rounds], limits: dict[str, Any], compared: dict[str, tuple[float, float, float]]
) -> dict[str, Any]:
    """Return status, sentence and remedy as the review reads them, with the figures beside them.

    A ratio fails where it is beyond its limit and its interval excludes 1. It is not judged where the interval is so
    wide that a ratio of 1 and one beyond the limit are both likely.
    """
    mine = flat(rounds["candidate"])
    sent, errors = sum(len(part.times) for part in mine), sum(part.errors for part in mine)
    p99 = float(np.median([part.figures()["p99"] for part in mine]))
    faults, unsure = [], []
    if errors > limits["errors"] * sent:
        faults.append(f"{errors} of {sent:,} requests failed, at most {limits['errors']:.2%}")
    if p99 > limits["p99_ms"]:
        faults.append(f"p99 is {p99:.1f} ms, at most {limits['p99_ms']:g}")
    for name, (ratio, low, high) in compared.items():
        limit = limits["ratio"][name]
        worse, edge = (ratio < limit, high < 1) if name == "throughput" else (ratio > limit, low > 1)
        what = f"{name} is {ratio:.2f} times the baseline's ({low:.2f} to {high:.2f})"
        if worse:
            (faults if edge else unsure).append(
                f"{what}, {'at least' if name == 'throughput' else 'at most'} {limit:g}"
            )
    said = ", ".join(f"{name} {ratio:.2f}" for name, (ratio, *_) in compared.items())
    fine = f"times the baseline's: {said}" if compared else f"no baseline yet; p99 {p99:.1f} ms of {sent:,} requests"
    status = "failed" if faults else "not judged" if unsure else "passed"
    sentence = "; ".join(faults) or ("; ".join(unsure) + ": too noisy to say" if unsure else fine)
    remedy = {"failed": "profile the service", "not judged": "run it again on a quieter machine", "passed": ""}[status]
    return {
        "status": status,
        "sentence": sentence,
        "observed": f"{p99:.1f} ms",
        "threshold": f"{limits['p99_ms']:g} ms",
        "remedy": remedy,
    }


def run(
    root: Path, candidate: str | None, baseline: str | None, settings: Any, limits: Any, network: str | None
) -> str:
    """Load the candidate beside the baseline, write `reports/service/` and return the verdict's sentence.

    gevent must have patched the standard library before. Raises UserError where a side cannot be started or the
    verdict is not a pass.
    """
    scorer = Scorer(root / build.MODEL)
    requests = bodies(root, tuple(settings["sizes"]), settings["invalid"])
    places = dict(zip(SIDES, (candidate or build.build(root), baseline), strict=True))
    load = Load(requests, settings["users"])
    how = (settings[name] for name in ("starts", "rounds", "seconds", "budget"))
    rounds = paired(load, lambda: serving_all(root, places, network), *how)
    pages = {side: load.page(side) for side in rounds}
    compared = ratios(rounds["candidate"], rounds["baseline"]) if baseline else {}
    found = {"model": scorer.digest, **verdict(rounds, limits, compared)}
    write(root, found, rounds, compared, pages)
    if found["status"] != "passed":
        raise UserError(f"{found['status']}: {found['sentence']}")
    return found["sentence"]


def skip(root: Path) -> None:
    """Write that nothing was measured, in the place of an older result."""
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    build.write_json(folder / "rounds.json", {})
    told = {"status": "skipped", "sentence": "turned off in params.yaml"}
    build.write_json(root / RESULT, {"model": Scorer(root / build.MODEL).digest, **told})


def write(
    root: Path,
    found: dict[str, Any],
    rounds: dict[str, Rounds],
    compared: dict[str, tuple[float, float, float]],
    pages: dict[str, str],
) -> None:
    """Write the result for the review, the rounds, Locust's pages and a drawing of the rounds."""
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for side, page in pages.items():
        (folder / f"{side}.html").write_text(page, encoding="utf-8")
    measured = {
        "ratios": {name: dict(zip(("ratio", "low", "high"), ends, strict=True)) for name, ends in compared.items()},
        "rounds": {
            side: [part.figures() | {"errors": part.errors} for part in flat(parts)] for side, parts in rounds.items()
        },
    }
    build.write_json(folder / "rounds.json", measured)
    draw(folder / "rounds.svg", measured["rounds"])
    build.write_json(root / RESULT, found)


def draw(path: Path, rounds: dict[str, list[dict[str, float]]]) -> None:
    """Draw the quantiles of every round, in the order in which they ran."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3))
    for axes, name in zip(figure.subplots(1, len(QUANTILES)), QUANTILES, strict=True):
        for side, marker in zip(rounds, "os", strict=False):
            values = [part[name] for part in rounds[side]]
            axes.plot(range(1, len(values) + 1), values, marker, linestyle="-", markersize=4, label=side)
        axes.set(title=f"{name}, ms", xlabel="round", ylim=(0, None))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def flat(rounds: Rounds) -> list[Round]:
    """Return the rounds of all starts, in their order."""
    return [part for parts in rounds for part in parts]


@contextmanager
def serving_all(root: Path, places: dict[str, str | None], network: str | None) -> Iterator[dict[str, str]]:
    """Yield the address of each side that there is; they start at once, and which one first is left to chance."""
    with ExitStack() as stack:
        sides = [side for side in places if places[side]]
        begun = {
            side: stack.enter_context(serving(root, places[side], network)) for side in random.sample(sides, len(sides))
        }
        for address, ended in begun.values():
            _wait(address, ended)
        yield {side: begun[side][0] for side in sides}


@contextmanager
def serving(root: Path, what: str, network: str | None = None) -> Iterator[tuple[str, Ended]]:
    """Yield a service's address, which may not answer yet, and what says why the service ended, None while it runs.

    A URL stays as it is, a Bento or an image is a process of our own.
    """
    if "://" in what:
        _refuse_silent(what)
        yield what.rstrip("/"), lambda: None
    elif (folder := build.folder(root, what)).is_dir():
        with _bento(folder) as begun:
            yield begun
    else:
        with _container(what, network) as begun:
            yield begun


@contextmanager
def _bento(folder: Path) -> Iterator[tuple[str, Ended]]:
    port = _free_port()
    with TemporaryDirectory(prefix="loadtest-") as scratch:
        # Two services with one folder of metrics would count together; nobody waits for answers at the end.
        own = {"BENTOML_HOME": scratch, "PROMETHEUS_MULTIPROC_DIR": f"{scratch}/metrics", "ML_DRAIN": "0"}
        log = Path(scratch, "log")
        with log.open("w") as file:
            command = [sys.executable, "-m", "bentoml", "serve", build.SERVICE, "--port", str(port)]
            process = subprocess.Popen(
                [*command, "--host", "127.0.0.1"],
                cwd=folder / "src",
                env=os.environ | own,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        try:
            yield f"http://127.0.0.1:{port}", lambda: log.read_text() if process.poll() is not None else None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(timeout=30)


@contextmanager
def _container(tag: str, network: str | None) -> Iterator[tuple[str, Ended]]:
    engine, port = image.find_engine(), _free_port()
    published = [f"--network={network}"] if network else [f"--publish=127.0.0.1:{port}:{port}"]
    limits = [f"--{name}={value}" for name, value in LIMITS.items()]
    with image.running(engine, tag, *published, *limits, f"--env=BENTOML_PORT={port}") as name:
        yield f"http://127.0.0.1:{port}", lambda: image.ended(engine, name)


def _refuse_silent(address: str) -> None:
    try:
        urllib.request.urlopen(f"{address.rstrip('/')}/readyz", timeout=5)
    except (OSError, ValueError):
        raise UserError(f"{address} does not answer: is it running?") from None


def _wait(address: str, ended: Ended) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(f"{address}/readyz", timeout=2)
            ready = True
        except (OSError, http.client.HTTPException):
            ready = False
        if (reason := ended()) is not None:
            raise UserError(f"{address} ended before it was ready: {reason.strip()[-300:]}")
        if ready:
            return
        time.sleep(0.2)
    raise UserError(f"{address} is not ready after {START:g} s")


def _free_port() -> int:
    # Below those that the system gives to clients: the service takes it seconds later.
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", random.randrange(20_000, 32_000)))
            return probe.getsockname()[1]
