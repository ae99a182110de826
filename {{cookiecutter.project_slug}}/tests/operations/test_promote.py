from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Program
from host import git, written
from oci import World, attest, push

from ml import cli
from ml.errors import UserError
from ml.operations import promote
from ml.operations.record import Exemption, Scan


def test_a_promotion_lets_tag_registry_and_deployment_lead_to_one_digest(world: World) -> None:
    digest = world.delivered(1)

    lines = promote.run("production", digest)

    world.agrees("production", digest)
    entry = promote.current("production")
    assert (entry.tag, entry.commit, entry.how, entry.who) == (
        "model#production#1",
        world.commits[1],
        "delivered",
        "a",
    )
    assert world.board.of("production") == [("model#production#1", "success")]
    assert [what for what, _ in world.target.asked] == ["plan", "apply", "check"]
    assert lines[0] == f"model#production#1: {world.store.image}@{digest} of {world.commits[1][:10]}, verified"
    about = world.board.deployments[0]
    assert (about["ref"], about["payload"]["digest"], about["required_contexts"]) == (world.commits[1], digest, [])
    assert world.target.runs == f"{world.store.image}@{digest}"


def test_a_promotion_that_runs_again_changes_nothing(world: World) -> None:
    digest = world.delivered(1)
    promote.run("staging", digest)
    tags, board = world.tags(), world.board.of("staging")

    promote.run("staging", digest)

    assert (world.tags(), world.board.of("staging")) == (tags, board)


def test_in_a_workflow_the_tag_names_the_actor_and_the_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"ACTIONS": "true", "ACTOR": "octocat", "SERVER_URL": "https://github.test", "RUN_ID": "77"}
    for name, value in told.items():
        monkeypatch.setenv(f"GITHUB_{name}", value)

    entry = promote.promote("production", world.delivered(1))

    assert (entry.who, entry.run) == ("octocat", "https://github.test/octo/late/actions/runs/77")
    tagger = git(world.origin, "for-each-ref", "--format=%(taggername)", f"refs/tags/{entry.tag}")
    assert tagger == "github-actions[bot]"
    text = git(world.origin, "for-each-ref", "--format=%(contents)", f"refs/tags/{entry.tag}")
    assert text.splitlines()[2:] == [
        f"Digest: {entry.digest}",
        "How: delivered",
        "Who: octocat",
        "Run: https://github.test/octo/late/actions/runs/77",
        "Set: REGISTRY",
    ]


def refused(world: World, digest: str, match: str, error: type[UserError] = UserError) -> None:
    """Fail unless a promotion of the image is refused so, and production is what it was."""
    good = world.delivered(0, "good")
    promote.run("production", good)
    tags, board = world.tags(), world.board.of("production")

    with pytest.raises(error, match=match) as told:
        promote.run("production", digest)

    assert "\n" not in str(told.value)
    world.agrees("production", good)
    assert (world.tags(), world.board.of("production")) == (tags, board)


@pytest.mark.parametrize(
    "identity",
    [
        {"signer_workflow": "octo/late/.github/workflows/other.yml"},
        {"source_ref": "refs/heads/feature"},
        {"source_ref": "refs/pull/7/merge"},
        {"runner_environment": "self-hosted"},
        {"repository": "mallory/late"},
    ],
    ids=lambda identity: next(iter(identity.values())),
)
def test_an_image_that_another_workflow_branch_or_runner_attested_is_refused(
    world: World, identity: dict[str, str]
) -> None:
    digest = world.delivered(1, identity=identity)

    refused(
        world, digest, r"is not promoted: \.github/workflows/deliver\.yml of refs/heads/main has not attested it \(E"
    )


def test_an_unattested_image_is_refused(world: World) -> None:
    digest, _ = world.made(1)

    refused(world, digest, "has not attested it")


def test_an_attestation_that_somebody_else_signed_is_refused(world: World) -> None:
    digest, found = world.made(1)
    key = (world.attestations / "key").read_bytes()
    (world.attestations / "key").write_bytes(b"mallory's")
    attest(world.attestations, digest, found.model_dump(mode="json"), found.commit)
    (world.attestations / "key").write_bytes(key)

    refused(world, digest, "has not attested it")


