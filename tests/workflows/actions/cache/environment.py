"""Makes an environment that shares the packages of a prepared one, but not its project: that is installed anew.

Nothing of the prepared environment is written to: what a job installs or removes are entries of its own folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

# What marks the prepared environment as complete (see scripts/venv and scripts/setup of the project).
STAMPS = (".stamp", ".project")


def fitting(paths: list[str]) -> Path | None:
    """Return the prepared environment where .venv is asked for and the workspace's lock is the prepared one's."""
    prepared = os.environ.get("STAND_INS_VENV")
    lock = Path("requirements/all.txt")
    if paths != [".venv"] or not prepared or not lock.is_file():
        return None
    wanted = subprocess.run(
        ["git", "hash-object", str(lock)], capture_output=True, text=True, check=True
    ).stdout.strip()
    stamp = (Path(prepared) / ".stamp").read_text().splitlines()
    return Path(prepared) if stamp[-1] == wanted else None


def make(prepared: Path, target: Path) -> None:
    """Make the environment at `target`."""
    prepared, target = prepared.resolve(), target.resolve()
    project = of_project(prepared)
    (target / "bin").mkdir(parents=True)
    for entry in sorted(prepared.iterdir()):
        if entry.name in ("bin", "lib", *STAMPS):
            continue
        (target / entry.name).symlink_to(os.readlink(entry) if entry.is_symlink() else entry)
    for entry in (prepared / "bin").iterdir():
        if entry not in project:
            script(entry, target / "bin" / entry.name, prepared, target)
    packages = site_packages(prepared)
    shared = target / packages.relative_to(prepared)
    shared.mkdir(parents=True)
    for entry in packages.iterdir():
        if entry not in project and entry.name != "__pycache__":
            (shared / entry.name).symlink_to(entry)
    if (compiled := packages / "__pycache__").is_dir():
        # Else every job compiles the modules that are a file each.
        shutil.copytree(compiled, shared / "__pycache__")
    (target / "pyvenv.cfg").unlink()
    (target / "pyvenv.cfg").write_text(rewritten(prepared / "pyvenv.cfg", prepared, target))
    interpreter, lock = (prepared / ".stamp").read_text().splitlines()
    (target / ".stamp").write_text(f"{interpreter.split(' ')[0]} {target}\n{lock}\n")


def site_packages(environment: Path) -> Path:
    return next(environment.glob("lib/python3*/site-packages"))


def of_project(prepared: Path) -> set[Path]:
    """Return the entries that an editable install has put into site-packages and bin."""
    packages, found = site_packages(prepared), set()
    for about in packages.glob("*.dist-info/direct_url.json"):
        if json.loads(about.read_text()).get("dir_info", {}).get("editable"):
            record = (about.parent / "RECORD").read_text().splitlines()
            names = [line.rsplit(",", 2)[0] for line in record]
            inside = {packages / name.split("/")[0] for name in names if not name.startswith("../")}
            found |= inside | {Path(os.path.normpath(packages / name)) for name in names if name.startswith("../")}
    return found


def script(entry: Path, target: Path, prepared: Path, own: Path) -> None:
    """Give a script the new environment's interpreter; share what is a program or a link."""
    if entry.is_symlink():
        target.symlink_to(os.readlink(entry))
    elif entry.stat().st_size > 100_000 or not text_file(entry):
        target.symlink_to(entry)
    else:
        target.write_text(rewritten(entry, prepared, own))
        target.chmod(0o755)


def text_file(entry: Path) -> bool:
    return b"\0" not in entry.read_bytes()


def rewritten(file: Path, prepared: Path, target: Path) -> str:
    return re.sub(re.escape(str(prepared)) + r"(?![\w.-])", str(target), file.read_text())
