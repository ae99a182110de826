"""What a run made and a commit lacks, in one folder: the lock, the reports that git holds, the objects by their hash.

CI packs one where a change needs training; `make take` brings it to a laptop, and `report.yml` to the branch. Nothing
in a bundle is believed: every byte must have the hash that the bundle's own dvc.lock gives it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from zipfile import BadZipFile, ZipFile

from ml import refs
from ml.errors import SourceError, UserError
from ml.objects import CACHE, DIRECTORY, NAME, Storage, copy, here, in_refs, keep, place
from ml.operations import storage
from ml.operations.github import GitHub
from ml.review import lock, sides

FOLDER = Path("build/bundle")
LOCK = "dvc.lock"
ARTIFACT = "trained"
WORKFLOW = "pull-request.yml"
MOST = 5_000_000_000  # bytes of a bundle
MOST_FILES = 100_000
OBJECT = re.compile(rf"objects/([0-9a-f]{{32}}(?:\{DIRECTORY})?)")


@dataclass(frozen=True)
class Bundle:
    """A checked bundle: files for git by path, objects for the storage by hash, both with their place on disk.

    `named` are the hashes that its lock wants of the storage, in the bundle or not.
    """

    files: dict[str, Path]
    objects: dict[str, Path]
    named: set[str]


def pack(folder: Path = FOLDER) -> str:
    """Write what the work tree's lock names and HEAD's commit or the storage lacks; return what was packed.

    Raises UserError where an object is not on this machine.
    """
    shutil.rmtree(folder, ignore_errors=True)
    outputs = sides.locked(Path(LOCK).read_bytes(), "the work tree")
    kept = storage.locked()
    wanted = _objects({path: md5 for path, md5 in outputs.items() if path in kept}).keys()
    lacking = wanted - known(wanted)
    for path in sorted({LOCK, *(outputs.keys() - kept.keys())}):
        # A report that is not the lock's is for the pipeline to make again.
        if path == LOCK or (Path(path).is_file() and refs.digest(Path(path)) == outputs[path]):
            copy(Path(path), folder / "files" / path)
    for md5 in sorted(lacking):
        if (source := here(md5)) is None:
            raise UserError(f"an object of {LOCK} ({md5[:8]}) is not on this machine: run make pipeline")
        copy(source, folder / "objects" / md5)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    return f"{len(lacking)} objects packed into {folder} ({size:.1f} MB)"


def checked(folder: Path) -> Bundle:
    """Return a bundle; raise SourceError for anything in it that its lock does not name or that has another hash."""
    path = folder / "files" / LOCK
    if not path.is_file():
        raise SourceError(f"{folder} holds no {LOCK}: it is no bundle")
    outputs = sides.locked(path.read_bytes(), "the bundle")
    found = {f.relative_to(folder).as_posix(): f for f in folder.rglob("*") if f.is_symlink() or not f.is_dir()}
    if len(found) > MOST_FILES:
        raise SourceError(f"the bundle has {len(found):,} files, more than {MOST_FILES:,}")
    files, objects = dict[str, Path](), dict[str, Path]()
    for name, file in found.items():
        match = OBJECT.fullmatch(name)
        if file.is_symlink() or not file.is_file() or not (match or name.startswith("files/")):
            raise SourceError(f"{name} does not belong into a bundle")
        if match:
            objects[match[1]] = file
        else:
            files[name.removeprefix("files/")] = file
    for name, file in files.items():
        if name != LOCK and (_escapes(name) or outputs.get(name) != refs.digest(file)):
            raise SourceError(f"{name} of the bundle is not what its {LOCK} says")
    named = {md5 for path, md5 in outputs.items() if path not in files}
    for md5, file in objects.items():
        if refs.digest(file) != md5.removesuffix(DIRECTORY):
            raise SourceError(f"the object {md5[:8]} of the bundle has another hash")
    for md5 in [md5 for md5 in named if md5.endswith(DIRECTORY)]:
        if (file := objects.get(md5) or here(md5)) is not None:
            named |= {*_below(file, md5).values()}
    if strange := objects.keys() - named:
        raise SourceError(f"the bundle's {LOCK} names no object {min(strange)[:8]}")
    return Bundle(files, objects, named)


def unpack(folder: Path) -> str:
    """Bring a bundle into the work tree and DVC's cache; return what was taken."""
    return _unpack(checked(folder))


def _unpack(bundle: Bundle) -> str:
    with lock.opened(Path.cwd()) as repo:
        made = {os.path.relpath(out.fs_path, repo.root_dir) for stage in repo.index.stages for out in stage.outs}
    if strange := bundle.files.keys() - made - {LOCK}:
        raise SourceError(f"{min(strange)} of the bundle is no output of dvc.yaml here")
    for md5, file in bundle.objects.items():
        keep(file, place(CACHE, md5))
    # The lock last: until then a killed run has changed nothing that another one would believe.
    for name in sorted(bundle.files, key=lambda name: name == LOCK):
        copy(bundle.files[name], Path(name))
    kept = [path for path, md5 in storage.locked().items() if path in made and _whole(md5)]
    if kept:
        storage.dvc("checkout", "--force", *kept)
    return f"{len(bundle.objects)} objects and {', '.join(sorted(bundle.files))}"


def _whole(md5: str) -> bool:
    file = here(md5)
    return file is not None and (not md5.endswith(DIRECTORY) or all(map(here, _below(file, md5).values())))


