"""Ring 5: the pipeline on the real flights, and the same on three days of each month where size does not matter."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest
from real import Project, ask, drawn_plots, ran, serving, wait_until

pytestmark = pytest.mark.slow
AFTER_SPLIT = ["train", "evaluate", "repeat"]
BINARY = {
    "rows",
    "base_rate",
    "roc_auc",
    "average_precision",
    "average_precision_skill",
    "log_loss",
    "brier",
    "expected_calibration_error",
    "threshold",
    "precision",
    "recall",
    "selection_rate",
    "cost",
    "cost_of_never",
    "cost_of_always",
}
SCORES = """
import json, sys
import mlflow, numpy as np, onnxruntime, pandas as pd
from ml.pipeline.features import inputs
held = pd.read_parquet("data/split/holdout.parquet").iloc[::143].head(200)
X = inputs(held)
session = onnxruntime.InferenceSession("models/model.onnx")
onnx = session.run(["probabilities"], {name: X[[name]].to_numpy() for name in X})[0][:, 1]
mlflow.set_tracking_uri("sqlite:///mlflow.db")
runs = mlflow.search_runs(search_all_experiments=True, filter_string="tags.`model.md5` = '%s'")
model = mlflow.sklearn.load_model(f"runs:/{runs.iloc[0]['run_id']}/model")
rows = json.loads(held[list(X)].to_json(orient="records"))
print(json.dumps({"rows": rows, "onnx": onnx.tolist(), "sklearn": model.predict_proba(X)[:, 1].tolist()}))
"""
# 54.97 and the 32-bit float below it stand in the real weather; the middle of both rounds to the upper one.
NEIGHBOURS = """
import numpy as np, pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline
from ml.pipeline import export
high = np.float32(54.97)
X = pd.DataFrame({"x": np.array([np.nextafter(high, np.float32(0)), high] * 100, dtype=np.float32)})
features = ColumnTransformer([("numbers", "passthrough", ["x"])])
model = Pipeline([("features", features), ("estimator", HistGradientBoostingClassifier(max_iter=3))])
model.fit(X, [0, 1] * 100)
runtime = export.session(export.convert(model, X.head(1)).SerializeToString())
print(np.abs(export.scores(runtime, X) - export.expected(model, X)).max())
"""
IMPORTED = """
import sys
before = set(sys.modules)
from ml.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
print(*sorted(set(sys.modules) - before), sep="\\n", file=sys.stderr)
"""


def test_ten_months_give_the_known_holdout_and_a_useful_model(full: Project) -> None:
    found = full.metrics

    assert set(found) == BINARY
    assert (found["rows"], found["base_rate"]) == (28_618, 0.175624)
    assert 0.65 < found["roc_auc"] < 0.75
    assert 0.12 < found["average_precision_skill"] < 0.3
    assert found["cost"] < min(found["cost_of_never"], found["cost_of_always"])


def test_holdout_is_the_newest_month_and_shares_no_row_with_train(full: Project) -> None:
    rows = json.loads((full / "reports/split/rows.json").read_text())

    assert rows["holdout"]["periods"] == ["2013-10"]
    assert rows["train"]["periods"] == [f"2013-{month:02}" for month in range(1, 10)]
    labelled = rows["train"]["rows"] + rows["holdout"]["rows"]
    assert labelled + sum(rows["without_label"].values()) == 281_373


def test_plots_of_a_binary_task_are_drawn(full: Project, tmp_path: Path) -> None:
    axes, points = drawn_plots(full, tmp_path)

    assert set(axes) == {"roc", "precision_recall", "calibration", "confusion", "scores", "importance"}
    assert {plot for plot, (x, _) in axes.items() if x not in points[plot][0]} == set()
    assert len({point["input"] for point in points["importance"]}) == 19
    assert len(points["confusion"]) == 28_618


def test_second_run_runs_nothing_and_leaves_git_clean(full: Project) -> None:
    printed = full.done("make", "pipeline")

    assert ran(printed) == []
    assert full.done("git", "status", "--porcelain") == ""


def test_deleted_data_and_model_come_back_without_ingest_or_train(full: Project, tmp_path: Path) -> None:
    project = full.copy(tmp_path / "copy")
    model = (project / "models/model.onnx").read_bytes()
    shutil.rmtree(project / "data")
    shutil.rmtree(project / "models")

    again = ran(project.done("dvc", "repro"))

    assert not [stage for stage in again if stage.startswith(("ingest", "train"))]
    assert (project / "models/model.onnx").read_bytes() == model
    assert len(list((project / "data/ingest").iterdir())) == 10
    assert project.lock == full.lock


def test_one_thread_gives_the_bytes_that_many_gave_on_all_months(full: Project, tmp_path: Path) -> None:
    project = full.copy(tmp_path / "copy")
    (project / "models/model.onnx").unlink()

    project.done("ml", "train", OMP_NUM_THREADS="1", PYTHONHASHSEED="0")

    assert (project / "models/model.onnx").read_bytes() == (full / "models/model.onnx").read_bytes()


def test_cold_runs_with_other_hash_seeds_and_threads_give_the_same_lock(small: Project, copy: Project) -> None:
    printed = copy.forget().done("dvc", "repro", PYTHONHASHSEED="2", OMP_NUM_THREADS="2")

    assert ran(printed) == [*(f"ingest@2013-0{month}" for month in (1, 2, 3)), "split", *AFTER_SPLIT]
    assert copy.lock == small.lock


def test_new_month_runs_only_itself_and_what_follows_and_its_removal_undoes_it(small: Project, copy: Project) -> None:
    copy.change("    - 2013-03\n", "    - 2013-03\n    - 2013-11\n")
    printed = copy.done("make", "pipeline")
    assert ran(printed) == ["ingest@2013-11", "split", *AFTER_SPLIT]
    assert json.loads((copy / "reports/split/rows.json").read_text())["holdout"]["periods"] == ["2013-11"]

    copy.change("    - 2013-11\n", "")
    printed = copy.done("make", "pipeline")
    assert not (copy / "data/ingest/2013-11.parquet").exists()
    assert not {"train", "ingest@2013-01", "ingest@2013-11"} & set(ran(printed))
    assert copy.lock == small.lock


@pytest.fixture(scope="module")
def branched(small: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    """The small project on a branch with another setting, and what its run printed."""
    project = small.copy(tmp_path_factory.mktemp("branched") / "copy")
    project.done("git", "switch", "--quiet", "--create", "longer")
    project.change("max_iter: 8", "max_iter: 9")
    printed = project.done("make", "pipeline")
    project.commit("Train for longer")
    return project, printed


def test_changed_setting_runs_only_what_trains_and_judges(branched: tuple[Project, str]) -> None:
    assert ran(branched[1]) == AFTER_SPLIT


def test_diff_shows_the_changed_setting_and_the_metrics(small: Project, branched: tuple[Project, str]) -> None:
    project = branched[0]

    rows = [[cell.strip() for cell in line.split("|")] for line in project.done(".venv/bin/ml", "diff").splitlines()]

    assert ["", "train.settings.max_iter", "8", "9", ""] in rows
    shown = {row[1]: row[2:4] for row in rows if len(row) > 3 and row[1] in project.metrics}
    assert len(shown) >= 5
    changed = {name for name, value in project.metrics.items() if value != small.metrics[name]}
    assert set(shown) == changed
    assert [float(cell) for cell in shown["roc_auc"]] == pytest.approx(
        [small.metrics["roc_auc"], project.metrics["roc_auc"]], abs=1e-4
    )


def test_resolve_after_a_real_conflict_ends_up_to_date(branched: tuple[Project, str], tmp_path: Path) -> None:
    project = branched[0].copy(tmp_path / "copy")
    project.done("git", "switch", "--quiet", "main")
    project.change("max_iter: 8", "max_iter: 7")
    project.done("make", "pipeline")
    project.commit("Train for less long")
    assert project.run("git", "merge", "longer").returncode == 1
    conflicts = set(project.done("git", "diff", "--name-only", "--diff-filter=U").split())
    assert {"params.yaml", "dvc.lock", "reports/evaluate/metrics.json"} <= conflicts

    refused = project.run("make", "resolve")
    assert refused.returncode != 0
    assert "still in conflict: params.yaml" in refused.stderr
    project.done("git", "checkout", "--theirs", "params.yaml")
    project.done("git", "add", "params.yaml")
    printed = project.done("make", "resolve")

    assert "train" not in ran(printed)
    assert project.done("git", "diff", "--name-only", "--diff-filter=U") == ""
    assert project.run("git", "grep", "-lE", "^(<<<<<<<|>>>>>>>)").stdout == ""
    assert project.done("dvc", "status") == "Data and pipelines are up to date.\n"
    assert project.lock == branched[0].lock
    project.commit("Merge longer")
    assert project.done("git", "status", "--porcelain") == ""


@pytest.mark.parametrize("target", ["lint", "test"])
def test_fresh_project_passes_its_own(target: str, full: Project) -> None:
    printed = full.done("make", target)

    if target == "test":
        assert re.search(r"^=+ \d+ passed(, \d+ warnings)? in .*=+$", printed.strip().splitlines()[-1])


def test_build_twice_gives_the_same_tag_and_nothing_of_training(full: Project) -> None:
    first = full.done("ml", "build").split()[-1]
    second = full.done("ml", "build").split()[-1]

    assert first == second
    bento = full / ".bentoml/bentos" / first.replace(":", "/")
    assert next(bento.rglob("model.onnx")).read_bytes() == (full / "models/model.onnx").read_bytes()
    assert not list(bento.rglob("pipeline"))


def test_service_answers_what_onnx_runtime_and_scikit_learn_answer(full: Project) -> None:
    locked = full.python("import yaml; print(yaml.safe_load(open('dvc.lock'))['stages']['train']['outs'][0]['md5'])")
    wanted = json.loads(full.python(SCORES % locked.strip()))
    full.done("ml", "build")

    with serving(full) as address:
        status, answer = ask(address, wanted["rows"])

    assert status == 200
    answered = [prediction["score"] for prediction in answer["predictions"]]
    assert len(answered) == 200
    assert len(set(answered)) > 100
    assert answered == pytest.approx(wanted["onnx"], abs=1e-5)
    assert answered == pytest.approx(wanted["sklearn"], abs=1e-5)


@pytest.fixture(scope="module")
def tuned(small: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small project after a search of eight trials from settings that anything beats."""
    project = small.copy(tmp_path_factory.mktemp("tuned") / "copy")
    project.change("learning_rate: 0.1", "learning_rate: 0.0001 # slow on purpose")
    project.done("ml", "tune", "--trials", "8")
    return project


