"""Ring 4: `make setup` on this machine, and what it installs in git."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from conftest import Bake, require, run

pytestmark = pytest.mark.slow
STAGES = """\
stages:
  train:
    cmd: mkdir -p models && grep -E '^(a|b)' params.yaml > models/model.txt
    params: [a, b]
    outs: [models/model.txt]
  evaluate:
    cmd: >-
      mkdir -p reports/evaluate && cksum < models/model.txt |
      sed 's/\\(.*\\) .*/{"sum":\\1}/' > reports/evaluate/metrics.json
    deps: [models/model.txt]
    metrics:
      - reports/evaluate/metrics.json: {cache: false}
"""
SETTINGS = "a: 1\n# far enough apart\n# for git\n# to merge\nb: 1\n"


@pytest.fixture(scope="module")
def prepared(bake: Bake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = bake.into(tmp_path_factory.mktemp("prepared"))
    result = run(require("make"), "setup", cwd=project)
    assert result.returncode == 0, result.stdout + result.stderr
    return project


@pytest.fixture(scope="module")
def conflict(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in the middle of a merge of two branches that each changed a setting and ran."""
    project = tmp_path_factory.mktemp("conflict") / "project"
    shutil.copytree(prepared, project, ignore=shutil.ignore_patterns(".venv", ".git", "src", "tests"))
    (project / ".venv" / "bin").mkdir(parents=True)
    for tool in ("dvc", "python", "ruff"):
        (project / ".venv" / "bin" / tool).symlink_to(prepared / ".venv" / "bin" / tool)
    (project / ".venv" / "bin" / "ml").write_text("#!/bin/sh\n")
    (project / ".venv" / "bin" / "ml").chmod(0o755)
    (project / "dvc.yaml").write_text(STAGES)
    (project / "params.yaml").write_text(SETTINGS)
    for command in (
        "git init -q -b main",
        "git config user.name Ada",
        "git config user.email ada@example.com",
        "git config core.hooksPath .githooks",
        ".venv/bin/dvc repro -q",
        "git add -A",
        "git commit -qm one",
        "git checkout -q -b other",
    ):
        done(project, *command.split(" "))
    change(project, "a: 1", "a: 2", "two")
    done(project, "git", "checkout", "-q", "main")
    assert (project / "models" / "model.txt").read_text() == "a: 1\nb: 1\n"
    change(project, "b: 1", "b: 3", "three")
    assert run("git", "merge", "other", cwd=project).returncode == 1
    return project


@pytest.fixture
def merging(conflict: Path, tmp_path: Path) -> Path:
    project = shutil.copytree(conflict, tmp_path / "project", symlinks=True)
    run("git", "update-index", "-q", "--refresh", cwd=project)
    return project


def done(project: Path, *command: str) -> str:
    result = run(*command, cwd=project)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def change(project: Path, old: str, new: str, message: str) -> None:
    settings = project / "params.yaml"
    settings.write_text(settings.read_text().replace(old, new))
    done(project, ".venv/bin/dvc", "repro", "-q")
    done(project, "git", "commit", "-qam", message)


def test_setup_makes_a_git_repository_with_hooks_and_a_working_command(prepared: Path) -> None:
    assert done(prepared, "git", "symbolic-ref", "--short", "HEAD") == "main\n"
    assert done(prepared, "git", "config", "core.hooksPath") == ".githooks\n"
    assert done(prepared, ".venv/bin/dvc", "config", "core.analytics").strip() == "false"
    assert done(prepared, ".venv/bin/ml", "--help").startswith("usage: ml")
    assert "?? .venv" not in done(prepared, "git", "status", "--short")


def test_a_second_setup_changes_nothing_and_takes_a_moment(prepared: Path) -> None:
    before = (prepared / ".venv" / ".stamp").stat().st_mtime_ns

    start = time.perf_counter()
    said = run(require("make"), "setup", cwd=prepared)

    assert said.returncode == 0
    assert said.stdout.startswith("ready: Python 3.")
    assert said.stderr == ""
    assert time.perf_counter() - start < 3
    assert (prepared / ".venv" / ".stamp").stat().st_mtime_ns == before


def test_setup_mends_an_environment_that_was_interrupted(prepared: Path) -> None:
    (prepared / ".venv" / ".stamp").unlink()
    (prepared / ".venv" / "bin" / "ml").unlink()

    assert run(require("make"), "setup", cwd=prepared).returncode == 0

    assert done(prepared, ".venv/bin/ml", "--help").startswith("usage: ml")


def test_setup_leaves_the_callers_own_hooks_alone(prepared: Path) -> None:
    done(prepared, "git", "config", "core.hooksPath", "mine")

    said = run(require("make"), "setup", cwd=prepared)

    assert "git hooks stay in mine" in said.stderr
    assert done(prepared, "git", "config", "core.hooksPath") == "mine\n"
    done(prepared, "git", "config", "core.hooksPath", ".githooks")


def test_a_checkout_brings_data_and_model_in_step_with_the_lock(merging: Path) -> None:
    done(merging, "git", "merge", "--abort")

    done(merging, "git", "checkout", "-q", "other")

    assert (merging / "models" / "model.txt").read_text() == "a: 2\nb: 1\n"


@pytest.mark.parametrize("missing", [".venv", "dvc.lock", ".dvc/cache"], ids=["environment", "lock", "cache"])
def test_a_checkout_works_without(merging: Path, missing: str) -> None:
    done(merging, "git", "merge", "--abort")
    if missing == "dvc.lock":
        done(merging, "git", "rm", "-q", "dvc.lock")
        done(merging, "git", "commit", "-qm", "none")
    else:
        shutil.rmtree(merging / missing)

    said = run("git", "checkout", "-q", "other", cwd=merging)

    assert said.returncode == 0
    assert said.stdout == ""
    assert len(said.stderr.splitlines()) == (1 if missing == ".dvc/cache" else 0)


def test_a_new_worktree_is_made_in_silence(merging: Path, tmp_path: Path) -> None:
    done(merging, "git", "merge", "--abort")

    said = run("git", "worktree", "add", "-q", tmp_path / "elsewhere", "other", cwd=merging)

    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")


def test_resolve_ends_a_conflict_in_the_lock_with_the_lock_of_the_merged_settings(merging: Path) -> None:
    assert "<<<<<<<" in (merging / "dvc.lock").read_text()

    said = run(require("make"), "resolve", cwd=merging)

    assert said.returncode == 0, said.stderr
    assert (merging / "models" / "model.txt").read_text() == "a: 2\nb: 3\n"
    assert not [
        line for line in done(merging, "git", "status", "--short").splitlines() if line[0] == "U" or line[1] != " "
    ]
    done(merging, "git", "commit", "-qm", "merged")
    assert "up to date" in done(merging, ".venv/bin/dvc", "status")
    assert done(merging, "git", "status", "--short") == ""


def test_resolve_leaves_other_conflicts_to_people(merging: Path) -> None:
    done(merging, "git", "merge", "--abort")
    done(merging, "git", "checkout", "-q", "-b", "third", "main~1")
    change(merging, "b: 1", "b: 9", "four")
    assert run("git", "merge", "main", cwd=merging).returncode == 1

    said = run(require("make"), "resolve", cwd=merging)

    assert said.returncode == 2
    assert said.stderr.splitlines()[0] == "still in conflict: params.yaml - edit and git add them, then make resolve"
    assert "<<<<<<<" in (merging / "dvc.lock").read_text()
