from __future__ import annotations

import json
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import small
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml import cli
from ml.errors import RejectedRowsError, UserError
from ml.serving import batch, build
from ml.serving.request import Contract, Scorer

EMBEDDED = Path(__file__).parents[2] / "examples" / "embedded.py"
ROWS = [
    {"id": "a", "carrier": "UA", "distance": 1000, "temp": 50.0},
    {"id": "b", "carrier": "AA", "distance": 10, "temp": None},
    {"id": "c", "carrier": "ZZ", "distance": 2500, "temp": -10.5},
]
BAD = {"id": "x", "carrier": "UA", "distance": 0, "temp": -100.0}


@pytest.fixture
def model(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project / build.MODEL


def write(rows: list[dict[str, Any]], name: str) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    if name.endswith(".parquet"):
        pa.parquet.write_table(table, path)
    else:
        with fsspec.open(str(path), "wb", compression="infer") as file:
            pa.csv.write_csv(table, file)
    return name


def read(name: str) -> list[dict[str, Any]]:
    return (pa.parquet.read_table(name) if name.endswith(".parquet") else pa.csv.read_csv(name)).to_pylist()


def service(model: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the service answers."""
    scorer = Scorer(model)
    named = [{key: value for key, value in row.items() if key != "id"} for row in rows]
    return scorer.predictions(scorer.score(scorer.contract.columns(named).columns))


@pytest.mark.parametrize("source", ["in.parquet", "in.csv", "in.csv.gz"])
@pytest.mark.parametrize("target", ["out/scores.parquet", "scores.csv"])
def test_each_row_keeps_its_columns_and_gets_what_the_service_would_answer(
    model: Path, source: str, target: str
) -> None:
    told = batch.run(model, write(ROWS, source), target)

    found = read(target)
    assert [row["id"] for row in found] == ["a", "b", "c"]
    assert [{"score": row["score"], "decision": row["decision"]} for row in found] == service(model, ROWS)
    assert (told.files, told.rows, told.rejected, told.unknown) == (1, 3, 0, {"carrier": 1})
    assert not list(Path().rglob("*.tmp"))
    assert not list(Path().rglob("*.rejected.jsonl"))


@pytest.mark.parametrize("source", ["in.parquet", "in.csv"])
def test_bad_rows_go_to_a_side_file_with_their_reasons_and_the_others_are_scored(model: Path, source: str) -> None:
    rows = [ROWS[0], BAD, ROWS[1]]

    with pytest.raises(RejectedRowsError, match=r"^1 of 3 rows were rejected: scores.rejected.jsonl says why$"):
        batch.run(model, write(rows, source), "scores.parquet", chunk=2)

    found = read("scores.parquet")
    assert [row["id"] for row in found] == ["a", "b"]
    assert [row["score"] for row in found] == [answer["score"] for answer in service(model, [ROWS[0], ROWS[1]])]
    (entry,) = map(json.loads, Path("scores.rejected.jsonl").read_text().splitlines())
    assert entry["row"] == 1
    assert entry["file"].endswith(source)
    assert entry["values"]["id"] == "x"
    assert [problem["field"] for problem in entry["problems"]] == ["distance", "temp"]
    assert entry["problems"][0]["rule"] == "must be >= 1 and <= 10000"


def test_a_side_file_of_before_is_gone_when_all_rows_are_good(model: Path) -> None:
    with pytest.raises(RejectedRowsError):
        batch.run(model, write([BAD], "in.parquet"), "scores.csv")
    assert Path("scores.rejected.jsonl").exists()

    batch.run(model, write(ROWS, "in.parquet"), "scores.csv")

    assert not Path("scores.rejected.jsonl").exists()


@pytest.mark.parametrize("source", ["months", "months/2013-*.parquet"], ids=["folder", "glob"])
def test_a_folder_or_a_glob_is_scored_in_the_order_of_its_names(model: Path, source: str) -> None:
    for at, name in enumerate(["2013-02", "2013-01", "2013-03"]):
        write([ROWS[at]], f"months/{name}.parquet")
    Path("months/readme.txt").touch()

    assert batch.run(model, source, "scores.parquet").files == 3

    assert [row["id"] for row in read("scores.parquet")] == ["b", "a", "c"]


def test_any_url_that_fsspec_opens_will_do(model: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put_file(write(ROWS, "in.parquet"), "/in.parquet")

    batch.run(model, "memory://in.parquet", "memory://out/scores.parquet")

    with memory.open("/out/scores.parquet") as file:
        assert pa.parquet.read_table(file).num_rows == 3


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_the_length_of_a_chunk_changes_nothing(model: Path, chunk: int) -> None:
    batch.run(model, write(ROWS * 5, "in.parquet"), "scores.parquet", chunk=chunk)

    assert [row["score"] for row in read("scores.parquet")] == [row["score"] for row in service(model, ROWS * 5)]


def test_chunks_keep_their_order_and_few_are_held_whichever_is_done_first() -> None:
    taken: list[int] = []

    def chunks() -> Iterator[int]:
        for at in range(20):
            taken.append(at)
            yield at

    def work(at: int) -> int:
        time.sleep(0.02 if at % 3 == 0 else 0)
        return at

    for place, found in enumerate(batch.in_order(work, chunks(), threads=3)):
        assert found == place
        assert len(taken) - found <= 4


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_other_tasks_have_the_columns_of_their_answers(model: Path, task: str) -> None:
    model.write_bytes(small.small_model(small.contract(task)))

    batch.run(model, write(ROWS, "in.parquet"), "scores.parquet")

    wanted = service(model, ROWS)
    found = read("scores.parquet")
    if task == "regression":
        assert [row["value"] for row in found] == [answer["value"] for answer in wanted]
    else:
        assert [row["label"] for row in found] == [answer["label"] for answer in wanted]
        assert [row["probability_late"] for row in found] == [answer["probabilities"]["late"] for answer in wanted]


VALUES = {
    "carrier": st.one_of(st.sampled_from(["UA", "AA", "ZZ", ""]), st.none(), st.text(max_size=3)),
    "distance": st.one_of(st.integers(-5, 20_000), st.none()),
    "temp": st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.none()),
}


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.fixed_dictionaries(VALUES), min_size=1, max_size=8))
def test_whatever_the_rows_hold_the_same_ones_are_refused_and_scored_as_by_the_service(
    model: Path, rows: list[dict[str, Any]]
) -> None:
    schema = pa.schema([("carrier", pa.string()), ("distance", pa.int64()), ("temp", pa.float64())])
    scorer = Scorer(model)
    part = pa.RecordBatch.from_pylist(rows, schema=schema)

    kept, refused, told = batch.score(part, scorer, text=False)

    columns, problems, unknown = scorer.contract.columns(part.to_pylist())
    assert set(refused) == {problem.row for problem in problems}
    good = [at for at in range(len(rows)) if at not in refused]
    if good:
        wanted = scorer.score({name: column[good] for name, column in columns.items()})[:, 1]
        np.testing.assert_array_equal(kept["score"].to_numpy(zero_copy_only=False), wanted.astype(float))
    assert told == unknown


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(lambda: "nothing.parquet", "nothing.parquet names no file", id="missing"),
        pytest.param(lambda: write(ROWS, "in.txt") and "in.txt", "is neither Parquet nor CSV by its name", id="suffix"),
        pytest.param(lambda: Path("empty").mkdir() or "empty", "empty names no file", id="an empty folder"),
        pytest.param(
            lambda: write([{"carrier": "UA"}], "in.parquet"), "lacks the column distance, which the model", id="column"
        ),
        pytest.param(lambda: Path("in.parquet").write_bytes(b"PAR1") and "in.parquet", "cannot be read", id="damaged"),
        pytest.param(
            lambda: Path("in.csv").write_text("carrier,distance\nUA,1\nUA\n") and "in.csv",
            "cannot be read",
            id="ragged",
        ),
        pytest.param(
            lambda: Path("in.csv").write_text("carrier,distance\n") and "in.csv", "Empty CSV file", id="no row"
        ),
        pytest.param(
            lambda: (
                pa.parquet.write_table(
                    pa.table({"carrier": pa.array([], pa.string()), "distance": pa.array([], pa.int64())}), "in.parquet"
                )
                or "in.parquet"
            ),
            "holds no row",
            id="no row in Parquet",
        ),
        pytest.param(lambda: write([{**ROWS[0], "score": 1}], "in.parquet"), "has a column score already", id="taken"),
        pytest.param(lambda: "nosuch://x.parquet", "nosuch://x.parquet cannot be opened", id="protocol"),
    ],
)
def test_a_source_that_cannot_be_scored_is_one_line_and_leaves_the_old_output(
    model: Path, make: Any, said: str
) -> None:
    Path("scores.parquet").write_text("of before")

    with pytest.raises(UserError) as caught:
        batch.run(model, make(), "scores.parquet")

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert Path("scores.parquet").read_text() == "of before"


def test_files_that_differ_in_their_columns_are_refused(model: Path) -> None:
    write([ROWS[0]], "in/a.parquet")
    write([{**ROWS[0], "more": 1}], "in/b.parquet")

    with pytest.raises(UserError, match="differ in columns or types"):
        batch.run(model, "in", "scores.parquet")

    assert not Path("scores.parquet").exists()


def test_ml_score_tells_what_it_did_and_ends_with_three_where_rows_were_rejected(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["score", write(ROWS, "in.parquet"), "out.parquet"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "3 rows of 1 files scored",
        "carrier: 1 values that training did not know",
    ]

    assert cli.main(["score", write([*ROWS, BAD], "in.parquet"), "out.csv"]) == 3
    assert capsys.readouterr().err == "ml: 1 of 4 rows were rejected: out.rejected.jsonl says why\n"

    assert cli.main(["score", "in.parquet", "out.xlsx"]) == 1


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_the_embedded_example_gives_the_same_numbers(model: Path, task: str) -> None:
    model.write_bytes(small.small_model(small.contract(task)))
    embedded = runpy.run_path(str(EMBEDDED))
    rows = [{key: value for key, value in row.items() if key != "id"} for row in ROWS]

    found = embedded["score"](*embedded["load"](str(model)), rows)

    np.testing.assert_array_equal(
        found, Scorer(model).score(Contract.parse(small.contract(task)).columns(rows).columns)
    )


def test_the_embedded_example_is_short_and_needs_numpy_and_onnxruntime_alone(model: Path) -> None:
    assert len(EMBEDDED.read_text().splitlines()) <= 30
    row = {"carrier": "UA", "distance": 1000}
    code = f"import sys, runpy; sys.argv = ['', {str(model)!r}, {json.dumps([row])!r}]\n"
    code += f"runpy.run_path({str(EMBEDDED)!r}, run_name='__main__')\n"
    code += (
        "unwanted = {'ml', 'pandas', 'sklearn', 'bentoml', 'pyarrow'} & set(sys.modules); assert not unwanted, unwanted"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0][1] == pytest.approx(service(model, [row])[0]["score"])
