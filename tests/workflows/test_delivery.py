"""Ring 5: delivery, executed for real: one image from the merge to production, and what must never get there.

One story in one world with a registry, told by fixtures that follow each other; the refusals play on its end, and run
of a workflow only the jobs in question.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import images as registries
import pytest
from images import Images
from real import Project
from scenes import forge
from world import Run, World, executes

pytestmark = pytest.mark.slow
DELIVER, RELEASE, ROLLBACK = "deliver.yml", "release.yml", "rollback.yml"
JOBS = ("plan", "model", "image", "attest", "staging", "production", "version")
DELIVERED = dict.fromkeys(JOBS, "success")
NOTHING = DELIVERED | dict.fromkeys(JOBS[1:], "skipped")
QUICK = "answer = self.service.respond(body, head.identity)"
SLOW = "answer = __import__('time').sleep(0.1) or self.service.respond(body, head.identity)"
ROUTES = "src/ml/serving/routes.py"


@dataclass
class Moment:
    """A run, and what stood where after it: image tags, GTO tags with their messages, Deployments."""

    run: Run
    tags: dict[str, str]
    assigned: dict[str, str]
    deployments: list[tuple[str, str, str]]

    @classmethod
    def of(cls, run: Run, world: World, images: Images) -> Moment:
        return cls(run, images.tags(), assignments(world), deployments(world))

    @property
    def production(self) -> str | None:
        return self.tags.get("production")


def assignments(world: World) -> dict[str, str]:
    """Return the message of every tag of the model, in the order of their numbers."""
    names = sorted(ref for ref in world.refs("refs/tags/") if ref.startswith("refs/tags/model"))
    return {name.removeprefix("refs/tags/"): world.repository.git("cat-file", "-p", name) for name in names}


def deployments(world: World) -> list[tuple[str, str, str]]:
    """Return stage, digest and state of every Deployment, oldest first."""
    return [(one.environment, one.payload["digest"], one.statuses[-1]["state"]) for one in world.repository.deployments]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    with registries.serving(tmp_path_factory.mktemp("registry"), "octocat/shop") as found:
        yield found


@pytest.fixture(scope="module")
def shop(light: Project, images: Images, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A repository of a trained project whose images go to a registry on this machine."""
    with World.open(tmp_path_factory.mktemp("shop"), light, name="octocat/shop", after=("push --yes",)) as world:
        world.variables["REGISTRY"] = images.name
        yield world


def merge(world: World, edits: dict, title: str, *, label: str = "", **more: object) -> Run:
    """Merge a change, delete its branch, and return its delivery."""
    pull = world.pull_request(world.change(edits, title, **more), title=title)
    pull.record.labels += [label] if label else []
    event = world.merge(pull)
    world.repository.git("update-ref", "-d", f"refs/heads/{pull.record.branch}")
    return world.run(DELIVER, event)


@pytest.fixture(scope="module")
def first(shop: World, images: Images) -> Moment:
    """The delivery of the first push."""
    return Moment.of(shop.run(DELIVER, shop.push()), shop, images)


@pytest.fixture(scope="module")
def prose(shop: World, images: Images, first: Moment) -> Moment:
    """What follows the merge of a change to prose."""
    return Moment.of(merge(shop, {"README.md": "# Late?\n"}, "Ask"), shop, images)


@pytest.fixture(scope="module")
def slower(shop: World, images: Images, prose: Moment) -> Moment:
    """What follows the merge of a service that takes a tenth of a second longer."""
    edits = {ROUTES: (QUICK, SLOW), "params.yaml": ("p50: 100", "p50: 5")}
    return Moment.of(merge(shop, edits, "Take your time"), shop, images)


@pytest.fixture(scope="module")
def good(shop: World, images: Images, slower: Moment) -> Moment:
    """What follows the merge of another model, whose service is quick again and which asks for a minor version.

    It changes a workflow too: from now on no workflow may tag a commit before it.
    """
    edits = {ROUTES: (SLOW, QUICK), "params.yaml": ("max_leaf_nodes: 31", "max_leaf_nodes: 24")}
    edits[f".github/workflows/{ROLLBACK}"] = ("# One button:", "# The button:")
    run = merge(shop, edits, "Learn less", label="release:minor", before=("pipeline",), after=("push",))
    return Moment.of(run, shop, images)


