"""`python -m benchmarks`: writes docs/benchmarks.md; with `--only bake,cli` these rows go to the screen alone."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import report
from benchmarks.measure import CommandFailedError, Found
from benchmarks.rows import TARGETS, Bench
from tests.conftest import ROOT


def chosen(words: str) -> list[str]:
    """Return the names of the rows, in their order."""
    wanted = words.split(",")
    if unknown := set(wanted) - set(TARGETS):
        raise argparse.ArgumentTypeError(f"no row {', '.join(sorted(unknown))}; choose from {','.join(TARGETS)}")
    return [name for name in TARGETS if name in wanted]


def measured(bench: Bench, name: str) -> Found:
    """Return the row, a missed one where it could not be measured."""
    start = time.monotonic()
    try:
        found = getattr(bench, name)()
    except CommandFailedError as error:
        print(error, file=sys.stderr)
        found = Found("not measured", False, "a command failed")
    said = "pass" if found.passed else "MISS"
    print(f"{said}  {name}: {found.figure}  ({time.monotonic() - start:.0f} s)\n      {found.note}", flush=True)
    return found


def main() -> int:
    """Measure; return 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the template and its project.")
    parser.add_argument("--only", type=chosen, help=f"rows, of {','.join(TARGETS)}; docs/benchmarks.md is left alone")
    parser.add_argument("--repeats", type=int, default=3, help="cold pipelines to run (default: 3)")
    words = parser.parse_args()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        bench = Bench(Path(scratch).resolve(), words.repeats)
        rows = {name: measured(bench, name) for name in words.only or TARGETS}
        if not words.only:
            packages = report.versions(bench.run(bench.a, "uv", "pip", "list", "--format", "json").printed)
            text = report.page(rows, packages, (before, os.getloadavg()[0]))
            report.write(text, ROOT / "docs/benchmarks.md")
    missed = [name for name, found in rows.items() if not found.passed]
    if missed:
        print(f"missed: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
