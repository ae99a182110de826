from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import example
import onnx
import pandas as pd
import pytest
from ruamel.yaml import YAML
from tiny import edit, git

from ml import cli, objects
from ml.errors import SourceError, UserError
from ml.pipeline import evaluate, params, repeat, split, tracking, train
from ml.pipeline.params import Params
from ml.pipeline.tables import write_parquet
from ml.review import aside, lock, plots, reproduce, review, sides
from ml.review.aside import Aside
from ml.review.verdict import GATES, Metric, Result, Verdict

GOLD = "average_precision_skill"
OUTPUTS = {
    "split": [split.TRAIN, split.HOLDOUT],
    "train": [train.MODEL, train.EXPECTED],
}
CONSTANT = {"max_iter": 1, "min_samples_leaf": 2000}  # every row gets the same score
CASES = """\
direction:
  - name: a heavy load does not make a job safer
    row: {plant: north, material: AB1, minute: 600, length: 5000, load: 10, temperature: 30, age: 10}
    change: {load: 95}
    score: rises
"""
PROJECT = """\
[project]
name = "workshop"
description = "Which machine fails."
authors = [{ name = "Ada" }]
license = "MIT"
"""
IGNORED = "/data/\n/models/\n/reports/review/\n/reports/card.md\n/reports/train/expected.parquet\nmlflow.db\n"


def write_lock() -> None:
    """Put the outputs into DVC's cache and their hashes into dvc.lock, as DVC does."""
    stages = {}
    for stage, paths in OUTPUTS.items():
        md5s = {str(path): hashlib.md5(path.read_bytes()).hexdigest() for path in paths}
        stages[stage] = {"cmd": f"ml {stage}", "outs": [{"path": path, "md5": md5} for path, md5 in md5s.items()]}
        for path, md5 in md5s.items():
            kept = objects.CACHE / md5[:2] / md5[2:]
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(Path(path).read_bytes())
    Path("dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": stages}, indent=2))


def write_params(changes: dict[str, Any] | None = None) -> Params:
    """Write the example's settings with some changed, each named by its dotted key."""
    raw = YAML(typ="safe").load(example.PARAMS)
    small = {"train.settings": {"max_iter": 12, "min_samples_leaf": 20}, "evaluate.min_rows": 50}
    for dotted, value in copy.deepcopy(small | (changes or {})).items():
        *sections, key = dotted.split(".")
        section = raw
        for name in sections:
            section = section[name]
        section[key] = value
    with Path("params.yaml").open("w") as file:
        YAML().dump(raw, file)
    return params.read()


def make(changes: dict[str, Any] | None = None) -> None:
    """Write settings, and train, judge and lock what they give."""
    found = write_params(changes)
    train.run(found)
    evaluate.run(found)
    write_lock()


def save(message: str) -> str:
    git(Path.cwd(), "add", "--all")
    git(Path.cwd(), "commit", "--quiet", "--message", message)
    return git(Path.cwd(), "rev-parse", "HEAD").strip()


class AtOnce(Executor):
    """Does at once, and in this process, what it is given."""

    def submit(self, does: Callable[..., Any], /, *words: Any) -> Future[Any]:
        done = Future[Any]()
        try:
            done.set_result(does(*words))
        except UserError as error:
            done.set_exception(error)
        return done


def without_tools(patch: pytest.MonkeyPatch) -> None:
    example.install(patch)
    patch.setattr(tracking, "log_training", lambda **_: None)
    patch.setattr(train, "importance", lambda _, inputs, *__: dict.fromkeys(inputs, 0.01))
    patch.setattr(lock, "problems", lambda *_, **__: [])
    patch.setattr(aside, "second_process", lambda: nullcontext(Aside(AtOnce())))
    patch.setenv("DVC_NO_ANALYTICS", "1")


