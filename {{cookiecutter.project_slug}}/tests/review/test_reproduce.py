from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from tiny import edit, git, run

import ml
from ml.errors import UserError
from ml.pipeline import export, features, metrics
from ml.pipeline.tables import write_parquet
from ml.review import lock, reproduce

NOT_SCORED = {"metrics": {"committed": None, "retrained": None}, "largest_difference": None, "flips": None}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scratch folders of a test be seen, and score nothing: the models here are text."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setenv("SHELL", "/bin/sh")


@pytest.fixture
def project(tiny_project: Path) -> Path:
    """Return the project of shell commands, in the place of the example's."""
    return tiny_project


@pytest.fixture
def unscored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes | None, bytes | None]]:
    """Return the committed and the retrained bytes that each run would have scored."""
    seen = []

    def note(_: object, __: Path, *models: Path) -> dict[str, object]:
        seen.append(tuple(model.read_bytes() if model.exists() else None for model in models))
        return NOT_SCORED

    monkeypatch.setattr(reproduce, "compared", note)
    return seen


def files(folder: Path) -> dict[str, bytes]:
    kept = (path for path in folder.rglob("*") if path.is_file() and ".dvc/tmp" not in str(path))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept}


def result() -> dict[str, object]:
    return json.loads(reproduce.RESULT.read_text())


def forge(project: Path) -> None:
    """Commit a model that no code made, as `dvc commit` lets anyone do."""
    (project / "models/model.onnx").unlink()
    (project / "models/model.onnx").write_text("forged")
    run(project, "dvc", "commit", "--quiet", "--force", "train")
    run(project, "dvc", "repro", "--quiet", "--single-item", "plots")
    git(project, "commit", "--quiet", "--all", "--message", "better")


@pytest.mark.usefixtures("unscored")
@pytest.mark.parametrize("full", [False, True], ids=["train", "full"])
def test_an_honest_model_comes_out_the_same(project: Path, full: bool, capsys: pytest.CaptureFixture[str]) -> None:
    reproduce.run(None, full=full)

    found = result()
    md5 = lock.digest(project / "models/model.onnx")
    assert (found["same"], found["differ"], found["full"]) == (True, [], full)
    assert found["committed"] == found["retrained"] == md5
    assert found["lock_sha256"] == hashlib.sha256((project / "dvc.lock").read_bytes()).hexdigest()
    assert set(found["environment"]) == {"environment.python", "environment.platform", "environment.lock"}
    assert capsys.readouterr().out == "the retrain gives the committed bytes\n"


@pytest.mark.usefixtures("unscored")
def test_nothing_else_of_the_project_changes_and_nothing_is_left(project: Path, tmp_path: Path) -> None:
    before = files(project)

    reproduce.run(None, full=True)

    assert files(project) == {**before, reproduce.RESULT.as_posix(): reproduce.RESULT.read_bytes()}
    assert list((tmp_path / "scratch").iterdir()) == []
    assert git(project, "status", "--porcelain") == ""


@pytest.mark.parametrize("full", [False, True], ids=["train", "full"])
def test_a_forged_model_is_told_apart(project: Path, full: bool, unscored, capsys: pytest.CaptureFixture[str]) -> None:
    forge(project)
    assert lock.problems(project) == []

    reproduce.run(None, full=full)

    found = result()
    assert found["same"] is False
    assert found["committed"] == hashlib.md5(b"forged").hexdigest() != found["retrained"]
    assert found["differ"] == (["models/model.onnx", "reports/plots"] if full else ["models/model.onnx"])
    ((committed, retrained),) = unscored
    assert committed == b"forged"
    assert hashlib.md5(retrained).hexdigest() == found["retrained"]
    assert capsys.readouterr().out.startswith("the retrain gives other bytes: models/model.onnx")


@pytest.mark.usefixtures("unscored")
def test_a_forged_entry_of_the_run_cache_is_not_asked(project: Path) -> None:
    forge(project)
    entries = [path for path in (project / ".dvc/cache/runs").rglob("*") if path.is_file()]
    honest = lock.digest(project / "src/train.py")
    forged = hashlib.md5(b"forged").hexdigest()
    assert any(forged in path.read_text() and honest in path.read_text() for path in entries)
    # DVC itself takes the entry for a run of the stage.
    shutil.rmtree(project / "models")
    (project / "dvc.lock").unlink()
    run(project, "dvc", "repro", "--quiet")
    assert (project / "models/model.onnx").read_text() == "forged"

    reproduce.run(None, full=False)

    assert result()["same"] is False


@pytest.mark.usefixtures("unscored")
def test_a_forged_output_of_an_earlier_stage_is_seen_by_full_alone(project: Path) -> None:
    (project / "data/split/holdout.parquet").unlink()
    (project / "data/split/holdout.parquet").write_text("easy rows")
    run(project, "dvc", "commit", "--quiet", "--force", "split")
    run(project, "dvc", "repro", "--quiet", "--single-item", "train")
    run(project, "dvc", "repro", "--quiet", "--single-item", "plots")

    reproduce.run(None, full=False)
    assert result()["same"] is True

    reproduce.run(None, full=True)
    assert "data/split/holdout.parquet" in result()["differ"]


