"""What the jobs of pull-request.yml do beside the targets that a laptop has: plan, tell, join.

These jobs run a change's own code, so none of them holds a token that writes. Inputs and outputs are GitHub's: the
event's file, `GITHUB_OUTPUT`, `GITHUB_STEP_SUMMARY` and annotations on standard output.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ml.errors import SourceError, UserError
from ml.operations import bundle
from ml.operations.github import GitHub
from ml.pipeline.tables import write_bytes
from ml.review import lock, report, sides
from ml.review.verdict import Result, Verdict

MODEL = "models/model.onnx"
REVIEW = Path("reports/review")
NOTHING = "0" * 40
# The first pattern that fits a changed file says what it can change; whatever fits none can change everything.
REACH = {
    "reports/*": "model",
    "*.md": "docs",
    "LICENSE": "docs",
    ".github/ISSUE_TEMPLATE/*": "docs",
    ".github/CODEOWNERS": "docs",
    ".github/dependabot.yml": "docs",
    "tests/behaviour.yaml": "model",
    "tests/*": "tests",
    "src/ml/serving/*": "service",
    "deploy/*": "service",
    "loadtest/*": "service",
    "examples/*": "service",
    "src/ml/operations/*": "tests",
}


@dataclass(frozen=True)
class Plan:
    """What of a change must be computed; `base` is the commit to compare with, empty where there is none."""

    base: str
    changed: list[str]
    tests: str
    ingest: bool
    model: bool
    service: bool
    stale: bool
    retrain: bool

    def outputs(self) -> dict[str, str]:
        """Return what later jobs ask for, as GitHub's outputs."""
        flags = {name: str(getattr(self, name)).lower() for name in ("ingest", "model", "service", "stale", "retrain")}
        return {"base": self.base, "tests": self.tests, **flags}


def event() -> dict[str, Any]:
    """Return the event that started this workflow; empty outside of one."""
    path = os.environ.get("GITHUB_EVENT_PATH")
    return json.loads(Path(path).read_text()) if path else {}


def base_of(told: dict[str, Any]) -> str:
    """Return the commit that a change starts from; empty for the first push of a repository."""
    if queued := told.get("merge_group"):
        ref = queued["base_sha"]
    elif request := told.get("pull_request"):
        ref = f"origin/{request['base']['ref']}"
    elif "before" in told:
        ref = told["before"]
    else:
        ref = sides.default_base() or ""
    if not ref or ref == NOTHING or sides.commit(ref) is None:
        return ""
    return sides.git("merge-base", ref, "HEAD").decode().strip()


def reach(path: str) -> str:
    """Return what a changed file can change: docs, tests, service, model or everything."""
    return next((what for pattern, what in REACH.items() if fnmatch(path, pattern)), "everything")


def changed_files(base: str) -> list[str]:
    """Return the files that HEAD's commit changes against its base; none where there is no base."""
    listed = sides.git("diff", "--name-only", "-z", "--no-renames", base, "HEAD") if base else b""
    return [name for name in listed.decode(errors="replace").split("\0") if name]


def plan(told: dict[str, Any]) -> Plan:
    """Return what the change of HEAD's commit against its base needs; raise UserError where DVC or git fail."""
    base = base_of(told)
    changed = changed_files(base)
    reached = {reach(path) for path in changed} if base else {"everything"}
    problems = lock.problems(Path.cwd())
    stale = [problem for problem in problems if problem.kind != "unpushed"]
    was, now = (sides.Commit.at(ref).outputs().get(MODEL) if ref else None for ref in (base, "HEAD"))
    model = bool(problems) or was != now or bool(reached & {"everything", "model"})
    return Plan(
        base=base,
        changed=changed,
        tests="tests/test_docs.py" if reached <= {"docs"} and not problems else "tests",
        ingest=now is None or any("ingest" in problem.what for problem in stale),
        model=model,
        service=model or "service" in reached,
        stale=bool(problems),
        retrain=not problems and was != now,
    )


def write_plan() -> str:
    """Give the plan to later jobs and steps and return it in words."""
    found = plan(event())
    give(found.outputs())
    if not found.model:
        return f"{len(found.changed)} files changed, none that makes the model: it is production's"
    why = "dvc.lock is not current" if found.stale else f"{len(found.changed)} files changed"
    return f"{why}: the model is {'made' if found.stale else 'trained again' if found.retrain else 'reviewed'} here"


def give(outputs: dict[str, str]) -> str:
    """Append a step's outputs to where GitHub reads them, and return them in lines."""
    lines = "".join(f"{name}={' '.join(value.split())}\n" for name, value in outputs.items())
    _append("GITHUB_OUTPUT", lines)
    return lines


