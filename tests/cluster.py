"""A cluster's API as far as kubectl needs it for one deployment: keeps what is applied, records who asked for what.

It stands for a deployment's controller as well: each new template is a revision, whose pods get ready at once where
their image is one of `good`, and never elsewhere. `exec` is what the pods' containers answer to a command.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import RLock, Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]
# Group and version, kind, plural.
KINDS = (
    ("v1", "ServiceAccount", "serviceaccounts"),
    ("v1", "Service", "services"),
    ("v1", "Pod", "pods"),
    ("apps/v1", "Deployment", "deployments"),
    ("apps/v1", "ReplicaSet", "replicasets"),
    ("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"),
    ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
)
REVISION = "deployment.kubernetes.io/revision"
WEBSOCKET = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
STDOUT, STDERR, STATUS = 1, 2, 3  # channels of v5.channel.k8s.io


@dataclass
class Cluster:
    """Objects by (plural, namespace, name)."""

    good: set[str] = field(default_factory=set)
    exec: Callable[[list[str]], tuple[int, str]] = lambda words: (1, "")
    objects: dict[tuple[str, str, str], Object] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    root: str = ""
    lock: RLock = field(default_factory=RLock)

    @property
    def config(self) -> str:
        """Return a kubeconfig."""
        context = {"cluster": "c", "user": "u"}
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": self.root}}],
                "users": [{"name": "u", "user": {"token": "secret"}}],
                "contexts": [{"name": "c", "context": context}],
                "current-context": "c",
            }
        )

    def changes(self) -> list[str]:
        """Return what was asked to be changed."""
        return [f"{method} {path}" for method, path in self.calls if method != "GET"]

    def apply(self, plural: str, namespace: str, body: Object, dry: bool) -> Object:
        """Server-side apply, for a manager that owns every field that it ever gave."""
        key = (plural, namespace, body["metadata"]["name"])
        old = self.objects.get(key)
        new = merged(copy.deepcopy(old) if old else {}, body)
        new["metadata"] |= {"namespace": namespace, "uid": "-".join(key), "creationTimestamp": "2026-11-26T00:00:00Z"}
        if plural == "deployments":
            new["spec"].setdefault("replicas", 1)
        if not dry:
            self.store(key, new)
        return new

    def store(self, key: tuple[str, str, str], new: Object) -> None:
        old = self.objects.get(key)
        changed = old is None or old["spec" if "spec" in new else "metadata"] != new.get("spec", new["metadata"])
        generation = (old["metadata"].get("generation", 1) if old else 0) + changed
        new["metadata"] |= {"generation": generation, "resourceVersion": str(len(self.calls))}
        self.objects[key] = new
        if key[0] == "deployments":
            self.control(key[1], new)

    def control(self, namespace: str, deployment: Object) -> None:
        """Do what the controllers of deployments and replica sets do."""
        template = deployment["spec"]["template"]
        sets = [one for (plural, *_), one in self.objects.items() if plural == "replicasets"]
        own = next((one for one in sets if one["spec"]["template"] == template), None)
        number = 1 + max((int(one["metadata"]["annotations"][REVISION]) for one in sets), default=0)
        if own is None:
            own = made("apps/v1", "ReplicaSet", namespace, f"model-{number}", template, deployment)
            own["spec"] = {
                "replicas": 1,
                "template": copy.deepcopy(template),
                "selector": deployment["spec"]["selector"],
            }
        if int(own["metadata"].get("annotations", {}).get(REVISION, 0)) != number - 1 or not sets:
            own["metadata"]["annotations"] = {REVISION: str(number)}
        name, image = own["metadata"]["name"], template["spec"]["containers"][0]["image"]
        ready = image in self.good
        own["status"] = {"replicas": 1, "readyReplicas": int(ready)}
        self.objects["replicasets", namespace, name] = own
        pod = made("v1", "Pod", namespace, f"{name}-0", template, own)
        pod["spec"] = copy.deepcopy(template["spec"])
        waits = {"waiting": {"reason": "ImagePullBackOff", "message": f"cannot pull {image}"}}
        status = {"name": "service", "state": {"running": {}} if ready else waits}
        pod["status"] = {"phase": "Running", "conditions": [{"type": "Ready", "status": str(ready)}]}
        pod["status"]["containerStatuses"] = [status]
        for key in [k for k in self.objects if k[0] == "pods" and (ready or not self.is_ready(k))]:
            del self.objects[key]
        self.objects["pods", namespace, f"{name}-0"] = pod
        for other in (one for one in sets if ready and one is not own):
            other["status"] = {"replicas": 0}
        reason = "NewReplicaSetAvailable" if ready else "ProgressDeadlineExceeded"
        deployment["metadata"].setdefault("annotations", {})[REVISION] = own["metadata"]["annotations"][REVISION]
        deployment["status"] = {
            "observedGeneration": deployment["metadata"]["generation"],
            **{key: int(ready) for key in ("updatedReplicas", "availableReplicas", "readyReplicas")},
            "replicas": 1 if ready else 2,
            "conditions": [{"type": "Progressing", "status": str(ready), "reason": reason}],
        }

    def is_ready(self, key: tuple[str, str, str]) -> bool:
        return self.objects[key]["status"]["conditions"][0]["status"] == "True"

    def image(self) -> str:
        """Return the image that the ready pods run."""
        pods = [one for key, one in self.objects.items() if key[0] == "pods" and self.is_ready(key)]
        (image,) = {pod["spec"]["containers"][0]["image"] for pod in pods}
        return image

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        match path.strip("/").split("/"):
            case ["api"]:
                return 200, {"kind": "APIVersions", "versions": ["v1"]}
            case ["apis"]:
                return 200, groups()
            case ["api", "v1"]:
                return 200, resources("v1")
            case ["apis", group, version]:
                return 200, resources(f"{group}/{version}")
            case ["openapi", "v3"]:
                paths = {
                    where(version): {"serverRelativeURL": f"/openapi/v3/{where(version)}"} for version, *_ in KINDS
                }
                return 200, {"paths": paths}
            case ["openapi", "v3", *rest]:
                return 200, described("/".join(rest))
            case [*_, "namespaces", namespace, plural]:
                return 200, self.listed(plural, namespace, query)
            case [*_, "namespaces", namespace, plural, name] if method == "GET":
                found = self.objects.get((plural, namespace, name))
                return (200, found) if found else (404, failure(404, "NotFound", f'{plural} "{name}" not found'))
            case [*_, "namespaces", namespace, plural, name] if method == "PATCH":
                if isinstance(body, list):
                    new = copy.deepcopy(self.objects[plural, namespace, name])
                    for change in body:
                        patched(new, change)
                    self.store((plural, namespace, name), new)
                    return 200, new
                return 200, self.apply(plural, namespace, body, "dryRun" in query)
        return 404, failure(404, "NotFound", f"{path} not found")

    def listed(self, plural: str, namespace: str, query: dict[str, str]) -> Object:
        version, kind = next((version, kind) for version, kind, name in KINDS if name == plural)
        wanted = dict(pair.split("=") for pair in query.get("labelSelector", "").split(",") if pair)
        name = query.get("fieldSelector", "").removeprefix("metadata.name=")
        found = [
            one
            for (kind_of, space, own), one in self.objects.items()
            if (kind_of, space) == (plural, namespace)
            and wanted.items() <= one["metadata"].get("labels", {}).items()
            and name in ("", own)
        ]
        about = {"resourceVersion": str(len(self.calls))}
        return {"apiVersion": version, "kind": f"{kind}List", "metadata": about, "items": found}


def made(version: str, kind: str, namespace: str, name: str, template: Object, owner: Object) -> Object:
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"]}
    reference |= {"uid": owner["metadata"]["uid"], "controller": True}
    about = {"name": name, "namespace": namespace, "labels": template["metadata"]["labels"], "uid": f"{kind}-{name}"}
    about |= {"ownerReferences": [reference], "creationTimestamp": "2026-11-26T00:00:00Z"}
    return {"apiVersion": version, "kind": kind, "metadata": about}


def merged(old: Any, new: Any) -> Any:
    """Return what an apply makes: objects are merged, everything else is replaced."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {key: merged(old.get(key), value) for key, value in new.items()}
    return copy.deepcopy(new)


