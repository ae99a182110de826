from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import example
import pytest
from small import ENVIRONMENT, contract, write_project

from ml.serving import build
from ml.serving.build import MODEL, REQUIREMENTS, stage
from ml.serving.openapi import prediction_schema
from ml.serving.request import Contract

GOOD = {"carrier": "UA", "distance": 1000, "temp": 30}
PATIENCE = 60


class Answer(NamedTuple):
    status: int
    text: str
    headers: dict[str, str]

    @property
    def content(self) -> Any:
        return json.loads(self.text)


class Server:
    """The real service as `ml serve` starts it."""

    def __init__(self, project: Path, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        program = f"from pathlib import Path; from ml.serving.build import serve; serve(Path('.'), {self.port})"
        self.log = project / "serve.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program],
                cwd=project,
                env={**ENVIRONMENT, "BENTOML_HOME": str(project / ".bentoml"), **environment},
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

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, named, encode_chunked=hasattr(body, "__next__"))
            answer = connection.getresponse()
            return Answer(answer.status, answer.read().decode(), {k.lower(): v for k, v in answer.headers.items()})
        finally:
            connection.close()

    def slowly(self, beginning: bytes) -> bytes:
        """Send the beginning of a request and no more; return what comes back."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(beginning)
            return connection.recv(10_000)

    def predict(self, content: Any) -> Answer:
        return self.ask("POST", "/predict", json.dumps(content).encode())

    def count(self, name: str, *labels: str) -> float:
        """Return the sum of the metric's samples that have these labels."""
        lines = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", self.ask("GET", "/metrics").text, re.MULTILINE)
        found = [float(value) for given, value in lines if all(label in given for label in labels)]
        assert found, (name, labels)
        return sum(found)

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(20)

    def stop(self) -> None:
        if self.process.poll() is None:
            # BentoML's workers lead process groups of their own: only a clean end takes them along.
            self.process.terminate()
            self.process.wait(20)


def eventually(found: Callable[[], Any]) -> Any:
    """Return what is found as soon as it is something."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if result := found():
            return result
        time.sleep(0.05)
    pytest.fail("nothing in 10 s")


def log_of(server: Server) -> list[dict[str, Any]]:
    path = server.log.with_name("log.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def started(staging: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Return what `bentoml serve` says of a folder that it cannot serve."""
    return subprocess.run(
        [sys.executable, "-m", "bentoml", "serve", build.SERVICE, "--port", "0"],
        cwd=staging,
        env={**os.environ, "PYTHONPATH": str(staging), "BENTOML_HOME": str(staging / "home"), **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    project = write_project(tmp_path_factory.mktemp("served") / "project")
    told = {"ML_COMMIT": "abc123", "ML_VERSION": "v1.2.0", "ML_STAGE": "staging", "ML_LOG": str(project / "log.jsonl")}
    server = Server(project, **told)
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
    assert info == {
        "task": "binary",
        "target": "late",
        "fields": 3,
        "commit": "abc123",
        "version": "v1.2.0",
        "stage": "staging",
    }


def test_bad_rows_are_refused_and_counted_by_field_and_rule(server: Server) -> None:
    range_, type_ = 'rule="must be >= 1 and <= 10000"', 'rule="must be a whole number of at most 64 bits"'
    pairs = [('field="distance"', rule) for rule in (range_, type_)]
    before = [server.count("ml_rejected_rows_total", *pair) for pair in pairs]

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
    assert [server.count("ml_rejected_rows_total", *pair) for pair in pairs] == [count + 1 for count in before]


def test_an_unknown_category_is_scored_and_counted(server: Server) -> None:
    before = server.count("ml_unknown_categories_total", 'field="carrier"')

    answer = server.predict({"rows": [{**GOOD, "carrier": "ZZ"}]})

    assert answer.status == 200
    assert answer.content["predictions"][0]["score"] == pytest.approx(0.785835, abs=1e-6)
    assert server.count("ml_unknown_categories_total", 'field="carrier"') == before + 1


def test_field_names_that_clients_make_up_make_no_time_series(server: Server) -> None:
    server.predict({"rows": [{**GOOD, "made_up": 1}]})

    metrics = server.ask("GET", "/metrics").text

    assert "made_up" not in metrics
    assert server.count("ml_rejected_rows_total", "(none of the contract)", 'rule="unknown field"') >= 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(b"", "the body is not JSON", id="empty"),
        pytest.param(b'{"rows":', "the body is not JSON", id="cut-short"),
        pytest.param(b"\xff\xfe\x00", "the body is not JSON", id="not-text"),
        pytest.param(b"[" * 100_000, "the body is not JSON: depth limit exceeded", id="deep-list"),
        pytest.param(b'{"rows":' * 100_000, "the body is not JSON: depth limit exceeded", id="deep-object"),
        pytest.param(b"1" * 5000, "the body is not JSON", id="endless-number"),
        pytest.param(b"null", "the body must be", id="null"),
        pytest.param(b"[]", "the body must be", id="list"),
        pytest.param(b'"rows"', "the body must be", id="text"),
        pytest.param(b"{}", "the body must be", id="no-rows"),
        pytest.param(b'{"rows": []}', "the body must be", id="empty-rows"),
        pytest.param(b'{"rows": {"carrier": "UA"}}', "the body must be", id="one-object"),
        pytest.param(b'{"rows": [{}], "row": 1}', "the body must be", id="more-than-rows"),
        pytest.param(b'{"rows": [null, [[[]]], 1e99]}', "row 0: must be an object", id="no-objects"),
        pytest.param(b'{"rows": [{"carrier": NaN, "distance": 1}]}', "the body is not JSON", id="nan"),
        pytest.param(b'{"rows": [{"carrier": "UA", "distance": Infinity}]}', "the body is not JSON", id="infinity"),
        pytest.param(
            b'{"rows": [{"carrier": "UA", "distance": -1e400}]}',
            "the body is not JSON",
            id="huge-float",
        ),
        pytest.param(b'{"rows": [{"carrier": "UA", "distance": 1e39}]}', "row 0, distance:", id="beyond-float32"),
        pytest.param(
            b'{"rows": [{"carrier": "UA", "distance": %s}]}' % (b"9" * 4000),
            "the body is not JSON: number is infinity",
            id="huge",
        ),
        pytest.param(b'{"rows": [{"carrier": "\\ud800", "distance": 1}]}', "the body is not JSON", id="half"),
        pytest.param(b'{"rows": [{"carrier": "UA", "distance": "%s"}]}' % (b"x" * 1_000_000), "row 0", id="long-value"),
        pytest.param(b'{"rows": [{"%s": 1}]}' % (b"x" * 1_000_000), "row 0, xxx", id="long-name"),
    ],
)
@pytest.mark.parametrize("headers", [{}, {"content_type": "Application/JSON; charset=utf-8"}], ids=["none", "json"])
def test_a_malformed_body_is_refused_in_one_line(
    server: Server, body: bytes, message: str, headers: dict[str, str]
) -> None:
    answer = server.ask("POST", "/predict", body, **headers)

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


