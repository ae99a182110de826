from __future__ import annotations

import hashlib
import json
import re
import socket
from pathlib import Path
from typing import Any

import onnx
import pandera.pandas as pa
import pytest
from pandera.typing import Series
from small import contract, small_model

from ml.errors import UserError
from ml.pipeline import schema
from ml.serving import build
from ml.serving.build import MODEL, REQUIREMENTS, changed_fields, content_hash, stage


def staged(project: Path) -> Path:
    return stage(project, project / MODEL, project / REQUIREMENTS)


@pytest.fixture
def unchanged_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "refuse_changed_schema", lambda trained: None)


def test_the_staging_folder_holds_what_serving_needs_and_nothing_else(project: Path) -> None:
    (project / "build/bento").mkdir(parents=True)
    (project / "build/bento/left-over").touch()

    folder = staged(project)

    assert folder == project / "build/bento"
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "bentofile.yaml",
        "contract.json",
        "ml/__init__.py",
        "ml/errors.py",
        "ml/serving/__init__.py",
        "ml/serving/body.py",
        "ml/serving/log.py",
        "ml/serving/metrics.py",
        "ml/serving/openapi.py",
        "ml/serving/request.py",
        "ml/serving/routes.py",
        "ml/serving/service.py",
        "ml/serving/settings.py",
        "model.onnx",
        "requirements.txt",
        "settings.json",
    ]
    assert [path.name for path in folder.parent.iterdir()] == ["bento"]
    assert (folder / "requirements.txt").read_bytes() == (project / REQUIREMENTS).read_bytes()
    sha256 = hashlib.sha256((project / MODEL).read_bytes()).hexdigest()
    assert json.loads((folder / "contract.json").read_text()) == {**contract(), "model": {"sha256": sha256}}


def test_the_bento_runs_on_the_python_that_the_project_chose(project: Path) -> None:
    (project / ".python-version").write_text("3.13\n")

    assert json.loads((staged(project) / "bentofile.yaml").read_text())["docker"] == {"python_version": "3.13"}


def test_no_machine_path_is_staged(project: Path) -> None:
    content = b"".join(path.read_bytes() for path in staged(project).rglob("*") if path.is_file())

    assert str(project).encode() not in content


def test_the_same_inputs_have_the_same_version_and_another_byte_another(project: Path) -> None:
    first = content_hash(staged(project))
    again = content_hash(staged(project))
    (project / REQUIREMENTS).write_text("bentoml==1.4.39\n")
    other = content_hash(staged(project))

    assert first == again
    assert other != first
    assert re.fullmatch("[0-9a-f]{16}", first)


def test_a_name_and_its_content_do_not_run_into_each_other(tmp_path: Path) -> None:
    for folder, name, content in (("one", "ab", "c"), ("two", "a", "bc")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(content)

    assert content_hash(tmp_path / "one") != content_hash(tmp_path / "two")


def without_date(bento: Path) -> dict[str, bytes]:
    files = {path.relative_to(bento).as_posix(): path.read_bytes() for path in bento.rglob("*") if path.is_file()}
    return {**files, "bento.yaml": re.sub(rb"creation_time: .*", b"", files["bento.yaml"])}


@pytest.mark.usefixtures("unchanged_schema")
def test_the_same_inputs_make_one_bento_the_same_everywhere_but_for_its_date(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / ".python-version").write_text("3.13\n")
    monkeypatch.delenv("BENTOML_HOME", raising=False)
    tag = build.build(project)
    bento = project / ".bentoml/bentos" / tag.replace(":", "/")
    made = (bento / "bento.yaml").read_text()
    assert capsys.readouterr().out == ""

    again = build.build(project)
    monkeypatch.setenv("BENTOML_HOME", str(project / "other"))
    build.build(project)

    assert tag == again == f"small-model:{content_hash(project / 'build/bento')}"
    assert capsys.readouterr().out == f"{tag} is built already: nothing has changed\n"
    assert (bento / "bento.yaml").read_text() == made
    assert without_date(bento) == without_date(project / "other/bentos" / tag.replace(":", "/"))
    for path in ("model.onnx", "contract.json", "ml/errors.py", "ml/serving/request.py", "ml/serving/service.py"):
        assert (bento / "src" / path).read_bytes() == (project / "build/bento" / path).read_bytes()
    lines = (bento / "env/python/requirements.txt").read_text().splitlines()
    assert (project / REQUIREMENTS).read_text().splitlines() == lines[:2]
    assert "FROM python:3.13-slim" in (bento / "env/docker/Dockerfile").read_text()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("models/model.onnx", "models/model.onnx is missing: run make pipeline"),
        ("requirements/serving.txt", "requirements/serving.txt is missing: run make lock"),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(project: Path, path: str, message: str) -> None:
    (project / path).unlink()

    with pytest.raises(UserError) as error:
        build.build(project)

    assert str(error.value) == message
    assert not (project / "build").exists()


def test_a_model_without_a_contract_is_refused(project: Path) -> None:
    model = onnx.load_from_string(small_model(contract()))
    del model.metadata_props[:]
    (project / MODEL).write_bytes(model.SerializeToString())

    with pytest.raises(UserError, match="is not a model of this project"):
        staged(project)


class Request(pa.DataFrameModel):
    """The request of the small model, but for the first and the last field."""

    carrier: Series[str] = pa.Field(isin=["AA"], metadata={"description": "Airline", "example": "UA"})
    distance: Series[int] = pa.Field(
        in_range={"min_value": 1, "max_value": 10_000}, metadata={"description": "Miles", "example": 1000}
    )


def test_a_model_older_than_its_schema_is_not_built(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "Request", Request)

    with pytest.raises(UserError) as error:
        build.build(project)

    assert str(error.value) == (
        "schema.py has changed since models/model.onnx was trained (field carrier, temp): run make pipeline"
    )
    assert not (project / ".bentoml").exists()


@pytest.mark.parametrize(
    ("trained", "changed"),
    [
        ([{"name": "a", "optional": False}, {"name": "b"}], []),
        ([{"name": "a", "optional": True}, {"name": "b"}], ["a"]),
        ([{"name": "a", "optional": False}], ["b"]),
        ([{"name": "a", "optional": False}, {"name": "b"}, {"name": "c"}], ["c"]),
        ([{"name": "b"}, {"name": "a", "optional": False}], ["a", "b"]),
    ],
    ids=["same", "changed", "added", "removed", "moved"],
)
def test_fields_that_changed_are_named(trained: list[dict[str, Any]], changed: list[str]) -> None:
    assert changed_fields([{"name": "a", "optional": False}, {"name": "b"}], trained) == changed


def test_a_port_that_is_taken_is_one_line_before_anything_starts(project: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(UserError, match=rf"^port {port} of 127\.0\.0\.1 cannot be used \(Address already in use\)"):
            build.serve(project, port)
