from __future__ import annotations

import os
import signal
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
import pytest
import verdicts

from ml.errors import UserError
from ml.review import aside, groups, plots


def test_the_second_process_looks_at_the_lock_of_this_folder_and_draws_the_same(tiny_project: Path) -> None:
    truth = np.array([0, 1] * 50)
    drawn = verdicts.full(), truth, np.linspace(0, 1, 100), np.linspace(1, 0, 100), 0.5, ["0", "1"]
    (tiny_project / "dvc.lock").unlink()

    with aside.second_process() as other:
        found = other.problems()
        drawings = other.start_drawing(*drawn)()
        slices = other.slices(drawn[0])

    assert [problem.what for problem in found] == ["dvc.lock does not exist"]
    assert drawings == plots.draw(*drawn)
    assert slices == {"slices": drawings["slices"]}


def test_the_second_process_compares_groups_as_this_one_does(tiny_project: Path) -> None:
    truth, decided = np.array([0, 1] * 50), np.array([0, 0, 1, 1] * 25)
    words = "binary", truth, decided, {"side": np.array(["left"] * 60 + ["right"] * 40, dtype=object)}, 50

    with aside.second_process() as other:
        found = other.start_groups(*words)()

    assert found == groups.figures(*words)
    assert [(group.value, group.rows, group.judged) for group in found] == [("left", 60, True), ("right", 40, False)]
    assert found[0].figures == {"selection_rate": 0.5, "true_positive_rate": 0.5, "false_positive_rate": 0.5}


def test_without_attributes_there_are_no_groups() -> None:
    assert groups.figures("binary", np.zeros(2), np.zeros(2), {}, 1) == []


def test_what_the_lock_cannot_say_is_still_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    with aside.second_process() as other, pytest.raises(UserError, match="DVC cannot read this project"):
        other.problems()


def kill(executor: Executor) -> None:
    executor.submit(os.kill, executor.submit(os.getpid).result(), signal.SIGKILL)


def test_a_second_process_that_is_killed_is_one_line(tiny_project: Path) -> None:
    with aside.second_process() as other:
        kill(other.executor)

        with pytest.raises(UserError, match="second process was ended from outside"):
            other.start_drawing()()
