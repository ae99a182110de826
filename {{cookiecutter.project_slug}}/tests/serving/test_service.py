from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from small import ENVIRONMENT, contract, write_project

from ml.serving.build import MODEL, REQUIREMENTS, stage

GOOD = {"carrier": "UA", "distance": 1000, "temp": 30}
PATIENCE = 60


class Answer(NamedTuple):
    status: int
    text: str

    @property
    def content(self) -> Any:
        return json.loads(self.text)


class Server:
    """The real service as `ml serve` starts it."""

    def __init__(self, project: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        program = f"from pathlib import Path; from ml.serving.build import serve; serve(Path('.'), {self.port})"
        self.log = project / "serve.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program],
                cwd=project,
                env={**ENVIRONMENT, "BENTOML_HOME": str(project / ".bentoml")},
                stdout=log,
                stderr=log,
            )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.ask("GET", "/readyz").status == 200:
                    return
            except OSError:
                time.sleep(0.1)
        pytest.fail(f"the service did not become ready:\n{self.log.read_text()}")

    def ask(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, {"content-type": kind})
            answer = connection.getresponse()
            return Answer(answer.status, answer.read().decode())
        finally:
            connection.close()

    def predict(self, content: Any) -> Answer:
        return self.ask("POST", "/predict", json.dumps(content).encode())

    def count(self, name: str, field: str) -> float:
        text = self.ask("GET", "/metrics").text
        return float(re.search(rf'^{name}_total{{field="{re.escape(field)}"}} (\S+)$', text, re.MULTILINE).group(1))

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(20)

    def stop(self) -> None:
        if self.process.poll() is None:
            # BentoML's workers lead process groups of their own: only a clean end takes them along.
            self.process.terminate()
            self.process.wait(20)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(write_project(tmp_path_factory.mktemp("served") / "project"))
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def test_rows_are_scored_in_their_order_by_the_model_that_the_answer_names(server: Server) -> None:
    answer = server.predict({"rows": [GOOD, {"carrier": "AA", "distance": 1.0}]})

    assert answer.status == 200
    assert answer.content == {
        "model": server.ask("GET", "/info").content["model"],
        "predictions": [
            {"score": pytest.approx(0.908877, abs=1e-6), "decision": True},
            {"score": pytest.approx(0.50025, abs=1e-6), "decision": True},
        ],
    }


def test_info_says_which_model_answers(server: Server) -> None:
    info = server.ask("GET", "/info").content

    assert re.fullmatch("[0-9a-f]{64}", info.pop("model"))
    assert info == {"task": "binary", "target": "late", "fields": 3}


def test_bad_rows_are_refused_and_counted_by_field(server: Server) -> None:
    before = server.count("ml_rejected_rows", "distance")

    answer = server.predict({"rows": [GOOD, {**GOOD, "distance": 0}, {**GOOD, "distance": "far", "tmp": [1]}]})

    assert answer.status == 400
    assert answer.content == {
        "error": "row 1, distance: must be >= 1 and <= 10000 (and 2 more)",
        "problems": [
            {"row": 1, "field": "distance", "value": 0, "rule": "must be >= 1 and <= 10000"},
            {"row": 2, "field": "tmp", "value": "a list", "rule": "unknown field, did you mean temp?"},
            {"row": 2, "field": "distance", "value": "far", "rule": "must be a whole number of at most 64 bits"},
        ],
    }
    assert server.count("ml_rejected_rows", "distance") == before + 2


def test_an_unknown_category_is_scored_and_counted(server: Server) -> None:
    before = server.count("ml_unknown_categories", "carrier")

    answer = server.predict({"rows": [{**GOOD, "carrier": "ZZ"}]})

    assert answer.status == 200
    assert answer.content["predictions"][0]["score"] == pytest.approx(0.785835, abs=1e-6)
    assert server.count("ml_unknown_categories", "carrier") == before + 1


