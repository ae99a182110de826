from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from host import written
from oci import World

from ml.errors import SourceError, UserError
from ml.operations import record
from ml.operations.record import Record, Scan


def test_a_record_sums_up_what_was_delivered(world: World) -> None:
    digest, found = world.made(1)

    assert (found.commit, found.run, found.content, found.reproduced) == (world.commits[1], 71, "content 1", "full")
    assert found.model == hashlib.sha256(b"model 1").hexdigest() == found.files["model.onnx"]
    assert (found.metrics, found.params) == ({"roc_auc": 0.7}, {"objective": {"metric": "roc_auc"}})
    assert found.outputs == {"metrics.json": hashlib.md5(b"{}", usedforsecurity=False).hexdigest()}
    assert (found.verdict.status, found.verdict.gates) == ("passed", {"floor": "passed"})
    assert (found.loadtest.status, found.loadtest.sentence) == ("passed", "fast")
    assert found.faults == []
    assert record.beside(world.registry, digest) == [found]


@pytest.mark.parametrize("status", ["failed", "not judged"])
def test_a_gate_in_the_way_fails_the_verdict(world: World, status: str) -> None:
    results = {"results": [{"gate": "harm", "status": status}, {"gate": "image", "status": "skipped"}]}

    _, found = world.made(1, files={"verdict.json": json.dumps(results).encode()})

    assert (found.verdict.status, found.verdict.sentence) == ("failed", f"harm {status}")
    assert found.faults == [f"its verdict is failed (harm {status})"]


def test_a_verdict_that_passes_over_a_gate_is_not_believed(world: World) -> None:
    _, found = world.made(1)
    forged = found.model_copy(update={"verdict": found.verdict.model_copy(update={"gates": {"harm": "failed"}})})

    assert forged.faults == ["its verdict passes over harm"]


def test_the_files_come_back_as_they_were(world: World, tmp_path: Path) -> None:
    digest, found = world.made(1)

    record.fetch(world.registry, digest, found, tmp_path / "out")

    assert {path.name for path in (tmp_path / "out").iterdir()} == {record.NAME, *found.files}
    assert (tmp_path / "out/model.onnx").read_bytes() == b"model 1"
    assert record.read((tmp_path / "out/record.json").read_bytes(), "it") == found


def test_a_record_that_is_not_beside_the_image_has_no_files(world: World, tmp_path: Path) -> None:
    digest, found = world.made(1)

    with pytest.raises(SourceError, match=r"lost the files of its record: deliver its commit again$"):
        record.fetch(world.registry, digest, found.model_copy(update={"run": 9}), tmp_path / "out")


def test_what_somebody_else_put_there_is_left_out(world: World, tmp_path: Path) -> None:
    digest, found = world.made(1)
    swapped = written(tmp_path / "model.onnx", b"another model")
    honest = written(tmp_path / "record.json", found.model_dump_json().encode())
    world.registry.attach(digest, record.KIND, {"record.json": honest, "model.onnx": swapped})
    world.registry.attach(digest, record.KIND, {"model.onnx": swapped})
    world.registry.attach(digest, record.KIND, {"record.json": written(tmp_path / "x.json", b'{"commit": "0"}')})

    assert record.beside(world.registry, digest) == [found]


def test_a_missing_file_is_named(world: World, tmp_path: Path) -> None:
    facts = {"commit": world.commits[1], "run": 7, "content": "", "reproduced": "full", "scan": Scan()}
    sources = {name: written(tmp_path / name, b"{}") for name in ("model.onnx", "metrics.json", "verdict.json")}

    with pytest.raises(UserError, match=r"^a record needs loadtest\.json: give it its place$"):
        record.make(sources, **facts)
    with pytest.raises(
        UserError, match=r"^nowhere/sbom\.json \(sbom\.json of the record\) is missing: the step that wr"
    ):
        record.make(
            {**sources, "loadtest.json": sources["metrics.json"], "sbom.json": Path("nowhere/sbom.json")}, **facts
        )


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"[]", "JSON: "), (b"{", "JSON: "), (b'{"commit": "main"}', "commit: String should match"), (b"\xff", "JSON: ")],
)
def test_what_is_no_record_is_one_line(content: bytes, said: str) -> None:
    with pytest.raises(SourceError, match=f"^it holds no record of a delivery: {said}") as told:
        record.read(content, "it")

    assert "\n" not in str(told.value)


def test_a_record_of_a_newer_project_is_read(world: World) -> None:
    _, found = world.made(1)

    newer = json.dumps({**found.model_dump(mode="json"), "version": 2, "colour": "green"})

    assert record.read(newer, "it") == Record(**{**found.model_dump(), "version": 2})
