"""Runs commands and says what they cost."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes


class CommandFailedError(Exception):
    """A measured command failed; the message names it and holds its last lines."""


@dataclass(frozen=True)
class Found:
    """What a row found: the figure, whether it meets the target, how it was measured, and what explains it."""

    figure: str
    passed: bool
    how: str
    note: str = ""


@dataclass(frozen=True)
class Cost:
    """What a command and the children it waited for used: processor and wall seconds, the largest process in bytes."""

    cpu: float
    wall: float
    rss: int
    printed: str


def cost(command: Sequence[str | Path], cwd: Path, environment: dict[str, str]) -> Cost:
    """Run the command to its end; raise CommandFailedError where it fails."""
    words = [str(word) for word in command]
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        child = subprocess.Popen(
            words, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        printed = output.read()
    if child.returncode:
        tail = "\n".join(printed.splitlines()[-15:])
        raise CommandFailedError(f"`{Path(words[0]).name} {' '.join(words[1:])}` ended with {child.returncode}\n{tail}")
    return Cost(used.ru_utime + used.ru_stime, wall, used.ru_maxrss * RSS_UNIT, printed)


def interleaved(
    first: Callable[[], Cost], second: Callable[[], Cost], repeats: int
) -> tuple[tuple[Cost, ...], tuple[Cost, ...]]:
    """Call both in turn, so that what else the machine does falls on both."""
    pairs = [(first(), second()) for _ in range(repeats)]
    return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)


def ratio(numerators: Sequence[Cost], denominators: Sequence[Cost], what: str) -> float:
    """Return the median of the ratios of the pairs; `what` is cpu or wall."""
    return median(getattr(a, what) / getattr(b, what) for a, b in zip(numerators, denominators, strict=True))


def middle(costs: Sequence[Cost], what: str) -> float:
    """Return the median of cpu or wall, in seconds."""
    return median(getattr(found, what) for found in costs)


def chosen(names: Iterable[str], words: str) -> list[str]:
    """Return those of the rows that the words name, in the rows' order."""
    wanted = words.split(",")
    if unknown := set(wanted) - set(names):
        raise argparse.ArgumentTypeError(f"no row {', '.join(sorted(unknown))}; choose from {','.join(names)}")
    return [name for name in names if name in wanted]


def measured(bench: object, name: str) -> Found:
    """Return the row that the method of this name finds, a missed one where it could not be measured."""
    start = time.monotonic()
    try:
        found = getattr(bench, name)()
    except CommandFailedError as error:
        print(error, file=sys.stderr)
        found = Found("not measured", False, "a command failed")
    said = "pass" if found.passed else "MISS"
    print(f"{said}  {name}: {found.figure}  ({time.monotonic() - start:.0f} s)\n      {found.note}", flush=True)
    return found


def exit_code(rows: Mapping[str, Found]) -> int:
    """Name the rows that miss their targets; return 1 where there are any."""
    missed = [name for name, found in rows.items() if not found.passed]
    if missed:
        print(f"missed: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0
