"""Ring 5: the image, built and run by a real container engine; BASE_IMAGE replaces the official slim Python."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import require
from real import Project

pytestmark = pytest.mark.slow
WORDS = f"--network host{f' --base {base}' if (base := os.environ.get('BASE_IMAGE')) else ''}"


def docker(*words: str) -> str:
    done = subprocess.run([require("docker"), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def about(name: str) -> dict[str, Any]:
    return json.loads(docker("inspect", name))[0]


@pytest.fixture(scope="module", autouse=True)
def _engine() -> None:
    done = subprocess.run([require("docker"), "info"], capture_output=True, text=True, check=False)
    if done.returncode:
        (pytest.fail if os.environ.get("REQUIRE_ALL") else pytest.skip)(f"docker does not answer: {done.stderr[-200:]}")


@pytest.fixture(scope="module")
def project(small: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return small.copy(tmp_path_factory.mktemp("image") / "copy")


@pytest.fixture(scope="module")
def tag(project: Project) -> str:
    """The tag of the project's image, after `make image`."""
    return project.done(require("make"), "image", f"ARGS={WORDS}").splitlines()[-1]


def test_make_image_builds_checks_and_tells_the_review(project: Project, tag: str) -> None:
    found = json.loads((project / "reports/image/result.json").read_text())

    assert found["status"] == "passed", found
    said = project.run(require("make"), "review", PYTHONPATH=str(project / "src")).stdout
    assert any(line.split()[:2] == ["image", "passed"] for line in said.splitlines()), said


def test_the_image_says_what_it_holds(project: Project, tag: str) -> None:
    labels = about(tag)["Config"]["Labels"]

    assert labels["ml.model.sha256"] == json.loads((project / "reports/image/result.json").read_text())["model"]
    assert labels["org.opencontainers.image.revision"] == project.done("git", "rev-parse", "HEAD").strip()
    assert labels["org.opencontainers.image.source"].startswith("https://")


def test_a_new_model_costs_the_last_layer_only(project: Project, tag: str) -> None:
    before = about(tag)["RootFS"]["Layers"]
    project.change("max_iter: 8", "max_iter: 9")
    project.done(require("make"), "pipeline", PYTHONPATH=str(project / "src"))

    other = project.done(require("make"), "image", f"ARGS={WORDS}").splitlines()[-1]

    after = about(other)["RootFS"]["Layers"]
    assert other != tag
    assert after[:-1] == before[:-1]
    assert after[-1] != before[-1]


def test_the_engine_finds_the_container_healthy_and_stops_it_in_time(tag: str) -> None:
    name = docker("run", "--detach", "--network=none", "--read-only", "--memory=512m", "--health-interval=1s", tag)
    try:
        for _ in range(60):
            if about(name)["State"]["Health"]["Status"] == "healthy":
                break
            time.sleep(1)
        state = about(name)["State"]
        assert state["Health"]["Status"] == "healthy", docker("logs", name)
        start = time.monotonic()
        docker("stop", "--time=20", name)
        assert time.monotonic() - start < 15
        assert about(name)["State"]["ExitCode"] in (0, 143)
    finally:
        docker("rm", "--force", name)


def test_without_an_engine_make_image_is_one_line(project: Project, tmp_path: Path) -> None:
    for name in ("bash", "env", "make", "git", "awk"):
        (tmp_path / name).symlink_to(require(name))

    result = project.run(require("make"), "image", PATH=str(tmp_path))

    said = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert said == ["ml: no container engine here: install docker or podman; make serve works without"]
