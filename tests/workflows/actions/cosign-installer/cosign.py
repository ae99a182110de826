"""A cosign that knows `attest` and `verify-attestation`, keyless in name only: a key of the test signs.

https://github.com/sigstore/cosign/blob/main/doc/cosign_attest.md and doc/cosign_verify-attestation.md
"""

import argparse
import base64
import hashlib
import hmac
import json
import os
import sys
from pathlib import Path

ISSUER = "https://token.actions.githubusercontent.com"


def words() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cosign")
    verbs = parser.add_subparsers(dest="verb", required=True)
    attest, verify = verbs.add_parser("attest"), verbs.add_parser("verify-attestation")
    attest.add_argument("--predicate", required=True)
    attest.add_argument("--yes", action="store_true")
    verify.add_argument("--certificate-identity", required=True)
    verify.add_argument("--certificate-oidc-issuer", required=True)
    for each in (attest, verify):
        each.add_argument("--type", default="custom")
        each.add_argument("image")
    return parser.parse_args()


def main() -> None:
    asked = words()
    folder, digest = Path(os.environ["STAND_INS_ATTESTATIONS"]), asked.image.rpartition("@sha256:")[2]
    place, key = folder / "cosign" / digest, (folder / "key").read_bytes()
    if asked.verb == "attest":
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{len([*place.iterdir()])}.json").write_text(json.dumps(signed(asked, key, digest)))
        return
    found = [json.loads(path.read_text()) for path in sorted(place.glob("*.json"))]
    lines = [json.dumps(kept["envelope"]) for kept in found if fits(kept, asked, key)]
    if not lines:
        sys.exit("Error: no matching attestations: none of the attestations matched the predicate type or identity")
    print("\n".join(lines))


def signed(asked: argparse.Namespace, key: bytes, digest: str) -> dict:
    statement = {
        "_type": "https://in-toto.io/Statement/v0.1",
        "predicateType": asked.type,
        "subject": [{"name": asked.image.partition("@")[0], "digest": {"sha256": digest}}],
        "predicate": json.loads(Path(asked.predicate).read_text()),
    }
    payload = base64.b64encode(json.dumps(statement).encode()).decode()
    workflow = "{GITHUB_SERVER_URL}/{GITHUB_REPOSITORY}/.github/workflows/{STAND_INS_WORKFLOW}@{GITHUB_REF}"
    identity = workflow.format_map(os.environ)
    envelope = {"payloadType": "application/vnd.in-toto+json", "payload": payload, "signatures": []}
    return {"envelope": envelope, "identity": identity, "signature": signature(key, payload, identity)}


def signature(key: bytes, payload: str, identity: str) -> str:
    return hmac.new(key, f"{identity} {payload}".encode(), hashlib.sha256).hexdigest()


def fits(kept: dict, asked: argparse.Namespace, key: bytes) -> bool:
    payload, identity = kept["envelope"]["payload"], kept["identity"]
    return (
        hmac.compare_digest(kept["signature"], signature(key, payload, identity))
        and (identity, ISSUER) == (asked.certificate_identity, asked.certificate_oidc_issuer)
        and json.loads(base64.b64decode(payload))["predicateType"] == asked.type
    )


main()
