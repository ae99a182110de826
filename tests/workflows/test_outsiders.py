"""Ring 5: forgers, forks, bots, hostile artifacts, new repositories, failing services: workflows, executed for real."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import github as fake
import pytest
from real import Project
from scenes import ALL, BEST, MODEL_RED, PULL, REPORT, UNCHANGED, Checked, blocked, forge, objects, report_of
from world import PullRequest, Run, World, executes

pytestmark = pytest.mark.slow


@pytest.fixture
def fresh(light: Project, tmp_path: Path) -> Iterator[World]:
    """A repository into which somebody pushed a bake, before anything was trained."""
    project = light.copy(tmp_path / "flight-delays")
    project.forget()
    project.commit("Bake")
    with World.open(tmp_path / "world", project, name="octocat/fresh") as world:
        yield world


@executes(PULL, "model")
def test_a_forged_lock_does_not_give_the_bytes_that_a_retrain_gives(world: World) -> None:
    pull = world.pull_request(forge(world))

    run = world.run(PULL, pull.event())

    assert run.jobs == MODEL_RED, run.faults
    assert "determinism" in blocked(run)
    assert "the retrain gives other bytes" in run.log("model")


@executes(PULL, "data", "model", "service")
@executes(REPORT, "comment", "store")
def test_a_fork_needs_no_secret_and_keeps_its_own_objects(world: World) -> None:
    world.secrets["DEPLOY_KEY"] = "not-for-forks"
    edits = {"params.yaml": ("max_leaf_nodes: 31", "max_leaf_nodes: 22")}
    branch = world.fork("mallory").change(edits, "From afar", before=("pipeline",), after=("push --yes",))
    pull = world.pull_request(branch)
    before, pushed = objects(world), len(world.github.pushes)

    run = world.run(PULL, pull.event())
    world.report(run)

    assert run.jobs == ALL, run.faults
    assert len(world.github.pushes) == pushed
    assert objects(world) == before
    assert "every gate passed" in report_of(world, pull)
    assert "not-for-forks" not in "".join(run.log(job) for job in run.jobs)

    main = world.run(PULL, world.merge(pull))
    stored = world.report(main)

    assert main.jobs["model"] == "failure"
    assert blocked(main) == {"lock"}
    assert stored.jobs == {"comment": "skipped", "commit-lock": "skipped", "store": "success"}
    assert objects(world) > before
    assert world.calls("POST", rf"actions/runs/{main.id}/rerun-failed-jobs")
    again = world.run(PULL, main.event, again=main, only=("model",))
    assert again.jobs == {"data": "success", "model": "success"}, again.faults


@executes(REPORT, "comment")
def test_more_than_thirty_comments_do_not_make_a_second_report(
    world: World, docs_only: tuple[PullRequest, Run]
) -> None:
    pull, run = docs_only
    for number in range(40):
        world.comment(pull, f"thought {number}", "grace")

    world.report(run)
    world.report(run)

    assert len([each for each in world.comments(pull) if each.login == fake.WORKFLOW_LOGIN]) == 1
    assert len(world.comments(pull)) == 41


@executes(REPORT, "comment")
def test_without_cml_the_report_is_posted_through_the_api(world: World) -> None:
    pull = world.pull_request(world.change({"README.md": "# No CML\n"}, "Lack CML"))
    run = world.run(PULL, pull.event())

    first = world.report(run, missing=("setup-cml",))
    second = world.report(run)

    assert first.jobs["comment"] == second.jobs["comment"] == "success"
    assert "CML" not in first.log("comment").splitlines()[-1]
    assert "all checks pass" in report_of(world, pull)


HOSTILE = """## ✅ Safe to merge: trust me

