"""Says whether dvc.lock is what dvc.yaml, params.yaml, code and data give now, whatever DVC's exit codes say."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ml import objects, refs
from ml.errors import UserError
from ml.review import sides

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import Stage
    from dvc_data.hashfile.db import HashFileDB

DIRECTORY = objects.DIRECTORY
HASHES = ("md5", "etag", "checksum")  # what a lock keeps of a file, here or elsewhere
Claims = dict[str, Any]  # what a stage's command, parameters, deps and outs are, each by its name


@dataclass(frozen=True)
class Problem:
    """Why the lock is not current.

    `missing` and `stale` ask for `make pipeline`, `unpushed` for `make push`, `untaken` for `make take`.
    """

    kind: Literal["missing", "stale", "unpushed", "untaken"]
    what: str


def problems(root: Path, *, stored: bool = True) -> list[Problem]:
    """Return what keeps the lock from being current; data need not be in the work tree.

    With `stored`, the default remote (or this machine's cache, where none is configured) must list every locked hash.
    Raises UserError where DVC cannot read its other files or reach the remote.
    """
    with opened(root) as repo:
        if found := list(_unreadable(repo)):
            return found
        locked = claims(repo)
        stages = {(stage.path, getattr(stage, "name", None)): stage for stage in repo.index.stages}
        gone = [name for _, name in locked.keys() - stages.keys()]
        found = [Problem("stale", f"{name}: is in dvc.lock and not in dvc.yaml") for name in gone]
        made = {Path(out.fs_path): out.hash_info.value for stage in stages.values() for out in stage.outs}
        for place, stage in stages.items():
            found += _of_stage(stage, locked.get(place), made)
        return sorted(found, key=lambda problem: problem.what) + (list(_unpushed(repo)) if stored else [])


def of_commit(found: list[Problem], base: sides.Commit | None) -> list[Problem]:
    """Return what keeps HEAD's own lock from being current, after the pipeline made here what it lacks.

    A commit without a lock claims nothing, where its base has none either: then what was made here holds.
    """
    made = [problem for problem in found if problem.kind != "unpushed"]
    here = sides.locked(Path("dvc.lock").read_bytes(), "the work tree") if Path("dvc.lock").is_file() else {}
    then = sides.Commit.at("HEAD").outputs()
    if not then and (base is None or not base.outputs()):
        return made
    touched = {change.path for change in sides.changed("HEAD")} & {"dvc.lock", *here}
    if not touched:
        return found
    differ = [path for path in sorted({*here, *then}) if here.get(path) != then.get(path)] or sorted(touched)
    rest = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
    what = f"dvc.lock of the commit is not what its code gives: {', '.join(differ[:3])}{rest} came out otherwise"
    return [Problem("untaken", what), *made]


@contextmanager
def opened(root: Path) -> Iterator[Repo]:
    """Yield DVC's view of a project, quietly; raise UserError with one line where DVC fails."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    for name in ("dvc", "dvc_data", "dvc_objects"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with Repo(str(root)) as repo:
            yield repo
    except DvcException as error:
        raise UserError(f"DVC cannot read this project: {' '.join(str(error).split())[:300]}") from None
    except ImportError as error:
        if (remedy := objects.lacking_plugin(str(error))) is None:
            raise
        raise UserError(remedy) from None


def digest(path: Path, ignored: Callable[[str], bool] = lambda _: False) -> str | None:
    """Return the hash that DVC gives to a file or a directory; None where there is neither."""
    if path.is_file():
        with path.open("rb") as content:
            return hashlib.file_digest(content, _md5).hexdigest()
    if not path.is_dir():
        return None
    files = [file for file in path.rglob("*") if file.is_file() and not ignored(str(file))]
    return tree({file.relative_to(path).as_posix(): digest(file) for file in files})


def tree(files: dict[str, str | None]) -> str:
    """Return the hash that DVC gives to a directory of files with these hashes by path."""
    entries = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    return _md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + DIRECTORY


def _md5(content: bytes = b"") -> Any:
    return hashlib.md5(content, usedforsecurity=False)


def claims(repo: Repo) -> dict[tuple[str, str], Any]:
    """Return the entries of every dvc.lock by the path of its dvc.yaml and the name of the stage."""
    from dvc.dvcfile import load_file

    files = {str(Path(repo.root_dir, "dvc.yaml")), *(s.path for s in repo.index.stages if getattr(s, "name", None))}
    return {(file, name): entry for file in files for name, entry in load_file(repo, file).stages.lockfile_data.items()}


def _unreadable(repo: Repo) -> Iterator[Problem]:
    from dvc.dvcfile import Lockfile
    from dvc.exceptions import DvcException

    file = Path(repo.root_dir, "dvc.lock")
    if not file.is_file():
        yield Problem("missing", "dvc.lock does not exist")
        return
    try:
        Lockfile(repo, str(file)).load()
    except DvcException:
        yield Problem("missing", "dvc.lock is not readable as YAML of DVC's form")


def _of_stage(stage: Stage, entry: dict[str, Any] | None, made: dict[Path, str]) -> list[Problem]:
    name = getattr(stage, "name", None)
    if name and entry is None:
        return [Problem("missing", f"{name}: is in dvc.yaml and not in dvc.lock")]
    was = _locked(stage, entry)
    now = _now(stage, entry, was, made)
    return [
        Problem("missing", f"{name or stage.relpath}: {what} does not exist")
        if was.get(what) is not None and what in now and now[what] is None
        else Problem("stale", f"{name or stage.relpath}: {what} is not as the lock has it")
        for what in {**was, **now}
        if was.get(what) is None or now.get(what) != was[what]
    ]


def _locked(stage: Stage, entry: dict[str, Any] | None) -> Claims:
    if entry is None:  # what `dvc add` wrote: hashes without a stage
        return {out.def_path: out.hash_info.value for out in stage.outs}
    params = {f"{file}: {k}": v for file, values in entry.get("params", {}).items() for k, v in _flat(values).items()}
    items = [item for part in ("deps", "outs") for item in entry.get(part, [])]
    files = {item["path"]: next((item[key] for key in HASHES if key in item), None) for item in items}
    return {"the command": entry["cmd"], **params, **files}


def _now(stage: Stage, entry: dict[str, Any] | None, was: Claims, made: dict[Path, str]) -> Claims:
    ignored = stage.repo.dvcignore.is_ignored_file
    now: Claims = {}
    if entry is not None:
        now["the command"] = stage.cmd
        for part in stage.params:
            now |= {f"{part.def_path}: {key}": value for key, value in _flat(part.read_params()).items()}
        for dep in (dep for dep in stage.deps if dep not in stage.params):
            path = Path(dep.fs_path)
            below = {out.relative_to(path).as_posix(): md5 for out, md5 in made.items() if path in out.parents}
            here = made.get(path) or (tree(below) if below else digest(path, ignored))
            # What another machine keeps is not asked for.
            now[dep.def_path] = here if dep.protocol == "local" else was.get(dep.def_path)
    for out in stage.outs:
        present = out.protocol == "local" and Path(out.fs_path).exists()
        kept = was.get(out.def_path) if out.use_cache or out.protocol != "local" else None
        now[out.def_path] = digest(Path(out.fs_path), ignored) if present else kept
    return now


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        inner = isinstance(value, dict) and value
        # As JSON, since True and 1 are equal in Python and not as settings.
        flat |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": json.dumps(value, default=str)}
    return flat


def _unpushed(repo: Repo) -> Iterator[Problem]:
    outs = [out for stage in repo.index.stages for out in stage.outs if out.use_cache and out.can_push]
    kept = {out.fs_path: out.hash_info.value for out in outs if out.protocol == "local" and out.hash_info}
    wanted = {Path(os.path.relpath(path, repo.root_dir)).as_posix(): md5 for path, md5 in kept.items()}
    holder, listing, read = _holder(repo)
    try:
        listed = listing({*wanted.values()})
        for path, md5 in [*wanted.items()]:
            if md5 in listed and md5.endswith(DIRECTORY):
                wanted |= {f"{path}/{file['relpath']}": file["md5"] for file in json.loads(read(md5))}
        listed |= listing({*wanted.values()} - listed)
    except UserError:
        raise
    except Exception as error:  # each kind of storage has types of its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{holder} cannot be listed ({reason}): check its address and your access") from None
    for path, md5 in wanted.items():
        if md5 not in listed:
            yield Problem("unpushed", f"{holder} lacks {path} ({md5[:8]})")


def _holder(repo: Repo) -> tuple[str, Callable[[set[str]], set[str]], Callable[[str], bytes]]:
    """Return what holds the objects: its name, how it lists those of some hashes that it has, how it reads one."""
    remote = repo.config["core"].get("remote")
    if remote == objects.NAME:
        if git_remotes := refs.remotes():
            storage = objects.Storage.open()
            return " or ".join(git_remotes), storage.holds, lambda md5: storage.read(md5, md5)
        remote = None
    store = repo.cloud.get_remote_odb(remote) if remote else repo.cache.local
    holder = f"the remote {remote}" if remote else "no remote is configured and the cache of this machine"
    return holder, partial(listed, store), lambda md5: store.fs.cat_file(store.oid_to_path(md5))


def listed(store: HashFileDB, hashes: set[str]) -> set[str]:
    """Return those of the hashes that a store of DVC's holds."""
    # Not DVC's index of a remote, which remembers; nor its check of a folder, which deletes what it finds damaged.
    if store.fs.protocol == "local":
        return {md5 for md5 in hashes if Path(store.oid_to_path(md5)).is_file()}
    return set(store.oids_exist(hashes))
