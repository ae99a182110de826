"""The harness itself: what the fake GitHub, the stand-in actions and the runner do is what the real ones do."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import act
import github as fake
import pytest
from conftest import PRODUCT, ROOT
from real import Project
from world import STAND_INS, PullRequest, Run, World, executes, product_jobs, undeclared

pytestmark = pytest.mark.slow
HERE = Path(__file__).resolve().parent
CHECKOUT = "actions/checkout@3d3c42e5aac5ba805825da76410c181273ba90b1"
UPLOAD = "actions/upload-artifact@cf430e030ddbb5b0abf93d22962f4752f3646cd9"
REAL = act.load((HERE / "inputs.yaml").read_text())
ACTIONS = sorted(path.parent.name for path in STAND_INS.glob("*/action.yml"))


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[World]:
    """A world of its own for one test."""
    with World.open(tmp_path, sample(tmp_path)) as world:
        yield world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world that tests share, with a run on main."""
    folder = tmp_path_factory.mktemp("world")
    with World.open(folder, sample(folder)) as made:
        made.secrets["PASSWORD"], made.variables["COLOUR"] = "hunter2", "blue"
        yield made


@pytest.fixture(scope="module")
def first(world: World) -> Run:
    """The run that follows the first push."""
    return world.run("checks.yml", world.push())


@pytest.fixture(scope="module")
def smaller(world: World, first: Run) -> PullRequest:
    """A pull request whose checks fail."""
    return world.pull_request(world.change({"number.txt": "3\n"}, "Be smaller"))


@pytest.fixture(scope="module")
def failed(world: World, smaller: PullRequest) -> Run:
    return world.run("checks.yml", smaller.event())


def sample(folder: Path) -> Path:
    """Return a repository of little more than workflows."""
    made = folder / "sample"
    shutil.copytree(HERE / "samples", made)
    (made / "number.txt").write_text("7\n")
    (made / ".python-version").write_text(f"{sys.version_info[0]}.{sys.version_info[1]}\n")
    return made


def uploaded(world: World, pull: PullRequest) -> Run:
    """Return a run of the checks that left an artifact, without running them."""
    run = world.cancelled("checks.yml", pull.event())
    world.forge(run, "plain", {"one.txt": b"one\n"})
    return run


def ask(
    github: fake.GitHub,
    path: str,
    token: fake.Token | None = None,
    body: object = None,
    *,
    method: str = "",
    prefix: str = "/api/v3",
) -> tuple[int, object, dict[str, str]]:
    """Return status, parsed answer and headers."""
    address = path if path.startswith("https:") else f"{github.address}{prefix}{path}"
    headers = {"Authorization": f"Bearer {token.value}"} if token else {}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, headers, method=method or ("POST" if data else "GET"))
    context = ssl.create_default_context(cafile=github.certificate)
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), Unmoved)
    try:
        answer = opener.open(request, timeout=30)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        content = answer.read()
    return answer.status, json.loads(content) if content[:1] in (b"{", b"[") else content, dict(answer.headers)


def tried(world: World, *words: str) -> subprocess.CompletedProcess[str]:
    """Return what the owner's git command came to, whatever it is."""
    return world.owner.project.run("git", *words, GIT_SSL_CAINFO=str(world.owner.certificates))


