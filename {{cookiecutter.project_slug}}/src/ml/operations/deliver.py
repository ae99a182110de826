"""What deliver.yml does beside promotion: says what a merge needs, publishes the image, judges its scan, records it.

Where each thing is described: docs/delivery.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ml.errors import SourceError, UserError
from ml.operations import ci, promote, record
from ml.operations.github import GitHub
from ml.operations.registry import Registry
from ml.pipeline import params
from ml.review import report, sides
from ml.serving import build, image, loadtest

FOLDER = Path("build/delivery")
SBOM, GRYPE, SCAN, LOADTEST = (FOLDER / f"{name}.json" for name in ("sbom", "grype", "scan", "loadtest"))
EXEMPTIONS = Path(".github/vulnerabilities.yml")
CRITICAL = "Critical"
BUMPS = ("major", "minor", "patch")
MERGED = 20  # commits of one push that are asked about
# What an image holds, beside the model and settings: a change of anything else needs no new image.
RECIPE = (
    *(f"src/ml/{name}" for name in (*build.CODE, "serving/build.py")),
    build.REQUIREMENTS.as_posix(),
    image.DOCKERFILE.as_posix(),
    ".python-version",
)
REFUSED = ("denied", "403", "forbidden", "unauthorized", "401")
LINK = "on the package's page, Package settings > Manage Actions access, give this repository the role Write"


@dataclass(frozen=True)
class Plan:
    """What a merge needs; `baseline` is production's image by digest, empty where there is none to compare with."""

    deliver: bool
    why: str
    train: bool = False
    base: str = ""
    baseline: str = ""


def content(read: Callable[[str], bytes | None], model: str) -> str:
    """Return 16 hexadecimal digits of what an image is made of: the model (its MD5), code, settings, recipe.

    The commit is no part of it. `read` returns a file of the project, None where there is none.
    """
    about = tomllib.loads((read("pyproject.toml") or b"").decode())["project"]
    serve = params.parse((read("params.yaml") or b"").decode(), "params.yaml").serve.model_dump()
    settings = json.dumps([about["name"], about.get("description"), serve], sort_keys=True)
    found = hashlib.sha256()
    for part in (model.encode(), settings.encode(), *(read(name) or b"" for name in RECIPE)):
        found.update(len(part).to_bytes(8) + part)
    return found.hexdigest()[:16]


def plan(told: dict[str, Any]) -> Plan:
    """Return what the merge of HEAD needs; raise UserError where origin or the registry do not answer."""
    base, head = ci.base_of(told), sides.Commit.at("HEAD")
    model = head.outputs().get(ci.MODEL)
    train = model is None
    runs = promote.current("production")
    if runs is None:
        return Plan(True, "production runs nothing yet: this is the first delivery", train, base)
    registry = Registry.open()
    if registry.resolve(runs.digest) is None:
        why = f"the image that production runs is no longer in {registry.image}: this one is not compared with it"
        return Plan(True, why, train, base)
    if model is None:
        same = {ci.reach(path) for path in ci.changed_files(runs.commit)} <= {"docs", "tests"}
    else:
        same = content(head.file, model) in {kept.content for kept in record.beside(registry, runs.digest)}
    if same:
        why = f"nothing is promoted: {head.sha[:10]} changes neither model nor service, production stays {runs.tag}"
        return Plan(False, why)
    why = f"{head.sha[:10]} changes model or service of {runs.tag}"
    return Plan(True, why, train, base, f"{registry.image}@{runs.digest}")


def write_plan() -> str:
    """Give the plan to later jobs and return it in words."""
    found = plan(ci.event())
    if not found.deliver:
        found = replace(found, why=f"{found.why}{_unmet(*asked())}")
    ci.give({name: str(value).lower() for name, value in asdict(found).items() if name != "why"})
    ci.tell(f"{found.why}\n")
    return found.why


def login() -> str:
    """Let the container engine into the registry as REGISTRY_USER with REGISTRY_PASSWORD, and return where."""
    registry, user = Registry.open(), os.environ.get("REGISTRY_USER", "")
    words = [image.find_engine(), "login", registry.host, "--username", user, "--password-stdin"]
    _engine(words, f"{registry.host} does not let {user} in", os.environ.get("REGISTRY_PASSWORD", ""))
    return f"logged in to {registry.host} as {user}"


