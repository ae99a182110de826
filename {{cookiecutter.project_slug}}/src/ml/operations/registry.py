"""Talks to an OCI registry about one repository of images, without a daemon.

References: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md (tags, blobs, referrers) and
https://distribution.github.io/distribution/spec/auth/token/ (how a registry asks for a token).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.utils import parse_dict_header
from urllib3.util.retry import Retry

from ml.errors import SourceError, UserError
from ml.operations.github import GitHub

SECONDS = 30
MOST = 20_000_000  # bytes of what is read into memory
IMAGE = re.compile(r"[a-z0-9][a-z0-9.-]*(:\d+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+")
LOOPBACK = re.compile(r"(127(\.\d+){3}|localhost)(:\d+)?")
# Docker Hub answers elsewhere than it is called, and `docker login` keeps a third name.
HUB, HUB_API, HUB_LOGIN = "docker.io", "registry-1.docker.io", "https://index.docker.io/v1/"
INDEX, MANIFEST = "application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json"
DOCKER = "application/vnd.docker.distribution.manifest."
ACCEPT = ", ".join((INDEX, MANIFEST, f"{DOCKER}v2+json", f"{DOCKER}list.v2+json"))
EMPTY, TITLE = "application/vnd.oci.empty.v1+json", "org.opencontainers.image.title"
# What registries without the referrers API answer; ghcr.io leads elsewhere.
NO_REFERRERS = (301, 302, 303, 307, 308, 400, 404, 405, 406)
DENIED = (
    "this token may not; on ghcr.io connect the package with the repository (Package settings > Manage Actions access, "
    "role Write), elsewhere set REGISTRY_USER and REGISTRY_PASSWORD"
)

Descriptor = dict[str, Any]


class MovedError(UserError):
    """A tag does not lead to where it was moved a moment ago."""


def sha256(content: bytes) -> str:
    """Return the digest of bytes as registries write it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def digest_of(path: Path) -> str:
    """Return the digest of a file as registries write it."""
    with path.open("rb") as content:
        return f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"


def described(path: Path, name: str) -> Descriptor:
    """Return the descriptor of a file under a name."""
    kind = "application/json" if path.suffix == ".json" else "application/octet-stream"
    about = {"mediaType": kind, "digest": digest_of(path), "size": path.stat().st_size}
    return {**about, "annotations": {TITLE: name}}


