from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from host import Hub, commit, run_pipeline, written
from oci import World

from ml.errors import SourceError, UserError
from ml.operations import ci, deliver, promote, record
from ml.review import sides
from ml.serving import build

PYPROJECT = b'[project]\nname = "late"\ndescription = "Late?"\n'
SERVE = b"serve:\n  workers: 1\n"
NOW = date(2026, 3, 31)


def read(files: dict[str, bytes]) -> Any:
    return lambda name: ({"pyproject.toml": PYPROJECT, "params.yaml": b""} | files).get(name)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let any params.yaml do, of which only the text counts."""

    class Read:
        def __init__(self, text: str) -> None:
            self.serve = self
            self.text = text

        def model_dump(self) -> dict[str, str]:
            return {"text": self.text}

    monkeypatch.setattr(deliver.params, "parse", lambda text, _: Read(text))


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize(
    "files",
    [
        pytest.param({"src/ml/serving/routes.py": b"quick"}, id="code of the service"),
        pytest.param({"requirements/serving.txt": b"numpy==3"}, id="requirements"),
        pytest.param({"deploy/Dockerfile": b"FROM scratch"}, id="recipe"),
        pytest.param({"params.yaml": SERVE}, id="settings"),
        pytest.param({"pyproject.toml": PYPROJECT.replace(b"late", b"early")}, id="name"),
        pytest.param({".python-version": b"3.13"}, id="Python"),
    ],
)
def test_whatever_an_image_holds_changes_its_content(files: dict[str, bytes]) -> None:
    before = deliver.content(read({}), "a" * 32)

    assert deliver.content(read(files), "a" * 32) != before
    assert deliver.content(read({}), "b" * 32) != before


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("name", ["README.md", "tests/test_x.py", "src/ml/review/gates.py", "docs/ci.md", "dvc.lock"])
def test_what_an_image_does_not_hold_leaves_its_content(name: str) -> None:
    assert deliver.content(read({name: b"other"}), "a" * 32) == deliver.content(read({}), "a" * 32)


def test_the_recipe_names_files_that_a_project_has() -> None:
    root = Path(deliver.__file__).parents[3]

    assert [name for name in deliver.RECIPE if name.startswith("src/") and not (root / name).is_file()] == []
    assert {f"src/ml/{name}" for name in build.CODE} < set(deliver.RECIPE)


def grype(*holes: tuple[str, str, list[str]], related: str = "") -> bytes:
    matches = [
        {
            "vulnerability": {
                "id": name,
                "severity": severity,
                "fix": {"state": "fixed" if fixed else "not-fixed", "versions": fixed},
            },
            "relatedVulnerabilities": [{"id": related}] if related else [],
            "artifact": {"name": "numpy", "version": "1.0"},
        }
        for name, severity, fixed in holes
    ]
    return json.dumps({"matches": matches, "descriptor": {"name": "grype", "version": "0.1"}}).encode()


def exemption(name: str, until: date) -> record.Exemption:
    return record.Exemption(id=name, until=until, reason="not reached")


def test_a_critical_vulnerability_with_a_fix_blocks_and_nothing_less_does() -> None:
    found = grype(("GHSA-1", "Critical", ["1.1"]), ("GHSA-2", "Critical", []), ("GHSA-3", "High", ["2"]))

    result, sentences = deliver.judge(found, [], NOW)

    assert result.fixable == ["GHSA-1"]
    assert sentences == ["GHSA-1 in numpy 1.0, fixed in 1.1"]


def test_an_exemption_counts_to_the_end_of_its_day_under_any_of_the_names() -> None:
    found = grype(("GHSA-1", "Critical", ["1.1"]), related="CVE-1")

    assert deliver.judge(found, [exemption("CVE-1", NOW)], NOW)[0].exempted == [exemption("CVE-1", NOW)]
    result, (sentence,) = deliver.judge(found, [exemption("CVE-1", date(2026, 3, 30))], NOW)
    assert (result.fixable, result.exempted) == (["GHSA-1"], [])
    assert sentence.endswith("; its exemption ended on 2026-03-30")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"matches": []}', b'{"matches": [{}], "descriptor": {"name": "grype"}}']
)
def test_what_is_no_scan_is_not_taken_for_a_clean_one(content: bytes, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    written(deliver.GRYPE, content)

    with pytest.raises(SourceError, match="is no scan"):
        deliver.scan()
    deliver.GRYPE.unlink()
    with pytest.raises(SourceError, match="is no scan"):
        deliver.scan()
    assert not deliver.SCAN.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("exemptions:\n  - {id: CVE-1, until: 2026-03-31}\n", "exemptions.0.reason"),
        ("exemptions:\n  - {id: CVE-1, until: soon, reason: x}\n", "exemptions.0.until"),
        ("exceptions: []\n", "exemptions"),
        ("{", "is not YAML"),
    ],
)
def test_an_exemption_without_day_or_reason_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "vulnerabilities.yml"
    path.write_text(text)

    with pytest.raises(UserError) as caught:
        deliver.exemptions(path)
    assert said in str(caught.value)
    assert "an entry has id, until (a day) and reason" in str(caught.value)


def test_the_exemptions_that_a_project_comes_with_are_none() -> None:
    assert deliver.exemptions(Path(deliver.__file__).parents[4] / ".github/vulnerabilities.yml") == []
    assert deliver.exemptions(Path("nowhere.yml")) == []


@pytest.fixture
def same(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return what takes the place of the content, by commit."""
    told: dict[str, str] = {}
    monkeypatch.setattr(deliver, "content", lambda read, _: told[read.__self__.sha])
    return told


