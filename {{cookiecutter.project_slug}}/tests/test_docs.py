"""The pages in docs/ say what the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ml.pipeline.params import METRICS

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"


@pytest.mark.parametrize("task", METRICS)
def test_every_metric_is_defined_with_its_direction_under_its_task(task: str) -> None:
    section = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.M)
    text = next(part for part in section if part.startswith(f"{task}\n"))

    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+, (more|less)\b", text, re.M))
    assert rows == {name: {"maximize": "more", "minimize": "less"}[way] for name, way in METRICS[task].items()}