def tell(text: str) -> None:
    """Add Markdown to the job's page."""
    _append("GITHUB_STEP_SUMMARY", text)


def _append(variable: str, text: str) -> None:
    if path := os.environ.get(variable):
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)


def baseline(base: str) -> str:
    """Build the Bento of the base's service and model and return its tag; empty where the base has no model.

    The base's own code builds it, from a copy of the commit.
    """
    if not base or MODEL not in (commit := sides.Commit.at(base)).outputs():
        return ""
    with TemporaryDirectory(prefix="base-") as scratch:
        archive = sides.git("archive", "--format=tar", commit.sha)
        subprocess.run(["tar", "-x", "-C", scratch], input=archive, check=True)
        write_bytes(commit.read(MODEL), Path(scratch, MODEL))
        own = {"PYTHONPATH": str(Path(scratch, "src")), "BENTOML_HOME": str(Path(".bentoml").resolve())}
        command = [sys.executable, "-m", "ml.cli", "build"]
        done = subprocess.run(command, cwd=scratch, env=os.environ | own, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1][:300]
        raise UserError(f"the base's service cannot be built: {reason}")
    return done.stdout.strip().splitlines()[-1].split()[0]


def approver(told: dict[str, Any]) -> str:
    """Return the code owner who approved this very commit of the pull request, or of the one that was merged by a push.

    Empty where none has.

    Owners are the people whom the base's CODEOWNERS names for params.yaml. Teams cannot be read with a workflow's
    token, so their members count only where they are named themselves.
    """
    try:
        request = told.get("pull_request") or (merged(GitHub.open(), told["after"]) if "after" in told else None)
    except UserError as error:
        print(f"::warning::{error}: no approval counts")
        return ""
    if not request or not (start := base_of(told)):
        return ""
    base = sides.Commit.at(start if "after" in told else f"origin/{request['base']['ref']}")
    people = owners((base.file(".github/CODEOWNERS") or b"").decode(errors="replace"), "params.yaml")
    said: dict[str, dict[str, Any]] = {}
    try:
        for review in GitHub.open().pages(f"pulls/{request['number']}/reviews"):
            if review["state"] != "COMMENTED":
                said[_login(review)] = review
    except UserError as error:
        print(f"::warning::{error}: no approval counts")
        return ""
    agreed = [
        name
        for name, review in said.items()
        if review["state"] == "APPROVED"
        and review["commit_id"] == request["head"]["sha"]
        and name in people - {_login(request)}
    ]
    return next(iter(sorted(agreed)), "")


def merged(github: GitHub, sha: str) -> dict[str, Any] | None:
    """Return the pull request that a commit of the default branch merged; None for one that was pushed to it."""
    found = github.pages(f"commits/{sha}/pulls")
    return next((one for one in found if one["merged_at"] and one["merge_commit_sha"] == sha), None)


def _login(told: dict[str, Any]) -> str:
    # Of a user who is gone nothing is told.
    return (told["user"] or {}).get("login", "").lower()


def owners(text: str, path: str) -> set[str]:
    """Return the people, in lower case, of the last line of a CODEOWNERS file that fits the path."""
    found: set[str] = set()
    for line in text.splitlines():
        pattern, *names = line.split("#", 1)[0].split() or [""]
        if pattern and _owns(pattern, path):
            found = {name[1:].lower() for name in names if re.fullmatch(r"@[\w-]+", name)}
    return found


def _owns(pattern: str, path: str) -> bool:
    anchored = re.sub(r"^/?(\*\*/)*", "", pattern)
    if pattern.endswith("/"):
        return path.startswith(anchored)
    return pattern == "*" or fnmatch(path, anchored) or path.startswith(f"{anchored}/")


def annotations(verdict: Verdict) -> list[str]:
    """Return what blocks the verdict as annotations for the file and the line to edit, where there is one."""
    lines = []
    for result in verdict.blocked:
        level = "error" if result.status == "failed" else "warning"
        file = result.file or "params.yaml"
        line = result.line or _line(Path(file), result)
        place = f"file={_property(file)}" + (f",line={line}" if line else "")
        said = f"{result.sentence}. {result.remedy}".rstrip(". ")
        lines.append(f"::{level} {place},title={_property(f'{result.gate}: {result.status}')}::{_message(said)}")
    return lines


