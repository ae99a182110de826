"""Looks packages up in STAND_INS_VULNERABILITIES, a file of (package, id, severity, fixed versions)."""

import json
import os
from pathlib import Path

from stand_in import WORKSPACE, fail, output, required, text, true


def main() -> None:
    if text("output-format") != "json" or true("fail-build"):
        fail("this stand-in writes json and never fails the build")
    listed = json.loads((WORKSPACE / required("sbom")).read_text())["components"]
    versions = {each["name"].lower(): each["version"] for each in listed}
    known = Path(os.environ["STAND_INS_VULNERABILITIES"])
    holes = json.loads(known.read_text()) if known.is_file() else []
    found = {
        "matches": [match(versions[package], package, *rest) for package, *rest in holes if package in versions],
        "source": {"type": "sbom-file", "target": required("sbom")},
        "descriptor": {"name": "grype", "version": "0.110.0"},
    }
    target = WORKSPACE / required("output-file")
    target.write_text(json.dumps(found))
    output("json", target)
    print(f"{len(found['matches'])} vulnerabilities")


def match(version: str, package: str, identifier: str, severity: str, fixed: list[str]) -> dict:
    fix = {"versions": fixed, "state": "fixed" if fixed else "not-fixed"}
    return {
        "vulnerability": {"id": identifier, "severity": severity, "fix": fix},
        "relatedVulnerabilities": [],
        "artifact": {"name": package, "version": version, "type": "python"},
    }


main()
