"""Ring 3: every workflow and action of both layers keeps the rules, and the rules bite."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PRODUCT, ROOT, require, run
from ruamel.yaml import YAML

LAYERS = (ROOT, ROOT / PRODUCT)
PINNED = re.compile(r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")
LOCAL = re.compile(r"uses: \./[\w./-]+$")
GRANT = re.compile(r"^\s+([a-z-]+): (read|write)\b(.*)$")
KEBAB = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
ONE_TARGET = re.compile(r"make [a-z-]+( [A-Z_]+=\S+)*")
NEVER_CANCELLED = {"deliver", "release", "retrain", "rollback", "monitor"}


def workflows() -> list[Path]:
    return [path for root in LAYERS for path in sorted((root / ".github" / "workflows").glob("*.y*ml"))]


def actions() -> list[Path]:
    return [path for root in LAYERS for path in sorted((root / ".github" / "actions").glob("*/action.y*ml"))]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix().replace(PRODUCT, "project")


def load(text: str) -> dict:
    return YAML(typ="safe").load(io.StringIO(text))


def steps_of(document: dict) -> Iterator[dict]:
    for job in document.get("jobs", {}).values():
        yield from job.get("steps", [])
    yield from document.get("runs", {}).get("steps", [])


def broken_pins(text: str) -> Iterator[str]:
    for line in text.splitlines():
        entry = line.strip().removeprefix("- ")
        if entry.startswith("uses:") and not PINNED.match(entry) and not LOCAL.match(entry):
            yield f"not pinned to a commit with its version as a comment: {entry}"


def broken_steps(document: dict) -> Iterator[str]:
    for step in steps_of(document):
        script = step.get("run", "")
        if "${{" in script:
            yield f"an expression in run, pass it through env: {script!r}"
        lines = script.strip().splitlines()
        if script and not ONE_TARGET.fullmatch(script.strip()) and len(lines) > 5:
            yield f"run is neither one make target nor at most five lines: {lines[0]!r}"
        if "actions/checkout@" in step.get("uses", "") and step.get("with", {}).get("persist-credentials") is not False:
            yield "checkout keeps its credentials"


def broken_grants(text: str, document: dict) -> Iterator[str]:
    if document.get("permissions") != {}:
        yield "permissions at the top are not {}"
    for name, job in document["jobs"].items():
        if not isinstance(job.get("permissions"), dict) or "contents" not in job["permissions"]:
            yield f"{name} does not write out its permissions with contents"
    for line in text.splitlines():
        grant = GRANT.match(line)
        if grant and (grant[1], grant[2]) != ("contents", "read") and not re.match(r"\s+# \S", grant[3]):
            yield f"a grant without its reason: {line.strip()}"


def broken_jobs(document: dict, name: str) -> Iterator[str]:
    for job_id, job in document["jobs"].items():
        if not KEBAB.fullmatch(job_id):
            yield f"{job_id} is not kebab-case"
        if "uses" not in job and "timeout-minutes" not in job:
            yield f"{job_id} has no timeout-minutes"
        runner = str(job.get("runs-on", "ubuntu-24.04"))
        if runner != "ubuntu-24.04" and "_RUNNER" not in runner:
            yield f"{job_id} runs on {runner}"
    if "pull_request" in document["on"]:
        *others, last = document["jobs"]
        if last != "all-checks-pass" or sorted(document["jobs"][last].get("needs", [])) != sorted(others):
            yield "the last job is not all-checks-pass, needing every other"
        elif document["jobs"][last].get("if") not in ("always()", "${{ always() }}"):
            yield "all-checks-pass does not run always, so a failure would skip it"
    concurrency = document.get("concurrency")
    if not concurrency:
        yield "no concurrency"
    elif name in NEVER_CANCELLED and concurrency.get("cancel-in-progress", False) is not False:
        yield f"{name} may be cancelled"


def broken_rules(text: str, name: str) -> list[str]:
    document = load(text)
    broken = [*broken_pins(text), *broken_steps(document), *broken_grants(text, document), *broken_jobs(document, name)]
    if not KEBAB.fullmatch(name) or len(document.get("name", "a b c d").split()) > 3:
        broken.append("file name is not kebab-case or name is longer than three words")
    return broken


@pytest.mark.parametrize("path", workflows(), ids=named)
def test_a_workflow_keeps_every_rule(path: Path) -> None:
    assert broken_rules(path.read_text(), path.stem) == []


def test_every_action_keeps_every_rule() -> None:
    broken = {
        named(path): [*broken_pins(path.read_text()), *broken_steps(load(path.read_text()))] for path in actions()
    }

    assert {name: rules for name, rules in broken.items() if rules} == {}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("permissions: {}", "permissions: read-all", "permissions at the top"),
        ("    permissions:\n      contents: read\n", "", "does not write out its permissions"),
        ("contents: read", "contents: read\n      issues: write", "a grant without its reason"),
        ("@3d3c42e5aac5ba805825da76410c181273ba90b1 # v7.0.1", "@v7", "not pinned"),
        (" # v7.0.1", "", "not pinned"),
        ("persist-credentials: false", "fetch-depth: 1", "checkout keeps its credentials"),
        ("    timeout-minutes: 10\n", "", "lint has no timeout-minutes"),
        ("ubuntu-24.04", "ubuntu-latest", "runs on ubuntu-latest"),
        ("make lint", "echo ${{ github.head_ref }}", "an expression in run"),
        (
            "make lint",
            "|\n          a\n          b\n          c\n          d\n          e\n          f",
            "at most five lines",
        ),
        ("needs: [lint, test]", "needs: [test]", "needing every other"),
        ("if: always()", "if: success()", "would skip it"),
        ("concurrency:", "env:", "no concurrency"),
        ("name: CI", "name: Checks of all sorts", "longer than three words"),
        ("  lint:", "  Lint_All:", "not kebab-case"),
    ],
    ids=lambda value: value if " " in value and len(value) > 40 else None,
)
def test_a_broken_rule_is_found(old: str, new: str, expected: str) -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()

    assert old in text
    assert [line for line in broken_rules(text.replace(old, new), "ci") if expected in line]


def test_a_release_that_could_be_cancelled_is_found() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()

    assert "release may be cancelled" in broken_rules(text, "release")


def test_actionlint_finds_nothing_in_either_layer() -> None:
    result = run(require("actionlint"), "-no-color", *workflows(), cwd=ROOT)

    assert result.returncode == 0, result.stdout + result.stderr


def test_zizmor_finds_nothing_in_either_layer() -> None:
    updates = [path for root in LAYERS if (path := root / ".github" / "dependabot.yml").exists()]
    audited = [*workflows(), *actions(), *updates]
    quietly = ("--offline", "--no-progress", "--color=never", "--persona=pedantic")

    result = run(require("zizmor"), *quietly, f"--config={ROOT / PRODUCT / '.github/zizmor.yml'}", *audited, cwd=ROOT)

    assert result.returncode == 0, result.stdout + result.stderr


def test_the_template_is_tested_on_every_python_that_it_supports() -> None:
    jobs = load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]

    assert jobs["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert [step["run"] for step in jobs["test"]["steps"] if "run" in step] == ["make test"]


def test_dependabot_watches_both_layers_weekly_in_groups_after_a_week() -> None:
    updates = load((ROOT / ".github" / "dependabot.yml").read_text())["updates"]

    watched = {update["package-ecosystem"]: update for update in updates}
    assert set(watched) == {"github-actions", "pip"}
    assert f"/{PRODUCT}/.github/workflows" in watched["github-actions"]["directories"]
    for update in updates:
        assert "/" in update["directories"]
        assert update["schedule"]["interval"] == "weekly"
        assert update["cooldown"]["default-days"] == 7
        assert len(update["groups"]) == 1


def product(name: str) -> dict:
    return load((ROOT / PRODUCT / ".github/workflows" / f"{name}.yml").read_text())


# What starts on a change that nobody has reviewed, so that its own code runs.
UNREVIEWED = {"pull_request", "merge_group"}


def rights_of(job: dict) -> set[str]:
    return {name for name, level in job["permissions"].items() if level == "write"}


def unsafe_jobs(document: dict) -> list[str]:
    """Return the jobs that run unreviewed code and may write or know a secret; a cloud's own rules bound id-token."""
    return [
        name
        for name, job in document["jobs"].items()
        if rights_of(job) - {"id-token"} or "secrets." in str(job) or job.get("secrets")
    ]


