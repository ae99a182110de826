from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from ml.errors import UserError
from ml.serving import build, loadtest
from ml.serving.loadtest import Round, Rounds, bodies, ratios, verdict
from ml.serving.request import Scorer

LIMITS = {
    "ratio": {"p50": 1.15, "p95": 1.2, "p99": 1.5, "throughput": 0.87},
    "errors": 0.001,
    "p99_ms": 100,
}


@pytest.fixture
def holdout(project: Path) -> Path:
    """The project with a holdout of rows that keep the contract."""
    rows = [{"carrier": "UA", "distance": at + 1, "temp": None if at % 3 else 20.5, "late": 0} for at in range(50)]
    (project / loadtest.HOLDOUT).parent.mkdir(parents=True)
    pa.parquet.write_table(pa.Table.from_pylist(rows), project / loadtest.HOLDOUT)
    return project


def test_requests_are_drawn_from_the_holdout_few_rows_and_many_and_some_must_be_refused(holdout: Path) -> None:
    found = bodies(holdout, sizes=(1, 7), invalid=0.1)

    assert {body.rows for body in found} == {1, 7}
    refused = [body for body in found if body.status == 400]
    assert 0.05 < len(refused) / len(found) < 0.15
    contract = Scorer(holdout / build.MODEL).contract
    for body in found:
        problems = contract.columns(json.loads(body.content)["rows"]).problems
        assert bool(problems) == (body.status == 400)


def test_the_same_holdout_gives_the_same_requests(holdout: Path) -> None:
    assert bodies(holdout) == bodies(holdout)


def test_without_a_holdout_it_is_one_line(project: Path) -> None:
    with pytest.raises(UserError, match=r"holdout.parquet is missing or not readable: run make pipeline"):
        bodies(project)


def rounds(scale: float, starts: int = 5, errors: int = 0, seed: int = 0, noise: float = 0.05) -> Rounds:
    """Return rounds whose times have a median of `scale` ms, each start and round a little slower or quicker."""
    random_ = np.random.default_rng(seed)
    return [
        [
            Round([*(scale * np.exp(start + at + random_.normal(0, 0.3, 400)))], 400 * scale / 1000, errors)
            for at in random_.normal(0, noise, 3)
        ]
        for start in random_.normal(0, noise, starts)
    ]


def judged(candidate: Rounds, baseline: Rounds | None) -> dict[str, Any]:
    sides = {"candidate": candidate} | ({"baseline": baseline} if baseline else {})
    return verdict(sides, LIMITS, ratios(candidate, baseline) if baseline else {})


def test_the_ratio_is_of_pairs_so_that_what_slows_both_does_not_count() -> None:
    drift = np.linspace(1, 3, 5)
    both = [
        [
            [Round([time * scale for time in one.times], one.seconds * scale, 0) for one in start]
            for start, scale in zip(side, drift, strict=True)
        ]
        for side in (rounds(2.0, noise=0), rounds(1.0, seed=1, noise=0))
    ]

    ratio, low, high = ratios(*both)["p50"]

    assert ratio == pytest.approx(2, rel=0.05)
    assert 1.9 < low < ratio < high < 2.1
    assert ratios(*both)["throughput"][0] == pytest.approx(0.5)


def test_one_disturbed_pair_does_not_decide() -> None:
    slow = rounds(1.0)
    slow[2][1] = Round([time * 50 for time in slow[2][1].times], slow[2][1].seconds * 50, 0)

    assert ratios(slow, rounds(1.0, seed=1))["p95"][0] < 1.15


def test_as_fast_passes_and_says_the_ratios() -> None:
    found = judged(rounds(1.0), rounds(1.0, seed=1))

    assert (found["status"], found["remedy"]) == ("passed", "")
    assert found["sentence"].startswith("times the baseline's: p50 ")


def test_slower_fails_with_the_ratio_and_its_interval() -> None:
    found = judged(rounds(1.4), rounds(1.0, seed=1))

    assert found["status"] == "failed"
    assert "p50 is 1.4" in found["sentence"]
    assert "at most 1.15" in found["sentence"]
    assert "throughput is 0.7" in found["sentence"]