@dataclass
class Registry:
    """One repository of images, such as `ghcr.io/owner/name`."""

    host: str
    name: str
    login: tuple[str, str] | None = None
    authorization: str = ""
    session: requests.Session = field(default_factory=requests.Session)

    @classmethod
    def open(cls) -> Registry:
        """Return the repository that REGISTRY names, `ghcr.io/OWNER/REPO` without it.

        REGISTRY_USER and REGISTRY_PASSWORD open it, else what `docker login` keeps.
        """
        image = os.environ.get("REGISTRY") or f"ghcr.io/{GitHub.open().name.lower()}"
        if not IMAGE.fullmatch(image):
            raise UserError(f"REGISTRY={image[:100]} is no repository of images: HOST/OWNER/NAME in lower case")
        host, _, name = image.partition("/")
        user, password = os.environ.get("REGISTRY_USER"), os.environ.get("REGISTRY_PASSWORD")
        opened = cls(host, name, (user, password) if user and password else kept_login(host))
        tries = Retry(total=3, backoff_factor=0.2, status_forcelist=(429, 502, 503, 504), raise_on_status=False)
        for scheme in ("http://", "https://"):
            opened.session.mount(scheme, HTTPAdapter(max_retries=tries))
        return opened

    @property
    def image(self) -> str:
        """Return the repository's name as docker writes it."""
        return f"{self.host}/{self.name}"

    def resolve(self, ref: str) -> str | None:
        """Return the digest that a tag or digest leads to, None where the registry has none."""
        found = self._manifest(ref)
        return sha256(found.content) if found is not None else None

    def tag(self, digest: str, name: str) -> None:
        """Let a tag lead to a digest; raise MovedError unless it does afterwards, SourceError for an unknown digest."""
        if self.resolve(name) == digest:
            return
        # The same bytes have the same digest: nothing is pulled, and nothing is written anew.
        found = self._known(digest)
        self._put(f"manifests/{name}", found.content, found.headers["Content-Type"])
        if (leads := self.resolve(name)) != digest:
            raise MovedError(f"{self.image}:{name} leads to {leads} and not to {digest}: somebody else moves it")

    def attach(self, digest: str, kind: str, files: Mapping[str, Path]) -> str:
        """Put files beside an image as one artifact of the kind and return the artifact's digest.

        The same files make the same artifact.
        """
        image = self._known(digest)
        subject = {"mediaType": image.headers["Content-Type"], "digest": digest, "size": len(image.content)}
        layers = [described(path, name) for name, path in sorted(files.items())]
        for layer in layers:
            self._upload(layer["digest"], files[layer["annotations"][TITLE]])
        config = {"mediaType": EMPTY, "digest": sha256(b"{}"), "size": 2}
        self._upload(config["digest"], b"{}")
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind, "config": config}
        content = json.dumps({**manifest, "layers": layers, "subject": subject}).encode()
        made = {"mediaType": MANIFEST, "digest": sha256(content), "size": len(content), "artifactType": kind}
        answer = self._put(f"manifests/{made['digest']}", content, MANIFEST)
        if "OCI-Subject" not in answer.headers:
            self._list(digest, made)
        return made["digest"]

    def referrers(self, digest: str, kind: str) -> list[Descriptor]:
        """Return the descriptors of the artifacts of a kind beside an image."""
        found, where = [], f"referrers/{digest}"
        while (answer := self._ask("GET", where, missing=NO_REFERRERS, allow_redirects=False)) is not None:
            found += _json(answer).get("manifests") or []
            if (where := answer.links.get("next", {}).get("url", "")) == "":
                break
        # Also where the registry has the API: what was put there before it had is listed under the tag alone.
        found += self._listed(digest)
        own = {entry["digest"]: entry for entry in found if entry.get("artifactType") == kind}
        return [*own.values()]

    def files(self, digest: str) -> dict[str, Descriptor]:
        """Return the descriptors of an artifact's files by name."""
        layers = _json(self._known(digest)).get("layers", [])
        return {name: layer for layer in layers if (name := layer.get("annotations", {}).get(TITLE))}

    def read(self, descriptor: Mapping[str, Any]) -> bytes:
        """Return a small file's bytes; raise SourceError where it is not small, or has another hash."""
        digest = descriptor["digest"]
        with self._blob(digest) as answer:
            content = answer.raw.read(MOST + 1, decode_content=True)
        if len(content) > MOST or sha256(content) != digest:
            raise SourceError(f"{self.image} gives other bytes than {digest[:19]}, or over {MOST / 1e6:.0f} MB")
        return content

    def fetch(self, descriptor: Mapping[str, Any], target: Path) -> None:
        """Write a file, whole and with its hash, or not at all."""
        fresh, found = target.with_name(f"{target.name}.{os.getpid()}.tmp"), hashlib.sha256()
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._blob(descriptor["digest"]) as answer, fresh.open("wb") as file:
                for chunk in answer.iter_content(1 << 20):
                    found.update(chunk)
                    file.write(chunk)
            if f"sha256:{found.hexdigest()}" != descriptor["digest"]:
                raise SourceError(f"{self.image} gives other bytes than {descriptor['digest'][:19]} for {target.name}")
            os.replace(fresh, target)
        except requests.RequestException as error:
            raise UserError(f"{self.host} stopped answering ({type(error).__name__}): {target.name}") from None
        finally:
            fresh.unlink(missing_ok=True)

    def _manifest(self, ref: str) -> requests.Response | None:
        answer = self._ask("GET", f"manifests/{ref}", missing=(404,), headers={"Accept": ACCEPT})
        if answer is not None and ref.startswith("sha256:") and sha256(answer.content) != ref:
            raise SourceError(f"{self.image} gives other bytes than {ref[:19]}: do not trust this registry")
        return answer

    def _known(self, digest: str) -> requests.Response:
        if (found := self._manifest(digest)) is None:
            raise SourceError(f"{self.image} has no {digest[:19]}: it was deleted, or never pushed")
        return found

    def _list(self, digest: str, made: Descriptor) -> None:
        """List an artifact under the tag that stands for the referrers API (specification, "Referrers Tag Schema")."""
        for _ in range(3):
            listed = self._listed(digest)
            if made["digest"] in (entry["digest"] for entry in listed):
                return
            index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*listed, made]}
            self._put(f"manifests/{digest.replace(':', '-')}", json.dumps(index).encode(), INDEX)
        raise UserError(f"somebody else keeps changing what lies beside {self.image}@{digest[:19]}: try again")

    def _listed(self, digest: str) -> list[Descriptor]:
        answer = self._manifest(digest.replace(":", "-"))
        return _json(answer).get("manifests", []) if answer is not None else []

    def _upload(self, digest: str, content: Path | bytes) -> None:
        if self._ask("HEAD", f"blobs/{digest}", missing=(404,)) is not None:
            return
        begun = self._have("POST", "blobs/uploads/")
        where = urljoin(begun.url, begun.headers["Location"])
        where += f"{'&' if urlsplit(where).query else '?'}digest={digest}"
        headers = {"Content-Type": "application/octet-stream"}
        if isinstance(content, bytes):
            self._have("PUT", where, data=content, headers=headers)
        else:
            with content.open("rb") as file:
                self._have("PUT", where, data=file, headers=headers)

    def _blob(self, digest: str) -> requests.Response:
        return self._have("GET", f"blobs/{digest}", stream=True)

    def _put(self, path: str, content: bytes, kind: str) -> requests.Response:
        return self._have("PUT", path, data=content, headers={"Content-Type": kind})

    def _have(self, method: str, path: str, **more: Any) -> requests.Response:
        return cast(requests.Response, self._ask(method, path, **more))

    def _ask(
        self,
        method: str,
        path: str,
        missing: tuple[int, ...] = (),
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> requests.Response | None:
        """Return the registry's answer, None for a status that is in `missing`; raise UserError for any other."""
        scheme = "http" if LOOPBACK.fullmatch(self.host) else "https"
        at = HUB_API if self.host == HUB else self.host
        where = urljoin(f"{scheme}://{at}/v2/{self.name}/", path)

        def send() -> requests.Response:
            try:
                return self.session.request(method, where, headers=headers, auth=self._sign, timeout=SECONDS, **more)
            except requests.RequestException as error:
                raise UserError(f"{self.host} does not answer ({type(error).__name__}): try again later") from None

        answer = send()
        if answer.status_code == 401:
            self._authorize(answer.headers.get("WWW-Authenticate", ""))
            if hasattr(more.get("data"), "seek"):
                more["data"].seek(0)
            answer = send()
        if answer.status_code in missing:
            return None
        if answer.ok:
            return answer
        if answer.status_code in (401, 403):
            raise UserError(f"{self.host} refuses to {method} {self.name}/{path[:40]} ({answer.status_code}): {DENIED}")
        raise UserError(f"{self.host} refuses {method} {self.name}/{path[:40]} ({answer.status_code}): {_said(answer)}")

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        # As `auth`, since a .netrc that names the host would replace a header.
        if self.authorization:
            request.headers["Authorization"] = self.authorization
        return request

    def _authorize(self, challenge: str) -> None:
        """Get what a registry asks for: the login itself, or a token for what was asked."""
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic":
            self.authorization = _basic(self.login) if self.login else ""
            return
        asked = parse_dict_header(rest)
        realm = urlsplit(asked.get("realm", ""))
        if scheme.lower() != "bearer" or not (realm.scheme == "https" or LOOPBACK.fullmatch(realm.netloc)):
            raise UserError(f"{self.host} asks for a login in a way that is not known here: {challenge[:100]}")
        query = {name: asked[name] for name in ("service", "scope") if name in asked}
        try:
            headers = {"Authorization": _basic(self.login)} if self.login else {}
            answer = self.session.get(asked["realm"], params=query, headers=headers, timeout=SECONDS)
        except requests.RequestException as error:
            raise UserError(f"{realm.netloc} gives no token ({type(error).__name__}): try again later") from None
        if not answer.ok:
            raise UserError(f"{realm.netloc} gives no token for {self.image} ({answer.status_code}): {DENIED}")
        told = _json(answer)
        self.authorization = f"Bearer {told.get('token') or told.get('access_token')}"


def kept_login(host: str) -> tuple[str, str] | None:
    """Return user and password that `docker login` keeps for a registry on this machine, None where it keeps none."""
    path = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker", "config.json")
    name = HUB_LOGIN if host == HUB else host
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if helper := kept.get("credHelpers", {}).get(name) or kept.get("credsStore"):
            words = [f"docker-credential-{helper}", "get"]
            told = json.loads(subprocess.run(words, input=name, capture_output=True, text=True, check=True).stdout)
            return told["Username"], told["Secret"]
        user, found, password = base64.b64decode(kept["auths"][name]["auth"]).decode().partition(":")
        return (user, password) if found else None
    except (OSError, ValueError, KeyError, subprocess.CalledProcessError):
        return None


def _basic(login: tuple[str, str]) -> str:
    return f"Basic {base64.b64encode(':'.join(login).encode()).decode()}"


def _json(answer: requests.Response) -> dict[str, Any]:
    try:
        told = answer.json()
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise SourceError(f"{urlsplit(answer.url).netloc} answers no JSON object: {urlsplit(answer.url).path}")
    return told


def _said(answer: requests.Response) -> str:
    try:
        told = " ".join(str(error.get("message") or error.get("code")) for error in answer.json()["errors"])
    except (ValueError, KeyError, TypeError, AttributeError):
        told = answer.reason
    return " ".join(told.split())[:200]