@pytest.fixture(scope="session")
def pristine_workshop(tmp_path_factory: pytest.TempPathFactory, rows: pd.DataFrame) -> Path:
    """Return a project whose main holds a small model; read it, write nothing into it."""
    path = tmp_path_factory.mktemp("workshop") / "project"
    path.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        without_tools(patch)
        newest = rows["period"] == example.PERIODS[-1]
        write_parquet(rows[~newest], split.TRAIN)
        write_parquet(rows[newest], split.HOLDOUT)
        Path("pyproject.toml").write_text(PROJECT)
        Path(".gitignore").write_text(IGNORED)
        Path("tests").mkdir()
        Path("tests/behaviour.yaml").write_text(CASES)
        Path(".dvc").mkdir()
        Path(".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
        Path(".dvc/config").write_text(f"[core]\n    analytics = false\n    site_cache_dir = {path.parent}/site\n")
        make()
        repeat.run(params.read())
        git(path, "init", "--quiet", "--initial-branch", "main")
        save("a small model")
    return path


@pytest.fixture
def workshop(pristine_workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the project of one test, which works in it; nothing is drawn there."""
    path = tmp_path / "workshop"
    shutil.copytree(pristine_workshop, path)
    monkeypatch.chdir(path)
    without_tools(monkeypatch)
    for draw in ("draw", "slices"):
        monkeypatch.setattr(plots, draw, lambda *_: {})
    return path


def reviewed(**words: str) -> Verdict:
    return review.run(params.read(), Aside(AtOnce()), **words)


def result(verdict: Verdict, gate: str, *, own: bool = False) -> Result:
    return next(found for found in (verdict.own_results if own else verdict.results) if found.gate == gate)


def metric(verdict: Verdict, name: str = GOLD) -> Metric:
    return next(found for found in verdict.metrics if found.name == name)


def blocked(verdict: Verdict) -> list[str]:
    return [found.gate for found in verdict.blocked]


def kept(path: Path, ref: str = "main") -> Path:
    md5 = sides.Commit.at(ref).outputs()[str(path)]
    return objects.CACHE / md5[:2] / md5[2:]


def test_without_a_branch_to_compare_with_the_model_is_the_first(workshop: Path) -> None:
    git(workshop, "branch", "--move", "main", "trunk")

    found = reviewed()

    assert found.headline == "safe to merge: the first model, 11 gates passed, 3 skipped"
    assert (found.production, found.base) == (None, None)
    assert found.notes[0] == "There is no base yet: the gates are the change's own."
    assert [part.gate for part in found.results] == list(GATES)
    assert all(part.production is None and part.delta is None for part in found.metrics)
    assert [part.production for part in found.importance] == [None] * 7


def test_a_base_without_a_model_makes_the_first_one_too(workshop: Path) -> None:
    git(workshop, "rm", "--quiet", "--cached", "dvc.lock")
    git(workshop, "commit", "--quiet", "--message", "no model yet")

    found = reviewed()

    assert found.headline == "safe to merge: the first model, 11 gates passed, 3 skipped"
    assert found.production is None
    assert found.base is not None


def test_the_same_model_differs_in_nothing(workshop: Path) -> None:
    found = reviewed()

    assert found.headline == "safe to merge: 11 gates passed, 3 skipped"
    assert (found.flips, found.largest, found.loosened, found.params, found.schema_changes) == (0, [], [], [], [])
    assert {(part.delta.value, part.delta.low, part.delta.high) for part in found.metrics} == {(0, 0, 0)}
    assert {part.rows for part in found.metrics} == {600}
    assert metric(found).sentence == "the same on 600 rows"
    assert metric(found).noise is not None
    assert found.candidate.model == found.production.model == sides.Commit.at("main").outputs()[str(train.MODEL)]
    assert found.candidate.dirty is False


def test_the_verdict_the_report_and_the_card_are_written(workshop: Path) -> None:
    found = reviewed()

    assert Verdict.model_validate_json((review.FOLDER / "verdict.json").read_text()) == found
    assert found.headline[1:] in (review.FOLDER / "report.md").read_text()
    assert "workshop" in review.CARD.read_text()


def test_the_models_are_drawn_for_every_task(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(workshop)
    without_tools(monkeypatch)

    reviewed()

    drawings = json.loads((review.FOLDER / review.DRAWINGS).read_text())["drawings"]
    assert {"roc", "calibration", "confusion", "slices", "importance"} <= set(drawings)
    assert "<svg" in (review.FOLDER / "report.html").read_text()


def test_production_is_read_from_the_commit_and_never_from_the_work_tree(workshop: Path) -> None:
    before = metric(reviewed()).candidate
    make({"train.settings": {"max_iter": 40, "min_samples_leaf": 5}})

    found = reviewed()

    assert metric(found).production == before
    assert metric(found).candidate.value != before.value
    assert 0 < found.flips < 1
    assert len(found.largest) == 10
    assert [change.name for change in found.params] == [
        "train.settings.max_iter",
        "train.settings.min_samples_leaf",
    ]
    assert {"dvc.lock", "params.yaml"} <= {part.path for part in found.code}


def test_a_much_worse_model_is_not_merged(workshop: Path) -> None:
    make({"train.settings": CONSTANT})

    found = reviewed()

    assert result(found, "harm").status == "failed"
    assert f"{GOLD} lost" in result(found, "harm").sentence
    assert found.headline.startswith("do not merge: ")


def loosen() -> None:
    """Train a model below the base's floor, and lower the floor for it."""
    make(
        {
            "train.settings": CONSTANT,
            "objective.floor": -1,
            "gates.floor.metrics": {},
            "gates.harm.margins": {GOLD: 1.0},
            "gates.calibration.error": 1.0,
            "gates.calibration.margin": 1.0,
            "gates.predictions.flips": 1.0,
            "gates.slices.floor": -1,
            "gates.fairness.ratio": {},
            "gates.behaviour": False,
        }
    )


def test_the_gates_are_the_base_s_and_the_change_s_own_are_told_beside_them(workshop: Path) -> None:
    loosen()

    found = reviewed()

    assert {"gates", "harm", "floor"} <= set(blocked(found))
    assert "0.12" in result(found, "floor").sentence
    assert "objective.floor" in [change.name for change in found.loosened]
    assert [part.gate for part in found.own_results if part.status == "failed"] == ["gates"]
    assert metric(found).margin == 0.1


def test_an_approved_change_is_judged_by_its_own_gates(workshop: Path) -> None:
    loosen()

    found = reviewed(approved="Ada")

    assert blocked(found) == []
    assert result(found, "gates").sentence.endswith("approved by Ada")
    assert found.approved == "Ada"
    assert metric(found).margin == 1.0


def test_an_approval_does_not_stand_above_a_gate_that_fails_by_the_change_s_own_rules(workshop: Path) -> None:
    make({"train.settings": CONSTANT, "gates.predictions.flips": 1.0})

    found = reviewed(approved="Ada")

    assert "harm" in blocked(found)
    assert "gates" not in blocked(found)


def test_gates_that_only_get_stricter_are_not_yet_asked_of_this_change(workshop: Path) -> None:
    write_params({"objective.floor": 0.99})

    found = reviewed()

    assert blocked(found) == []
    assert found.loosened == found.own_results == []


@pytest.mark.parametrize(
    ("content", "note"),
    [
        pytest.param(None, "main has no gates yet: they are the change's own.", id="no params.yaml"),
        pytest.param("task: binary\n", "main has no gates yet: they are the change's own.", id="no gates"),
    ],
)
def test_a_base_that_has_no_gates_yet_leaves_them_to_the_change(workshop: Path, content: str | None, note: str) -> None:
    own = Path("params.yaml").read_bytes()
    Path("params.yaml").unlink() if content is None else Path("params.yaml").write_text(content)
    save("before there were gates")
    Path("params.yaml").write_bytes(own)

    found = reviewed()

    assert note in found.notes
    assert blocked(found) == []


def test_gates_of_the_base_that_cannot_be_read_are_not_judged(workshop: Path) -> None:
    own = Path("params.yaml").read_text()
    Path("params.yaml").write_text(own.replace("resamples: 200", "resamples: few"))
    save("broken")
    Path("params.yaml").write_text(own)

    found = reviewed()

    assert blocked(found) == ["gates"]
    assert result(found, "gates").status == "not judged"
    assert "params.yaml of main: review.resamples" in result(found, "gates").sentence


def test_another_task_is_judged_by_its_own_gates_and_says_so(workshop: Path, small: dict[str, Any]) -> None:
    make(small["regression"])

    found = reviewed()

    assert "The task changed: the base's gates do not fit it, so the change's own are used." in found.notes
    assert "gates" in blocked(found)
    assert result(found, "data").status == "failed"
    assert "answer.task" in result(found, "data").sentence


def test_a_base_without_a_model_has_nothing_to_protect_yet(workshop: Path, small: dict[str, Any]) -> None:
    git(workshop, "rm", "--quiet", "--cached", "dvc.lock")
    git(workshop, "commit", "--quiet", "--message", "no model yet")
    make(small["regression"])
    expect("minimum: [{name: some hours, row: {}, above: -100}]")

    found = reviewed()

    assert not {"gates", "behaviour"} & set(blocked(found))
    assert found.loosened == []
    assert found.notes[0] == "main has no model yet, so it asks for nothing: the gates are the change's own."


def expect(text: str) -> None:
    Path("tests/behaviour.yaml").write_text(text)


def test_an_expectation_of_the_base_is_held_to_though_the_change_drops_it(workshop: Path) -> None:
    expect(CASES.replace("rises", "falls"))
    save("expects too much")
    expect("minimum: []\n")

    found = reviewed()

    assert {"behaviour", "gates"} <= set(blocked(found))
    assert [(change.name, change.after) for change in found.loosened] == [
        ("behaviour: a heavy load does not make a job safer", "")
    ]
    assert result(found, "gates").file == "tests/behaviour.yaml"


def test_a_further_expectation_is_tried_and_loosens_nothing(workshop: Path) -> None:
    expect(f"{CASES}minimum:\n  - name: never\n    row: {{plant: north, load: 1}}\n    above: 2\n")

    found = reviewed()

    assert blocked(found) == ["behaviour"]
    assert result(found, "behaviour").sentence.startswith("never: not so")
    assert found.loosened == []


def test_an_approved_change_is_held_to_its_own_expectations_and_not_to_those_it_dropped(workshop: Path) -> None:
    expect(CASES.replace("rises", "falls"))
    save("expects too much")
    expect(CASES)

    assert {"behaviour", "gates"} <= set(blocked(reviewed()))
    assert blocked(reviewed(approved="Ada")) == []


def test_expectations_that_cannot_be_read_are_not_judged(workshop: Path) -> None:
    expect("minimum: 3\n")

    found = reviewed()

    assert "behaviour" in blocked(found)
    assert result(found, "behaviour").sentence.startswith("tests/behaviour.yaml: minimum: ")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), "damaged", id="damaged"),
        pytest.param(lambda path: path.write_bytes(b""), "damaged", id="empty"),
        pytest.param(Path.unlink, "neither in DVC's cache nor in a remote", id="missing"),
    ],
)
def test_a_production_that_cannot_be_read_fails_the_gates_that_compare_with_it(
    workshop: Path, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(kept(train.MODEL))

    found = reviewed()

    for gate in ("harm", "calibration", "predictions"):
        assert result(found, gate).status == "failed"
        assert result(found, gate).sentence.startswith("production cannot be read: models/model.onnx of main")
        assert said in result(found, gate).sentence
    assert result(found, "floor").status == "passed"
    assert metric(found).production is None


def test_a_bucket_that_does_not_open_fails_the_gates_that_compare_and_says_why(
    workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> None:
        raise RuntimeError("Unable to locate credentials")

    kept(train.MODEL).unlink()
    monkeypatch.setattr("dvc.data_cloud.DataCloud.pull", closed)

    found = reviewed()

    assert "cannot be fetched (Unable to locate credentials): check" in result(found, "harm").sentence
    assert result(found, "floor").status == "passed"


def test_a_lock_of_production_that_cannot_be_read_is_one_line(workshop: Path) -> None:
    own = Path("dvc.lock").read_text()
    Path("dvc.lock").write_text("stages: [")
    save("broken lock")
    Path("dvc.lock").write_text(own)

    with pytest.raises(UserError, match=r"dvc.lock of main is not readable"):
        reviewed()


def test_without_a_model_here_nothing_of_it_is_judged_and_the_report_is_written(workshop: Path) -> None:
    train.MODEL.unlink()

    found = reviewed()

    assert blocked(found) == list(review.OF_MODEL)
    assert {part.status for part in found.blocked} == {"not judged"}
    assert "models/model.onnx is missing: run make pipeline" in result(found, "floor").sentence
    assert (review.FOLDER / "report.html").exists()
    assert not review.CARD.exists()


def test_without_a_holdout_here_nothing_is_judged_either(workshop: Path) -> None:
    split.HOLDOUT.unlink()

    assert blocked(reviewed()) == list(review.OF_MODEL)


def altered(path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[], None]:
    return lambda: write_parquet(change(pd.read_parquet(path)), path)


def described(entries: dict[str, str]) -> Callable[[], None]:
    """Return what gives the model other words about itself."""

    def act() -> None:
        model = onnx.load_from_string(train.MODEL.read_bytes())
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, entries)
        train.MODEL.write_bytes(model.SerializeToString())

    return act


def written(path: Path, content: str) -> Callable[[], None]:
    def act() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    return act


@pytest.mark.parametrize(
    ("act", "gate", "said"),
    [
        pytest.param(described({}), "floor", "models/model.onnx carries no contract", id="model without a word"),
        pytest.param(described({"contract": "{"}), "floor", "carries no contract", id="model with half a word"),
        pytest.param(
            altered(split.HOLDOUT, lambda rows: rows.drop(columns=["load", "period"])),
            "harm",
            "data/split/holdout.parquet lacks load, period: run make pipeline",
            id="columns gone",
        ),
        pytest.param(
            altered(split.TRAIN, lambda rows: rows.iloc[:0]),
            "data",
            "data/split/train.parquet has no rows: run make pipeline",
            id="no rows",
        ),
        pytest.param(
            altered(split.HOLDOUT, lambda rows: rows.assign(load="much")),
            "floor",
            "what is to be measured is not as the pipeline writes it (ValueError: could not convert",
            id="text for a number",
        ),
        pytest.param(
            altered(train.EXPECTED, lambda rows: rows.astype(str) + "x"),
            "parity",
            "(ValueError: ",
            id="text for scores",
        ),
        pytest.param(written(evaluate.METRICS, "[]"), "parity", "metrics.json is missing or not readable", id="a list"),
        pytest.param(
            written(evaluate.METRICS, '{"roc_auc": "good"}'), "parity", "not readable", id="text for a metric"
        ),
        pytest.param(
            written(reproduce.RESULT, "[]"),
            "determinism",
            "result.json is not readable: run ml reproduce",
            id="retrain",
        ),
    ],
)
def test_what_no_stage_wrote_leaves_its_gates_unjudged_with_the_reason(
    workshop: Path, act: Callable[[], None], gate: str, said: str
) -> None:
    act()

    found = result(reviewed(), gate)

    assert found.status == "not judged"
    assert said in found.sentence
    assert (review.FOLDER / "report.md").exists()


def test_a_production_that_another_tool_made_fails_or_is_not_judged_and_never_passes(workshop: Path) -> None:
    described({"contract": '{"task": "binary", "fields": [{"name": "load"}]}', "importance": "{}"})()
    write_lock()
    save("another tool's model")
    make()

    found = reviewed()

    assert {result(found, gate).status for gate in review.OF_PRODUCTION} == {"failed"}
    assert "production cannot be read: what is to be measured is not as" in result(found, "harm").sentence


@pytest.mark.parametrize(
    "content", ["[]", '{"metrics": {"roc_auc": {}}}', '{"metrics": {"roc_auc": {"standard_deviation": "much"}}}']
)
def test_a_noise_that_cannot_be_read_is_said_to_be_unknown(workshop: Path, content: str) -> None:
    repeat.METRICS.write_text(content)

    found = reviewed()

    assert blocked(found) == []
    assert (
        "The noise of retraining is not known: reports/repeat/metrics.json is missing or not readable." in found.notes
    )


@pytest.mark.parametrize("content", ["[project", "[tool.x]", '[project]\nname = "x"\nauthors = ["Ada"]'])
def test_a_project_without_a_name_or_an_owner_s_is_one_line(workshop: Path, content: str) -> None:
    Path("pyproject.toml").write_text(content)

    with pytest.raises(
        UserError, match=r"^pyproject.toml needs a section project with a name, and authors with theirs"
    ):
        reviewed()


def test_a_license_may_be_a_table_as_older_projects_have_it(workshop: Path) -> None:
    Path("pyproject.toml").write_text(PROJECT.replace('"MIT"', '{ text = "MIT" }'))

    reviewed()

    assert "license: mit\n" in review.CARD.read_text()


def test_a_change_of_the_review_itself_is_told(workshop: Path) -> None:
    for name in ("gates", "lock", "measure"):
        written(Path(f"src/ml/review/{name}.py"), "pass\n")()

    assert reviewed().notes[0] == (
        "The change edits the review itself, and is judged by it as edited: "
        "src/ml/review/gates.py, src/ml/review/lock.py and 1 more."
    )


def test_the_commands_name_commits_since_branches_move_on(workshop: Path) -> None:
    main = git(workshop, "rev-parse", "main").strip()
    Path("pyproject.toml").write_text(f"{PROJECT}\n")

    found = reviewed()

    assert found.commands[0] == f"git checkout {main}"
    assert found.commands[-1] == f'make review AGAINST={main[:12]} ARGS="--base {main[:12]}"'
    assert "The work tree had changes that no commit holds" in (review.FOLDER / "report.md").read_text()


def say(gate: str, **changes: str) -> None:
    """Write a result of a gate that another tool measures."""
    model = hashlib.sha256(train.MODEL.read_bytes()).hexdigest()
    found = {"model": model, "status": "passed", "sentence": "as quick as production"} | changes
    written(Path(f"reports/{gate}/result.json"), json.dumps(found))()


@pytest.mark.parametrize("gate", ["service", "image"])
@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        pytest.param({}, "passed", "as quick as production", id="passed"),
        pytest.param({"status": "failed"}, "failed", "as quick as production", id="failed"),
        pytest.param({"model": "0" * 64}, "not judged", "is of another model: measure again", id="another model"),
        pytest.param({"status": "good"}, "not judged", "is not readable: measure again", id="no status"),
    ],
)
def test_what_other_tools_measured_is_told_where_it_is_of_this_model(
    workshop: Path, gate: str, changes: dict[str, str], status: str, said: str
) -> None:
    say(gate, **changes)

    found = result(reviewed(), gate)

    assert found.status == status
    assert said in found.sentence