@pytest.fixture(scope="module")
def released(shop: World, images: Images, good: Moment) -> Moment:
    """The release that the label asked for."""
    (asked,) = [each for each in shop.repository.dispatches if each.file == RELEASE]
    return Moment.of(shop.run(RELEASE, shop.dispatch(RELEASE, inputs=asked.inputs)), shop, images)


@pytest.fixture(scope="module")
def rolled(shop: World, images: Images, released: Moment) -> Moment:
    """The rollback by the button."""
    return Moment.of(shop.run(ROLLBACK, shop.dispatch(ROLLBACK)), shop, images)


@executes(DELIVER, *JOBS)
def test_the_first_push_is_delivered(shop: World, first: Moment) -> None:
    assert first.run.jobs == DELIVERED, first.run.faults
    digest = first.production
    sha = first.run.event.sha
    assert first.tags == {f"sha-{sha}": digest, "staging": digest, "production": digest}
    assert set(first.assigned) == {"model#staging#1", "model#production#1"}
    assert all(f"Digest: {digest}" in said for said in first.assigned.values())
    assert first.deployments == [("staging", digest, "success"), ("production", digest, "success")]
    record = json.loads((first.run.artifact("record") / "record.json").read_text())
    assert record["commit"] == sha
    assert record["reproduced"] == "full"
    assert record["scan"]["fixable"] == []
    # What was load-tested is what is attested and what production has: one digest.
    (kept,) = (shop.attestations / digest.removeprefix("sha256:")).glob("*.json")
    assert kept
    tested = json.loads((first.run.artifact("delivery") / "build/delivery/loadtest.json").read_text())
    assert tested["candidate"] == digest


@executes(DELIVER, "plan")
def test_a_merge_of_neither_model_nor_service_promotes_nothing(shop: World, first: Moment, prose: Moment) -> None:
    assert prose.run.jobs == NOTHING, prose.run.faults
    assert "nothing is promoted" in prose.run.summary("plan")
    assert prose.tags == first.tags
    assert prose.assigned == first.assigned


@executes(DELIVER, "image")
def test_a_slower_service_is_red_and_production_untouched(shop: World, first: Moment, slower: Moment) -> None:
    assert slower.run.jobs == DELIVERED | {"image": "failure"} | dict.fromkeys(JOBS[3:], "skipped"), slower.run.faults
    assert "times the baseline's" in slower.run.step("image", "make loadtest").log
    assert slower.production == first.production
    assert slower.assigned == first.assigned
    assert slower.deployments == first.deployments


@executes(DELIVER, "production", "version")
def test_a_better_model_replaces_it(first: Moment, good: Moment, shop: World) -> None:
    assert good.run.jobs == DELIVERED, good.run.faults
    assert good.production not in (None, first.production)
    assert good.tags["staging"] == good.production
    assert f"Digest: {good.production}" in good.assigned["model#production#2"]
    assert ("production", first.production, "inactive") in good.deployments
    assert ("production", good.production, "success") in good.deployments


@executes(RELEASE, "release")
def test_a_label_releases_what_was_delivered(shop: World, good: Moment, released: Moment) -> None:
    assert released.run.jobs == {"release": "success"}, released.run.faults
    digest = good.production
    assert {tag: released.tags.get(tag) for tag in ("v1.0.0", "v1.0", "v1")} == dict.fromkeys(
        ("v1.0.0", "v1.0", "v1"), digest
    )
    assert f"Digest: {digest}" in released.assigned["model@v1.0.0"]
    (release,) = shop.repository.releases.values()
    assert not release.draft
    assert release.tag == "model@v1.0.0"
    assert {"card.md", "model.onnx", "report.html", "sbom.json", "verdict.json", "SHA256SUMS"} <= set(release.assets)
    assert "Learn less" in release.body
    assert "| metric | better |" in release.body
    assert digest in release.body


