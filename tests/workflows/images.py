"""A registry of images on this machine, and what a test asks it behind the project's back."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from conftest import require

CONFIGURED = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""
ACCEPT = ", ".join(
    (
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
    )
)


@dataclass
class Images:
    """One repository of a running registry, such as `127.0.0.1:5001/octocat/late`."""

    folder: Path
    port: int
    path: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.port}/{self.path}"

    def start(self) -> None:
        """Start the registry, or start it again with what it held."""
        configured = self.folder / "registry.yml"
        configured.parent.mkdir(parents=True, exist_ok=True)
        configured.write_text(CONFIGURED.format(folder=self.folder, port=self.port))
        with (self.folder / "registry.log").open("ab") as log:
            words = [require("docker-registry"), "serve", str(configured)]
            self.process = subprocess.Popen(words, stdout=log, stderr=log)
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v2/", timeout=2)
                return
            except OSError:
                time.sleep(0.05)
        raise AssertionError((self.folder / "registry.log").read_text())

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)

    def digest(self, ref: str) -> str | None:
        """Return what a tag leads to, None where there is none."""
        return self.ask("HEAD", f"manifests/{ref}")[1].get("Docker-Content-Digest")

    def tags(self) -> dict[str, str]:
        """Return the digest of every tag but those of referrers."""
        listed = json.loads(self.ask("GET", "tags/list")[2] or b"{}").get("tags") or []
        return {tag: self.digest(tag) for tag in sorted(listed) if not tag.startswith("sha256-")}

    def move(self, tag: str, digest: str) -> None:
        """Let a tag lead to an image, as anybody can who may push."""
        _, headers, content = self.ask("GET", f"manifests/{digest}")
        self.ask("PUT", f"manifests/{tag}", content, {"Content-Type": headers["Content-Type"]})

    def delete(self, digest: str) -> None:
        assert self.ask("DELETE", f"manifests/{digest}")[0] == 202

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and content of an answer."""
        where = f"http://127.0.0.1:{self.port}/v2/{self.path}/{path}"
        request = urllib.request.Request(where, body, {"Accept": ACCEPT} | (headers or {}), method=method)
        try:
            answer = urllib.request.urlopen(request, timeout=30)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            return answer.status, dict(answer.headers), answer.read()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(folder: Path, path: str) -> Iterator[Images]:
    """Yield a repository of a registry that ends with the block; the engine forgets its images."""
    images = Images(folder, free_port(), path)
    images.start()
    try:
        yield images
    finally:
        images.stop()
        forget(images.port)


def forget(port: int) -> None:
    """Let the engine forget the names that images have in a registry; their layers may have others."""
    shown = "--format={{.Repository}}:{{.Tag}} {{.Repository}}@{{.Digest}}"
    words = [require("docker"), "images", "--digests", shown, f"--filter=reference=127.0.0.1:{port}/*/*"]
    listed = subprocess.run(words, capture_output=True, text=True, check=False).stdout.split()
    for name in {name for name in listed if "<none>" not in name}:
        subprocess.run([require("docker"), "rmi", name], capture_output=True, check=False)
