from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small import ENVIRONMENT

from ml.serving import log
from ml.serving.log import Files, PredictionLog, opened

ROW = {"carrier": "UA", "name": "Ada", "temp": None}
ANSWER = {"score": 0.5, "decision": True}


class Dropped(dict):
    """Counters as prometheus_client has them."""

    class One:
        def __init__(self, counts: Counter[str], reason: str) -> None:
            self.counts, self.reason = counts, reason

        def inc(self, amount: int) -> None:
            self.counts[self.reason] += amount

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        super().__init__({reason: self.One(self.counts, reason) for reason in ("full", "disk")})


def begun(write: Callable[[bytes], Any], personal: set[str] = frozenset(), **settings: Any) -> PredictionLog:
    return PredictionLog(
        write,
        "abc",
        personal,
        settings.get("share", 1.0),
        settings.get("queue", 100),
        settings.get("dropped", Dropped()),
    )


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_holds_request_time_model_row_and_answer() -> None:
    written: list[bytes] = []
    sink = begun(written.append)

    sink.put("r1", [ROW, {"temp": float("nan"), "carrier": "Zürich"}], [ANSWER, ANSWER])
    sink.close()

    first, second = (json.loads(line) for line in b"".join(written).decode().splitlines())
    assert {**first, "time": ""} == {"request": "r1", "time": "", "model": "abc", "row": ROW, "answer": ANSWER}
    assert first["time"].endswith("+00:00")
    assert second["row"] == {"temp": None, "carrier": "Zürich"}


def test_personal_fields_are_masked_and_missing_ones_stay_missing() -> None:
    written: list[bytes] = []
    sink = begun(written.append, {"name", "temp", "age"})
    row = dict(ROW)

    sink.put("r1", [row], [ANSWER])
    sink.close()

    assert json.loads(written[0])["row"] == {"carrier": "UA", "name": "***", "temp": None}
    assert row == ROW


def test_a_share_of_requests_is_logged_whole() -> None:
    written: list[bytes] = []
    sink = begun(written.append, share=0.3, queue=10_000)

    for number in range(1000):
        sink.put(str(number), [ROW, ROW], [ANSWER, ANSWER])
    sink.close()

    requests = Counter(json.loads(line)["request"] for line in b"".join(written).decode().splitlines())
    assert 200 < len(requests) < 400
    assert set(requests.values()) == {2}


def test_a_stuck_disk_holds_up_no_request_and_its_drops_are_counted(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "stuck")
    dropped = Dropped()
    sink = begun(Files(tmp_path / "stuck", 10**6, 2), dropped=dropped, queue=10)
    sink.put("first", [ROW], [ANSWER])
    time.sleep(0.1)

    slowest = 0.0
    for number in range(500):
        started = time.perf_counter()
        sink.put(str(number), [ROW], [ANSWER])
        slowest = max(slowest, time.perf_counter() - started)

    assert slowest < 0.05
    assert dropped.counts == {"full": 491}
    # A reader sets the thread free.
    threading.Thread(target=(tmp_path / "stuck").read_bytes, daemon=True).start()
    sink.close()


def test_a_request_with_more_rows_than_may_wait_is_dropped_whole() -> None:
    written: list[bytes] = []
    dropped = Dropped()
    sink = begun(written.append, dropped=dropped, queue=3)

    sink.put("many", [ROW] * 4, [ANSWER] * 4)
    sink.put("few", [ROW] * 3, [ANSWER] * 3)
    sink.close()

    assert dropped.counts == {"full": 4}
    assert b"".join(written).count(b"few") == 3


def test_a_full_disk_loses_lines_which_are_counted_and_is_tried_again() -> None:
    written: list[bytes] = []
    dropped, full = Dropped(), True

    def write(lines: bytes) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(lines)

    sink = begun(write, dropped=dropped)
    sink.put("lost", [ROW, ROW], [ANSWER, ANSWER])
    while not dropped.counts:
        time.sleep(0.01)
    full = False
    sink.put("kept", [ROW], [ANSWER])
    sink.close()

    assert dropped.counts == {"disk": 2}
    assert json.loads(written[0])["request"] == "kept"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_device_without_space_is_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    dropped = Dropped()
    sink = begun(Files(tmp_path / "full", 10**6, 2), dropped=dropped)

    sink.put("lost", [ROW], [ANSWER])
    sink.close()

    assert dropped.counts == {"disk": 1}


def test_a_shutdown_waits_for_a_stuck_disk_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "PATIENCE", 0.2)
    release = threading.Event()
    sink = begun(lambda lines: release.wait())
    sink.put("stuck", [ROW], [ANSWER])

    started = time.monotonic()
    sink.close()

    assert time.monotonic() - started < 1
    release.set()


def test_full_files_are_moved_aside_and_only_so_many_are_kept(tmp_path: Path) -> None:
    write = Files(tmp_path / "new/log.jsonl", 30, 3)

    for number in range(10):
        write(b'{"line": %d}\n' % number)

    assert {path.name: path.read_text() for path in (tmp_path / "new").iterdir() if path.suffix != ".lock"} == {
        "log.jsonl": '{"line": 8}\n{"line": 9}\n',
        "log.jsonl.1": '{"line": 6}\n{"line": 7}\n',
        "log.jsonl.2": '{"line": 4}\n{"line": 5}\n',
    }


def test_one_file_begins_anew(tmp_path: Path) -> None:
    write = Files(tmp_path / "log.jsonl", 20, 1)

    for number in range(3):
        write(b'{"line": %d}\n' % number)

    assert (tmp_path / "log.jsonl").read_text() == '{"line": 2}\n'


def test_processes_that_share_a_file_lose_and_mix_no_line(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from ml.serving.log import Files\n"
        "write = Files(Path('log.jsonl'), 5000, 100)\n"
        'for i in range(300): write(b\'{"writer": %s, "line": %d}\\n\' % (sys.argv[1].encode(), i))'
    )

    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(number)], cwd=tmp_path, env=ENVIRONMENT)
        for number in range(3)
    ]

    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    lines = [line for path in tmp_path.glob("log.jsonl*") if path.suffix != ".lock" for line in lines_of(path)]
    assert Counter(line["writer"] for line in lines) == {0: 300, 1: 300, 2: 300}
    assert len({(line["writer"], line["line"]) for line in lines}) == 900


def test_the_settings_choose_nothing_or_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    settings = {"to": "none", "share": 1.0, "bytes": 1000, "files": 2, "queue": 10}
    assert opened(settings, "abc", set(), Dropped()) is None

    sink = opened({**settings, "to": "stdout"}, "abc", set(), Dropped())
    sink.put("r1", [ROW], [ANSWER])
    sink.close()

    assert json.loads(capfd.readouterr().out)["request"] == "r1"
