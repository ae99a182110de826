"""Reads the other sides of a review from git and DVC, never from the work tree."""

from __future__ import annotations

import hashlib
import re
import subprocess
from dataclasses import dataclass
from io import BytesIO
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from ml import refs
from ml.errors import SourceError, UserError
from ml.objects import Storage, here, in_refs, lacking_plugin
from ml.review.verdict import Code, Side

if TYPE_CHECKING:
    import pandas as pd

STAGE = re.compile(r"model#production#(\d+)")
MEANT = re.compile(r"^Commit: ([0-9a-f]{40})$", re.MULTILINE)


def git(*words: str) -> bytes:
    """Return what git prints; raise UserError with its last line where it fails."""
    try:
        return subprocess.run(["git", *words], capture_output=True, check=True).stdout
    except OSError:
        raise UserError("git is not on PATH: install it, since a review compares with what git holds") from None
    except subprocess.CalledProcessError as error:
        told = error.stderr.decode(errors="replace")
        if "not a git repository" in told:
            raise UserError("this folder is not a git repository: run make setup, which makes it one") from None
        raise UserError(f"git {words[0]}: {(told.strip().splitlines() or ['no reason given'])[-1]}") from None


def commit(ref: str) -> str | None:
    """Return the commit that a ref names; None where there is none."""
    try:
        return git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}").decode().strip()
    except UserError:
        return None


def show(ref: str, path: str) -> bytes | None:
    """Return a file of a commit; None where the commit has none."""
    try:
        return git("show", "--end-of-options", f"{ref}:{path}")
    except UserError:
        return None


def changed(ref: str) -> list[Code]:
    """Return the files that the work tree changes against a commit, and the lines; new files that git ignores apart."""
    counted = git("diff", "--numstat", "-z", "--no-renames", ref).decode(errors="replace").split("\0")
    found = [line.split("\t", 2) for line in counted if line.count("\t") >= 2]
    new = git("ls-files", "-z", "--others", "--exclude-standard").decode(errors="replace").split("\0")
    return [Code(path=p, added=_lines(a), removed=_lines(r)) for a, r, p in found] + [
        Code(path=path, added=None, removed=0) for path in new if path
    ]


def _lines(count: str) -> int | None:
    return int(count) if count.isdigit() else None


def production_tags() -> list[str]:
    """Return the tags that assigned the stage production, as GTO writes them, oldest first."""
    listed = git("for-each-ref", "--format=%(refname:lstrip=2)", "refs/tags/model#production*").decode().splitlines()
    return sorted(filter(STAGE.fullmatch, listed), key=lambda tag: int(STAGE.fullmatch(tag)[1]))


def newest_production() -> str | None:
    """Return the tag of the newest assignment of the stage production; None before the first."""
    return next(reversed(production_tags()), None)


def assigned(tag: str) -> str:
    """Return the commit that an assignment means: the tag's text names it where GitHub let no tag lie on it."""
    found = MEANT.search(git("for-each-ref", "--format=%(contents)", f"refs/tags/{tag}").decode(errors="replace"))
    return found[1] if found else tag


def default_base() -> str | None:
    """Return the branch that a change goes to; None in a repository without one."""
    return next((ref for ref in ("origin/main", "main") if commit(ref)), None)


@dataclass(frozen=True)
class Commit:
    """A commit as the review reads it: its files from git, its outputs by the hashes of its dvc.lock."""

    ref: str
    sha: str

    @classmethod
    def at(cls, ref: str) -> Commit:
        """Return the commit; raise UserError where git does not know the ref."""
        if (sha := commit(assigned(ref) if STAGE.fullmatch(ref) else ref)) is None:
            raise UserError(f"{ref} is not a commit that git knows here: fetch it, or name another with --against")
        return cls(ref, sha)

    def file(self, path: str) -> bytes | None:
        return show(self.sha, path)

    def ever(self, path: str) -> bool:
        """Return whether this commit or one before it had a file."""
        return bool(git("log", "-1", "--format=%H", self.sha, "--", path))

    def outputs(self) -> dict[str, str]:
        """Return the md5 of each output by its path; empty where the commit has no dvc.lock.

        Raises SourceError where the lock cannot be read.
        """
        content = self.file("dvc.lock")
        return {} if content is None else locked(content, self.ref)

    def read(self, path: str) -> bytes:
        """Return an output's bytes from DVC's cache or remote, hash-checked; raise SourceError where that fails."""
        md5 = self.outputs().get(path)
        if md5 is None:
            raise SourceError(f"{path} is not in dvc.lock of {self.ref}")
        return stored(md5, f"{path} of {self.ref}")

    def table(self, path: str, columns: list[str] | None = None) -> pd.DataFrame:
        """Return a Parquet output (or some of its columns)."""
        import pandas as pd

        try:
            return pd.read_parquet(BytesIO(self.read(path)), columns=columns)
        except (OSError, ValueError) as error:
            raise SourceError(f"{path} of {self.ref} is not readable: {str(error).splitlines()[0]}") from None

    def side(self) -> Side:
        """Return what the verdict says of this commit."""
        tag = STAGE.fullmatch(self.ref)
        version = f"production {tag[1]}" if tag else ""
        return Side(ref=self.ref, commit=self.sha, model=self.outputs().get("models/model.onnx", ""), version=version)


def locked(content: bytes, where: str, path: str = "dvc.lock") -> dict[str, str]:
    """Return the md5 of each output by its path as a dvc.lock (or .dvc file) has it; raise SourceError otherwise."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    folder = PurePosixPath(path).parent
    try:
        read: dict[str, Any] = YAML(typ="safe", pure=False).load(content.decode()) or {}
        entries = (read.get("stages") or {}).values() if path.endswith(".lock") else [read]
        outs = [out for entry in entries for out in entry.get("outs", []) if "md5" in out]
        found = {str(folder / out["path"]): out["md5"] for out in outs}
        if not all(map(refs.HASH.fullmatch, found.values())):
            raise ValueError("an md5 is none")
        return found
    except (YAMLError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        raise SourceError(f"{path} of {where} is not readable: restore it with git, or run make pipeline") from None


def stored(md5: str, what: str) -> bytes:
    """Return the object with the hash from DVC's cache or remote; raise SourceError where neither has it."""
    if here(md5) is None:
        _pull(md5, what)
    if (path := here(md5)) is None:
        raise SourceError(f"{what} ({md5[:8]}) is neither in DVC's cache nor in a remote: pull or push it first")
    content = path.read_bytes()
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise SourceError(f"{what} ({md5[:8]}) is damaged in DVC's cache: delete {path} and pull it again")
    return content


def _pull(md5: str, what: str) -> None:
    if in_refs():
        if refs.remotes():
            Storage.open().fetch({md5: what})
        return
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_objects.errors import ObjectDBError

    try:
        with Repo() as repo:
            repo.cloud.pull([HashInfo("md5", md5)])
    except (DvcException, ObjectDBError, FileNotFoundError):
        return  # `stored` then says what is missing
    except Exception as error:  # each kind of storage has types of its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        told = f"{what} ({md5[:8]}) cannot be fetched ({reason}): check the remote's address and your access"
        raise SourceError(lacking_plugin(reason) or told) from None
