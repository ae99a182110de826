"""Where entries lie: a folder a scope, and a scope a branch. A pull request sees its own and its base's."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from stand_in import event

FOLDER = Path(os.environ["STAND_INS_CACHES"])


def scopes() -> list[str]:
    """Return the scopes that this run reads, its own first."""
    default = event().get("repository", {}).get("default_branch", "main")
    seen = [os.environ["GITHUB_REF"]]
    if os.environ.get("GITHUB_BASE_REF"):
        seen.append(f"refs/heads/{os.environ['GITHUB_BASE_REF']}")
    return [*dict.fromkeys([*seen, f"refs/heads/{default}"])]


def entry(scope: str, key: str, paths: list[str]) -> Path:
    """Return the folder of an entry; other paths are another entry."""
    version = hashlib.sha256(json.dumps(paths).encode()).hexdigest()[:16]
    return FOLDER / scope.replace("/", "%") / version / key.replace("/", "%")


def find(key: str, starts: list[str], paths: list[str]) -> Path | None:
    """Return the entry of the key, else the newest whose key begins with one of the starts."""
    for scope in scopes():
        if (exact := entry(scope, key, paths)).is_dir():
            return exact
        for start in [key, *starts]:
            folder = entry(scope, start, paths).parent
            fitting = [each for each in folder.glob("*") if each.name.startswith(start.replace("/", "%"))]
            if fitting:
                return max(fitting, key=lambda each: each.stat().st_mtime_ns)
    return None
