"""Finds DVC's objects: in its cache, in the storage's folder on this machine, or in the repository's hidden refs."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from configparser import ConfigParser, Error
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ml import refs
from ml.errors import SourceError, UserError

NAME = "refs"  # of the DVC remote in .dvc/config
CACHE = Path(".dvc/cache/files/md5")
FOLDER = Path(".dvc/objects/files/md5")
DIRECTORY = ".dir"  # ends the hash of a directory
PLUGIN = re.compile(r"dvc-\w+(?=' to be installed)")


def in_refs() -> bool:
    """Return whether DVC's default remote is the one that the git repository's hidden refs back."""
    for name in ("config.local", "config"):
        parser = ConfigParser()
        try:
            parser.read(Path(".dvc", name))
        except (Error, OSError) as error:
            raise UserError(f".dvc/{name} cannot be read: {str(error).splitlines()[0]}") from None
        if remote := parser.get("core", "remote", fallback=None):
            return remote == NAME
    return False


def lacking_plugin(reason: str) -> str | None:
    """Return what to do where DVC says that it lacks the package for a kind of remote; None where it says else."""
    lacks = PLUGIN.search(reason)
    remedy = "add it to the group pipeline in pyproject.toml, then make lock and make setup"
    return f"the remote needs {lacks[0]}: {remedy}" if lacks else None


def place(folder: Path, md5: str) -> Path:
    """Return where DVC keeps an object in a cache or a local remote."""
    return folder / md5[:2] / md5[2:]


def here(md5: str) -> Path | None:
    """Return the file of an object on this machine, in DVC's cache or the storage's folder."""
    return next((path for folder in (CACHE, FOLDER) if (path := place(folder, md5)).is_file()), None)


def copy(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    shutil.copyfile(source, fresh)
    os.replace(fresh, target)


def keep(source: Path, target: Path) -> None:
    """Copy an object to where it is kept, unless it is there."""
    if not target.is_file():
        copy(source, target)


@dataclass(frozen=True)
class Storage:
    """The hidden refs of a repository, and what this machine has of them."""

    remotes: tuple[str, ...]

    @classmethod
    def open(cls) -> Storage:
        """Return the storage of this project; raise UserError where git has no remote to keep it in."""
        if not (names := refs.remotes()):
            raise UserError("git has no remote yet: git remote add origin ADDRESS, then make push")
        return cls(tuple(names))

    @cached_property
    def held(self) -> dict[str, dict[str, str]]:
        """What each repository holds: commits by hash."""
        return {remote: refs.inventory(remote) for remote in self.remotes}

    def holds(self, hashes: Iterable[str]) -> set[str]:
        """Return those of the hashes that some repository holds."""
        return {md5 for md5 in hashes if any(md5 in held for held in self.held.values())}

    def fetch(self, names: Mapping[str, str]) -> list[str]:
        """Bring objects, by hash with the name to call each, into the folder; return the hashes that are nowhere.

        What is here already is checked, and fetched again where it is damaged. Raises UserError where a repository
        gives a damaged one.
        """
        for md5 in self.holds(names):
            for folder in (CACHE, FOLDER):
                path = place(folder, md5)
                if path.is_file() and refs.digest(path) != md5.removesuffix(DIRECTORY):
                    path.unlink()
        wanted = {md5: place(FOLDER, md5) for md5 in names if here(md5) is None}
        damaged: list[str] = []
        for remote, held in self.held.items():
            if lacking := {md5: path for md5, path in wanted.items() if md5 in held and not path.is_file()}:
                damaged += refs.fetch(lacking, remote, held)
        nowhere = [md5 for md5, path in wanted.items() if not path.is_file()]
        if spoilt := [md5 for md5 in nowhere if md5 in damaged]:
            what = ", ".join(f"{names[md5]} ({md5[:8]})" for md5 in spoilt[:3])
            raise SourceError(
                f"damaged at {' and '.join(self.remotes)}: {what}; "
                "on a machine that has it whole: ml storage push --again"
            )
        return nowhere

    def read(self, md5: str, name: str) -> bytes:
        """Return an object's bytes, fetched if need be; raise SourceError where it is nowhere or damaged."""
        self.fetch({md5: name})
        if (path := here(md5)) is None:
            raise SourceError(f"{name} ({md5[:8]}) is neither here nor at {' or '.join(self.remotes)}")
        return path.read_bytes()
