"""Repositories at a host on this machine, clones of them, and the host's API; `host` says what they hold."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import oci
import pytest
from host import CONFIG, FIRST, Hub, copied, git, make, serving, settle

from ml.operations import storage

Clone = Callable[[str], Path]
Program = Callable[[str, str], Path]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    settle(Path.cwd(), monkeypatch)


@pytest.fixture(scope="session")
def pristine_laptop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the repository and the clone of `laptop`; to copy them takes a tenth of the time."""
    folder = tmp_path_factory.mktemp("pristine")
    with pytest.MonkeyPatch.context() as patch:
        settle(folder, patch)
        git(folder, "init", "--quiet", "--bare", "--initial-branch=main", "origin.git")
        git(folder, "clone", "--quiet", str(folder / "origin.git"), "laptop")
        os.chdir("laptop")
        Path(".dvc").mkdir()
        Path(".dvc/config").write_text(CONFIG)
        Path(".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n/objects\n")
        Path(".gitignore").write_text("/build/\n/data/\n/models/\n/plots/\n")
        make(FIRST)
    return folder


@pytest.fixture(scope="session")
def pristine_pushed(pristine_laptop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the same after `make push`."""
    folder = tmp_path_factory.mktemp("pushed")
    with pytest.MonkeyPatch.context() as patch:
        settle(folder, patch)
        os.chdir(copied(pristine_laptop, folder))
        storage.push()
    return folder


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """Return where the repository of `laptop` lies, as a host has it."""
    return tmp_path / "origin.git"


@pytest.fixture
def laptop(pristine_laptop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project whose outputs are in DVC's cache, as its pipeline left them; only git's main is pushed."""
    monkeypatch.chdir(copied(pristine_laptop, tmp_path))
    return tmp_path / "laptop"


@pytest.fixture
def pushed(pristine_pushed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the project of `laptop` after `make push`."""
    monkeypatch.chdir(copied(pristine_pushed, tmp_path))
    return tmp_path / "laptop"


@pytest.fixture
def clone(tmp_path: Path, origin: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """Return a function that clones the repository as `git clone` does, and goes there."""

    def made(name: str) -> Path:
        git(tmp_path, "clone", "--quiet", origin.as_uri(), name)
        monkeypatch.chdir(tmp_path / name)
        return tmp_path / name

    return made


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Return the API of the repository octo/late, as a workflow finds it."""
    with serving() as found:
        for name, value in (("API_URL", found.root), ("REPOSITORY", "octo/late"), ("TOKEN", "secret")):
            monkeypatch.setenv(f"GITHUB_{name}", value)
        yield found


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Return a function that puts a Python script on PATH, first, under a name."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def put(name: str, script: str) -> Path:
        path = folder / name
        path.write_text(f"#!{sys.executable} -IS\n{script}")
        path.chmod(0o755)
        return path

    return put


@pytest.fixture
def store(tmp_path: Path) -> Iterator[oci.Store]:
    """Return a registry of images on this machine."""
    with oci.storing(tmp_path) as found:
        yield found


@pytest.fixture
def world(tmp_path: Path, store: oci.Store, hub: Hub, program: Program, monkeypatch: pytest.MonkeyPatch) -> oci.World:
    """Return a repository with images, a registry, and GitHub as far as promotion needs it; `gh` verifies its key."""
    program("gh", oci.GH)
    return oci.settled(tmp_path, store, hub, monkeypatch)