def trials(project: Project) -> list[tuple[float, str]]:
    """Return value and recipe of the complete trials, in order."""
    if not (project / "tune.db").exists():
        return []
    with sqlite3.connect(f"file:{project / 'tune.db'}?mode=ro", uri=True) as store:
        try:
            return store.execute(
                "SELECT value, value_json FROM trials JOIN trial_values USING (trial_id) "
                "JOIN trial_user_attributes USING (trial_id) WHERE state = 'COMPLETE' ORDER BY trial_id"
            ).fetchall()
        except sqlite3.OperationalError:
            return []


def test_tune_writes_the_winner_and_keeps_every_other_line(small: Project, tuned: Project) -> None:
    old, new = ((project / "params.yaml").read_text() for project in (small, tuned))

    best = json.loads(max(trials(tuned))[1])
    written = json.loads(
        tuned.python("import json, yaml; print(json.dumps(yaml.safe_load(open('params.yaml'))['train']))")
    )
    assert {key: written[key] for key in ("estimator", "settings")} == best
    for part in (0, 1):
        assert _around_train(old)[part] == _around_train(new)[part]
    assert "# linear, forest, boosting, or the path of a scikit-learn class" in new


def _around_train(text: str) -> tuple[str, str]:
    before, _, rest = text.partition("\ntrain:\n")
    return before, rest[rest.index("\nevaluate:") :]


