"""Installs `cosign`."""

import os
from pathlib import Path

from stand_in import append

folder = Path(os.environ["RUNNER_TEMP"]) / "cosign"
folder.mkdir(parents=True, exist_ok=True)
program = Path(os.environ["STAND_INS"]) / "cosign-installer/cosign.py"
(folder / "cosign").write_text(f'#!/bin/sh\nexec "$STAND_INS_PYTHON" "{program}" "$@"\n')
(folder / "cosign").chmod(0o755)
append("GITHUB_PATH", str(folder))
