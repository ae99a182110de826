"""Attests an image: who made it is what a runner's identity says, and not what a step says."""

import base64
import hashlib
import hmac
import json
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

from stand_in import WORKSPACE, call, fail, job_token, output, required, text, true

ACCEPT = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"


def main() -> None:
    name, digest, kind = required("subject-name"), required("subject-digest"), required("predicate-type")
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        fail(f"subject-digest must be in the format <algorithm>:<digest>, not {digest}")
    if text("predicate"):
        fail("Only one of predicate-path or predicate may be provided, and the workflows give a path")
    predicate = json.loads((WORKSPACE / required("predicate-path")).read_text())
    if true("push-to-registry"):
        refuse_absent(name, digest)
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}],
        "predicateType": kind,
        "predicate": predicate,
        "identity": identity(),
    }
    payload = json.dumps(statement).encode()
    folder = Path(os.environ["STAND_INS_ATTESTATIONS"])
    signature = hmac.new((folder / "key").read_bytes(), payload, hashlib.sha256).hexdigest()
    keep(
        folder / digest.removeprefix("sha256:"), {"payload": base64.b64encode(payload).decode(), "signature": signature}
    )


def identity() -> dict[str, str]:
    """Return what GitHub says of a job to whom it asks for a certificate."""
    repository = os.environ["GITHUB_REPOSITORY"]
    return {
        "repository": repository,
        "signer_workflow": f"{repository}/.github/workflows/{os.environ['STAND_INS_WORKFLOW']}",
        "source_ref": os.environ["GITHUB_REF"],
        "source_digest": os.environ["SHA_REF"],
        "runner_environment": os.environ.get("STAND_INS_RUNNER", "github-hosted"),
    }


def refuse_absent(name: str, digest: str) -> None:
    """Fail where the registry has no such image, as putting something beside it would."""
    host, _, path = name.partition("/")
    where = f"http://{host}/v2/{path}/manifests/{digest}"
    try:
        urllib.request.urlopen(urllib.request.Request(where, headers={"Accept": ACCEPT}), timeout=30)
    except (urllib.error.URLError, OSError) as error:
        fail(f"Error uploading artifact to container registry: {error}")


def keep(folder: Path, bundle: dict[str, str]) -> None:
    """Store the attestation with GitHub, which asks for a right, and where the stand-in of `gh` reads it."""
    token = job_token(required("github-token"))
    try:
        answer = call(
            f"/repos/{os.environ['GITHUB_REPOSITORY']}/attestations", token, method="POST", body={"bundle": bundle}
        )
    except urllib.error.HTTPError as error:
        fail(f"Failed to persist attestation: {json.loads(error.read())['message']}")
    number = json.loads(answer)["id"]
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{number}.json"
    target.write_text(json.dumps({"bundle": bundle}))
    output("bundle-path", target)
    output("attestation-id", number)
    output(
        "attestation-url", f"{os.environ['GITHUB_SERVER_URL']}/{os.environ['GITHUB_REPOSITORY']}/attestations/{number}"
    )
    print(f"Attestation {number} signed and stored")


main()
