from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ml.errors import SourceError
from ml.pipeline import tables

FRAME = pd.DataFrame({"a": range(2000), "b": np.random.default_rng(0).normal(size=2000)})


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def zipped(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("table.csv", FRAME.to_csv(index=False))
    return path.read_bytes()


def parquet(path: Path) -> bytes:
    FRAME.to_parquet(path)
    return path.read_bytes()


def test_a_table_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    tables.write_parquet(FRAME, tmp_path / "deep/table.parquet")
    tables.write_csv(FRAME, tmp_path / "table.csv")
    zipped(tmp_path / "table.csv.zip")

    pd.testing.assert_frame_equal(tables.read_source(str(tmp_path / "deep/table.parquet")), FRAME)
    pd.testing.assert_frame_equal(tables.read_source(str(tmp_path / "table.csv")), FRAME, rtol=1e-5)
    pd.testing.assert_frame_equal(tables.read_source(str(tmp_path / "table.csv.zip")), FRAME)
    assert files(tmp_path) == ["deep", "table.csv", "table.csv.zip", "table.parquet"]


def test_a_file_of_an_installed_package_is_read_by_its_name() -> None:
    assert {"setosa", "virginica"} <= set(tables.read_source("package:scikit-learn/iris.csv"))


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        pytest.param("cut.parquet", lambda p: parquet(p)[:-100], ["not readable as Parquet"], id="cut Parquet"),
        pytest.param("half.parquet", lambda p: parquet(p)[:9000], ["not readable as Parquet"], id="half a Parquet"),
        pytest.param("html.parquet", lambda _: b"<html>moved</html>", ["not readable as Parquet"], id="not Parquet"),
        pytest.param("empty.parquet", lambda _: b"", ["not readable as Parquet"], id="empty Parquet"),
        pytest.param("cut.csv.zip", lambda p: zipped(p)[:-30], ["not readable as CSV"], id="cut zip"),
        pytest.param("odd.csv.zip", lambda p: b"PK" + b"x" * 99, ["not readable as CSV"], id="not a zip"),
        pytest.param(
            "rot.csv.zip",
            lambda p: (c := zipped(p))[:60] + bytes(b ^ 255 for b in c[60:90]) + c[90:],
            ["not readable as CSV"],
            id="rotten zip",
        ),
        pytest.param("empty.csv", lambda _: b"", ["not readable as CSV", "No columns"], id="empty CSV"),
        pytest.param("ragged.csv", lambda _: b"a,b\n1,2\n1,2,3\n", ["not readable as CSV", "line 3"], id="ragged CSV"),
        pytest.param("bytes.csv", lambda _: b"a\n\xff\xfe\n", ["not readable as CSV"], id="not text"),
        pytest.param("table.csv.gz", lambda _: b"a,b\n1,2\n", ["not readable as CSV"], id="not gzip"),
    ],
)
def test_a_source_that_is_not_what_its_name_says_is_one_line(tmp_path: Path, name: str, content, parts) -> None:
    path = tmp_path / name
    path.write_bytes(content(path))

    with pytest.raises(SourceError) as caught:
        tables.read_source(str(path))

    message = str(caught.value)
    assert [part for part in [str(path), *parts, "data.sources in params.yaml"] if part not in message] == []
    assert "\n" not in message


@pytest.mark.parametrize(
    ("location", "sentence"),
    [
        pytest.param("absent.csv", "absent.csv does not exist", id="file"),
        pytest.param("absent.parquet", "absent.parquet does not exist", id="Parquet file"),
        pytest.param("package:no-such/a.csv", "the package no-such is not installed", id="package"),
        pytest.param("package:scikit-learn/a.csv", "the package scikit-learn carries no a.csv", id="file of a package"),
        pytest.param("http://127.0.0.1:9/a.csv", "not readable as CSV (<urlopen error", id="server"),
    ],
)
def test_a_source_that_is_not_there_is_one_line(location: str, sentence: str) -> None:
    with pytest.raises(SourceError) as caught:
        tables.read_source(location)

    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_source_that_is_not_listed_is_named_with_those_that_are() -> None:
    with pytest.raises(
        SourceError, match=r"^data\.sources in params\.yaml names no 'weather'; it has flights, planes$"
    ):
        tables.Sources(flights="a.csv", planes="b.csv")["weather"]


def test_a_damaged_output_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(parquet(path)[:-100])

    with pytest.raises(SourceError) as caught:
        tables.read_output(path)

    assert str(caught.value).startswith(f"{path} is damaged (")
    assert str(caught.value).endswith("): run make pipeline")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("odd")])
def test_what_fails_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")

    def interrupted() -> None:
        with tables.replacing(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(type(error)):
        interrupted()

    assert path.read_text() == "old"
    assert files(tmp_path) == ["model.onnx"]


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    tables.write_parquet(FRAME, path)
    old = path.read_bytes()

    with pytest.raises(Exception, match="mixed"):
        tables.write_parquet(pd.DataFrame({"mixed": [1, "one", object()]}), path)

    assert path.read_bytes() == old
    assert files(tmp_path) == ["table.parquet"]


def test_figures_are_rounded_at_any_depth_and_nothing_else_is(tmp_path: Path) -> None:
    value = {"a": [np.float32(0.1), 1 / 3], "b": {"c": (2, True, None, "x")}, "n": np.int64(3)}

    tables.write_json(tables.rounded(value, 4), tmp_path / "figures.json")

    assert json.loads((tmp_path / "figures.json").read_text()) == {
        "a": [0.1, 0.3333],
        "b": {"c": [2, True, None, "x"]},
        "n": 3,
    }
    assert (tmp_path / "figures.json").read_text().endswith("}\n")
