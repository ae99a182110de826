from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, field
from typing import Any

import pytest
from conftest import Program
from host import Hub, git
from oci import World

from ml.errors import UserError
from ml.operations import promote, release
from ml.review.verdict import Interval, Metric, Result, Side, Verdict


def verdict(value: float) -> bytes:
    """Return a verdict with one metric."""
    about = Interval(value=value, low=value - 0.01, high=value + 0.01)
    found = Verdict(
        project="late",
        task="binary",
        decision="warn",
        objective="roc_auc",
        confidence=0.95,
        candidate=Side(ref="work tree", commit="0" * 40),
        production=None,
        base=None,
        results=[Result(gate="floor", status="passed", sentence="good enough")],
        metrics=[Metric(name="roc_auc", better="higher", rows=100, candidate=about)],
    )
    return found.model_dump_json().encode()


@dataclass
class Releases:
    """GitHub's releases, behind a hub."""

    hub: Hub
    made: dict[int, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.hub.on("GET releases", lambda _: [*self.made.values()])
        self.hub.on("POST releases", self._make)
        self.hub.on("POST releases/generate-notes", self._notes)
        self.hub.on("POST uploads", self._take)

    def _notes(self, call: Any) -> dict[str, str]:
        self.asked.append(call.body)
        return {"name": "", "body": "## What's Changed\n* Learn less by @ada"}

    def _make(self, call: Any) -> tuple[int, dict[str, str], Any]:
        number = len(self.made) + 1
        where = f"{self.hub.root}/repos/octo/late/uploads{{?name,label}}"
        entry = {**call.body, "id": number, "upload_url": where, "html_url": f"https://github.test/{number}"}
        self.made[number] = entry
        self.hub.on(f"PATCH releases/{number}", lambda call: entry.update(call.body) or entry)
        self.hub.on(f"DELETE releases/{number}", lambda _: self.made.pop(number) and (204, {}, None))
        return 201, {}, entry

    def _take(self, call: Any) -> tuple[int, dict[str, str], Any]:
        self.files[call.query["name"]] = call.body if isinstance(call.body, bytes) else b""
        return 201, {}, {"id": 1}


@pytest.fixture
def releases(world: World, hub: Hub) -> Releases:
    return Releases(hub)


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as a workflow does."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.delenv("GITHUB_REF_TYPE", raising=False)


def produced(world: World, number: int, value: float = 0.7, **changes: Any) -> str:
    """Return an image that production runs, of a commit."""
    digest = world.delivered(number, files={"verdict.json": verdict(value)}, **changes)
    promote.promote("production", digest)
    return digest


def origin_tags(world: World) -> set[str]:
    return {tag for tag in world.tags() if tag.startswith("model@")}


def test_a_laptop_only_makes_the_tag(world: World) -> None:
    digest = produced(world, 0)

    said = release.run(None, None)

    assert said.startswith("model@v1.0.0 leads to")
    assert origin_tags(world) == {"model@v1.0.0"}
    kept = git(world.origin, "cat-file", "-p", "model@v1.0.0")
    assert f"Digest: {digest}" in kept
    assert f"object {world.commits[0]}" in kept
    assert world.registry.resolve("v1.0.0") is None


@pytest.mark.parametrize(("bump", "version"), [("patch", "v1.0.1"), ("minor", "v1.1.0"), ("major", "v2.0.0")])
def test_the_next_version_follows_the_highest(world: World, bump: str, version: str) -> None:
    produced(world, 0)
    release.run(None, None)
    produced(world, 1)

    release.run(bump, None)

    assert origin_tags(world) == {"model@v1.0.0", f"model@{version}"}


@pytest.mark.usefixtures("inside")
def test_a_release_names_the_digest_that_was_delivered_and_holds_its_files(world: World, releases: Releases) -> None:
    digest = produced(world, 0)

    said = release.run("minor", world.commits[0])

    assert said == "v1.0.0 is released: https://github.test/1"
    assert {name: world.registry.resolve(name) for name in ("v1.0.0", "v1.0", "v1")} == dict.fromkeys(
        ("v1.0.0", "v1.0", "v1"), digest
    )
    assert releases.made[1]["draft"] is False
    assert releases.made[1]["tag_name"] == "model@v1.0.0"
    assert {"model.onnx", "card.md", "verdict.json", "record.json", release.SUMS} <= set(releases.files)
    body = releases.made[1]["body"]
    assert digest in body
    assert "| `roc_auc` | higher | 0.7 (0.69 to 0.71) |" in body
    assert "Learn less by @ada" in body


@pytest.mark.parametrize(
    "refusal",
    [
        "remote: refusing to allow a GitHub App to create or update workflow `x.yml` without `workflows` permission",
        " ! [remote rejected] model@v1.0.0 -> model@v1.0.0 (refusing to allow a GitHub App to create or update "
        "workflow `x.yml` without `workflows` permission)\nerror: failed to push some refs to 'origin'",
    ],
    ids=["of a hook", "of GitHub"],
)
def test_a_commit_that_no_workflow_may_tag_is_told_with_what_to_do(
    world: World, releases: Releases, inside: None, program: Program, refusal: str
) -> None:
    produced(world, 0)
    real = shutil.which("git")
    program(
        "git",
        f"import os, sys\nif sys.argv[1] == 'push':\n    sys.exit({refusal!r})\nos.execv({real!r}, sys.argv)\n",
    )

    with pytest.raises(
        UserError, match=rf"^GitHub lets no workflow tag .* make release COMMIT={world.commits[0][:10]}"
    ):
        release.run("minor", None)

    assert releases.made == {}


@pytest.mark.usefixtures("inside")
def test_notes_say_what_changed_since_the_version_before(world: World, releases: Releases) -> None:
    produced(world, 0, 0.7)
    release.run("minor", None)
    produced(world, 1, 0.8)

    release.run("minor", None)

    body = releases.made[2]["body"]
    assert "v1.0.0 → v1.1.0:** the model" in body
    assert "| metric | better | v1.0.0 | v1.1.0 |" in body
    assert "| `roc_auc` | higher | 0.7 (0.69 to 0.71) | 0.8 (0.79 to 0.81) |" in body
    assert releases.asked[-1]["previous_tag_name"] == "model@v1.0.0"


@pytest.mark.usefixtures("inside")
def test_a_version_whose_record_is_gone_is_not_compared_with(
    world: World, releases: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    produced(world, 0)
    release.run("minor", None)
    produced(world, 1)
    monkeypatch.setattr(release, "earlier", lambda *_: (None, None))

    release.run("patch", None)

    assert "What v1.0.0 was made of is no longer in the registry" in releases.made[2]["body"]


@pytest.mark.usefixtures("inside")
def test_running_it_again_changes_nothing_and_finishes_what_was_killed(
    world: World, releases: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    produced(world, 0)
    with monkeypatch.context() as patch:
        patch.setattr(release.GitHub, "upload", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            release.run("minor", None)
    assert [one["draft"] for one in releases.made.values()] == [True]

    first = release.run("minor", None)
    again = release.run("minor", None)

    assert first == again
    assert [one["draft"] for one in releases.made.values()] == [False]
    assert origin_tags(world) == {"model@v1.0.0"}


@pytest.mark.usefixtures("inside")
def test_a_tag_that_a_person_pushed_is_published(
    world: World, releases: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = produced(world, 0)
    git(world.folder / "clone", "tag", "-a", "-m", "mine", "model@v3.1.4", world.commits[0])
    git(world.folder / "clone", "push", "--quiet", "origin", "model@v3.1.4")
    for name, value in (("REF_TYPE", "tag"), ("REF", "refs/tags/model@v3.1.4")):
        monkeypatch.setenv(f"GITHUB_{name}", value)

    assert release.run(None, None).startswith("v3.1.4 is released")
    assert world.registry.resolve("v3.1.4") == world.registry.resolve("v3") == digest


@pytest.mark.usefixtures("inside")
def test_only_the_highest_version_is_githubs_latest(
    world: World, releases: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    produced(world, 0)
    release.run("minor", world.commits[0])
    produced(world, 1)
    git(world.folder / "clone", "tag", "-a", "-m", "an old line", "model@v0.9.1", world.commits[1])
    git(world.folder / "clone", "push", "--quiet", "origin", "model@v0.9.1")
    for name, value in (("REF_TYPE", "tag"), ("REF", "refs/tags/model@v0.9.1")):
        monkeypatch.setenv(f"GITHUB_{name}", value)

    release.run(None, None)

    assert {one["tag_name"]: one["make_latest"] for one in releases.made.values()} == {
        "model@v1.0.0": "true",
        "model@v0.9.1": "false",
    }


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(
    ("tag", "number", "said"),
    [
        pytest.param("model@v9.0.0", 3, "was never delivered to production", id="never delivered"),
        pytest.param("model@v9.0.0", 0, "is v1.0.0 already: a commit has one version", id="a second version"),
        pytest.param("model@next", 0, "model@next is no version", id="no version"),
    ],
)
def test_a_tag_that_names_nothing_that_ran_is_refused(
    world: World, releases: Releases, monkeypatch: pytest.MonkeyPatch, tag: str, number: int, said: str
) -> None:
    produced(world, 0)
    release.run("minor", None)
    git(world.folder / "clone", "tag", "-a", "-m", "mine", tag, world.commits[number])
    git(world.folder / "clone", "push", "--quiet", "origin", tag)
    for name, value in (("REF_TYPE", "tag"), ("REF", f"refs/tags/{tag}")):
        monkeypatch.setenv(f"GITHUB_{name}", value)

    with pytest.raises(UserError, match=said):
        release.run(None, None)

    assert len(releases.made) == 1
    assert world.registry.resolve("v9.0.0") is None


def test_a_laptop_refuses_a_second_version_of_one_commit(world: World) -> None:
    produced(world, 0)
    release.run(None, None)

    with pytest.raises(UserError, match=r"is v1\.0\.0 already: a commit has one version"):
        release.run("major", None)


def test_before_the_first_delivery_there_is_nothing_to_name(world: World) -> None:
    with pytest.raises(UserError, match="production runs nothing yet"):
        release.run(None, None)


@pytest.mark.usefixtures("inside")
def test_an_image_that_nobody_attested_gets_no_version(world: World, releases: Releases) -> None:
    digest = produced(world, 0)
    for path in (world.attestations / digest.removeprefix("sha256:")).iterdir():
        path.unlink()

    with pytest.raises(UserError, match="is not promoted"):
        release.run("minor", None)

    assert origin_tags(world) == set()
    assert world.registry.resolve("v1.0.0") is None


@pytest.mark.parametrize(
    ("known", "version", "names"),
    [
        (["v1.0.0"], "v1.0.0", ["v1.0.0", "v1.0", "v1"]),
        (["v1.0.0", "v1.0.1", "v1.1.0"], "v1.0.1", ["v1.0.1", "v1.0"]),
        (["v1.0.1", "v1.0.0"], "v1.0.0", ["v1.0.0"]),
        (["v1.9.0", "v2.0.0"], "v1.9.0", ["v1.9.0", "v1.9", "v1"]),
    ],
)
def test_short_tags_follow_the_highest_of_them(known: list[str], version: str, names: list[str]) -> None:
    assert release.names(version, dict.fromkeys(known, "")) == names


def test_checksums_are_those_of_the_files(world: World, releases: Releases, inside: None) -> None:
    produced(world, 0)

    release.run("minor", None)

    sums = dict(reversed(line.split("  ")) for line in releases.files[release.SUMS].decode().splitlines())
    assert set(sums) == set(releases.files) - {release.SUMS}
    assert sums["model.onnx"] == hashlib.sha256(b"model 0").hexdigest()
