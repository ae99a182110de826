from __future__ import annotations

import json
from pathlib import Path

import example
import pytest
from small import write_project
from test_build import staged

from ml.errors import UserError
from ml.pipeline import params
from ml.serving.build import content_hash
from ml.serving.settings import Settings


@pytest.fixture
def path(project: Path) -> Path:
    return staged(project) / "settings.json"


def test_a_project_without_the_section_has_the_defaults(project: Path, path: Path) -> None:
    found = Settings.read(path, {})

    assert (found.name, found.workers, found.timeout, found.drain) == ("small-model", 1, 10, 5)
    assert found.batching is None
    assert found.limits == {"bytes": 2_000_000, "rows": 5000}
    assert found.log == {"to": "none", "share": 1.0, "bytes": 100_000_000, "files": 5, "queue": 10_000}
    assert (found.commit, found.version, found.stage) == (None, None, None)


def test_the_defaults_are_what_a_written_section_says() -> None:
    assert params.parse(example.PARAMS, "params.yaml").serve == params.Serve()


def test_the_section_is_staged_and_part_of_the_version(tmp_path: Path) -> None:
    project = write_project(tmp_path / "project")
    first = content_hash(staged(project))
    (project / "params.yaml").write_text(example.PARAMS.replace("workers: 1", "workers: 3"))

    folder = staged(project)

    assert json.loads((folder / "settings.json").read_text())["workers"] == 3
    assert content_hash(folder) != first


def test_the_environment_goes_before_the_file(path: Path) -> None:
    told = {"ML_WORKERS": "4", "ML_DRAIN": "0.5", "ML_LOG": "stdout", "ML_STAGE": "production", "ML_COMMIT": ""}

    found = Settings.read(path, told)

    assert (found.workers, found.drain, found.log["to"], found.stage, found.commit) == (
        4,
        0.5,
        "stdout",
        "production",
        None,
    )


@pytest.mark.parametrize(
    "told",
    [{"ML_WORKERS": "0"}, {"ML_WORKERS": "1.5"}, {"ML_WORKERS": "two"}, {"ML_DRAIN": "-1"}, {"ML_DRAIN": "nan"}],
    ids=lambda told: "=".join(*told.items()),
)
def test_an_environment_that_cannot_be_is_refused_by_name(path: Path, told: dict[str, str]) -> None:
    with pytest.raises(UserError, match="=".join(*told.items())):
        Settings.read(path, told)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("  workers: 1", "  worker: 1", "serve.worker is not a known key; did you mean workers?"),
        ("  batching: false", "  batching: true", "serve.batching = True needs its settings below it"),
        ("    to: none", "    to: ''", "serve.log.to = ''"),
        ("    share: 1.0", "    share: 2.0", "serve.log.share = 2.0"),
        ("    bytes: 2000000", "    bytes: 10", "serve.limits.bytes = 10"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(old: str, new: str, sentence: str) -> None:
    assert old in example.PARAMS

    with pytest.raises(UserError) as error:
        params.parse(example.PARAMS.replace(old, new), "params.yaml")

    assert sentence in str(error.value)