def test_a_result_in_git_is_a_claim_and_is_not_believed(workshop: Path) -> None:
    say("service")
    lock_now = hashlib.sha256(Path("dvc.lock").read_bytes()).hexdigest()
    retrain = {"lock_sha256": lock_now, "same": True, "differ": [], "largest_difference": 0.0, "flips": 0.0}
    written(reproduce.RESULT, json.dumps(retrain))()
    assert blocked(reviewed()) == []
    assert result(reviewed(), "determinism").status == "passed"
    git(workshop, "add", "--force", "reports/service", "reports/reproduce")

    found = reviewed()

    assert {part.gate: part.status for part in found.blocked} == dict.fromkeys(["determinism", "service"], "not judged")
    assert "is in git, where anyone may write it" in result(found, "determinism").sentence


def parted(rows: pd.DataFrame, *periods: str) -> None:
    held = rows["period"].isin(periods)
    write_parquet(rows[~held], split.TRAIN)
    write_parquet(rows[held], split.HOLDOUT)


def test_rows_that_break_the_contract_are_told_without_their_values(workshop: Path, rows: pd.DataFrame) -> None:
    parted(rows.assign(load=rows["load"].mask(rows.index == 7, 7123.5)), example.PERIODS[-1])
    make()

    said = result(reviewed(), "data")

    assert said.status == "failed"
    assert said.sentence.startswith("contract: load breaks ")
    assert "(1 of " in said.sentence
    assert "7123" not in said.sentence


