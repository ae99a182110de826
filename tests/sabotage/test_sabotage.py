"""Ring 5: each sabotage turns exactly the gates red that it declares, and honest changes none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import require
from real import Project
from sabotages import CONTROLS, FLIPPED, READ, SABOTAGES, TRAIN, Sabotage, edited, forged, own_code

pytestmark = pytest.mark.slow
GATES = {
    "gates",
    "data",
    "lock",
    "floor",
    "harm",
    "calibration",
    "slices",
    "fairness",
    "behaviour",
    "predictions",
    "parity",
    "determinism",
    "service",
    "image",
}


def reviewed(project: Project) -> tuple[dict[str, str], str]:
    """Return what each gate says after `make review`, and all that was printed; the exit code must agree."""
    result = project.run(require("make"), "review", **own_code(project))
    assert "Traceback" not in result.stderr, result.stderr
    verdict = json.loads((project / "reports/review/verdict.json").read_text())
    found = {entry["gate"]: entry["status"] for entry in verdict["results"]}
    blocked = set(found.values()) & {"failed", "not judged"}
    assert (result.returncode != 0) == bool(blocked), result.stdout + result.stderr
    assert (project / "reports/review/report.md").stat().st_size < 60_000
    return found, result.stdout + result.stderr


@pytest.mark.parametrize("sabotage", [*CONTROLS, *SABOTAGES], ids=str)
def test_exactly_the_declared_gates_turn_red(sabotage: Sabotage, judged: Project, tmp_path: Path) -> None:
    project = judged.copy(tmp_path / "copy")
    sabotage.apply(project)

    found, said = reviewed(project)

    assert {gate for gate, status in found.items() if status in ("failed", "not judged")} == sabotage.red, said
    assert set(found) == GATES


def test_every_gate_has_a_sabotage_that_hits_it_alone() -> None:
    alone = {gate for sabotage in SABOTAGES if len(sabotage.red) == 1 for gate in sabotage.red}

    assert alone == GATES


FULL = [
    Sabotage("squared scores", {"calibration", "predictions"}, forged("squared")),
    Sabotage("one carrier's labels flipped", {"floor", "harm", "calibration", "slices"}, edited(TRAIN, READ, FLIPPED)),
    Sabotage("monotone transform", {"calibration"}, forged("squeezed")),
]


@pytest.mark.parametrize("sabotage", [Sabotage("control", set(), lambda _: None), *FULL], ids=str)
def test_the_same_holds_on_all_the_data(sabotage: Sabotage, full: Project, tmp_path: Path) -> None:
    project = full.copy(tmp_path / "copy")
    sabotage.apply(project)

    found, said = reviewed(project)

    assert {gate for gate, status in found.items() if status in ("failed", "not judged")} == sabotage.red, said