@pytest.mark.parametrize("path", [p for p in workflows() if UNREVIEWED & set(load(p.read_text())["on"])], ids=named)
def test_no_job_that_runs_unreviewed_code_may_write_or_knows_a_secret(path: Path) -> None:
    assert unsafe_jobs(load(path.read_text())) == []


@pytest.mark.parametrize(
    "change",
    [{"permissions": {"contents": "write"}}, {"env": {"KEY": "${{ secrets.KEY }}"}}, {"secrets": "inherit"}],
    ids=["a right", "a secret", "all secrets"],
)
def test_a_job_that_could_be_misused_is_found(change: dict) -> None:
    document = product("pull-request")
    document["jobs"]["model"] |= change

    assert unsafe_jobs(document) == ["model"]


def test_only_the_login_to_a_cloud_asks_for_an_identity_and_only_where_data_is_read() -> None:
    jobs = product("pull-request")["jobs"]

    assert {name for name, job in jobs.items() if rights_of(job)} == {"data", "model", "service"}


def test_a_pull_request_is_checked_on_every_push_whatever_it_changes() -> None:
    starts = product("pull-request")["on"]

    # A filter of paths or kinds would leave the required check waiting, or skipped, which counts as passed.
    assert starts["pull_request"] is None
    assert starts["merge_group"] is None
    assert starts["push"] == {"branches": ["main"]}
    assert "pull_request_target" not in starts


