"""A registry of images on this machine, images in it, what GitHub attests of them, and its board of Deployments."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from host import Call, Hub, commit, git, run_pipeline, written

from ml.errors import UserError
from ml.operations import promote, record
from ml.operations.record import Record
from ml.operations.registry import MANIFEST, Registry, sha256

NAME = "octo/late"
CONFIGURED = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""
CONFIG = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": []}}
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
SIGNER = f"{NAME}/{promote.SIGNER}"
# As gh documents its flags and its JSON; it knows no certificates, but a key that only what attests has.
GH = """
import base64, hmac, json, os, sys

words = sys.argv[1:]
if words[:2] != ["attestation", "verify"]:
    sys.exit(f"unknown command {words[0]}")
subject, flags = words[2], words[3:]
switches = [flag for flag in flags if flag == "--deny-self-hosted-runners"]
pairs = [flag for flag in flags if flag != "--deny-self-hosted-runners"]
asked = dict(zip(pairs[::2], pairs[1::2], strict=True))
known = {"--repo", "--signer-workflow", "--source-ref", "--predicate-type", "--format"}
if not subject.startswith("oci://") or asked.keys() - known or asked["--format"] != "json":
    sys.exit(f"unknown flags {words}")
store = os.environ["STAND_INS_ATTESTATIONS"]
digest = subject.partition("@sha256:")[2]
folder, found = f"{store}/{digest}", []
for name in sorted(os.listdir(folder) if os.path.isdir(folder) else ()):
    bundle = json.load(open(f"{folder}/{name}"))["bundle"]
    payload = base64.b64decode(bundle["payload"])
    right = hmac.new(open(f"{store}/key", "rb").read(), payload, "sha256").hexdigest()
    statement = json.loads(payload)
    who = statement["identity"]
    due = {
        "repository": asked["--repo"],
        "signer_workflow": asked["--signer-workflow"],
        "source_ref": asked["--source-ref"],
    }
    if (
        hmac.compare_digest(right, bundle["signature"])
        and all(who[key] == value for key, value in due.items())
        and statement["predicateType"] == asked["--predicate-type"]
        and digest in [one["digest"]["sha256"] for one in statement["subject"]]
        and (not switches or who["runner_environment"] == "github-hosted")
    ):
        certificate = {
            "sourceRepositoryDigest": who["source_digest"],
            "sourceRepositoryRef": who["source_ref"],
            "runnerEnvironment": who["runner_environment"],
        }
        result = {"statement": statement, "signature": {"certificate": certificate}}
        found.append({"attestation": {"bundle": bundle}, "verificationResult": result})
if not found:
    sys.exit(f"Error: no matching attestations found for {subject}")
print(json.dumps(found))
"""


def require(tool: str) -> str:
    """Return the tool's path; without it skip, or fail where REQUIRE_ALL is set."""
    path = shutil.which(tool)
    if path is None and os.environ.get("REQUIRE_ALL"):
        pytest.fail(f"{tool} is not on PATH and REQUIRE_ALL is set")
    if path is None:
        pytest.skip(f"{tool} is not on PATH")
    return path


@dataclass
class Store:
    """A docker-registry that can be stopped and started again on its port."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def image(self) -> str:
        return f"127.0.0.1:{self.port}/{NAME}"

    def start(self) -> None:
        settings = self.folder / "registry.yml"
        settings.write_text(CONFIGURED.format(folder=self.folder, port=self.port))
        with (self.folder / "registry.log").open("ab") as log:
            words = [require("docker-registry"), "serve", str(settings)]
            self.process = subprocess.Popen(words, stdout=log, stderr=log)
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.01)
        pytest.fail((self.folder / "registry.log").read_text())

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def delete(self, digest: str) -> None:
        """Delete an image as an owner of the package can."""
        answer = requests.delete(f"http://127.0.0.1:{self.port}/v2/{NAME}/manifests/{digest}", timeout=10)
        assert answer.status_code == 202, answer.text


@contextmanager
def storing(folder: Path) -> Iterator[Store]:
    """Yield a registry that runs on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        store = Store(folder, probe.getsockname()[1])
    store.start()
    try:
        yield store
    finally:
        store.stop()


