"""The prediction log: one JSON line a row, written by a thread of its own, so that no disk holds up a request."""

from __future__ import annotations

import fcntl
import json
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MASK = "***"
PAUSE = 0.05  # seconds in which lines gather
BATCH = 1000  # lines written at once
PATIENCE = 2.0  # seconds that a shutdown waits for the last lines
Write = Callable[[bytes], None]


class Files:
    """A file that several processes append to, moved aside to `.1`, `.2`, … when it is full."""

    def __init__(self, path: Path, most_bytes: int, count: int) -> None:
        self.path, self.most_bytes, self.count = path, most_bytes, count

    def __call__(self, lines: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(self.path.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.path.exists() and self.path.stat().st_size + len(lines) > self.most_bytes:
                self._rotate()
            with self.path.open("ab", buffering=0) as file:
                before = file.tell()
                try:
                    write_all(file.fileno(), lines)
                except OSError:
                    # Half a line would spoil the next one.
                    file.truncate(before)
                    raise

    def _rotate(self) -> None:
        names = [self.path, *(self.path.with_name(f"{self.path.name}.{i}") for i in range(1, self.count))]
        for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
            if newer.exists():
                newer.replace(older)
        self.path.unlink(missing_ok=True)


def write_all(descriptor: int, lines: bytes) -> None:
    """Write to a descriptor until nothing is left."""
    left = memoryview(lines)
    while left:
        left = left[os.write(descriptor, left) :]


class PredictionLog:
    """Takes what was answered without waiting, and loses lines rather than time."""

    def __init__(self, write: Write, model: str, personal: set[str], share: float, queue: int, dropped: Any) -> None:
        """Start the writer; `dropped` maps the reasons "full" and "disk" to counters."""
        self.write, self.model, self.personal, self.share = write, model, personal, share
        self.most, self.dropped = queue, dropped
        self.waiting: deque[tuple[str, datetime, list[Any], list[Any]]] = deque()
        self.lines = 0
        self.closed = False
        self.lock, self.news = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self.thread.start()

    def put(self, identity: str, rows: list[Any], answers: list[Any]) -> None:
        """Take a request's rows and answers, or count them as lost where too many lines wait."""
        if self.share < 1 and random.random() >= self.share:
            return
        with self.lock:
            fits = self.lines + len(rows) <= self.most
            self.lines += len(rows) if fits else 0
        if not fits:
            self.dropped["full"].inc(len(rows))
            return
        self.waiting.append((identity, datetime.now(UTC), rows, answers))
        self.news.set()

    def close(self) -> None:
        """Write what waits, for at most `PATIENCE` seconds."""
        self.closed = True
        self.news.set()
        self.thread.join(PATIENCE)

    def _run(self) -> None:
        while not self.closed or self.waiting:
            self.news.wait()
            # Lines that come one by one are cheaper to write together.
            time.sleep(0 if self.closed else PAUSE)
            self.news.clear()
            while self.waiting:
                self._write_some()

    def _write_some(self) -> None:
        lines: list[str] = []
        while self.waiting and len(lines) < BATCH:
            lines += self._lines(*self.waiting.popleft())
        try:
            self.write("".join(lines).encode(errors="replace"))
        except OSError:
            self.dropped["disk"].inc(len(lines))
        finally:
            with self.lock:
                self.lines -= len(lines)

    def _lines(self, identity: str, when: datetime, rows: list[Any], answers: list[Any]) -> list[str]:
        known = {"request": identity, "time": when.isoformat(timespec="milliseconds"), "model": self.model}
        return [
            json.dumps({**known, "row": self._masked(row), "answer": answer}, ensure_ascii=False) + "\n"
            for row, answer in zip(rows, answers, strict=True)
        ]

    def _masked(self, row: dict[str, Any]) -> dict[str, Any]:
        given = {name: None if value != value else value for name, value in row.items()}
        return given | {name: MASK for name in self.personal if given.get(name) is not None}


def opened(settings: dict[str, Any], model: str, personal: set[str], dropped: Any) -> PredictionLog | None:
    """Return the log that the settings ask for, or None for `to: none`."""
    if settings["to"] == "none":
        return None
    write: Write = lambda lines: write_all(1, lines)  # noqa: E731
    if settings["to"] != "stdout":
        write = Files(Path(settings["to"]), settings["bytes"], settings["files"])
    return PredictionLog(write, model, personal, settings["share"], settings["queue"], dropped)