def test_two_pull_requests_never_cancel_each_other_and_main_is_never_cancelled() -> None:
    concurrency = product("pull-request")["concurrency"]

    assert concurrency["group"].startswith("${{ github.workflow }}-${{ github.event.pull_request.number ||")
    assert concurrency["cancel-in-progress"] == "${{ github.event_name == 'pull_request' }}"
    assert product("report")["concurrency"]["cancel-in-progress"] is False


def test_the_report_runs_the_default_branch_alone() -> None:
    document = product("report")

    assert set(document["on"]) == {"workflow_run"}
    assert document["on"]["workflow_run"]["workflows"] == [product("pull-request")["name"]]
    checkouts = [step for step in steps_of(document) if "actions/checkout@" in step.get("uses", "")]
    assert [step["with"] for step in checkouts] == [{"persist-credentials": False}] * len(document["jobs"])
    # Its own artifacts are read by code that checks them, never unpacked by an action into the work tree.
    assert not [step for step in steps_of(document) if "download-artifact@" in step.get("uses", "")]


def test_every_step_of_a_project_is_a_make_target() -> None:
    scripts = {
        line.strip()
        for path in workflows()
        if PRODUCT in path.parts
        for name, job in load(path.read_text())["jobs"].items()
        if name not in ("all-checks-pass", "attest")
        for step in job["steps"]
        for line in step.get("run", "").splitlines()
    }

    assert scripts
    assert [line for line in scripts if not re.match(r"make [a-z]+( |$)", line)] == []


def test_every_uploaded_artifact_is_downloaded_by_someone_or_read_through_the_api() -> None:
    steps = [*steps_of(product("pull-request"))]
    sent = {step["with"]["name"] for step in steps if "upload-artifact@" in step.get("uses", "")}
    taken = {step["with"].get("name") for step in steps if "download-artifact@" in step.get("uses", "")}

    assert sent == {"data", "trained", "review-model", "review-service", "report"}
    assert taken == {"data", "trained", None}


def test_what_signs_runs_nothing_of_the_project_and_signs_for_main_alone() -> None:
    document = product("deliver")

    assert document["on"] == {"push": {"branches": ["main"]}}
    signing = {name: job for name, job in document["jobs"].items() if "attestations" in rights_of(job)}
    assert set(signing) == {"attest"}
    steps = signing["attest"]["steps"]
    assert [step["uses"].partition("@")[0] for step in steps if "uses" in step] == [
        "actions/download-artifact",
        "docker/login-action",
        "actions/attest",
        "sigstore/cosign-installer",
    ]
    assert [step["run"].split()[:2] for step in steps if "run" in step] == [["cosign", "attest"]]
    assert rights_of(signing["attest"]) == {"attestations", "id-token", "packages"}


def test_nothing_is_built_after_the_load_test() -> None:
    jobs = {
        (name, job): body for name in ("deliver", "release", "rollback") for job, body in product(name)["jobs"].items()
    }

    built = {place for place, job in jobs.items() if "make image" in str(job) or "docker build" in str(job)}
    tested = {place for place, job in jobs.items() if "make loadtest" in str(job)}
    assert built == tested == {("deliver", "image")}
    scripts = [step.get("run", "") for step in jobs[("deliver", "image")]["steps"]]
    order = [
        at for at, script in enumerate(scripts) for what in ("make image", "publish", "make loadtest") if what in script
    ]
    assert order == sorted(order)
    assert len(order) == 3
    digests = {
        step["env"]["DIGEST"] for job in jobs.values() for step in job["steps"] if "DIGEST" in step.get("env", {})
    }
    assert digests == {"${{ steps.publish.outputs.digest }}", "${{ needs.image.outputs.digest }}"}


def test_promotions_wait_for_each_other_stage_by_stage_and_a_rollback_for_no_delivery() -> None:
    jobs = product("deliver")["jobs"]

    groups = {name: job["concurrency"]["group"] for name, job in jobs.items() if "concurrency" in job}
    assert groups == {"staging": "promote-staging", "production": "promote-production-${{ github.sha }}"}
    assert "github.sha" in product("deliver")["concurrency"]["group"]
    rollback = product("rollback")
    assert rollback["concurrency"]["group"] == "${{ github.workflow }}"
    # Whoever is asked to approve production is not asked here.
    assert {job["environment"]["name"] for job in rollback["jobs"].values()} == {"rollback"}
    assert {"staging", "production"} == {job["environment"]["name"] for job in jobs.values() if "environment" in job}


def test_no_environment_makes_a_deployment_beside_the_promotions_own() -> None:
    found = [
        job["environment"]
        for name in ("deliver", "release", "rollback")
        for job in product(name)["jobs"].values()
        if "environment" in job
    ]

    assert found
    assert all(environment["deployment"] is False for environment in found)


def test_only_what_promotes_or_releases_may_write_to_the_repository() -> None:
    writing = {
        (name, job)
        for name in ("deliver", "release", "rollback")
        for job, body in product(name)["jobs"].items()
        if "contents" in rights_of(body)
    }

    assert writing == {
        ("deliver", "staging"),
        ("deliver", "production"),
        ("release", "release"),
        ("rollback", "rollback"),
    }
