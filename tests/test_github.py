"""Ring 3: what a project tells GitHub besides its workflows: rulesets, owners, Dependabot, templates."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from conftest import PRODUCT, ROOT, Bake, require, run
from ruamel.yaml import YAML

GITHUB_ACTIONS = 15368  # the app behind GITHUB_TOKEN and every job's check
REPOSITORY = "src/ml/operations/repository.py"


def load(path: Path) -> dict:
    return YAML(typ="safe").load(path.read_text())


@pytest.fixture(scope="module")
def rulesets() -> dict[str, dict]:
    """The rulesets by file, and their rules by type."""
    found = {path.stem: json.loads(path.read_text()) for path in (ROOT / PRODUCT / ".github/rulesets").glob("*.json")}
    return {name: rules | {"by_type": {rule["type"]: rule for rule in rules["rules"]}} for name, rules in found.items()}


def test_a_merge_needs_the_one_check_of_github_actions_and_nobody_goes_past_it(rulesets: dict[str, dict]) -> None:
    main = rulesets["main"]

    checks = main["by_type"]["required_status_checks"]["parameters"]["required_status_checks"]
    assert checks == [{"context": "all-checks-pass", "integration_id": GITHUB_ACTIONS}]
    assert {"deletion", "non_fast_forward"} < set(main["by_type"])
    assert (main["bypass_actors"], main["enforcement"]) == ([], "active")
    assert main["conditions"]["ref_name"]["include"] == ["~DEFAULT_BRANCH"]


def test_a_code_owner_approves_and_one_who_is_alone_may_merge_a_pull_request(rulesets: dict[str, dict]) -> None:
    review = rulesets["review"]

    parameters = review["by_type"]["pull_request"]["parameters"]
    assert parameters["require_code_owner_review"] is True
    # With none required GitHub asks no code owner either.
    assert parameters["required_approving_review_count"] == 1
    assert parameters["dismiss_stale_reviews_on_push"] is True
    assert [actor["bypass_mode"] for actor in review["bypass_actors"]] == ["pull_request"]


def test_a_tag_of_the_model_can_be_made_and_neither_moved_nor_deleted(rulesets: dict[str, dict]) -> None:
    tags = rulesets["tags"]

    assert tags["target"] == "tag"
    assert tags["conditions"]["ref_name"]["include"] == ["refs/tags/model@*", "refs/tags/model#*"]
    assert set(tags["by_type"]) == {"deletion", "non_fast_forward", "update"}


def test_who_owns_the_repository_owns_what_judges_and_ships(bake: Bake) -> None:
    project = bake(github_owner="lovelace-lab")

    lines = [line.split() for line in (project / ".github/CODEOWNERS").read_text().splitlines()]
    owned = {line[0]: line[1:] for line in lines if not line[0].startswith("#")}
    assert {"/.github/", "/params.yaml", "/tests/behaviour.yaml", "/src/ml/review/", "/dvc.yaml"} < set(owned)
    assert {tuple(owners) for owners in owned.values()} == {("@lovelace-lab",)}
    assert [pattern for pattern in owned if not list(project.glob(pattern.strip("/")))] == []


def test_dependabot_of_a_project_watches_actions_locks_and_images_weekly_in_groups_after_a_week() -> None:
    inner = load(ROOT / PRODUCT / ".github/dependabot.yml")["updates"]

    watched = {update["package-ecosystem"]: update for update in inner}
    assert set(watched) == {"github-actions", "pip", "docker"}
    assert watched["docker"]["directory"] == "/deploy/compose"
    assert watched["github-actions"]["directories"] == ["/", "/.github/actions/*"]
    for update in inner:
        assert update["schedule"]["interval"] == "weekly"
        assert update["cooldown"]["default-days"] == 7
        assert [group["patterns"] for group in update["groups"].values()] == [["*"]]


def test_dependabot_leaves_alone_what_is_pinned_twice_and_reads_both_locks() -> None:
    pip = load(ROOT / PRODUCT / ".github/dependabot.yml")["updates"][1]
    locks = list((ROOT / PRODUCT / "requirements").glob("*.txt"))

    twice = set()
    for lock in locks:
        # Dependabot passes over larger files.
        assert lock.stat().st_size < 500_000
        names = Counter(re.findall(r"^([a-z0-9][a-z0-9.-]*)==", lock.read_text(), re.M))
        twice |= {name for name, count in names.items() if count > 1}
    assert {entry["dependency-name"] for entry in pip["ignore"]} == twice


def test_zizmor_finds_nothing_in_the_projects_dependabot() -> None:
    path = ROOT / PRODUCT / ".github/dependabot.yml"

    result = run(require("zizmor"), "--offline", "--no-progress", "--color=never", "--persona=pedantic", path, cwd=ROOT)

    assert result.returncode == 0, result.stdout + result.stderr


def test_issue_forms_have_what_github_asks_of_a_form(template: Path) -> None:
    forms = [load(path) for path in (template / PRODUCT / ".github/ISSUE_TEMPLATE").glob("*.yml")]

    assert len(forms) == 2
    for form in forms:
        asked = [field for field in form["body"] if field["type"] != "markdown"]
        assert form["name"]
        assert form["description"]
        assert len({field["id"] for field in asked}) == len(asked) > 1
        assert all(field["attributes"]["label"] for field in asked)


def test_every_label_of_a_form_is_githubs_own_or_made(template: Path) -> None:
    made = re.findall(r'^    "([a-z:]+)": \("[0-9a-f]{6}"', (template / PRODUCT / REPOSITORY).read_text(), re.M)
    forms = [load(path) for path in (template / PRODUCT / ".github/ISSUE_TEMPLATE").glob("*.yml")]

    used = {label for form in forms for label in form["labels"]}
    assert {"rollback", "drift"} < set(made)
    assert used <= {*made, "bug"}
    assert used
