"""Trains again from what is locked, in a folder of its own, and says whether the bytes are the committed ones."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from ml.errors import UserError
from ml.pipeline import export, features, metrics, split, tracking
from ml.pipeline.params import Params
from ml.pipeline.tables import read_output, rounded, write_json
from ml.pipeline.train import MODEL, target
from ml.progress import steps
from ml.review import lock, sides

if TYPE_CHECKING:
    import pandas as pd
    from dvc.repo import Repo
    from dvc.stage import Stage

RESULT = Path("reports/reproduce/result.json")
STAGE = "train"
SCORING = "evaluate"


def run(params: Params, *, full: bool) -> None:
    """Write whether a retrain gives the locked bytes, and what the two models are worth.

    With `full` every stage runs again, `ingest` too. Nothing else of the project changes.
    Raises UserError where the lock is not current, its data is not on this machine, or a stage fails.
    """
    with _copied() as (scratch, cache):
        outcome = again(scratch, cache, full=full)
        if str(MODEL) not in outcome:
            raise UserError(f"the stage {STAGE} of dvc.yaml does not write {MODEL}: name it among its outs")
        committed, retrained = outcome[str(MODEL)]
        differ = [path for path, (was, now) in outcome.items() if was != now]
        kept = cache / committed[:2] / committed[2:] if differ else scratch / MODEL
        result = {
            "lock_sha256": hashlib.sha256((scratch / "dvc.lock").read_bytes()).hexdigest(),
            "full": full,
            "committed": committed,
            "retrained": retrained,
            "same": not differ,
            "differ": differ,
            **compared(params, scratch / split.HOLDOUT, kept, scratch / MODEL),
            "environment": tracking.environment(),
        }
    write_json(result, RESULT)
    print(f"the retrain gives other bytes: {', '.join(differ)}" if differ else "the retrain gives the committed bytes")


def rescore() -> str:
    """Score the locked model again elsewhere and return what was found; no retrain is claimed.

    Raises UserError where the outputs of `evaluate` differ from the locked ones, and as `run` does.
    """
    with _copied() as (scratch, cache):
        outcome = again(scratch, cache, only=SCORING)
    RESULT.unlink(missing_ok=True)
    if differ := [path for path, (was, now) in outcome.items() if was != now]:
        raise UserError(f"the locked model does not give the locked {', '.join(differ)}: run make pipeline")
    return "the locked model gives the locked metrics; it was not trained again"


@contextmanager
def _copied() -> Iterator[tuple[Path, Path]]:
    """Yield a copy of the project, which nobody else reproduces meanwhile, and the project's cache."""
    with _alone(), TemporaryDirectory(prefix="reproduce-") as folder:
        scratch = Path(folder).resolve()
        copy_project(scratch)
        with lock.opened(Path.cwd()) as project:
            cache = Path(project.cache.local.path)
        yield scratch, cache


@contextmanager
def _alone() -> Iterator[None]:
    # On a file that stands there anyway: a lock that is killed with its process and leaves nothing behind.
    with open("dvc.yaml") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("another ml reproduce runs in this project: wait for it") from None
        yield


