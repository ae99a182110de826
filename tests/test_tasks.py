"""Ring 5: four files make another task of the project; proven on the data sets that scikit-learn carries."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import Bake
from real import Project, ask, drawn_plots, ran, serving, set_up

pytestmark = pytest.mark.slow
TASKS = Path(__file__).parent / "tasks"
FILES = {
    "params.yaml": "",
    "ingest.py": "src/ml/pipeline",
    "schema.py": "src/ml/pipeline",
    "behaviour.yaml": "tests",
}
MADE = {
    "dvc.lock",
    "reports/evaluate/dvc.yaml",
    "reports/evaluate/metrics.json",
    "reports/evaluate/slices.json",
    "reports/repeat/metrics.json",
    "reports/split/rows.json",
}
WINE = {
    "rows",
    "accuracy",
    "balanced_accuracy",
    "f1_macro",
    "roc_auc",
    "log_loss",
    "log_loss_skill",
    "brier",
    "expected_calibration_error",
}
DIABETES = {"rows", "mean_absolute_error", "root_mean_squared_error", "median_absolute_error", "r2", "bias"}
# Keys of the metrics, the one above its floor, plots, a spoiled field, keys of a prediction, a changed setting.
FACTS = {
    "wine": (
        WINE,
        ("accuracy", 0.8),
        {"calibration", "confusion", "importance"},
        {"colour": 3},
        {"label", "probabilities"},
        ("n_estimators: 60", "n_estimators: 70"),
    ),
    "diabetes": (
        DIABETES,
        ("r2", 0.3),
        {"calibration", "residuals", "importance"},
        {"age": 200},
        {"value"},
        ("alpha: 1.0", "alpha: 1.1"),
    ),
}


OF_THE_USERS_FILES = "tests/pipeline tests/serving/test_same_answers.py tests/test_yours.py"


@pytest.fixture(scope="module", params=FACTS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def project(name: str, bake: Bake, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose four files are those of another task, after `make setup pipeline`."""
    made = set_up(bake, tmp_path_factory.mktemp(name))
    made.commit("Bake")
    for file, folder in FILES.items():
        shutil.copy(TASKS / name / file, made / folder / file)
    made.done("make", "setup", "pipeline")
    return made


def test_nothing_but_the_users_files_and_outputs_differ(project: Project) -> None:
    changed = project.done("git", "status", "--porcelain", "--untracked-files=all").splitlines()

    assert {line[3:] for line in changed} == {str(Path(folder, file)) for file, folder in FILES.items()} | MADE


def test_metrics_are_those_of_the_task_and_good(name: str, project: Project) -> None:
    keys, (metric, floor), *_ = FACTS[name]

    assert set(project.metrics) == keys
    assert project.metrics[metric] > floor


def test_holdout_shares_no_row_or_group_with_train(name: str, project: Project) -> None:
    code = (
        "import pandas as pd; t, h = (pd.read_parquet(f'data/split/{s}.parquet') for s in ('train', 'holdout')); "
        f"by = {'list(t)' if name == 'wine' else ['ward']}; "
        "print(len(t), len(h), len(t[by].drop_duplicates().merge(h[by].drop_duplicates())))"
    )

    train, holdout, shared = (int(word) for word in project.python(code).split())

    assert shared == 0
    assert holdout == project.metrics["rows"]
    assert 0.2 < holdout / (train + holdout) < 0.4


def test_plots_are_those_of_the_task_and_dvc_draws_their_columns(name: str, project: Project, tmp_path: Path) -> None:
    axes, points = drawn_plots(project, tmp_path)

    assert set(axes) == FACTS[name][2]
    for plot, (x, y) in axes.items():
        # DVC drops a column whose name it has a meaning for, and draws nothing.
        assert all(point[x] and point[y] for point in points[plot]), plot
        assert len(points[plot]) > 1, plot


def test_service_answers_a_good_row_and_refuses_a_bad_one(name: str, project: Project) -> None:
    *_, spoiled, keys, _ = FACTS[name]
    project.done("ml", "build")
    fields = json.loads((project / "build/bento/contract.json").read_text())["fields"]
    good = {field["name"]: field["example"] for field in fields}

    with serving(project) as address:
        status, answer = ask(address, [good])
        refused, error = ask(address, [good, good | spoiled])

    assert status == 200
    assert set(answer["predictions"][0]) == keys
    assert refused == 400
    assert [(found["row"], found["field"]) for found in error["problems"]] == [(1, *spoiled)]


def test_review_passes_the_first_model_and_compares_the_next(name: str, project: Project, tmp_path: Path) -> None:
    copy = project.copy(tmp_path / "copy")
    said = copy.done("make", "review", PYTHONPATH=str(copy / "src"))
    assert "failed" not in said
    assert "not judged" not in said
    copy.commit("Train the first model")
    copy.change(*FACTS[name][5])
    copy.done("make", "pipeline")

    said = copy.done("make", "review", PYTHONPATH=str(copy / "src"))

    verdict = json.loads((copy / "reports/review/verdict.json").read_text())
    assert verdict["production"]["ref"] == "main"
    assert {metric["name"] for metric in verdict["metrics"]} >= FACTS[name][0] - {"rows"}
    assert all(metric["delta"] for metric in verdict["metrics"])
    assert (copy / "reports/card.md").read_text().count("## ") >= 9


def test_tune_searches_and_the_pipeline_runs_with_what_it_finds(project: Project) -> None:
    project.commit("Make it ours")

    printed = project.done("make", "tune", "ARGS=--trials 2")

    assert "best of 2 trials" in printed
    changed = project.done("git", "status", "--porcelain").split()
    assert changed in (["M", "params.yaml"], [])
    assert ran(project.done("make", "pipeline")) == (["train", "evaluate", "repeat"] if changed else [])


def test_the_projects_own_checks_pass_once_the_test_of_the_examples_fetch_is_gone(
    name: str, project: Project, tmp_path: Path
) -> None:
    copy = project.copy(tmp_path / "copy")
    (copy / "tests/pipeline/test_ingest.py").unlink()

    # All of them once, and a second time those that look at the user's files.
    printed = copy.done("make", "lint", "test", *([] if name == "wine" else [f"ARGS={OF_THE_USERS_FILES}"]))

    assert " passed" in printed
    assert "skipped" not in printed
