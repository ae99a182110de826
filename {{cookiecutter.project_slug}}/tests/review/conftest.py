"""DVC projects of shell commands; `tiny` says what they hold."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny


@pytest.fixture(scope="session")
def pristine_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the project after its first run; read it, write nothing into it."""
    return tiny.make(tmp_path_factory.mktemp("tiny") / "project")


@pytest.fixture
def tiny_project(pristine_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project of one test, which works in it."""
    path = tmp_path / "project"
    shutil.copytree(pristine_tiny, path)
    monkeypatch.chdir(path)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    return path