@executes(ROLLBACK, "rollback")
def test_the_button_brings_back_what_ran_before(shop: World, first: Moment, rolled: Moment) -> None:
    assert rolled.run.jobs == {"rollback": "success"}, rolled.run.faults
    assert rolled.production == first.production
    assert rolled.deployments[-1] == ("production", first.production, "success")
    (issue,) = shop.repository.issues.values()
    assert issue.labels == ["rollback"]
    assert issue.state == "open"
    assert {"v1.0.0", "model#production#1"} & {word.strip("`.,:()|") for word in issue.body.split()}
    assert f"Commit: {first.run.event.sha}" in rolled.assigned["model#production#3"]
    assert shop.repository.resolve("model#production#3") == shop.repository.resolve("main")
    print(f"time to restore: {rolled.run.step('rollback', 'make rollback').seconds:.1f} s")


@executes(DELIVER, "production")
def test_while_the_incident_is_open_nothing_is_promoted_to_production(
    shop: World, images: Images, first: Moment, good: Moment, rolled: Moment
) -> None:
    before = assignments(shop)

    run = again(shop, good, "staging", "production", "version")

    assert (run.jobs["staging"], run.jobs["production"]) == ("success", "failure"), run.faults
    assert "the minor version that #3 asks for is not made" in run.log("version")
    (issue,) = shop.repository.issues.values()
    assert f"/issues/{issue.number}" in run.log("production")
    assert images.digest("production") == first.production
    assert {name for name in assignments(shop) if "production" in name} == {n for n in before if "production" in n}


def again(world: World, moment: Moment, *only: str, **given: dict[str, str]) -> Run:
    """Return some jobs of a delivery, run again."""
    return world.run(DELIVER, moment.run.event, again=moment.run, only=only, given=given)


@pytest.fixture(scope="module")
def settled(shop: World, images: Images, good: Moment, rolled: Moment) -> Moment:
    """Production with the good model again, after the incident is closed."""
    for issue in shop.repository.issues.values():
        issue.state = "closed"
    return Moment.of(again(shop, good, "production"), shop, images)


@executes(DELIVER, "production")
def test_once_the_incident_is_closed_the_failed_job_delivers(good: Moment, settled: Moment, shop: World) -> None:
    assert settled.run.jobs["production"] == "success", settled.run.faults
    assert settled.production == good.production
    assert settled.deployments[-1] == ("production", good.production, "success")


def refused(world: World, images: Images, settled: Moment, run: Run, *said: str, job: str = "production") -> None:
    """Fail unless a job was refused with these words, and nothing moved."""
    assert run.jobs[job] == "failure", run.log(job)
    for words in said:
        assert words in run.log(job), run.log(job)[-3000:]
    assert "Traceback" not in run.log(job)
    assert images.digest("production") == settled.production
    kept = {name for name in settled.assigned if "production" in name}
    assert {name for name in assignments(world) if "production" in name} == kept


def slow_digest(images: Images, slower: Moment) -> str:
    """Return an image that was pushed, and whose load test was red."""
    return images.tags()[f"sha-{slower.run.event.sha}"]


@executes(DELIVER, "production")
def test_an_image_that_nobody_attested_goes_nowhere(
    shop: World, images: Images, slower: Moment, good: Moment, settled: Moment
) -> None:
    run = again(shop, good, "production", image={"digest": slow_digest(images, slower)})

    refused(shop, images, settled, run, "has not attested it", "no attestations found")


