"""What the scenarios share: a trained project whose checks are quick, and one world of it in each worker.

Every scenario works on branches of its own; main moves only where one says so.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import github as fake
import pytest
from conftest import require
from real import Project, shared
from world import Branch, PullRequest, Run, World

PULL, REPORT = "pull-request.yml", "report.yml"
# A scenario's own tests and load test are few, and one machine loads itself: nothing is to be learned of speed here.
LIGHTER = {
    "starts": "3",
    "rounds": "1",
    "budget": "1",
    "p50": "100",
    "p95": "100",
    "p99": "100",
    "throughput": "0.01",
    "p99_ms": "30000",
}
KEPT_TESTS = ("test_docs.py",)
BEST = ("max_leaf_nodes: 31", "max_leaf_nodes: 24")
ALL = {
    "lint": "success",
    "data": "success",
    "test": "success",
    "model": "success",
    "service": "success",
    "report": "success",
    "all-checks-pass": "success",
}
UNCHANGED = ALL | {"model": "skipped", "service": "skipped"}
MODEL_RED = ALL | {"model": "failure", "service": "skipped", "all-checks-pass": "failure"}

Checked = tuple[PullRequest, Run]


def docker(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([require("docker"), *words], capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def light(judged: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A trained project whose checks are quick, with the layers of its image built, so that no job needs a network."""
    if docker("info").returncode:
        (pytest.fail if os.environ.get("REQUIRE_ALL") else pytest.skip)("docker does not answer")
    return shared(tmp_path_factory, "light", lambda folder: lightened(judged, folder))


def lightened(judged: Project, folder: Path) -> Project:
    project = judged.copy(folder / "light")
    for path in (project / "tests").rglob("*.py"):
        if path.name not in KEPT_TESTS:
            path.unlink()
    text = (project / "params.yaml").read_text()
    for name, value in LIGHTER.items():
        text, changed = re.subn(rf"(?m)^( +{name}: )[\d.]+", rf"\g<1>{value}", text)
        assert changed == 1, name
    (project / "params.yaml").write_text(text)
    version = (project / ".venv/.stamp").read_text().split(".")[1]
    (project / ".python-version").write_text(f"3.{version}\n")
    project.commit("Check quickly")
    base = os.environ.get("BASE_IMAGE")
    project.done("make", "image", f"ARGS=--network host{f' --base {base}' if base else ''}")
    if base:
        assert docker("tag", base, f"python:3.{version}-slim").returncode == 0
    return project


@pytest.fixture(scope="session")
def opened(light: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World.open(tmp_path_factory.mktemp("world"), light, after=("push --yes",)) as world:
        yield world


@pytest.fixture
def world(opened: World) -> Iterator[World]:
    """The world with no variable set and no run of another scenario."""
    kept = opened.runs
    opened.runs, opened.variables, opened.secrets = [], {}, {}
    yield opened
    opened.runs = [*kept, *opened.runs]
    opened.owner.git("checkout", "--quiet", "--force", "main")


@pytest.fixture(scope="session")
def docs_only(opened: World) -> Checked:
    """The checks of a change to prose, of which report.yml can tell."""
    pull = opened.pull_request(opened.change({"README.md": "# Flights\n"}, "Say less"))
    return pull, opened.run(PULL, pull.event())


def forge(world: World) -> Branch:
    """Push a lock that claims other bytes of the model than training gives, and what follows from them."""
    place = world.owner
    place.git("checkout", "--quiet", "--force", "-B", "forge", "main")
    place.run("dvc", "checkout", "--force", "--quiet")
    model = place.project / "models/model.onnx"
    forged = model.read_bytes().replace(b"skl2onnx", b"skl2Onnx")
    assert forged != model.read_bytes()
    model.unlink()
    model.write_bytes(forged)
    place.run("dvc", "commit", "--force", "train")
    place.git("commit", "--quiet", "--no-verify", "--all", "--message", "Write a lock by hand")
    return world.change({}, "Forge", name="forge", base="forge", before=("pipeline",), after=("push",))


def report_of(world: World, pull: PullRequest) -> str:
    """Return the one comment that the workflows wrote."""
    (comment,) = [each for each in world.comments(pull) if each.login == fake.WORKFLOW_LOGIN]
    return comment.body


def objects(world: World) -> set[str]:
    return {*world.refs("refs/dvc/md5")}


def blocked(run: Run) -> set[str]:
    verdict = json.loads((run.artifact("report") / "review/verdict.json").read_text())
    return {result["gate"] for result in verdict["results"] if result["status"] in ("failed", "not judged")}


def trust(world: World) -> dict[str, str]:
    found = str(world.owner.certificates)
    return {"GIT_SSL_CAINFO": found, "SSL_CERT_FILE": found, "REQUESTS_CA_BUNDLE": found}