def test_field_names_that_clients_make_up_make_no_time_series(server: Server) -> None:
    server.predict({"rows": [{**GOOD, "made_up": 1}]})

    metrics = server.ask("GET", "/metrics").text

    assert "made_up" not in metrics
    assert server.count("ml_rejected_rows", "(none of the contract)") >= 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(b"", "the body is not JSON", id="empty"),
        pytest.param(b'{"rows":', "the body is not JSON", id="cut-short"),
        pytest.param(b"\xff\xfe\x00", "the body is not JSON", id="not-text"),
        pytest.param(b"[" * 100_000, "the body is nested too deeply", id="deep-list"),
        pytest.param(b'{"rows":' * 100_000, "the body is nested too deeply", id="deep-object"),
        pytest.param(b"1" * 5000, "the body is not JSON", id="endless-number"),
        pytest.param(b"null", "the body must be", id="null"),
        pytest.param(b"[]", "the body must be", id="list"),
        pytest.param(b'"rows"', "the body must be", id="text"),
        pytest.param(b"{}", "the body must be", id="no-rows"),
        pytest.param(b'{"rows": []}', "the body must be", id="empty-rows"),
        pytest.param(b'{"rows": {"carrier": "UA"}}', "the body must be", id="one-object"),
        pytest.param(b'{"rows": [{}], "row": 1}', "the body must be", id="more-than-rows"),
        pytest.param(b'{"rows": [null, [[[]]], 1e999]}', "row 0: must be an object", id="no-objects"),
        pytest.param(b'{"rows": [{"carrier": NaN, "distance": 1}]}', "row 0, carrier: required", id="nan"),
        pytest.param(b'{"rows": [{"carrier": "UA", "distance": Infinity}]}', "row 0, distance:", id="infinity"),
        pytest.param(b'{"rows": [{"carrier": "UA", "distance": -1e400}]}', "row 0, distance:", id="huge-float"),
        pytest.param(b'{"rows": [{"carrier": "UA", "distance": %s}]}' % (b"9" * 4000), "row 0, distance:", id="huge"),
        pytest.param(b'{"rows": [{"carrier": "\\ud800", "distance": 1}]}', "row 0, carrier: must be text", id="half"),
        pytest.param(b'{"rows": [{"carrier": "UA", "distance": "%s"}]}' % (b"x" * 1_000_000), "row 0", id="long-value"),
        pytest.param(b'{"rows": [{"%s": 1}]}' % (b"x" * 1_000_000), "row 0, xxx", id="long-name"),
    ],
)
@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data", "application/vnd.bentoml+arrow"])
def test_a_malformed_body_is_refused_in_one_line(server: Server, body: bytes, message: str, kind: str) -> None:
    answer = server.ask("POST", "/predict", body, kind)

    assert answer.status == 400
    assert set(answer.content) == {"error", "problems"}
    assert answer.content["error"].startswith(message)
    assert "\n" not in answer.content["error"]
    assert len(answer.text) < 3000


def test_many_problems_are_counted_and_the_first_are_shown(server: Server) -> None:
    answer = server.predict({"rows": [{f"no{i}": 1 for i in range(500)}] * 20})

    assert answer.status == 400
    assert answer.content["error"].endswith("(and 10039 more)")
    assert len(answer.content["problems"]) == 20


def test_the_documentation_describes_the_fields_of_the_contract(server: Server) -> None:
    document = server.ask("GET", "/docs.json").content
    rows = document["components"]["schemas"]["predict__Input"]["properties"]["rows"]

    assert rows["items"]["properties"] == {
        "carrier": {
            "type": "string",
            "description": "Airline. Known: AA, UA; others are scored as unknown",
            "example": "UA",
        },
        "distance": {"type": "integer", "description": "Miles", "example": 1000, "minimum": 1, "maximum": 10_000},
        "temp": {"type": "number", "description": "Temperature, °F", "nullable": True, "minimum": -60},
    }
    assert rows["items"]["required"] == ["carrier", "distance"]
    assert server.predict({"rows": rows["example"]}).status == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_the_service_says_that_it_lives_and_is_ready(server: Server, path: str) -> None:
    assert server.ask("GET", path).status == 200


def test_the_log_holds_no_stack_trace(server: Server) -> None:
    server.ask("POST", "/predict", b"{")
    server.predict({"rows": [1]})

    assert "Traceback" not in server.log.read_text()


def test_interrupting_ends_the_service_cleanly(tmp_path: Path) -> None:
    server = Server(write_project(tmp_path / "project"))
    try:
        server.wait_until_ready()

        assert server.interrupt() == 0
        assert "Traceback" not in server.log.read_text()
        with pytest.raises(OSError, match="refused"):
            server.ask("GET", "/livez")
    finally:
        server.stop()


def test_the_service_imports_neither_pandas_nor_its_company(project: Path) -> None:
    staging = stage(project, project / MODEL, project / REQUIREMENTS)
    program = f"""
import sys
from ml.serving.service import Predictor
predictor = Predictor.inner()
print(predictor.answer([{GOOD}])["predictions"][0]["decision"])
import ml
print(ml.__file__)
print(sorted({{"pandas", "sklearn", "mlflow", "pandera", "onnx", "bentoml"}} & set(sys.modules)))
"""

    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=staging,
        env={**os.environ, "PYTHONPATH": str(staging), "BENTOML_HOME": str(project / ".bentoml")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert found.stdout.splitlines() == ["True", str(staging / "ml/__init__.py"), "['bentoml']"], found.stderr


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_the_documentation_follows_the_task(task: str, tmp_path: Path) -> None:
    project = write_project(tmp_path / "project", task)
    staging = stage(project, project / MODEL, project / REQUIREMENTS)
    program = """
import json
from ml.serving.service import CONTRACT, answer_schema
print(json.dumps(answer_schema(CONTRACT)["properties"]["predictions"]["items"]["required"]))
"""

    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=staging,
        env={**os.environ, "PYTHONPATH": str(staging), "BENTOML_HOME": str(project / ".bentoml")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert json.loads(found.stdout) == {"multiclass": ["label", "probabilities"], "regression": ["value"]}[task]
    assert contract(task)["task"] == task
