"""Puts a Python of the tool cache first on PATH."""

import os
from pathlib import Path

from stand_in import WORKSPACE, append, fail, output, text, true


def wanted() -> str:
    if version := text("python-version"):
        return version
    file = WORKSPACE / (text("python-version-file") or ".python-version")
    if not file.is_file():
        fail(f"The specified python version file at: {file} doesn't exist.")
    return file.read_text().strip()


def main() -> None:
    version = wanted()
    cache = Path(os.environ["STAND_INS_PYTHONS"])
    fitting = [each for each in sorted(cache.iterdir()) if f"{each.name}.".startswith(f"{version}.")]
    if not fitting:
        fail(f"The version '{version}' with architecture 'x64' was not found.")
    folder = fitting[-1] / "x64"
    if true("update-environment"):
        append("GITHUB_PATH", str(folder / "bin"))
        append("GITHUB_ENV", f"pythonLocation={folder}")
    output("python-version", fitting[-1].name)
    output("python-path", folder / "bin/python")


main()