def test_an_attestation_of_another_image_is_refused(world: World) -> None:
    honest = world.delivered(1)
    digest, _ = world.made(2)
    hexes = [one.removeprefix("sha256:") for one in (honest, digest)]
    (world.attestations / hexes[0]).rename(world.attestations / hexes[1])

    refused(world, digest, "has not attested it")


def test_an_attestation_from_another_commit_is_refused(world: World) -> None:
    digest = world.delivered(1, identity={"source_digest": world.commits[2]})

    refused(world, digest, "what it attests does not lie beside it")


def test_a_record_that_is_not_the_attested_one_is_refused(world: World) -> None:
    digest, found = world.made(1)
    attest(world.attestations, digest, {**found.model_dump(mode="json"), "metrics": {"roc_auc": 0.9}}, found.commit)

    refused(world, digest, "what it attests does not lie beside it, or not with the hashes that it names; deliver its")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"files": {"verdict.json": b'{"results": [{"gate": "harm", "status": "failed"}]}'}},
            r"its verdict is failed \(harm failed\)",
        ),
        (
            {"files": {"loadtest.json": b'{"status": "not judged", "sentence": "too noisy"}'}},
            r"its load test is not judged \(too noisy\)",
        ),
        ({"scan": Scan(fixable=["CVE-2026-1", "CVE-2026-2"])}, "its scan found CVE-2026-1, CVE-2026-2"),
    ],
    ids=["verdict", "load test", "scan"],
)
def test_what_did_not_pass_is_refused_although_it_is_attested(world: World, changes: dict[str, Any], said: str) -> None:
    digest = world.delivered(1, **changes)

    refused(world, digest, f"is not promoted: {said}$")


def test_an_exemption_that_has_run_out_stops_a_delivery_and_not_a_rollback(world: World) -> None:
    past = Scan(exempted=[Exemption(id="CVE-2026-3", until="2026-01-31", reason="no way in")])
    digest = world.delivered(1, scan=past)

    refused(world, digest, "its exemption of CVE-2026-3 has run out on 2026-01-31")
    with pytest.raises(UserError, match="has never run"):
        promote.rollback(digest)
    assert promote.promote("production", digest, "rolled back from model#production#9").digest == digest


def test_an_image_that_is_not_there_is_refused(world: World) -> None:
    refused(world, f"sha256:{'0' * 64}", "is not in the registry: it was deleted, or never pushed")


@pytest.mark.parametrize("digest", ["latest", "sha256:abc", "sha256:" + "Z" * 64, "", "--help"])
def test_what_is_no_digest_is_refused(world: World, digest: str) -> None:
    refused(world, digest, "is no digest: sha256: and 64 hexadecimal digits")


def test_a_stage_that_does_not_exist_is_refused(world: World) -> None:
    with pytest.raises(UserError, match=r"^prod is no stage: one of staging, production$"):
        promote.run("prod", world.delivered(1))


def test_a_machine_without_gh_is_told_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = world.delivered(1)
    monkeypatch.setenv("PATH", str(world.folder))
    git_at = Path("/usr/bin/git")
    (world.folder / "git").symlink_to(git_at)

    with pytest.raises(
        UserError, match=r"^gh is not on this machine: install it, since it verifies who made an image$"
    ):
        promote.run("production", digest)


def test_a_gh_of_another_time_is_told_so(world: World, program: Program) -> None:
    digest = world.delivered(1)
    program("gh", "print('[{}]')")
    with pytest.raises(UserError, match=r"what verifies it prints what is not known here: update it$"):
        promote.run("production", digest)

    program("gh", 'import sys; sys.exit(\'unknown command "attestation" for "gh"\')')
    with pytest.raises(UserError, match=r"has not attested it .unknown command"):
        promote.run("production", digest)


def test_in_a_private_repository_the_run_stands_for_the_record_and_that_is_said(world: World) -> None:
    world.board.private = True
    digest, found = world.made(1)
    told = {"path": promote.SIGNER, "head_branch": "main", "event": "push", "head_sha": found.commit}
    world.board.hub.on("GET actions/runs/71", told)

    lines = promote.run("production", digest)

    assert lines[0].endswith(", recorded, unsigned")
    world.agrees("production", digest)


