"""Ring 5: the load test on two real services; limits are wide, since other work shares the machine."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import require
from real import Project

pytestmark = pytest.mark.slow
SOON = {"  starts: 4": "  starts: 3", "  rounds: 8 ": "  rounds: 2 "}
WIDE = {"p50: 1.15": "p50: 2.5", "p95: 1.2": "p95: 4.0", "p99: 1.5": "p99: 9.0", "throughput: 0.87": "throughput: 0.4"}
SCORE = "        found = self.session.run("
SLOW = f"        import time\n        time.sleep(0.02)\n{SCORE}"


@pytest.fixture(scope="module")
def project(small: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with its Bento built."""
    copy = small.copy(tmp_path_factory.mktemp("loadtest") / "copy")
    for old, new in (SOON | WIDE).items():
        copy.change(old, new)
    return copy


@pytest.fixture(scope="module")
def tag(project: Project) -> str:
    return project.done("ml", "build").splitlines()[-1]


def result(project: Project) -> dict:
    return json.loads((project / "reports/service/result.json").read_text())


def left_below(folder: Path) -> list[str]:
    """Return the processes that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if Path(os.readlink(process / "cwd")).is_relative_to(folder):
                found.append((process / "cmdline").read_text())
    return found


def test_a_service_beside_itself_passes_and_the_review_reads_it(project: Project, tag: str) -> None:
    said = project.done(require("make"), "loadtest", f"ARGS=--baseline {tag}")

    assert "times the baseline's: p50 " in said
    assert result(project)["status"] == "passed"
    for side in ("candidate", "baseline"):
        assert "Locust" in (project / f"reports/service/{side}.html").read_text()
    rounds = json.loads((project / "reports/service/rounds.json").read_text())["rounds"]
    assert [len(rounds[side]) for side in ("candidate", "baseline")] == [6, 6]
    assert all(part["errors"] == 0 for side in rounds.values() for part in side)
    assert left_below(project / ".bentoml/bentos") == []


def test_a_much_slower_service_fails_and_is_named(project: Project, tag: str) -> None:
    name, version = tag.split(":")
    bentos = project / ".bentoml/bentos" / name
    shutil.copytree(bentos / version, bentos / "slow")
    code = bentos / "slow/src/ml/serving/request.py"
    assert code.read_text().count(SCORE) == 1
    code.write_text(code.read_text().replace(SCORE, SLOW))

    said = project.run(require("make"), "loadtest", f"ARGS=--candidate {name}:slow --baseline {tag}")

    assert said.returncode != 0
    assert "ml: failed: p50 is " in said.stderr
    assert result(project)["status"] == "failed"


def test_without_a_baseline_it_says_so(project: Project, tag: str) -> None:
    said = project.done(require("make"), "loadtest")

    assert "no baseline yet; p99 " in said


def test_what_is_neither_address_nor_bento_nor_image_is_one_line(project: Project, tag: str) -> None:
    said = project.run(require("make"), "loadtest", "ARGS=--baseline http://127.0.0.1:9")

    lines = [line for line in said.stderr.splitlines() if line.startswith("ml: ")]
    assert lines == ["ml: http://127.0.0.1:9 does not answer: is it running?"]


def test_the_locustfile_runs_under_locust_itself_in_turn_and_at_a_rate(
    project: Project, tag: str, tmp_path: Path
) -> None:
    from real import serving

    with serving(project) as address:
        for more in ([], ["--rate", "20"]):
            stats = tmp_path / "stats"
            project.done(
                *("locust", "-f", "loadtest/locustfile.py", "--headless", "--host", address, "--users", "4"),
                *("--spawn-rate", "4", "--run-time", "4s", "--csv", str(stats), "--exit-code-on-error", "1", *more),
            )

            lines = (tmp_path / "stats_stats.csv").read_text().splitlines()
            total = dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))
            assert int(total["Request Count"]) > 50
            assert int(total["Failure Count"]) == 0
