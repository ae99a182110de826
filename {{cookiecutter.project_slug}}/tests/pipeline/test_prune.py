"""What the settings no longer name goes, and equal settings leave an equal lock."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml.pipeline import prune

PERIODS = ["2013-01", "2013-02"]
HEAD = "schema: '2.0'\nstages:\n"
STAGES = {
    "ingest@2013-01": "    cmd: ml ingest 2013-01\n    outs:\n    - path: data/ingest/2013-01.parquet\n      md5: a\n",
    "ingest@2013-02": "    cmd: ml ingest 2013-02\n",
    "split": "    cmd: ml split\n",
    "train": "    cmd: ml train\n",
    "evaluate": "    cmd: ml evaluate\n",
}


def lock_of(*names: str) -> str:
    return HEAD + "".join(f"  {name}:\n{STAGES[name]}" for name in names)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_only_periods_that_are_no_longer_listed_are_removed() -> None:
    prune.FOLDER.mkdir(parents=True)
    for name in ("2013-01.parquet", "2013-02.parquet", "2013-03.parquet", "notes.txt"):
        (prune.FOLDER / name).touch()

    removed = prune.run(["2013-02", "2013-04"])

    assert [path.name for path in removed] == ["2013-01.parquet", "2013-03.parquet"]
    assert sorted(path.name for path in prune.FOLDER.iterdir()) == ["2013-02.parquet", "notes.txt"]
    assert prune.run(["2013-02"]) == []


def test_breach_reports_of_an_earlier_run_are_removed() -> None:
    report = prune.BREACHES / "2013-01.json"
    report.parent.mkdir(parents=True)
    report.touch()

    prune.run(PERIODS)

    assert not report.exists()


@pytest.mark.parametrize(
    "names",
    [
        pytest.param([*STAGES], id="as a cold run leaves it"),
        pytest.param(["ingest@2013-01", "split", "train", "evaluate", "ingest@2013-02"], id="a period added last"),
        pytest.param([*reversed(STAGES)], id="the other way round"),
    ],
)
def test_the_lock_is_put_in_the_order_of_a_cold_run(names: list[str]) -> None:
    assert prune.ordered(lock_of(*names), PERIODS) == lock_of(*STAGES)


def test_the_lock_forgets_the_periods_that_are_no_longer_listed_and_nothing_else() -> None:
    prune.LOCK.write_text(lock_of(*STAGES))

    prune.run(["2013-02"])

    assert prune.LOCK.read_text() == lock_of("ingest@2013-02", "split", "train", "evaluate")


def test_a_stage_of_the_users_own_keeps_its_entry() -> None:
    lock = lock_of(*STAGES) + "  extra:\n    cmd: make extra\n"

    assert prune.ordered(lock, PERIODS) == lock


def test_a_lock_in_order_is_not_written_again() -> None:
    prune.LOCK.write_text(lock_of(*STAGES))
    before = prune.LOCK.stat()

    prune.run(PERIODS)

    assert prune.LOCK.stat().st_ino == before.st_ino