@pytest.mark.parametrize(
    "changes",
    [{"path": ".github/workflows/x.yml"}, {"head_branch": "x"}, {"event": "workflow_dispatch"}, {"head_sha": "0" * 40}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_record_of_another_run_is_refused(world: World, changes: dict[str, str]) -> None:
    world.board.private = True
    digest, found = world.made(1)
    told = {"path": promote.SIGNER, "head_branch": "main", "event": "push", "head_sha": found.commit}
    world.board.hub.on("GET actions/runs/71", told | changes)

    with pytest.raises(
        UserError, match=r"no record of a run of \.github/workflows/deliver\.yml on main lies beside it"
    ):
        promote.run("production", digest)

    assert world.tags() == []


def test_a_record_of_a_run_that_nobody_knows_is_refused(world: World) -> None:
    world.board.private = True
    digest, _ = world.made(1)

    with pytest.raises(UserError, match="no record of a run"):
        promote.run("production", digest)


def test_a_private_repository_with_attestations_needs_them(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.board.private = True
    monkeypatch.setenv("ATTEST", "true")
    digest, _ = world.made(1)

    with pytest.raises(UserError, match="has not attested it"):
        promote.run("production", digest)


COSIGN = """
import base64, json, os, sys

words = sys.argv[1:]
due = ["verify-attestation", "--type", "urn:ml-delivery:v1", "--certificate-identity",
       "https://github.com/octo/late/.github/workflows/deliver.yml@refs/heads/main", "--certificate-oidc-issuer",
       "https://token.actions.githubusercontent.com"]
if words[:-1] != due or words[-1] != os.environ["SIGNED"]:
    sys.exit("Error: no matching signatures")
payload = base64.b64encode(json.dumps({"predicate": json.loads(os.environ["PREDICATE"])}).encode()).decode()
print(json.dumps({"payloadType": "application/vnd.in-toto+json", "payload": payload, "signatures": []}))
"""


def test_with_cosign_what_it_verifies_is_believed(
    world: World, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.board.private = True
    digest, found = world.made(1)
    other, _ = world.made(2)
    program("cosign", COSIGN)
    monkeypatch.setenv("COSIGN", "true")
    monkeypatch.setenv("SIGNED", f"{world.store.image}@{digest}")
    monkeypatch.setenv("PREDICATE", found.model_dump_json())

    promote.run("production", digest)

    world.agrees("production", digest)
    with pytest.raises(UserError, match=r"has not attested it \(Error: no matching signatures\)"):
        promote.run("production", other)


def test_while_an_incident_is_open_nothing_is_delivered_to_production(world: World) -> None:
    first, second = world.delivered(0), world.delivered(1)
    promote.run("production", first)
    world.board.issues.append({"state": "open", "html_url": "https://github.test/issues/5", "body": ""})

    with pytest.raises(
        UserError, match=r"^promotion is frozen since a rollback: close https://github.test/issues/5, th"
    ):
        promote.run("production", second)
    world.agrees("production", first)
    promote.run("staging", second)
    world.agrees("staging", second)

    world.board.issues[0]["state"] = "closed"
    promote.run("production", second)
    world.agrees("production", second)


def test_a_pull_request_with_the_label_freezes_nothing(world: World) -> None:
    world.board.issues.append({"state": "open", "html_url": "x", "body": "", "pull_request": {}})

    assert promote.frozen() is None


def test_without_issues_nothing_is_frozen_and_that_is_said(world: World) -> None:
    first, second = world.delivered(0), world.delivered(1)
    for method in ("GET", "POST"):
        world.board.hub.on(f"{method} issues", (410, {}, {"message": "Issues are disabled for this repo"}))
    promote.run("production", first)
    promote.run("production", second)

    lines = promote.rollback()

    world.agrees("production", first)
    assert "; not frozen, since this repository has no issues: do not merge" in lines[0]


def test_who_may_not_read_the_issues_promotes_nothing(world: World) -> None:
    world.board.hub.on("GET issues", (404, {}, {"message": "Not Found"}))

    with pytest.raises(UserError, match=r"GitHub refuses GET issues \(404\)"):
        promote.run("production", world.delivered(1))

    assert world.tags() == []


def test_a_delivery_does_not_take_a_stage_back_to_an_older_commit(world: World) -> None:
    old, new = world.delivered(1), world.delivered(2)
    promote.run("staging", new)

    with pytest.raises(
        promote.SupersededError, match=r"^staging has a newer commit than .{10} already \(model#staging#1"
    ):
        promote.run("staging", old)

    world.agrees("staging", new)


def test_the_same_commit_can_be_delivered_again(world: World) -> None:
    first, second = world.delivered(1, "first"), world.delivered(1, "second")
    promote.run("staging", first)

    promote.run("staging", second)

    world.agrees("staging", second)


def meanwhile(monkeypatch: pytest.MonkeyPatch, name: str, act: Any) -> None:
    """Let something happen once, right before a function of `promote` runs."""
    real = getattr(promote, name)
    due = [act]

    def first(*words: Any, **more: Any) -> Any:
        if due:
            due.pop()()
        return real(*words, **more)

    monkeypatch.setattr(promote, name, first)


def test_of_two_promotions_at_once_one_wins_and_the_other_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = world.delivered(1, "mine"), world.delivered(1, "theirs")
    meanwhile(monkeypatch, "_assign", lambda: promote.run("production", theirs))

    with pytest.raises(
        promote.SupersededError, match=r"went to another image meanwhile \(model#production#1\): nothing"
    ):
        promote.run("production", mine)

    world.agrees("production", theirs)
    assert world.target.runs.endswith(theirs)


def test_two_promotions_of_one_image_at_once_are_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = world.delivered(1)
    meanwhile(monkeypatch, "_assign", lambda: promote.run("production", digest))

    promote.run("production", digest)

    world.agrees("production", digest)
    assert world.tags() == ["model#production#1"]


def test_a_delivery_that_is_followed_at_once_leaves_the_stage_to_the_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = world.delivered(1), world.delivered(2)
    real = promote.Desk.deployment
    due = [lambda: promote.run("production", theirs)]

    def late(desk: promote.Desk, entry: promote.Assignment, **more: Any) -> int | None:
        if due:
            due.pop()()
        return real(desk, entry, **more)

    monkeypatch.setattr(promote.Desk, "deployment", late)

    with pytest.raises(promote.SupersededError, match=r"^model#production#2 came right after: production stays there$"):
        promote.run("production", mine)

    world.agrees("production", theirs)
    assert world.target.runs.endswith(theirs)


def test_who_deploys_last_has_deployed_the_newest(world: World) -> None:
    first, bad, fix = (world.delivered(number) for number in range(3))
    promote.run("production", first)
    real, due = world.target.apply, [lambda: promote.run("production", fix)]

    def late(wanted: Any) -> str:
        if due:
            due.pop()()
        return real(wanted)

    world.target.apply = late

    lines = promote.run("production", bad)

    assert "model#production#3 came meanwhile" in lines
    world.agrees("production", fix)
    assert world.target.runs.endswith(fix)


@pytest.mark.parametrize("place", ["rollback", "promote"])
def test_a_machine_that_knows_less_of_where_a_stage_runs_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    first, second = world.delivered(1), world.delivered(2)
    promote.run("production", first)
    for name, value in (("DEPLOY_TARGET", "compose"), ("DOCKER_HOST", "ssh://somewhere"), ("COSIGN", "false")):
        monkeypatch.setenv(name, value)
    promote.run("production", second)
    for name in ("DEPLOY_TARGET", "DOCKER_HOST"):
        monkeypatch.setenv(name, "")
    tags, again = world.tags(), world.delivered(3)
    said = "^model#production#2 was made with DEPLOY_TARGET, DOCKER_HOST: set them as the repository's variables are"

    with pytest.raises(UserError, match=said):
        promote.rollback() if place == "rollback" else promote.run("production", again)

    assert (world.tags(), world.board.issues, promote.status()[1]) == (tags, [], [])
    monkeypatch.delenv("COSIGN")
    assert ["was made with COSIGN" in fault for fault in promote.status()[1]] == [True]
    for name, value in (("DEPLOY_TARGET", "none"), ("DOCKER_HOST", "ssh://somewhere"), ("COSIGN", "false")):
        monkeypatch.setenv(name, value)
    promote.rollback()
    world.agrees("production", first)


def test_a_laptops_own_engine_is_nothing_to_remember(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/user/1000/docker.sock")

    promote.run("production", world.delivered(1))

    assert promote.current("production").had == ("REGISTRY",)


@pytest.mark.parametrize("what", ["apply", "check"])
def test_a_stage_goes_back_where_its_new_image_does_not_run(world: World, what: str) -> None:
    good, bad = world.delivered(1), world.delivered(2)
    promote.run("production", good)
    world.target.failing[f"{world.store.image}@{bad}"] = what

    with pytest.raises(UserError, match=f"^{what} fails; production is back at model#production#3$"):
        promote.run("production", bad)

    world.agrees("production", good)
    assert world.board.of("production")[1:] == [("model#production#2", "failure"), ("model#production#3", "success")]
    assert promote.current("production").how == "put back, since model#production#2 does not run"
    assert world.target.runs == f"{world.store.image}@{good}"


def test_a_first_image_that_does_not_run_has_nothing_to_go_back_to(world: World) -> None:
    bad = world.delivered(1)
    world.target.failing[f"{world.store.image}@{bad}"] = "check"

    with pytest.raises(UserError, match=r"^check fails; production has nothing that it could go back to$"):
        promote.run("production", bad)

    assert promote.status()[1] == [f"the Deployment of model#production#1 says failure: ml promote production {bad}"]


def test_a_rollback_that_does_not_run_puts_back_what_ran(world: World) -> None:
    first, second, third = (world.delivered(number) for number in range(3))
    for digest in (first, second, third):
        promote.run("production", digest)
    world.target.failing[f"{world.store.image}@{second}"] = "check"

    with pytest.raises(UserError, match=r"^check fails; production is back at model#production#5$"):
        promote.rollback()

    world.agrees("production", third)
    assert promote.frozen()


def test_an_open_issue_without_a_text_does_not_stop_a_rollback(world: World) -> None:
    first, second = world.delivered(1), world.delivered(2)
    promote.run("production", first)
    promote.run("production", second)
    world.board.issues.append({"state": "open", "html_url": "https://github.test/issues/1", "body": None})

    promote.rollback()

    world.agrees("production", first)
    assert len(world.board.issues) == 2


def test_a_rollback_opens_the_incident_and_goes_to_the_version_before(world: World) -> None:
    first, second = world.delivered(1), world.delivered(2)
    promote.run("production", first)
    promote.run("production", second)
    git(Path.cwd(), "tag", "-a", "model@v1.0.0", "-m", "one", world.commits[1])
    git(Path.cwd(), "push", "--quiet", "origin", "model@v1.0.0")

    lines = promote.rollback()

    world.agrees("production", first)
    url = "https://github.test/issues/1"
    assert lines[0] == f"production went back from model#production#2 to v1.0.0; frozen until {url} is closed"
    assert promote.frozen() == url
    issue = world.board.issues[0]
    assert (issue["labels"], issue["title"]) == (["rollback"], "Production went back from model#production#2 to v1.0.0")
    facts = [line.split("|")[1:4] for line in issue["body"].splitlines() if line.startswith("| ")]
    told = {name.strip(): (old.strip(), new.strip()) for name, old, new in facts}
    assert told["digest"] == (second[:19], first[:19])
    assert told["commit"] == (world.commits[2][:10], world.commits[1][:10])
    assert told["metric"] == ("roc_auc 0.7", "roc_auc 0.7")
    assert promote.current("production").how == "rolled back from model#production#2"


def test_the_incident_is_open_before_anything_moves(world: World) -> None:
    first, second = world.delivered(1), world.delivered(2)
    promote.run("production", first)
    promote.run("production", second)
    world.board.hub.on("POST issues", (403, {}, {"message": "Resource not accessible by integration"}))

    with pytest.raises(UserError, match="Resource not accessible"):
        promote.rollback()

    world.agrees("production", second)


def test_a_second_press_goes_no_further_back_unless_it_is_named(world: World) -> None:
    first, second, third = (world.delivered(number) for number in range(3))
    for digest in (first, second, third):
        promote.run("production", digest)
    promote.rollback()
    tags = world.tags()

    lines = promote.rollback()

    assert lines[0].startswith("production is at model#production#4 already; to go further back, name it: model#produc")
    assert world.tags() == tags
    world.agrees("production", second)
    assert len(world.board.issues) == 1
    assert promote.rollback("model#production#1")[0].startswith("production went back from model#production#4 to")
    world.agrees("production", first)


def test_once_unfrozen_a_rollback_skips_what_was_taken_off(world: World) -> None:
    digests = [world.delivered(number) for number in range(4)]
    for digest in digests[:3]:
        promote.run("production", digest)
    promote.rollback()
    world.board.issues[0]["state"] = "closed"
    promote.run("production", digests[3])

    promote.rollback()

    world.agrees("production", digests[1])


def test_a_rollback_goes_to_a_named_version(world: World) -> None:
    digests = [world.delivered(number) for number in range(3)]
    for digest in digests:
        promote.run("production", digest)
    git(Path.cwd(), "tag", "-a", "model@v1.2.0", "-m", "one", world.commits[0])
    git(Path.cwd(), "push", "--quiet", "origin", "model@v1.2.0")

    promote.rollback("v1.2.0")

    world.agrees("production", digests[0])
    world.board.issues[0]["state"] = "closed"
    promote.rollback(digests[2])
    world.agrees("production", digests[2])


@pytest.mark.parametrize("version", ["v9.9.9", "model@v1.0.0", "model#production#7", "latest", "--help"])
def test_a_version_that_production_never_ran_is_refused(world: World, version: str) -> None:
    digests = [world.delivered(number) for number in range(2)]
    for digest in digests:
        promote.run("production", digest)
    git(Path.cwd(), "tag", "-a", "model@v1.0.0", "-m", "one", world.commits[3])
    git(Path.cwd(), "push", "--quiet", "origin", "model@v1.0.0")

    with pytest.raises(UserError, match=f"^production has never run {version}: name one of model#production#1$"):
        promote.rollback(version)

    world.agrees("production", digests[1])
    assert world.board.issues == []


def test_a_rollback_without_a_version_before_says_so(world: World) -> None:
    with pytest.raises(UserError, match=r"^production has run nothing yet: there is nothing to go back to$"):
        promote.rollback()
    digest = world.delivered(1)
    promote.run("production", digest)

    with pytest.raises(UserError, match=r"^production has no version before model#production#1: deliver a better one$"):
        promote.rollback()

    assert world.board.issues == []


def test_a_rollback_to_a_deleted_image_names_others(world: World) -> None:
    digests = [world.delivered(number) for number in range(3)]
    for digest in digests:
        promote.run("production", digest)
    world.store.delete(digests[1])

    with pytest.raises(
        UserError,
        match=r"^the image of model#production#2 was deleted from the registry: name another, model#production#1$",
    ):
        promote.rollback()

    world.agrees("production", digests[2])
    assert world.board.issues == []
    promote.rollback("model#production#1")
    world.agrees("production", digests[0])


def test_a_rollback_to_an_image_that_does_not_verify_is_refused(world: World) -> None:
    digests = [world.delivered(number) for number in range(2)]
    for digest in digests:
        promote.run("production", digest)
    for path in (world.attestations / digests[0].removeprefix("sha256:")).iterdir():
        path.unlink()

    with pytest.raises(UserError, match="has not attested it"):
        promote.rollback()

    world.agrees("production", digests[1])


@pytest.mark.parametrize("place", ["_assign", "_refuse_late"])
def test_a_rollback_during_a_delivery_wins(world: World, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    digests = [world.delivered(number) for number in range(3)]
    for digest in digests[:2]:
        promote.run("production", digest)
    meanwhile(monkeypatch, place, promote.rollback)

    with pytest.raises(UserError, match=r"went to another image meanwhile|is frozen"):
        promote.run("production", digests[2])

    world.agrees("production", digests[0])


def test_a_delivery_that_wins_the_number_loses_to_the_rollback(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = [world.delivered(number) for number in range(3)]
    for digest in digests[:2]:
        promote.run("production", digest)
    # It asked whether production is frozen before the incident was open.
    monkeypatch.setattr(promote, "frozen", lambda github=None: None)
    meanwhile(monkeypatch, "_assign", lambda: promote.run("production", digests[2]))

    promote.rollback()

    world.agrees("production", digests[0])
    assert [entry.digest for entry in promote.history("production")] == [*digests, digests[0]]


def test_a_tag_that_somebody_else_moved_is_told_and_mended(world: World) -> None:
    first, second = world.delivered(1), world.delivered(2)
    promote.run("production", first)
    world.registry.tag(second, "production")

    table, faults = promote.status()

    assert faults == [
        f"model#production#1 is {first[:19]}, the tag of the image {second[:19]}: ml registry status --mend"
    ]
    assert first[:19] in table[1]
    assert promote.status(mend=True)[1] == []
    world.agrees("production", first)


def test_a_tag_that_no_promotion_made_is_told(world: World) -> None:
    digest = push(world.registry, "unknown")
    world.registry.tag(digest, "production")

    assert promote.status() == (
        ["nothing was promoted yet"],
        [
            f"no promotion says that the tag production leads to {digest[:19]}: ml rollback",
        ],
    )


def test_a_lost_deployment_is_told_and_made_again(world: World) -> None:
    digest = world.delivered(1)
    promote.run("staging", digest)
    world.board.deployments.clear()

    assert promote.status()[1] == ["model#staging#1 has no Deployment: ml registry status --mend"]
    assert promote.status(mend=True)[1] == [
        f"the Deployment of model#staging#1 says in_progress: ml promote staging {digest}"
    ]
    promote.run("staging", digest)
    world.agrees("staging", digest)


def test_nothing_is_mended_towards_an_image_that_does_not_verify(world: World) -> None:
    first = world.delivered(1)
    promote.run("production", first)
    bad, found = world.made(2)
    desk = promote.Desk()
    assert promote._assign("production", promote.current("production"), bad, found, "delivered")

    assert ["has not attested it" in fault for fault in promote.status(mend=True)[1]] == [True]

    assert desk.registry.resolve("production") == first
    promote.rollback("model#production#1")
    world.agrees("production", first)


def test_gto_reads_the_tags_and_its_own_are_understood(world: World, tmp_path: Path) -> None:
    digests = [world.delivered(number) for number in range(2)]
    for digest in digests:
        promote.run("staging", digest)
        promote.run("production", digest)
    promote.rollback()
    git(tmp_path, "clone", "--quiet", str(world.origin), "reader")

    def gto(*words: str) -> Any:
        command = [str(Path(sys.executable).with_name("gto")), *words]
        done = subprocess.run(command, cwd=tmp_path / "reader", capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    told = json.loads(gto("history", "model", "--json"))
    stages = json.loads(gto("check-ref", "model#production#3", "--json"))
    assert json.loads(gto("show", "model#production", "--json"))[0]["commit_hexsha"] == world.commits[0]
    assert json.loads(gto("show", "model#staging", "--json"))[0]["commit_hexsha"] == world.commits[1]
    assert sorted(entry["ref"] for entry in told) == world.tags()
    assert stages["stage"] == "production"

    gto("assign", "model", world.commits[3], "--stage", "production", "--skip-registration", "--push")

    assert promote.current("production").digest == ""
    assert promote.status()[1] == ["model#production#4 names no digest, a made it by hand: ml rollback"]
    promote.rollback()
    world.agrees("production", digests[0])


def test_tags_have_the_order_of_their_numbers_although_clocks_differ(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = world.delivered(1), world.delivered(2)
    promote.promote("production", first)
    monkeypatch.setattr(promote.time, "time", lambda: 1_000_000_000)

    promote.promote("production", second)

    old, new = promote.history("production")
    assert (new.number, new.seconds) == (2, old.seconds + 1)


def test_a_push_whose_answer_was_lost_is_a_success(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = world.delivered(1)
    real = promote.refs.git

    def lossy(*words: str, **more: Any) -> Any:
        done = real(*words, **more)
        if words[0] == "push":
            raise promote.SourceError("origin takes no tag: the remote end hung up unexpectedly")
        return done

    monkeypatch.setattr(promote.refs, "git", lossy)

    promote.run("production", digest)

    assert world.tags() == ["model#production#1"]
    world.agrees("production", digest)


def test_a_host_that_takes_no_tag_changes_nothing(world: World) -> None:
    digest = world.delivered(1)
    (world.origin / "hooks").mkdir(exist_ok=True)
    hook = world.origin / "hooks/pre-receive"
    hook.write_text("#!/bin/sh\necho 'GH013: Repository rule violations found' >&2\nexit 1\n")
    hook.chmod(0o755)

    with pytest.raises(
        UserError, match=r"^origin takes no tag model#production#1: remote: GH013: Repository rule viola"
    ):
        promote.run("production", digest)

    assert (world.tags(), world.registry.resolve("production"), world.board.deployments) == ([], None, [])


UNTAGGED = r"""#!/bin/sh
while read -r old new ref; do
    [ "$(git rev-parse "$new^{commit}")" = "$(git rev-parse main)" ] || {
        echo 'refusing to allow a GitHub App to create or update workflow `x.yml` without `workflows` permission' >&2
        exit 1
    }
done
"""


def test_where_an_old_commit_takes_no_tag_it_lies_on_mains_newest_and_says_which_is_meant(world: World) -> None:
    first, second = world.delivered(1), world.delivered(3)
    promote.run("production", first)
    promote.run("production", second)
    hook = written(world.origin / "hooks/pre-receive", UNTAGGED.encode())
    hook.chmod(0o755)

    promote.rollback()

    world.agrees("production", first)
    entry = promote.current("production")
    assert (entry.tag, entry.commit) == ("model#production#3", world.commits[1])
    assert git(world.origin, "rev-parse", "model#production#3^{commit}") == git(world.origin, "rev-parse", "main")
    assert world.board.deployments[-1]["ref"] == world.commits[1]


def test_a_tag_that_says_another_commit_than_its_images_is_not_followed(world: World) -> None:
    digest = world.delivered(1)
    promote.run("production", world.delivered(2))
    text = f"Assign production\n\nDigest: {digest}\nHow: rolled back\nWho: mallory\nCommit: {world.commits[2]}\n"
    git(Path.cwd(), "tag", "--annotate", "--message", text, "model#production#2", world.commits[3])
    git(Path.cwd(), "push", "--quiet", "origin", "model#production#2")
    said = f"model#production#2 says {world.commits[2][:10]}, its image is of {world.commits[1][:10]}"

    faults = promote.status(mend=True)[1]

    assert any(said in fault for fault in faults)
    assert world.registry.resolve("production") != digest


@pytest.mark.parametrize("place", ["_assign", "_wanted"])
def test_a_registry_that_goes_down_in_the_middle_is_no_half_promotion(
    world: World, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    first, second = world.delivered(1), world.delivered(2)
    promote.run("production", first)
    meanwhile(monkeypatch, place, world.store.stop)
    if place == "_assign":
        with pytest.raises(UserError, match=r"^127\.0\.0\.1:\d+ does not answer \(ConnectionError\): try again later$"):
            promote.run("production", second)
    else:
        promote.run("production", second)

    world.store.start()
    promote.run("production", second)

    world.agrees("production", second)


def test_the_verbs_print_and_fail_as_they_should(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = world.delivered(1), world.delivered(2)

    assert cli.main(["registry", "history"]) == cli.main(["registry", "status"]) == 0
    assert capsys.readouterr().out == "nothing was promoted yet\nnothing was promoted yet\n"
    assert cli.main(["promote", "production", first]) == cli.main(["promote", "production", second]) == 0
    assert cli.main(["rollback", "v1.0.0"]) == 1
    assert capsys.readouterr().err == "ml: production has never run v1.0.0: name one of model#production#1\n"
    assert cli.main(["rollback"]) == 0
    capsys.readouterr()

    assert cli.main(["registry", "status"]) == 0
    table = [re.split(r"\s{2,}", line) for line in capsys.readouterr().out.splitlines()]
    head, row = table
    assert head == ["stage", "version", "digest", "commit", "model", "metric", "when", "who", "how", "deployment"]
    told = dict(zip(head, row, strict=True))
    assert (told["stage"], told["digest"], told["commit"]) == ("production", first[:19], world.commits[1][:10])
    assert (told["metric"], told["how"], told["deployment"]) == (
        "roc_auc 0.7",
        "rolled back from model#production#2",
        "success",
    )
    assert cli.main(["registry", "history"]) == 0
    rows = [re.split(r"\s{2,}", line)[1:3] for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        ["tag", "digest"],
        ["model#production#3", first[:19]],
        ["model#production#2", second[:19]],
        ["model#production#1", first[:19]],
    ]

    world.registry.tag(second, "production")
    assert cli.main(["registry", "status"]) == 1
    assert "1 disagreements" in capsys.readouterr().err
    assert cli.main(["registry", "status", "--mend"]) == 0
