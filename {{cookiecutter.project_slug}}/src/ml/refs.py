"""Keeps DVC's objects in hidden refs of a git repository: `refs/dvc/md5/<hash>` leads to one object.

A ref holds a commit without parents whose one file, `object`, is the object's bytes. The commit has no author and no
time of its own, so all who push an object push the same commit, and none can lose to another. A clone fetches no such
ref. What is fetched passes through a scratch store and never through the clone's own objects.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from ml.errors import ReadOnlyError, SourceError, UserError

SPACE = "refs/dvc/md5/"
HASH = re.compile(r"[0-9a-f]{32}(\.dir)?")
MOST = 100_000_000  # bytes; GitHub refuses larger files
AT_ONCE = 200  # refs of one push
MOST_AT_ONCE = 1_000_000_000  # bytes of one push; GitHub refuses 2 GB
TRIES = 5
NAMELESS = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "dvc"), ("EMAIL", "dvc"), ("DATE", "@0 +0000"))
}
REFUSED = re.compile(r"denied|403|read[- ]only|not permitted|not allowed|unable to access.*40[13]", re.IGNORECASE)
MOVE = "move the storage to S3, GCS or Azure (docs/storage.md)"


def remotes() -> list[str]:
    """Return where objects are looked for: `origin`, and the repositories that STORAGE_ALSO names (a fork's)."""
    configured = git("remote").stdout.decode().split()
    own = ["origin"] if "origin" in configured else configured[:1]
    return own + os.environ.get("STORAGE_ALSO", "").split()


def inventory(remote: str) -> dict[str, str]:
    """Return the commit of each object that a repository holds, by the object's hash.

    Raises UserError where the repository does not answer.
    """
    listed = git("ls-remote", "--quiet", "--", remote, f"{SPACE}*", what=f"{remote} cannot be listed").stdout.decode()
    pairs = (line.split("\t", 1) for line in listed.splitlines())
    return {ref.removeprefix(SPACE): commit for commit, ref in pairs if HASH.fullmatch(ref.removeprefix(SPACE))}


def fetch(wanted: Mapping[str, Path], remote: str, held: Mapping[str, str]) -> list[str]:
    """Write the objects to their paths, each whole and with its own hash; return the hashes that arrived damaged.

    `held` is the repository's inventory, which lists them all. Nothing else is downloaded.
    """
    damaged = []
    with _scratch() as scratch:
        lines = "".join(f"{SPACE}{md5}\n" for md5 in wanted).encode()
        quietly = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-filter", "--no-recurse-submodules")
        git(
            *("-c", "gc.auto=0", "-c", "maintenance.auto=false", "fetch", *quietly, "--stdin", "--", remote),
            what=f"objects cannot be fetched from {remote}",
            input=lines,
            env=scratch,
        )
        for md5, path in wanted.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path.parent)
            fresh = path.with_name(f"{md5[-8:]}.{os.getpid()}.tmp")
            try:
                with fresh.open("wb") as file:
                    done = git("cat-file", "blob", f"{held[md5]}:object", env=scratch, stdout=file, check=False)
                if done.returncode or digest(fresh) != md5.removesuffix(".dir"):
                    damaged.append(md5)
                else:
                    os.replace(fresh, path)
            finally:
                fresh.unlink(missing_ok=True)
    return damaged


def push(objects: Mapping[str, Path], remote: str) -> None:
    """Give a repository the objects that it lacks, by their hashes.

    Raises UserError where one is too large or the repository does not take them, ReadOnlyError where it takes none.
    """
    for md5, path in objects.items():
        if (size := path.stat().st_size) > MOST:
            raise UserError(f"an object of {size / 1e6:.0f} MB ({md5[:8]}) is over the 100 MB of a git host: {MOVE}")
    held = inventory(remote) if objects else {}
    missing = [md5 for md5 in objects if md5 not in held]
    for _ in range(TRIES):
        if not missing:
            return
        for batch in _batches({md5: objects[md5] for md5 in missing}):
            with _scratch() as scratch:
                commits = _commits([objects[md5] for md5 in batch], scratch)
                specs = [f"{commit}:{SPACE}{md5}" for md5, commit in zip(batch, commits, strict=True)]
                quietly = ("--quiet", "--no-verify", "--no-follow-tags", "--recurse-submodules=no")
                done = git("push", *quietly, "--", remote, *specs, env=scratch, check=False)
            reason = _reason(done)
            if done.returncode and REFUSED.search(reason):
                raise ReadOnlyError(f"{remote} takes no objects from here ({reason})")
        held = inventory(remote)
        missing = [md5 for md5 in missing if md5 not in held]
        time.sleep(0.2 if missing else 0)
    raise UserError(f"{remote} did not take {len(missing)} objects ({reason}): try again")


