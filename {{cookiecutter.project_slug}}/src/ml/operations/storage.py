"""Brings the objects that dvc.lock names to the storage and back, whichever storage DVC's configuration names.

The default remote `refs` is the folder .dvc/objects, kept in step with hidden refs of the git repository (`ml.refs`).
With any other default remote, DVC does all of it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from ml import refs
from ml.errors import ReadOnlyError, SourceError, UserError
from ml.objects import CACHE, DIRECTORY, FOLDER, Storage, here, in_refs, keep, lacking_plugin, place
from ml.review import sides

# How clouds say that one may not write, or is not known.
REFUSED = re.compile(rf"{refs.REFUSED.pattern}|not authori[sz]ed|credential", re.IGNORECASE)
PUBLIC = "anyone can read {}: with the first push the data becomes public, and deleting does not take it back"


def locked(commit: str | None = None) -> dict[str, str]:
    """Return the hash of every output that DVC keeps, by path, as a commit (or the work tree) locks it.

    Outputs that git holds are left out. Raises SourceError for a lock or .dvc file that cannot be read.
    """
    if commit is None:
        listed = sides.git("ls-files", "-z", "--cached", "--others", "--exclude-standard").decode().split("\0")
    else:
        listed = sides.git("ls-tree", "-r", "-z", "--name-only", "--end-of-options", commit).decode().split("\0")
    tracked, where = {*listed}, commit or "the work tree"
    found: dict[str, str] = {}
    for path in sorted({"dvc.lock", *(name for name in tracked if name.endswith(".dvc"))}):
        content = sides.show(commit, path) if commit else Path(path).read_bytes() if Path(path).is_file() else None
        if content is not None:
            found |= sides.locked(content, where, path)
    return {path: md5 for path, md5 in found.items() if not any(_under(name, path) for name in tracked)}


def whole(storage: Storage, outputs: dict[str, str]) -> dict[str, str]:
    """Return the name of each object of outputs by hash; the list of a directory's files is fetched if need be."""
    names = {md5: path for path, md5 in outputs.items()}
    lists = {md5: path for md5, path in names.items() if md5.endswith(DIRECTORY)}
    storage.fetch({md5: path for md5, path in lists.items() if here(md5) is None})
    for md5, path in lists.items():
        if (file := here(md5)) is not None:
            names |= {entry["md5"]: f"{path}/{entry['relpath']}" for entry in json.loads(file.read_bytes())}
    return names


def push(*, agreed: bool = False, again: bool = False, optional: bool = False) -> str:
    """Store every object of dvc.lock that the storage lacks; return what was done.

    With `again`, objects that are stored are replaced by those of this machine. Raises UserError where one is neither
    here nor there, and ReadOnlyError where the storage takes nothing from this machine (with `optional`, that is said).
    """
    if not in_refs():
        return _push(optional)
    storage = Storage.open()
    home = storage.remotes[0]
    names = whole(storage, locked())
    kept = storage.held[home]
    if not kept and names and not agreed and refs.anonymous(home):
        _ask(PUBLIC.format(home))
    files = {md5: path for md5 in names if (again or md5 not in kept) and (path := here(md5))}
    lost = [names[md5] for md5 in names if md5 not in files and md5 not in kept]
    for md5, path in files.items():
        if refs.digest(path) != md5.removesuffix(DIRECTORY):
            raise UserError(f"{names[md5]} ({md5[:8]}) is damaged here: delete {path}, then make pull or make pipeline")
        if path.stat().st_size > refs.MOST:
            size = path.stat().st_size / 1e6
            raise UserError(f"{names[md5]} has {size:.0f} MB, over the 100 MB that a git host takes: {refs.MOVE}")
    try:
        if again:
            refs.delete([md5 for md5 in files if md5 in kept], home)
        refs.push(files, home)
    except ReadOnlyError as error:
        if not optional:
            raise
        return f"nothing pushed: {error}"
    for md5, path in files.items():
        keep(path, place(FOLDER, md5))
    if lost:
        raise UserError(f"neither here nor at {home}: {_some(lost)}; make pipeline makes what dvc.lock names")
    size = sum(path.stat().st_size for path in files.values()) / 1e6
    return f"{len(files)} of {len(names)} objects pushed to {home} ({size:.1f} MB)"


def pull(paths: list[str], *, partial: bool = False) -> str:
    """Bring the objects of dvc.lock (or of the outputs at `paths`) here and check them out; return what was done.

    With `partial`, what is nowhere is left for the pipeline to make; else it raises SourceError.
    """
    if partial and not locked():
        return "there is no dvc.lock yet: nothing to pull"
    outputs = chosen(locked(), paths)
    if not in_refs():
        dvc("pull", *(["--allow-missing"] if partial else []), *(outputs if paths else ()))
        return "pulled from DVC's default remote"
    storage = Storage.open()
    absent = {md5 for md5 in outputs.values() if here(md5) is None}
    names = whole(storage, outputs)
    absent |= {md5 for md5 in names if here(md5) is None}
    lost = {md5: names[md5] for md5 in storage.fetch(names)}
    if lost and not partial:
        raise SourceError(
            f"neither here nor at {' or '.join(storage.remotes)}: {_some([*lost.values()])}; "
            "its maker runs make push, or make pipeline makes it here"
        )
    for md5 in names.keys() - lost.keys():
        keep(here(md5), place(CACHE, md5))
    whole_ones = [path for path, md5 in outputs.items() if not any(_under(name, path) for name in lost.values())]
    if whole_ones:
        dvc("checkout", *whole_ones)
    return f"{len(absent - lost.keys())} of {len(names)} objects pulled" + (
        f"; {len(lost)} are nowhere" if lost else ""
    )