def take(run: int | None = None, folder: Path | None = None) -> str:
    """Bring here what CI trained for this commit: the bundle of a run, the newest of HEAD unless said.

    Raises UserError where dvc.lock or a committed report has changes that would be lost, or there is nothing to take.
    """
    if folder is not None:
        return unpack(folder)
    github = GitHub.open()
    with TemporaryDirectory(prefix="take-") as scratch:
        number = run or _newest(github, sides.commit("HEAD"))
        if not download(github, number, ARTIFACT, Path(scratch), MOST):
            raise UserError(f"run {number} has trained nothing that its commit lacks: there is nothing to take")
        bundle = checked(Path(scratch, ARTIFACT))
        if touched := {change.path for change in sides.changed("HEAD")} & bundle.files.keys():
            raise UserError(
                f"{min(touched)} has changes that would be lost: commit them, or git restore {min(touched)}"
            )
        taken = _unpack(bundle)
    return f"took {taken} of run {number}; next: git commit --all, make push, git push"


def _newest(github: GitHub, head: str | None) -> int:
    for found in github.pages(f"actions/workflows/{WORKFLOW}/runs", "workflow_runs", head_sha=head):
        artifacts = github.pages(f"actions/runs/{found['id']}/artifacts", "artifacts")
        if any(artifact["name"] == ARTIFACT and not artifact["expired"] for artifact in artifacts):
            return found["id"]
    raise UserError(
        f"no run of {WORKFLOW} on {(head or '')[:10]} has left a result to take: git push, wait for its job model, "
        "then make take"
    )


def download(github: GitHub, run: int, name: str, folder: Path, most: int, files: int = MOST_FILES) -> bool:
    """Unzip an artifact of a run into `folder/name`; return False where the run has none of that name.

    Raises SourceError for an archive that is larger than `most` bytes, packed or not, or that leaves its folder.
    """
    listed = [a for a in github.pages(f"actions/runs/{run}/artifacts", "artifacts") if a["name"] == name]
    if not listed:
        return False
    newest = max(listed, key=lambda artifact: artifact["id"])
    if newest["expired"]:
        raise SourceError(f"the artifact {name} of run {run} has expired: run the workflow again")
    if newest["size_in_bytes"] > most:
        raise SourceError(f"the artifact {name} of run {run} has {newest['size_in_bytes']:,} bytes, at most {most:,}")
    archive = folder / f"{name}.zip"
    github.download(f"actions/artifacts/{newest['id']}/zip", archive, most)
    unzip(archive, folder / name, most, files)
    archive.unlink()
    return True


def unzip(archive: Path, folder: Path, most: int, files: int) -> None:
    """Unzip at most `most` bytes in at most so many files below the folder; raise SourceError for anything else."""
    try:
        with ZipFile(archive) as packed:
            entries = [entry for entry in packed.infolist() if not entry.is_dir()]
            if len(entries) > files or sum(entry.file_size for entry in entries) > most:
                raise SourceError(f"{archive.stem} unpacks to more than {files:,} files or {most:,} bytes")
            if len({entry.filename for entry in entries}) < len(entries):
                raise SourceError(f"{archive.stem} holds a file twice")
            for entry in entries:
                if _escapes(entry.filename):
                    raise SourceError(f"{archive.stem} holds {entry.filename[:80]!r}, which leaves its folder")
                target = folder / entry.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with packed.open(entry) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
    except (BadZipFile, EOFError, LZMAError, RuntimeError, ValueError, zlib.error) as error:
        raise SourceError(f"{archive.stem} is no archive: {error}") from None
    except OSError as error:
        raise SourceError(f"{archive.stem} cannot be unpacked: {error.strerror or error}") from None


def _escapes(name: str) -> bool:
    path = PurePosixPath(name)
    parts = {part.lower() for part in path.parts}
    return not parts or path.is_absolute() or not parts.isdisjoint({"..", ".git"}) or "\\" in name


def _objects(outputs: dict[str, str]) -> dict[str, str]:
    """Return every object of outputs by hash with its path; the lists of directories must be on this machine."""
    names = {md5: path for path, md5 in outputs.items()}
    for md5, path in [*names.items()]:
        if md5.endswith(DIRECTORY) and (file := here(md5)) is not None:
            names |= {part: f"{path}/{name}" for name, part in _below(file, md5).items()}
    return names


def _below(file: Path, md5: str) -> dict[str, str]:
    """Return the hashes of a directory's files by path; raise SourceError for a list that DVC would not write."""
    try:
        files = {entry["relpath"]: entry["md5"] for entry in json.loads(file.read_bytes())}
        sound = all(refs.HASH.fullmatch(part) and not _escapes(name) for name, part in files.items())
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise SourceError(f"the object {md5[:8]} is no list of a directory's files")
    return files


def known(hashes: Iterable[str]) -> set[str]:
    """Return those of the hashes that need no packing: whoever has the commit can have them."""
    if in_refs() and refs.remotes():
        return Storage.open().holds(hashes)
    with lock.opened(Path.cwd()) as repo:
        remote = repo.config["core"].get("remote")
        if remote and remote != NAME:
            return lock.listed(repo.cloud.get_remote_odb(remote), {*hashes})
    return set() if sides.show("HEAD", LOCK) is None else {*_objects(storage.locked("HEAD"))}
