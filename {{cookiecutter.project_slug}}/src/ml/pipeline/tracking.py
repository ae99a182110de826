"""Keeps experiments in MLflow: `MLFLOW_TRACKING_URI`, or a database file in the project."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import sqlite3
import subprocess
import tomllib
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ml.errors import TrackingError

STORE = "sqlite:///mlflow.db"
LOCK = Path("requirements/all.txt")


def commit() -> dict[str, str]:
    """Return the commit and whether the work tree differs from it; empty outside git."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        head = git("rev-parse", "--verify", "HEAD")
        dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
        return {"git.commit": head, "git.dirty": str(dirty).lower()}
    except (OSError, subprocess.CalledProcessError):
        return {}


def environment() -> dict[str, str]:
    """Return what the run was made with: Python, platform, and the digest of the locked dependencies."""
    lock = LOCK.read_bytes() if LOCK.exists() else b""
    return {
        "environment.python": platform.python_version(),
        "environment.platform": platform.platform(),
        "environment.lock": hashlib.sha256(lock).hexdigest(),
    }


def digests(model: bytes) -> dict[str, str]:
    """Return the hashes a run is found by: `model.md5` stands in dvc.lock, `model.sha256` in every answer."""
    return {
        "model.md5": hashlib.md5(model, usedforsecurity=False).hexdigest(),
        "model.sha256": hashlib.sha256(model).hexdigest(),
    }


@contextmanager
def experiment() -> Iterator[ModuleType]:
    """Yield mlflow with the project's experiment set; it is named after the project.

    Raises TrackingError with one line when the store cannot be reached or written.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # MLflow's own patience with a dead server is minutes of silence.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    uri = os.environ.get("MLFLOW_TRACKING_URI", STORE)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    try:
        _open(uri)
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment(tomllib.loads(Path("pyproject.toml").read_text())["project"]["name"])
        with warnings.catch_warnings():
            # Hints of MLflow about sources and integer columns; nothing that its reader could act on.
            warnings.filterwarnings("ignore", category=UserWarning, module="mlflow")
            yield mlflow
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise TrackingError(
            f"the MLflow store {uri} cannot be written ({reason}); mend it or set MLFLOW_TRACKING_URI, "
            "then run this again"
        ) from None


def _open(uri: str) -> None:
    # MLflow tries a database file that it cannot write for two minutes.
    if uri.startswith("sqlite:///"):
        with closing(sqlite3.connect(uri.removeprefix("sqlite:///"), timeout=5)) as store:
            store.execute("BEGIN IMMEDIATE")
            store.rollback()


def log_training(
    *,
    params: dict[str, Any],
    metrics: dict[str, float],
    data: dict[Path, Any],
    target: str,
    importance: dict[str, float],
    model: bytes,
    pipeline: Any,
    sample: Any,
) -> None:
    """Record one training: parameters, metrics, data, commit, environment, and the fitted pipeline in skops format."""
    with experiment() as mlflow:
        from mlflow.models import infer_signature

        with mlflow.start_run(tags={"stage": "train", **digests(model), **commit(), **environment()}):
            mlflow.log_params(params)
            mlflow.log_metrics({f"holdout.{key}": value for key, value in metrics.items()})
            mlflow.log_dict(importance, "importance.json")
            for path, frame in data.items():
                mlflow.log_metric(f"{path.stem}.rows", len(frame))
                mlflow.set_tag(f"{path.stem}.periods", ", ".join(sorted(frame["period"].unique())))
                mlflow.log_input(_dataset(mlflow, path, frame, target), context=path.stem)
            mlflow.sklearn.log_model(
                pipeline,
                name="model",
                serialization_format="skops",
                skops_trusted_types=_trusted(pipeline),
                signature=infer_signature(sample, pipeline.predict(sample)),
                pip_requirements=_pinned(),
            )


def _dataset(mlflow: ModuleType, path: Path, frame: Any, target: str) -> Any:
    # The digest is the one in dvc.lock, so that the run leads to the data.
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    return mlflow.data.from_pandas(frame, source=str(path), targets=target, name=path.stem, digest=digest)


def _trusted(pipeline: Any) -> list[str]:
    import skops.io

    return skops.io.get_untrusted_types(data=skops.io.dumps(pipeline))


def _pinned() -> list[str]:
    wanted = ("scikit-learn==", "skops==", "numpy==", "pandas==", "mlflow==")
    lines = LOCK.read_text().splitlines() if LOCK.exists() else []
    return [line.rstrip(" \\") for line in lines if line.startswith(wanted)]
