"""Runs in the project's interpreter: `python probe.py "ingest 2013-01" split ...` calls these verbs in one process.

Appends a line of JSON to PROBE_LOG, if set: processor seconds in all and of each verb without its imports, peak memory.
"""

from __future__ import annotations

import builtins
import json
import os
import resource
import sys
from time import process_time
from typing import Any

real = builtins.__import__
spent, inside = 0.0, False


def counted(*arguments: Any, **named: Any) -> Any:
    """Import and add the time of the outermost import; those within it are in its time."""
    global spent, inside
    if inside:
        return real(*arguments, **named)
    inside, start = True, process_time()
    try:
        return real(*arguments, **named)
    finally:
        inside, spent = False, spent + process_time() - start


def main(lines: list[str]) -> None:
    """Run the verbs and print what they took."""
    builtins.__import__ = counted
    from ml.cli import main as ml

    work: dict[str, float] = {}
    for line in lines:
        start, imported = process_time(), spent
        if code := ml(line.split()):
            sys.exit(code)
        verb = line.split()[0]
        work[verb] = work.get(verb, 0.0) + process_time() - start - (spent - imported)
    if log := os.environ.get("PROBE_LOG"):
        mine, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = mine.ru_utime + mine.ru_stime + children.ru_utime + children.ru_stime
        with open(log, "a") as said:
            said.write(json.dumps({"cpu": cpu, "work": work, "rss": mine.ru_maxrss}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
