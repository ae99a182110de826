"""The record of a delivery: what an image is made of and what was found, beside the image and inside its attestation.

The record is the attestation's predicate. The files that it names by hash lie beside the image as one artifact.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ml.operations.registry import Registry

PREDICATE = "urn:ml-delivery:v1"
KIND = "application/vnd.ml.delivery.v1+json"
NAME = "record.json"
FOLDER = Path("build/delivery/record")


class Part(BaseModel):
    # A rollback reads records of years ago, and a newer project's.
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

    `reproduced` is `full`, `evaluate` or, for a first push that trained its model, `trained`.
    """

    version: int = 1
    commit: str
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


def make(
    sources: dict[str, Path], *, commit: str, run: int, content: str, reproduced: str, scan: Scan, folder: Path = FOLDER
) -> Record:
    """Write record.json and the files that lie beside the image into the folder, and return the record.

    `sources` are the files by the name that they get: verdict.json, report.html, report.md, card.md, sbom.json,
    scan.json, loadtest.json and model.onnx. Outputs, params and metrics are the work tree's.
    Raises UserError where a file is missing.
    """


def attach(registry: Registry, digest: str, folder: Path = FOLDER) -> str:
    """Put the folder beside the image and return the artifact's digest; what lies there already is left alone."""


def beside(registry: Registry, digest: str) -> list[tuple[Record, dict[str, Any]]]:
    """Return each record beside an image with the descriptors of its files by name.

    One whose files have other hashes than it says is left out: anybody who may push can put something there.
    """


def fetch(registry: Registry, digest: str, record: Record, folder: Path) -> None:
    """Write the files of an image's record into the folder, each with the hash that the record gives it.

    Raises SourceError where one is missing or has another hash.
    """
