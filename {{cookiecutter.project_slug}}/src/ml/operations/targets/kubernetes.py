"""A cluster: the overlay of a stage, pinned to a digest, through kubectl."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ml.errors import UserError
from ml.operations.targets import Wanted, judge, tell
from ml.serving import image

OVERLAYS = Path("deploy/kubernetes/overlays")
SCRATCH = Path("build")
DEPLOYMENT = "model"
CONTAINER = "service"
PLACEHOLDER = "model-service"  # the image's name in the manifests
LABEL = "app.kubernetes.io/name=model"
REVISION = "deployment.kubernetes.io/revision"
READY = "300s"
APPLY = ("--server-side", "--force-conflicts", "--field-manager=ml")


@dataclass(frozen=True)
class Cluster:
    """A namespace of a cluster."""

    words: tuple[str, ...]

    def tell(self, *words: str, given: str | None = None, good: tuple[int, ...] = (0,)) -> str:
        """Return what kubectl prints; raise UserError for any other exit code."""
        return tell(*self.words, *words, given=given, good=good)

    def get(self, *words: str) -> list[dict[str, Any]]:
        """Return the objects that kubectl finds."""
        return json.loads(self.tell("get", *words, f"--selector={LABEL}", "--output=json"))["items"]

    def served(self) -> int:
        """Return the newest revision of the deployment of which pods are ready, 0 where none are."""
        found = [s for s in self.get("replicasets") if s["status"].get("readyReplicas")]
        return max((_revision(one) for one in found), default=0)

    def newest(self) -> int:
        """Return the newest revision of the deployment, 0 where there is none."""
        return max(map(_revision, self.get("deployments")), default=0)


def plan(wanted: Wanted) -> str:
    """Return what `kubectl diff` says."""
    with _reaching(wanted) as cluster:
        # Its exit code is 1 where there is a difference.
        found = cluster.tell("diff", *APPLY, "--filename=-", given=rendered(wanted), good=(0, 1))
    return found.rstrip() or f"{wanted.place} is as it would be: {wanted.image}"


def apply(wanted: Wanted) -> str:
    """Apply the manifests and wait for the rollout; undo it where it fails."""
    manifests = rendered(wanted)
    with _reaching(wanted) as cluster:
        good = cluster.served()
        cluster.tell("apply", *APPLY, "--filename=-", given=manifests)
        try:
            cluster.tell("rollout", "status", f"deployment/{DEPLOYMENT}", f"--timeout={READY}")
        except UserError as error:
            raise UserError(f"{wanted.image}: {_why(cluster) or error}; {_put_back(cluster, good)}") from None
    return f"{wanted.place} runs {wanted.image}"


def check(wanted: Wanted) -> str:
    """Ask one of the pods, from inside; raise UserError where a ready pod runs another image."""
    with _reaching(wanted) as cluster:
        pods = [pod for pod in cluster.get("pods") if _ready(pod)]
        images = {container["image"] for pod in pods for container in _services(pod)}
        if images != {wanted.image}:
            runs = ", ".join(sorted(images)) or "nothing"
            raise UserError(f"{wanted.place} runs {runs}, not {wanted.image}: deploy again")
        name = pods[0]["metadata"]["name"]
        return judge(cluster.tell("exec", name, f"--container={CONTAINER}", "--", "python", "-c", image.ASK), wanted)


def rendered(wanted: Wanted) -> str:
    """Return the manifests of the stage, the image pinned to the digest, in the stage's namespace.

    Raises UserError where the project has no overlay for the stage, or kubectl cannot build it.
    """
    overlay = OVERLAYS / wanted.stage
    if not overlay.is_dir():
        raise UserError(f"{overlay} does not exist: DEPLOY_TARGET=kubernetes needs include_kubernetes and an overlay")
    SCRATCH.mkdir(exist_ok=True)
    # In the project, since kustomize takes bases by relative paths alone.
    with TemporaryDirectory(prefix="pinned-", dir=SCRATCH) as folder:
        # JSON is YAML.
        Path(folder, "kustomization.yaml").write_text(json.dumps(pinned(wanted)), encoding="utf-8")
        return tell("kubectl", "kustomize", folder)


def pinned(wanted: Wanted) -> dict[str, Any]:
    """Return the kustomization that lays digest, namespace and environment over the stage's overlay."""
    name, digest = wanted.image.split("@")
    container = {"name": CONTAINER, "env": [{"name": key, "value": text} for key, text in wanted.about.items()]}
    patch = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": DEPLOYMENT},
        "spec": {"template": {"spec": {"containers": [container]}}},
    }
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"../../{OVERLAYS / wanted.stage}"],
        "namespace": wanted.place,
        "images": [{"name": PLACEHOLDER, "newName": name, "digest": digest}],
        "patches": [{"patch": json.dumps(patch)}],
    }


def _put_back(cluster: Cluster, good: int) -> str:
    if not good:
        return "nothing ran before, so there is nothing to put back"
    if good == cluster.newest():
        return "it is what ran before: look at the cluster"
    cluster.tell("rollout", "undo", f"deployment/{DEPLOYMENT}", f"--to-revision={good}")
    try:
        cluster.tell("rollout", "status", f"deployment/{DEPLOYMENT}", f"--timeout={READY}")
    except UserError as error:
        return f"what ran before does not come back ({error}): look at the cluster"
    return "what ran before runs again"


def _why(cluster: Cluster) -> str:
    """Return what the pods that are not ready wait for."""
    found = set()
    for pod in cluster.get("pods"):
        for status in pod["status"].get("containerStatuses", []):
            state = status.get("state", {}).get("waiting") or status.get("state", {}).get("terminated") or {}
            found.add(" ".join(filter(None, (state.get("reason"), state.get("message")))))
    return "; ".join(sorted(found - {""}))[:300]


def _revision(found: dict[str, Any]) -> int:
    return int(found["metadata"].get("annotations", {}).get(REVISION, 0))


def _ready(pod: dict[str, Any]) -> bool:
    conditions = {one["type"]: one["status"] for one in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def _services(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in pod["spec"]["containers"] if one["name"] == CONTAINER]


@contextmanager
def _reaching(wanted: Wanted) -> Iterator[Cluster]:
    """Yield the cluster that KUBE_CONFIG describes, or kubectl's own choice."""
    with TemporaryDirectory(prefix="kube-") as folder:
        words = ["kubectl", f"--namespace={wanted.place}"]
        if text := os.environ.get("KUBE_CONFIG"):
            file = Path(folder, "config")
            file.touch(0o600)
            file.write_text(text, encoding="utf-8")
            words.append(f"--kubeconfig={file}")
        yield Cluster(tuple(words))
