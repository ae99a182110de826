"""One real month, the settings as they stand, and project folders around a sample of the month."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML
from threadpoolctl import threadpool_limits

from ml.pipeline import ingest, params, split, tracking, train
from ml.pipeline.tables import read_source, write_parquet

ROOT = Path(__file__).parents[2]
PERIODS = ["2013-01", "2013-02", "2013-03", "2013-04", "2013-05"]
SMALL = {"data.periods": PERIODS, "train.settings": {"max_iter": 12, "min_samples_leaf": 20}, "evaluate.min_rows": 50}
TASKS = {
    "binary": SMALL,
    "multiclass": {**SMALL, "task": "multiclass", "data.target": "band", "objective.metric": "log_loss_skill"},
    "regression": {**SMALL, "task": "regression", "data.target": "hours", "objective.metric": "r2"},
}
Settings = Callable[..., params.Params]


def changed(changes: dict[str, Any]) -> params.Params:
    raw = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    for dotted, value in copy.deepcopy(changes).items():
        *sections, key = dotted.split(".")
        section = raw
        for name in sections:
            section = section[name]
        section[key] = value
    return params.Params.model_validate(raw)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Keep small fits from waiting for each other's threads on a busy machine."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def settings() -> Settings:
    """Return the settings of params.yaml with some changed, each named by its dotted key."""
    return lambda changes=None: changed(changes or {})


@pytest.fixture(scope="session")
def small() -> dict[str, dict[str, Any]]:
    """Return for each task the changes of settings that fit the sample of `rows`."""
    return TASKS


@pytest.fixture(scope="session")
def january() -> pd.DataFrame:
    """Return the flights of January as they arrive."""
    return ingest.in_month(read_source(changed({}).data.sources["flights"]), "2013-01")


@pytest.fixture(scope="session")
def month() -> pd.DataFrame:
    """Return the rows of January."""
    return ingest.fetch("2013-01", changed({}).data.sources)


@pytest.fixture(scope="session")
def rows(month: pd.DataFrame) -> pd.DataFrame:
    """Return 3,000 labelled rows of January, cut into five periods by time, with a target for each task."""
    found = month[month["late"].notna()].sample(3000, random_state=0).sort_values(["time_hour", "carrier", "flight"])
    noise = np.random.default_rng(0).normal(0, 30, len(found))
    minutes = found["scheduled_minutes"].fillna(0) + noise
    return found.assign(
        period=np.repeat(PERIODS, len(found) // len(PERIODS)),
        band=pd.cut(minutes, [-np.inf, 120, 240, np.inf], labels=["short", "middle", "long"]).astype(str),
        hours=minutes / 60,
    ).reset_index(drop=True)


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
        shutil.copy(ROOT / "params.yaml", path)
        Path("pyproject.toml").write_text('[project]\nname = "flights"\n')
        newest = rows["period"] == PERIODS[-1]
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
        patch.setattr(tracking, "commit", lambda: {"git.commit": "abc", "git.dirty": "false"})
        train.run(found)
    return path, found
