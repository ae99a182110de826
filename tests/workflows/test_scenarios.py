"""Ring 5: the product's workflows, executed for real on a small project: what must run, what must be told to whom.

One world serves all scenarios of this file, each on branches of its own; main moves only where a scenario says so.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import github as fake
import picture
import pytest
from conftest import ROOT, require
from real import Project
from world import PullRequest, Run, World, executes, undeclared

pytestmark = pytest.mark.slow
PULL, REPORT = "pull-request.yml", "report.yml"
# A scenario's own tests and load test are few, and one machine loads itself: nothing is to be learned of speed here.
LIGHTER = {
    "starts": "3",
    "rounds": "1",
    "budget": "1",
    "p50": "100",
    "p95": "100",
    "p99": "100",
    "throughput": "0.01",
    "p99_ms": "30000",
}
KEPT_TESTS = ("test_docs.py",)
BEST = ("max_leaf_nodes: 31", "max_leaf_nodes: 24")
ALL = {
    "lint": "success",
    "data": "success",
    "test": "success",
    "model": "success",
    "service": "success",
    "report": "success",
    "all-checks-pass": "success",
}
UNCHANGED = ALL | {"model": "skipped", "service": "skipped"}
MODEL_RED = ALL | {"model": "failure", "service": "skipped", "all-checks-pass": "failure"}


Checked = tuple[PullRequest, Run]


def docker(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([require("docker"), *words], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def light(judged: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A trained project whose checks are quick, with the layers of its image built, so that no job needs a network."""
    if docker("info").returncode:
        (pytest.fail if os.environ.get("REQUIRE_ALL") else pytest.skip)("docker does not answer")
    project = judged.copy(tmp_path_factory.mktemp("light") / "flight-delays")
    for path in (project / "tests").rglob("test_*.py"):
        if path.name not in KEPT_TESTS:
            path.unlink()
    text = (project / "params.yaml").read_text()
    for name, value in LIGHTER.items():
        text, changed = re.subn(rf"(?m)^( +{name}: )[\d.]+", rf"\g<1>{value}", text)
        assert changed == 1, name
    (project / "params.yaml").write_text(text)
    version = (project / ".venv/.stamp").read_text().split(".")[1]
    (project / ".python-version").write_text(f"3.{version}\n")
    project.commit("Check quickly")
    base = os.environ.get("BASE_IMAGE")
    project.done("make", "image", f"ARGS=--network host{f' --base {base}' if base else ''}")
    if base:
        assert docker("tag", base, f"python:3.{version}-slim").returncode == 0
    return project


