"""Moves stages to images that are proven to come from deliver.yml, forward and back.

The truth is an annotated tag of GTO at `origin`, `model#production#7`, which only one of two promotions can create; the
registry's tag and the Deployment follow it. Whatever is killed in between, the next run of the same finishes it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ml import refs
from ml.errors import SourceError, UserError
from ml.operations import publish, record, targets
from ml.operations.github import GitHub, GoneError, NotFoundError
from ml.operations.record import Record
from ml.operations.registry import MovedError, Registry
from ml.review import sides

STAGES = ("staging", "production")
SIGNER, SOURCE = ".github/workflows/deliver.yml", "refs/heads/main"
ISSUER = "https://token.actions.githubusercontent.com"
LABEL, TASK, DELIVERED = "rollback", "promote", "delivered"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
ASSIGNED = re.compile(r"model#([^#!]+)!?#(\d+)")
VERSION = re.compile(r"model@(v\d+\.\d+\.\d+)")
SAID = re.compile(r"^(Digest|How|Who|Run|Set): (.*)$", re.MULTILINE)
# Where a stage runs and how it is verified; without them a laptop would deploy nowhere and say that all went well.
VERIFYING = ("ATTEST", "COSIGN", "REGISTRY")
REMEMBERED = (*VERIFYING, "DEPLOY_TARGET", "DOCKER_HOST")
UNTAGGED = re.compile(r"without .?workflows.? permission")
LISTED = "%(refname:lstrip=2)%00%(objectname)%00%(*objectname)%00%(taggerdate:unix)%00%(taggername)%00%(contents)%00"
MEND = "ml registry status --mend"
TRIES = 5


class SupersededError(UserError):
    """Another promotion came first or right after; what it chose stays."""


@dataclass(frozen=True)
class Assignment:
    """One assignment of a stage, as its GTO tag says; `digest` is empty where somebody made the tag by hand.

    `had` are the names of REMEMBERED that were set when it was made.
    """

    tag: str
    stage: str
    number: int
    commit: str
    seconds: int
    digest: str
    how: str
    who: str
    run: str
    had: tuple[str, ...] = ()

    @property
    def when(self) -> str:
        """Return the time of the tag, UTC."""
        return datetime.fromtimestamp(self.seconds, UTC).strftime("%Y-%m-%d %H:%M")


def history(stage: str | None = None) -> list[Assignment]:
    """Return every assignment that `origin` holds, of one stage or all, oldest first."""
    found = []
    for name, _, peeled, seconds, tagger, message in _tags():
        if match := ASSIGNED.fullmatch(name):
            said = dict(SAID.findall(message))
            digest = said.get("Digest", "") if DIGEST.fullmatch(said.get("Digest", "")) else ""
            told = (digest, said.get("How", "by hand"), said.get("Who", tagger), said.get("Run", ""))
            had = tuple(said.get("Set", "").split())
            meant = sides.MEANT.search(message)
            commit = meant[1] if meant else peeled
            found.append(Assignment(name, match[1], int(match[2]), commit, int(seconds or 0), *told, had))
    kept = [entry for entry in found if stage in (None, entry.stage)]
    return sorted(kept, key=lambda entry: (entry.number, entry.stage) if stage else (entry.seconds, entry.number))


def current(stage: str) -> Assignment | None:
    """Return the newest assignment of a stage, None before the first; its image is not verified."""
    return next(reversed(history(stage)), None)


def versions() -> dict[str, str]:
    """Return the commit of each released version (`v1.2.0`) that `origin` holds, oldest version first."""
    found = {match[1]: peeled or own for name, own, peeled, *_ in _tags() if (match := VERSION.fullmatch(name))}
    return dict(sorted(found.items(), key=lambda entry: [int(part) for part in entry[0][1:].split(".")]))


def _tags() -> Iterator[list[str]]:
    """Yield the tags of the model that origin holds in the fields of LISTED; those of this clone follow it."""
    listed = refs.git("ls-remote", "--refs", "origin", "refs/tags/model[#@]*", what="origin cannot be listed")
    there = {ref: own for own, ref in (line.split("\t") for line in listed.stdout.decode().splitlines())}
    spaces = ("refs/tags/model#*", "refs/tags/model@*")
    read = ("for-each-ref", "--format=%(objectname) %(refname)", *spaces)
    if there.items() - {(ref, own) for own, ref in map(str.split, sides.git(*read).decode().splitlines())}:
        specs = [f"+{space}:{space}" for space in spaces]
        refs.git("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "origin", *specs, what="the model's tags")
    fields = sides.git("for-each-ref", f"--format={LISTED}", *spaces).decode(errors="replace").split("\0")
    for at in range(0, len(fields) - 1, 6):
        row = [fields[at].lstrip("\n"), *fields[at + 1 : at + 6]]
        if f"refs/tags/{row[0]}" in there:
            yield row


@dataclass
class Desk:
    """What a promotion talks to; an image is verified once a run."""

    registry: Registry = field(default_factory=Registry.open)
    github: GitHub = field(default_factory=GitHub.open)
    verified: dict[str, Record] = field(default_factory=dict)

    def verify(self, digest: str) -> Record:
        if digest not in self.verified:
            self.verified[digest] = verify(self.registry, digest, self.github)
        return self.verified[digest]

    def proven(self, entry: Assignment) -> Record:
        """Return the record of an assignment's image; raise UserError where it is not of the commit that it says."""
        found = self.verify(entry.digest)
        if found.commit != entry.commit:
            raise UserError(f"{entry.tag} says {entry.commit[:10]}, its image is of {found.commit[:10]}")
        return found

    def settle(self, stage: str) -> Assignment | None:
        """Let the registry's tag and the Deployment follow the newest GTO tag of a stage, once its image is verified.

        Whoever moves something looks afterwards whether the newest tag is still the one it moved for: so the last one
        to move anything has moved it right.
        """
        for _ in range(TRIES):
            if (newest := current(stage)) is None:
                return None
            if not newest.digest:
                raise UserError(f"{newest.tag} names no digest, {newest.who} made it by hand: {_remedy(stage)}")
            self.proven(newest)
            try:
                self.registry.tag(newest.digest, stage)
            except MovedError:
                continue
            self.deployment(newest)
            if newest == current(stage):
                return newest
        raise UserError(f"others keep moving {stage}: wait for their runs, then ml registry status")

    def deployment(self, entry: Assignment, *, make: bool = True) -> int | None:
        """Return the number of an assignment's Deployment, made where it lacks."""
        listed = self.github.get("deployments", environment=entry.stage, task=TASK, per_page=100)
        found = [one["id"] for one in listed if _payload(one).get("tag") == entry.tag]
        if found or not make:
            return found[-1] if found else None
        about = {"ref": entry.commit, "environment": entry.stage, "task": TASK, "description": entry.how[:140]}
        exact = {"auto_merge": False, "required_contexts": [], "production_environment": entry.stage == "production"}
        payload = {"tag": entry.tag, "digest": entry.digest}
        made = int(self.github.send("POST", "deployments", {**about, **exact, "payload": payload})["id"])
        self.state(made, "in_progress", entry.run)
        return made

    def state(self, deployment: int, state: str, address: str = "") -> None:
        """Say how a Deployment goes."""
        more = {"log_url": address} if address else {}
        self.github.send("POST", f"deployments/{deployment}/statuses", {"state": state, **more})


