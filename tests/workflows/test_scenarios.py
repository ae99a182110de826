"""Ring 5: the product's workflows, executed for real: what a change starts, and what is told of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import github as fake
import picture
import pytest
from conftest import ROOT
from scenes import ALL, BEST, MODEL_RED, PULL, REPORT, UNCHANGED, blocked, objects, report_of, trust
from world import PullRequest, World, executes, undeclared

pytestmark = pytest.mark.slow


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
    # GitHub's "Re-run failed jobs" also runs what needs them.
    again = world.run(PULL, run.event, again=run, only=("model", "service", "report", "all-checks-pass"))
    world.report(again)

    assert again.jobs == ALL, again.faults
    assert "Approved: octocat" in report_of(world, pull).replace("`", "")


def approve(world: World, pull: PullRequest, login: str) -> None:
    pull.record.reviews.append(fake.Review(world.github.next_id(), login, "APPROVED", pull.record.sha))


def test_every_job_of_every_workflow_has_a_scenario_that_executes_it() -> None:
    assert undeclared() == set()
