"""Names what was delivered: a version in git and registry, and a GitHub Release of what lies beside the image.

On a laptop it makes and pushes the tag `model@v1.2.0`, and release.yml publishes it; nothing is built. GTO reads the
tags. Reference: https://docs.github.com/en/rest/releases
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from ml import refs
from ml.errors import SourceError, UserError
from ml.operations import promote, record
from ml.operations.github import GitHub
from ml.operations.publish import BOT
from ml.operations.record import Record
from ml.operations.registry import Registry
from ml.review import report, sides
from ml.review.verdict import Interval, Verdict

VERSION = re.compile(r"v(\d+)\.(\d+)\.(\d+)")
FIRST = "v1.0.0"
SUMS = "SHA256SUMS"
TAG = "model@"


def run(bump: str | None, commit: str | None) -> str:
    """Tag the next version of a delivered commit (production's by default); in a workflow publish it.

    In a workflow that a tag started, that tag's version is published. Raises UserError for a commit that was never
    delivered or has a version, and for an image that is not verified.
    """
    there = promote.versions()
    pushed = os.environ.get("GITHUB_REF_TYPE") == "tag" and not bump
    if pushed:
        version = os.environ["GITHUB_REF"].removeprefix(f"refs/tags/{TAG}")
        sha = sides.Commit.at(os.environ["GITHUB_REF"]).sha
    else:
        if commit is None and (runs := promote.current("production")) is None:
            raise UserError("production runs nothing yet: merge to main, and deliver.yml delivers it")
        sha = sides.Commit.at(commit or runs.commit).sha
        version = next((known for known, of in there.items() if of == sha), "") or following(there, bump or "patch")
    digest = refuse(version, sha, there)
    inside = bool(os.environ.get("GITHUB_ACTIONS"))
    if version in there and not inside:
        raise UserError(f"{sha[:10]} is {version} already: a commit has one version")
    if not inside:
        return tag(version, sha, digest)
    return publish(version, sha, digest, there, new=version not in there)


def refuse(version: str, sha: str, there: dict[str, str]) -> str:
    """Return the digest that was delivered for a commit; raise UserError where it cannot have the version."""
    if not VERSION.fullmatch(version):
        raise UserError(f"{TAG}{version} is no version: name it as {TAG}{FIRST}")
    if others := [known for known, of in there.items() if of == sha and known != version]:
        raise UserError(f"{sha[:10]} is {others[0]} already: a commit has one version")
    # The newest: the same commit may have been built twice, and only the last one went on.
    digests = [one.digest for one in promote.history("production") if one.commit == sha and one.digest]
    if not digests:
        raise UserError(f"{sha[:10]} was never delivered to production: only what ran there gets a version")
    return digests[-1]


def parts(version: str) -> tuple[int, int, int]:
    """Return the numbers of a version."""
    return tuple(map(int, VERSION.fullmatch(version).groups()))


def following(there: dict[str, str], bump: str) -> str:
    """Return the version after the highest one."""
    known = [parts(version) for version in there if VERSION.fullmatch(version)]
    if not known:
        return FIRST
    major, minor, patch = max(known)
    numbers = {"major": (major + 1, 0, 0), "minor": (major, minor + 1, 0), "patch": (major, minor, patch + 1)}[bump]
    return "v" + ".".join(map(str, numbers))


def tag(version: str, sha: str, digest: str) -> str:
    """Make the version's tag and push it; raise UserError where origin has one, or takes none."""
    name, text = f"{TAG}{version}", f"Release {version}\n\nDigest: {digest}\n"
    own = {f"GIT_COMMITTER_{what}": said for what, said in zip(("NAME", "EMAIL"), BOT, strict=True)}
    who = own if os.environ.get("GITHUB_ACTIONS") else {}
    refs.git("tag", "--annotate", "--force", "--message", text, name, sha, env=who, what=f"{name} cannot be made")
    try:
        refs.git("push", "--quiet", "--no-verify", "origin", f"refs/tags/{name}", what=f"origin does not take {name}")
    except SourceError as error:
        if not promote.UNTAGGED.search(str(error)):
            raise
        remedy = f"on a laptop: make release COMMIT={sha[:10]} (with its BUMP), which starts release.yml too"
        raise UserError(f"GitHub lets no workflow tag {sha[:10]}, since workflows changed after it; {remedy}") from None
    return f"{name} leads to {sha[:10]}: release.yml publishes it"


def publish(version: str, sha: str, digest: str, there: dict[str, str], *, new: bool) -> str:
    """Verify the image, tag git and registry, and write the GitHub Release; return its address.

    Whatever of it is done already is left as it is.
    """
    registry, github = Registry.open(), GitHub.open()
    kept = promote.verify(registry, digest)
    if new:
        tag(version, sha, digest)
    known = {**there, version: sha}
    for name in names(version, known):
        if name == version and registry.resolve(name) not in (None, digest):
            raise UserError(f"{registry.image}:{version} leads to another image: delete that tag, then run this again")
        registry.tag(digest, name)
    before = max((one for one in known if parts(one) < parts(version)), key=parts, default=None)
    with TemporaryDirectory(prefix="release-") as scratch:
        folder = Path(scratch)
        record.fetch(registry, digest, kept, folder)
        files = sorted(path for path in folder.iterdir() if path.name != SUMS)
        sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
        (folder / SUMS).write_text("".join(sums))
        text = notes((version, before), known, f"{registry.image}@{digest}", kept, verdict_of(folder))
        latest = version == max(known, key=parts)
        return write(github, version, text, [*files, folder / SUMS], latest=latest)


def names(version: str, known: dict[str, str]) -> list[str]:
    """Return the image's tags: `v1.2.0`, and `v1.2` and `v1` where it is the highest of those."""
    major, minor, _ = own = parts(version)
    others = [parts(one) for one in known]
    found = [version]
    if own == max(one for one in others if one[:2] == own[:2]):
        found.append(f"v{major}.{minor}")
    if own == max(one for one in others if one[0] == major):
        found.append(f"v{major}")
    return found


def verdict_of(folder: Path) -> Verdict:
    """Return the verdict among a record's files."""
    return Verdict.model_validate_json((folder / "verdict.json").read_bytes())


def notes(release: tuple[str, str | None], known: dict[str, str], image: str, kept: Record, verdict: Verdict) -> str:
    """Return what changed since the version before, in Markdown, and the pull requests that GitHub lists."""
    registry, github, (version, before) = Registry.open(), GitHub.open(), release
    was, then = earlier(registry, known[before]) if before else (None, None)
    asked = {"tag_name": f"{TAG}{version}", "target_commitish": known[version]}
    asked |= {"previous_tag_name": f"{TAG}{before}"} if before else {}
    first = f"**{before} → {version}:** {changed(was, kept)}" if was else f"**{report.clean(verdict.headline)}**"
    parts = [
        first,
        f"Image `{image}`, model `{kept.model[:12]}`, commit `{kept.commit[:10]}`.",
        f"What {before} was made of is no longer in the registry: nothing to compare." if before and not was else "",
        metrics(before if then else None, version, then, verdict),
        settings(was, kept),
        github.send("POST", "releases/generate-notes", asked)["body"],
        f"Verify it: `gh attestation verify oci://{image} --repo {github.name}`",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def earlier(registry: Registry, sha: str) -> tuple[Record | None, Verdict | None]:
    """Return record and verdict of the version before, as far as the registry still has them."""
    digests = [one.digest for one in promote.history("production") if one.commit == sha and one.digest]
    for kept in record.beside(registry, digests[-1]) if digests else []:
        with TemporaryDirectory(prefix="release-") as scratch:
            record.fetch(registry, digests[-1], kept, Path(scratch))
            return kept, verdict_of(Path(scratch))
    return None, None


def changed(was: Record, now: Record) -> str:
    """Return in words which of model, data, settings and service differ."""
    data = {name: md5 for name, md5 in now.outputs.items() if name.startswith("data/")}
    told = {
        "the model": was.model != now.model,
        "its data": data != {name: md5 for name, md5 in was.outputs.items() if name.startswith("data/")},
        "settings": was.params != now.params,
        "the service": was.content != now.content and was.model == now.model,
    }
    return ", ".join(what for what, differs in told.items() if differs) or "nothing of model, data and settings"


def metrics(before: str | None, version: str, then: Verdict | None, now: Verdict) -> str:
    """Return each version's metrics with their intervals, each on the holdout of its own time."""
    old = {metric.name: metric.candidate for metric in then.metrics} if then else {}
    columns = [*([before] if before else []), version]
    head = f"| metric | better | {' | '.join(columns)} |\n| --- | --- |{' ---: |' * len(columns)}"
    rows = []
    for metric in now.metrics:
        values = ([old.get(metric.name)] if before else []) + [metric.candidate]
        rows.append(f"| {report.code(metric.name)} | {metric.better} | {' | '.join(map(_shown, values))} |")
    return "\n".join([head, *rows, "", f"Each on its own holdout, with {now.confidence:.0%} intervals."])


def _shown(found: Interval | None) -> str:
    if found is None or found.value is None:
        return "–"
    ends = "" if found.low is None or found.high is None else f" ({found.low:.3g} to {found.high:.3g})"
    return f"{found.value:.4g}{ends}"


def settings(was: Record | None, now: Record) -> str:
    """Return the settings that differ, as a table; empty where none does."""
    from ml.review.review import differences

    found = differences(was.params, now.params) if was else []
    rows = [f"| {report.code(one.name)} | {report.prose(one.before)} | {report.prose(one.after)} |" for one in found]
    return "\n".join(["| setting | before | now |", "| --- | --- | --- |", *rows]) if rows else ""


def write(github: GitHub, version: str, text: str, files: list[Path], *, latest: bool) -> str:
    """Write the release with its files and return its address; it is seen once it is whole.

    `latest` gives it GitHub's badge.
    """
    name = f"{TAG}{version}"
    for found in github.pages("releases"):
        if found["tag_name"] == name and not found["draft"]:
            return f"{version} is released: {found['html_url']}"
        if found["tag_name"] == name:
            github.send("DELETE", f"releases/{found['id']}")
    about = {"tag_name": name, "name": version, "body": text, "draft": True}
    made = github.send("POST", "releases", about)
    address = made["upload_url"].partition("{")[0]
    for path in files:
        github.upload(address, path)
    done = github.send("PATCH", f"releases/{made['id']}", {"draft": False, "make_latest": str(latest).lower()})
    return f"{version} is released: {done['html_url']}"