def verify(registry: Registry, digest: str, github: GitHub | None = None) -> Record:
    """Return the record of an image that deliver.yml made from main and that passed; raise UserError with what lacks.

    Attested by GitHub; with COSIGN=true signed by cosign; in a private repository without ATTEST=true recorded by a
    run of deliver.yml, unsigned.
    """
    github = github or GitHub.open()
    image = f"{registry.image}@{digest}"
    if not DIGEST.fullmatch(digest):
        raise UserError(f"{digest[:80]} is no digest: sha256: and 64 hexadecimal digits")
    if registry.resolve(digest) is None:
        raise UserError(f"{image} is not in the registry: it was deleted, or never pushed")
    signing = how_signed(github)
    if signing == "unsigned":
        found = [entry for entry in record.beside(registry, digest) if _ran(github, entry)]
        lacks = f"no record of a run of {SIGNER} on main lies beside it"
    else:
        try:
            proven = _attested(image, github) if signing == "attested" else _cosigned(image, github)
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{image}: what verifies it prints what is not known here: update it") from None
        found = [entry for entry in record.beside(registry, digest) if entry in proven]
        lacks = "what it attests does not lie beside it, or not with the hashes that it names"
    if not found:
        raise UserError(f"{image} is not promoted: {lacks}; deliver its commit again")
    if faults := found[-1].faults:
        raise UserError(f"{image} is not promoted: {'; '.join(faults)}")
    return found[-1]