def delete(hashes: Iterable[str], remote: str) -> None:
    """Delete the refs of objects; whoever knows an object's commit may still fetch it until the host collects it."""
    refs = [f"{SPACE}{md5}" for md5 in hashes]
    for at in range(0, len(refs), AT_ONCE):
        git("push", "--quiet", "--no-verify", "--delete", "--", remote, *refs[at : at + AT_ONCE], what=remote)


def git(
    *words: str,
    what: str = "git",
    env: Mapping[str, str] | None = None,
    check: bool = True,
    token: bool = True,
    input: bytes | None = None,
    stdout: IO[bytes] | int = subprocess.PIPE,
) -> subprocess.CompletedProcess[bytes]:
    """Return what git did, asking nobody for a password; in a workflow GITHUB_TOKEN opens its server.

    Raises SourceError with git's reason where it fails, unless `check` is off.
    """
    own = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C", **(_token() if token else {}), **(env or {})}
    more: dict[str, Any] = {"input": input} if input is not None else {"stdin": subprocess.DEVNULL}
    try:
        done = subprocess.run(["git", *words], stdout=stdout, stderr=subprocess.PIPE, env=os.environ | own, **more)
    except FileNotFoundError:
        raise UserError("git is not on PATH: install it") from None
    if check and done.returncode:
        raise SourceError(f"{what}: {_reason(done)}")
    return done


def address(remote: str) -> str:
    """Return where a remote of this clone lies."""
    return git("remote", "get-url", remote).stdout.decode().strip()


def anonymous(remote: str) -> bool:
    """Return whether anybody may read a repository on a web host; False for one that is not on the web."""
    where = address(remote)
    match = re.match(r"(?:ssh://)?git@([^:/]+)[:/](.+)|https?://(?:[^@/]+@)?([^/]+)/(.+)", where)
    if not match:
        return False
    host, path = (match[1], match[2]) if match[1] else (match[3], match[4])
    bare = {"GIT_ASKPASS": "true", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    scheme = "http" if where.startswith("http:") else "https"
    return not git("ls-remote", f"{scheme}://{host}/{path}", "HEAD", env=bare, token=False, check=False).returncode


def digest(path: Path) -> str:
    """Return the MD5 of a file, which is how DVC names it."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextmanager
def _scratch() -> Iterator[dict[str, str]]:
    """Yield an environment in which git reads the clone's objects and writes new ones elsewhere."""
    own = Path(git("rev-parse", "--git-path", "objects").stdout.decode().strip()).resolve()
    with TemporaryDirectory(prefix="objects-") as folder:
        yield {"GIT_OBJECT_DIRECTORY": folder, "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(own), **NAMELESS}


def _batches(objects: Mapping[str, Path]) -> Iterator[list[str]]:
    """Yield the hashes in lots that one push may hold."""
    batch: list[str] = []
    size = 0
    for md5, path in objects.items():
        length = path.stat().st_size
        if batch and (len(batch) == AT_ONCE or size + length > MOST_AT_ONCE):
            yield batch
            batch, size = [], 0
        batch.append(md5)
        size += length
    if batch:
        yield batch


def _sweep(folder: Path) -> None:
    """Remove what killed runs left; what is younger than an hour may be another run's."""
    for left in folder.glob("*.tmp"):
        if time.time() - left.stat().st_mtime > 3600:
            left.unlink(missing_ok=True)


def _commits(paths: list[Path], scratch: dict[str, str]) -> list[str]:
    """Write each file into a commit of its own, and return these in order."""
    # Parquet and ONNX hardly shrink; the least effort is enough.
    words = ("-c", "core.compression=1", "hash-object", "-w", "--no-filters", "--stdin-paths")
    blobs = git(*words, input="".join(f"{path}\n" for path in paths).encode(), env=scratch).stdout.decode().split()
    entries = "\n".join(f"100644 blob {blob}\tobject\n" for blob in blobs)
    trees = git("mktree", "--batch", input=entries.encode(), env=scratch).stdout.decode().split()
    words = ("-c", "commit.gpgSign=false", "commit-tree")
    return [git(*words, tree, input=b"", env=scratch).stdout.decode().strip() for tree in trees]


def _token() -> dict[str, str]:
    """Return git's settings that show GITHUB_TOKEN to the server of a workflow, whose checkout keeps none."""
    token, server = os.environ.get("GITHUB_TOKEN"), os.environ.get("GITHUB_SERVER_URL")
    if not token or not server:
        return {}
    secret = base64.b64encode(f"x-access-token:{token}".encode()).decode()
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"http.{server}/.extraheader",
        "GIT_CONFIG_VALUE_0": f"AUTHORIZATION: basic {secret}",
    }


def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = [line.strip() for line in (done.stderr or b"").decode(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("fatal:", "error:", "remote:", "ERROR:", "! ["))]
    return " ".join((telling or lines or ["no reason given"])[0].split())[:200]