def copy_project(scratch: Path) -> None:
    """Copy what git tracks or would track, as the work tree has it, and give DVC there a cache of its own.

    The project's cache is not shared, since a forged entry of its run-cache would answer for a stage.
    """
    listed = sides.git("ls-files", "-z", "--cached", "--others", "--exclude-standard").decode()
    for name in (name for name in {*listed.split("\0")} if os.path.isfile(name) or os.path.islink(name)):
        (scratch / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(name, scratch / name, follow_symlinks=False)
    (scratch / ".dvc").mkdir(exist_ok=True)
    own = ["[core]", "no_scm = true", f"site_cache_dir = {scratch}/.dvc/site", "[cache]", f"dir = {scratch}/.dvc/cache"]
    (scratch / ".dvc" / "config.local").write_text("\n".join(own))


def again(scratch: Path, cache: Path, *, full: bool = False, only: str = STAGE) -> dict[str, tuple[str, str | None]]:
    """Run one stage, or all in order, in a copy of the project; return each output's hash, locked and made."""
    if found := lock.problems(scratch, stored=False):
        raise UserError(f"dvc.lock is not current ({found[0].what}): run make pipeline, then this again")
    with lock.opened(scratch) as repo:
        stages = _chosen(repo, full, only)
        _materialise(repo, stages, cache)
        outs = {Path(out.fs_path): out.hash_info.value for stage in stages for out in stage.outs}
        for path in outs:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        with steps("reproduce", len(stages)) as bar:
            for stage in stages:
                _execute(stage, scratch)
                bar.update()
        ignored = repo.dvcignore.is_ignored_file
        return {path.relative_to(scratch).as_posix(): (md5, lock.digest(path, ignored)) for path, md5 in outs.items()}


def _chosen(repo: Repo, full: bool, only: str) -> list[Stage]:
    from networkx import topological_sort

    # DVC's graph leads from a stage to those it needs.
    ordered = [stage for stage in reversed([*topological_sort(repo.index.graph)]) if getattr(stage, "cmd", None)]
    stages = ordered if full else [stage for stage in ordered if stage.name == only]
    if not stages:
        what = "writes" if only == STAGE else "scores"
        raise UserError(f"dvc.yaml has no stage {only!r}: name so the one that {what} {MODEL}")
    return stages


def _materialise(repo: Repo, stages: list[Stage], cache: Path) -> None:
    needed = [Path(dep.fs_path) for stage in stages for dep in stage.deps]
    for out in (out for stage in repo.index.stages if stage not in stages for out in stage.outs if out.use_cache):
        path = Path(out.fs_path)
        if any(path == dep or path in dep.parents or dep in path.parents for dep in needed):
            _fetch(cache, out.hash_info.value, path, out.def_path)


def _fetch(cache: Path, md5: str, path: Path, name: str) -> None:
    source = cache / md5[:2] / md5[2:]
    try:
        if md5.endswith(lock.DIRECTORY):
            for file in json.loads(source.read_text()):
                _fetch(cache, file["md5"], path / file["relpath"], f"{name}/{file['relpath']}")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, path)
    except FileNotFoundError:
        raise UserError(f"DVC's cache lacks {name} ({md5[:8]}): run make pull, then this again") from None
    if lock.digest(path) != md5:
        raise UserError(f"DVC's cache holds a damaged {name}: delete {source}, run make pull, then this again")


def _execute(stage: Stage, scratch: Path) -> None:
    own = {"cwd": stage.wdir, "env": _environment(scratch)}
    for command in stage.cmd if isinstance(stage.cmd, list) else stage.cmd.splitlines():
        done = subprocess.run(command, shell=True, stdin=subprocess.DEVNULL, capture_output=True, **own)
        if done.returncode:
            reason = (done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise UserError(f"the stage {stage.name} cannot be run again: {reason}")


def _environment(scratch: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return {
        **kept,
        # The project itself is installed here; the copy's code must come first.
        "PYTHONPATH": os.pathsep.join(filter(None, [str(scratch / "src"), kept.get("PYTHONPATH")])),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)]),
        "MLFLOW_TRACKING_URI": f"sqlite:///{scratch}/mlflow.db",
    }


def compared(params: Params, holdout: Path, committed: Path, retrained: Path) -> dict[str, Any]:
    """Return the metrics of both models, the largest difference of their scores and the share of other decisions.

    A side is None where its file is not here or cannot be scored.
    """
    rows = read_output(holdout)
    truth, inputs = target(rows, params), features.inputs(rows)
    one = _scored(committed, inputs)
    other = one if committed == retrained else _scored(retrained, inputs)
    figures = {name: _worth(params, truth, side) for name, side in (("committed", one), ("retrained", other))}
    if one is None or other is None or one[1].shape != other[1].shape:
        return {"metrics": figures, "largest_difference": None, "flips": None}
    decided = metrics.decisions(*one), metrics.decisions(*other)
    return {
        "metrics": figures,
        "largest_difference": float(np.max(np.abs(one[1] - other[1]))),
        "flips": None if decided[0] is None else float(np.mean(decided[0] != decided[1])),
    }


def _scored(model: Path, inputs: pd.DataFrame) -> tuple[dict[str, Any], np.ndarray] | None:
    try:
        runtime = export.session(model.read_bytes())
        return export.metadata(runtime)["contract"], export.scores(runtime, inputs)
    except Exception:  # what no code of ours wrote may fail in any way
        return None


def _worth(params: Params, truth: np.ndarray, side: tuple[dict[str, Any], np.ndarray] | None) -> dict[str, Any] | None:
    if side is None:
        return None
    figures = rounded(metrics.of_task(params, side[0], truth, side[1]))
    return {name: None if value != value else value for name, value in figures.items()}
