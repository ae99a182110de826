"""`python -m benchmarks`: writes docs/benchmarks.md; with `--only bake,cli` these rows go to the screen alone."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks import report
from benchmarks.measure import chosen, exit_code, measured
from benchmarks.rows import TARGETS, Bench
from tests.conftest import ROOT

PAGE = ROOT / "docs/benchmarks.md"


def main() -> int:
    """Measure; return 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the template and its project.")
    only = f"rows, of {','.join(TARGETS)}; docs/benchmarks.md is left alone without --keep"
    parser.add_argument("--only", type=partial(chosen, TARGETS), help=only)
    parser.add_argument("--keep", action="store_true", help="with --only: put the rows into docs/benchmarks.md")
    parser.add_argument("--repeats", type=int, default=3, help="cold pipelines to run (default: 3)")
    words = parser.parse_args()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        bench = Bench(Path(scratch).resolve(), words.repeats)
        rows = {name: measured(bench, name) for name in words.only or TARGETS}
        if not words.only:
            packages = report.versions(bench.run(bench.a, "uv", "pip", "list", "--format", "json").printed)
            text = report.page("Benchmarks", "make bench", TARGETS, rows, packages, (before, os.getloadavg()[0]))
            report.write(text, PAGE)
        elif words.keep:
            load = (before, os.getloadavg()[0])
            report.write(report.merged(PAGE.read_text(), TARGETS, rows, load), PAGE)
    return exit_code(rows)


if __name__ == "__main__":
    sys.exit(main())