def publish() -> str:
    """Push the image that was built of the work tree as `sha-<commit>` and give its digest to later steps.

    Raises UserError where the registry takes nothing, or holds other bytes afterwards.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)  # where the scanners write
    registry, engine, local = Registry.open(), image.find_engine(), build.build(Path.cwd())
    tag = f"sha-{sides.Commit.at('HEAD').sha}"
    target = f"{registry.image}:{tag}"
    _engine([engine, "tag", local, target], f"{local} is not built here: make image")
    _engine([engine, "push", "--quiet", target], f"{registry.image} takes no image")
    pushed = _engine([engine, "inspect", "--type=image", "--format={{json .RepoDigests}}", target], target)
    digest = registry.resolve(tag)
    if f"{registry.image}@{digest}" not in json.loads(pushed):
        raise UserError(f"{target} leads to {digest}, which is not what was pushed: somebody moved it; run this again")
    ci.give({"image": registry.image, "digest": digest or "", "host": registry.host})
    return f"{registry.image}@{digest}"


def _engine(words: list[str], what: str, given: str | None = None) -> str:
    done = subprocess.run(words, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join((done.stderr.strip().splitlines() or ["no reason given"])[-1].split())[:300]
        remedy = f"; {LINK}" if any(word in reason.lower() for word in REFUSED) else ""
        raise UserError(f"{what} ({reason}){remedy}")
    return done.stdout


class Exemptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    exemptions: list[record.Exemption]


def exemptions(path: Path = EXEMPTIONS) -> list[record.Exemption]:
    """Return the vulnerabilities that may pass until a day; raise UserError for an entry without day or reason."""
    try:
        read = YAML(typ="safe").load(path.read_text(encoding="utf-8")) if path.is_file() else None
        return Exemptions.model_validate(read or {"exemptions": []}).exemptions
    except (YAMLError, ValidationError) as error:
        found = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "is not YAML"}
        where = ".".join(map(str, found["loc"]))
        raise UserError(f"{path}: {where} {found['msg']}: an entry has id, until (a day) and reason") from None


def critical(content: bytes) -> dict[str, tuple[str, set[str]]]:
    """Return the critical vulnerabilities that have a fix, by id: the package with its fix, and all names of each.

    Raises SourceError for what is no result of Grype (its `json` format).
    """
    holes: dict[str, tuple[str, set[str]]] = {}
    try:
        found = json.loads(content)
        for match in found["matches"] if found["descriptor"] else None:
            told, package = match["vulnerability"], match["artifact"]
            if told["severity"] == CRITICAL and told["fix"]["state"] == "fixed":
                fixed = ", ".join(told["fix"]["versions"])
                names = {told["id"], *(one["id"] for one in match.get("relatedVulnerabilities") or [])}
                holes[told["id"]] = (f"{package['name']} {package['version']}, fixed in {fixed}", names)
    except (KeyError, TypeError, ValueError):
        raise SourceError(f"{GRYPE} is no scan: look at the log of the step before") from None
    return holes


def judge(found: bytes, known: list[record.Exemption], today: date) -> tuple[record.Scan, list[str]]:
    """Return what the scan found that has a fix, what an exemption lets pass, and a sentence for each that blocks.

    An exemption counts to the end of its day (UTC).
    """
    blocking, passed, sentences = [], [], []
    for name, (where, names) in critical(found).items():
        fitting = [one for one in known if one.id in names]
        if current := next((one for one in fitting if one.until >= today), None):
            passed.append(current)
            continue
        blocking.append(name)
        ended = f"; its exemption ended on {max(one.until for one in fitting)}" if fitting else ""
        sentences.append(f"{name} in {where}{ended}")
    return record.Scan(fixable=blocking, exempted=passed), sentences


def scan() -> str:
    """Judge the scan of the image, write what was found and return it; raise UserError where it blocks."""
    content = GRYPE.read_bytes() if GRYPE.is_file() else b""
    result, sentences = judge(content, exemptions(), datetime.now(UTC).date())
    build.write_json(SCAN, {**result.model_dump(mode="json"), **(found := json.loads(content))})
    if sentences:
        remedy = f"make lock UPGRADE=1, or let it pass until a day in {EXEMPTIONS}"
        raise UserError(f"{len(sentences)} critical with a fix: {'; '.join(sentences[:5])}: {remedy}")
    told = f"{len(found['matches'])} findings, {len(result.exempted)} let pass by {EXEMPTIONS}"
    return f"no critical vulnerability with a fix ({told})"


def write_record(digest: str) -> str:
    """Join verdict, load test and image's checks, record what the image is, put that beside it, and return a line.

    Raises UserError where one of them does not pass.
    """
    from ml.review import review

    if (verdict := ci.read_verdict()) is None:
        raise UserError(f"{ci.REVIEW / report.JSON} is missing: the job model writes it")
    if (joined := review.join(verdict)).blocked:
        raise UserError(report.clean(joined.headline))
    registry, head = Registry.open(), sides.Commit.at("HEAD")
    measured = [json.loads(path.read_bytes()) for path in (loadtest.RESULT, loadtest.FOLDER / "rounds.json")]
    build.write_json(LOADTEST, {**measured[0], **measured[1], "candidate": digest})
    made = record.make(
        {
            "card.md": review.CARD,
            "loadtest.json": LOADTEST,
            "metrics.json": Path(review.METRICS),
            "model.onnx": build.MODEL,
            "report.html": ci.REVIEW / report.PAGE,
            "report.md": ci.REVIEW / report.MARKDOWN,
            "sbom.json": SBOM,
            "scan.json": SCAN,
            "verdict.json": ci.REVIEW / report.JSON,
        },
        commit=head.sha,
        run=int(os.environ.get("GITHUB_RUN_ID", 0)),
        # The model may be of here; the code is the commit's.
        content=content(head.file, sides.locked(Path("dvc.lock").read_bytes(), "the work tree")[ci.MODEL]),
        reproduced=params.read().deliver.reproduce if head.outputs() else "trained",
        scan=record.Scan.model_validate_json(SCAN.read_bytes()),
    )
    record.attach(registry, digest)
    ci.tell((ci.REVIEW / report.MARKDOWN).read_text(encoding="utf-8"))
    return f"the record of {made.commit[:10]} lies beside {registry.image}@{digest}: {report.clean(joined.headline)}"


def asked() -> tuple[str, str]:
    """Return the largest version part that labels of the merged pull requests ask for, and whose; empty if none.

    A merge queue merges several at once.
    """
    github, told, found = GitHub.open(), ci.event(), dict[str, str]()
    base = ci.base_of(told) if told else ""
    words = ("--first-parent", f"--max-count={MERGED if base else 1}", "HEAD", *([f"^{base}"] if base else []))
    for sha in sides.git("rev-list", *words).decode().split():
        if request := ci.merged(github, sha):
            for label in request["labels"]:
                found.setdefault(label["name"].lower(), f"#{request['number']}")
    return next(((part, found[f"release:{part}"]) for part in BUMPS if f"release:{part}" in found), ("", ""))


def _unmet(bump: str, who: str) -> str:
    return f"; the {bump} version that {who} asks for is not made: make release BUMP={bump}" if bump else ""


def start_release() -> str:
    """Start the release that a label of a merged pull request asks for, and return which or why none.

    PROMOTED is how the job production ended; where it did not take this commit, nothing is started.
    """
    bump, who = asked()
    if not bump:
        return "no label release:patch, release:minor or release:major: production has no new version"
    github, sha = GitHub.open(), sides.Commit.at("HEAD").sha
    if (ended := os.environ.get("PROMOTED", "success")) != "success":
        said = f"production did not take {sha[:10]} ({ended}){_unmet(bump, who)}"
        print(f"::warning::{said}")
        return said
    where, inputs = github.get(".")["default_branch"], {"bump": bump, "commit": sha}
    github.send("POST", "actions/workflows/release.yml/dispatches", {"ref": where, "inputs": inputs})
    return f"{who} asks for a {bump} version: release.yml is started"


# What `ml ci ACTION` does with its words, and what it prints.
ACTIONS: dict[str, Callable[[Any], str]] = {
    "deliver": lambda _: write_plan() + "\n",
    "login": lambda _: login() + "\n",
    "publish": lambda _: publish() + "\n",
    "scan": lambda _: scan() + "\n",
    "record": lambda words: write_record(words.digest) + "\n",
    "promote": lambda words: "\n".join(promote.run(words.stage, words.digest)) + "\n",
    "version": lambda _: start_release() + "\n",
}
