"""The REST API of the fake GitHub: what answers which path, and which grant it needs."""

from __future__ import annotations

import base64
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from github import (
    ACTIONS_APP,
    NEVER,
    Answer,
    Comment,
    Deployment,
    Dispatch,
    GitHub,
    Issue,
    Pull,
    RefusedError,
    Release,
    Repository,
    Run,
    Token,
    changed_files,
    commit_json,
    now,
    number_of,
    pull_label,
    user_json,
)

LONGEST_COMMENT = 65_536


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
    pull = _edited(_numbered(asked.repository, number), asked, "title", "body", "state")
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
    """Return those that have the commit as their head, forks' left out, and the one that brought it to main."""
    repository = asked.repository
    chosen = [
        pull
        for pull in repository.pulls.values()
        if (pull.merged and pull.merge_sha == sha) or (pull.sha == sha and pull.head is repository)
    ]
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


@route("POST", "/actions/runs/{number}/rerun-failed-jobs", "actions")
def _rerun(github: GitHub, asked: Asked, number: str) -> Answer:
    _run_of(asked.repository, number)
    return Answer(201)


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
                "started_at": job.started,
                "completed_at": job.completed,
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
    if int(number) not in asked.repository.issues:
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


@route("GET", "/issues", "issues")
def _issues(github: GitHub, asked: Asked) -> Listing:
    """Pull requests are issues too, and are listed among them."""
    repository, wanted = asked.repository, asked.query.get("state", "open")
    labels = {name for name in asked.query.get("labels", "").split(",") if name}
    found = [github.issue_json(repository, one) for one in reversed(repository.issues.values())]
    found += [github.pull_json(repository, pull) | {"pull_request": {}} for pull in repository.pulls.values()]
    return Listing(
        [
            one
            for one in found
            if wanted in (one["state"], "all") and labels <= {label["name"] for label in one["labels"]}
        ]
    )


@route("POST", "/issues", "issues")
def _create_issue(github: GitHub, asked: Asked) -> Answer:
    """A label that the repository lacks is made with the issue."""
    assert asked.token
    repository = asked.repository
    labels = [*(asked.body.get("labels") or [])]
    for name in labels:
        repository.labels.setdefault(name, {"name": name, "color": "ededed", "description": None})
    number = github.next_number(repository)
    made = Issue(number, asked.body["title"], asked.body.get("body") or "", asked.token.login, labels)
    repository.issues[number] = made
    return Answer(201, github.issue_json(repository, made))


@route("GET", "/issues/{number}", "issues")
def _issue(github: GitHub, asked: Asked, number: str) -> dict:
    return github.issue_json(
        asked.repository, _found(i for i in asked.repository.issues.values() if str(i.number) == number)
    )


@route("PATCH", "/issues/{number}", "issues")
def _edit_issue(github: GitHub, asked: Asked, number: str) -> dict:
    issue = _found(each for each in asked.repository.issues.values() if str(each.number) == number)
    return github.issue_json(asked.repository, _edited(issue, asked, "title", "body", "state", "labels"))


@route("POST", "/attestations", "attestations")
def _create_attestation(github: GitHub, asked: Asked) -> Answer:
    """A private repository has none without Enterprise Cloud."""
    if asked.repository.private:
        raise RefusedError(403, "Feature not available for the repository's plan")
    return Answer(201, {"id": github.next_id()})


@route("GET", "/deployments", "deployments")
def _deployments(github: GitHub, asked: Asked) -> Listing:
    """Newest first, as at GitHub."""
    wanted = {name: asked.query[name] for name in ("environment", "sha", "ref", "task") if name in asked.query}
    listed = [github.deployment_json(asked.repository, one) for one in reversed(asked.repository.deployments)]
    return Listing([one for one in listed if all(one[name] == value for name, value in wanted.items())])


@route("POST", "/deployments", "deployments")
def _create_deployment(github: GitHub, asked: Asked) -> Answer:
    """GitHub refuses one whose commit has checks that have not passed, unless it is told which are required."""
    assert asked.token
    sha = _resolved(asked.repository, asked.body["ref"])
    if asked.body.get("required_contexts") != [] and any(
        run.sha == sha and run.status != "completed" for run in asked.repository.runs.values()
    ):
        raise RefusedError(409, "Conflict: Commit status checks failed for " + asked.body["ref"])
    made = Deployment(
        github.next_id(),
        asked.body.get("environment", "production"),
        sha,
        asked.body["ref"],
        asked.body.get("task", "deploy"),
        asked.body.get("description") or "",
        asked.body.get("payload") or {},
        asked.token.login,
        now(),
    )
    asked.repository.deployments.append(made)
    return Answer(201, github.deployment_json(asked.repository, made))