class Unmoved(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


def test_every_job_that_ran_is_told_from_those_that_were_skipped(first: Run) -> None:
    assert first.jobs == {
        "build": "success",
        "receive": "success",
        "after": "success",
        "nightly": "skipped",
        "each (a)": "success",
        "each (b)": "success",
        "all": "success",
    }
    assert first.conclusion == "success"


def test_a_failed_job_skips_what_needs_it_and_a_failed_step_what_follows(failed: Run) -> None:
    assert [name for name, conclusion in failed.jobs.items() if conclusion == "failure"] == ["receive", "all"]
    assert failed.jobs["after"] == "skipped"
    assert [*failed.steps("receive").values()] == ["success", "success", "success", "failure", "skipped"]
    assert failed.conclusion == "failure"


def test_steps_of_a_composite_action_and_post_steps_have_names(first: Run) -> None:
    steps = first.steps("build")

    assert steps["./.github/actions/setup / Fill the cache"] == "success"
    assert steps[f"Post {CHECKOUT}"] == "success"
    assert steps[f"{UPLOAD} (2)"] == "success"
    assert first.step("build", "Make files").seconds > 0


def test_annotations_and_summaries_are_heard(first: Run) -> None:
    assert first.annotations == [act.Annotation("error", "a bigger one is better", "number.txt", 1, "Too small")]
    assert first.summary("build") == "### Made in build\n"
    assert first.summary("receive") == ""


def test_a_job_checks_out_the_one_commit_of_its_event(
    world: World, first: Run, failed: Run, smaller: PullRequest
) -> None:
    main, merged = world.repository.resolve("main"), smaller.record.merge_sha

    assert f"sha={main} head={main} commits=1" in first.log("build")
    assert f"sha={merged} head={merged} commits=1" in failed.log("build")
    assert "event=pull_request ref=refs/pull/1/merge actor=octocat branch=be-smaller" in failed.log("build")
    assert "event=push ref=refs/heads/main actor=octocat branch=\n" in first.log("build")


def test_artifacts_hold_what_the_patterns_name_and_nothing_hidden(first: Run) -> None:
    plain, some = first.artifact("plain"), first.artifact("some")

    assert first.artifacts == ["plain", "some"]
    assert names(plain) == ["one.txt", "sub/two.txt"]
    assert names(some) == ["number.txt", "out/one.txt"]


def test_one_artifact_comes_into_the_folder_and_several_into_folders_of_their_names(first: Run) -> None:
    listed = first.step("receive", "List").log.splitlines()

    assert listed[:-1] == [
        "all/plain/one.txt",
        "all/plain/sub/two.txt",
        "all/some/number.txt",
        "all/some/out/one.txt",
        "got/one.txt",
        "got/sub/two.txt",
    ]
    assert listed[-1] == "number is 7"


def test_a_pull_request_reads_the_caches_of_main(failed: Run) -> None:
    assert "hit=false held=7" in failed.log("build")


def test_main_does_not_read_the_caches_of_a_pull_request(world: World, failed: Run, tmp_path: Path) -> None:
    (kept,) = (world.folder / "caches/refs%pull%1%merge").glob("*/kept-*")

    of_pull = restored(world, kept.name, "refs/pull/1/merge", tmp_path)
    of_main = restored(world, kept.name, "refs/heads/main", tmp_path)

    assert (of_pull, (tmp_path / "kept/number.txt").read_text()) == (f"Cache restored from key: {kept.name}\n", "3\n")
    assert of_main == f"Cache not found for input keys: {kept.name}\n"


def restored(world: World, key: str, ref: str, folder: Path) -> str:
    """Return what the stand-in for the cache says to a run on a ref."""
    (folder / "event.json").write_text("{}")
    files = {name: str(folder / name) for name in ("GITHUB_OUTPUT", "GITHUB_STATE")}
    files |= {"GITHUB_EVENT_PATH": str(folder / "event.json"), "GITHUB_WORKSPACE": str(folder)}
    inputs = {"INPUT_KEY": key, "INPUT_PATH": "kept", "GITHUB_REF": ref, "PYTHONPATH": str(STAND_INS)}
    caches = {"STAND_INS_CACHES": str(world.folder / "caches")}
    return world.owner.project.done(sys.executable, STAND_INS / "cache/main.py", **files, **inputs, **caches)


def test_dispatches_and_merge_groups_run_on_their_own_ref(world: World, smaller: PullRequest) -> None:
    branch, queued = world.dispatch("where.yml", ref="be-smaller"), world.merge_group(smaller)

    by_hand, in_queue = world.run("where.yml", branch), world.run("where.yml", queued)

    head, merged = smaller.record.sha, smaller.record.merge_sha
    assert by_hand.log("tell") == f"event=workflow_dispatch ref=refs/heads/be-smaller sha={head} head={head}\n"
    assert in_queue.log("tell") == f"event=merge_group ref={queued.ref} sha={merged} head={merged}\n"


def test_a_tag_is_checked_out_with_all_of_the_repository_and_stays_annotated(opened: World) -> None:
    opened.change({"number.txt": "8\n"}, "Be larger")
    opened.owner.git("tag", "--annotate", "--message", "Second", "v2", "main")
    opened.owner.git("push", "--quiet", "--no-verify", "origin", "v2")

    run = opened.run("tagged.yml", opened.push("refs/tags/v2"))

    main = opened.repository.resolve("main")
    assert run.jobs == {"tell": "success"}, run.faults
    assert f"ref=refs/tags/v2 head={main} tag=tag branches=2" in run.log("tell")


def test_the_token_of_a_job_may_do_what_its_job_grants(world: World, smaller: PullRequest) -> None:
    run = world.run("rights.yml", smaller.event())

    assert run.step("reader", "Tell").log == "secret=*** variable=blue actor=octocat\n"
    assert run.steps("reader")["Push"] == run.steps("reader")["Comment"] == "failure"
    assert "403" in run.step("reader", "Push").log
    assert "Resource not accessible by integration" in run.step("reader", "Comment").log
    assert [*run.steps("writer").values()][:4] == ["success"] * 4
    assert [*world.refs("refs/dvc")] == ["refs/dvc/md5/by-writer"]
    assert world.comments(smaller)[-1].login == "github-actions[bot]"
    assert world.started() == [("checks.yml", "main")]


def test_a_fork_has_neither_secrets_nor_variables_and_a_token_that_only_reads(world: World, first: Run) -> None:
    fork = world.fork("stranger")
    pull = world.pull_request(fork.change({"number.txt": "9\n"}, "Be larger"))

    run = world.run("rights.yml", pull.event())

    assert run.step("reader", "Tell").log == "secret=none variable=none actor=stranger\n"
    assert run.steps("writer")["Push"] == run.steps("writer")["Comment"] == "failure"
    assert ask(world.github, f"/repos/{world.repository.name}/actions/runs/{run.id}")[1]["pull_requests"] == []


def test_dependabot_has_no_secrets_and_a_token_that_only_reads(world: World, first: Run) -> None:
    pull = world.pull_request(world.change({"number.txt": "8\n"}, "Bump"), login="dependabot[bot]")

    run = world.run("rights.yml", pull.event())

    assert run.step("reader", "Tell").log == "secret=none variable=blue actor=dependabot[bot]\n"
    assert run.steps("writer")["Push"] == "failure"


def test_a_report_takes_the_artifact_through_the_api_and_is_edited_in_place(opened: World) -> None:
    pull = opened.pull_request(opened.change({"number.txt": "3\n"}, "Be smaller"))
    run = uploaded(opened, pull)

    reports = [opened.report(run), opened.report(run)]

    assert [each.jobs for each in reports] == [{"comment": "success", "app": "skipped"}] * 2
    (comment,) = opened.comments(pull)
    assert comment.body.startswith("7\none\n\n\n![](https://cml.dev/watermark.png#")
    assert [call.status for call in opened.calls("PATCH", "issues/comments")] == [200]
    assert [call.status for call in opened.calls("GET", "/zip$")] == [302, 302]


def test_cml_does_not_find_its_comment_behind_thirty_others(opened: World) -> None:
    pull = opened.pull_request(opened.change({"number.txt": "3\n"}, "Be smaller"))
    run = uploaded(opened, pull)
    for number in range(30):
        opened.comment(pull, f"comment {number}")

    opened.report(run)
    opened.report(run)

    assert len(opened.comments(pull)) == 32


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "--publish is on"),
        (("--publish=false", "--edit"), "unrecognized arguments: --edit"),
        (("--publish=false", "--target=commit/abc"), "not on commit/abc"),
        (("--publish=false", "--rm-watermark"), "watermarks are mandatory"),
        (("--publish=false", "--token=unknown", "--target=pr/1"), "Bad credentials"),
    ],
    ids=["publish", "unknown flag", "target", "no watermark", "token"],
)
def test_cml_refuses(world: World, arguments: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("hello")
    words = [sys.executable, STAND_INS / "setup-cml/cml.py", "comment", "update", *arguments, tmp_path / "report.md"]
    environment = {"REPO_TOKEN": "x", "NODE_EXTRA_CA_CERTS": str(world.owner.certificates)}

    result = world.owner.project.run(*words, **environment)

    assert result.returncode != 0
    assert expected in result.stderr


def test_an_action_that_is_missing_fails_its_step(opened: World) -> None:
    pull = opened.pull_request(opened.change({"number.txt": "3\n"}, "Be smaller"))
    run = uploaded(opened, pull)

    report = opened.report(run, missing=("setup-cml",))

    assert report.step("comment", "iterative/setup-cml").outcome == "failure"
    assert report.jobs["comment"] == "success"
    assert [comment.body for comment in opened.comments(pull)] == ["7\none\n"]
    with pytest.raises(AssertionError, match="no action stands in for"):
        opened.report(run, missing=("cml",))


def test_checkout_refuses_the_code_of_a_fork_in_a_trusted_workflow(opened: World) -> None:
    pull = opened.pull_request(opened.fork("stranger").change({"number.txt": "9\n"}, "Be larger"))
    run = uploaded(opened, pull)

    for ref in (pull.record.sha, "refs/pull/1/merge"):
        opened.variables["CHECK_OUT"] = ref
        report = opened.report(run)

        assert report.steps("comment")[CHECKOUT] == "failure"
        assert "Refusing to check out fork pull request code" in report.log("comment")


def test_an_app_pushes_what_starts_workflows_and_a_wrong_key_gets_no_token(opened: World) -> None:
    opened.github.apps["Iv1"] = ("a key", {"contents": "write"})
    opened.variables["APP"], opened.secrets["APP_KEY"] = "Iv1", "a key"
    run = opened.cancelled("checks.yml", opened.push())

    opened.report(run)
    opened.secrets["APP_KEY"] = "another"
    refused = opened.report(run)

    assert opened.started() == [("push", "refs/heads/by-app")]
    assert refused.jobs["app"] == "failure"
    assert "A JSON web token could not be decoded" in refused.log("app")


def test_a_python_that_the_runner_does_not_have_fails(opened: World) -> None:
    branch = opened.change({".python-version": "3.7\n"}, "Use an old Python")

    run = opened.run("checks.yml", opened.push(f"refs/heads/{branch.name}"))

    assert run.jobs["build"] == "failure"
    assert "The version '3.7' with architecture 'x64' was not found." in run.log("build")


def test_a_label_without_a_runner_is_no_success(opened: World) -> None:
    workflow = opened.owner.project / ".github/workflows/checks.yml"
    branch = opened.change({".github/workflows/checks.yml": workflow.read_text().replace("24.04", "99.04")}, "Move")

    with pytest.raises(AssertionError, match="nsupported platform"):
        opened.run("checks.yml", opened.push(f"refs/heads/{branch.name}"))


def test_a_workflow_that_is_none_is_no_success(opened: World) -> None:
    workflow = opened.owner.project / ".github/workflows/checks.yml"
    branch = opened.change({".github/workflows/checks.yml": workflow.read_text().replace("steps:", "step:")}, "Err")

    with pytest.raises(AssertionError, match="step"):
        opened.run("checks.yml", opened.push(f"refs/heads/{branch.name}"))


def test_a_run_again_has_the_same_number_and_new_artifacts(world: World, failed: Run) -> None:
    again = world.run("checks.yml", failed.event, again=failed)
    cancelled = world.cancelled("checks.yml", failed.event)

    assert (again.id, again.record.attempt, again.jobs) == (failed.id, 2, failed.jobs)
    assert again.artifacts == ["plain", "some"]
    assert (cancelled.record.conclusion, set(cancelled.jobs.values())) == ("cancelled", {"cancelled"})


def test_some_jobs_of_a_run_are_run_again_with_what_the_others_said(world: World, failed: Run) -> None:
    own = world.run("checks.yml", failed.event)
    alone = world.run("checks.yml", failed.event, again=own, only=("receive",))
    given = world.run("checks.yml", failed.event, again=own, only=("receive",), given={"build": {"number": "9"}})
    rebuilt = world.run("checks.yml", failed.event, again=own, only=("build",))

    assert alone.jobs == {"build": "success", "receive": "failure"}
    assert given.jobs == {"build": "success", "receive": "success"}
    assert "number is 3" in alone.log("receive")
    assert "number is 9" in given.log("receive")
    assert (alone.id, given.id, given.record.attempt) == (own.id, own.id, 3)
    assert given.artifacts == ["plain", "some"]
    assert (rebuilt.jobs, rebuilt.artifacts) == ({"build": "success"}, given.artifacts)


def test_the_api_knows_the_jobs_of_a_run(world: World, failed: Run) -> None:
    where = f"/repos/{world.repository.name}/actions/runs/{failed.id}"

    status, run, _ = ask(world.github, where)
    _, jobs, _ = ask(world.github, f"{where}/jobs?per_page=100")

    assert (status, run["conclusion"], run["event"]) == (200, "failure", "pull_request")
    assert {job["name"]: job["conclusion"] for job in jobs["jobs"]} == failed.jobs
    assert jobs["total_count"] == 7


def test_a_listing_comes_in_pages_with_links(world: World, smaller: PullRequest) -> None:
    for number in range(65):
        world.comment(smaller, f"comment {number}")
    where = f"/repos/{world.repository.name}/issues/{smaller.number}/comments"

    _, page, headers = ask(world.github, where)
    _, whole, _ = ask(world.github, f"{where}?per_page=100")
    _, last, ends = ask(world.github, f"{where}?per_page=30&page=3", prefix="")

    assert (len(page), len(whole)) == (30, len(world.comments(smaller)))
    assert 'page=2>; rel="next"' in headers["Link"]
    assert [each["id"] for each in whole[60:90]] == [each["id"] for each in last]
    assert 'rel="next"' not in ends["Link"]


def test_a_pull_request_is_found_by_its_head(world: World, smaller: PullRequest) -> None:
    where = f"/repos/{world.repository.name}"

    _, found, _ = ask(world.github, f"{where}/pulls?head=octocat:be-smaller&state=open")
    _, none, _ = ask(world.github, f"{where}/pulls?head=stranger:be-smaller")
    _, of_commit, _ = ask(world.github, f"{where}/commits/{smaller.record.sha}/pulls")
    _, files, _ = ask(world.github, f"{where}/pulls/1/files")

    assert (
        [pull["head"]["sha"] for pull in found] == [smaller.record.sha] == [pull["head"]["sha"] for pull in of_commit]
    )
    assert none == []
    assert files == [{"filename": "number.txt", "status": "modified"}]


def test_the_storage_behind_an_artifact_refuses_the_token_of_the_api(world: World, first: Run) -> None:
    reader = world.github.token("reader", {"actions": "read"}, world.repository.name)
    where = f"/repos/{world.repository.name}/actions"
    artifact = ask(world.github, f"{where}/runs/{first.id}/artifacts")[1]["artifacts"][0]

    status, _, headers = ask(world.github, f"{where}/artifacts/{artifact['id']}/zip", reader)

    assert status == 302
    assert ask(world.github, headers["Location"])[0] == 200
    assert ask(world.github, headers["Location"], reader)[0] == 401
    assert ask(world.github, f"{where}/artifacts/{artifact['id']}/zip")[0] == 401


def test_what_a_caller_may_not_do_is_refused_as_at_github(world: World, smaller: PullRequest) -> None:
    name = world.repository.name
    reader = world.github.token("reader", {"contents": "read", "issues": "read"}, name)
    stranger = world.github.token("writer", {"*": "write"}, "octocat/another")
    comment = {"body": "hello"}

    assert ask(world.github, f"/repos/{name}/issues/1/comments", reader, comment)[0] == 403
    assert ask(world.github, f"/repos/{name}/issues/1/comments", stranger, comment)[0] == 403
    assert ask(world.github, f"/repos/{name}/issues/1/comments", None, comment)[0] == 401
    assert ask(world.github, f"/repos/{name}", fake.Token("unknown", "x", {}))[0] == 401
    assert ask(world.github, f"/repos/{name}/nothing", reader)[1]["message"] == "Not Found"
    call = world.calls("POST", "comments")[-1]
    assert (call.body, call.token, call.status) == (comment, None, 401)


def test_a_comment_that_is_too_long_is_refused(world: World, smaller: PullRequest) -> None:
    where = f"/repos/{world.repository.name}/issues/1/comments"

    status, said, _ = ask(world.github, where, world.owner.token, {"body": "x" * 65_537})

    assert (status, said["message"]) == (422, "Validation Failed")


def test_a_deployment_that_succeeds_makes_the_older_one_inactive(opened: World) -> None:
    github, where = opened.github, f"/repos/{opened.repository.name}/deployments"
    writer = github.token("octocat", {"deployments": "write"}, opened.repository.name)
    body = {"ref": "main", "environment": "production", "task": "promote", "payload": {"a": 1}}

    made = [ask(github, where, writer, body)[1]["id"] for _ in range(2)]
    for number in made:
        assert ask(github, f"{where}/{number}/statuses", writer, {"state": "success"})[0] == 201

    listed = ask(github, f"{where}?environment=production&task=promote", writer)[1]
    assert [(one["id"], one["payload"]) for one in listed] == [(number, {"a": 1}) for number in reversed(made)]
    states = [ask(github, f"{where}/{number}/statuses", writer)[1][0]["state"] for number in made]
    assert states == ["inactive", "success"]
    assert ask(github, f"{where}?environment=staging", writer)[1] == []
    assert ask(github, f"{where}/{made[0]}/statuses", writer, {"state": "fine"})[0] == 422
    assert ask(github, where, github.token("grace", {"deployments": "read"}), body)[0] == 403


def test_issues_are_found_by_label_and_state(opened: World) -> None:
    github, where = opened.github, f"/repos/{opened.repository.name}/issues"
    writer = github.token("octocat", {"issues": "write"}, opened.repository.name)
    made = [ask(github, where, writer, {"title": name, "labels": [name]})[1]["number"] for name in ("a", "b")]
    pull = opened.pull_request(opened.change({"number.txt": "3\n"}, "Be smaller"))

    assert len({*made, pull.number}) == 3
    assert [one["number"] for one in ask(github, f"{where}?labels=b&state=open", writer)[1]] == [made[1]]
    assert ask(github, f"{where}/{made[1]}", writer, {"state": "closed"}, method="PATCH")[1]["state"] == "closed"
    assert ask(github, f"{where}?labels=b&state=open", writer)[1] == []
    listed = {one["number"]: "pull_request" in one for one in ask(github, f"{where}?state=all", writer)[1]}
    assert listed == {made[0]: False, made[1]: False, pull.number: True}


def test_a_release_is_seen_once_it_is_published_and_takes_each_file_once(opened: World) -> None:
    github, where = opened.github, f"/repos/{opened.repository.name}/releases"
    writer = github.token("octocat", {"contents": "write"}, opened.repository.name)
    opened.owner.git("tag", "--annotate", "--message", "First", "v1")
    opened.owner.git("push", "--quiet", "--no-verify", "origin", "v1")
    pull = opened.pull_request(opened.change({"number.txt": "3\n"}, "Be smaller"))
    opened.merge(pull)
    asked = {"tag_name": "v2", "target_commitish": "main", "previous_tag_name": "v1"}
    assert "be-smaller" in ask(github, f"{where}/generate-notes", writer, asked)[1]["body"]

    draft = ask(github, where, writer, {"tag_name": "v1", "name": "One", "draft": True})[1]

    address = f"{draft['upload_url'].partition('{')[0]}?name=a.txt"
    assert ask(github, address, writer, {"any": 1})[0] == 201
    assert ask(github, address, writer, {"any": 1})[0] == 422
    assert ask(github, address, None, {"any": 1})[0] == 403
    assert ask(github, where)[1] == []
    assert ask(github, f"{where}/{draft['id']}", writer, {"draft": False}, method="PATCH")[0] == 200
    (seen,) = ask(github, where)[1]
    assert [file["name"] for file in seen["assets"]] == ["a.txt"]


def test_an_attestation_needs_its_right_and_a_plan_that_has_it(opened: World) -> None:
    github, where = opened.github, f"/repos/{opened.repository.name}/attestations"
    writer = github.token("octocat", {"attestations": "write"}, opened.repository.name)

    assert ask(github, where, writer, {"bundle": {}})[0] == 201
    assert ask(github, where, github.token("grace", {"contents": "write"}), {"bundle": {}})[0] == 403
    opened.repository.private = True
    assert ask(github, where, writer, {"bundle": {}})[0] == 403


def test_settings_and_rulesets_are_kept_for_who_may_administer(opened: World) -> None:
    where, owner = f"/repos/{opened.repository.name}", opened.owner.token
    writer = opened.github.token("writer", {"contents": "write"}, opened.repository.name)
    ruleset = {"name": "main", "rules": [{"type": "non_fast_forward"}]}

    refused, _, _ = ask(opened.github, f"{where}/rulesets", writer, ruleset)
    made, known, _ = ask(opened.github, f"{where}/rulesets", owner, ruleset)
    put, _, _ = ask(opened.github, f"{where}/actions/permissions/workflow", owner, {"a": 1}, method="PUT")

    assert (refused, made, put) == (403, 201, 204)
    assert opened.repository.rulesets == {known["id"]: known}
    assert ask(opened.github, f"{where}/actions/permissions/workflow", owner)[1] == {"a": 1}
    assert ask(opened.github, f"{where}/rulesets", owner, ruleset)[0] == 422


def test_a_private_repository_is_not_found_by_a_stranger(opened: World) -> None:
    opened.repository.private = True
    where = f"{opened.github.address}/{opened.repository.name}"

    assert ask(opened.github, f"/repos/{opened.repository.name}")[0] == 404
    assert ask(opened.github, f"{where}/info/refs?service=git-upload-pack")[0] == 401
    assert ask(opened.github, f"/repos/{opened.repository.name}", opened.owner.token)[0] == 200


def test_twenty_pushes_of_hidden_refs_at_once_all_arrive(opened: World) -> None:
    def push(number: int) -> None:
        opened.owner.git("push", "--quiet", "--no-verify", "origin", f"HEAD:refs/dvc/md5/{number:032x}")

    with ThreadPoolExecutor(20) as writers:
        list(writers.map(push, range(20)))

    assert len(opened.refs("refs/dvc/md5")) == 20
    assert len([each for each in opened.github.pushes if each.ref.startswith("refs/dvc/")]) == 20
    assert opened.owner.git("ls-remote", "origin", "refs/dvc/md5/*").count("refs/dvc/md5/") == 20


def test_nobody_pushes_to_the_refs_of_pull_requests(opened: World) -> None:
    opened.pull_request(opened.change({"number.txt": "3\n"}, "Be smaller"))

    result = opened.owner.project.run(
        "git", "push", "origin", "HEAD:refs/pull/1/head", GIT_SSL_CAINFO=str(opened.owner.certificates)
    )

    assert "deny updating a hidden ref" in result.stderr
    assert opened.owner.git("fetch", "--quiet", "origin", "refs/pull/1/merge") == ""


def address_of_a_run(world: World) -> str:
    """Return where git pushes with the token of a run that may write contents."""
    token = world.github.token(fake.WORKFLOW_LOGIN, {"contents": "write"}, world.repository.name, "workflow")
    return f"{world.github.address.replace('//', f'//x:{token.value}@')}/{world.repository.name}"


def test_the_token_of_a_run_does_not_change_workflows(opened: World) -> None:
    address = address_of_a_run(opened)
    opened.change({"number.txt": "3\n"}, "Be smaller")
    opened.owner.git("push", "--quiet", "--no-verify", address, "HEAD:refs/heads/numbers")

    opened.owner.change({".github/workflows/rights.yml": ("name: Rights", "name: Wrongs")}, "Rename", push=False)
    refused = tried(opened, "push", address, "HEAD:refs/heads/workflows")

    assert [*opened.refs("refs/heads")] == ["refs/heads/be-smaller", "refs/heads/main", "refs/heads/numbers"]
    assert "without `workflows` permission" in refused.stderr


def test_the_token_of_a_run_tags_no_commit_whose_workflows_no_branch_has_any_more(opened: World) -> None:
    address = address_of_a_run(opened)
    before = opened.repository.resolve("main")
    tried(opened, "push", address, f"{before}:refs/tags/same")
    opened.merge(
        opened.pull_request(opened.change({".github/workflows/rights.yml": ("name: Rights", "name: Wrongs")}, "R"))
    )

    refused = tried(opened, "push", address, f"{before}:refs/tags/old")
    tried(opened, "push", address, f"{before}:refs/tags/same")

    assert "without `workflows` permission" in refused.stderr
    assert [*opened.refs("refs/tags")] == ["refs/tags/same"]


def test_a_pull_request_follows_its_branch_and_one_that_conflicts_starts_nothing(opened: World) -> None:
    pull = opened.pull_request(opened.change({"number.txt": "3\n"}, "Be smaller"))
    other = opened.pull_request(opened.change({"number.txt": "4\n"}, "Be in between"))
    before = pull.record.sha

    opened.change({"number.txt": "2\n"}, "Be even smaller", name="be-smaller", base="be-smaller")
    event = opened.merge(pull)

    assert pull.record.sha != before
    assert (pull.record.state, event.payload["after"]) == ("closed", opened.repository.resolve("main"))
    assert opened.show("main", "number.txt") == "2"
    with pytest.raises(AssertionError, match="conflicts"):
        other.event()


def test_a_fault_is_answered_as_often_as_it_is_ordered(opened: World) -> None:
    opened.github.can("/info/refs", fake.Answer(503), times=1)

    broken = tried(opened, "ls-remote", "origin")

    assert "503" in broken.stderr
    assert "refs/heads/main" in opened.owner.git("ls-remote", "origin")


def test_a_job_has_its_environment_in_a_second_with_its_own_code_and_shares_only_packages(
    prepared: Project, tmp_path: Path
) -> None:
    before = state(prepared / ".venv")

    with World.open(tmp_path, prepared) as world:
        text = (HERE / "samples/.github/workflows/environment.yml").read_text()
        broken = {"src/ml/cli.py": "def main() -> None:\n    print('changed')\n"}
        branch = world.change({".github/workflows/environment.yml": text} | broken, "Change the code")
        run = world.run("environment.yml", world.push(f"refs/heads/{branch.name}"))

        assert run.jobs == {"code": "success"}
        workspace = run.step("code", "Where").log.strip()
        assert run.step("code", "Import").log == f"{workspace}/src/ml/__init__.py\n{workspace}/.venv\n"
        assert run.step("code", "Run").log == "changed\n"
        assert "installing" not in run.step("code", "make setup").log
        assert run.step("code", "Remove a package").outcome == "success"
        assert run.step("code", "Restore").seconds < 1
    assert state(prepared / ".venv") == before


def test_a_changed_lock_is_no_hit(prepared: Project, tmp_path: Path) -> None:
    with World.open(tmp_path, prepared) as world:
        text = (HERE / "samples/.github/workflows/environment.yml").read_text().replace("make setup", "ls .venv")
        lock = f"{(prepared / 'requirements/all.txt').read_text()}\n"
        edits = {".github/workflows/environment.yml": text, "requirements/all.txt": lock}
        run = world.run("environment.yml", world.push(f"refs/heads/{world.change(edits, 'Lock anew').name}"))

    assert "Cache not found" in run.step("code", "Restore").log
    assert run.step("code", "ls .venv").outcome == "failure"


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of all files; Python writes its caches when it likes."""
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize("name", ACTIONS)
def test_a_stand_in_has_inputs_and_outputs_of_the_real_action_only(name: str) -> None:
    (real,) = (about for action, about in REAL.items() if action.endswith(f"/{name}"))
    declared = act.load((STAND_INS / name / "action.yml").read_text())
    inputs = declared.get("inputs", {})

    assert set(inputs) <= set(real["inputs"])
    assert [key for key, about in inputs.items() if about.get("required")] == real["required"]
    assert set(declared.get("outputs", {})) <= set(real["outputs"])


@pytest.mark.parametrize("root", [ROOT / PRODUCT, HERE / "samples"], ids=["product", "samples"])
def test_a_workflow_uses_inputs_and_versions_that_its_stand_ins_have(root: Path) -> None:
    wrong = []
    for use, step in used_steps(root):
        action, ref = use.split("@")
        if action not in REAL:
            wrong.append(f"no real action's inputs for {action}")
            continue
        declared = act.load((act.stand_in(use) / "action.yml").read_text()).get("inputs", {})
        wrong += [f"{action} has no input {key}" for key in step.get("with", {}) if key not in REAL[action]["inputs"]]
        wrong += [
            f"the stand-in for {action} has no input {key}" for key in step.get("with", {}) if key not in declared
        ]
        wrong += [f"{action} needs {key}" for key in REAL[action]["required"] if key not in step.get("with", {})]
        if f"{ref} # {REAL[action]['pinned']}" not in texts(root):
            wrong.append(f"{action}@{ref} is not {REAL[action]['pinned']}, whose inputs are known")

    assert wrong == []


def used_steps(root: Path) -> list[tuple[str, dict]]:
    documents = [act.load(file.read_text()) for file in files(root)]
    lists = [job.get("steps", []) for each in documents for job in each.get("jobs", {}).values()]
    lists += [each["runs"].get("steps", []) for each in documents if "runs" in each]
    return [(step["uses"], step) for steps in lists for step in steps if not step.get("uses", "./").startswith("./")]


def files(root: Path) -> list[Path]:
    return [*root.glob(".github/workflows/*.y*ml"), *root.glob(".github/actions/*/action.y*ml")]


def texts(root: Path) -> str:
    return "\n".join(file.read_text() for file in files(root))


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_scenario_that_did_not_execute_what_it_declares_fails(world: World, first: Run) -> None:
    def nothing(*, world: World) -> None:
        return

    executes("checks.yml", "build", "each")(nothing)(world=world)
    with pytest.raises(AssertionError, match="nightly"):
        executes("checks.yml", "build", "nightly")(nothing)(world=world)


def test_every_job_of_the_product_is_executed_by_a_scenario() -> None:
    assert undeclared() == set()


def test_a_job_that_no_scenario_declares_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    undeclared()  # so that the modules with scenarios have declared theirs already
    monkeypatch.setattr("world.PRODUCT_WORKFLOWS", HERE / "samples/.github/workflows")
    monkeypatch.setattr("world.DECLARED", {("checks.yml", "build"): {"one"}})

    assert ("checks.yml", "build") in product_jobs()
    assert undeclared() == product_jobs() - {("checks.yml", "build")}