def how_signed(github: GitHub) -> str:
    """Return how records are signed in this repository: `attested`, `cosign` or `unsigned`."""
    if os.environ.get("COSIGN") == "true":
        return "cosign"
    return "attested" if os.environ.get("ATTEST") == "true" or not github.get(".")["private"] else "unsigned"


def _attested(image: str, github: GitHub) -> list[Record]:
    """Return the records that GitHub attests for an image; https://cli.github.com/manual/gh_attestation_verify."""
    signer = ("--repo", github.name, "--signer-workflow", f"{github.name}/{SIGNER}", "--source-ref", SOURCE)
    kind = ("--deny-self-hosted-runners", "--predicate-type", record.PREDICATE, "--format", "json")
    results = json.loads(_proof(image, "gh", "attestation", "verify", f"oci://{image}", *signer, *kind))
    found = [(entry["verificationResult"], _predicate(entry["verificationResult"]["statement"])) for entry in results]
    return [told for entry, told in found if entry["signature"]["certificate"]["sourceRepositoryDigest"] == told.commit]


def _cosigned(image: str, github: GitHub) -> list[Record]:
    """Return the records that cosign finds signed for an image, each a line with an envelope of DSSE."""
    server = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
    signer = ("--certificate-identity", f"{server}/{github.name}/{SIGNER}@{SOURCE}")
    words = ("--type", record.PREDICATE, *signer, "--certificate-oidc-issuer", ISSUER)
    lines = _proof(image, "cosign", "verify-attestation", *words, image).splitlines()
    return [_predicate(json.loads(base64.b64decode(json.loads(line)["payload"]))) for line in lines if line.strip()]


def _predicate(statement: dict[str, Any]) -> Record:
    return record.read(json.dumps(statement["predicate"]), "an attestation")


