"""The record of a delivery: what an image is made of and what was found, beside the image and inside its attestation.

The record is the attestation's predicate. The files that it names by hash lie beside the image as one artifact.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML

from ml.errors import SourceError, UserError
from ml.objects import copy
from ml.operations.registry import Registry, digest_of
from ml.pipeline.tables import write_bytes
from ml.review import sides

PREDICATE = "urn:ml-delivery:v1"
KIND = "application/vnd.ml.delivery.v1+json"
NAME = "record.json"
FOLDER = Path("build/delivery/record")
MODEL, METRICS, VERDICT, LOADTEST = "model.onnx", "metrics.json", "verdict.json", "loadtest.json"
PASSED = ("passed", "skipped")


class Part(BaseModel):
    # A rollback reads records that an older or a newer project wrote.
    model_config = ConfigDict(extra="ignore", frozen=True)


class Exemption(Part):
    """A vulnerability that is let pass until a day, and why."""

    id: str
    until: date
    reason: str


class Scan(Part):
    """Critical vulnerabilities that a fix exists for: those that block, and those that an exemption lets pass."""

    fixable: list[str] = []
    exempted: list[Exemption] = []


class Judged(Part):
    """What the verdict or the load test said: `passed`, `failed`, `not judged` or `skipped`, and a sentence."""

    status: str
    sentence: str
    gates: dict[str, str] = {}


class Record(Part):
    """What was delivered; `content` is the hash of model and service without the commit, `files` hold SHA-256 by name.

    `run` is the workflow's, 0 outside of one. `reproduced` is `full` or `evaluate` as params.yaml says, or `trained`
    where a first push had no lock to reproduce.
    """

    version: int = 1
    commit: str = Field(pattern=r"^[0-9a-f]{40}$")
    run: int
    content: str
    model: str
    reproduced: str
    outputs: dict[str, str]
    params: dict[str, Any]
    metrics: dict[str, Any]
    verdict: Judged
    loadtest: Judged
    scan: Scan
    files: dict[str, str]

    @property
    def faults(self) -> list[str]:
        """Return why what is recorded may not be promoted; empty where it may."""
        judged = {"verdict": self.verdict, "load test": self.loadtest}
        found = [f"its {name} is {j.status} ({j.sentence})" for name, j in judged.items() if j.status not in PASSED]
        stopped = [gate for gate, status in self.verdict.gates.items() if status not in PASSED]
        found += [f"its verdict passes over {', '.join(stopped)}"] if stopped and not found else []
        return found + ([f"its scan found {', '.join(self.scan.fixable)}"] if self.scan.fixable else [])


def make(
    sources: Mapping[str, Path],
    *,
    commit: str,
    run: int,
    content: str,
    reproduced: str,
    scan: Scan,
    folder: Path = FOLDER,
) -> Record:
    """Write record.json and the files that lie beside the image into the folder, and return the record.

    `sources` are files by the name that they get: verdict.json, loadtest.json, metrics.json and model.onnx, which the
    record sums up, and others. Outputs and params are those of the work tree's dvc.lock and params.yaml.
    Raises UserError where a file is missing.
    """
    for name in {MODEL, METRICS, VERDICT, LOADTEST} - sources.keys():
        raise UserError(f"a record needs {name}: give it its place")
    for name, path in sources.items():
        if not path.is_file():
            raise UserError(f"{path} ({name} of the record) is missing: the step that writes it has not run")
        copy(path, folder / name)
    hashes = {name: digest_of(folder / name).removeprefix("sha256:") for name in sorted(sources)}
    verdict, load = (json.loads((folder / name).read_bytes()) for name in (VERDICT, LOADTEST))
    gates = {result["gate"]: result["status"] for result in verdict["results"]}
    stopped = [f"{gate} {status}" for gate, status in gates.items() if status not in PASSED]
    record = Record(
        commit=commit,
        run=run,
        content=content,
        model=hashes[MODEL],
        reproduced=reproduced,
        outputs=sides.locked(Path("dvc.lock").read_bytes(), "the work tree"),
        params=YAML(typ="safe").load(Path("params.yaml").read_bytes()),
        metrics=json.loads((folder / METRICS).read_bytes()),
        verdict=Judged(
            status="failed" if stopped else "passed",
            sentence="; ".join(stopped) or f"{len(gates)} gates, none in the way",
            gates=gates,
        ),
        loadtest=Judged(status=load["status"], sentence=load["sentence"]),
        scan=scan,
        files=hashes,
    )
    write_bytes(record.model_dump_json(indent=2).encode() + b"\n", folder / NAME)
    return record


def attach(registry: Registry, digest: str, folder: Path = FOLDER) -> str:
    """Put the folder beside the image and return the artifact's digest; what lies there already is left alone."""
    record = read((folder / NAME).read_bytes(), str(folder))
    return registry.attach(digest, KIND, {name: folder / name for name in (NAME, *record.files)})


def read(content: bytes | str, where: str) -> Record:
    """Return the record that JSON holds; raise SourceError for anything else."""
    try:
        return Record.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"])) or "JSON"
        raise SourceError(f"{where} holds no record of a delivery: {at}: {first['msg']}") from None


def beside(registry: Registry, digest: str) -> list[Record]:
    """Return the records beside an image, unverified.

    One whose files have other hashes than it says is left out: anybody who may push can put something there.
    """
    found = [_opened(registry, artifact["digest"]) for artifact in registry.referrers(digest, KIND)]
    return [record for record, _ in filter(None, found)]


def fetch(registry: Registry, digest: str, record: Record, folder: Path) -> None:
    """Write record.json and the files of an image's record into the folder, each with the hash that the record gives.

    Raises SourceError where the image has none.
    """
    for artifact in registry.referrers(digest, KIND):
        found = _opened(registry, artifact["digest"])
        if found is not None and found[0] == record:
            for name in (NAME, *record.files):
                registry.fetch(found[1][name], folder / name)
            return
    raise SourceError(f"{registry.image}@{digest[:19]} lost the files of its record: deliver its commit again")


def _opened(registry: Registry, artifact: str) -> tuple[Record, dict[str, Any]] | None:
    files = registry.files(artifact)
    if NAME not in files:
        return None
    try:
        record = read(registry.read(files[NAME]), artifact)
    except SourceError:
        return None
    hashes = {name: about["digest"].removeprefix("sha256:") for name, about in files.items() if name != NAME}
    return (record, files) if hashes == record.files else None
