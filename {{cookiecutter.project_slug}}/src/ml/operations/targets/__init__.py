"""Where a promoted image runs: one small module a target, chosen by DEPLOY_TARGET."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Protocol, cast

from ml.errors import UserError

NAMES = ("none", "compose", "kubernetes")


@dataclass(frozen=True)
class Wanted:
    """What is to run: the image as `REPOSITORY@sha256:…`, the model's SHA-256, and what `/info` is to say."""

    stage: str
    image: str
    model: str
    commit: str
    version: str = ""


class Target(Protocol):
    """What a module of this folder has; each function returns what is to be printed and raises UserError."""

    def plan(self, wanted: Wanted) -> str:
        """Return what `apply` would change; change nothing."""

    def apply(self, wanted: Wanted) -> str:
        """Let the image run and return one line; where it does not get ready, put back what ran before and raise."""

    def check(self, wanted: Wanted) -> str:
        """Ask what runs for predictions and return one line; raise where it is not what is wanted."""


def chosen() -> Target:
    """Return the target that DEPLOY_TARGET names, `none` by default; raise UserError for another name."""
    name = os.environ.get("DEPLOY_TARGET") or "none"
    if name not in NAMES:
        raise UserError(f"DEPLOY_TARGET={name[:40]} must be one of {', '.join(NAMES)}: change the repository's variable")
    return cast(Target, importlib.import_module(f"ml.operations.targets.{name}"))