def test_each_model_is_scored_on_the_values_that_its_own_pipeline_gave(workshop: Path, rows: pd.DataFrame) -> None:
    parted(rows.assign(temperature=rows["temperature"] + 30), example.PERIODS[-1])
    make()

    found = reviewed()

    assert "data" in blocked(found)
    assert found.flips < 0.02
    assert abs(metric(found).delta.value) < 0.01


def test_rows_that_production_has_no_values_for_are_scored_on_those_of_this_side(
    workshop: Path, rows: pd.DataFrame
) -> None:
    newest = rows["period"] == example.PERIODS[-1]
    write_parquet(rows[newest].iloc[:200], split.HOLDOUT)
    make()
    save("fewer rows")
    write_parquet(rows[newest], split.HOLDOUT)
    make()

    found = reviewed()

    assert metric(found).rows == newest.sum()
    assert (found.flips, metric(found).delta.value) == (0, 0)


def test_rows_that_production_learned_from_are_left_out_of_the_comparison(workshop: Path, rows: pd.DataFrame) -> None:
    parted(rows, *example.PERIODS[-2:])
    make({"split.holdout": 2})

    found = reviewed()

    assert {part.rows for part in found.metrics} == {600}
    held = rows.loc[rows["period"].isin(example.PERIODS[-2:]), "plant"].value_counts()
    assert {part.name: part.rows for part in found.slices if part.name.startswith("plant")} == {
        f"plant={name}": count for name, count in held.items() if count >= 50
    }
    seen = {flip.row["started"][:7] for flip in reviewed_in_full().largest}
    assert seen == {example.PERIODS[-1]}