@executes(DELIVER, "production")
@pytest.mark.parametrize(
    "identity",
    [
        pytest.param({"signer_workflow": "octocat/shop/.github/workflows/pull-request.yml"}, id="workflow"),
        pytest.param({"source_ref": "refs/heads/evil"}, id="branch"),
        pytest.param({"runner_environment": "self-hosted"}, id="runner"),
        pytest.param({"repository": "mallory/shop"}, id="repository"),
        pytest.param({}, id="record that lies beside another image"),
    ],
)
def test_an_image_that_something_else_attested_goes_nowhere(
    shop: World, images: Images, slower: Moment, good: Moment, settled: Moment, identity: dict[str, str]
) -> None:
    digest = slow_digest(images, slower)
    record = json.loads((good.run.artifact("record") / "record.json").read_text())
    with attested(shop, digest, record, identity | {"source_digest": record["commit"]}):
        run = again(shop, good, "production", image={"digest": digest})

    refused(shop, images, settled, run, "is not promoted")


@contextmanager
def attested(world: World, digest: str, record: dict, identity: dict[str, str]) -> Iterator[None]:
    """Let there be an attestation as somebody else would have made it."""
    who = {
        "repository": world.repository.name,
        "signer_workflow": f"{world.repository.name}/.github/workflows/{DELIVER}",
        "source_ref": "refs/heads/main",
        "runner_environment": "github-hosted",
    } | identity
    subject = [{"name": "image", "digest": {"sha256": digest.removeprefix("sha256:")}}]
    statement = {"subject": subject, "predicateType": "urn:ml-delivery:v1", "predicate": record, "identity": who}
    payload = json.dumps(statement).encode()
    key = (world.attestations / "key").read_bytes()
    bundle = {
        "payload": base64.b64encode(payload).decode(),
        "signature": hmac.new(key, payload, hashlib.sha256).hexdigest(),
    }
    folder = world.attestations / digest.removeprefix("sha256:")
    folder.mkdir()
    (folder / "1.json").write_text(json.dumps({"bundle": bundle}))
    try:
        yield
    finally:
        shutil.rmtree(folder)


@executes(DELIVER, "staging", "production")
def test_tags_that_somebody_moved_are_not_believed_and_put_right(
    shop: World, images: Images, slower: Moment, good: Moment, settled: Moment
) -> None:
    bad = slow_digest(images, slower)
    for tag in ("production", f"sha-{good.run.event.sha}"):
        images.move(tag, bad)

    run = again(shop, good, "staging", "production")

    assert (run.jobs["staging"], run.jobs["production"]) == ("success", "success"), run.faults
    assert images.digest("production") == images.digest("staging") == settled.production
    assert assignments(shop).keys() == settled.assigned.keys()


@executes(DELIVER, "production")
def test_a_registry_that_is_down_is_told_and_the_job_is_run_again(
    shop: World, images: Images, good: Moment, settled: Moment
) -> None:
    images.stop()
    try:
        down = again(shop, good, "production")
    finally:
        images.start()

    refused(shop, images, settled, down, f"127.0.0.1:{images.port}")
    assert again(shop, good, "production").jobs["production"] == "success"


@executes(DELIVER, "production")
def test_of_two_merges_at_once_the_newer_one_stays(
    shop: World, images: Images, first: Moment, good: Moment, settled: Moment
) -> None:
    with ThreadPoolExecutor(2) as pool:
        older, newer = pool.map(lambda moment: again(shop, moment, "production"), (first, good))

    assert newer.jobs["production"] == "success", newer.faults
    refused(shop, images, settled, older, "has a newer commit")


@executes(DELIVER, "image")
def test_an_exemption_that_ended_stops_the_image(shop: World, images: Images, good: Moment, settled: Moment) -> None:
    hole = ["onnxruntime", "CVE-2026-0001", "Critical", ["99.0"]]
    (shop.folder / "vulnerabilities.json").write_text(json.dumps([hole]))
    entry = "exemptions:\n  - {id: CVE-2026-0001, until: 2026-01-31, reason: not reached}\n"
    event = shop.merge(shop.pull_request(shop.change({".github/vulnerabilities.yml": entry}, "Let it pass")))

    run = shop.run(DELIVER, event, again=good.run, only=("image",))

    (shop.folder / "vulnerabilities.json").unlink()
    refused(shop, images, settled, run, "CVE-2026-0001", "its exemption ended on 2026-01-31", job="image")
    assert run.step("image", "make loadtest").outcome == "skipped"


