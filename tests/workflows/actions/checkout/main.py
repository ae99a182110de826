"""Fetches and checks out; refuses code of a fork in a workflow that is trusted, as checkout 7 does."""

import base64
import os
import re

from stand_in import WORKSPACE, event, fail, git, job_token, number, output, required, text, true


def foreign() -> tuple[str, set[str]]:
    """Return the fork whose pull request started a trusted workflow, and the commits that are its."""
    run, pull = event().get("workflow_run"), event().get("pull_request")
    if os.environ["GITHUB_EVENT_NAME"] == "workflow_run" and run["event"].startswith("pull_request"):
        return run["head_repository"]["full_name"], {run["head_sha"]}
    if os.environ["GITHUB_EVENT_NAME"] == "pull_request_target":
        return pull["head"]["repo"]["full_name"], {pull["head"]["sha"], pull["merge_commit_sha"]}
    return os.environ["GITHUB_REPOSITORY"], set()


def refuse_unsafe(repository: str, ref: str) -> None:
    fork, commits = foreign()
    if fork == os.environ["GITHUB_REPOSITORY"] or true("allow-unsafe-pr-checkout"):
        return
    if repository == fork or re.fullmatch(r"refs/pull/\d+/(head|merge)", ref) or ref in commits:
        fail(f"Refusing to check out fork pull request code from a '{os.environ['GITHUB_EVENT_NAME']}' workflow.")


def main() -> None:
    repository, ref = required("repository"), text("ref")
    own = repository == os.environ["GITHUB_REPOSITORY"]
    refuse_unsafe(repository, ref)
    folder = WORKSPACE / text("path")
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    address = f"{os.environ['GITHUB_SERVER_URL']}/{repository}"
    git("init", "--quiet", "--initial-branch", "main")
    if "origin" not in git("remote").split():
        git("remote", "add", "origin", address)
    token = base64.b64encode(f"x-access-token:{job_token(required('token'))}".encode()).decode()
    key = f"http.{os.environ['GITHUB_SERVER_URL']}/.extraheader"
    git("config", "--local", key, f"AUTHORIZATION: basic {token}")
    fetch(ref, own)
    if true("clean"):
        git("clean", "-ffdxq")
    if not true("persist-credentials"):
        git("config", "--local", "--unset-all", key)
    output("ref", ref or os.environ["GITHUB_REF"])
    output("commit", git("rev-parse", "HEAD"))


def fetch(ref: str, own: bool) -> None:
    """Fetch with the wanted depth, and check out: a branch as a branch, all else detached."""
    depth = number("fetch-depth", 1)
    commit = os.environ["GITHUB_SHA"] if own and not ref else ""
    name = ref or (os.environ["GITHUB_REF"] if own else "HEAD")
    listed = [line.split("\t")[1] for line in git("ls-remote", "origin").splitlines()] if ref else []
    full = next((each for each in (name, f"refs/heads/{name}", f"refs/tags/{name}") if each in listed), name)
    branch = full.removeprefix("refs/heads/") if full.startswith("refs/heads/") else ""
    kept = f"refs/remotes/origin/{branch}" if branch else full.replace("refs/pull/", "refs/remotes/pull/", 1)
    wanted = [f"+{commit or full}:{kept}" if kept.startswith("refs/") else f"{commit or full}"]
    if depth == 0:
        # git takes no two sources for one ref, and branches and tags are among all of them.
        wanted = [commit] if branch and commit else [] if branch or full.startswith("refs/tags/") else wanted
        wanted += ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"]
    tags = ["--tags"] if true("fetch-tags") else ["--no-tags"]
    limits = [f"--depth={depth}"] if depth else []
    git("fetch", "--quiet", "--prune", "--no-recurse-submodules", *tags, *limits, "origin", *dict.fromkeys(wanted))
    start = commit if branch and commit else kept if kept.startswith("refs/") else "FETCH_HEAD"
    git("checkout", "--quiet", "--force", *(["-B", branch] if branch else ["--detach"]), start)


main()