def push(registry: Registry, text: str) -> str:
    """Push an image without layers that is told apart by a text, and return its digest."""
    config = json.dumps({**CONFIG, "author": text}).encode()
    registry._upload(sha256(config), config)
    about = {"mediaType": IMAGE_CONFIG, "digest": sha256(config), "size": len(config)}
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": about, "layers": []}
    content = json.dumps(manifest).encode()
    registry._put(f"manifests/{sha256(content)}", content, MANIFEST)
    return sha256(content)


def attest(store: Path, digest: str, predicate: dict[str, Any], commit: str, **identity: str) -> None:
    """Keep what actions/attest would sign about an image."""
    who = {
        "repository": NAME,
        "signer_workflow": SIGNER,
        "source_ref": promote.SOURCE,
        "source_digest": commit,
        "runner_environment": "github-hosted",
    } | identity
    subject = [{"name": "image", "digest": {"sha256": digest.removeprefix("sha256:")}}]
    kinds = {"_type": "https://in-toto.io/Statement/v1", "predicateType": record.PREDICATE}
    payload = json.dumps({**kinds, "subject": subject, "predicate": predicate, "identity": who}).encode()
    signature = hmac.new((store / "key").read_bytes(), payload, hashlib.sha256).hexdigest()
    folder = store / digest.removeprefix("sha256:")
    folder.mkdir(exist_ok=True)
    bundle = {"bundle": {"payload": base64.b64encode(payload).decode(), "signature": signature}}
    (folder / f"{len([*folder.iterdir()])}.json").write_text(json.dumps(bundle))


@dataclass
class Board:
    """GitHub's Deployments, issues and visibility of the repository, behind a hub."""

    hub: Hub
    private: bool = False
    deployments: list[dict[str, Any]] = field(default_factory=list)
    states: dict[int, list[str]] = field(default_factory=dict)
    issues: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.hub.on("GET .", lambda _: {"private": self.private, "id": 1, "name": "late"})
        self.hub.on("GET deployments", self._listed)
        self.hub.on("POST deployments", self._deploy)
        self.hub.on("GET issues", lambda _: [issue for issue in self.issues if issue["state"] == "open"])
        self.hub.on("POST issues", self._open)

    def of(self, stage: str) -> list[tuple[str, str]]:
        """Return the GTO tag and the newest state of a stage's Deployments, oldest first."""
        mine = [one for one in self.deployments if one["environment"] == stage]
        return [(one["payload"]["tag"], (self.states[one["id"]] or ["pending"])[-1]) for one in mine]

    def _listed(self, call: Call) -> list[dict[str, Any]]:
        stage, task = call.query["environment"], call.query["task"]
        return [one for one in reversed(self.deployments) if (one["environment"], one["task"]) == (stage, task)]

    def _deploy(self, call: Call) -> tuple[int, dict[str, str], dict[str, Any]]:
        entry = {**call.body, "id": len(self.deployments) + 1}
        self.deployments.append(entry)
        states = self.states[entry["id"]] = []
        path = f"deployments/{entry['id']}/statuses"
        self.hub.on(f"POST {path}", lambda call: states.append(call.body["state"]) or (201, {}, {"id": 1}))
        self.hub.on(f"GET {path}", lambda _: [{"state": state} for state in reversed(states)])
        return 201, {}, entry

    def _open(self, call: Call) -> tuple[int, dict[str, str], dict[str, Any]]:
        number = len(self.issues) + 1
        issue = {**call.body, "number": number, "state": "open", "html_url": f"https://github.test/issues/{number}"}
        self.issues.append(issue)
        return 201, {}, issue


