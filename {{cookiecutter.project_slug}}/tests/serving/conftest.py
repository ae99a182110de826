from __future__ import annotations

from pathlib import Path

import pytest
import small


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project folder with a model small enough to know its answers by heart."""
    return small.write_project(tmp_path / "project")
