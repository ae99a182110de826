"""What the stand-in actions share: their inputs, outputs and messages, and a way to call the API.

Hundreds of steps import it, so what takes long to import is left to those that need it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

WORKSPACE = Path(os.environ.get("GITHUB_WORKSPACE", "."))


def text(name: str) -> str:
    """Return an input, stripped as a runner does."""
    return os.environ.get(f"INPUT_{name.upper().replace(' ', '_')}", "").strip()


def required(name: str) -> str:
    return text(name) or fail(f"Input required and not supplied: {name}")


def true(name: str) -> bool:
    """Return a boolean input; only YAML 1.2's words are one."""
    value = text(name)
    if value not in ("", "true", "True", "TRUE", "false", "False", "FALSE"):
        fail(f"Input does not meet YAML 1.2 'Core Schema' specification: {name}")
    return value.lower() == "true"


def number(name: str, default: int) -> int:
    value = text(name) or str(default)
    return int(value) if value.isdigit() else fail(f"{name} is not a number: {value}")


def lines(name: str) -> list[str]:
    return [line.strip() for line in text(name).splitlines() if line.strip()]


def output(name: str, value: object) -> None:
    end = os.urandom(8).hex()
    with open(os.environ["GITHUB_OUTPUT"], "a") as file:
        file.write(f"{name}<<{end}\n{value}\n{end}\n")


def append(variable: str, line: str) -> None:
    """Add to one of the runner's command files, such as GITHUB_PATH."""
    with open(os.environ[variable], "a") as file:
        file.write(f"{line}\n")


def warn(message: str) -> None:
    print(f"::warning::{message}", flush=True)


def fail(message: str) -> None:
    print(f"::error::{message}", flush=True)
    sys.exit(1)


def job_token(value: str) -> str:
    """Return the token of this job where the value is the run's, which is what act hands to every job."""
    if value != os.environ["STAND_INS_RUN_TOKEN"]:
        return value
    return json.loads(Path(os.environ["STAND_INS_TOKENS"]).read_text())[os.environ["GITHUB_JOB"]]


def call(path: str, token: str, *, method: str = "GET", body: object = None) -> bytes:
    """Return what the API answers; raise HTTPError where it refuses. A redirect is followed without the token."""
    import urllib.request

    class Kept(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, request, *rest):
            made = super().redirect_request(request, *rest)
            made.headers.pop("Authorization", None)
            return made

    headers = {"Accept": "application/vnd.github+json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    data = None if body is None else json.dumps(body).encode()
    address = path if path.startswith("https:") else os.environ["GITHUB_API_URL"] + path
    request = urllib.request.Request(address, data, headers, method=method)
    with urllib.request.build_opener(Kept).open(request, timeout=60) as answer:
        return answer.read()


def git(*words: str, check: bool = True) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True)
    if check and done.returncode:
        fail(f"git {words[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def move(source: Path, target: Path) -> None:
    """Put a file or folder in another's place at once."""
    shutil.rmtree(target, ignore_errors=True)
    source.replace(target)


def event() -> Mapping:
    return json.loads(Path(os.environ["GITHUB_EVENT_PATH"]).read_text())
