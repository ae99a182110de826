"""The state of a small fake GitHub: repositories, pull requests, runs, tokens, and a record of every call and push.

`api` says what it answers to which path, `server` serves both API and git.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
import subprocess
import threading
import zipfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

NEVER = "0" * 40
ACTIONS_APP = 15368
WORKFLOW_LOGIN = "github-actions[bot]"
EPOCH = "2026-01-05T06:00:00Z"
SETTINGS = {
    "http.receivepack": "true",
    "uploadpack.allowAnySHA1InWant": "true",
    "uploadpack.allowFilter": "true",
    "receive.hideRefs": "refs/pull",
    "gc.auto": "0",
}
# GitHub takes no change of a workflow from an app, which the token of a run is too, unless it has been granted; and no
# tag on a commit whose workflows are not those of a branch as it is now.
PRE_RECEIVE = r"""#!/bin/sh
[ "$MAY_CHANGE_WORKFLOWS" = no ] || exit 0
refuse() {
    echo "refusing to allow a GitHub App to create or update workflow \`$1\` without \`workflows\` permission"
    exit 1
}
workflows() { git rev-parse --quiet --verify "$1^{commit}:.github/workflows" || echo none; }
while read -r old new ref; do
    case $new in *[!0]*) ;; *) continue ;; esac
    case $ref in
        refs/heads/*)
            for commit in $(git rev-list "$new" --not --all); do
                changed=$(git diff-tree --no-commit-id --name-only -r -m "$commit" -- .github/workflows | head -n 1)
                [ -z "$changed" ] || refuse "$changed"
            done ;;
        refs/tags/*)
            for head in $(git for-each-ref --format='%(objectname)' refs/heads); do
                [ "$(workflows "$head")" != "$(workflows "$new")" ] || continue 2
            done
            refuse .github/workflows ;;
    esac
done
"""
MERGER = {
    f"GIT_{role}_{name}": value
    for role in ("AUTHOR", "COMMITTER")
    for name, value in (("NAME", "GitHub"), ("EMAIL", "noreply@github.com"), ("DATE", "2026-01-05T06:00:00Z"))
}


def number_of(file: Path) -> int:
    """Return the same number for the same path."""
    return int(hashlib.sha256(str(file).encode()).hexdigest()[:8], 16)


def now() -> str:
    """Return the time as the API writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Token:
    """Who calls, with which grants (scope to read or write), and in which repository (None: everywhere)."""

    value: str
    login: str
    grants: dict[str, str]
    repository: str | None = None
    kind: str = "person"  # or workflow, or app

    def may(self, scope: str, level: str, repository: Repository) -> bool:
        if self.repository not in (None, repository.name):
            return False
        granted = self.grants.get(scope) or self.grants.get("*")
        return granted == "write" or (level == "read" and granted == "read")


@dataclass(frozen=True)
class Call:
    """One request as it came in, and the status that it got."""

    method: str
    path: str
    query: dict[str, str]
    body: object
    token: Token | None
    status: int


@dataclass(frozen=True)
class Push:
    """A ref that moved by git push; `new` is None where it was deleted."""

    repository: str
    ref: str
    old: str | None
    new: str | None
    token: Token


@dataclass
class Comment:
    id: int
    issue: int
    body: str
    login: str


@dataclass
class Review:
    id: int
    login: str
    state: str  # APPROVED, CHANGES_REQUESTED, COMMENTED
    commit: str


@dataclass
class Pull:
    """A pull request; `sha` follows its head branch while it is open."""

    number: int
    title: str
    login: str
    head: Repository
    branch: str
    base: str
    sha: str
    draft: bool = False
    state: str = "open"
    merged: bool = False
    merge_sha: str | None = None
    body: str = ""
    labels: list[str] = field(default_factory=list)
    reviews: list[Review] = field(default_factory=list)


@dataclass
class Job:
    id: int
    name: str
    status: str = "queued"
    conclusion: str | None = None
    steps: list[dict] = field(default_factory=list)
    started: str | None = None
    completed: str | None = None


@dataclass
class Run:
    """A workflow run as the API knows it."""

    id: int
    file: str
    name: str
    event: str
    sha: str
    branch: str
    head: Repository
    login: str
    attempt: int = 1
    status: str = "in_progress"
    conclusion: str | None = None
    pulls: list[int] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)


@dataclass
class Artifact:
    id: int
    name: str
    run: int
    file: Path


@dataclass(frozen=True)
class Dispatch:
    file: str
    ref: str
    inputs: dict
    token: Token


@dataclass
class Issue:
    """An issue; pull requests are kept apart, but share its numbers."""

    number: int
    title: str
    body: str
    login: str
    labels: list[str] = field(default_factory=list)
    state: str = "open"


@dataclass
class Deployment:
    """What somebody says runs somewhere; `statuses` are oldest first."""

    id: int
    environment: str
    sha: str
    ref: str
    task: str
    description: str
    payload: object
    login: str
    created: str
    statuses: list[dict] = field(default_factory=list)


@dataclass
class Release:
    """A release and its files; a draft has no address that anybody else sees."""

    id: int
    tag: str
    name: str
    body: str
    draft: bool
    prerelease: bool
    login: str
    assets: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Repository:
    """A repository with all that hangs on it; `folder` is bare."""

    name: str
    id: int
    folder: Path
    artifacts_folder: Path
    private: bool = False
    parent: Repository | None = None
    branch: str = "main"
    pulls: dict[int, Pull] = field(default_factory=dict)
    comments: list[Comment] = field(default_factory=list)
    runs: dict[int, Run] = field(default_factory=dict)
    dispatches: list[Dispatch] = field(default_factory=list)
    checks: list[dict] = field(default_factory=list)
    statuses: list[dict] = field(default_factory=list)
    rulesets: dict[int, dict] = field(default_factory=dict)
    labels: dict[str, dict] = field(default_factory=dict)
    settings: dict[str, object] = field(default_factory=dict)
    kept: dict[str, dict] = field(default_factory=dict)
    issues: dict[int, Issue] = field(default_factory=dict)
    deployments: list[Deployment] = field(default_factory=list)
    releases: dict[int, Release] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.name.split("/")[0]

    def git(self, *words: str, **more: str) -> str:
        """Return what git prints in the bare repository; raise CalledProcessError where it fails."""
        done = subprocess.run(
            ["git", "-C", str(self.folder), *words],
            env=os.environ | more,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    def refs(self, prefix: str = "refs/") -> dict[str, str]:
        """Return the commit of every ref below the prefix."""
        listed = self.git("for-each-ref", "--format=%(refname) %(objectname)", prefix)
        return dict(line.split(" ") for line in listed.splitlines())

    def resolve(self, ref: str) -> str | None:
        """Return the commit that a branch, tag, ref or hash names, or None."""
        for name in (f"refs/heads/{ref}", f"refs/tags/{ref}", ref):
            try:
                return self.git("rev-parse", "--quiet", "--verify", f"{name}^{{commit}}")
            except subprocess.CalledProcessError:
                continue
        return None

    def artifacts(self, run: int | None = None) -> list[Artifact]:
        """Return what the runs uploaded, read from the folder that the stand-in actions write to."""
        files = self.artifacts_folder.glob(f"{run or '*'}/*.zip")
        found = [Artifact(number_of(file), file.stem, int(file.parent.name), file) for file in files]
        return sorted(found, key=lambda each: (each.run, each.name))


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: object = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None


@dataclass(frozen=True)
class Canned:
    """What the server answers to requests that match, `times` times."""

    method: str
    pattern: re.Pattern[str]
    answer: Answer
    left: list[int]


class RefusedError(Exception):
    """An answer that ends the handling of a request."""

    def __init__(self, status: int, message: str, **more: object) -> None:
        super().__init__(message)
        self.answer = Answer(status, {"message": message, "status": str(status)} | more)


def user_json(login: str) -> dict:
    return {"login": login, "id": number_of(Path(login)), "type": "Bot" if login.endswith("[bot]") else "User"}


def commit_json(repository: Repository, sha: str) -> dict:
    author, message, parents = repository.git("show", "-s", "--format=%an%x00%B%x00%P", sha).split("\0")
    return {
        "sha": sha,
        "commit": {"message": message.strip(), "author": {"name": author}},
        "parents": [{"sha": parent} for parent in parents.split()],
    }


def changed_files(repository: Repository, base: str, head: str) -> list[dict]:
    """Return what changed since the merge base, as the API lists it."""
    names = {"A": "added", "M": "modified", "D": "removed", "T": "changed"}
    listed = repository.git("diff", "--name-status", "--no-renames", f"{base}...{head}")
    lines = [line.split("\t", 1) for line in listed.splitlines()]
    return [{"filename": name, "status": names[status]} for status, name in lines]


def pull_label(pull: Pull) -> str:
    return f"{pull.head.owner}:{pull.branch}"


@dataclass
class GitHub:
    """All repositories, tokens, and what happened; `server.serving` answers for it."""

    folder: Path
    address: str
    blobs_address: str
    certificate: Path
    repositories: dict[str, Repository] = field(default_factory=dict)
    tokens: dict[str, Token] = field(default_factory=dict)
    log: list[Call] = field(default_factory=list)
    pushes: list[Push] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    canned: list[Canned] = field(default_factory=list)
    blobs: dict[str, Path] = field(default_factory=dict)
    apps: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    last_id: int = 1000

    @property
    def api(self) -> str:
        return f"{self.address}/api/v3"

    def next_id(self) -> int:
        with self.lock:
            self.last_id += 1
            return self.last_id

    def repository(self, name: str, *, private: bool = False, parent: Repository | None = None) -> Repository:
        """Make a repository, empty or as a fork."""
        folder = self.folder / "repositories" / f"{name}.git"
        folder.parent.mkdir(parents=True, exist_ok=True)
        # A fork has branches and tags, and none of the hidden refs.
        source = (
            ["clone", "--bare", "--quiet", str(parent.folder)]
            if parent
            else ["init", "--bare", "--quiet", "-b", "main"]
        )
        subprocess.run(["git", *source, str(folder)], check=True, capture_output=True)
        artifacts = self.folder / "artifacts" / name
        artifacts.mkdir(parents=True, exist_ok=True)
        made = Repository(name, self.next_id(), folder, artifacts, private, parent)
        for key, value in SETTINGS.items():
            made.git("config", key, value)
        hook = folder / "hooks/pre-receive"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(PRE_RECEIVE)
        hook.chmod(0o755)
        self.repositories[name] = made
        return made

    def next_number(self, repository: Repository) -> int:
        """Return a number that neither an issue nor a pull request has."""
        return len(repository.pulls) + len(repository.issues) + 1

    def token(self, login: str, grants: dict[str, str], repository: str | None = None, kind: str = "person") -> Token:
        """Hand out a token with grants such as {"contents": "write"}; {"*": "write"} may do all."""
        made = Token(f"ghx_{secrets.token_hex(18)}", login, grants, repository, kind)
        self.tokens[made.value] = made
        return made

    def can(self, pattern: str, answer: Answer, *, method: str = "", times: int = 10**9) -> None:
        """Answer requests whose path matches with this: a fault, or what the server does not know by itself."""
        self.canned.append(Canned(method, re.compile(pattern), answer, [times]))

    def calls(self, method: str = "", pattern: str = "") -> list[Call]:
        """Return the calls so far, by method and a pattern somewhere in the path."""
        return [call for call in self.log if method in ("", call.method) and re.search(pattern, call.path)]

    def open_pull(
        self,
        repository: Repository,
        branch: str,
        *,
        login: str,
        title: str = "",
        head: Repository | None = None,
        base: str = "main",
        draft: bool = False,
        body: str = "",
    ) -> Pull:
        """Open a pull request from a branch, which may be a fork's."""
        source = head or repository
        sha = source.resolve(f"refs/heads/{branch}")
        if sha is None:
            raise RefusedError(422, "Validation Failed", errors=[{"field": "head", "code": "invalid"}])
        with self.lock:
            number = self.next_number(repository)
            pull = Pull(number, title or branch, login, source, branch, base, sha, draft, body=body)
            repository.pulls[number] = pull
        self.refresh(repository)
        return pull

    def refresh(self, repository: Repository) -> None:
        """Bring head and merge refs of open pull requests in step with their branches."""
        with self.lock:
            for pull in repository.pulls.values():
                sha = pull.head.resolve(f"refs/heads/{pull.branch}")
                if pull.state != "open" or sha is None:
                    continue
                pull.sha = sha
                if pull.head is not repository:
                    repository.git("fetch", "--quiet", "--no-tags", str(pull.head.folder), sha)
                repository.git("update-ref", f"refs/pull/{pull.number}/head", sha)
                pull.merge_sha = merge(repository, pull)

    def pull_json(self, repository: Repository, pull: Pull) -> dict:
        """Return a pull request as both API and events show it."""
        base_sha = repository.resolve(f"refs/heads/{pull.base}")
        address = f"{self.address}/{repository.name}/pull/{pull.number}"
        return {
            "id": pull.number + 7_000,
            "number": pull.number,
            "url": f"{self.api}/repos/{repository.name}/pulls/{pull.number}",
            "html_url": address,
            "title": pull.title,
            "body": pull.body,
            "state": pull.state,
            "draft": pull.draft,
            "merged": pull.merged,
            "merged_at": EPOCH if pull.merged else None,
            "merge_commit_sha": pull.merge_sha,
            "mergeable": pull.merge_sha is not None,
            "user": user_json(pull.login),
            "labels": [{"name": label} for label in pull.labels],
            "author_association": "OWNER" if pull.login == repository.owner else "CONTRIBUTOR",
            "head": {
                "label": pull_label(pull),
                "ref": pull.branch,
                "sha": pull.sha,
                "user": user_json(pull.head.owner),
                "repo": self.repository_json(pull.head),
            },
            "base": {
                "label": f"{repository.owner}:{pull.base}",
                "ref": pull.base,
                "sha": base_sha,
                "user": user_json(repository.owner),
                "repo": self.repository_json(repository),
            },
        }

    def repository_json(self, repository: Repository) -> dict:
        return {
            "id": repository.id,
            "name": repository.name.split("/")[1],
            "full_name": repository.name,
            "owner": user_json(repository.owner),
            "private": repository.private,
            "visibility": "private" if repository.private else "public",
            "fork": repository.parent is not None,
            "default_branch": repository.branch,
            "url": f"{self.api}/repos/{repository.name}",
            "html_url": f"{self.address}/{repository.name}",
            "clone_url": f"{self.address}/{repository.name}.git",
        } | repository.settings

    def run_json(self, repository: Repository, run: Run) -> dict:
        """Return a run as both API and events show it; it knows no pull requests of forks, as at GitHub."""
        return {
            "id": run.id,
            "name": run.name,
            "path": f".github/workflows/{run.file}",
            "event": run.event,
            "status": run.status,
            "conclusion": run.conclusion,
            "head_sha": run.sha,
            "head_commit": {"id": run.sha},
            "head_branch": run.branch,
            "run_attempt": run.attempt,
            "run_number": run.id,
            "html_url": f"{self.address}/{repository.name}/actions/runs/{run.id}",
            "workflow_id": number_of(Path(f".github/workflows/{run.file}")),
            "actor": user_json(run.login),
            "triggering_actor": user_json(run.login),
            "created_at": EPOCH,
            "repository": self.repository_json(repository),
            "head_repository": self.repository_json(run.head),
            "pull_requests": [{"number": number, "head": {"sha": run.sha, "ref": run.branch}} for number in run.pulls]
            if run.head is repository
            else [],
        }

    def issue_json(self, repository: Repository, issue: Issue) -> dict:
        return {
            "id": issue.number + 9_000,
            "number": issue.number,
            "title": issue.title,
            "body": issue.body,
            "state": issue.state,
            "user": user_json(issue.login),
            "labels": [{"name": label} for label in issue.labels],
            "url": f"{self.api}/repos/{repository.name}/issues/{issue.number}",
            "html_url": f"{self.address}/{repository.name}/issues/{issue.number}",
        }

    def deployment_json(self, repository: Repository, made: Deployment) -> dict:
        return {
            "id": made.id,
            "sha": made.sha,
            "ref": made.ref,
            "task": made.task,
            "payload": made.payload,
            "environment": made.environment,
            "original_environment": made.environment,
            "description": made.description,
            "creator": user_json(made.login),
            "created_at": made.created,
            "url": f"{self.api}/repos/{repository.name}/deployments/{made.id}",
            "statuses_url": f"{self.api}/repos/{repository.name}/deployments/{made.id}/statuses",
        }

    def release_json(self, repository: Repository, release: Release) -> dict:
        where = f"{self.address}/{repository.name}/releases"
        uploads = f"{self.blobs_address}/uploads/repos/{repository.name}/releases/{release.id}/assets"
        return {
            "id": release.id,
            "tag_name": release.tag,
            "name": release.name,
            "body": release.body,
            "draft": release.draft,
            "prerelease": release.prerelease,
            "author": user_json(release.login),
            "html_url": f"{where}/tag/{'untagged-' + str(release.id) if release.draft else release.tag}",
            # Files go to another host than the API.
            "upload_url": f"{uploads}{{?name,label}}",
            "assets": [{"name": name, "size": len(content)} for name, content in release.assets.items()],
        }

    def artifact_json(self, repository: Repository, artifact: Artifact) -> dict:
        address = f"{self.api}/repos/{repository.name}/actions/artifacts/{artifact.id}"
        return {
            "id": artifact.id,
            "name": artifact.name,
            "size_in_bytes": artifact.file.stat().st_size,
            "expired": False,
            "url": address,
            "archive_download_url": f"{address}/zip",
            "workflow_run": {"id": artifact.run},
        }

    def comment_json(self, repository: Repository, comment: Comment) -> dict:
        return {
            "id": comment.id,
            "body": comment.body,
            "user": user_json(comment.login),
            "url": f"{self.api}/repos/{repository.name}/issues/comments/{comment.id}",
            "html_url": f"{self.address}/{repository.name}/pull/{comment.issue}#issuecomment-{comment.id}",
        }

    def blob(self, file: Path) -> str:
        """Return a secret address of a file."""
        key = secrets.token_hex(16)
        self.blobs[key] = file
        return f"{self.blobs_address}/blob/{key}?sig={secrets.token_hex(8)}"

    def app_token(self, repository: Repository, app: str, key: str, grants: dict[str, str]) -> Token:
        """Return a token of a registered app, with all of its grants or fewer."""
        known, granted = self.apps.get(app, ("", {}))
        if not key or key != known:
            raise RefusedError(401, "A JSON web token could not be decoded")
        for scope, level in grants.items():
            if granted.get(scope) not in ("write", level):
                raise RefusedError(422, "The permissions requested are not granted to this installation.")
        return self.token(f"{app}[bot]", grants or granted, repository.name, "app")

    def artifact(self, repository: Repository, run: int, name: str, files: dict[str, bytes]) -> Path:
        """Store an artifact that no run uploaded, such as a hostile one."""
        target = repository.artifacts_folder / str(run) / f"{name}.zip"
        target.parent.mkdir(parents=True, exist_ok=True)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, content in files.items():
                archive.writestr(path, content)
        target.write_bytes(packed.getvalue())
        return target


def merge(repository: Repository, pull: Pull) -> str | None:
    """Write refs/pull/N/merge and return its commit, or None where the branches conflict."""
    base = repository.resolve(f"refs/heads/{pull.base}")
    try:
        tree = repository.git("merge-tree", "--write-tree", "--messages", base, pull.sha).splitlines()[0]
    except subprocess.CalledProcessError:
        return None
    words = ("commit-tree", tree, "-p", base, "-p", pull.sha, "-m", f"Merge {pull.sha} into {base}")
    sha = repository.git(*words, **MERGER)
    repository.git("update-ref", f"refs/pull/{pull.number}/merge", sha)
    return sha