@executes(DELIVER, "image")
def test_a_package_that_is_not_the_repositorys_is_told_with_what_to_do(
    shop: World, images: Images, good: Moment, settled: Moment
) -> None:
    with refusing() as port:
        shop.variables["REGISTRY"] = f"127.0.0.1:{port}/octocat/shop"
        run = again(shop, good, "image")
        shop.variables["REGISTRY"] = images.name

    refused(shop, images, settled, run, "write_package", "Manage Actions access", job="image")


@contextmanager
def refusing() -> Iterator[int]:
    """Yield the port of a registry that lets nobody push, as GitHub's does for a package of another repository."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            denied = {"code": "DENIED", "message": "permission_denied: write_package"}
            status = 200 if self.path == "/v2/" else 403 if self.command in ("POST", "PUT") else 404
            content = json.dumps({"errors": [denied]} if status == 403 else {}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@executes(DELIVER, "model")
def test_a_model_that_does_not_come_out_again_is_refused(
    shop: World, images: Images, good: Moment, settled: Moment
) -> None:
    before = shop.repository.resolve("main")
    event = shop.merge(shop.pull_request(forge(shop)))

    run = shop.run(DELIVER, event, again=good.run, only=("model",), given={"plan": {"base": before}})

    refused(shop, images, settled, run, "the retrain gives other bytes", "determinism", job="model")


@executes(RELEASE, "release")
def test_a_tag_on_a_commit_that_was_never_delivered_is_no_release(
    shop: World, images: Images, settled: Moment, slower: Moment
) -> None:
    releases = {*shop.repository.releases}
    shop.owner.git("tag", "--annotate", "--message", "By hand", "model@v9.0.0", slower.run.event.sha)
    shop.owner.git("push", "--quiet", "--no-verify", "origin", "model@v9.0.0")

    run = shop.run(RELEASE, shop.push("refs/tags/model@v9.0.0"))

    refused(shop, images, settled, run, "was never delivered to production", job="release")
    assert {*shop.repository.releases} == releases
    assert images.digest("v9.0.0") is None


@executes(DELIVER, "attest", "staging")
@pytest.mark.parametrize(("variables", "said"), [({}, "recorded, unsigned"), ({"COSIGN": "true"}, "verified")])
def test_a_private_repository_has_records_that_cosign_signs_or_nobody(
    shop: World, images: Images, good: Moment, settled: Moment, variables: dict[str, str], said: str
) -> None:
    event = replace(good.run.event, payload=json.loads(json.dumps(good.run.event.payload)))
    event.payload["repository"]["private"] = shop.repository.private = True
    shop.variables |= variables
    try:
        run = shop.run(DELIVER, event, again=good.run, only=("attest", "staging"))
    finally:
        shop.repository.private = False
        for name in variables:
            del shop.variables[name]

    assert (run.jobs["attest"], run.jobs["staging"]) == ("success", "success"), run.faults
    assert run.step("attest", "actions/attest").outcome == "skipped"
    assert said in run.log("staging")


@pytest.fixture
def fresh(light: Project, images: Images, tmp_path: Path) -> Iterator[World]:
    """A repository into which somebody pushed a bake, before anything was trained."""
    project = light.copy(tmp_path / "flight-delays")
    project.forget()
    project.commit("Bake")
    with World.open(tmp_path / "world", project, name="octocat/fresh") as world:
        world.variables["REGISTRY"] = images.name.replace("shop", "fresh")
        yield world


@executes(DELIVER, *JOBS)
def test_a_first_push_without_a_lock_is_trained_and_delivered(fresh: World, images: Images) -> None:
    run = fresh.run(DELIVER, fresh.push())

    assert run.jobs == DELIVERED, run.faults
    record = json.loads((run.artifact("record") / "record.json").read_text())
    assert record["reproduced"] == "trained"
    own = replace(images, path="octocat/fresh")
    assert own.digest("production") == own.digest(f"sha-{run.event.sha}") is not None