@dataclass
class Recorder:
    """A deploy target that keeps what it was asked, and fails where it is told to."""

    asked: list[tuple[str, str]] = field(default_factory=list)
    failing: dict[str, str] = field(default_factory=dict)  # what by the digest's image

    def _do(self, what: str, wanted: Any) -> str:
        self.asked.append((what, wanted.image))
        if self.failing.get(wanted.image) == what:
            raise UserError(f"{what} fails")
        return f"{what} of {wanted.stage}"

    def plan(self, wanted: Any) -> str:
        return self._do("plan", wanted)

    def apply(self, wanted: Any) -> str:
        return self._do("apply", wanted)

    def check(self, wanted: Any) -> str:
        return self._do("check", wanted)

    @property
    def runs(self) -> str:
        """Return the image that was applied last without failing."""
        done = [image for what, image in self.asked if what == "apply" and self.failing.get(image) != "apply"]
        return done[-1] if done else ""


@dataclass
class World:
    """A repository at its host, a clone, a registry, GitHub's board, and what was attested."""

    folder: Path
    store: Store
    board: Board
    target: Recorder
    commits: list[str]

    @property
    def registry(self) -> Registry:
        return Registry.open()

    @property
    def origin(self) -> Path:
        return self.folder / "origin.git"

    @property
    def attestations(self) -> Path:
        return self.folder / "attestations"

    def made(self, number: int, name: str = "", **changes: Any) -> tuple[str, Record]:
        """Return an image of a commit, unattested, and the record beside it."""
        digest = push(self.registry, name or f"image {number}")
        files = {
            "model.onnx": f"model {number}".encode(),
            "metrics.json": b'{"roc_auc": 0.7}',
            "verdict.json": b'{"results": [{"gate": "floor", "status": "passed"}]}',
            "loadtest.json": b'{"status": "passed", "sentence": "fast"}',
            "card.md": b"# Card",
        } | changes.pop("files", {})
        sources = {key: written(self.folder / "sources" / key, content) for key, content in files.items()}
        facts = {"commit": self.commits[number], "run": 70 + number, "content": f"content {number}"}
        told = {**facts, "reproduced": "full", "scan": record.Scan(), **changes}
        found = record.make(sources, **told, folder=self.folder / f"record-{digest[-8:]}")
        record.attach(self.registry, digest, self.folder / f"record-{digest[-8:]}")
        return digest, found

    def delivered(self, number: int, name: str = "", *, identity: dict[str, str] | None = None, **changes: Any) -> str:
        """Return an image of a commit, with its record, attested as deliver.yml does."""
        digest, found = self.made(number, name, **changes)
        attest(self.attestations, digest, json.loads(found.model_dump_json()), found.commit, **(identity or {}))
        return digest

    def agrees(self, stage: str, digest: str) -> None:
        """Fail unless git, registry and Deployments all say that a stage is at the image."""
        entry = promote.current(stage)
        assert entry is not None
        assert (entry.digest, self.registry.resolve(stage)) == (digest, digest)
        assert entry.tag in [tag for tag, _ in self.board.of(stage)]
        assert promote.status()[1] == []

    def tags(self) -> list[str]:
        """Return the names of the stage tags at the host."""
        return git(self.origin, "for-each-ref", "--format=%(refname:lstrip=2)", "refs/tags").splitlines()


def settled(folder: Path, store: Store, hub: Hub, patch: pytest.MonkeyPatch) -> World:
    """Return a world whose repository has four commits on main, and go into its clone."""
    for name in ("USER", "PASSWORD"):
        patch.delenv(f"REGISTRY_{name}", raising=False)
    for name in ("COSIGN", "ATTEST", "DEPLOY_TARGET"):
        patch.delenv(name, raising=False)
    patch.setenv("REGISTRY", store.image)
    patch.setenv("DOCKER_CONFIG", str(folder))
    patch.setenv("STAND_INS_ATTESTATIONS", str(folder / "attestations"))
    written(folder / "attestations/key", b"the signer's own")
    git(folder, "init", "--quiet", "--bare", "--initial-branch=main", "origin.git")
    git(folder, "clone", "--quiet", str(folder / "origin.git"), "clone")
    patch.chdir(folder / "clone")
    written(Path("params.yaml"), b"objective: {metric: roc_auc}\n")
    run_pipeline({})
    commits = [commit(f"change {number}") for number in range(4)]
    target = Recorder()
    patch.setattr(promote.targets, "chosen", lambda: target)
    return World(folder, store, Board(hub), target, commits)