def reviewed_in_full() -> Verdict:
    edit(Path("params.yaml"), "rows: masked", "rows: full")
    return reviewed()


def test_with_too_few_rows_that_production_did_not_learn_from_nothing_is_compared(
    workshop: Path, rows: pd.DataFrame
) -> None:
    parted(rows, example.PERIODS[0])
    make()

    found = reviewed()

    for gate in ("harm", "calibration", "predictions"):
        assert result(found, gate).status == "not judged"
        assert "learned from all but 0 of 600 holdout rows" in result(found, gate).sentence


def test_data_that_differ_from_the_base_s_are_compared_with_the_base_s(workshop: Path, rows: pd.DataFrame) -> None:
    parted(rows.assign(load=rows["load"] * 0.5).drop(rows.index[:200]), example.PERIODS[-1])
    make()

    found = reviewed()

    columns = {column.name: column for column in found.columns}
    assert columns["load"].effect > 0.3
    assert columns["age"].effect < 0.05
    assert found.rows[0].model_dump() == {"period": "2013-01", "before": 600, "after": 400}
    assert result(found, "data").status == "failed"
    assert "load lies 0." in result(found, "data").sentence
    assert "2013-01 has 400 rows, 600 on the base" in result(found, "data").sentence


@pytest.mark.parametrize("mode", ["none", "masked", "full"])
def test_rows_of_data_are_shown_as_the_settings_say(workshop: Path, mode: str) -> None:
    make({"report.rows": mode, "train.settings": {"max_iter": 60}})

    found = reviewed()

    assert (found.largest == []) == (mode == "none")
    assert any(flip.row.get("plant") == "north" for flip in found.largest) == (mode == "full")
    if mode == "masked":
        assert not {name for flip in found.largest for name in flip.row} & {"plant", "material", "started"}
        loads = [float(flip.row["load"]) for flip in found.largest]
        assert all(load == float(f"{load:.0e}") for load in loads)
        assert not {"e", "+"} & set("".join(flip.row["load"] for flip in found.largest))
    page = (review.FOLDER / "report.html").read_text()
    held = pd.read_parquet(split.HOLDOUT)
    assert any(str(value) in page for value in held["load"]) == (mode == "full")