def patched(found: Object, change: Object) -> None:
    """Apply one operation of a JSON patch (RFC 6902)."""
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in change["path"].strip("/").split("/")]
    for part in parents:
        found = found.setdefault(part, {})
    if change["op"] == "remove":
        found.pop(last, None)
    else:
        found[last] = full(change["value"])


def full(value: Any) -> Any:
    """Return a value without what is null, which the server drops."""
    return {key: full(one) for key, one in value.items() if one is not None} if isinstance(value, dict) else value


def groups() -> Object:
    names = dict.fromkeys(version for version, *_ in KINDS if "/" in version)
    versions = {name: {"groupVersion": name, "version": name.split("/")[1]} for name in names}
    found = [{"name": name.split("/")[0], "versions": [one], "preferredVersion": one} for name, one in versions.items()]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": found}


def resources(group: str) -> Object:
    verbs = ["get", "list", "watch", "create", "patch", "delete"]
    found = [
        {"name": plural, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": verbs}
        for version, kind, plural in KINDS
        if version == group
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": found}


def where(group: str) -> str:
    return f"apis/{group}" if "/" in group else f"api/{group}"


def described(path: str) -> Object:
    """Return the document from which kubectl sees that the server checks fields itself."""
    parameter = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
    paths = {}
    for group, kind, plural in (one for one in KINDS if where(one[0]) == path):
        about = {"group": group.rpartition("/")[0], "version": group.rpartition("/")[2], "kind": kind}
        change = {"parameters": [parameter], "x-kubernetes-group-version-kind": about, "responses": {}}
        paths[f"/{path}/namespaces/{{namespace}}/{plural}/{{name}}"] = {"patch": change}
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.37.0"}, "paths": paths}


def failure(code: int, reason: str, message: str) -> Object:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }


def frame(channel: int, text: str) -> bytes:
    """Return one binary frame of a WebSocket."""
    content = bytes([channel]) + text.encode()
    size = len(content)
    head = bytes([size]) if size < 126 else struct.pack("!BH", 126, size)
    return b"\x82" + head + content


@contextmanager
def running() -> Iterator[Cluster]:
    """Yield a cluster that answers on this machine."""
    cluster = Cluster()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            parts = urlsplit(self.path)
            query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with cluster.lock:
                if "dryRun" not in query:
                    cluster.calls.append((self.command, parts.path))
                if self.headers.get("Upgrade", "").lower() == "websocket":
                    return self.converse(parse_qs(parts.query)["command"])
                status, found = cluster.answer(self.command, parts.path, query, json.loads(content or b"null"))
                body = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PATCH = do_POST = do_DELETE = do_PUT = answer  # noqa: N815

        def converse(self, words: list[str]) -> None:
            key = hashlib.sha1((self.headers["Sec-WebSocket-Key"] + WEBSOCKET).encode(), usedforsecurity=False)
            self.send_response(101)
            for name, value in {
                "Upgrade": "websocket",
                "Connection": "Upgrade",
                "Sec-WebSocket-Accept": base64.b64encode(key.digest()).decode(),
                "Sec-WebSocket-Protocol": "v5.channel.k8s.io",
            }.items():
                self.send_header(name, value)
            self.end_headers()
            code, printed = cluster.exec(words)
            done: Object = {"metadata": {}, "status": "Success"}
            if code:
                done = failure(500, "NonZeroExitCode", f"command terminated with exit code {code}")
                done["details"] = {"causes": [{"reason": "ExitCode", "message": str(code)}]}
            self.wfile.write(frame(STDERR if code else STDOUT, printed) + frame(STATUS, json.dumps(done)))
            self.wfile.write(b"\x88\x02" + struct.pack("!H", 1000))
            self.close_connection = True

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    cluster.root = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()