@pytest.fixture
def locked(world: World) -> World:
    """Return the world with a commit, the fifth, whose lock names a model."""
    run_pipeline({ci.MODEL: b"model"})
    world.commits.append(commit("a model"))
    return world


def push_event(world: World, before: int, after: int) -> dict[str, Any]:
    return {"before": world.commits[before], "after": world.commits[after], "ref": "refs/heads/main"}


def test_the_first_delivery_needs_no_production(locked: World) -> None:
    found = deliver.plan(push_event(locked, 3, 4) | {"before": ci.NOTHING})

    assert (found.deliver, found.train, found.base, found.baseline) == (True, False, "", "")


def test_a_merge_is_compared_with_what_production_runs(locked: World, same: dict[str, str]) -> None:
    digest = locked.delivered(0)
    promote.promote("production", digest)

    same[locked.commits[4]] = "content 0"
    stays = deliver.plan(push_event(locked, 3, 4))
    same[locked.commits[4]] = "another"
    goes = deliver.plan(push_event(locked, 3, 4))

    assert not stays.deliver
    assert "changes neither model nor service, production stays model#production#1" in stays.why
    assert (goes.deliver, goes.base) == (True, locked.commits[3])
    assert goes.baseline == f"{locked.store.image}@{digest}"


def test_without_a_lock_it_is_what_the_files_can_change_that_counts(world: World) -> None:
    promote.promote("production", world.delivered(3))
    written(Path("README.md"), b"# Late\n")
    world.commits.append(commit("prose"))

    assert not deliver.plan(push_event(world, 3, 4)).deliver
    written(Path("src/ml/pipeline/features.py"), b"more\n")
    world.commits.append(commit("another model"))
    found = deliver.plan(push_event(world, 4, 5))
    assert (found.deliver, found.train) == (True, True)


def test_an_image_that_was_deleted_from_the_registry_is_not_compared_with(world: World) -> None:
    digest = world.delivered(0)
    promote.promote("production", digest)
    world.store.delete(digest)

    found = deliver.plan(push_event(world, 2, 3))

    assert (found.deliver, found.baseline) == (True, "")
    assert "no longer in" in found.why


def test_a_registry_that_does_not_answer_is_no_reason_to_deliver(world: World) -> None:
    promote.promote("production", world.delivered(0))
    world.store.stop()

    with pytest.raises(UserError, match=r"127\.0\.0\.1"):
        deliver.plan(push_event(world, 2, 3))