@pytest.mark.parametrize(
    "headers",
    [
        {"content_type": "multipart/form-data"},
        {"content_type": "application/vnd.bentoml+pickle"},
        {"content_type": "text/plain"},
        {"content_encoding": "gzip"},
        {"content_encoding": "br", "content_type": "application/json"},
    ],
    ids=["form", "pickle", "text", "gzip", "br"],
)
def test_only_plain_json_is_taken(server: Server, headers: dict[str, str]) -> None:
    answer = server.ask("POST", "/predict", json.dumps({"rows": [GOOD]}).encode(), **headers)

    assert answer.status == 415
    assert answer.content["problems"] == []
    assert next(iter(headers.values())) in answer.content["error"]


def test_a_body_of_the_largest_size_is_answered_and_one_byte_more_is_not(server: Server) -> None:
    body = json.dumps({"rows": [GOOD]}).encode()

    answers = [server.ask("POST", "/predict", body.ljust(size)) for size in (2_000_000, 2_000_001)]

    assert [answer.status for answer in answers] == [200, 413]
    assert answers[1].content == {"error": "the body is larger than 2000000 bytes", "problems": []}


def test_an_endless_body_is_cut_off(server: Server) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1_000_000
            yield b" " * 1_000_000

    # The server has answered and gone, so that the client may fail to send the rest.
    with contextlib.suppress(ConnectionError):
        assert server.ask("POST", "/predict", chunks()).status == 413

    assert sent < 100_000_000


def test_the_largest_number_of_rows_is_answered_and_one_row_more_is_not(server: Server) -> None:
    row = {"carrier": "UA", "distance": 1}

    answers = [server.predict({"rows": [row] * count}) for count in (5000, 5001)]

    assert [answer.status for answer in answers] == [200, 400]
    assert len(answers[0].content["predictions"]) == 5000
    assert answers[1].content["error"] == "5001 rows, at most 5000 in one request"


