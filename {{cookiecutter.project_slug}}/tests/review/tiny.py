"""A DVC project of shell commands in the place of the real one: quick to run, and with all that a lock can hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

STAGES = """\
stages:
  ingest:
    matrix:
      period: ${data.periods}
    cmd: mkdir -p data/ingest && echo ${item.period} > data/ingest/${item.period}.parquet
    params:
      - data.rows
    outs:
      - data/ingest/${item.period}.parquet
  split:
    cmd: mkdir -p data/split reports && cat data/ingest/* > data/split/holdout.parquet && echo 2 > reports/rows.json
    deps:
      - data/ingest
    outs:
      - data/split/holdout.parquet
      - reports/rows.json:
          cache: false
  train:
    cmd: mkdir -p models && cat src/train.py data/split/holdout.parquet params.yaml > models/model.onnx
    deps:
      - data/split/holdout.parquet
      - src/train.py
    params:
      - train
    outs:
      - models/model.onnx
  plots:
    cmd:
      - mkdir -p reports/plots/deep
      - md5sum < models/model.onnx > reports/plots/a
      - wc < models/model.onnx > reports/plots/deep/b
    deps:
      - models/model.onnx
    outs:
      - reports/plots
"""
PARAMS = "data:\n  periods: [2013-01, 2013-02]\n  rows: 2\ntrain:\n  seed: 0\n  stop: true\n"


def run(folder: Path, *words: str) -> str:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def git(folder: Path, *words: str) -> str:
    return run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@t", "-c", "core.hooksPath=/dev/null", *words)


def make(folder: Path) -> Path:
    """Make, run and commit the project."""
    folder.mkdir()
    run(folder, "git", "init", "--quiet")
    (folder / ".dvc").mkdir()
    (folder / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (folder / ".dvc/config").write_text(f"[core]\n    analytics = false\n    site_cache_dir = {folder.parent}/site\n")
    (folder / ".gitignore").write_text("/data/\n/models/\n/reports/plots\n/reports/reproduce/\n")
    (folder / "src").mkdir()
    (folder / "src/train.py").write_text("fit\n")
    (folder / "params.yaml").write_text(PARAMS)
    (folder / "dvc.yaml").write_text(STAGES)
    run(folder, "dvc", "repro", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "made")
    return folder


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