def test_too_noisy_to_say_is_not_judged_and_no_pass() -> None:
    wild = [rounds(scale, starts=1, noise=0)[0] for scale in (3.0, 0.6, 2.5, 0.7)]

    found = judged(wild, rounds(1.0, starts=4, noise=0))

    assert found["status"] == "not judged"
    assert "too noisy to say" in found["sentence"]


def test_errors_and_the_plain_objective_count_without_a_baseline_too() -> None:
    assert judged(rounds(1.0), None)["sentence"].startswith("no baseline yet; p99 ")
    assert judged(rounds(1.0, errors=1), None)["status"] == "failed"
    assert "requests failed, at most 0.10%" in judged(rounds(1.0, errors=1), None)["sentence"]
    assert "ms, at most 100" in judged(rounds(90.0), None)["sentence"]


def test_the_result_is_what_the_review_reads(holdout: Path) -> None:
    sides = {"candidate": rounds(1.0), "baseline": rounds(1.0, seed=1)}
    compared = ratios(*sides.values())

    loadtest.write(
        holdout, {"model": "x", **verdict(sides, LIMITS, compared)}, sides, compared, {"candidate": "<html>"}
    )

    folder = holdout / loadtest.FOLDER
    assert sorted(path.name for path in folder.iterdir()) == [
        "candidate.html",
        "result.json",
        "rounds.json",
        "rounds.svg",
    ]
    assert set(json.loads((folder / "result.json").read_text())) == {
        *("model", "status", "sentence", "observed", "threshold", "remedy")
    }
    assert len(json.loads((folder / "rounds.json").read_text())["rounds"]["baseline"]) == 15
    assert "<svg" in (folder / "rounds.svg").read_text()


class Loaded:
    """Notes which side each round was of, and where it was."""

    def __init__(self, took: float = 0.0) -> None:
        self.told: list[str] = []
        self.starts, self.took, self.now = 0, took, 0.0

    def monotonic(self) -> float:
        return self.now

    def round(self, side: str, host: str, seconds: float) -> Round:
        self.told.append(f"{side[0]}{host}")
        return Round([1.0], seconds, 0)

    @contextmanager
    def start(self) -> Iterator[dict[str, str]]:
        self.starts += 1
        self.now += self.took
        yield {"candidate": str(self.starts), "baseline": str(self.starts)}


def test_what_is_turned_off_leaves_a_result_that_says_so(project: Path) -> None:
    loadtest.skip(project)

    told = json.loads((project / loadtest.RESULT).read_text())
    assert (told["status"], told["sentence"]) == ("skipped", "turned off in params.yaml")
    assert told["model"] == Scorer(project / build.MODEL).digest
    assert json.loads((project / loadtest.FOLDER / "rounds.json").read_text()) == {}


def test_each_start_has_a_warm_up_and_then_pairs_of_random_order() -> None:
    load = Loaded()

    found = loadtest.paired(load, load.start, starts=3, rounds=30, seconds=1)

    for start in ("1", "2", "3"):
        told = [side[0] for side in load.told if side[1:] == start]
        assert told[:2] == ["c", "b"]
        pairs = ["".join(told[at : at + 2]) for at in range(2, len(told), 2)]
        assert set(pairs) == {"cb", "bc"}
        assert 8 < pairs.count("cb") < 22
    assert [[len(part) for part in side] for side in found.values()] == [[30, 30, 30]] * 2


@pytest.mark.parametrize(("took", "starts"), [(10, 8), (20, 4), (50, 2)])
def test_where_starts_take_long_there_are_fewer(took: float, starts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Loaded(took)
    monkeypatch.setattr(loadtest.time, "monotonic", load.monotonic)

    found = loadtest.paired(load, load.start, starts=8, rounds=1, seconds=1, budget=80)

    assert load.starts == starts
    assert [len(side) for side in found.values()] == [starts] * 2


def test_a_difference_of_one_start_alone_fails_nothing() -> None:
    one = rounds(1.0, noise=0)
    one[0] = rounds(1.6, starts=1, noise=0)[0]

    assert judged(one, rounds(1.0, seed=1, noise=0))["status"] != "failed"
