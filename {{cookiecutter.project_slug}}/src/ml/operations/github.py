"""Talks to GitHub's REST API about this repository, in a workflow and on a laptop.

Reference: https://docs.github.com/en/rest
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from ml import refs
from ml.errors import SourceError, UserError

SECONDS = 30
HERE = re.compile(r"(?:https?://(?:[^@/]+@)?|ssh://(?:[^@/]+@)?|[^@/]+@)([^:/]+)(?::\d+)?[:/](.+?/.+?)(?:\.git)?/?")


class NotFoundError(UserError):
    """GitHub knows no such thing, or does not show it to this token."""


class GoneError(UserError):
    """The repository has this turned off, as a fork has its issues at first."""


class DeniedError(UserError):
    """The token may not do this, or the plan does not have it."""


@dataclass(frozen=True)
class GitHub:
    """One repository as `OWNER/NAME` behind the API at `root`; paths without a leading slash are below it."""

    root: str
    name: str
    token: str

    @classmethod
    def open(cls) -> GitHub:
        """Return the repository of this workflow, or the one that `origin` names.

        The token is GITHUB_TOKEN or GH_TOKEN, else the one that `gh auth login` keeps. Raises UserError where git has
        no origin on the web.
        """
        if name := os.environ.get("GITHUB_REPOSITORY"):
            root, host = os.environ.get("GITHUB_API_URL", "https://api.github.com"), ""
        else:
            match = HERE.fullmatch(refs.address("origin"))
            if not match:
                raise UserError("origin is no address of a repository on GitHub: git remote add origin ADDRESS")
            host, name = match[1], match[2]
            root = "https://api.github.com" if host == "github.com" else f"https://{host}/api/v3"
            root = os.environ.get("GITHUB_API_URL", root)
        return cls(root.rstrip("/"), name, _token(host))

    def get(self, path: str, **query: Any) -> Any:
        """Return what the API answers."""
        return _content(self._ask("GET", path, params=query))

    def pages(self, path: str, key: str | None = None, **query: Any) -> Iterator[dict[str, Any]]:
        """Yield the entries of a list, page after page; `key` names it where the answer is an object."""
        answer = self._ask("GET", path, params={"per_page": 100, **query})
        while True:
            content = _content(answer)
            yield from content[key] if key else content
            if (following := answer.links.get("next")) is None:
                return
            answer = self._ask("GET", following["url"])

    def send(self, method: str, path: str, body: Any = None) -> Any:
        """Change something and return the answer, None where it is empty."""
        answer = self._ask(method, path, json=body)
        return _content(answer) if answer.content else None

    def download(self, path: str, target: Path, most: int) -> None:
        """Write what lies at the path to a file; raise SourceError where it is larger than `most` bytes."""
        size = 0
        with self._ask("GET", path, stream=True) as answer, target.open("wb") as file:
            try:
                for chunk in answer.iter_content(1 << 16):
                    size += len(chunk)
                    if size > most:
                        raise SourceError(f"{path} is larger than {most / 1e6:.0f} MB: it is not read")
                    file.write(chunk)
            except requests.RequestException as error:
                raise UserError(f"GitHub stopped answering ({type(error).__name__}): GET {path}") from None

    def upload(self, address: str, path: Path) -> None:
        """Send a file to where a release takes its files."""
        with path.open("rb") as file:
            kind = {"Content-Type": "application/octet-stream"}
            self._ask("POST", address, data=file, params={"name": path.name}, headers=kind)

    def _ask(self, method: str, path: str, **more: Any) -> requests.Response:
        where = path if path.startswith("http") else f"{self.root}{path if path[0] == '/' else self._below(path)}"
        headers = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
        headers |= more.pop("headers", {})
        try:
            answer = requests.request(method, where, headers=headers, auth=self._sign, timeout=SECONDS, **more)
        except requests.RequestException as error:
            raise UserError(f"GitHub does not answer ({type(error).__name__}): {method} {where}") from None
        if answer.ok:
            return answer
        told = _message(answer)
        kind = {401: DeniedError, 403: DeniedError, 404: NotFoundError, 410: GoneError}.get(
            answer.status_code, UserError
        )
        raise kind(f"GitHub refuses {method} {path} ({answer.status_code}): {told}")

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        # As `auth`, since a .netrc that names the host would replace a header.
        if self.token:
            request.headers["Authorization"] = f"Bearer {self.token}"
        return request

    def _below(self, path: str) -> str:
        return f"/repos/{self.name}" + (f"/{path}" if path != "." else "")


def _content(answer: requests.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        raise UserError(f"GitHub's answer is not JSON: {answer.url.partition('?')[0]}") from None


def _message(answer: requests.Response) -> str:
    try:
        told = answer.json()
        more = [one if isinstance(one, str) else one.get("message") for one in told.get("errors", [])]
        said = " ".join([str(told.get("message", "")), *map(str, filter(None, more))])
    except (ValueError, AttributeError, TypeError):
        said = ""
    return " ".join(said.split())[:200] or answer.reason


def _token(host: str) -> str:
    for name in ("GITHUB_TOKEN", "GH_TOKEN"):
        if token := os.environ.get(name):
            return token
    if not host or shutil.which("gh") is None:
        return ""
    done = subprocess.run(["gh", "auth", "token", "--hostname", host], capture_output=True, text=True, check=False)
    return done.stdout.strip()
