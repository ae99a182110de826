"""Clients of a running service: a steady load, what its processes hold, and bodies that nobody should send."""

from __future__ import annotations

import gzip
import http.client
import json
import random
import re
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit


def fetch(address: str, path: str) -> str:
    with urllib.request.urlopen(address + path, timeout=20) as answer:
        return answer.read().decode()


def example(address: str) -> dict:
    """Return the row that the service's documentation shows."""
    document = json.loads(fetch(address, "/docs.json"))
    content = document["paths"]["/predict"]["post"]["requestBody"]["content"]
    return content["application/json"]["example"]["rows"][0]


class Load:
    """Clients that ask one after the other until they are stopped; what they got is in `outcomes`."""

    def __init__(self, address: str, clients: int, body: bytes, polite: bool = True) -> None:
        """Polite clients stop, as a load balancer makes them, once `/readyz` says no."""
        self.address, self.body, self.polite = address, body, polite
        self.outcomes: Counter[str] = Counter()
        self.slowest = 0.0
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(30)

    @property
    def failed(self) -> dict[str, int]:
        return {outcome: count for outcome, count in self.outcomes.items() if outcome != "200"}

    def _ask(self) -> None:
        connection = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=30)
        while not self.stopped.is_set() and (not self.polite or self._ready()):
            started = time.monotonic()
            try:
                connection.request("POST", "/predict", self.body, {"content-type": "application/json"})
                answer = connection.getresponse()
                answer.read()
                outcome = str(answer.status)
            except (OSError, http.client.HTTPException) as error:
                outcome = type(error).__name__
                connection.close()
                time.sleep(0.01)
            self.outcomes[outcome] += 1
            self.slowest = max(self.slowest, time.monotonic() - started)
        connection.close()

    def _ready(self) -> bool:
        with suppress(OSError):
            return urllib.request.urlopen(self.address + "/readyz", timeout=10).status == 200
        return False


def workers(supervisor: int) -> list[int]:
    """Return the process ids of the workers below a process, through any others between."""
    found, below = [], [supervisor]
    while below:
        parent = below.pop()
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            below += [int(pid) for pid in task.read_text().split()]
        with suppress(OSError):
            if b"_bentoml_impl.worker" in Path(f"/proc/{parent}/cmdline").read_bytes():
                found.append(parent)
    return sorted(found)


def held(pids: list[int]) -> tuple[int, float]:
    """Return the open file descriptors and the resident MB of processes."""
    descriptors = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)
    status = (Path(f"/proc/{pid}/status").read_text() for pid in pids)
    return descriptors, sum(int(re.search(r"VmRSS:\s+(\d+)", text)[1]) for text in status) / 1024


def hostile(row: dict, count: int) -> Iterator[tuple[dict[str, str], bytes]]:
    """Yield headers and bodies that are wrong in form, type, size or encoding; the same ones each time."""
    draw = random.Random(0)
    good = json.dumps({"rows": [row]})
    names = list(row)
    kinds = [
        lambda: ({}, b"[" * draw.randint(1, 500_000)),
        lambda: ({}, b'{"rows":[' * draw.randint(1, 50_000)),
        lambda: ({}, json.dumps({"rows": [{**row, draw.choice(names): [[{}]] * draw.randint(1, 9)}]}).encode()),
        lambda: (
            {},
            good.replace(str(row[names[-1]]), draw.choice(["NaN", "-Infinity", "1e999", "9" * 4000])).encode(),
        ),
        lambda: ({}, json.dumps({"rows": [{**row, draw.choice(names): 10 ** draw.randint(30, 300)}]}).encode()),
        lambda: ({}, good.encode(draw.choice(["utf-16", "utf-32", "utf-16-le", "cp037"]))),
        lambda: ({}, draw.randbytes(draw.randint(1, 5000))),
        lambda: ({}, good[: draw.randint(1, len(good) - 2)].encode()),
        lambda: ({}, good.replace('"rows"', '"rows\\ud800"').encode()),
        lambda: ({}, json.dumps({"rows": [{**row, draw.choice(names): "\x00" * draw.randint(1, 99)}]}).encode()),
        lambda: ({}, json.dumps({"rows": [{f"{i}" * 50: i for i in range(draw.randint(1, 2000))}]}).encode()),
        lambda: ({}, json.dumps({"rows": [None] * draw.randint(1, 9000)}).encode()),
        lambda: ({"content-encoding": "gzip"}, gzip.compress(b" " * 10_000_000)),
        lambda: ({"content-type": draw.choice(["text/xml", "multipart/form-data", "*/*"])}, good.encode()),
        lambda: ({}, b" " * draw.randint(2_000_001, 9_000_000)),
    ]
    for number in range(count):
        yield kinds[number % len(kinds)]()


def send(address: str, headers: dict[str, str], body: bytes) -> tuple[int, str]:
    """Return status and text of the answer to a body, even to one that was not read to its end."""
    where = urlsplit(address)
    with socket.create_connection((where.hostname, where.port), timeout=20) as connection:
        lines = [f"POST /predict HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        with suppress(ConnectionError):
            connection.sendall("\r\n".join([*lines, "\r\n"]).encode() + body)
        head, _, text = received(connection).partition(b"\r\n\r\n")
    return int(head.split()[1]), text.decode()


def received(connection: socket.socket) -> bytes:
    parts = []
    with suppress(ConnectionError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)