def chosen(outputs: dict[str, str], paths: list[str]) -> dict[str, str]:
    """Return the outputs at or below the paths; raise UserError for a path that has none."""
    wanted = [Path(path).as_posix() for path in paths]
    for path in wanted:
        if not any(_under(name, path) for name in outputs):
            raise UserError(f"{path} is no output of dvc.lock: one of {_some(sorted(outputs))}")
    if not wanted:
        return outputs
    return {name: md5 for name, md5 in outputs.items() if any(_under(name, path) for path in wanted)}


def _under(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}/")


def status() -> list[str]:
    """Return in lines what of dvc.lock is here and what is stored."""
    if not in_refs():
        return dvc("status", "--cloud").splitlines()
    storage = Storage.open()
    names = whole(storage, locked())
    stored = storage.holds(names)
    mine = {md5 for md5 in names if here(md5) is not None}
    lines = [f"{len(names)} objects of dvc.lock: {len(mine)} here, {len(stored)} at {' or '.join(storage.remotes)}"]
    lines += [f"to push: {names[md5]}" for md5 in names if md5 in mine - stored]
    lines += [f"to pull: {names[md5]}" for md5 in names if md5 in stored - mine]
    return lines + [f"lost: {name} (make pipeline makes it)" for md5, name in names.items() if md5 not in stored | mine]


def check(commits: list[str]) -> None:
    """Raise UserError where dvc.lock of a commit names an object that nobody pushed."""
    if not in_refs():
        from ml.review import lock

        lacking = [problem.what for problem in lock.problems(Path.cwd()) if problem.kind == "unpushed"]
        what = "dvc.lock names what nobody pushed"
    else:
        storage = Storage.open()
        lacking = []
        for commit in commits:
            names = whole(storage, locked(commit))
            stored = storage.holds(names)
            lacking += [name for md5, name in names.items() if md5 not in stored]
        what = "dvc.lock names objects that nobody pushed"
    if lacking:
        raise UserError(f"{what}: {_some(lacking)}; make push, then git push again")


def gc(*, dry_run: bool, versions: int) -> str:
    """Delete stored objects that no branch, tag, or one of the newest production versions names.

    Objects of this work tree are kept too. Raises UserError where a lock among them cannot be read: then all is kept.
    """
    if not in_refs():
        raise UserError("the storage is DVC's default remote: dvc gc --cloud --all-branches --all-tags")
    storage = Storage.open()
    home = storage.remotes[0]
    held = storage.held[home]  # before the branches, so that an object of a commit that comes meanwhile is kept
    sides.git("fetch", "--quiet", "--tags", home, f"+refs/heads/*:refs/remotes/{home}/*")
    keep = {md5 for commit in (None, *_living(home, versions)) for md5 in whole(storage, locked(commit))}
    gone = [md5 for md5 in held if md5 not in keep]
    if not dry_run:
        refs.delete(gone, home)
    verb = "would be deleted" if dry_run else "deleted"
    return f"{len(gone)} of {len(held)} objects at {home} {verb}; {len(keep)} are in use"


def _push(optional: bool) -> str:
    try:
        dvc("push")
    except UserError as error:
        if not REFUSED.search(str(error)):
            raise
        if not optional:
            raise ReadOnlyError(str(error)) from None
        return f"nothing pushed: {error}"
    return "pushed to DVC's default remote"


def dvc(*words: str) -> str:
    """Return what DVC prints; raise UserError with its reason where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *words], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in lines if line.startswith("ERROR:")), (lines or ["no reason given"])[-1])
        raise UserError(lacking_plugin(reason) or f"dvc {words[0]}: {reason.removeprefix('ERROR:').strip()}")
    return done.stdout


def _living(home: str, versions: int) -> list[str]:
    stages = sides.production_tags()
    kept = [sides.assigned(tag) for tag in stages[max(len(stages) - versions, 0) :]]
    spaces = (f"refs/remotes/{home}", "refs/tags", "refs/heads")
    listed = sides.git("for-each-ref", "--format=%(refname)", *spaces).decode()
    return kept + [name for name in listed.splitlines() if name.removeprefix("refs/tags/") not in stages]


def _ask(what: str) -> None:
    if not sys.stdin.isatty():
        raise UserError(f"{what}; to agree: make push ARGS=--yes")
    if input(f"{what}. Push? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError("nothing was pushed")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