@pytest.fixture
def scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `plots` be the stage that scores, since this project has no `evaluate`."""
    monkeypatch.setattr(reproduce, "SCORING", "plots")


@pytest.mark.usefixtures("scoring")
def test_scoring_again_claims_no_retrain(project: Path) -> None:
    reproduce.RESULT.parent.mkdir(parents=True, exist_ok=True)
    reproduce.RESULT.write_text("{}")

    assert "was not trained again" in reproduce.rescore()
    assert not reproduce.RESULT.exists()


@pytest.mark.usefixtures("scoring")
def test_a_report_that_the_locked_model_does_not_give_is_refused(project: Path) -> None:
    (project / "reports/plots/a").unlink()
    (project / "reports/plots/a").write_text("better")
    run(project, "dvc", "commit", "--quiet", "--force", "plots")

    with pytest.raises(UserError, match="the locked model does not give the locked reports/plots: run make pipeline"):
        reproduce.rescore()


def test_a_pipeline_without_a_stage_that_scores_is_named(project: Path) -> None:
    with pytest.raises(UserError, match=r"dvc\.yaml has no stage 'evaluate': name so the one that scores"):
        reproduce.rescore()


@pytest.mark.usefixtures("unscored")
def test_a_stage_that_writes_nothing_does_not_pass_with_the_committed_report(project: Path) -> None:
    edit(project / "dvc.yaml", " && echo 2 > reports/rows.json", "")
    claim = project / "dvc.lock"
    claim.write_text(re.sub(r"\s+&&\s+echo\s+2\s+>\s+reports/rows\.json", "", claim.read_text()))
    assert lock.problems(project) == []

    reproduce.run(None, full=True)

    assert result()["differ"] == ["reports/rows.json"]


@pytest.mark.usefixtures("unscored")
def test_the_work_trees_own_outputs_are_not_needed(project: Path) -> None:
    for path in ("data", "models", "reports/plots"):
        shutil.rmtree(project / path)

    reproduce.run(None, full=False)

    assert result()["same"] is True


@pytest.mark.usefixtures("unscored")
def test_data_that_dvc_add_keeps_is_laid_out(project: Path) -> None:
    (project / "raw").mkdir()
    (project / "raw/deep").mkdir()
    (project / "raw/deep/a.csv").write_text("1\n")
    run(project, "dvc", "add", "--quiet", "raw")
    edit(project / "dvc.yaml", "      - src/train.py\n", "      - raw\n      - src/train.py\n")
    edit(project / "dvc.yaml", "cat src/train.py", "cat raw/deep/a.csv src/train.py")
    run(project, "dvc", "repro", "--quiet")
    shutil.rmtree(project / "raw")

    reproduce.run(None, full=False)

    assert result()["same"] is True


def test_a_stage_runs_with_this_environment_the_copys_code_and_a_store_of_its_own(
    project: Path, unscored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://the.team")
    monkeypatch.setenv("MLFLOW_RUN_ID", "1")
    monkeypatch.setenv("PYTHONPATH", "/of/theirs")
    shown = 'echo "$(which python) $PYTHONPATH $MLFLOW_TRACKING_URI $MLFLOW_RUN_ID $PWD" > models/model.onnx'
    edit(project / "dvc.yaml", "cat src/train.py data/split/holdout.parquet params.yaml > models/model.onnx", shown)
    run(project, "dvc", "repro", "--quiet")

    reproduce.run(None, full=False)

    python, path, store, scratch = unscored[0][1].decode().split()
    assert Path(python).parent == Path(sys.executable).parent
    assert scratch != str(project)
    assert (path, store) == (f"{scratch}/src:/of/theirs", f"sqlite:///{scratch}/mlflow.db")


@pytest.mark.parametrize(
    ("act", "message"),
    [
        pytest.param(
            lambda project: edit(project / "params.yaml", "seed: 0", "seed: 1"),
            r"^dvc\.lock is not current \(train: params\.yaml: train\.seed is not as the lock has it\): run make",
            id="stale lock",
        ),
        pytest.param(
            lambda project: shutil.rmtree(project / ".dvc/cache/files"),
            r"^DVC's cache lacks data/split/holdout\.parquet \(\w{8}\): run make pull, then this again$",
            id="nothing in the cache",
        ),
        pytest.param(
            lambda project: shutil.rmtree(project / ".git"),
            r"^this folder is not a git repository: run make setup",
            id="no git",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(project: Path, tmp_path: Path, act, message: str) -> None:
    act(project)

    with pytest.raises(UserError, match=message) as caught:
        reproduce.run(None, full=False)

    assert "\n" not in str(caught.value)
    assert not reproduce.RESULT.exists()
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_damaged_object_of_the_cache_is_refused(project: Path) -> None:
    md5 = lock.digest(project / "data/split/holdout.parquet")
    damaged = project / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    damaged.chmod(0o644)
    damaged.write_text("other rows")
    shutil.rmtree(project / "data")

    with pytest.raises(UserError, match=r"^DVC's cache holds a damaged data/split/holdout\.parquet: delete "):
        reproduce.run(None, full=False)


def test_a_stage_that_fails_is_named_with_its_last_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = "[ -e $NEEDED ] || { echo first; echo no disk >&2; exit 3; } && cat src/train.py"
    edit(project / "dvc.yaml", "cat src/train.py", needs)
    monkeypatch.setenv("NEEDED", "/")
    run(project, "dvc", "repro", "--quiet")
    monkeypatch.setenv("NEEDED", "/nowhere")

    with pytest.raises(UserError, match=r"^the stage train cannot be run again: no disk$"):
        reproduce.run(None, full=False)


@pytest.mark.usefixtures("unscored")
def test_two_at_once_are_refused(project: Path) -> None:
    with open("dvc.yaml") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"^another ml reproduce runs in this project: wait for it$"):
            reproduce.run(None, full=False)

    reproduce.run(None, full=False)


def test_a_kill_leaves_the_project_as_it_was_and_free(project: Path, unscored) -> None:
    edit(project / "dvc.yaml", "mkdir -p models &&", 'mkdir -p models && if [ -n "$SLOW" ]; then sleep 30; fi &&')
    run(project, "dvc", "repro", "--quiet")
    before = files(project)
    program = "from ml.review import reproduce; reproduce.run(None, full=False)"
    source = str(Path(ml.__file__).parents[1])
    environment = {**os.environ, "SLOW": "1", "PYTHONPATH": source, "TMPDIR": tempfile.gettempdir()}
    child = subprocess.Popen([sys.executable, "-c", program], cwd=project, env=environment, start_new_session=True)
    deadline = time.monotonic() + 60
    while not _sleeps(child.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()

    assert files(project) == before
    reproduce.run(None, full=False)
    assert result()["same"] is True


def _sleeps(group: int) -> bool:
    listed = subprocess.run(["ps", "-o", "args=", "-g", str(group)], capture_output=True, text=True).stdout
    return "sleep 30" in listed.splitlines()


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return settings, holdout and what writes a model that weighs its one input so."""
    rows = pd.DataFrame({"x": np.linspace(-3, 3, 400, dtype=np.float32)})
    rows["late"] = (rows["x"] + np.sin(9 * rows["x"]) > 0).astype(int)
    write_parquet(rows, tmp_path / "holdout.parquet")
    monkeypatch.setattr(features, "inputs", lambda table: table[["x"]])
    costs = SimpleNamespace(false_alarm=1.0, miss=1.0)
    settings = SimpleNamespace(
        task="binary",
        data=SimpleNamespace(target="late"),
        evaluate=SimpleNamespace(bins=10),
        objective=SimpleNamespace(costs=costs),
    )
    agreement = {"task": "binary", "threshold": metrics.threshold(costs), "classes": ["0", "1"]}

    def write(name: str, shift: float) -> Path:
        table = rows[["x"]].assign(x=rows["x"] - np.float32(shift))
        model = Pipeline([("estimator", LogisticRegression())]).fit(table, table["x"] > 0)
        model[-1].intercept_ -= shift * model[-1].coef_[0]
        converted = export.convert(model, table.head(1))
        (tmp_path / name).write_bytes(export.with_metadata(converted, {"contract": agreement}))
        return tmp_path / name

    return settings, tmp_path / "holdout.parquet", write