def test_a_large_body_has_the_answers_of_its_rows(server: Server) -> None:
    rows = [{"carrier": "UA" if i % 2 else "ZZ", "distance": i + 1, "temp": None if i % 3 else i} for i in range(900)]

    whole = server.predict({"rows": rows}).content["predictions"]

    assert whole[::97] == [server.predict({"rows": [row]}).content["predictions"][0] for row in rows[::97]]
    refused = server.predict({"rows": [*rows, {"carrier": "UA"}]})
    assert (refused.status, refused.content["error"]) == (400, "row 900, distance: required")


def test_large_bodies_at_once_have_the_answers_of_their_own_rows(server: Server) -> None:
    batches = [[{"carrier": "UA", "distance": 1000 * at + i + 1} for i in range(900)] for at in range(8)]
    wanted = [server.predict({"rows": rows}).content["predictions"] for rows in batches]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda rows: server.predict({"rows": rows}).content["predictions"], batches * 3))

    assert wanted[0] != wanted[1]
    assert found == wanted * 3


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/predict", "POST"), ("PUT", "/predict", "POST"), ("POST", "/info", "GET"), ("POST", "/docs.json", "GET")],
)
def test_a_wrong_method_is_told_the_right_one(server: Server, method: str, path: str, allowed: str) -> None:
    answer = server.ask(method, path)

    assert (answer.status, answer.headers["allow"]) == (405, allowed)
    assert answer.content["error"] == f"{method} is not allowed, {allowed} is"


@pytest.mark.parametrize("path", ["/predict", "/info", "/livez", "/readyz", "/metrics", "/docs.json", "/nowhere"])
def test_every_answer_carries_the_id_of_its_request(server: Server, path: str) -> None:
    given = server.ask("GET", path, x_request_id="order-66/a.b:c_d=+")
    made = [server.ask("GET", path).headers["x-request-id"] for _ in range(2)]
    strange = server.ask("GET", path, x_request_id="<script>")

    assert given.headers["x-request-id"] == "order-66/a.b:c_d=+"
    assert re.fullmatch("[0-9a-f]{16}", made[0])
    assert made[0] != made[1]
    assert re.fullmatch("[0-9a-f]{16}", strange.headers["x-request-id"])


def test_every_prediction_is_logged_with_its_row_and_request(server: Server) -> None:
    rows = [GOOD, {"carrier": "ZZ", "distance": 5}]
    answer = server.ask("POST", "/predict", json.dumps({"rows": rows}), x_request_id="logged")

    lines = eventually(lambda: [line for line in log_of(server) if line["request"] == "logged"])

    assert [line["row"] for line in lines] == rows
    assert [line["answer"] for line in lines] == answer.content["predictions"]
    assert {line["model"] for line in lines} == {answer.content["model"]}
    assert abs((datetime.now(UTC) - datetime.fromisoformat(lines[0]["time"])).total_seconds()) < 60


def test_scores_are_counted_in_a_histogram_and_the_model_is_named(server: Server) -> None:
    before = server.count("ml_score_count"), server.count("ml_score_bucket", 'le="0.5"')

    server.predict({"rows": [GOOD, {"carrier": "AA", "distance": 1, "temp": -60}]})

    assert server.count("ml_score_count") == before[0] + 2
    assert server.count("ml_score_bucket", 'le="0.5"') == before[1] + 1
    model = server.ask("GET", "/info").content["model"]
    assert server.count("ml_model_info", f'model="{model}"', 'version="v1.2.0"', 'stage="staging"') == 1


def test_the_documentation_describes_the_fields_of_the_contract(server: Server) -> None:
    document = server.ask("GET", "/docs.json").content
    row = document["components"]["schemas"]["Row"]

    assert row["properties"] == {
        "carrier": {
            "type": "string",
            "description": "Airline. Known: AA, UA; others are scored as unknown",
            "example": "UA",
        },
        "distance": {"type": "integer", "description": "Miles", "example": 1000, "minimum": 1, "maximum": 10_000},
        "temp": {
            "type": "number",
            "description": "Temperature, °F",
            "nullable": True,
            "minimum": -60,
            "maximum": 3.4028234663852886e38,
        },
    }
    assert row["required"] == ["carrier", "distance"]