@octocat fixes #1 <img src=x onerror=alert(1)> ![x](http://evil.example/x.png) [click](http://evil.example)
<!-- ml-report run=99999999 attempt=1 -->
<script>alert(1)</script>
```
"""


def packed(files: dict[str, bytes]) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return held.getvalue()


def forged(world: World, like: Run, pull: PullRequest, artifact: bytes) -> Run:
    """Return a failed run of a pull request's head whose report is the given archive."""
    red = ("model", "all-checks-pass")
    jobs = [replace(job, conclusion="failure") if job.name in red else job for job in like.record.jobs]
    about = {"sha": pull.record.sha, "branch": pull.record.branch, "jobs": jobs}
    record = replace(like.record, id=world.github.next_id(), **about)
    world.repository.runs[record.id] = record
    folder = world.repository.artifacts_folder / str(record.id)
    folder.mkdir(parents=True)
    (folder / "report.zip").write_bytes(artifact)
    return replace(like, id=record.id, record=record)


@executes(REPORT, "comment")
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"review/report.md": HOSTILE.encode()}, "trust me"),
        ({"review/report.md": b"x" * 100_000_000}, "was not posted"),
        ({"../../report.md": b"out"}, "was not posted"),
        ({"number": b"1", "other.md": b"hello"}, "was not posted"),
    ],
    ids=["markup", "a hundred megabytes", "a path that leaves", "another file"],
)
def test_a_hostile_artifact_does_no_harm(
    world: World, docs_only: Checked, files: dict[str, bytes], expected: str, request: pytest.FixtureRequest
) -> None:
    title = f"Attack with {request.node.callspec.id}"
    pull = world.pull_request(world.change({"README.md": f"# {title}\n"}, title))
    run = forged(world, docs_only[1], pull, packed(files))

    report = world.report(run)

    assert report.jobs["comment"] == "success"
    text = report_of(world, pull)
    assert "❌ `model` not passed" in text.splitlines()[1]
    assert expected in text
    for bad in ("<img", "<script", "@octocat", "![x]", "http://evil", "<!-- ml-report run=99999999", "#1 "):
        assert bad not in text


@executes(REPORT, "comment")
def test_a_run_of_a_commit_that_is_no_longer_the_head_says_nothing(world: World) -> None:
    pull = world.pull_request(world.change({"README.md": "# One\n"}, "Push twice"))
    run = world.run(PULL, pull.event())
    world.change({"README.md": "# Two\n"}, "Push again", name=pull.record.branch, base=pull.record.branch)

    report = world.report(run)

    assert report.jobs["comment"] == "success"
    assert world.comments(pull) == []
    assert "nothing posted" in report.log("comment")


@executes(PULL, "data", "lint")
def test_a_variable_is_all_that_logs_in_to_a_cloud(world: World) -> None:
    world.variables |= {"AWS_ROLE_ARN": "arn:aws:iam::1:role/reader", "AWS_REGION": "eu-central-1"}
    pull = world.pull_request(world.change({"README.md": "# A bucket\n"}, "Use a bucket"))

    run = world.run(PULL, pull.event())

    assert (run.jobs["lint"], run.jobs["data"], run.jobs["all-checks-pass"]) == ("success", "failure", "failure")
    logins = {name.split("/")[-1].split("@")[0]: said for name, said in run.steps("data").items() if "@" in name}
    assert logins["configure-aws-credentials"] == "failure"
    assert {logins.get("auth", "skipped"), logins.get("login", "skipped")} == {"skipped"}


@executes(PULL, "data", "report")
def test_a_storage_that_does_not_answer_is_red_and_told(world: World) -> None:
    fork = world.fork("trent")
    pull = world.pull_request(fork.change({"README.md": "# Away\n"}, "Go away"))
    world.github.can(rf"{fork.repository.name}(\.git)?/info/refs", fake.Answer(503), times=100)

    run = world.run(PULL, pull.event())
    world.report(run)

    assert run.jobs["data"] == "failure"
    assert run.jobs["all-checks-pass"] == "failure"
    assert run.jobs["report"] == "success"
    assert "no verdict was reached" in report_of(world, pull)
    assert [each for each in run.annotations if each.level == "error" and "cannot be listed" in each.message]


@executes(PULL, "data", "model", "report")
def test_a_pull_request_that_deletes_the_lock_is_red(world: World) -> None:
    pull = world.pull_request(world.change({"dvc.lock": None}, "Delete the model"))

    run = world.run(PULL, pull.event())

    assert run.jobs["model"] == "failure"
    assert run.jobs["all-checks-pass"] == "failure"
    assert "lock" in blocked(run)


@executes(PULL, "lint", "data")
def test_dependabot_drafts_and_the_merge_queue_are_checked_alike(world: World) -> None:
    branch = world.change({"README.md": "# Bump\n"}, "Bump a version")
    bump = world.pull_request(branch, login="dependabot[bot]", draft=True)

    run = world.run(PULL, bump.event())
    queued = world.run(PULL, world.merge_group(bump))
    world.report(run)

    assert run.jobs == queued.jobs == UNCHANGED, run.faults + queued.faults
    assert "all checks pass" in report_of(world, bump)


@executes(PULL, "data", "test", "model", "service", "report", "all-checks-pass")
def test_the_first_push_of_a_new_repository_is_green_without_a_lock(fresh: World) -> None:
    run = fresh.run(PULL, fresh.push())

    assert run.jobs == ALL, run.faults
    assert {"data", "trained", "report"} <= set(run.artifacts)
    assert run.log("data").count("Running stage 'ingest") == 3
    assert "Running stage 'ingest" not in run.log("model")
    assert objects(fresh) == set()

    pull = fresh.pull_request(fresh.change({"params.yaml": BEST}, "First change"))
    checked = fresh.run(PULL, pull.event())
    fresh.report(checked)

    assert checked.jobs == ALL, checked.faults
    assert "the first model" in report_of(fresh, pull)
