"""What serving is set to: `settings.json` as `ml build` wrote it, and where the environment says otherwise."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml.errors import UserError


@dataclass(frozen=True)
class Settings:
    """The section `serve` of params.yaml with the project's name, and what only a deployment knows."""

    name: str
    workers: int
    timeout: float
    drain: float
    batching: dict[str, int] | None
    limits: dict[str, int]
    log: dict[str, Any]
    commit: str | None
    version: str | None
    stage: str | None

    @classmethod
    def read(cls, path: Path, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read a settings file; raise UserError where there is none or the environment says what cannot be."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            raise UserError(f"{path} is missing: run ml build or make serve, which write it") from None
        told = {key: environment.get(f"ML_{key.upper()}") or None for key in ("commit", "version", "stage")}
        content["workers"] = int(_number(environment, "ML_WORKERS", content["workers"], least=1))
        content["drain"] = _number(environment, "ML_DRAIN", content["drain"], least=0)
        content["log"]["to"] = environment.get("ML_LOG") or content["log"]["to"]
        return cls(**content, **told)


def _number(environment: Mapping[str, str], name: str, otherwise: float, least: int) -> float:
    text = environment.get(name) or str(otherwise)
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value < 1e6 or (name == "ML_WORKERS" and value != int(value)):
        raise UserError(f"{name}={text[:40]} must be a number of at least {least}: change it in the environment")
    return value
