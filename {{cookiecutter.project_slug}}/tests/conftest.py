"""The problem of example.py in the place of the project's own, its rows, and project folders around them."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import example
import pandas as pd
import pytest
from ruamel.yaml import YAML
from threadpoolctl import threadpool_limits

from ml.pipeline import params, split, tracking, train
from ml.pipeline.tables import write_parquet

OF_THE_USER = ("test_ingest.py", "test_yours.py")
SMALL = {"train.settings": {"max_iter": 12, "min_samples_leaf": 20}, "evaluate.min_rows": 50}
TASKS = {
    "binary": SMALL,
    "multiclass": {
        **SMALL,
        "task": "multiclass",
        "data.target": "grade",
        "objective.metric": "log_loss_skill",
        "gates.harm.margins": {"log_loss_skill": 0.1, "accuracy": 0.05},
        "gates.fairness.difference": {"accuracy": 0.3},
        "gates.fairness.ratio": {},
    },
    "regression": {
        **SMALL,
        "task": "regression",
        "data.target": "hours",
        "objective.metric": "r2",
        "gates.floor.metrics": {"mean_absolute_error": 2.0},
        "gates.harm.margins": {"r2": 0.1, "mean_absolute_error": 0.2},
        "gates.fairness.difference": {"mean_absolute_error": 1.0},
        "gates.fairness.ratio": {},
    },
}
Settings = Callable[..., params.Params]


def changed(changes: dict[str, Any]) -> params.Params:
    raw = YAML(typ="safe").load(example.PARAMS)
    for dotted, value in copy.deepcopy(changes).items():
        *sections, key = dotted.split(".")
        section = raw
        for name in sections:
            section = section[name]
        section[key] = value
    return params.Params.model_validate(raw)


@pytest.fixture(scope="session", autouse=True)
def _no_workflow() -> Iterator[None]:
    """Let a run on GitHub test the same as a laptop does."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("GITHUB_")]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Keep small fits from waiting for each other's threads on a busy machine."""
    with threadpool_limits(1):
        yield


@pytest.fixture(autouse=True)
def _example(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test depend on the files that are the user's, but for the tests of these."""
    if request.path.name not in OF_THE_USER:
        example.install(monkeypatch)


@pytest.fixture(scope="session")
def settings() -> Settings:
    """Return the example's settings with some changed, each named by its dotted key."""
    return lambda changes=None: changed(changes or {})


@pytest.fixture(scope="session")
def small() -> dict[str, dict[str, Any]]:
    """Return for each task the changes of settings that fit the sample of `rows`."""
    return TASKS


@pytest.fixture(scope="session")
def rows() -> pd.DataFrame:
    """Return the 3,000 labelled rows of the five periods in the order of their keys."""
    found = pd.concat([example.fetch(period, {}).assign(period=period) for period in example.PERIODS])
    return found[found["failed"].notna()].sort_values(example.KEYS).reset_index(drop=True)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an MLflow database without runs; to make one takes seconds, to copy it none."""
    import mlflow

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def folder(
    tmp_path_factory: pytest.TempPathFactory, rows: pd.DataFrame, empty_store: Path
) -> Callable[[pytest.MonkeyPatch], Path]:
    """Return what makes a project folder with split data and an empty MLflow store, and goes there."""

    def make(patch: pytest.MonkeyPatch) -> Path:
        path = tmp_path_factory.mktemp("project")
        patch.chdir(path)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}/mlflow.db")
        shutil.copy(empty_store, path / "mlflow.db")
        Path("params.yaml").write_text(example.PARAMS)
        Path("pyproject.toml").write_text('[project]\nname = "workshop"\n')
        newest = rows["period"] == example.PERIODS[-1]
        write_parquet(rows[~newest], split.TRAIN)
        write_parquet(rows[newest], split.HOLDOUT)
        return path

    return make


@pytest.fixture
def project(folder: Callable[[pytest.MonkeyPatch], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project folder of one test, which works in it."""
    return folder(monkeypatch)


@pytest.fixture(scope="session", params=list(TASKS))
def trained(request: pytest.FixtureRequest, folder: Callable[[pytest.MonkeyPatch], Path]) -> tuple[Path, params.Params]:
    """Return a project folder with a model of each task, and its settings; read it, write nothing into it."""
    found = changed(TASKS[request.param])
    with pytest.MonkeyPatch.context() as patch:
        path = folder(patch)
        example.install(patch)
        patch.setattr(tracking, "commit", lambda: {"git.commit": "abc", "git.dirty": "false"})
        train.run(found)
    return path, found
