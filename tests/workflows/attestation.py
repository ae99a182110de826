"""Stands in for `gh attestation verify`, which Debian's gh lacks: reads what the stand-in of actions/attest signed.

Flags and JSON are those that https://cli.github.com/manual/gh_attestation_verify documents.
"""

import argparse
import base64
import hashlib
import hmac
import json
import os
import sys
from pathlib import Path


def words() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gh attestation")
    parser.add_argument("verb", choices=["verify"])
    parser.add_argument("subject")
    for flag in ("--repo", "--signer-workflow", "--source-ref", "--source-digest", "--predicate-type", "--format"):
        parser.add_argument(flag, default="")
    parser.add_argument("--deny-self-hosted-runners", action="store_true")
    return parser.parse_args(sys.argv[2:])


def main() -> None:
    asked = words()
    if not (os.environ.get("GH_TOKEN") or os.environ.get("GITHUB_TOKEN")):
        sys.exit("To use GitHub CLI in a GitHub Actions workflow, set the GH_TOKEN environment variable.")
    if not asked.subject.startswith("oci://") or "@sha256:" not in asked.subject:
        sys.exit("Error: this stand-in takes an image by digest")
    if not asked.repo:
        sys.exit("at least one of the flags in the group [owner repo] is required")
    folder = Path(os.environ["STAND_INS_ATTESTATIONS"])
    digest = asked.subject.rpartition("@sha256:")[2]
    bundles = [json.loads(path.read_text())["bundle"] for path in sorted((folder / digest).glob("*.json"))]
    if not bundles:
        sys.exit(f"Error: no attestations found for subject sha256:{digest}")
    results = [found for bundle in bundles if (found := checked(asked, bundle, folder / "key", digest))]
    if not results:
        sys.exit('Error: verifying with issuer "sigstore.dev": failed to verify certificate identity')
    print(json.dumps(results) if asked.format == "json" else "Verification succeeded!")


def checked(asked: argparse.Namespace, bundle: dict, key: Path, digest: str) -> dict | None:
    """Return what is verified of a bundle, None where it is not what is asked for."""
    payload = base64.b64decode(bundle["payload"])
    signature = hmac.new(key.read_bytes(), payload, hashlib.sha256).hexdigest()
    statement = json.loads(payload)
    signer = statement.pop("identity")
    fits = (
        hmac.compare_digest(signature, bundle["signature"])
        and signer["repository"] == asked.repo
        and asked.signer_workflow in ("", signer["signer_workflow"])
        and asked.source_ref in ("", signer["source_ref"])
        and asked.source_digest in ("", signer["source_digest"])
        and asked.predicate_type in ("", statement["predicateType"])
        and (signer["runner_environment"] == "github-hosted" or not asked.deny_self_hosted_runners)
        and digest in (one["digest"]["sha256"] for one in statement["subject"])
    )
    certificate = {
        "sourceRepositoryURI": f"https://github.com/{signer['repository']}",
        "sourceRepositoryDigest": signer["source_digest"],
        "sourceRepositoryRef": signer["source_ref"],
        "buildSignerURI": f"https://github.com/{signer['signer_workflow']}@{signer['source_ref']}",
        "runnerEnvironment": signer["runner_environment"],
    }
    result = {"statement": statement, "signature": {"certificate": certificate}, "verifiedTimestamps": []}
    return {"attestation": {"bundle": bundle}, "verificationResult": result} if fits else None


main()