def tag(workshop: Path, name: str, when: str, ref: str = "HEAD") -> None:
    os.environ["GIT_COMMITTER_DATE"] = when
    try:
        git(workshop, "tag", "--annotate", "--message", name, name, ref)
    finally:
        del os.environ["GIT_COMMITTER_DATE"]


def test_production_is_the_newest_assignment_and_not_the_base(workshop: Path) -> None:
    first = sides.Commit.at("main").sha
    make({"train.settings": {"max_iter": 5}})
    second = save("another model")
    tag(workshop, "model#production#1", "2024-01-01T00:00:00Z", first)
    tag(workshop, "model#production#2", "2024-01-02T00:00:00Z", second)
    tag(workshop, "model#staging#3", "2024-01-03T00:00:00Z", first)
    make()
    save("back to the first")

    found = reviewed()

    assert (found.production.ref, found.production.commit) == ("model#production#2", second)
    assert found.production.version == "production 2"
    assert found.base.ref == "main"
    assert found.candidate.model != found.production.model
    assert reviewed(against="model#production#1").flips == 0


def test_production_is_the_commit_that_its_assignment_means(workshop: Path) -> None:
    first = sides.Commit.at("main").sha
    make({"train.settings": {"max_iter": 5}})
    save("another model")
    git(workshop, "tag", "--annotate", "--message", f"Go back\n\nCommit: {first}\n", "model#production#1")

    found = reviewed()

    assert (found.production.ref, found.production.commit) == ("model#production#1", first)


