"""Sets up this repository on GitHub: the rules of .github/rulesets/, labels, environments, what workflows may do.

What stands there is compared first, so that a second run changes nothing. What the plan or an organisation does not
allow is said with what to do by hand. Reference: https://docs.github.com/en/rest
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ml.errors import UserError
from ml.operations.github import GitHub, NotFoundError

RULESETS = Path(".github/rulesets")
LABELS = {  # by name: colour, meaning
    "drift": ("d93f0b", "The data or the model's performance has moved"),
    "prediction": ("fbca04", "An answer of the service that is not what it should be"),
    "release:major": ("0e8a16", "When merged, the next version is a major one"),
    "release:minor": ("0e8a16", "When merged, the next version is a minor one"),
    "release:patch": ("0e8a16", "When merged, the next version is a patch"),
    "rollback": ("b60205", "Production went back; promotion is frozen while this is open"),
}
ACTIONS = {"default_workflow_permissions": "read", "can_approve_pull_request_reviews": True}
MAIN_ONLY = {"protected_branches": False, "custom_branch_policies": True}
REFUSAL = re.compile(r"GitHub refuses \S+ \S+ \((403|404|409|422)\): (.*)", re.DOTALL)
NO_RIGHT = re.compile(r"not accessible by|must have admin", re.IGNORECASE)
UPGRADE = "make the repository public or take a paid plan, then make github again; until then"

Send = Callable[..., Any]
Setting = tuple[str, str, Callable[[], bool]]  # what, what to do by hand, the act: whether something changed


class UnmetError(UserError):
    """Something that only a person can put right."""


def run(github: GitHub, *, dry_run: bool) -> Iterator[str]:
    """Yield a line for each setting: set, kept (it was so already) or refused; with `dry_run` nothing is sent.

    Raises UserError where the token may not administer the repository.
    """
    if not github.token:
        raise UserError("there is no token for GitHub: gh auth login, or GH_TOKEN=…")
    try:
        about = github.get(".")
    except NotFoundError:
        raise UserError(f"{github.name} is not on GitHub, or this token does not see it: gh repo create") from None
    if not about.get("permissions", {}).get("admin"):
        raise UserError(f"this token may not administer {github.name}: gh auth login as one of its administrators")
    send: Send = (lambda *_: None) if dry_run else github.send
    for what, by_hand, act in settings(github, send, about["default_branch"]):
        yield _line(what, by_hand, act, "would set" if dry_run else "set")


def settings(github: GitHub, send: Send, branch: str) -> Iterator[Setting]:
    """Yield each setting with what to do by hand where it is refused, and the act that makes it so."""
    for path in sorted(RULESETS.glob("*.json")):
        rules = json.loads(path.read_text(encoding="utf-8"))
        remedy = f"{UPGRADE} nothing but care keeps to {path}"
        yield f"ruleset {rules['name']}", remedy, lambda rules=rules: _ruleset(github, send, rules)
    remedy = "name a person or @ORGANISATION/TEAM who can write to it, on the default branch"
    yield "owners in .github/CODEOWNERS", remedy, lambda: _owners(github)
    remedy = "Settings > Actions > General > Workflow permissions; an organisation may decide it for all"
    yield "workflows read by default and may open pull requests", remedy, lambda: _actions(github, send)
    for name in LABELS:
        yield f"label {name}", "Issues > Labels", lambda name=name: _label(github, send, name)
    for name in ("staging", "production", "rollback"):
        remedy = f"{UPGRADE} any branch may deploy"
        what = f"environment {name}: only {branch} deploys to it"
        yield what, remedy, lambda name=name: _environment(github, send, name, branch)
    remedy = f"{UPGRADE} merging is the approval"
    yield "environment production: you approve what goes there", remedy, lambda: _reviewer(github, send)


def holds(has: Any, wanted: Any) -> bool:
    """Return whether an answer of the API says all that is wanted; it may say more, and lists have no order."""
    if isinstance(wanted, dict):
        return isinstance(has, dict) and all(key in has and holds(has[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return len(has) == len(wanted) and all(any(holds(entry, one) for entry in has) for one in wanted)
    return bool(has == wanted)


def _line(what: str, by_hand: str, act: Callable[[], bool], verb: str) -> str:
    try:
        return f"{verb if act() else 'kept':9}  {what}"
    except UnmetError as error:
        return f"{'refused':9}  {what}: {error}; by hand: {by_hand}"
    except UserError as error:
        match = REFUSAL.search(str(error))
        if match is None:
            raise
        if NO_RIGHT.search(match[2]):
            raise UserError(f"this token may not set {what} ({match[2]}): it needs Administration: write") from None
        return f"{'refused':9}  {what}: {match[2]} ({match[1]}); by hand: {by_hand}"


def _ruleset(github: GitHub, send: Send, rules: dict[str, Any]) -> bool:
    mine = github.pages("rulesets", includes_parents="false")
    found = next((entry["id"] for entry in mine if entry["name"] == rules["name"]), None)
    if found is None:
        send("POST", "rulesets", rules)
        return True
    if holds(github.get(f"rulesets/{found}"), rules):
        return False
    send("PUT", f"rulesets/{found}", rules)
    return True


def _owners(github: GitHub) -> bool:
    try:
        errors = github.get("codeowners/errors")["errors"]
    except NotFoundError:
        raise UnmetError("it is not on the default branch yet") from None
    if errors:
        raise UnmetError(f"line {errors[0]['line']}, {errors[0]['kind'].lower()}")
    return False


def _actions(github: GitHub, send: Send) -> bool:
    if holds(github.get("actions/permissions/workflow"), ACTIONS):
        return False
    send("PUT", "actions/permissions/workflow", ACTIONS)
    return True


def _label(github: GitHub, send: Send, name: str) -> bool:
    if name in (label["name"].lower() for label in github.pages("labels")):
        return False
    colour, meaning = LABELS[name]
    send("POST", "labels", {"name": name, "color": colour, "description": meaning})
    return True


def _environment(github: GitHub, send: Send, name: str, branch: str) -> bool:
    present = _protection(github, name)
    path = f"environments/{name}/deployment-branch-policies"
    if present is not None and holds(present.get("deployment_branch_policy"), MAIN_ONLY):
        if branch in (policy["name"] for policy in github.pages(path, "branch_policies")):
            return False
    else:
        send("PUT", f"environments/{name}", {**(present or {}), "deployment_branch_policy": MAIN_ONLY})
    send("POST", path, {"name": branch})
    return True


def _reviewer(github: GitHub, send: Send) -> bool:
    present = _protection(github, "production") or {"deployment_branch_policy": MAIN_ONLY}
    if present.get("reviewers"):
        return False
    me = {"type": "User", "id": github.get("/user")["id"]}
    send("PUT", "environments/production", {**present, "reviewers": [me]})
    return True


def _protection(github: GitHub, name: str) -> dict[str, Any] | None:
    """Return an environment's protection in the form in which it is sent; what is not sent again would be lost."""
    try:
        about = github.get(f"environments/{name}")
    except NotFoundError:
        return None
    rules = {rule["type"]: rule for rule in about.get("protection_rules", [])}
    asked = rules.get("required_reviewers", {})
    protection = {
        "wait_timer": rules.get("wait_timer", {}).get("wait_timer"),
        "prevent_self_review": asked.get("prevent_self_review"),
        "reviewers": [{"type": one["type"], "id": one["reviewer"]["id"]} for one in asked.get("reviewers", [])],
        "deployment_branch_policy": about.get("deployment_branch_policy"),
    }
    # A plan may refuse even a zero.
    return {key: value for key, value in protection.items() if value}
