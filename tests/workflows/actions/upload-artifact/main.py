"""Packs and keeps an artifact."""

import glob
import hashlib
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from stand_in import WORKSPACE, fail, lines, number, output, required, text, true, warn

FORBIDDEN = re.compile(r'["<>|*?\r\n:\\/]')
WILD = re.compile(r"[*?\[]")


def hidden(path: Path, root: Path) -> bool:
    """Return whether a name on the way from the root, which counts too, begins with a dot."""
    return any(part.startswith(".") for part in (root.name, *path.relative_to(root).parts))


def root_of(pattern: str) -> Path:
    """Return the part of a pattern before its first wildcard."""
    parts = Path(pattern).parts
    plain = [part for part, _ in zip(parts, _until_wild(parts), strict=False)]
    return Path(*plain)


def _until_wild(parts: tuple[str, ...]) -> Iterator[str]:
    for part in parts:
        if WILD.search(part):
            return
        yield part


def found(patterns: list[str]) -> list[Path]:
    """Return the files that the patterns name, without the hidden ones unless they are wanted."""
    files: dict[Path, None] = {}
    for pattern in patterns:
        whole = str(WORKSPACE / Path(pattern.removeprefix("!")).expanduser())
        root = root_of(whole)
        named = [Path(each) for each in glob.glob(whole, recursive=True, include_hidden=True)]
        below = [each for path in named if path.is_dir() for each in path.rglob("*")]
        chosen = [each for each in named + below if each.is_file()]
        if pattern.startswith("!"):
            files = {each: None for each in files if each not in chosen}
        else:
            files |= {each: None for each in sorted(chosen) if true("include-hidden-files") or not hidden(each, root)}
    return [*files]


def common_root(patterns: list[str], files: list[Path]) -> Path:
    """Return the folder that the paths inside of the artifact begin at: the nearest that all patterns share."""
    roots = [root_of(str(WORKSPACE / Path(each).expanduser())) for each in patterns if not each.startswith("!")]
    if len(roots) == 1 and files == roots:
        return files[0].parent
    return Path(os.path.commonpath(roots)) if len(roots) > 1 else roots[0]


def main() -> None:
    name, patterns = text("name") or "artifact", lines("path") or [required("path")]
    if FORBIDDEN.search(name):
        fail(f"The artifact name is not valid: {name}")
    if text("retention-days") and not 0 <= number("retention-days", 0) <= 90:
        fail("Retention days must be between 0 and 90")
    files = found(patterns)
    if not files:
        message = f"No files were found with the provided path: {', '.join(patterns)}. No artifacts will be uploaded."
        {"warn": warn, "error": fail, "ignore": print}[text("if-no-files-found") or "warn"](message)
        return
    target = Path(os.environ["STAND_INS_ARTIFACTS"]) / os.environ["GITHUB_RUN_ID"] / f"{name}.zip"
    if target.exists() and not true("overwrite") and not of_an_earlier_attempt(target):
        fail(
            "Failed to CreateArtifact: Received non-retryable error: (409) Conflict: an artifact with this name exists"
        )
    pack(target, common_root(patterns, files), files)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    identifier = int(hashlib.sha256(str(target).encode()).hexdigest()[:8], 16)
    output("artifact-id", identifier)
    output("artifact-digest", digest)
    where = "{GITHUB_SERVER_URL}/{GITHUB_REPOSITORY}/actions/runs/{GITHUB_RUN_ID}".format_map(os.environ)
    output("artifact-url", f"{where}/artifacts/{identifier}")
    print(f"{len(files)} files uploaded as {name}")


def of_an_earlier_attempt(packed: Path) -> bool:
    """Return whether a job that is now run again made it: each attempt has artifacts of its own, the newest counts."""
    with zipfile.ZipFile(packed) as archive:
        return archive.comment not in (b"", os.environ["GITHUB_RUN_ATTEMPT"].encode())


def pack(target: Path, root: Path, files: list[Path]) -> None:
    """Write the packed file; permissions are lost, as at GitHub."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_suffix(".tmp")
    with zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED, compresslevel=number("compression-level", 6)) as archive:
        archive.comment = os.environ["GITHUB_RUN_ATTEMPT"].encode()
        for file in files:
            entry = zipfile.ZipInfo(file.relative_to(root).as_posix())
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, file.read_bytes())
    fresh.replace(target)


main()
