"""Ring 5: delivery, executed for real: one image from the merge to production, and what must never get there.

One story in one world with a registry, told by fixtures that follow each other; the refusals play on its end, and run
of a workflow only the jobs in question.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import images as registries
import pytest
from images import Images
from real import Project
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
    names = sorted(ref for ref in world.refs("refs/tags/model"))
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
    """Merge a change, and return its delivery."""
    pull = world.pull_request(world.change(edits, title, **more), title=title)
    pull.record.labels += [label] if label else []
    return world.run(DELIVER, world.merge(pull))


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
    """What follows the merge of another model, whose service is quick again and which asks for a minor version."""
    edits = {ROUTES: (SLOW, QUICK), "params.yaml": ("max_leaf_nodes: 31", "max_leaf_nodes: 24")}
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
    assert sum(job.seconds for job in prose.run.outcome.found.values()) <= 0.1 * sum(
        job.seconds for job in first.run.outcome.found.values()
    )


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
    print(f"time to restore: {rolled.run.step('rollback', 'make rollback').seconds:.1f} s")
