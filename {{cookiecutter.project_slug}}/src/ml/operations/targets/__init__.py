"""Where a promoted image runs: one small module a target, chosen by DEPLOY_TARGET; docs/deploy.md."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from ml.errors import UserError
from ml.serving import build

NAMES = ("none", "compose", "kubernetes")
IMAGE = re.compile(r"[a-z0-9][a-z0-9._:/-]*@sha256:[0-9a-f]{64}")
LONGEST = 63  # characters of a name in Kubernetes (RFC 1123)


@dataclass(frozen=True)
class Wanted:
    """What is to run: the image as `REPOSITORY@sha256:…`, the model's SHA-256, and what `/info` is to say."""

    stage: str
    image: str
    model: str
    commit: str
    version: str = ""

    def __post_init__(self) -> None:
        if not IMAGE.fullmatch(self.image):
            raise UserError(f"{self.image[:100]} names no image by digest: give REPOSITORY@sha256:…")

    @property
    def about(self) -> dict[str, str]:
        """Return the service's environment, which `/info` and `ml_model_info` repeat."""
        return {"ML_COMMIT": self.commit, "ML_STAGE": self.stage, "ML_VERSION": self.version}

    @property
    def place(self) -> str:
        """Return the name of what holds a stage of this project: at most 63 letters, digits and hyphens."""
        name = build.project(Path.cwd())["name"]
        return f"{name[: LONGEST - len(self.stage) - 1].rstrip('-')}-{self.stage}"


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
        raise UserError(
            f"DEPLOY_TARGET={name[:40]} must be one of {', '.join(NAMES)}: change the repository's variable"
        )
    return cast(Target, importlib.import_module(f"ml.operations.targets.{name}"))


def judge(printed: str, wanted: Wanted) -> str:
    """Return one line about the answers that ASK printed; raise UserError where they are not what is wanted."""
    try:
        answers = json.loads(printed)
        faults, prediction = list(_faults(answers, wanted)), answers["due"]["predictions"][0]
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"{wanted.place} answers {printed[:200] or 'nothing'}: look at its log") from None
    if faults:
        raise UserError(f"{wanted.place} answers, and {'; '.join(faults)}")
    return f"{wanted.place} answers as {wanted.model[:12]}: {json.dumps(prediction)} for the example"


def _faults(answers: dict[str, Any], wanted: Wanted) -> Iterator[str]:
    (ready, _), (_, info), good, (bad, _) = (answers[name] for name in ("ready", "info", "good", "bad"))
    if ready != 200:
        yield f"/readyz says {ready}"
    due = {"model": wanted.model, **{name[3:].lower(): text or None for name, text in wanted.about.items()}}
    yield from (f"its {key} is {info.get(key)}, not {text}" for key, text in due.items() if info.get(key) != text)
    if good != [200, answers["due"]]:
        yield f"it predicts {good[0]} {json.dumps(good[1])[:200]} for its own example"
    if bad != 400:
        yield f"it answers {bad} to a field that does not exist"


def tell(
    *words: str, given: str | None = None, good: tuple[int, ...] = (0,), more: Mapping[str, str] | None = None
) -> str:
    """Return what a program prints, `given` on its standard input, with `more` in its environment.

    Raises UserError with its last line for an exit code that is not good, or where there is no such program.
    """
    try:
        env = {**os.environ, **(more or {})}
        done = subprocess.run(words, input=given, capture_output=True, text=True, check=False, env=env)
    except FileNotFoundError:
        raise UserError(f"{words[0]} is not on this machine: install it, or choose another DEPLOY_TARGET") from None
    if done.returncode not in good:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()] or ["no reason given"]
        raise UserError(f"{words[0]}: {lines[-1].strip()[-300:]}")
    return done.stdout
