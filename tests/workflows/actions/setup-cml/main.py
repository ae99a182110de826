"""Installs `cml`, or fails as the real one does."""

import os
from pathlib import Path

from stand_in import append, fail, true

if true("vega"):
    fail("npm ERR! canvas@2: no prebuilt binary for this Node (vega: false leaves it out)")
folder = Path(os.environ["RUNNER_TEMP"]) / "cml"
folder.mkdir(parents=True, exist_ok=True)
program = Path(os.environ["STAND_INS"]) / "setup-cml/cml.py"
start = f'#!/bin/sh\nexec "$STAND_INS_PYTHON" "{program}" "$@"\n'
(folder / "cml").write_text(start)
(folder / "cml").chmod(0o755)
append("GITHUB_PATH", str(folder))
