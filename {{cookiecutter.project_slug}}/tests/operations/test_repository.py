from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from ml import cli
from ml.operations import repository

RULESETS = Path(repository.__file__).parents[3] / ".github/rulesets"
UPGRADE = (403, {"message": "Upgrade to GitHub Pro or make this repository public to enable this feature."})
NOT_YOURS = (403, {"message": "Resource not accessible by personal access token"})
Answer = tuple[int, Any]


@dataclass
class Host:
    """What GitHub has of one repository, and how it answers; `refused` are answers by method and part of the path."""

    admin: bool = True
    refused: dict[str, Answer] = field(default_factory=dict)
    rulesets: list[dict[str, Any]] = field(default_factory=list)
    labels: list[dict[str, Any]] = field(default_factory=lambda: [{"name": "bug"}])
    actions: dict[str, Any] = field(default_factory=lambda: {"default_workflow_permissions": "write"})
    environments: dict[str, dict[str, Any]] = field(default_factory=dict)
    branches: dict[str, list[str]] = field(default_factory=dict)
    owners: list[dict[str, Any]] = field(default_factory=list)
    sent: list[tuple[str, str]] = field(default_factory=list)

    def answer(self, method: str, path: str, body: Any) -> Answer:
        what = unquote(urlsplit(path).path).removeprefix("/repos/ada/late").strip("/")
        if method != "GET":
            self.sent.append((method, what))
        for word, answer in self.refused.items():
            if word in f"{method} {what}":
                return answer
        match [method, *what.split("/")]:
            case ["GET", ""]:
                return 200, {"permissions": {"admin": self.admin}, "default_branch": "main"}
            case ["GET", "user"]:
                return 200, {"login": "ada", "id": 7}
            case ["GET", "rulesets"]:
                return 200, [{"id": entry["id"], "name": entry["name"]} for entry in self.rulesets]
            case ["POST", "rulesets"]:
                self.rulesets.append({"id": len(self.rulesets) + 1, **body})
                return 201, self.rulesets[-1]
            case ["GET", "rulesets", number]:
                return 200, self.rulesets[int(number) - 1] | {"source": "ada/late", "node_id": "x"}
            case ["PUT", "rulesets", number]:
                self.rulesets[int(number) - 1] |= body
                return 200, {}
            case ["GET", "codeowners", "errors"]:
                return 200, {"errors": self.owners}
            case ["GET", "actions", "permissions", "workflow"]:
                return 200, self.actions
            case ["PUT", "actions", "permissions", "workflow"]:
                self.actions |= body
                return 204, None
            case ["GET", "labels"]:
                return 200, self.labels
            case ["POST", "labels"]:
                self.labels.append(body)
                return 201, body
            case ["GET", "environments", name]:
                return (200, self.environments[name]) if name in self.environments else (404, {"message": "Not Found"})
            case ["PUT", "environments", name]:
                asked = {"type": "required_reviewers", "reviewers": [
                    {"type": one["type"], "reviewer": {"id": one["id"]}} for one in body.get("reviewers", [])
                ]}  # fmt: skip
                waits = {"type": "wait_timer", "wait_timer": body.get("wait_timer", 0)}
                self.environments[name] = {
                    "deployment_branch_policy": body["deployment_branch_policy"],
                    "protection_rules": [rule for rule in (asked, waits) if all(rule.values())],
                }
                return 200, {}
            case ["GET", "environments", name, "deployment-branch-policies"]:
                return 200, {"branch_policies": [{"name": one} for one in self.branches.get(name, [])]}
            case ["POST", "environments", name, "deployment-branch-policies"]:
                self.branches.setdefault(name, []).append(body["name"])
                return 200, {}
        return 404, {"message": f"no such path: {method} {what}"}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """GitHub on this machine, and a project folder that asks it."""
    state = Host()

    class Api(BaseHTTPRequestHandler):
        def reply(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body = state.answer(self.command, self.path, json.loads(content) if content else None)
            text = b"" if body is None else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = reply  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GITHUB_API_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("GITHUB_REPOSITORY", "ada/late")
    monkeypatch.setenv("GITHUB_TOKEN", "token")
    monkeypatch.delenv("GH_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    Path(".github").mkdir()
    Path(".github/rulesets").symlink_to(RULESETS)
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that runs `ml github` and returns its code and what it says by setting."""

    def run(*words: str) -> tuple[int, dict[str, str]]:
        code = cli.main(["github", *words])
        shown = capsys.readouterr()
        rows = [re.fullmatch(r"(would set|set|kept|refused) +(.+)", line) for line in shown.out.splitlines()]
        assert None not in rows
        return code, {row[2]: row[1] for row in rows} | ({"error": shown.err.strip()} if shown.err else {})

    return run


def test_everything_is_set_once_and_kept_the_second_time(host: Host, said: Any) -> None:
    code, first = said()

    assert code == 0
    assert first.pop("owners in .github/CODEOWNERS") == "kept"
    assert set(first.values()) == {"set"}
    assert {rules["name"] for rules in host.rulesets} == {"main", "review", "model tags"}
    assert host.actions == repository.ACTIONS
    assert {label["name"] for label in host.labels} == {"bug", *repository.LABELS}
    assert host.branches == {name: ["main"] for name in ("staging", "production", "rollback")}
    (approval,) = host.environments["production"]["protection_rules"]
    assert approval["reviewers"] == [{"type": "User", "reviewer": {"id": 7}}]
    assert host.environments["staging"]["protection_rules"] == []

    host.sent.clear()
    code, second = said()
    assert (code, set(second.values()), host.sent) == (0, {"kept"}, [])
    assert set(second) == {*first, "owners in .github/CODEOWNERS"}


def test_a_dry_run_sends_nothing_and_says_the_same(host: Host, said: Any) -> None:
    _, dry = said("--dry-run")

    assert host.sent == []
    _, real = said()
    assert {what: state.replace("would set", "set") for what, state in dry.items()} == real
    assert "would set" in dry.values()


def test_a_rule_that_was_changed_by_hand_is_set_again(host: Host, said: Any) -> None:
    said()
    host.rulesets[0]["rules"] = host.rulesets[0]["rules"][:1]
    host.sent.clear()

    _, lines = said()

    assert {what for what, state in lines.items() if state == "set"} == {"ruleset main"}
    assert host.sent == [("PUT", "rulesets/1")]
    assert host.rulesets[0]["rules"] == json.loads((RULESETS / "main.json").read_text())["rules"]


def test_an_environment_that_a_workflow_made_is_protected_and_loses_nothing(host: Host, said: Any) -> None:
    team = {"type": "required_reviewers", "reviewers": [{"type": "Team", "reviewer": {"id": 3}}]}
    waits = {"type": "wait_timer", "wait_timer": 30}
    host.environments["production"] = {"deployment_branch_policy": None, "protection_rules": [team, waits]}

    _, lines = said()

    assert lines["environment production: only main deploys to it"] == "set"
    assert lines["environment production: you approve what goes there"] == "kept"
    assert host.environments["production"] == {
        "deployment_branch_policy": repository.MAIN_ONLY,
        "protection_rules": [team, waits],
    }


def test_what_a_free_plan_refuses_of_a_private_repository_is_said_and_the_rest_is_set(host: Host, said: Any) -> None:
    host.refused = {"rulesets": UPGRADE, "PUT environments": (422, {"message": "Failed to create", "errors": ["plan"]})}

    code, lines = said()

    assert code == 0
    refused = [what for what, state in lines.items() if state == "refused"]
    assert [what.partition(":")[0] for what in refused] == [
        "ruleset main",
        "ruleset review",
        "ruleset model tags",
        "environment staging",
        "environment production",
        "environment rollback",
        "environment production",
    ]
    assert all("; by hand: make the repository public or take a paid plan" in what for what in refused)
    assert all("make this repository public to enable this feature. (403)" in what for what in refused[:3])
    assert all("Failed to create plan (422)" in what for what in refused[3:])
    assert [state for what, state in lines.items() if what not in refused] == ["kept"] + ["set"] * 7


def test_an_organisation_that_decides_for_all_is_named(host: Host, said: Any) -> None:
    host.refused = {"PUT actions": (409, {"message": "Conflict"})}

    code, lines = said()

    assert code == 0
    (line,) = [what for what, state in lines.items() if state == "refused"]
    assert line.startswith("workflows read by default and may open pull requests: Conflict (409); by hand: Settings >")


def test_an_owner_whom_github_does_not_know_is_named_with_the_line(host: Host, said: Any) -> None:
    host.owners = [{"line": 3, "column": 1, "kind": "Unknown owner", "message": "…", "path": ".github/CODEOWNERS"}]

    code, lines = said()

    assert code == 0
    assert [what for what, state in lines.items() if state == "refused"] == [
        "owners in .github/CODEOWNERS: line 3, unknown owner; by hand: name a person or @ORGANISATION/TEAM who can "
        "write to it, on the default branch"
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"admin": False}, "ml: this token may not administer ada/late: gh auth login as one of its administrators"),
        (
            {"refused": {"POST rulesets": NOT_YOURS}},
            "ml: this token may not set ruleset main (Resource not accessible by personal access token): "
            "it needs Administration: write",
        ),
        (
            {"refused": {"GET ": (401, {"message": "Bad credentials"})}},
            "ml: GitHub refuses GET . (401): Bad credentials",
        ),
        (
            {"refused": {"GET ": (404, {"message": "Not Found"})}},
            "ml: ada/late is not on GitHub, or this token does not see it: gh repo create",
        ),
        (
            {"refused": {"POST labels": (500, {"message": "Server Error"})}},
            "ml: GitHub refuses POST labels (500): Server Error",
        ),
    ],
    ids=["no administrator", "a narrow token", "a wrong token", "no repository", "GitHub's fault"],
)
def test_a_token_that_cannot_is_one_line_and_exit_code_one(
    change: dict[str, Any], message: str, host: Host, said: Any
) -> None:
    for name, value in change.items():
        setattr(host, name, value)

    code, lines = said()

    assert (code, lines["error"]) == (1, message)


def test_without_a_token_it_says_how_to_get_one(host: Host, said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_TOKEN")

    assert said() == (1, {"error": "ml: there is no token for GitHub: gh auth login, or GH_TOKEN=…"})