def _line(path: Path, result: Result) -> int | None:
    """Return the line of a gate's settings in params.yaml."""
    if path.name != "params.yaml" or not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    start = next((at for at, text in enumerate(lines) if text.startswith("gates:")), None)
    if start is None:
        return None
    for at, text in enumerate(lines[start + 1 :], start + 2):
        if text.startswith(f"  {result.gate}:"):
            return at
        if re.match(r"[^\s#]", text):
            break
    return start + 1


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")


def summary() -> str:
    """Show the verdict on the job's page and as annotations; return its headline."""
    verdict = read_verdict()
    if verdict is None:
        return "no verdict was reached"
    tell((REVIEW / report.MARKDOWN).read_text(encoding="utf-8"))
    for line in annotations(verdict):
        print(line)
    return report.clean(verdict.headline)


def read_verdict() -> Verdict | None:
    """Return the verdict that a review left here, None where there is none; raise SourceError where it is damaged."""
    path = REVIEW / report.JSON
    try:
        return Verdict.model_validate_json(path.read_bytes()) if path.is_file() else None
    except ValueError:
        raise SourceError(f"{path} is no verdict: run make review") from None


def write_report(needs: dict[str, Any]) -> str:
    """Write the one report of a run from what its jobs left: the joined verdict, or why there is none."""
    results = {name: need["result"] for name, need in needs.items()}
    verdict = read_verdict()
    if verdict is not None:
        from ml.review import review

        verdict = review.join(verdict)
        text = (REVIEW / report.MARKDOWN).read_text(encoding="utf-8")
    else:
        text = without_verdict(results, plan_of(needs))
        write_bytes(text.encode(), REVIEW / report.MARKDOWN)
    tell(text)
    return report.clean(verdict.headline if verdict else text.splitlines()[0].lstrip("# "))


def plan_of(needs: dict[str, Any]) -> dict[str, str]:
    """Return the outputs of the job that planned."""
    return needs.get("data", {}).get("outputs") or {}


def without_verdict(results: dict[str, str], planned: dict[str, str]) -> str:
    """Return the report of a run in which no model was reviewed."""
    failed = [name for name, result in results.items() if result in ("failure", "cancelled")]
    if failed or results.get("model") == "success":
        names = ", ".join(report.code(name) for name in failed or ["model"])
        return (
            f"## ❌ Do not merge: no verdict was reached\n\n**Why:** {names} ended before the model could be judged. "
            "The log of that job says why, in its last line.\n"
        )
    base = planned.get("base", "")
    listed = changed_files(base)
    files = "\n".join(f"- {report.code(name)}" for name in listed[: report.SHOWN])
    rest = f"\n\n… and {len(listed) - report.SHOWN} more" if len(listed) > report.SHOWN else ""
    measured = _measured(Path("reports"))
    return (
        "## ✅ Safe to merge: the model does not change\n\n"
        f"**Why:** nothing changed that makes the model; `dvc.lock` is current and stored.\n\n{measured}"
        f"<details><summary>Files that changed</summary>\n\n{files}{rest}\n\n</details>\n"
    )


def _measured(folder: Path) -> str:
    lines = []
    for gate in ("service", "image"):
        path = folder / gate / "result.json"
        if path.is_file():
            found = json.loads(path.read_text())
            lines.append(f"**{gate.capitalize()}:** {report.prose(str(found.get('sentence', '')))}\n\n")
    return "".join(lines)


def again(*, full: bool) -> str:
    """Train again from the lock (`full`: run every stage); only score where `deliver.reproduce` asks for no more."""
    from ml.pipeline import params
    from ml.review import reproduce

    settings = params.read()
    if settings.deliver.reproduce == "evaluate":
        return reproduce.rescore() + "\n"
    reproduce.run(settings, full=full)
    return ""


def _comment(words: Any) -> str:
    from ml.operations import comment

    return comment.post(words.run) + "\n"


def _publish(words: Any) -> str:
    from ml.operations import publish

    return publish.commit_lock(words.run, dispatch=words.dispatch) + "\n"


def _store(words: Any) -> str:
    from ml.operations import publish

    return publish.store_of_main(words.run) + "\n"


# What `ml ci ACTION` does with its words, and what it prints.
ACTIONS: dict[str, Callable[[Any], str]] = {
    "plan": lambda _: write_plan() + "\n",
    "pack": lambda _: bundle.pack() + "\n",
    "approval": lambda _: give({"approved": approver(event())}),
    "baseline": lambda words: give({"baseline": baseline(words.base)}),
    "reproduce": lambda words: again(full=words.full),
    "summary": lambda _: summary() + "\n",
    "report": lambda _: write_report(json.loads(os.environ["NEEDS"])) + "\n",
    "comment": _comment,
    "commit-lock": _publish,
    "store": _store,
}