def test_a_production_without_a_model_is_not_taken_for_a_first_one(workshop: Path) -> None:
    main = sides.Commit.at("main").sha
    git(workshop, "rm", "--quiet", "--cached", "dvc.lock")
    bare = save_only("no lock")
    git(workshop, "reset", "--quiet", "--hard", main)
    tag(workshop, "model#production#1", "2024-01-01T00:00:00Z", bare)

    found = reviewed()

    assert {result(found, gate).status for gate in review.OF_PRODUCTION} == {"failed"}
    assert "models/model.onnx is not in dvc.lock of model#production#1" in result(found, "harm").sentence
    with pytest.raises(UserError, match=r"has no models/model\.onnx in its dvc\.lock: name a commit that has one"):
        reviewed(against=bare)


def test_a_production_from_before_the_first_lock_leaves_the_next_model_a_first_one(workshop: Path) -> None:
    tree = subprocess.run(["git", "mktree"], input=b"", capture_output=True, check=True).stdout.decode().strip()
    bare = sides.git("commit-tree", tree, "-m", "trained where it was delivered").decode().strip()
    tag(workshop, "model#production#1", "2024-01-01T00:00:00Z", bare)

    found = reviewed()

    assert found.production is None
    assert "failed" not in {result(found, gate).status for gate in review.OF_PRODUCTION}


@pytest.mark.parametrize(
    ("tags", "newest"),
    [
        pytest.param([], None, id="none"),
        pytest.param(["model#staging#1", "model@v1.0.0"], None, id="other stages"),
        pytest.param(["model#production#1", "model#production#2"], "model#production#2", id="by date"),
        pytest.param(["model#production#9", "model#production#10"], "model#production#10", id="ten after nine"),
        pytest.param(["model#production#1", "model#production#x"], "model#production#1", id="of another form"),
    ],
)
@pytest.mark.parametrize("apart", [True, False], ids=["a day apart", "in one second"])
def test_the_newest_assignment_is_found_by_its_tag(
    workshop: Path, tags: list[str], newest: str | None, apart: bool
) -> None:
    for day, name in enumerate(tags):
        tag(workshop, name, f"2024-01-{1 + day * apart:02}T00:00:00Z")

    assert sides.newest_production() == newest


@pytest.mark.parametrize("ref", ["--help", "-h", "--output=x", "nowhere", "", "main:params.yaml", "HEAD~99"])
def test_what_is_no_commit_is_one_line(workshop: Path, ref: str) -> None:
    assert sides.commit(ref) is None
    with pytest.raises(UserError, match="is not a commit that git knows here"):
        sides.Commit.at(ref)
    assert not Path("x").exists()


def test_a_file_of_a_commit_is_the_commit_s_and_none_where_it_has_none(workshop: Path) -> None:
    commit, content = sides.Commit.at("main"), Path("params.yaml").read_bytes()
    Path("params.yaml").write_text("changed\n")

    assert commit.file("params.yaml") == content
    assert commit.file("nothing.yaml") is None
    assert sides.show("--output=x", "params.yaml") is None
    assert not Path("x").exists()


def test_an_output_is_held_to_its_hash(workshop: Path) -> None:
    commit = sides.Commit.at("main")

    assert commit.read(str(train.MODEL)) == train.MODEL.read_bytes()
    assert len(commit.table(str(split.HOLDOUT), ["plant"])) == 600
    with pytest.raises(SourceError, match=r"data/other is not in dvc.lock of main"):
        commit.read("data/other")

    kept(split.HOLDOUT).write_bytes(b"other")
    with pytest.raises(SourceError, match=r"data/split/holdout.parquet of main \(\w{8}\) is damaged"):
        commit.table(str(split.HOLDOUT))


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        pytest.param(b"", {}, id="empty"),
        pytest.param(b"schema: '2.0'\n", {}, id="no stage"),
        pytest.param(b"stages: {a: {cmd: x}}", {}, id="no outputs"),
        pytest.param(
            b"stages: {a: {outs: [{path: x, md5: %b}, {path: z}]}}" % (b"a" * 32), {"x": "a" * 32}, id="outputs"
        ),
    ],
)
def test_a_lock_tells_the_hash_of_each_output(content: bytes, wanted: dict[str, str]) -> None:
    assert sides.locked(content, "main") == wanted