def _proof(image: str, *words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise UserError(f"{words[0]} is not on this machine: install it, since it verifies who made an image") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        reason = next((line for line in lines if line.startswith(("Error", "✗", "unknown"))), lines[-1])
        raise UserError(f"{image} is not promoted: {SIGNER} of {SOURCE} has not attested it ({reason[:200]})")
    return done.stdout


def _ran(github: GitHub, entry: Record) -> bool:
    """Return whether the run that a record names was deliver.yml's on main, for that commit."""
    try:
        told = github.get(f"actions/runs/{entry.run}")
    except NotFoundError:
        return False
    due = {"head_branch": "main", "event": "push", "head_sha": entry.commit}
    return told["path"].partition("@")[0] == SIGNER and all(told[key] == value for key, value in due.items())


def frozen(github: GitHub | None = None) -> str | None:
    """Return the address of the open issue labelled `rollback` that freezes promotion to production, if any.

    Where issues are turned off, nothing is frozen.
    """
    found = (github or GitHub.open()).pages("issues", labels=LABEL, state="open")
    with suppress(GoneError):
        return next((issue["html_url"] for issue in found if "pull_request" not in issue), None)
    return None


def run(stage: str, digest: str, how: str = DELIVERED) -> list[str]:
    """Verify, promote, deploy to DEPLOY_TARGET and ask the service; return what was done in lines.

    This is all that `ml promote` and the promotion jobs do. Running it again finishes what was killed. Raises UserError
    as `promote` does, and where the deployment fails: then the stage goes back to what it was.
    """
    return _run(Desk(), stage, digest, how)


def _run(desk: Desk, stage: str, digest: str, how: str) -> list[str]:
    entry = _promote(desk, stage, digest, how)
    done = _deploy(desk, entry)
    # As with tags: the last one to deploy anything has deployed the newest.
    for _ in range(TRIES):
        if current(stage) == entry:
            break
        entry = desk.settle(stage) or entry
        done += [f"{_named(entry)} came meanwhile", *_deploy(desk, entry)]
    return done


def _deploy(desk: Desk, entry: Assignment) -> list[str]:
    wanted, target = _wanted(desk, entry), targets.chosen()
    number = desk.deployment(entry)
    try:
        done = [target.plan(wanted), target.apply(wanted), target.check(wanted)]
    except UserError as error:
        desk.state(number, "failure", entry.run)
        raise UserError(f"{error}; {_put_back(desk, entry)}") from None
    desk.state(number, "success", entry.run)
    signed = {"unsigned": "recorded, unsigned"}.get(how_signed(desk.github), "verified")
    return [f"{entry.tag}: {wanted.image} of {entry.commit[:10]}, {signed}", *done]


def promote(stage: str, digest: str, how: str = DELIVERED) -> Assignment:
    """Verify an image and let the stage's GTO tag, registry tag and Deployment (`in_progress`) lead to it.

    Raises UserError for an image that is not proven, and where production is frozen; SupersededError where another
    promotion won, or a delivery comes after one of a newer commit.
    """
    return _promote(Desk(), stage, digest, how)


def _promote(desk: Desk, stage: str, digest: str, how: str) -> Assignment:
    if stage not in STAGES:
        raise UserError(f"{stage[:40]} is no stage: one of {', '.join(STAGES)}")
    targets.chosen()  # or a wrong name would be told after the tags are made
    for _ in range(TRIES):
        # Read before it is asked whether production is frozen: a rollback that comes later takes the number.
        newest = current(stage)
        if lacking := _unset(newest):
            raise UserError(lacking)
        found = desk.verify(digest)
        publish.fetch(found.commit)
        if newest is None or newest.digest != digest:
            if how == DELIVERED:
                _refuse_late(desk, stage, newest, found)
            if not _assign(stage, newest, digest, found, how) and how == DELIVERED:
                won = current(stage)
                if won is None or won.digest != digest:
                    raise SupersededError(f"{stage} went to another image meanwhile ({_named(won)}): nothing changed")
        settled = desk.settle(stage)
        if settled is not None and settled.digest == digest:
            return settled
        if how == DELIVERED:
            raise SupersededError(f"{_named(settled)} came right after: {stage} stays there")
    raise UserError(f"others keep moving {stage}: wait for their runs, then try again")


def _refuse_late(desk: Desk, stage: str, newest: Assignment | None, found: Record) -> None:
    if expired := [one for one in found.scan.exempted if one.until < datetime.now(UTC).date()]:
        raise UserError(f"its exemption of {expired[0].id} has run out on {expired[0].until}: mend it, or prolong it")
    if stage == "production" and (address := frozen(desk.github)):
        raise UserError(f"promotion is frozen since a rollback: close {address}, then run this job again")
    if newest is not None and newest.digest and newest.commit != found.commit and _is_before(found.commit, newest):
        raise SupersededError(f"{stage} has a newer commit than {found.commit[:10]} already ({_named(newest)})")


def _remembered() -> tuple[str, ...]:
    # A laptop may have a DOCKER_HOST of its own.
    compose = os.environ.get("DEPLOY_TARGET") == "compose"
    return tuple(name for name in REMEMBERED if compose or name != "DOCKER_HOST")


def _unset(newest: Assignment | None, names: tuple[str, ...] = REMEMBERED) -> str:
    """Return what to set that was set for the newest promotion of a stage and is not set here, empty if nothing."""
    missing = [name for name in newest.had if name in names and not os.environ.get(name)] if newest else []
    if not missing:
        return ""
    where = "as variables of the repository" if "GITHUB_ACTIONS" in os.environ else "as the repository's variables are"
    return f"{newest.tag} was made with {', '.join(missing)}: set them {where}, or to what is meant now"


def _is_before(commit: str, newest: Assignment) -> bool:
    return not refs.git("merge-base", "--is-ancestor", commit, newest.commit, check=False).returncode


def _assign(stage: str, newest: Assignment | None, digest: str, found: Record, how: str) -> bool:
    """Create the next GTO tag at origin; return False where another promotion has created it."""
    tag = f"model#{stage}#{newest.number + 1 if newest else 1}"
    # GTO orders by time, and clocks differ.
    seconds = max(int(time.time()), newest.seconds + 1 if newest else 0)
    own = {"GIT_COMMITTER_DATE": f"@{seconds} +0000"}
    if "GITHUB_ACTIONS" in os.environ:
        own |= dict(zip(("GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"), publish.BOT, strict=True))
    tagger = refs.git("var", "GIT_COMMITTER_IDENT", what="git config user.name", env=own).stdout.decode().strip()
    who = os.environ.get("GITHUB_ACTOR", tagger.partition(" <")[0])
    had = " ".join(name for name in _remembered() if os.environ.get(name))
    told = {"Digest": digest, "How": how, "Who": who, "Run": run_address(), "Set": had}

    def offer(commit: str, **more: str) -> bool:
        lines = "".join(f"{key}: {' '.join(text.split())}\n" for key, text in (told | more).items() if text)
        head = f"object {commit}\ntype commit\ntag {tag}\ntagger {tagger}\n"
        text = f"{head}\nAssign {stage} to {digest[:19]}\n\n{lines}"
        made = refs.git("mktag", input=text.encode()).stdout.decode().strip()
        try:
            words = ("--quiet", "--no-verify", "--no-follow-tags", "origin", f"{made}:refs/tags/{tag}")
            refs.git("push", *words, what=f"origin takes no tag {tag}")
        except SourceError:
            if (seen := current(stage)) is None or seen == newest:
                raise
            # A push whose answer was lost is a success.
            kept = refs.git("rev-parse", "--verify", "--quiet", f"refs/tags/{tag}", check=False)
            return kept.stdout.decode().strip() == made
        return True

    try:
        return offer(found.commit)
    except SourceError as error:
        if not UNTAGGED.search(str(error)):
            raise
        # GitHub lets no workflow tag a commit whose workflow files no branch has any more; main's newest it may tag.
        head = refs.git("ls-remote", "origin", "HEAD", what="origin cannot be listed").stdout.decode().split()[0]
        publish.fetch(head)
        return offer(head, Commit=found.commit)


def run_address() -> str:
    """Return the page of this workflow run, empty outside of one."""
    server, name = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
    number = os.environ.get("GITHUB_RUN_ID")
    return f"{server}/{name}/actions/runs/{number}" if server and name and number else ""


def _wanted(desk: Desk, entry: Assignment) -> targets.Wanted:
    image = f"{desk.registry.image}@{entry.digest}"
    return targets.Wanted(entry.stage, image, desk.proven(entry).model, entry.commit, _version(entry))


def _put_back(desk: Desk, failed: Assignment) -> str:
    """Let a stage go back to what it was before an image that does not run, and say so."""
    past = history(failed.stage)
    before = [entry for entry in past if entry.number < failed.number and entry.digest not in ("", failed.digest)]
    if past[-1] != failed or not before:
        return f"{failed.stage} " + ("has nothing that it could go back to" if not before else "moved on meanwhile")
    try:
        entry = _promote(desk, failed.stage, before[-1].digest, f"put back, since {failed.tag} does not run")
        targets.chosen().apply(_wanted(desk, entry))
        desk.state(desk.deployment(entry), "success", entry.run)
    except UserError as error:
        return f"{failed.stage} did not go back to {_named(before[-1])}: {error}"
    return f"{failed.stage} is back at {_named(entry)}"


def good(past: list[Assignment]) -> list[Assignment]:
    """Return what a stage would go back through, the current one last: what it was taken off from is left out."""
    kept: list[Assignment] = []
    for entry in (entry for entry in past if entry.digest):
        if entry.how != DELIVERED and entry.digest in (one.digest for one in kept):
            while kept[-1].digest != entry.digest:
                kept.pop()
        elif not kept or kept[-1].digest != entry.digest:
            kept.append(entry)
    return kept


def rollback(version: str | None = None) -> list[str]:
    """Open the incident's issue, then do as `run` with the good version before or a named one; return what was done.

    `version` is `v1.2.0`, a GTO tag such as `model#production#7`, or a digest that production has run. Where production
    was rolled back and is still frozen, nothing goes further back unless it is named.
    """
    desk = Desk()
    past = history("production")
    if not past:
        raise UserError("production has run nothing yet: there is nothing to go back to")
    now, address = past[-1], frozen(desk.github)
    if lacking := _unset(now):
        raise UserError(lacking)
    again = not version and address and now.how.startswith("rolled back")
    goal = now if again else _goal(past, version)
    if goal.digest == now.digest:
        further = f"to go further back, name it: {_choices(past, now)}"
        return [f"production is at {_named(now)} already; {further}", *_run(desk, "production", now.digest, now.how)]
    if desk.registry.resolve(goal.digest) is None:
        others = _choices([entry for entry in past if entry.digest != goal.digest], now)
        raise UserError(f"the image of {_named(goal)} was deleted from the registry: name another, {others}")
    desk.verify(goal.digest)
    try:
        frozen_until = f"frozen until {_incident(desk, now, goal)} is closed"
    except GoneError:
        frozen_until = "not frozen, since this repository has no issues: do not merge what was wrong again"
    done = _run(desk, "production", goal.digest, f"rolled back from {now.tag}")
    return [f"production went back from {_named(now)} to {_named(goal)}; {frozen_until}", *done]


def _goal(past: list[Assignment], version: str | None) -> Assignment:
    if version:
        name = version.removeprefix("model@")
        commit = versions().get(name if name.startswith("v") else f"v{name}")
        for entry in reversed(past):
            if entry.digest and (version in (entry.tag, entry.digest) or entry.commit == commit):
                return entry
        raise UserError(f"production has never run {version[:80]}: name one of {_choices(past, past[-1])}")
    # Before a newest tag without a digest, which was made by hand, lies what production ran.
    before = good(past)[: -1 if past[-1].digest else None]
    if not before:
        raise UserError(f"production has no version before {_named(past[-1])}: deliver a better one")
    return before[-1]


def _choices(past: list[Assignment], but: Assignment) -> str:
    found = {entry.digest: entry for entry in past if entry.digest and entry.digest != but.digest}
    return ", ".join(_version(entry) or entry.tag for entry in reversed([*found.values()][-5:])) or "there is none"


def _incident(desk: Desk, now: Assignment, goal: Assignment) -> str:
    """Open the issue that freezes promotion, unless it is open, and return its address."""
    for issue in desk.github.pages("issues", labels=LABEL, state="open"):
        body = issue["body"] or ""  # null where somebody wrote none
        if now.tag in body and goal.tag in body:
            return issue["html_url"]
    sides_of = [[_named(entry), *_facts(desk, entry)] for entry in (now, goal)]
    names = ("version", "digest", "commit", "model", "metric", "since", "who", "how")
    rows = "".join(f"| {' | '.join(map(str, row))} |\n" for row in zip(names, *sides_of, strict=True))
    text = (
        f"| | went from | back to |\n| --- | --- | --- |\n{rows}\nTags: `{now.tag}`, `{goal.tag}`. {run_address()}\n\n"
        "While this issue is open, nothing is promoted to production but by `ml rollback`. Close it to go on."
    )
    body = {"title": f"Production went back from {_named(now)} to {_named(goal)}", "body": text, "labels": [LABEL]}
    return str(desk.github.send("POST", "issues", body)["html_url"])


def _version(entry: Assignment) -> str:
    """Return the version that a release gave to an assignment's commit, as this clone's tags have it."""
    listed = sides.git("tag", f"--points-at={entry.commit}", "--list", "model@*").decode().split()
    return next((match[1] for name in listed if (match := VERSION.fullmatch(name))), "")


def _named(entry: Assignment | None) -> str:
    return "nothing" if entry is None else _version(entry) or entry.tag


def _facts(desk: Desk, entry: Assignment) -> list[str]:
    """Return digest, commit, model, the objective's metric, time, who and how of an assignment."""
    try:
        found = desk.verify(entry.digest)
        name = found.params["objective"]["metric"]
        model = [found.model[:12], f"{name} {found.metrics[name]:.4g}"]
    except (UserError, KeyError, TypeError, ValueError):
        model = ["?", "?"]
    return [entry.digest[:19] or "?", entry.commit[:10], *model, entry.when, entry.who, entry.how]


def status(*, mend: bool = False) -> tuple[list[str], list[str]]:
    """Return a table of the stages in lines, and each disagreement with what mends it.

    With `mend` the registry's tags and the Deployments first follow the GTO tags.
    """
    desk = Desk()
    rows = [["stage", "version", "digest", "commit", "model", "metric", "when", "who", "how", "deployment"]]
    faults: list[str] = []
    for stage in STAGES:
        unmended = _mend(desk, stage) if mend else ""
        if (entry := current(stage)) is None:
            if leads := desk.registry.resolve(stage):
                faults.append(f"no promotion says that the tag {stage} leads to {leads[:19]}: {_remedy(stage)}")
            continue
        number = desk.deployment(entry, make=False)
        state = _state(desk.github, number) if number else "none"
        rows.append([stage, _version(entry) or "-", *_facts(desk, entry), state])
        faults += list(filter(None, [unmended or _unset(entry, VERIFYING)])) or _disagreements(desk, entry, state)
    return _table(rows), faults


def _mend(desk: Desk, stage: str) -> str:
    try:
        desk.settle(stage)
    except UserError as error:
        return str(error)
    return ""


def _disagreements(desk: Desk, entry: Assignment, state: str) -> Iterator[str]:
    if not entry.digest:
        yield f"{entry.tag} names no digest, {entry.who} made it by hand: {_remedy(entry.stage)}"
        return
    try:
        desk.proven(entry)
    except UserError as error:
        yield f"{entry.tag}: {error}; mend: {_remedy(entry.stage)}"
        return
    if (leads := desk.registry.resolve(entry.stage)) != entry.digest:
        yield f"{entry.tag} is {entry.digest[:19]}, the tag of the image {(leads or 'nowhere')[:19]}: {MEND}"
    if state == "none":
        yield f"{entry.tag} has no Deployment: {MEND}"
    elif state != "success":
        yield f"the Deployment of {entry.tag} says {state}: ml promote {entry.stage} {entry.digest}"


def _remedy(stage: str) -> str:
    return "ml rollback" if stage == "production" else f"ml promote {stage} DIGEST"


def audit() -> list[str]:
    """Return the audit trail in lines: every assignment of every stage, newest first."""
    rows = [["when", "tag", "digest", "commit", "who", "how", "run"]]
    for entry in reversed(history()):
        told = (entry.digest[:19] or "-", entry.commit[:10], entry.who, entry.how, entry.run)
        rows.append([entry.when, entry.tag, *told])
    return _table(rows)


def _table(rows: list[list[str]]) -> list[str]:
    """Return rows in columns; the first one is the head of the others."""
    if len(rows) == 1:
        return ["nothing was promoted yet"]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _state(github: GitHub, deployment: int) -> str:
    found = github.get(f"deployments/{deployment}/statuses", per_page=1)
    return str(found[0]["state"]) if found else "pending"


def _payload(deployment: dict[str, Any]) -> dict[str, Any]:
    payload = deployment.get("payload")
    try:
        found = json.loads(payload) if isinstance(payload, str) else payload
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}
