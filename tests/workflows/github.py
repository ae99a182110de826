"""A small fake GitHub on this machine: git over HTTPS, and the part of the REST API that the workflows use.

The state is in plain dataclasses and every call is recorded. `GitHub.open` yields a running server.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import secrets
import ssl
import subprocess
import threading
import urllib.parse
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NEVER = "0" * 40
ACTIONS_APP = 15368
LONGEST_COMMENT = 65_536
WORKFLOW_LOGIN = "github-actions[bot]"
EPOCH = "2026-01-05T06:00:00Z"
# As git of a person who has no settings of their own.
SETTINGS = {
    "http.receivepack": "true",
    "uploadpack.allowAnySHA1InWant": "true",
    "uploadpack.allowFilter": "true",
    "receive.hideRefs": "refs/pull",
    "gc.auto": "0",
}
# GitHub takes no change of a workflow from an app, which the token of a run is too, unless it has been granted.
PRE_RECEIVE = r"""#!/bin/sh
[ "$MAY_CHANGE_WORKFLOWS" = no ] || exit 0
while read -r old new ref; do
    case $ref in refs/heads/*) ;; *) continue ;; esac
    case $new in *[!0]*) ;; *) continue ;; esac
    for commit in $(git rev-list "$new" --not --all); do
        changed=$(git diff-tree --no-commit-id --name-only -r -m "$commit" -- .github/workflows | head -n 1)
        [ -z "$changed" ] || {
            echo "refusing to allow a GitHub App to create or update workflow $changed without workflows permission"
            exit 1
        }
    done
done
"""
MERGER = {
    f"GIT_{role}_{name}": value
    for role in ("AUTHOR", "COMMITTER")
    for name, value in (("NAME", "GitHub"), ("EMAIL", "noreply@github.com"), ("DATE", "2026-01-05T06:00:00Z"))
}


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
        found = [Artifact(_number(file), file.stem, int(file.parent.name), file) for file in files]
        return sorted(found, key=lambda each: (each.run, each.name))


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: object = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None


@dataclass(frozen=True)
class Listing:
    """Entries that are handed out in pages, as such or under a key."""

    entries: list[dict]
    key: str | None = None


@dataclass(frozen=True)
class Asked:
    """A request for one repository, and who asks."""

    repository: Repository
    token: Token | None
    query: dict[str, str]
    body: dict
    host: str


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


@dataclass(frozen=True)
class Route:
    method: str
    pattern: re.Pattern[str]
    scopes: tuple[str, ...]
    level: str
    answer: Callable[..., object]


ROUTES: list[Route] = []


def route(method: str, path: str, *scopes: str, level: str = "") -> Callable:
    """Register what answers a path below /repos/OWNER/NAME; any one of the scopes is enough."""
    pattern = re.sub(r"\{(\w+):any\}", r"(?P<\1>.+)", path)
    pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern)
    kept = level or ("read" if method == "GET" else "write")

    def register(answer: Callable) -> Callable:
        ROUTES.append(Route(method, re.compile(f"{pattern}$"), scopes or ("metadata",), kept, answer))
        return answer

    return register


@route("GET", "")
def _repository(github: GitHub, asked: Asked) -> dict:
    return github.repository_json(asked.repository)


@route("PATCH", "", "administration")
def _settings(github: GitHub, asked: Asked) -> dict:
    asked.repository.settings |= asked.body
    return github.repository_json(asked.repository)


@route("GET", "/pulls", "pull-requests")
def _pulls(github: GitHub, asked: Asked) -> Listing:
    query = {"state": "open"} | asked.query
    chosen = [
        pull
        for pull in reversed(asked.repository.pulls.values())
        if query["state"] in (pull.state, "all")
        and query.get("head", pull_label(pull)) == pull_label(pull)
        and query.get("base", pull.base) == pull.base
    ]
    return Listing([github.pull_json(asked.repository, pull) for pull in chosen])


@route("POST", "/pulls", "pull-requests")
def _open_pull(github: GitHub, asked: Asked) -> Answer:
    assert asked.token
    owner, _, branch = asked.body["head"].rpartition(":")
    head = next((each for each in github.repositories.values() if owner and each.owner == owner), asked.repository)
    if any(
        pull_label(pull) == f"{head.owner}:{branch}" and pull.state == "open"
        for pull in asked.repository.pulls.values()
    ):
        raise RefusedError(
            422, "Validation Failed", errors=[{"message": f"A pull request already exists for {branch}."}]
        )
    pull = github.open_pull(
        asked.repository,
        branch,
        login=asked.token.login,
        title=asked.body["title"],
        head=head,
        base=asked.body["base"],
        draft=asked.body.get("draft", False),
        body=asked.body.get("body") or "",
    )
    return Answer(201, github.pull_json(asked.repository, pull))


@route("GET", "/pulls/{number}", "pull-requests")
def _pull(github: GitHub, asked: Asked, number: str) -> dict:
    return github.pull_json(asked.repository, _numbered(asked.repository, number))


@route("PATCH", "/pulls/{number}", "pull-requests")
def _edit_pull(github: GitHub, asked: Asked, number: str) -> dict:
    pull = _numbered(asked.repository, number)
    pull.title, pull.body = asked.body.get("title", pull.title), asked.body.get("body", pull.body)
    pull.state = asked.body.get("state", pull.state)
    return github.pull_json(asked.repository, pull)


@route("GET", "/pulls/{number}/reviews", "pull-requests")
def _reviews(github: GitHub, asked: Asked, number: str) -> Listing:
    reviews = _numbered(asked.repository, number).reviews
    return Listing(
        [
            {"id": each.id, "user": user_json(each.login), "state": each.state, "commit_id": each.commit}
            for each in reviews
        ]
    )


@route("GET", "/pulls/{number}/files", "pull-requests")
def _pull_files(github: GitHub, asked: Asked, number: str) -> Listing:
    pull = _numbered(asked.repository, number)
    return Listing(changed_files(asked.repository, asked.repository.resolve(pull.base) or NEVER, pull.sha))


@route("GET", "/pulls/{number}/commits", "pull-requests")
def _pull_commits(github: GitHub, asked: Asked, number: str) -> Listing:
    pull = _numbered(asked.repository, number)
    shas = asked.repository.git("rev-list", "--reverse", f"refs/heads/{pull.base}..{pull.sha}").split()
    return Listing([commit_json(asked.repository, sha) for sha in shas])


@route("GET", "/commits/{sha}", "contents")
def _commit(github: GitHub, asked: Asked, sha: str) -> dict:
    return commit_json(asked.repository, _resolved(asked.repository, sha))


@route("GET", "/commits/{sha}/pulls", "pull-requests")
def _commit_pulls(github: GitHub, asked: Asked, sha: str) -> Listing:
    """Pull requests of a fork's commits are not found by it, as at GitHub."""
    repository = asked.repository
    chosen = [pull for pull in repository.pulls.values() if pull.sha == sha and pull.head is repository]
    return Listing([github.pull_json(repository, pull) for pull in chosen])


@route("GET", "/commits/{sha}/check-runs", "checks")
def _check_runs(github: GitHub, asked: Asked, sha: str) -> Listing:
    commit = _resolved(asked.repository, sha)
    jobs = [
        {
            "id": job.id,
            "name": job.name,
            "head_sha": run.sha,
            "status": job.status,
            "conclusion": job.conclusion,
            "app": {"id": ACTIONS_APP, "slug": "github-actions"},
        }
        for run in asked.repository.runs.values()
        for job in run.jobs
        if run.sha == commit
    ]
    return Listing(jobs + [check for check in asked.repository.checks if check["head_sha"] == commit], "check_runs")


@route("POST", "/check-runs", "checks")
def _create_check(github: GitHub, asked: Asked) -> Answer:
    check = {"id": github.next_id(), "app": {"id": ACTIONS_APP, "slug": "github-actions"}} | asked.body
    asked.repository.checks.append(check)
    return Answer(201, check)


@route("PATCH", "/check-runs/{number}", "checks")
def _edit_check(github: GitHub, asked: Asked, number: str) -> dict:
    check = _found(each for each in asked.repository.checks if str(each["id"]) == number)
    check |= asked.body
    return check


@route("POST", "/statuses/{sha}", "statuses")
def _create_status(github: GitHub, asked: Asked, sha: str) -> Answer:
    status = {"id": github.next_id(), "sha": _resolved(asked.repository, sha)} | asked.body
    asked.repository.statuses.append(status)
    return Answer(201, status)


@route("GET", "/actions/runs", "actions")
def _runs(github: GitHub, asked: Asked) -> Listing:
    return Listing(_chosen_runs(github, asked), "workflow_runs")


@route("GET", "/actions/workflows/{file}", "actions")
def _workflow(github: GitHub, asked: Asked, file: str) -> dict:
    return _workflow_json(asked.repository, file)


@route("GET", "/actions/workflows/{file}/runs", "actions")
def _workflow_runs(github: GitHub, asked: Asked, file: str) -> Listing:
    workflow = _workflow_json(asked.repository, file)
    return Listing([run for run in _chosen_runs(github, asked) if run["path"] == workflow["path"]], "workflow_runs")


@route("POST", "/actions/workflows/{file}/dispatches", "actions")
def _dispatch(github: GitHub, asked: Asked, file: str) -> Answer:
    """A dispatch needs the workflow at the named ref, and there the trigger."""
    assert asked.token
    workflow = _workflow_json(asked.repository, file)
    ref = asked.body.get("ref", "")
    sha = asked.repository.resolve(ref)
    if sha is None:
        raise RefusedError(422, f"No ref found for: {ref}")
    try:
        text = asked.repository.git("show", f"{sha}:{workflow['path']}")
    except subprocess.CalledProcessError:
        raise RefusedError(404, "Not Found") from None
    if "workflow_dispatch" not in text:
        raise RefusedError(422, "Workflow does not have 'workflow_dispatch' trigger")
    name = Path(workflow["path"]).name
    asked.repository.dispatches.append(Dispatch(name, ref, asked.body.get("inputs") or {}, asked.token))
    return Answer(204)


@route("GET", "/actions/runs/{number}", "actions")
def _run(github: GitHub, asked: Asked, number: str) -> dict:
    return github.run_json(asked.repository, _run_of(asked.repository, number))


@route("GET", "/actions/runs/{number}/jobs", "actions")
@route("GET", "/actions/runs/{number}/attempts/{attempt}/jobs", "actions")
def _jobs(github: GitHub, asked: Asked, number: str, attempt: str = "1") -> Listing:
    run = _run_of(asked.repository, number)
    return Listing(
        [
            {
                "id": job.id,
                "run_id": run.id,
                "run_attempt": run.attempt,
                "head_sha": run.sha,
                "name": job.name,
                "status": job.status,
                "conclusion": job.conclusion,
                "steps": job.steps,
                "html_url": f"{github.address}/{asked.repository.name}/actions/runs/{run.id}/job/{job.id}",
            }
            for job in run.jobs
        ],
        "jobs",
    )


@route("GET", "/actions/runs/{number}/artifacts", "actions")
def _artifacts(github: GitHub, asked: Asked, number: str) -> Listing:
    run = _run_of(asked.repository, number)
    chosen = [each for each in asked.repository.artifacts(run.id) if asked.query.get("name", each.name) == each.name]
    return Listing([github.artifact_json(asked.repository, artifact) for artifact in chosen], "artifacts")


@route("GET", "/actions/artifacts/{number}", "actions")
def _artifact(github: GitHub, asked: Asked, number: str) -> dict:
    artifact = _found(each for each in asked.repository.artifacts() if str(each.id) == number)
    return github.artifact_json(asked.repository, artifact)


@route("GET", "/actions/artifacts/{number}/zip", "actions")
def _artifact_zip(github: GitHub, asked: Asked, number: str) -> Answer:
    """The file lies on another host, behind an address that is a secret for a minute."""
    if asked.token is None:
        raise RefusedError(401, "Requires authentication")
    artifact = _found(each for each in asked.repository.artifacts() if str(each.id) == number)
    return Answer(302, None, {"Location": github.blob(artifact.file)})


@route("GET", "/issues/{number}/comments", "issues", "pull-requests")
def _comments(github: GitHub, asked: Asked, number: str) -> Listing:
    kept = [each for each in asked.repository.comments if str(each.issue) == number]
    return Listing([github.comment_json(asked.repository, each) for each in kept])


@route("POST", "/issues/{number}/comments", "issues", "pull-requests")
def _create_comment(github: GitHub, asked: Asked, number: str) -> Answer:
    assert asked.token
    _numbered(asked.repository, number)
    comment = Comment(github.next_id(), int(number), _checked_body(asked.body), asked.token.login)
    asked.repository.comments.append(comment)
    return Answer(201, github.comment_json(asked.repository, comment))


@route("GET", "/issues/comments/{number}", "issues", "pull-requests")
def _comment(github: GitHub, asked: Asked, number: str) -> dict:
    return github.comment_json(asked.repository, _found(c for c in asked.repository.comments if str(c.id) == number))


@route("PATCH", "/issues/comments/{number}", "issues", "pull-requests")
def _edit_comment(github: GitHub, asked: Asked, number: str) -> dict:
    comment = _found(each for each in asked.repository.comments if str(each.id) == number)
    comment.body = _checked_body(asked.body)
    return github.comment_json(asked.repository, comment)


@route("DELETE", "/issues/comments/{number}", "issues", "pull-requests")
def _delete_comment(github: GitHub, asked: Asked, number: str) -> Answer:
    asked.repository.comments.remove(_found(c for c in asked.repository.comments if str(c.id) == number))
    return Answer(204)


@route("GET", "/contents/{path:any}", "contents")
def _contents(github: GitHub, asked: Asked, path: str) -> dict:
    commit = _resolved(asked.repository, asked.query.get("ref", asked.repository.branch))
    try:
        blob = asked.repository.git("rev-parse", "--verify", f"{commit}:{path}")
    except subprocess.CalledProcessError:
        raise RefusedError(404, "Not Found") from None
    command = ["git", "-C", str(asked.repository.folder), "cat-file", "blob", blob]
    content = subprocess.run(command, capture_output=True, check=True).stdout
    text = base64.encodebytes(content).decode()
    return {"type": "file", "path": path, "sha": blob, "size": len(content), "encoding": "base64", "content": text}


@route("GET", "/compare/{basehead}", "contents")
def _compare(github: GitHub, asked: Asked, basehead: str) -> dict:
    base, head = (_resolved(asked.repository, each) for each in basehead.split("..."))
    ahead = asked.repository.git("rev-list", "--reverse", f"{base}..{head}").split()
    behind = asked.repository.git("rev-list", f"{head}..{base}").split()
    status = "diverged" if ahead and behind else "ahead" if ahead else "behind" if behind else "identical"
    return {
        "status": status,
        "ahead_by": len(ahead),
        "behind_by": len(behind),
        "merge_base_commit": {"sha": asked.repository.git("merge-base", base, head)},
        "commits": [commit_json(asked.repository, sha) for sha in ahead],
        "files": changed_files(asked.repository, base, head),
    }


@route("GET", "/git/ref/{ref:any}", "contents")
def _ref(github: GitHub, asked: Asked, ref: str) -> dict:
    sha = _found(kept for name, kept in asked.repository.refs(f"refs/{ref}").items() if name == f"refs/{ref}")
    return {"ref": f"refs/{ref}", "object": {"sha": sha, "type": "commit"}}


@route("GET", "/branches/{branch:any}", "contents")
def _branch(github: GitHub, asked: Asked, branch: str) -> dict:
    ref = f"refs/heads/{branch}"
    sha = _found(kept for name, kept in asked.repository.refs(ref).items() if name == ref)
    return {"name": branch, "commit": commit_json(asked.repository, sha), "protected": False}


@route("GET", "/rulesets", "metadata")
def _rulesets(github: GitHub, asked: Asked) -> Listing:
    return Listing(
        [{key: kept[key] for key in ("id", "name") if key in kept} for kept in asked.repository.rulesets.values()]
    )


@route("GET", "/rulesets/{number}", "metadata")
def _ruleset(github: GitHub, asked: Asked, number: str) -> dict:
    return _found(kept for key, kept in asked.repository.rulesets.items() if str(key) == number)


@route("POST", "/rulesets", "administration")
def _create_ruleset(github: GitHub, asked: Asked) -> Answer:
    ruleset = {"id": github.next_id()} | asked.body
    if any(kept["name"] == ruleset["name"] for kept in asked.repository.rulesets.values()):
        raise RefusedError(422, "Validation Failed", errors=["Name must be unique"])
    asked.repository.rulesets[ruleset["id"]] = ruleset
    return Answer(201, ruleset)


@route("PUT", "/rulesets/{number}", "administration")
def _edit_ruleset(github: GitHub, asked: Asked, number: str) -> dict:
    ruleset = _found(kept for key, kept in asked.repository.rulesets.items() if str(key) == number)
    ruleset |= asked.body
    return ruleset


@route("GET", "/labels", "issues", "pull-requests")
def _labels(github: GitHub, asked: Asked) -> Listing:
    return Listing([*asked.repository.labels.values()])


@route("POST", "/labels", "issues", "pull-requests")
def _create_label(github: GitHub, asked: Asked) -> Answer:
    if asked.body["name"] in asked.repository.labels:
        raise RefusedError(422, "Validation Failed", errors=[{"resource": "Label", "code": "already_exists"}])
    asked.repository.labels[asked.body["name"]] = asked.body
    return Answer(201, asked.body)


SETTING = (
    "/(?P<path>actions/permissions(/.+)?|environments/.+|vulnerability-alerts|automated-security-fixes"
    "|private-vulnerability-reporting|immutable-releases|topics)"
)


@route("PUT", SETTING, "administration")
def _put_setting(github: GitHub, asked: Asked, path: str) -> Answer:
    """Keep a setting, whatever it says."""
    asked.repository.kept[path] = asked.body
    return Answer(204)


@route("GET", SETTING, "administration")
def _get_setting(github: GitHub, asked: Asked, path: str) -> dict:
    return _found(body for kept, body in asked.repository.kept.items() if kept == path)


def _found(candidates: Iterator) -> object:
    for candidate in candidates:
        return candidate
    raise RefusedError(404, "Not Found")


def _number(file: Path) -> int:
    return int(hashlib.sha256(str(file).encode()).hexdigest()[:8], 16)


def _numbered(repository: Repository, number: str) -> Pull:
    return _found(pull for key, pull in repository.pulls.items() if str(key) == number)


def _run_of(repository: Repository, number: str) -> Run:
    return _found(run for key, run in repository.runs.items() if str(key) == number)


def _resolved(repository: Repository, ref: str) -> str:
    sha = repository.resolve(ref)
    if sha is None:
        raise RefusedError(422, f"No commit found for SHA: {ref}")
    return sha


def _checked_body(body: dict) -> str:
    text = body.get("body")
    if not isinstance(text, str) or not text.strip():
        raise RefusedError(422, "Validation Failed", errors=[{"code": "missing_field", "field": "body"}])
    if len(text) > LONGEST_COMMENT:
        raise RefusedError(
            422, "Validation Failed", errors=[{"message": f"Body is too long (maximum is {LONGEST_COMMENT})"}]
        )
    return text


def _chosen_runs(github: GitHub, asked: Asked) -> list[dict]:
    wanted = {
        name: asked.query[name] for name in ("head_sha", "event", "status", "conclusion") if name in asked.query
    } | ({"head_branch": asked.query["branch"]} if "branch" in asked.query else {})
    listed = [github.run_json(asked.repository, run) for run in reversed(asked.repository.runs.values())]
    return [run for run in listed if all(value in (run[name], run["conclusion"]) for name, value in wanted.items())]


def _workflow_json(repository: Repository, file: str) -> dict:
    """Return a workflow by its file's name or its number; it is known once the default branch has it."""
    head = repository.resolve(repository.branch)
    listed = repository.git("ls-tree", "--name-only", head, ".github/workflows/").splitlines() if head else []
    path = _found(each for each in listed if file in (Path(each).name, str(_number(Path(each)))))
    return {"id": _number(Path(path)), "path": path, "name": Path(path).stem, "state": "active"}


def user_json(login: str) -> dict:
    return {"login": login, "id": _number(Path(login)), "type": "Bot" if login.endswith("[bot]") else "User"}


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
    """The server's state and what changes it from outside of HTTP."""

    folder: Path
    address: str
    blobs_address: str
    certificate: Path
    repositories: dict[str, Repository] = field(default_factory=dict)
    tokens: dict[str, Token] = field(default_factory=dict)
    log: list[Call] = field(default_factory=list)
    pushes: list[Push] = field(default_factory=list)
    canned: list[Canned] = field(default_factory=list)
    blobs: dict[str, Path] = field(default_factory=dict)
    apps: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    last_id: int = 1000

    @staticmethod
    @contextmanager
    def open(folder: Path) -> Iterator[GitHub]:
        """Yield a server with its state below the folder; it ends with the block."""
        certificate, key = make_certificate(folder)
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        # A handshake on accept would let one slow client stop all others.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        port = server.server_address[1]
        github = GitHub(folder, f"https://127.0.0.1:{port}", f"https://localhost:{port}", certificate)
        server.github = github
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield github
        finally:
            server.shutdown()
            server.server_close()

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
            number = len(repository.pulls) + 1
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
            "workflow_id": _number(Path(f".github/workflows/{run.file}")),
            "actor": user_json(run.login),
            "triggering_actor": user_json(run.login),
            "created_at": EPOCH,
            "repository": self.repository_json(repository),
            "head_repository": self.repository_json(run.head),
            "pull_requests": [{"number": number, "head": {"sha": run.sha, "ref": run.branch}} for number in run.pulls]
            if run.head is repository
            else [],
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


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Return a certificate for this machine that trusts itself, and its key."""
    folder.mkdir(parents=True, exist_ok=True)
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=fake-github"
    names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    files = ["-out", str(certificate), "-keyout", str(key)]
    subprocess.run(["openssl", *words.split(), *names, *files], check=True, capture_output=True)
    return certificate, key


class Handler(BaseHTTPRequestHandler):
    """Reads requests and writes answers; what they mean is said above."""

    protocol_version = "HTTP/1.1"
    server_version = "fake-github"
    # Small answers in two packets wait for each other otherwise.
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        return

    @property
    def github(self) -> GitHub:
        return self.server.github

    def do_GET(self) -> None:
        self.handle_request()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def handle_request(self) -> None:
        body = self.read_body()
        path, _, query_text = self.path.partition("?")
        path = urllib.parse.unquote(path)
        query = dict(urllib.parse.parse_qsl(query_text, keep_blank_values=True))
        token = None
        try:
            token = self.find_token()
            answer = self.canned_answer(path) or self.answer(path, query, body, token)
        except RefusedError as refused:
            answer = refused.answer
        short = re.sub("^/api/v3", "", path)
        self.github.log.append(Call(self.command, short, query, _parsed(body), token, answer.status))
        self.send(answer)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def find_token(self) -> Token | None:
        """Return the caller's token, None where there is none; refuse an unknown one."""
        scheme, _, value = self.headers.get("Authorization", "").partition(" ")
        if not scheme or self.path.startswith("/blob/"):
            return None
        if scheme.lower() == "basic":
            name, _, password = base64.b64decode(value).decode().partition(":")
            value = password if password not in ("", "x-oauth-basic") else name
        token = self.github.tokens.get(value.strip())
        if token is None:
            raise RefusedError(401, "Bad credentials")
        return token

    def canned_answer(self, path: str) -> Answer | None:
        for canned in self.github.canned:
            if canned.method in ("", self.command) and canned.pattern.search(path) and canned.left[0] > 0:
                canned.left[0] -= 1
                return canned.answer
        return None

    def answer(self, path: str, query: dict[str, str], body: bytes, token: Token | None) -> Answer:
        if found := re.match(r"/([^/]+/[^/]+?)(?:\.git)?(/info/refs|/git-upload-pack|/git-receive-pack)$", path):
            return self.git(found[1], found[2], query, body, token)
        if found := re.match(r"/blob/(\w+)$", path):
            return self.blob(found[1])
        if found := re.match(r"(?:/api/v3)?/app/installations/([^/]+/[^/]+)/access_tokens$", path):
            return self.app(found[1], _parsed(body))
        if found := re.match(r"(?:/api/v3)?/repos/([^/]+/[^/]+)(/.*)?$", path):
            return self.rest(found[1], found[2] or "", query, _parsed(body), token)
        raise RefusedError(404, "Not Found")

    def blob(self, key: str) -> Answer:
        """Hand out a file, and refuse a caller who sends GitHub's token to the storage behind it, as that does."""
        if "Authorization" in self.headers:
            raise RefusedError(401, "InvalidAuthenticationInfo")
        if key not in self.github.blobs:
            raise RefusedError(403, "AuthenticationFailed")
        return Answer(200, raw=self.github.blobs[key].read_bytes(), headers={"Content-Type": "application/zip"})

    def app(self, name: str, body: object) -> Answer:
        """Stand in for the two calls, signed with a JWT, by which an app gets its token."""
        assert isinstance(body, dict)
        token = self.github.app_token(self.repository(name, None), body["app"], body["key"], body["permissions"])
        return Answer(201, {"token": token.value, "permissions": token.grants})

    def repository(self, name: str, token: Token | None) -> Repository:
        """Return a repository; one that the caller may not see is not found."""
        found = self.github.repositories.get(name)
        if found is None:
            raise RefusedError(404, "Not Found")
        return found

    def rest(self, name: str, path: str, query: dict, body: object, token: Token | None) -> Answer:
        repository = self.visible(name, token)
        for each in ROUTES:
            found = each.pattern.match(path)
            if each.method == self.command and found:
                self.allow(repository, token, each)
                asked = Asked(repository, token, query, body if isinstance(body, dict) else {}, self.github.address)
                with self.github.lock:
                    return self.paged(each.answer(self.github, asked, **found.groupdict()), query)
        raise RefusedError(404, "Not Found")

    def visible(self, name: str, token: Token | None) -> Repository:
        repository = self.repository(name, token)
        if repository.private and (token is None or token.repository not in (None, name)):
            raise RefusedError(404, "Not Found")
        return repository

    def allow(self, repository: Repository, token: Token | None, each: Route) -> None:
        """Refuse a call without its grant; reading what is public needs none."""
        if each.level == "read" and (not repository.private or each.scopes == ("metadata",)):
            return
        if token is None:
            raise RefusedError(401, "Requires authentication")
        if not any(token.may(scope, each.level, repository) for scope in each.scopes):
            raise RefusedError(403, "Resource not accessible by integration")

    def paged(self, result: object, query: dict[str, str]) -> Answer:
        """Return a page of a listing, with links to the others."""
        if isinstance(result, Answer):
            return result
        if not isinstance(result, Listing):
            return Answer(200, result)
        size, page = min(int(query.get("per_page", 30)), 100), int(query.get("page", 1))
        last = max(-(-len(result.entries) // size), 1)
        address = f"{self.github.address}{self.path.partition('?')[0]}"
        pages = {"prev": page - 1, "next": page + 1, "first": 1, "last": last}
        links = [
            f'<{address}?{urllib.parse.urlencode(query | {"page": str(number)})}>; rel="{name}"'
            for name, number in pages.items()
            if 1 <= number <= last and number != page
        ]
        shown = result.entries[(page - 1) * size : page * size]
        body = {"total_count": len(result.entries), result.key: shown} if result.key else shown
        return Answer(200, body, {"Link": ", ".join(links)} if links else {})

    def git(self, name: str, service: str, query: dict[str, str], body: bytes, token: Token | None) -> Answer:
        """Answer git over smart HTTP, with the rights of the token."""
        pushing = "git-receive-pack" in (query.get("service"), service.strip("/"))
        repository = self.github.repositories.get(name)
        if token is None and (pushing or repository is None or repository.private):
            return Answer(401, {"message": "Requires authentication"}, {"WWW-Authenticate": 'Basic realm="GitHub"'})
        if repository is None or (repository.private and not token.may("contents", "read", repository)):
            raise RefusedError(404, "Repository not found.")
        if pushing and not token.may("contents", "write", repository):
            return Answer(403, raw=f"Permission to {name}.git denied to {token.login}.\n".encode())
        asked = {} if service != "/git-receive-pack" else _commands(body)
        answer = self.http_backend(repository, service, body, token)
        if asked:
            self.note(repository, asked, token)
        return answer

    def http_backend(self, repository: Repository, service: str, body: bytes, token: Token | None) -> Answer:
        environment = os.environ | {
            "GIT_PROJECT_ROOT": str(repository.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "PATH_INFO": service,
            "QUERY_STRING": self.path.partition("?")[2],
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "REMOTE_ADDR": "127.0.0.1",
            "MAY_CHANGE_WORKFLOWS": "yes" if token and token.may("workflows", "write", repository) else "no",
            "REMOTE_USER": token.login if token else "",
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
        status = int(headers.pop("Status", "200").split(" ")[0])
        return Answer(status if head else 500, raw=content or done.stderr[:0], headers=headers)

    def note(self, repository: Repository, asked: dict[str, tuple[str, str]], token: Token) -> None:
        """Record the refs that a push moved, and what follows from it."""
        with self.github.lock:
            now = repository.refs()
            for ref, (old, new) in asked.items():
                if now.get(ref, NEVER) == new:
                    kept = (None if sha == NEVER else sha for sha in (old, new))
                    self.github.pushes.append(Push(repository.name, ref, *kept, token))
        if any(ref.startswith("refs/heads/") for ref in asked):
            for each in (repository, repository.parent):
                if each is not None:
                    self.github.refresh(each)

    def send(self, answer: Answer) -> None:
        json_body = b"" if answer.body is None else json.dumps(answer.body).encode()
        content = json_body if answer.raw is None else answer.raw
        self.send_response(answer.status)
        for name, value in ({"Content-Type": "application/json; charset=utf-8"} | answer.headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()


def _parsed(body: bytes) -> object:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _commands(body: bytes) -> dict[str, tuple[str, str]]:
    """Return by ref the old and the new hash that a push asks for: the lines before the first flush."""
    asked, at = {}, 0
    while (size := int(body[at : at + 4] or b"0", 16)) >= 4:
        line = body[at + 4 : at + size].split(b"\0")[0].decode().strip()
        if not line.startswith(("shallow ", "push-cert")):
            old, new, ref = line.split(" ", 2)
            asked[ref] = (old, new)
        at += size
    return asked