@pytest.mark.parametrize(
    "content",
    [b"stages: [", b"[1]", b"stages: 3", b"stages: {a: [1]}", b"stages: {a: {outs: [{md5: x}]}}", b"\xff"]
    + [b"stages: {a: {outs: [{path: x, md5: %b}]}}" % md5 for md5 in (b"3", b"[a]", b"aa/etc/passwd", b"2013-99-99")]
    + [pytest.param(b"[" * 5000, id="deep")],
)
def test_a_lock_that_is_none_is_one_line(content: bytes) -> None:
    with pytest.raises(SourceError, match=r"^dvc.lock of main is not readable: .*$"):
        sides.locked(content, "main")


def test_changed_files_are_told_with_their_lines_and_new_ones_too(workshop: Path) -> None:
    Path("pyproject.toml").write_text(PROJECT + "\n# more\n")
    Path("new file.py").write_text("x = 1\n")
    Path("tests/behaviour.yaml").unlink()

    found = {part.path: (part.added, part.removed) for part in sides.changed(sides.Commit.at("main").sha)}

    assert found == {
        "pyproject.toml": (2, 0),
        "new file.py": (None, 0),
        "tests/behaviour.yaml": (0, len(CASES.splitlines())),
    }


def test_ml_review_prints_a_line_a_gate_and_ends_with_nothing_where_all_is_well(
    workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["review"]) == 0

    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert [line.split()[0] for line in lines[: len(GATES)]] == list(GATES)
    assert lines[-2:] == ["reports/review/report.html (against main)", "safe to merge: 11 gates passed, 3 skipped"]
    assert shown.err == ""


def test_ml_review_fails_with_the_headline(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_params({"gates.lock": False})

    assert cli.main(["review", "--against", "main", "--base", "main"]) == 1
    shown = capsys.readouterr()
    assert shown.err == "ml: do not merge: gates failed\n"
    assert "becomes false; to merge: take the change back, or have a code owner approve it\n" in shown.out
    assert cli.main(["review", "--approved", "Ada"]) == 0


def test_ml_review_against_what_git_does_not_know_is_one_line(
    workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["review", "--against=--help"]) == 1

    assert capsys.readouterr().err.startswith("ml: --help is not a commit that git knows here: ")


def test_ml_diff_tells_settings_and_metrics_that_differ(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["diff"]) == 0
    assert capsys.readouterr().out == "the same as on main\n"
    before = json.loads(evaluate.METRICS.read_text())["roc_auc"]
    make({"train.settings": {"max_iter": 5, "min_samples_leaf": 20}})
    after = json.loads(evaluate.METRICS.read_text())["roc_auc"]

    assert cli.main(["diff"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert "| train.settings.max_iter | 12 | 5 |" in lines
    assert f"| roc_auc | {before} | {after} |" in lines
    assert not [line for line in lines if "min_samples_leaf" in line or "| gates." in line]


@pytest.mark.parametrize(
    ("lack", "said"),
    [
        pytest.param(lambda: evaluate.METRICS.unlink(), "metrics.json is missing here: run make pipeline", id="here"),
        pytest.param(
            lambda: (git(Path.cwd(), "rm", "--quiet", "--cached", str(evaluate.METRICS)), save_only("gone")),
            "main has no reports/evaluate/metrics.json",
            id="there",
        ),
        pytest.param(lambda: evaluate.METRICS.write_text("{}"), "metrics.json holds no values to compare", id="empty"),
        pytest.param(lambda: evaluate.METRICS.write_text("{"), "metrics.json holds no values to compare", id="half"),
        pytest.param(
            lambda: (evaluate.METRICS.write_text("[]"), save("odd"), evaluate.METRICS.write_text("[]")),
            "reports/evaluate/metrics.json of main holds no values to compare",
            id="empty there",
        ),
        pytest.param(lambda: Path("params.yaml").unlink(), "params.yaml is missing here", id="settings"),
    ],
)
def test_ml_diff_with_a_side_that_lacks_metrics_is_an_error(
    workshop: Path, lack: Callable[[], None], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lack()

    assert cli.main(["diff"]) == 1
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""


def save_only(message: str) -> str:
    git(Path.cwd(), "commit", "--quiet", "--message", message)
    return git(Path.cwd(), "rev-parse", "HEAD").strip()