@pytest.mark.parametrize(
    ("labels", "bump"),
    [
        (["bug", "release:minor"], "minor"),
        (["Release:Major", "release:patch"], "major"),
        (["release:patch"], "patch"),
        (["release:huge"], None),
    ],
)
def test_a_label_of_the_merged_pull_request_starts_the_release(
    world: World, hub: Hub, labels: list[str], bump: str | None
) -> None:
    sha = sides.Commit.at("HEAD").sha
    pull = {"number": 7, "merged_at": "2026-01-01", "merge_commit_sha": sha, "labels": [{"name": n} for n in labels]}
    other = pull | {"merge_commit_sha": "0" * 40, "labels": [{"name": "release:major"}]}
    hub.on(f"GET commits/{sha}/pulls", lambda _: [other, pull])
    hub.on("GET .", lambda _: {"default_branch": "main", "private": False})
    started: list[Any] = []
    hub.on("POST actions/workflows/release.yml/dispatches", lambda call: started.append(call.body) or (204, {}, None))

    said = deliver.start_release()

    wanted = [{"ref": "main", "inputs": {"bump": bump, "commit": sha}}] if bump else []
    assert started == wanted
    assert ("asks for" in said) is bool(bump)


def merged(world: World, hub: Hub, labels: dict[int, str]) -> None:
    """Let each commit of main be the merge of a pull request, some with a label."""
    for number, sha in enumerate(world.commits):
        names = [{"name": labels[number]}] if number in labels else []
        pull = {"number": 10 + number, "merged_at": "2026-01-01", "merge_commit_sha": sha, "labels": names}
        hub.on(f"GET commits/{sha}/pulls", lambda _, pull=pull: [pull])


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a job is told and tells, in a folder."""
    for name in ("OUTPUT", "STEP_SUMMARY", "EVENT_PATH"):
        monkeypatch.setenv(f"GITHUB_{name}", str(tmp_path / name))
    return tmp_path


def test_of_several_merged_at_once_the_largest_version_counts(world: World, hub: Hub, told: Path) -> None:
    (told / "EVENT_PATH").write_text(json.dumps(push_event(world, 0, 3)))
    merged(world, hub, {0: "release:major", 1: "release:minor", 2: "release:patch"})

    assert deliver.asked() == ("minor", "#11")


def test_a_release_that_production_did_not_take_is_told_and_not_made(
    world: World, hub: Hub, told: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (told / "EVENT_PATH").write_text(json.dumps(push_event(world, 2, 3)))
    merged(world, hub, {3: "release:minor"})
    monkeypatch.setenv("PROMOTED", "failure")

    said = deliver.start_release()

    assert said.endswith("(failure); the minor version that #13 asks for is not made: make release BUMP=minor")
    assert capsys.readouterr().out == f"::warning::{said}\n"


def test_a_release_of_a_merge_that_promotes_nothing_is_told(world: World, hub: Hub, told: Path) -> None:
    promote.promote("production", world.delivered(0))
    (told / "EVENT_PATH").write_text(json.dumps(push_event(world, 2, 3)))
    merged(world, hub, {3: "release:patch"})

    said = deliver.write_plan()

    assert "deliver=false" in (told / "OUTPUT").read_text().splitlines()
    assert said.endswith("the patch version that #13 asks for is not made: make release BUMP=patch")


def test_a_registry_that_takes_nothing_is_one_line_with_what_to_do(program: Any, world: World) -> None:
    program("docker", "import sys\nsys.stderr.write('x\\ndenied: permission_denied: write_package\\n')\nsys.exit(1)")

    with pytest.raises(UserError, match=r"write_package\); on the package's page, .* the role Write$"):
        deliver._engine(["docker", "push", "x"], "ghcr.io/octo/late takes no image")


def test_the_plan_is_told_to_later_jobs(world: World, told: Path) -> None:
    (told / "EVENT_PATH").write_text(json.dumps(push_event(world, 2, 3)))

    said = deliver.write_plan()

    assert "deliver=true" in (told / "OUTPUT").read_text().splitlines()
    assert (told / "STEP_SUMMARY").read_text().strip() == said