@pytest.fixture(scope="module")
def opened(light: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World.open(tmp_path_factory.mktemp("world"), light, after=("push --yes",)) as world:
        yield world


@pytest.fixture
def world(opened: World) -> Iterator[World]:
    """The world with no variable set and no run of another scenario."""
    kept = opened.runs
    opened.runs, opened.variables, opened.secrets = [], {}, {}
    yield opened
    opened.runs = [*kept, *opened.runs]
    opened.owner.git("checkout", "--quiet", "--force", "main")


@pytest.fixture(scope="module")
def docs_only(opened: World) -> Checked:
    """The checks of a change to prose, of which report.yml can tell."""
    pull = opened.pull_request(opened.change({"README.md": "# Flights\n"}, "Say less"))
    return pull, opened.run(PULL, pull.event())


def report_of(world: World, pull: PullRequest) -> str:
    """Return the one comment that the workflows wrote."""
    (comment,) = [each for each in world.comments(pull) if each.login == fake.WORKFLOW_LOGIN]
    return comment.body


def objects(world: World) -> set[str]:
    return {*world.refs("refs/dvc/md5")}


@executes(PULL, "lint", "data", "test", "report", "all-checks-pass")
@executes(REPORT, "comment")
def test_a_change_to_prose_costs_the_lock_check_and_is_told(world: World) -> None:
    pull = world.pull_request(world.change({"README.md": "# Late?\n"}, "Ask"))

    run = world.run(PULL, pull.event())
    world.report(run)

    assert run.jobs == UNCHANGED, run.faults
    assert run.artifacts == ["report"]
    text = report_of(world, pull)
    assert "✅ all checks pass" in text.splitlines()[1]
    assert "## ✅ Safe to merge: the model does not change" in text
    assert "README.md" in text


@executes(PULL, "model", "service")
def test_a_good_change_is_retrained_load_tested_and_told_in_one_comment(world: World, tmp_path: Path) -> None:
    branch = world.change({"params.yaml": BEST}, "Fewer leaves", before=("pipeline",), after=("push",))
    pull = world.pull_request(branch)

    run = world.run(PULL, pull.event())
    world.report(run)
    world.report(run)

    assert run.jobs == ALL, run.faults
    assert run.artifacts == ["report", "review-model", "review-service"]
    ran = run.log("model")
    assert "Running stage" not in ran
    assert "the retrain gives the committed bytes" in ran
    verdict = json.loads((run.artifact("report") / "review/verdict.json").read_text())
    said = {result["gate"]: result["status"] for result in verdict["results"]}
    assert set(said.values()) == {"passed"}
    assert {"determinism", "service", "image", "lock"} <= set(said)
    assert "times the baseline's" in run.log("service")
    text = report_of(world, pull)
    assert f"run={run.id} attempt=1" in text
    assert "## ✅ Safe to merge: every gate passed" in text
    assert all("Safe to merge" in run.summary(job) for job in ("model", "report"))
    target = ROOT / "docs/pull-request.png" if os.environ.get("REWRITE") else tmp_path / "pull-request.png"
    picture.draw(run.jobs, text, target, tmp_path)
    assert target.stat().st_size > 50_000


@executes(PULL, "model", "report")
def test_a_lock_that_its_author_left_stale_is_trained_here_and_can_be_taken(world: World) -> None:
    pull = world.pull_request(world.change({"params.yaml": BEST}, "Forget to train"))
    before = objects(world)

    run = world.run(PULL, pull.event())
    world.report(run)

    assert run.jobs == MODEL_RED, run.faults
    assert "trained" in run.artifacts
    stages = [line for line in run.log("model").splitlines() if line.startswith("Running stage")]
    assert [stage.split("'")[1] for stage in stages] == ["train", "evaluate", "repeat"]
    assert "lock failed" in report_of(world, pull)
    assert "make take" in report_of(world, pull)
    assert "dvc.lock" in {each.file for each in run.annotations if each.level == "error"}
    assert objects(world) == before

    owner = world.owner
    owner.project.done("make", "take", GITHUB_API_URL=world.github.api, GH_TOKEN=owner.token.value, **trust(world))
    owner.git("commit", "--quiet", "--no-verify", "--all", "--message", "Take it")
    owner.make("push")
    owner.git("push", "--quiet", "--no-verify", "origin", "HEAD")
    taken = world.run(PULL, pull.event("synchronize"))

    assert taken.jobs == ALL, taken.faults
    assert "the retrain gives the committed bytes" in taken.log("model")


def trust(world: World) -> dict[str, str]:
    found = str(world.owner.certificates)
    return {"GIT_SSL_CAINFO": found, "SSL_CERT_FILE": found, "REQUESTS_CA_BUNDLE": found}


@executes(PULL, "all-checks-pass")
@executes(REPORT, "commit-lock")
def test_with_commit_lock_the_trained_result_is_published_committed_and_checked(world: World) -> None:
    world.variables["COMMIT_LOCK"] = "true"
    pull = world.pull_request(
        world.change({"params.yaml": ("max_leaf_nodes: 31", "max_leaf_nodes: 20")}, "Let CI train")
    )
    before, head = objects(world), pull.record.sha

    run = world.run(PULL, pull.event())
    report = world.report(run)

    assert run.jobs == MODEL_RED, run.faults
    assert report.jobs == {"comment": "success", "commit-lock": "success", "store": "skipped"}
    made = world.repository.resolve(f"refs/heads/{pull.record.branch}")
    changed = world.repository.git("diff", "--name-only", head, made).split()
    assert "dvc.lock" in changed
    assert all(path == "dvc.lock" or path.startswith("reports/") for path in changed)
    assert objects(world) > before
    assert (PULL, pull.record.branch) in [(file, ref.removeprefix("refs/heads/")) for file, ref in world.started()]

    checked = world.run(PULL, world.dispatch(PULL, pull.record.branch, actor=fake.WORKFLOW_LOGIN))
    world.report(checked)

    assert checked.jobs == ALL, checked.faults
    assert f"run={checked.id}" in report_of(world, pull)


def blocked(run: Run) -> set[str]:
    verdict = json.loads((run.artifact("report") / "review/verdict.json").read_text())
    return {result["gate"] for result in verdict["results"] if result["status"] in ("failed", "not judged")}


@executes(PULL, "model", "report")
def test_a_weaker_model_is_red_and_told(world: World) -> None:
    edits = {"params.yaml": ("max_iter: 30", "max_iter: 1")}
    pull = world.pull_request(world.change(edits, "Weaken", before=("pipeline",), after=("push",)))

    run = world.run(PULL, pull.event())
    world.report(run)

    assert run.jobs == MODEL_RED, run.faults
    assert "harm" in blocked(run)
    assert "lock" not in blocked(run)
    assert "❌" in report_of(world, pull).splitlines()[1]
    assert "params.yaml" in {each.file for each in run.annotations}


@executes(PULL, "model", "report")
def test_a_looser_gate_is_red_until_a_code_owner_approves(world: World) -> None:
    edits = {"params.yaml": ("    error: 0.12", "    error: 0.5")}
    branch = world.change(edits, "Loosen")
    pull = world.pull_request(branch, login="mallory")

    run = world.run(PULL, pull.event())
    world.report(run)

    assert run.jobs == MODEL_RED, run.faults
    assert blocked(run) == {"gates"}
    assert "loosens the gates" in report_of(world, pull).split("##")[0]

    approve(world, pull, "octocat")
    again = world.run(PULL, pull.event("synchronize"), again=run)
    world.report(again)

    assert again.jobs["model"] == "success"
    assert "Approved: octocat" in report_of(world, pull).replace("`", "")


def approve(world: World, pull: PullRequest, login: str) -> None:
    pull.record.reviews.append(fake.Review(world.github.next_id(), login, "APPROVED", pull.record.sha))


@executes(PULL, "model")
def test_a_forged_lock_does_not_give_the_bytes_that_a_retrain_gives(world: World) -> None:
    place = world.owner
    place.git("checkout", "--quiet", "--force", "-B", "forge", "main")
    model = place.project / "models/model.onnx"
    forged = model.read_bytes().replace(b"skl2onnx", b"skl2Onnx")
    assert forged != model.read_bytes()
    model.unlink()
    model.write_bytes(forged)
    place.run("dvc", "commit", "--force", "train")
    place.git("commit", "--quiet", "--no-verify", "--all", "--message", "Write a lock by hand")
    branch = world.change({}, "Forge", name="forge", base="forge", before=("pipeline",), after=("push",))
    pull = world.pull_request(branch)

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
    again = world.run(PULL, main.event, again=main)
    assert again.jobs["model"] == "success"


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


@pytest.fixture
def fresh(light: Project, tmp_path: Path) -> Iterator[World]:
    """A repository into which somebody pushed a bake, before anything was trained."""
    project = light.copy(tmp_path / "flight-delays")
    project.forget()
    project.commit("Bake")
    with World.open(tmp_path / "world", project, name="octocat/fresh") as world:
        yield world


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


def test_every_job_of_every_workflow_has_a_scenario_that_executes_it() -> None:
    assert undeclared() == set()
