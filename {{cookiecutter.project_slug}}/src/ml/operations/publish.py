"""Stores what CI trained, and puts the lock and the reports of it onto the branch of a pull request.

Runs from the default branch's code with a token that writes, and executes nothing of the branch: it reads the commit
with git, checks the bundle by its hashes, and asks DVC whether the lock fits the commit's files.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from ml import refs
from ml.errors import SourceError, UserError
from ml.objects import CACHE, FOLDER, in_refs, keep, place
from ml.operations import bundle, comment
from ml.operations.bundle import Bundle
from ml.operations.comment import Run
from ml.operations.github import GitHub
from ml.pipeline.tables import write_bytes
from ml.review import lock, sides

MESSAGE = "Take what run {} trained\n\nMade by CI from {}: dvc.lock and the reports that it names.\n"
MARK = "Take what run "
BOT = ("github-actions[bot]", "41898282+github-actions[bot]@users.noreply.github.com")


def commit_lock(number: int, *, dispatch: bool) -> str:
    """Publish and commit what a run trained, and start the checks on it; return what was done or why nothing was.

    With `dispatch` the checks are started by hand, since a push with GITHUB_TOKEN starts none.
    Raises SourceError for a bundle that is not what the branch's code and its own lock say.
    """
    github = GitHub.open()
    run = Run.of(github.get(f"actions/runs/{number}"))
    own = github.get(".")
    if run.repository != own["id"]:
        return "the branch lies in a fork: its owner runs make take"
    request = comment.pull_request(github, run)
    if request is None:
        return f"no open pull request has the head {run.head[:10]}: it moved on"
    branch = request["head"]["ref"]
    if branch == own["default_branch"]:
        return f"{branch} is the default branch: nothing is committed to it"
    with TemporaryDirectory(prefix="publish-") as scratch:
        if not bundle.download(github, number, bundle.ARTIFACT, Path(scratch), bundle.MOST):
            return "the run trained nothing that its commit lacks"
        fetch(run.head)
        if sides.git("log", "-1", "--format=%s", run.head).decode().startswith(MARK):
            return f"{run.head[:10]} was committed here already and does not repeat: look at the report"
        found = bundle.checked(Path(scratch, bundle.ARTIFACT))
        refuse_foreign(found, run.head, Path(scratch, "tree"))
        stored = _store(found)
        made = _commit(found, run)
    _push(made, branch, run.head)
    if dispatch:
        github.send("POST", f"actions/workflows/{bundle.WORKFLOW}/dispatches", {"ref": branch})
    return f"{made[:10]} on {branch} takes what run {number} trained ({stored} objects stored)"


def store_of_main(number: int) -> str:
    """Store the objects of the default branch's lock that its own run had to make, and run its failed jobs again.

    So what a fork's pull request kept in the fork is kept here once it is merged, made by main's code.
    Raises SourceError where the run made other objects than the commit's lock names.
    """
    github = GitHub.open()
    run = Run.of(github.get(f"actions/runs/{number}"))
    own = github.get(".")
    if (run.repository, run.branch) != (own["id"], own["default_branch"]):
        return f"run {number} is not of {own['default_branch']}: nothing is stored"
    with TemporaryDirectory(prefix="publish-") as scratch:
        if not bundle.download(github, number, bundle.ARTIFACT, Path(scratch), bundle.MOST):
            return "everything that the lock names is stored"
        fetch(run.head)
        if (kept := sides.show(run.head, bundle.LOCK)) is None:
            return f"{run.head[:10]} has no {bundle.LOCK}: there is nothing to store for it"
        found = bundle.checked(Path(scratch, bundle.ARTIFACT))
        if found.files[bundle.LOCK].read_bytes() != kept:
            raise SourceError(f"{run.head[:10]} locks other objects than its own run made: make take, then look")
        if found.objects.keys() <= bundle.known(found.objects):
            # Else a run that fails for another reason would be run again and again.
            return f"what run {number} made is stored already: its log says why it failed"
        stored = _store(found)
    github.send("POST", f"actions/runs/{number}/rerun-failed-jobs")
    return f"{stored} objects that run {number} made are stored; its failed jobs run again"


def refuse_foreign(found: Bundle, head: str, tree: Path) -> None:
    """Raise SourceError unless the bundle's lock is what the commit's own dvc.yaml, params.yaml and code give."""
    tree.mkdir()
    subprocess.run(["tar", "-x", "-C", str(tree)], input=sides.git("archive", "--format=tar", head), check=True)
    # Settings of DVC may name programs and places, and its folder may be a link: nothing of it is taken over.
    own = tree / ".dvc"
    if own.is_dir() and not own.is_symlink():
        shutil.rmtree(own)
    own.unlink(missing_ok=True)
    written = f"[core]\nno_scm = true\nsite_cache_dir = {own}/site\n"
    write_bytes(written.encode(), own / "config")
    for name, file in found.files.items():
        target = tree / name
        if target.is_symlink() or not target.resolve().is_relative_to(tree.resolve()):
            raise SourceError(f"{name} of the commit leads elsewhere")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    if wrong := [p for p in lock.problems(tree, stored=False) if p.kind != "unpushed"]:
        raise SourceError(f"the trained result does not fit the commit: {wrong[0].what}")
    if lost := (found.named - found.objects.keys()) - bundle.known(found.named):
        raise SourceError(f"neither the bundle nor the storage has {len(lost)} of its objects, such as {min(lost)[:8]}")


def fetch(head: str) -> None:
    """Bring a commit of origin here, unless it is; raise SourceError where origin does not give it."""
    if sides.commit(head) is None:
        refs.git("fetch", "--quiet", "--no-tags", "origin", head, what=f"{head[:10]} cannot be fetched")


def _store(found: Bundle) -> int:
    from dvc_data.hashfile.hash_info import HashInfo

    if not in_refs():
        for md5, file in found.objects.items():
            keep(file, place(CACHE, md5))
        # Not `dvc push`, which pushes what the lock of the default branch names.
        with lock.opened(Path.cwd()) as repo:
            if failed := repo.cloud.push([HashInfo("md5", md5) for md5 in found.objects]).failed:
                raise UserError(f"DVC's default remote did not take {len(failed)} objects: look at its settings")
        return len(found.objects)
    refs.push(found.objects, "origin")
    for md5, file in found.objects.items():
        keep(file, place(FOLDER, md5))
    return len(found.objects)


def _commit(found: Bundle, run: Run) -> str:
    """Return a commit on the run's head that changes the bundle's files alone; no work tree is touched."""
    with TemporaryDirectory(prefix="index-") as scratch:
        who = {
            f"GIT_{role}_{what}": text
            for role in ("AUTHOR", "COMMITTER")
            for what, text in zip(("NAME", "EMAIL"), BOT, strict=True)
        }
        own = {"GIT_INDEX_FILE": str(Path(scratch, "index")), **who}
        _git("read-tree", run.head, env=own)
        for name, file in found.files.items():
            blob = _git("hash-object", "-w", "--no-filters", "--", str(file.resolve()), env=own)
            _git("update-index", "--add", "--cacheinfo", f"100644,{blob},{name}", env=own)
        tree = _git("write-tree", env=own)
        message = MESSAGE.format(run.number, run.head)
        return _git("commit-tree", tree, "-p", run.head, "-m", message, env=own)


def _push(made: str, branch: str, head: str) -> None:
    # The lease refuses the push where the branch meanwhile moved on, was set back, or is gone.
    words = ("--quiet", "--no-verify", f"--force-with-lease=refs/heads/{branch}:{head}")
    refs.git("push", *words, "origin", f"{made}:refs/heads/{branch}", what=f"{branch} takes no commit")


def _git(*words: str, env: dict[str, str]) -> str:
    return refs.git(*words, env=env).stdout.decode().strip()
