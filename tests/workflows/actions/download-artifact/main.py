"""Unpacks artifacts."""

import fnmatch
import io
import json
import os
import urllib.error
import zipfile
from pathlib import Path

from stand_in import WORKSPACE, call, fail, job_token, output, text, true


def of_this_run() -> dict[str, bytes]:
    folder = Path(os.environ["STAND_INS_ARTIFACTS"]) / os.environ["GITHUB_RUN_ID"]
    return {file.stem: file.read_bytes() for file in sorted(folder.glob("*.zip"))}


def of_another_run(token: str) -> dict[str, bytes]:
    """Return the wanted artifacts through the API, with the rights of the token."""
    where = f"/repos/{text('repository')}/actions"
    listed = json.loads(call(f"{where}/runs/{text('run-id')}/artifacts?per_page=100", token))["artifacts"]
    return {each["name"]: call(f"{where}/artifacts/{each['id']}/zip", token) for each in listed if wanted(each["name"])}


def wanted(name: str) -> bool:
    if text("name"):
        return name == text("name")
    return fnmatch.fnmatchcase(name, text("pattern") or "*")


def main() -> None:
    token = job_token(text("github-token"))
    try:
        artifacts = of_another_run(token) if token else of_this_run()
    except urllib.error.HTTPError as error:
        fail(f"Unable to download artifact(s): {error.code} {json.loads(error.read() or b'{}').get('message', '')}")
    chosen = {name: packed for name, packed in artifacts.items() if wanted(name)}
    if text("name") and not chosen:
        fail(f"Unable to download artifact(s): Artifact not found for name: {text('name')}")
    folder = (WORKSPACE / Path(text("path")).expanduser()).resolve()
    for name, packed in chosen.items():
        single = bool(text("name")) or true("merge-multiple")
        unpack(packed, folder if single else folder / name)
        print(f"artifact {name} downloaded")
    output("download-path", folder)


def unpack(packed: bytes, folder: Path) -> None:
    """Unpack below the folder and nowhere else."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        for entry in archive.infolist():
            if not (folder / entry.filename).resolve().is_relative_to(folder):
                fail(f"Unable to download artifact(s): {entry.filename} lies outside of the folder")
            archive.extract(entry, folder)


main()