def test_the_same_file_is_no_other_in_anything(scored) -> None:
    settings, holdout, write = scored
    model = write("one.onnx", 0.0)

    found = reproduce.compared(settings, holdout, model, model)

    assert (found["largest_difference"], found["flips"]) == (0.0, 0.0)
    assert found["metrics"]["committed"] == found["metrics"]["retrained"]
    assert found["metrics"]["committed"]["roc_auc"] > 0.8


def test_two_models_are_compared_by_scores_decisions_and_metrics(scored) -> None:
    settings, holdout, write = scored

    found = reproduce.compared(settings, holdout, write("one.onnx", 0.0), write("other.onnx", 0.6))

    # A tenth of the rows lies between the two models' boundaries.
    assert found["flips"] == pytest.approx(0.1, abs=0.02)
    assert 0.05 < found["largest_difference"] <= 1
    assert found["metrics"]["committed"]["cost"] != found["metrics"]["retrained"]["cost"]


@pytest.mark.parametrize("content", [b"forged", None], ids=["no model", "not on this machine"])
def test_a_side_that_cannot_be_scored_has_no_figures(scored, tmp_path: Path, content: bytes | None) -> None:
    settings, holdout, write = scored
    if content is not None:
        (tmp_path / "committed").write_bytes(content)

    found = reproduce.compared(settings, holdout, tmp_path / "committed", write("one.onnx", 0.0))

    assert found["metrics"]["committed"] is None
    assert found["metrics"]["retrained"]["rows"] == 400
    assert (found["largest_difference"], found["flips"]) == (None, None)