@route("GET", "/deployments/{number}/statuses", "deployments")
def _deployment_statuses(github: GitHub, asked: Asked, number: str) -> Listing:
    made = _found(each for each in asked.repository.deployments if str(each.id) == number)
    return Listing([*reversed(made.statuses)])


@route("POST", "/deployments/{number}/statuses", "deployments")
def _create_deployment_status(github: GitHub, asked: Asked, number: str) -> Answer:
    """A success makes the older ones of its environment inactive, unless that is turned off."""
    made = _found(each for each in asked.repository.deployments if str(each.id) == number)
    states = ("error", "failure", "inactive", "in_progress", "queued", "pending", "success")
    if asked.body.get("state") not in states:
        raise RefusedError(422, "Validation Failed", errors=[{"field": "state", "code": "invalid"}])
    status = {"id": github.next_id(), "created_at": now(), "environment": made.environment} | asked.body
    made.statuses.append(status)
    if status["state"] == "success" and asked.body.get("auto_inactive", True):
        for other in asked.repository.deployments:
            older = other.environment == made.environment and other.id < made.id
            if older and other.statuses and other.statuses[-1]["state"] == "success":
                other.statuses.append({"id": github.next_id(), "state": "inactive", "created_at": now()})
    return Answer(201, status)


@route("GET", "/releases", "contents")
def _releases(github: GitHub, asked: Asked) -> Listing:
    """Drafts are seen by those who may write."""
    sees = asked.token is not None and asked.token.may("contents", "write", asked.repository)
    kept = [each for each in reversed(asked.repository.releases.values()) if sees or not each.draft]
    return Listing([github.release_json(asked.repository, each) for each in kept])


@route("POST", "/releases", "contents")
def _create_release(github: GitHub, asked: Asked) -> Answer:
    """Without its tag, publishing makes one."""
    assert asked.token
    made = Release(
        github.next_id(),
        asked.body["tag_name"],
        asked.body.get("name") or "",
        asked.body.get("body") or "",
        asked.body.get("draft", False),
        asked.body.get("prerelease", False),
        asked.token.login,
    )
    if not made.draft and any(one.tag == made.tag and not one.draft for one in asked.repository.releases.values()):
        raise RefusedError(422, "Validation Failed", errors=[{"field": "tag_name", "code": "already_exists"}])
    asked.repository.releases[made.id] = made
    return Answer(201, github.release_json(asked.repository, made))


@route("POST", "/releases/generate-notes", "contents")
def _generate_notes(github: GitHub, asked: Asked) -> dict:
    """Return the pull requests whose merges lie between two tags."""
    repository, tag = asked.repository, asked.body["tag_name"]
    head = repository.resolve(f"refs/tags/{tag}") or _resolved(repository, asked.body["target_commitish"])
    span = [head]
    if before := asked.body.get("previous_tag_name"):
        span.append(f"^{_resolved(repository, f'refs/tags/{before}')}")
    shas = {*repository.git("rev-list", *span).split()}
    lines = [
        f"* {pull.title} by @{pull.login} in {github.address}/{repository.name}/pull/{pull.number}"
        for pull in repository.pulls.values()
        if pull.merged and pull.merge_sha in shas
    ]
    return {"name": tag, "body": "\n".join(["## What's Changed", *lines])}


@route("PATCH", "/releases/{number}", "contents")
def _edit_release(github: GitHub, asked: Asked, number: str) -> dict:
    release = _found(each for each in asked.repository.releases.values() if str(each.id) == number)
    return github.release_json(asked.repository, _edited(release, asked, "name", "body", "draft", "prerelease"))


@route("DELETE", "/releases/{number}", "contents")
def _delete_release(github: GitHub, asked: Asked, number: str) -> Answer:
    release = _found(each for each in asked.repository.releases.values() if str(each.id) == number)
    del asked.repository.releases[release.id]
    return Answer(204)


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


def _edited(kept: object, asked: Asked, *names: str) -> object:
    """Change of what is kept the fields that the caller names and may change."""
    for name in names:
        setattr(kept, name, asked.body.get(name, getattr(kept, name)))
    return kept


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
    path = _found(each for each in listed if file in (Path(each).name, str(number_of(Path(each)))))
    return {"id": number_of(Path(path)), "path": path, "name": Path(path).stem, "state": "active"}
