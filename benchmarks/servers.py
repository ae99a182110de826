"""Servers on the loopback, and wrk to load them."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import CommandFailedError, cost

START = 90.0  # seconds
SCRIPT = """
local requests, at = {}, 0
function init()
  for body in io.lines(os.getenv("BODIES")) do
    table.insert(requests, wrk.format("POST", nil, {["content-type"] = "application/json"}, body))
  end
end
function request()
  at = at % #requests + 1
  return requests[at]
end
function done(summary, latency)
  local errors = summary.errors
  local lost = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  print(string.format('{"sent": %d, "lost": %d, "seconds": %f, "p50": %f, "p99": %f}', summary.requests, lost,
    summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


@dataclass(frozen=True)
class Load:
    """What a round of wrk saw: requests a second, milliseconds, and how many cores wrk itself took.

    `spent` is the server's processor time of a request in milliseconds, where it was asked for.
    """

    rate: float
    p50: float
    p99: float
    cores: float
    spent: float = math.nan


@dataclass(frozen=True)
class Server:
    """How a server starts (`{port}` stands for its port), where it answers, and what its body calls the rows."""

    command: Sequence[str | Path]
    cwd: Path
    environment: dict[str, str]
    path: str = "/predict"
    key: str = "rows"


class Wrk:
    """Loads an address with the bodies of a file, one a line."""

    def __init__(self, scratch: Path) -> None:
        if shutil.which("wrk") is None:
            raise CommandFailedError("wrk is missing: install it, such as apt-get install wrk")
        self.script, self.scratch = scratch / "post.lua", scratch
        self.script.write_text(SCRIPT)

    def bodies(self, key: str, rows: Sequence[dict], sizes: Sequence[int], count: int) -> Path:
        """Write requests, each of the next of these numbers of rows, and return their file."""
        path = self.scratch / f"{key}-{'-'.join(map(str, sizes))}.jsonl"
        if not path.exists():
            left = itertools.cycle(rows)
            parts = ([next(left) for _ in range(sizes[at % len(sizes)])] for at in range(count))
            path.write_text("".join(json.dumps({key: part}) + "\n" for part in parts))
        return path

    def load(self, address: str, bodies: Path, connections: int, seconds: float) -> Load:
        """Return what so many connections saw, each with one request at a time; raise where an answer is no 200."""
        words = ["wrk", "--threads=1", f"--connections={connections}", f"--duration={round(seconds)}s"]
        used = cost(
            [*words, "--timeout=20s", f"--script={self.script}", address],
            self.scratch,
            {**os.environ, "BODIES": str(bodies)},
        )
        found = json.loads(used.printed.splitlines()[-1])
        if found["lost"] or not found["sent"]:
            raise CommandFailedError(f"{address} lost {found['lost']} of {found['sent']} requests")
        return Load(found["sent"] / found["seconds"], found["p50"], found["p99"], used.cpu / used.wall)


@contextmanager
def running(server: Server, log: Path) -> Iterator[tuple[str, int]]:
    """Yield the root of the server's address and its process; whoever asks waits until it is ready."""
    port = free_port()
    command = [str(word).format(port=port) for word in server.command]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=server.cwd, env=server.environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield f"http://127.0.0.1:{port}", process.pid
        if process.poll() is not None:
            raise CommandFailedError(f"`{' '.join(command)}` ended\n{tail(log)}")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def processor_time(process: int) -> float:
    """Return the seconds of processor time that a process and those below it have used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(map(processor_time, children(process)))


def hurry(process: int) -> None:
    """Let the sessions of a process and those below it go before others, between which Linux shares the cores."""
    Path(f"/proc/{process}/autogroup").write_text("-19")
    for child in children(process):
        hurry(child)


def children(process: int) -> list[int]:
    """Return the processes that a process started."""
    return [int(pid) for path in Path(f"/proc/{process}/task").glob("*/children") for pid in path.read_text().split()]


def await_answer(url: str, body: bytes | None, log: Path, pause: float = 0.2) -> None:
    """Return once the server answers with 200; raise with the end of its log where it does not."""
    end, reason = time.monotonic() + START, ""
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, body, {"content-type": "application/json"}), timeout=20
            ):
                return
        except urllib.error.HTTPError as error:
            reason = f"{error.code} {error.read(300).decode(errors='replace')}"
            if 400 <= error.code < 500:
                break
        except OSError as error:
            reason = str(error)
        time.sleep(pause)
    raise CommandFailedError(f"{url} is not ready: {reason}\n{tail(log)}")


def tail(log: Path) -> str:
    """Return the last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-12:])


def free_port() -> int:
    """Return a port that nobody has."""
    # Below those that the system gives to clients: the server takes it seconds later.
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", random.randrange(20_000, 32_000)))
            return probe.getsockname()[1]
