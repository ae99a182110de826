"""A host of git repositories on this machine: bare repositories, and an API that answers as it is told."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit
from zipfile import ZipFile

import pytest

from ml import objects, refs

CONFIG = "[core]\n    analytics = false\n    remote = refs\n['remote \"refs\"']\n    url = objects\n"
NOBODY = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b"}
NOBODY |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b", "DVC_NO_ANALYTICS": "1"}
NOBODY |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
Outputs = dict[str, bytes | dict[str, bytes]]
FIRST: Outputs = {
    "data/a.parquet": b"rows",
    "models/model.onnx": b"model",
    "plots": {"one.json": b"1", "deep/two.json": b"2"},
}


def settle(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Go to a folder, and let nothing of the machine's git or of a workflow reach what runs there."""
    for name in [name for name in os.environ if name.startswith(("GIT_", "GITHUB_", "GH_", "STORAGE_"))]:
        patch.delenv(name)
    for name, value in NOBODY.items():
        patch.setenv(name, value)
    patch.setenv("PYTHONPATH", str(Path(refs.__file__).parents[1]))
    patch.chdir(folder)


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", folder, *words], check=True, capture_output=True, text=True).stdout.strip()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def listing(files: dict[str, bytes]) -> bytes:
    """Return what DVC keeps of a directory."""
    return json.dumps([{"md5": md5(files[name]), "relpath": name} for name in sorted(files)], sort_keys=True).encode()


def run_pipeline(outputs: Outputs, metrics: bytes = b"{}", command: str = "true") -> None:
    """Write outputs, the cache's objects, a dvc.yaml and a lock that names them all."""
    stages = []
    for path, content in outputs.items():
        entry = {"path": path, "hash": "md5"}
        if isinstance(content, dict):
            for name, part in content.items():
                written(Path(path, name), part)
                written(objects.place(objects.CACHE, md5(part)), part)
            content, ending = listing(content), objects.DIRECTORY
        else:
            written(Path(path), content)
            ending = ""
        entry["md5"] = f"{md5(content)}{ending}"
        written(objects.place(objects.CACHE, entry["md5"]), content)
        stages.append(entry)
    written(Path("metrics.json"), metrics)
    stages.append({"path": "metrics.json", "hash": "md5", "md5": md5(metrics)})
    lock = {"schema": "2.0", "stages": {"all": {"cmd": command, "outs": stages}}}
    outs = [*outputs, {"metrics.json": {"cache": False}}]
    written(Path("dvc.yaml"), json.dumps({"stages": {"all": {"cmd": command, "outs": outs}}}).encode())
    written(Path("dvc.lock"), json.dumps(lock).encode())


def commit(message: str, branch: str = "main") -> str:
    """Commit everything, push the commit alone, and return its hash."""
    git(Path.cwd(), "add", "--all")
    git(Path.cwd(), "commit", "--quiet", "--allow-empty", "-m", message)
    git(Path.cwd(), "push", "--quiet", "--no-verify", "origin", f"HEAD:refs/heads/{branch}")
    return git(Path.cwd(), "rev-parse", "HEAD")


def make(outputs: Outputs, message: str = "make") -> None:
    run_pipeline(outputs)
    commit(message)


def copied(source: Path, target: Path) -> Path:
    """Copy a repository and its clone into a folder, and return the clone."""
    shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    config = target / "laptop/.git/config"
    config.write_text(config.read_text().replace(str(source), str(target)))
    return target / "laptop"


def stored(origin: Path) -> set[str]:
    """Return the hashes of the objects that a bare repository holds."""
    names = git(origin, "for-each-ref", "--format=%(refname)").split()
    return {name.removeprefix(refs.SPACE) for name in names if refs.SPACE in name}


def zipped(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with ZipFile(target, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Call:
    """What the API was asked."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class Hub:
    """An API below `root`; `answers` are lists, objects, bytes, `(status, headers, body)` or functions of a call.

    A list, or an object that holds nothing but one, is given in pages as GitHub does.
    """

    root: str = ""
    answers: dict[str, Any] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def on(self, what: str, answer: Any) -> None:
        """Answer so to a method and a path of the repository, such as `GET pulls`."""
        method, path = what.split(" ")
        self.answers[f"{method} {path if path[0] == '/' else f'/repos/octo/late/{path}'.removesuffix('/.')}"] = answer

    def sent(self) -> list[tuple[str, str, Any]]:
        """Return what was changed: method, path of the repository, body."""
        return [(c.method, c.path.removeprefix("/repos/octo/late/"), c.body) for c in self.calls if c.method != "GET"]

    def artifact(self, run: int, name: str, files: dict[str, bytes], number: int = 7, **more: Any) -> None:
        """Let a run have left an artifact."""
        content = zipped(files)
        entry = {"id": number, "name": name, "expired": False, "size_in_bytes": len(content), **more}
        listed = self.answers.setdefault(f"GET /repos/octo/late/actions/runs/{run}/artifacts", {"artifacts": []})
        listed["artifacts"].append(entry)
        self.on(f"GET actions/artifacts/{number}/zip", (302, {"Location": f"{self.root}/blobs/{number}"}, b""))
        self.on(f"GET /blobs/{number}", content)

    def answer(self, call: Call) -> tuple[int, dict[str, str], bytes]:
        found = self.answers.get(f"{call.method} {call.path}", (404, {}, {"message": "Not Found"}))
        found = found(call) if callable(found) else found
        status, headers, body = found if isinstance(found, tuple) else (200, {}, found)
        key = next(iter(body)) if isinstance(body, dict) and len(body) == 1 else None
        entries = body[key] if key else body
        if isinstance(entries, list):
            size, page = int(call.query.get("per_page", 30)), int(call.query.get("page", 1))
            if len(entries) > size * page:
                more = "&".join(f"{k}={v}" for k, v in {**call.query, "page": str(page + 1)}.items())
                headers = {**headers, "Link": f'<{self.root}{call.path}?{more}>; rel="next"'}
            entries = entries[size * (page - 1) : size * page]
            body = {key: entries} if key else entries
        return status, headers, body if isinstance(body, bytes) else json.dumps(body).encode()


@contextmanager
def serving() -> Iterator[Hub]:
    """Yield an API that answers on this machine."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            self.close_connection = True
            self.raw_requestline = self.rfile.readline()
            if not self.raw_requestline or not self.parse_request():
                return
            parts = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Type", "") != "application/octet-stream":
                body = json.loads(body or b"null")
            hub.calls.append(Call(self.command, parts.path, query, dict(self.headers), body))
            status, headers, content = hub.answer(hub.calls[-1])
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.root = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
