"""Ring 5: what must not harm a project. Each ends with one clear line, a failure, and nothing lost."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import time
import zipfile
from pathlib import Path

import pytest
from conftest import require
from real import Project, ran, refusal, wait_until

pytestmark = pytest.mark.slow
PERIOD = "2013-01"
FLIGHTS, REPORT = "sources/flights.parquet", f"reports/contract/{PERIOD}.json"
PARTITION = f"data/ingest/{PERIOD}.parquet"
JANUARY = "f = pandas.read_parquet('sources/flights.parquet'); j = f.index[f['month'] == 1]; "
# What is done to January's flights; the first word of the refusal must say it, the others it or its report.
BROKEN_ROWS = {
    "missing column": ("f = f.drop(columns='distance')", ["distance"]),
    "extra column": ("f['colour'] = 'red'", ["colour"]),
    "renamed column": ("f = f.rename(columns={'carrier': 'airline'})", ["airline", "carrier"]),
    "missing month": ("f = f.drop(columns='month')", ["month"]),
    "column of another type": ("f['distance'] = f['distance'].astype(str)", ["distance", "int64"]),
    "all-null column": ("f['tailnum'] = None", ["tailnum"]),
    "all-null numbers": ("f['dep_time'] = float('nan')", ["dep_time", "1.000"]),
    "duplicate keys": ("f = pandas.concat([f, f.loc[j[:3]]])", ["time_hour", "flight", "6 rows"]),
    "unknown carrier": ("f.loc[j[:2], 'carrier'] = 'ZZ'", ["carrier", "2 rows", "ZZ"]),
    "a delay of 10⁹ minutes": ("f.loc[j[0], 'arr_delay'] = 1e9", ["arr_delay", "1 rows", "1000000000.0"]),
    "empty month": ("f = f.drop(index=j)", ["0 rows, must be 1000 to 40000"]),
    "too few rows": ("f = f.drop(index=j[10:])", ["10 rows, must be 1000 to 40000"]),
}
BROKEN_SETTINGS = {
    "typo": ("  floor: 0.12", "  flor: 0.12", ["objective.flor", "did you mean floor?"]),
    "typo in a section": ("evaluate:", "evalute:", ["evalute", "did you mean evaluate?"]),
    "word for a number": ("  trials: 3", "  trials: many", ["tune.trials", "'many'", "integer"]),
    "number for a word": ("  target: late", "  target: 1", ["data.target", "must be text"]),
    "missing section": ("task: binary", "", ["task is missing"]),
    "section without content": ("objective:", "objective: 3\nother:", ["objective = 3"]),
    "broken YAML": ("  periods:", "  periods: [", ["params.yaml, line", "YAML"]),
    "impossible month": ("    - 2013-03\n", "    - 2013-13\n", ["2013-13", "2013-01"]),
    "same month twice": ("    - 2013-03\n", "    - 2013-02\n", ["data.periods", "twice"]),
    "no month to train on": ("    - 2013-01\n    - 2013-02\n", "", ["split.holdout", "data.periods"]),
}
STAGES = {
    "ingest": (f"ingest@{PERIOD}", f"ml ingest {PERIOD}"),
    "split": ("split", "ml split"),
    "train": ("train", "ml train"),
    "evaluate": ("evaluate", "ml evaluate"),
}
MODEL = "models/model.onnx"
# Where a stage's files stand, and which of them still find room on the small disk.
DISKS = {
    "ingest": ("data/ingest", []),
    "split": ("data/split", ["train.parquet"]),
    "train": ("models", []),
    "evaluate": ("reports/evaluate", ["metrics.json", "slices.json"]),
}
# Halves the n-th file that `ml` writes before it has its name, and kills.
KILLER = """
import os, signal, sys
left, fsync = int(os.environ["KILL_AT_FILE"]), os.fsync
def dying(handle):
    global left
    left -= sys.argv[0].endswith("/ml")
    if left:
        return fsync(handle)
    file = os.readlink(f"/proc/self/fd/{handle}")
    os.truncate(file, os.path.getsize(file) // 2)
    os.killpg(0, signal.SIGKILL) if os.environ["KILL_WHOM"] == "group" else os.kill(os.getpid(), signal.SIGKILL)
os.fsync = dying
"""


def outputs(project: Project) -> dict[str, bytes]:
    """Return the bytes of everything that the stages made."""
    return {
        path.relative_to(project.folder).as_posix(): path.read_bytes()
        for name in ("data", "models", "reports")
        for path in sorted((project / name).rglob("*"))
        if path.is_file()
    }


def assert_as_before(project: Project, small: Project) -> None:
    """The lock, the outputs and the reports are those of a run that nothing disturbed."""
    assert project.lock == small.lock
    assert outputs(project) == outputs(small)
    assert project.done("git", "status", "--porcelain") == ""
    assert project.done("dvc", "status") == "Data and pipelines are up to date.\n"


def forget(project: Project, stage: str) -> str:
    """Make DVC run the stage again, whatever it has cached; return the stage's name."""
    name, command = STAGES[stage]
    project.change(f"cmd: PYTHONHASHSEED=0 {command}\n", "cmd: forgotten\n", "dvc.lock")
    shutil.rmtree(project / ".dvc/cache/runs")
    return name


# ---- sources


def assert_kept(project: Project, before: bytes) -> None:
    assert (project / PARTITION).read_bytes() == before
    assert project.leftovers() == []


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def zipped(project: Project) -> Path:
    path = project / "sources/flights.csv.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("flights.csv", "year,month\n" + "2013,1\n" * 100_000)
    project.change(FLIGHTS, "sources/flights.csv.zip")
    return path


SPOILED = {
    "truncated Parquet": lambda project: truncated(project / FLIGHTS),
    "text named .parquet": lambda project: (project / FLIGHTS).write_text("year,month\n2013,1\n"),
    "empty file": lambda project: (project / FLIGHTS).write_bytes(b""),
    "truncated csv.zip": lambda project: truncated(zipped(project)),
    "missing file": lambda project: (project / FLIGHTS).unlink(),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_unreadable_source_is_named_and_the_old_partition_stays(spoil, copy: Project) -> None:
    before = (copy / PARTITION).read_bytes()
    spoil(copy)

    line = refusal(copy.run("ml", "ingest", PERIOD))

    assert "sources/flights." in line
    assert "data.sources in params.yaml" in line
    assert_kept(copy, before)


@pytest.mark.parametrize(("change", "said"), BROKEN_ROWS.values(), ids=BROKEN_ROWS)
def test_breach_of_the_contract_is_named_reported_and_writes_nothing(
    change: str, said: list[str], copy: Project
) -> None:
    before = (copy / PARTITION).read_bytes()
    copy.python(f"import pandas; {JANUARY}{change}; f.to_parquet('{FLIGHTS}', index=False)")

    line = refusal(copy.run("ml", "ingest", PERIOD))

    assert line.startswith(f"ml: {PERIOD} breaks the contract: ")
    assert [word for word in [said[0], REPORT] if word not in line] == []
    assert [word for word in said if word not in line + (copy / REPORT).read_text()] == []
    report = json.loads((copy / REPORT).read_text())
    assert report["period"] == PERIOD
    assert {"table", "column", "check", "rows", "first"} == set(report["breaches"][0])
    assert all(len(breach["first"]) <= 20 for breach in report["breaches"])
    assert_kept(copy, before)


def test_report_shows_the_broken_rows_themselves(copy: Project) -> None:
    copy.python(f"import pandas; {JANUARY}f.loc[j[:30], 'carrier'] = 'ZZ'; f.to_parquet('{FLIGHTS}', index=False)")

    refusal(copy.run("ml", "ingest", PERIOD))

    (breach,) = json.loads((copy / REPORT).read_text())["breaches"]
    assert (breach["table"], breach["column"], breach["rows"]) == ("Flights", "carrier", 30)
    assert [row["value"] for row in breach["first"]] == ["ZZ"] * 20
    assert {row["row"]["month"] for row in breach["first"]} == {1}


def test_bad_month_stops_the_pipeline_and_the_good_one_brings_everything_back(small: Project, copy: Project) -> None:
    good = (copy / FLIGHTS).read_bytes()
    copy.change("max: 40000", "max: 40001")
    copy.python(f"import pandas; {JANUARY}f.loc[j[0], 'carrier'] = 'ZZ'; f.to_parquet('{FLIGHTS}', index=False)")

    result = copy.run("make", "pipeline")

    assert f"ml: {PERIOD} breaks the contract" in refusal(result)
    assert (copy / MODEL).read_bytes() == (small / MODEL).read_bytes()
    copy.change("max: 40001", "max: 40000")
    (copy / FLIGHTS).write_bytes(good)
    assert not {"train", f"ingest@{PERIOD}"} & set(ran(copy.done("make", "pipeline")))
    assert not (copy / REPORT).exists()
    (copy / "reports/contract").rmdir()
    assert_as_before(copy, small)


# ---- periods


@pytest.mark.parametrize(("period", "said"), [("2014-02", "0 rows"), ("2999-01", "2999-01 lies in the future")])
def test_month_without_data_stops_with_one_line(period: str, said: str, small: Project, copy: Project) -> None:
    copy.change("    - 2013-03\n", f"    - 2013-03\n    - {period}\n")

    line = refusal(copy.run("make", "pipeline"))

    assert line.startswith(f"ml: {period} breaks the contract")
    assert said in line
    assert not (copy / f"data/ingest/{period}.parquet").exists()
    assert (copy / MODEL).read_bytes() == (small / MODEL).read_bytes()
    assert copy.lock == small.lock


def test_month_that_is_not_listed_is_not_ingested(copy: Project) -> None:
    line = refusal(copy.run("ml", "ingest", "2013-11"))

    assert "2013-11 is not in data.periods" in line
    assert not (copy / "data/ingest/2013-11.parquet").exists()


def test_stale_month_stops_a_bare_repro_and_prune_removes_it(copy: Project) -> None:
    copy.change("    - 2013-01\n", "")

    line = refusal(copy.run("dvc", "repro"))
    assert line.startswith(f"ml: {PARTITION} is not in data.periods")
    assert (copy / PARTITION).exists()

    assert f"removed {PARTITION}" in copy.done("ml", "prune")
    assert f"ingest@{PERIOD}" not in copy.lock.decode()
    assert ran(copy.done("dvc", "repro", "--single-item", "split")) == ["split"]


# ---- settings


@pytest.mark.parametrize(("old", "new", "said"), BROKEN_SETTINGS.values(), ids=BROKEN_SETTINGS)
def test_broken_settings_are_named_and_nothing_runs(
    old: str, new: str, said: list[str], small: Project, copy: Project
) -> None:
    text = (copy / "params.yaml").read_text()
    start = 0 if text.startswith(old) else text.index(f"\n{old}") + 1
    (copy / "params.yaml").write_text(text[:start] + new + text[start + len(old) :])

    result = copy.run("make", "pipeline")

    line = refusal(result)
    assert [word for word in said if word not in line] == []
    assert ran(result.stdout) == []
    assert outputs(copy) == outputs(small)


def test_broken_yaml_stops_dvc_itself_with_one_line(small: Project, copy: Project) -> None:
    copy.change("  periods:", "  periods: [")

    result = copy.run("dvc", "repro")

    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert "params.yaml" in result.stderr
    assert outputs(copy) == outputs(small)


def test_estimator_without_onnx_form_is_named_and_the_old_model_stays(small: Project, copy: Project) -> None:
    text = (copy / "params.yaml").read_text()
    begin, end = text.index("  estimator: boosting"), text.index("  seed: 0")
    text = text[:begin] + "  estimator: sklearn.dummy.DummyClassifier\n  settings: {}\n" + text[end:]
    (copy / "params.yaml").write_text(text)

    line = refusal(copy.run("ml", "train"))

    assert "DummyClassifier" in line
    assert "ONNX" in line
    assert (copy / MODEL).read_bytes() == (small / MODEL).read_bytes()


@pytest.mark.parametrize("store", ["sqlite:////proc/nope/x.db", "/proc/nope"])
def test_unwritable_mlflow_store_is_named_and_the_new_model_is_kept(store: str, small: Project, copy: Project) -> None:
    (copy / MODEL).unlink()

    line = refusal(copy.run("ml", "train", MLFLOW_TRACKING_URI=store, PYTHONHASHSEED="0"))

    assert f"the MLflow store {store} cannot be written" in line
    assert "MLFLOW_TRACKING_URI" in line
    assert (copy / MODEL).read_bytes() == (small / MODEL).read_bytes()


# ---- a full disk


def on_small_disk(project: Project, folder: str, room: int, *command: str):
    """Run the command where the folder is a disk of `room` bytes; print at the end which files it holds."""
    script = (
        'mount -t tmpfs -o "size=$1" tmpfs "$2" || exit 99; small=$2; shift 2; "$@"; code=$?; '
        'find "$small" -type f -printf "on the disk: %P\\n"; exit $code'
    )
    apart = [require("unshare"), "-m" if os.geteuid() == 0 else "-rm", "sh", "-c", script, "sh"]
    result = project.run(*apart, str(room), folder, *command)
    if result.returncode == 99 or "unshare failed" in result.stderr:
        (pytest.fail if os.environ.get("REQUIRE_ALL") else pytest.skip)(f"no mount here: {result.stderr}")
    return result


@pytest.mark.parametrize("stage", STAGES)
def test_full_disk_stops_a_stage_and_the_next_run_makes_the_same(stage: str, small: Project, copy: Project) -> None:
    folder, fitting = DISKS[stage]
    sizes = [(copy / folder / name).stat().st_size for name in fitting]
    room = 4096 * (1 + sum(math.ceil(size / 4096) for size in sizes))
    name = forget(copy, stage)

    result = on_small_disk(copy, folder, room, "dvc", "repro", "--single-item", name)

    line = refusal(result)
    assert line.startswith("ml: ")
    assert "No space left on device" in line
    assert ran(result.stdout) == [name]
    held = {line.removeprefix("on the disk: ") for line in result.stdout.splitlines() if line.startswith("on the ")}
    assert held == set(fitting)

    assert ran(copy.done("dvc", "repro")) == [name]
    assert_as_before(copy, small)


# ---- kill -9


def assert_goes_on(project: Project, name: str, small: Project) -> None:
    """The next run runs the killed stage once and ends as if nothing had happened."""
    assert ran(project.done("dvc", "repro")) == [name]
    assert project.leftovers() == []
    assert_as_before(project, small)


@pytest.mark.parametrize(
    ("stage", "file", "whom"),
    [
        *((stage, 1, whom) for stage in STAGES for whom in ("group", "child")),
        ("split", 3, "group"),
        ("evaluate", 6, "group"),
    ],
)
def test_kill_in_the_middle_of_a_file_leaves_nothing_half_written(
    stage: str, file: int, whom: str, small: Project, copy: Project, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(KILLER)
    name = forget(copy, stage)

    killed = copy.start(
        "dvc", "repro", "--single-item", name, PYTHONPATH=str(tmp_path), KILL_AT_FILE=str(file), KILL_WHOM=whom
    )
    out, errors = killed.communicate(timeout=120)

    assert ran(out) == [name]
    assert killed.returncode == -signal.SIGKILL if whom == "group" else killed.returncode > 0
    assert "Traceback" not in errors
    assert len(copy.leftovers()) == 1
    (half,) = copy.leftovers()
    assert not half.with_suffix("").exists()
    assert_goes_on(copy, name, small)


@pytest.mark.parametrize("stage", STAGES)
def test_kill_at_the_start_of_a_stage_is_survived(stage: str, small: Project, copy: Project) -> None:
    name = forget(copy, stage)
    running = copy.start("dvc", "repro", "--single-item", name)
    wait_until(lambda: working(running.pid, stage), running)
    time.sleep(0.5)

    os.killpg(running.pid, signal.SIGKILL)
    running.communicate(timeout=60)

    assert_goes_on(copy, name, small)


def test_kill_between_the_model_and_its_record_is_survived(small: Project, copy: Project) -> None:
    name = forget(copy, "train")
    (copy / MODEL).unlink()
    running = copy.start("dvc", "repro", "--single-item", name)
    wait_until((copy / MODEL).exists, running)

    os.killpg(running.pid, signal.SIGKILL)
    running.communicate(timeout=60)

    assert (copy / MODEL).read_bytes() == (small / MODEL).read_bytes()
    assert_goes_on(copy, name, small)


def working(group: int, verb: str) -> bool:
    """Return whether `ml VERB` runs in the process group."""
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            ours = len(words) > 2 and words[1].endswith(b"/ml") and words[2] == verb.encode()
            if ours and os.getpgid(int(entry.name)) == group:
                return True
        except (FileNotFoundError, ProcessLookupError):
            continue
    return False


def test_promotions_killed_anywhere_agree_after_the_next_run(prepared: Project, tmp_path: Path) -> None:
    require("docker-registry")

    printed = prepared.copy(tmp_path / "copy").done("pytest", "tests/operations/test_interleavings.py", ROUNDS="50")

    assert "5 passed" in printed