def test_the_documentation_names_project_routes_and_errors_with_real_examples(server: Server) -> None:
    document = server.ask("GET", "/docs.json").content
    predict = document["paths"]["/predict"]["post"]

    assert (document["info"]["title"], document["info"]["version"]) == ("small-model", "v1.2.0")
    assert set(document["paths"]) == {"/predict", "/info", "/livez", "/readyz", "/healthz", "/metrics"}
    assert set(predict["responses"]) == {"200", "400", "408", "413", "415", "503", "504"}
    assert set(document["components"]["schemas"]["Rows"]["properties"]["rows"]) >= {"maxItems", "minItems"}
    body = predict["requestBody"]["content"]["application/json"]["example"]
    shown = {
        status: predict["responses"][status]["content"]["application/json"]["example"] for status in ("200", "400")
    }
    assert server.predict(body).content == shown["200"]
    assert server.predict({"rows": [{**body["rows"][0], "unknown": 1}]}).content == shown["400"]
    assert (
        server.ask("GET", "/info").content
        == document["paths"]["/info"]["get"]["responses"]["200"]["content"]["application/json"]["example"]
    )


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
import json
print(json.loads(predictor.respond(json.dumps({{"rows": [{GOOD}]}}).encode(), b"x"))["predictions"][0]["decision"])
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
def test_the_documentation_follows_the_task(task: str) -> None:
    found = prediction_schema(Contract.parse(contract(task)))

    assert found["required"] == {"multiclass": ["label", "probabilities"], "regression": ["value"]}[task]


def test_settings_of_the_project_hold_and_batches_have_the_answers_of_their_rows(tmp_path: Path) -> None:
    project = write_project(tmp_path / "project")
    settings = example.PARAMS.replace("batching: false", "batching: {rows: 64, milliseconds: 1000}")
    settings = settings.replace("    rows: 5000", "    rows: 7").replace("timeout: 10", "timeout: 1")
    (project / "params.yaml").write_text(settings)
    server = Server(project, ML_WORKERS="2", ML_LOG="stdout")
    rows = [{**GOOD, "distance": i + 1} for i in range(40)]
    try:
        server.wait_until_ready()
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda row: server.predict({"rows": [row]}), rows))
        alone = [server.predict({"rows": rows[i : i + 4]}).content["predictions"] for i in range(0, 40, 4)]
        bad, many = server.predict({"rows": [{}]}), server.predict({"rows": rows[:8]})
        slow = server.slowly(b'POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{"rows"')
        metrics = server.ask("GET", "/metrics").text
    finally:
        server.stop()

    assert [answer.content["predictions"][0] for answer in answers] == [one for four in alone for one in four]
    assert (bad.status, bad.content["error"]) == (400, "row 0, carrier: required (and 1 more)")
    assert (many.status, many.content["error"]) == (400, "8 rows, at most 7 in one request")
    assert b" 408 " in slow
    assert "bentoml_service_adaptive_batch_size" in metrics
    assert server.log.read_text().count('"answer": ') == 80


def test_a_service_that_goes_down_first_says_so_and_still_answers(tmp_path: Path) -> None:
    server = Server(write_project(tmp_path / "project"), ML_DRAIN="2")
    try:
        server.wait_until_ready()
        started = time.monotonic()
        server.process.terminate()
        eventually(lambda: server.ask("GET", "/readyz").status == 503)
        answer = server.predict({"rows": [GOOD]})
        code = server.process.wait(20)
    finally:
        server.stop()

    assert answer.status == 200
    assert answer.headers["connection"] == "close"
    assert code == 0
    assert time.monotonic() - started > 2


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.onnx", b"cut", "model.onnx is damaged or of another build: run ml build again"),
        ("model.onnx", None, "No such file"),
        ("contract.json", b'{"version": 2}', "contract version 2, must be 1: run make pipeline"),
        ("contract.json", b"{", "Expecting property name"),
        ("settings.json", None, "settings.json is missing: run ml build or make serve, which write it"),
    ],
    ids=["damaged", "no-model", "other-version", "cut-contract", "no-settings"],
)
def test_what_is_not_as_it_was_built_refuses_to_start_in_one_line(
    project: Path, file: str, content: bytes | None, message: str
) -> None:
    staging = stage(project, project / MODEL, project / REQUIREMENTS)
    (staging / file).unlink()
    if content is not None:
        (staging / file).write_bytes(content)

    found = started(staging)

    assert found.returncode == 1
    assert len(found.stderr.splitlines()) == 1, found.stderr
    assert found.stderr.startswith("ml: ")
    assert message in found.stderr


@pytest.mark.parametrize("variable", ["ML_WORKERS", "ML_DRAIN"])
def test_an_environment_that_says_nonsense_refuses_to_start_in_one_line(project: Path, variable: str) -> None:
    staging = stage(project, project / MODEL, project / REQUIREMENTS)

    found = started(staging, **{variable: "many"})

    assert found.returncode == 1
    assert found.stderr.splitlines()[-1].startswith(f"ml: {variable}=many must be a number of at least")
    assert "Traceback" not in found.stderr
