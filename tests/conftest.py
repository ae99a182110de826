"""A clean copy of the template, a `bake` that caches its projects, and what a test needs to run tools."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cookiecutter.main import cookiecutter

pytest_plugins = ["real", "scenes"]

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = "{{cookiecutter.project_slug}}"
DEFAULTS = {
    "project_name": "Flight Delays",
    "project_slug": "flight-delays",
    "description": "Will this flight arrive late?",
    "author_name": "Ada Lovelace",
    "github_owner": "octocat",
    "license": "MIT",
    "python_version": "3.12",
    "include_kubernetes": False,
}
# The longest, so that no worker is left with one of them at the end.
FIRST = (
    "test_delivery.py",
    "test_scenarios.py",
    "test_outsiders.py",
    "test_sabotage.py",
    "test_docs.py",
    "test_tasks.py",
    "test_real_pipeline.py",
    "test_survival.py",
    "test_image.py",
    "test_deploy.py",
    "test_loadtest.py",
)
# Of the caller's environment; without bytecode on disk every one of a pipeline's processes would compile its imports.
OURS = {"ARGS", "MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS", "PYTHONDONTWRITEBYTECODE", "REWRITE"}
OURS |= {"VENV", "VIRTUAL_ENV"}


def pytest_configure() -> None:
    """Let no thread wait by spinning: workers train at once, and it would keep a core from the other's."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files as they are best shared out."""
    places = {name: at for at, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(FIRST)))


def require(tool: str) -> str:
    """Return the tool's path; without it skip, or fail where REQUIRE_ALL is set."""
    path = shutil.which(tool, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if path is None and os.environ.get("REQUIRE_ALL"):
        pytest.fail(f"{tool} is not on PATH and REQUIRE_ALL is set")
    if path is None:
        pytest.skip(f"{tool} is not on PATH")
    return path


def clean_environment(**more: str) -> dict[str, str]:
    """Return the caller's environment without what make and this test run added to it."""
    kept = {name: value for name, value in os.environ.items() if name not in OURS}
    own = str(Path(sys.executable).parent)
    kept["PATH"] = os.pathsep.join(folder for folder in kept["PATH"].split(os.pathsep) if folder != own)
    return kept | more


def run(*command: str | Path, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a clean environment and return its result, whatever it is."""
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean_environment(**more), capture_output=True, text=True
    )


def files_of(folder: Path) -> list[str]:
    """Return the paths of all files below the folder, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


@dataclass(frozen=True)
class Bake:
    """Makes projects from a clean copy of the template, each set of answers once."""

    template: Path
    home: Path
    done: dict[tuple, Path] = field(default_factory=dict)

    def __call__(self, **answers: object) -> Path:
        key = tuple(sorted(answers.items()))
        if key not in self.done:
            self.done[key] = self.into(self.home / f"bake-{len(self.done)}", **answers)
        return self.done[key]

    def into(self, folder: Path, **answers: object) -> Path:
        """Bake through the API into the folder and return the project."""
        folder.mkdir(parents=True, exist_ok=True)
        return Path(
            cookiecutter(
                str(self.template),
                no_input=True,
                extra_context=DEFAULTS | answers,
                output_dir=str(folder),
                config_file=str(self.config),
            )
        )

    def through_cli(self, folder: Path, *arguments: str, typed: str | None = None) -> subprocess.CompletedProcess[str]:
        """Bake as a person does; with `typed`, the lines answer the prompts."""
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "cookiecutter", str(self.template), "--config-file", str(self.config)]
        silent = [] if typed else ["--no-input"]
        return subprocess.run(
            [*command, "--output-dir", str(folder), *silent, *arguments],
            input=typed,
            capture_output=True,
            text=True,
            env=clean_environment(PWD=str(folder)),
            cwd=folder,
        )

    @property
    def config(self) -> Path:
        path = self.home / "cookiecutter.yaml"
        path.write_text(f'replay_dir: "{self.home}/replay"\ncookiecutters_dir: "{self.home}/templates"\n')
        return path


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template as git would hand it out: no caches and no build results of this checkout."""
    target = tmp_path_factory.mktemp("template")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        source, copy = ROOT / name, target / name
        if source.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy)
    return target


@pytest.fixture(scope="session")
def bake(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Bake:
    return Bake(template, tmp_path_factory.mktemp("bakes"))
