"""Talks to an OCI registry about one image repository, without a daemon.

References: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md (tags, blobs, referrers) and
https://distribution.github.io/distribution/spec/auth/token/ (how a registry asks for a token).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Registry:
    """One repository of images, such as `ghcr.io/owner/name`."""

    host: str
    name: str

    @classmethod
    def open(cls) -> Registry:
        """Return the repository that REGISTRY names, `ghcr.io/OWNER/REPO` without it.

        REGISTRY_USER and REGISTRY_PASSWORD open it, else what `docker login` keeps.
        """

    @property
    def image(self) -> str:
        """Return the repository's name as docker writes it."""

    def resolve(self, ref: str) -> str | None:
        """Return the digest that a tag or digest leads to, None where the registry has none."""

    def tag(self, digest: str, name: str) -> None:
        """Let a tag lead to a digest; raise UserError unless it does afterwards, SourceError for an unknown digest."""

    def attach(self, digest: str, kind: str, files: Mapping[str, Path]) -> str:
        """Put files beside an image as one artifact of the kind and return the artifact's digest.

        The same files make the same artifact.
        """

    def referrers(self, digest: str, kind: str) -> list[dict[str, Any]]:
        """Return the descriptors of the artifacts of a kind beside an image."""

    def files(self, digest: str) -> dict[str, dict[str, Any]]:
        """Return the descriptors of an artifact's files by name."""

    def read(self, descriptor: Mapping[str, Any]) -> bytes:
        """Return a small file's bytes; raise SourceError where they have another hash."""

    def fetch(self, descriptor: Mapping[str, Any], target: Path) -> None:
        """Write a file, whole and with its hash, or not at all."""