def test_tune_goes_on_after_ctrl_c_as_if_it_had_not_been(tuned: Project, copy: Project) -> None:
    copy.change("learning_rate: 0.1", "learning_rate: 0.0001 # slow on purpose")
    before = (copy / "params.yaml").read_bytes()
    search = copy.start("ml", "tune", "--trials", "8")
    wait_until(lambda: trials(copy), search)
    search.send_signal(signal.SIGINT)
    _, errors = search.communicate(timeout=60)

    assert search.returncode == 130
    assert [line[:15] for line in errors.splitlines()] == ["ml: interrupted"]
    assert (copy / "params.yaml").read_bytes() == before
    assert len(trials(copy)) < 8

    copy.done("ml", "tune", "--trials", "8")
    assert trials(copy) == trials(tuned)
    assert (copy / "params.yaml").read_bytes() == (tuned / "params.yaml").read_bytes()


def test_boosting_that_splits_between_neighbouring_floats_converts_faithfully(prepared: Project) -> None:
    assert float(prepared.python(NEIGHBOURS)) < 1e-5


def test_help_imports_next_to_nothing(prepared: Project) -> None:
    result = prepared.run("python", "-c", IMPORTED)

    imported = set(result.stderr.split())
    assert "usage: ml" in result.stdout
    assert imported & {"ml.cli", "argparse"} == {"ml.cli", "argparse"}
    assert len(imported) < 60
    assert not {"numpy", "pandas", "sklearn", "mlflow", "pydantic", "pandera", "bentoml", "tqdm"} & imported
