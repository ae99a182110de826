from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from host import Hub, commit, copied, git, md5, settle, written

from ml import objects, refs
from ml.errors import SourceError, UserError
from ml.operations import ci, deliver, storage
from ml.review.verdict import Result, Side, Verdict

PARAMS = "data:\n  rows: {}\ntrain:\n  seed: {}\ngates:\n  lock: true\n"


def run_pipeline(rows: int = 2, seed: int = 0) -> None:
    """Leave what a pipeline of two stages leaves: outputs in the cache, and a lock that is current."""
    data, model = b"rows %d" % rows, b"model %d %d" % (rows, seed)
    for path, content in (("data/a.parquet", data), ("models/model.onnx", model)):
        written(Path(path), content)
        written(objects.place(objects.CACHE, md5(content)), content)
    table = {"path": "data/a.parquet", "hash": "md5", "md5": md5(data)}
    onnx = {"path": "models/model.onnx", "hash": "md5", "md5": md5(model)}
    ingest = {"cmd": "true", "params": {"params.yaml": {"data.rows": rows}}, "outs": [table]}
    train = {"cmd": "true", "deps": [table], "params": {"params.yaml": {"train": {"seed": seed}}}, "outs": [onnx]}
    stages = {
        "ingest": {"cmd": "true", "params": ["data.rows"], "outs": [table["path"]]},
        "train": {"cmd": "true", "params": ["train"], "deps": [table["path"]], "outs": [onnx["path"]]},
    }
    written(Path("params.yaml"), PARAMS.format(rows, seed).encode())
    written(Path("dvc.yaml"), json.dumps({"stages": stages}).encode())
    written(Path("dvc.lock"), json.dumps({"schema": "2.0", "stages": {"ingest": ingest, "train": train}}).encode())


@pytest.fixture(scope="module")
def pristine_main(pristine_laptop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("main")
    with pytest.MonkeyPatch.context() as patch:
        settle(folder, patch)
        os.chdir(copied(pristine_laptop, folder))
        run_pipeline()
        Path("metrics.json").unlink()
        commit("main")
        storage.push()
        git(Path.cwd(), "checkout", "--quiet", "-b", "change")
    return folder


@pytest.fixture
def main(pristine_main: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project whose main is made and stored, on a branch `change`."""
    monkeypatch.chdir(copied(pristine_main, tmp_path))
    return tmp_path / "laptop"


REQUEST = {"pull_request": {"base": {"ref": "main"}}}


def planned(told: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return what the plan of HEAD has turned on, the commit to compare with by the branch that it is on."""
    found = ci.plan(REQUEST if told is None else told)
    on = [name for name in ("ingest", "model", "service", "stale", "retrain") if getattr(found, name)]
    return {"base": found.base == git(Path.cwd(), "rev-parse", "main"), "tests": found.tests, "on": on}


def change(*paths: str) -> None:
    for path in paths:
        written(Path(path), b"changed\n")
    commit("change", "change")


def retrained() -> None:
    run_pipeline(seed=1)
    commit("change", "change")
    storage.push()


def parameter(rows: int, seed: int) -> Callable[[], None]:
    def edit() -> None:
        written(Path("params.yaml"), PARAMS.format(rows, seed).encode())
        commit("change", "change")

    return edit


def unpushed() -> None:
    run_pipeline(seed=1)
    commit("change", "change")


def model_gone() -> None:
    for path in ("dvc.lock", "dvc.yaml"):
        document = json.loads(Path(path).read_text())
        del document["stages"]["train"]
        written(Path(path), json.dumps(document).encode())
    commit("change", "change")


DOCS, ALL = "tests/test_docs.py", "tests"
CHANGES = {
    "docs only": (lambda: change("README.md", "docs/ci.md", "LICENSE", ".github/CODEOWNERS"), DOCS, []),
    "nothing": (lambda: commit("empty", "change"), DOCS, []),
    "tests only": (lambda: change("tests/pipeline/test_split.py", "README.md"), ALL, []),
    "operations only": (lambda: change("src/ml/operations/ci.py"), ALL, []),
    "serving only": (lambda: change("src/ml/serving/service.py"), ALL, ["service"]),
    "the image only": (lambda: change("deploy/Dockerfile"), ALL, ["service"]),
    "behaviour": (lambda: change("tests/behaviour.yaml"), ALL, ["model", "service"]),
    "a report": (lambda: change("reports/evaluate/metrics.json"), ALL, ["model", "service"]),
    "code that no stage names": (lambda: change("src/ml/review/gates.py"), ALL, ["model", "service"]),
    "a workflow": (lambda: change(".github/workflows/report.yml"), ALL, ["model", "service"]),
    "a parameter, trained and pushed": (retrained, ALL, ["model", "service", "retrain"]),
    "a parameter, trained and not pushed": (unpushed, ALL, ["model", "service", "stale"]),
    "a parameter of training": (parameter(2, 1), ALL, ["model", "service", "stale"]),
    "a parameter of the data": (parameter(3, 0), ALL, ["ingest", "model", "service", "stale"]),
    "the model's end": (model_gone, ALL, ["ingest", "model", "service", "retrain"]),
}


@pytest.mark.parametrize(("edit", "tests", "on"), CHANGES.values(), ids=CHANGES)
def test_only_what_a_change_can_move_is_computed(
    edit: Callable[[], None], tests: str, on: list[str], main: Path
) -> None:
    edit()

    assert planned() == {"base": True, "tests": tests, "on": on}


def test_a_renamed_file_counts_where_it_was_and_where_it_is(main: Path) -> None:
    change("src/ml/review/gates.py")
    git(main, "push", "--quiet", "--no-verify", "origin", "HEAD:main")
    git(main, "branch", "--force", "main", "HEAD")
    git(main, "mv", "src/ml/review/gates.py", "gates.md")
    commit("rename", "change")

    assert planned() == {"base": True, "tests": ALL, "on": ["model", "service"]}


@pytest.mark.parametrize("told", [{"before": "0" * 40}, {"before": "f" * 40}, {"before": ""}])
def test_a_push_without_a_commit_before_it_computes_everything(told: dict[str, Any], main: Path) -> None:
    found = ci.plan(told)

    assert (found.base, found.changed) == ("", [])
    assert found.outputs() == {
        **{"base": "", "tests": "tests", "ingest": "false", "model": "true", "service": "true"},
        **{"stale": "false", "retrain": "true"},
    }


def test_the_first_push_of_a_repository_without_a_lock_makes_everything(main: Path) -> None:
    git(main, "rm", "--quiet", "--cached", "dvc.lock")
    Path("dvc.lock").unlink()
    git(main, "commit", "--quiet", "--amend", "-m", "first")

    found = ci.plan({"before": "0" * 40})

    assert [found.ingest, found.model, found.service, found.stale, found.retrain] == [True, True, True, True, False]


def test_a_push_is_compared_with_the_commit_before_it(main: Path) -> None:
    before = git(main, "rev-parse", "HEAD")
    change("README.md")

    found = ci.plan({"before": before, "after": git(main, "rev-parse", "HEAD")})

    assert (found.base, found.changed, found.model) == (before, ["README.md"], False)


def test_a_merge_queue_is_compared_with_what_stands_before_it_in_the_queue(main: Path) -> None:
    change("src/ml/review/gates.py")
    queued = git(main, "rev-parse", "HEAD")
    change("README.md")

    assert ci.plan({"merge_group": {"base_sha": queued}}).changed == ["README.md"]


def test_a_pull_request_to_another_branch_is_compared_with_that(main: Path) -> None:
    change("src/ml/review/gates.py")
    git(main, "push", "--quiet", "--no-verify", "origin", "HEAD:release/1")
    change("README.md")

    told = {"pull_request": {"base": {"ref": "release/1"}}, "before": "0" * 40}

    assert ci.plan(told).changed == ["README.md"]
    assert ci.plan(REQUEST).changed == ["README.md", "src/ml/review/gates.py"]


def test_what_the_base_got_meanwhile_is_no_change(main: Path) -> None:
    change("README.md")
    git(main, "checkout", "--quiet", "main")
    written(Path("src/ml/review/gates.py"), b"")
    commit("meanwhile", "main")
    git(main, "checkout", "--quiet", "change")

    assert ci.plan(REQUEST).changed == ["README.md"]


def test_started_by_hand_a_branch_is_compared_with_main(main: Path) -> None:
    change("README.md")

    assert planned({"inputs": {}, "ref": "refs/heads/change"}) == {"base": True, "tests": DOCS, "on": []}


@pytest.mark.parametrize("ref", ["gone", "--output=x", "a b", "x\nmodel=false", "@{u}", ":/main"])
def test_a_base_that_git_does_not_know_computes_everything(ref: str, main: Path) -> None:
    assert planned({"pull_request": {"base": {"ref": ref}}}) == {
        **{"base": False, "tests": ALL, "on": ["model", "service", "retrain"]},
    }


def test_an_object_that_the_storage_lost_is_made_again(main: Path, origin: Path) -> None:
    change("README.md")
    git(origin, "update-ref", "-d", f"{refs.SPACE}{md5(b'model 2 0')}")

    assert planned() == {"base": True, "tests": ALL, "on": ["model", "service", "stale"]}


def test_where_the_storage_does_not_answer_the_plan_says_so(main: Path, origin: Path) -> None:
    shutil.rmtree(origin)

    with pytest.raises(UserError, match=r"^origin cannot be listed: [^\n]+$"):
        ci.plan(REQUEST)


def test_a_lock_that_is_not_yaml_is_one_line(main: Path) -> None:
    change("dvc.lock")

    with pytest.raises(UserError, match=r"^dvc.lock of HEAD is not readable: [^\n]+$"):
        ci.plan(REQUEST)


@pytest.fixture
def workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return what reads the files that GitHub gives to a step; its event is REQUEST."""
    for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "GITHUB_EVENT_PATH"):
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "GITHUB_EVENT_PATH").write_text(json.dumps(REQUEST))
    return lambda name: (tmp_path / name).read_text(encoding="utf-8")


def test_hostile_names_of_files_become_no_outputs(main: Path, workflow: Callable[[str], str]) -> None:
    change("a\nmodel=true\n.md", "b\r\nbase=x.md", "::set-output name=model::true.md", "docs/é\u2028tests=x.md")
    written(Path(os.fsdecode(b"\xff\n.md")), b"")
    commit("change", "change")

    said = ci.write_plan()

    assert said == "5 files changed, none that makes the model: it is production's"
    base = git(main, "rev-parse", "main")
    assert workflow("GITHUB_OUTPUT").splitlines() == [
        *(f"base={base}", "tests=tests/test_docs.py", "ingest=false", "model=false", "service=false"),
        *("stale=false", "retrain=false"),
    ]


def test_an_output_is_one_line_whatever_it_holds(workflow: Callable[[str], str]) -> None:
    said = ci.give({"approved": "octocat\nmodel=false\r\n\u2028x", "baseline": ""})

    assert workflow("GITHUB_OUTPUT") == said == "approved=octocat model=false x\nbaseline=\n"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (retrained, "2 files changed: the model is trained again here"),
        (parameter(2, 1), "dvc.lock is not current: the model is made here"),
        (lambda: change("Makefile"), "1 files changed: the model is reviewed here"),
    ],
)
def test_the_plan_says_in_words_what_happens(
    edit: Callable[[], None], said: str, main: Path, workflow: Callable[[str], str]
) -> None:
    edit()

    assert ci.write_plan() == said


def test_outside_of_a_workflow_there_is_no_event_and_nothing_is_written(main: Path) -> None:
    assert ci.event() == {}
    assert ci.give({"base": "x"}) == "base=x\n"


HEAD = "a" * 40
CODEOWNERS = b"* @everybody\nparams.yaml @Owner @octo/team # not @commenter\n/src/ @coder\n"


def review(login: str | None, state: str = "APPROVED", commit_id: str = HEAD) -> dict[str, Any]:
    return {"user": login and {"login": login}, "state": state, "commit_id": commit_id}


@pytest.fixture
def reviewed(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return what says who approved a pull request of the author that has such reviews; its base has CODEOWNERS."""
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "--quiet")
    written(Path(".github/CODEOWNERS"), CODEOWNERS)
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "-m", "base")
    git(tmp_path, "update-ref", "refs/remotes/origin/main", "HEAD")

    def approver(*reviews: dict[str, Any], author: str | None = "author") -> str:
        hub.on("GET pulls/12/reviews", [*reviews])
        request = {"number": 12, "base": {"ref": "main"}, "head": {"sha": HEAD}, "user": author and {"login": author}}
        return ci.approver({"pull_request": request})

    return approver


@pytest.mark.parametrize(
    ("reviews", "who"),
    [
        ([review("owner")], "owner"),
        ([review("OWNER")], "owner"),
        ([review("owner", "CHANGES_REQUESTED"), review("owner")], "owner"),
        ([review("owner"), review("owner", "COMMENTED")], "owner"),
        ([*(review(f"other{at}") for at in range(120)), review("owner")], "owner"),
        ([], ""),
        ([review("everybody")], ""),
        ([review("commenter")], ""),
        ([review("coder")], ""),
        ([review("team"), review("octo")], ""),
        ([review(None)], ""),
        ([review("owner", commit_id="b" * 40)], ""),
        ([review("owner", "DISMISSED")], ""),
        ([review("owner"), review("owner", "CHANGES_REQUESTED")], ""),
        ([review("owner"), review("owner", commit_id="b" * 40)], ""),
        ([review("owner", "COMMENTED")], ""),
    ],
)
def test_only_a_code_owner_of_the_gates_approves_and_only_this_commit(
    reviews: list[dict[str, Any]], who: str, reviewed: Callable[..., str]
) -> None:
    assert reviewed(*reviews) == who


def test_nobody_approves_their_own_change(reviewed: Callable[..., str]) -> None:
    assert reviewed(review("owner"), author="Owner") == ""
    assert reviewed(review("owner"), author=None) == "owner"


def test_the_owners_are_those_of_the_base_and_not_of_the_change(reviewed: Callable[..., str]) -> None:
    written(Path(".github/CODEOWNERS"), b"* @mallory\n")
    git(Path.cwd(), "commit", "--quiet", "-am", "change")

    assert reviewed(review("mallory")) == ""
    assert reviewed(review("owner")) == "owner"


def test_where_the_api_denies_the_reviews_nobody_approved_and_the_run_goes_on(
    reviewed: Callable[..., str], hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    reviewed()
    hub.on("GET pulls/12/reviews", (403, {}, {"message": "Resource not\naccessible"}))

    assert ci.approver({"pull_request": {"number": 12, "base": {"ref": "main"}}}) == ""
    assert capsys.readouterr().out == (
        "::warning::GitHub refuses GET pulls/12/reviews (403): Resource not accessible: no approval counts\n"
    )


def test_what_was_approved_on_the_pull_request_counts_for_the_push_that_merged_it(
    reviewed: Callable[..., str], hub: Hub
) -> None:
    before = git(Path.cwd(), "rev-parse", "HEAD").strip()
    written(Path(".github/CODEOWNERS"), b"* @mallory\n")
    git(Path.cwd(), "commit", "--quiet", "-am", "change")
    merged = git(Path.cwd(), "rev-parse", "HEAD").strip()
    git(Path.cwd(), "update-ref", "refs/remotes/origin/main", "HEAD")
    told = {"before": before, "after": merged}
    about = {"number": 12, "base": {"ref": "main"}, "head": {"sha": HEAD}, "user": {"login": "author"}}
    hub.on("GET pulls/12/reviews", [review("owner"), review("mallory")])

    hub.on(f"GET commits/{merged}/pulls", [about | {"merged_at": "2026-01-01", "merge_commit_sha": merged}])
    assert ci.approver(told) == "owner"
    assert ci.approver(told | {"before": ci.NOTHING}) == ""
    hub.on(f"GET commits/{merged}/pulls", [about | {"merged_at": None, "merge_commit_sha": merged}])
    assert ci.approver(told) == ""
    hub.on(f"GET commits/{merged}/pulls", (403, {}, {"message": "no"}))
    assert ci.approver(told) == ""


def test_without_a_pull_request_nobody_is_asked(hub: Hub) -> None:
    assert ci.approver({"merge_group": {"base_sha": HEAD}}) == ""
    assert hub.calls == []


@pytest.mark.parametrize(
    ("text", "who"),
    [
        ("", set()),
        ("* @a @B", {"a", "b"}),
        ("* @a\nparams.yaml @b", {"b"}),
        ("params.yaml @b\n* @a", {"a"}),
        ("params.yaml @b\n*.yaml @a", {"a"}),
        ("params.yaml @b\n**/params.yaml @a", {"a"}),
        ("params.yaml @b\n/**/*.yaml @a", {"a"}),
        ("params.yaml @b\n**/tests/ @a", {"b"}),
        ("/params.yaml @a", {"a"}),
        ("* @a\nparams.yaml", set()),
        ("* @a\n# params.yaml @b", {"a"}),
        ("* @a\n  params.yaml\t@b  # @c", {"b"}),
        ("* @a\nparams.yaml a@example.org @octo/team", set()),
        ("* @a\nparams.yml @b\nparams.yaml.md @c\nsrc/params.yaml @d\nPARAMS.YAML @e\n/docs/ @f", {"a"}),
    ],
)
def test_the_last_line_that_fits_names_the_owners(text: str, who: set[str]) -> None:
    assert ci.owners(text, "params.yaml") == who


@pytest.mark.parametrize(
    ("pattern", "fits"), [("/src/", True), ("src", True), ("/src/ml", True), ("src/m", False), ("ml/", False)]
)
def test_a_folder_is_owned_with_all_below_it(pattern: str, fits: bool) -> None:
    assert ci.owners(f"{pattern} @a", "src/ml/cli.py") == ({"a"} if fits else set())


def verdict(*results: Result) -> Verdict:
    side = Side(ref="change", commit=HEAD)
    rest = {"decision": "d", "objective": "o", "confidence": 0.95, "production": None, "base": None}
    return Verdict(project="late", task="binary", candidate=side, results=[*results], **rest)


def gate(name: str, status: str = "failed", **more: Any) -> Result:
    return Result(**{"gate": name, "status": status, "sentence": "it is 0.1", "remedy": "raise it", **more})


PARAMS_YAML = """\
slices: # not a gate
  harm: 1
gates: # what must hold
  # harm: as before
  floor:
    harm: 0.1
  harm: # largest loss
    margins:
      roc_auc: 0.01

serve:
  image: python
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with settings and nothing else, in the place of a project."""
    monkeypatch.chdir(tmp_path)
    written(Path("params.yaml"), PARAMS_YAML.encode())
    return tmp_path


@pytest.mark.parametrize(
    ("result", "place"),
    [
        (gate("floor"), "file=params.yaml,line=5"),
        (gate("harm"), "file=params.yaml,line=7"),
        (gate("har."), "file=params.yaml,line=3"),
        (gate("image"), "file=params.yaml,line=3"),
        (gate("data", file="tests/behaviour.yaml", line=4), "file=tests/behaviour.yaml,line=4"),
        (gate("data", file="src/ml/pipeline/features.py"), "file=src/ml/pipeline/features.py"),
    ],
)
def test_an_annotation_is_at_the_line_to_edit(result: Result, place: str, project: Path) -> None:
    title = f"{result.gate}%3A failed"

    assert ci.annotations(verdict(result)) == [f"::error {place},title={title}::it is 0.1. raise it"]


@pytest.mark.parametrize("content", [None, b"", b"train: 1\n", b"\xff\xfe"])
def test_without_gates_to_edit_an_annotation_names_the_file(content: bytes | None, project: Path) -> None:
    Path("params.yaml").unlink()
    if content is not None:
        written(Path("params.yaml"), content)

    assert ci.annotations(verdict(gate("harm")))[0].startswith("::error file=params.yaml,title=")


def test_only_what_blocks_is_annotated_failures_first(project: Path) -> None:
    results = [gate("harm", "not judged"), gate("floor", "passed"), gate("image", "skipped"), gate("data", remedy="")]

    assert [line.partition(" ")[0] for line in ci.annotations(verdict(*results))] == ["::error", "::warning"]
    assert ci.annotations(verdict(*results))[0].endswith("::it is 0.1")


HOSTILE = "x\n::add-mask::y\r\n::stop-commands::z\r::set-output name=a::b%0A::error::c,line=1::d"


def test_hostile_text_stays_within_its_annotation(project: Path) -> None:
    told = verdict(gate(HOSTILE, sentence=HOSTILE, remedy=HOSTILE, file=HOSTILE, line=3))

    [line] = ci.annotations(told)

    head, _, message = line.removeprefix("::").partition("::")
    assert len(line.splitlines()) == 1
    assert [part.partition("=")[0] for part in head.removeprefix("error ").split(",")] == ["file", "line", "title"]
    decoded = message.replace("%0D", "\r").replace("%0A", "\n").replace("%25", "%")
    assert decoded == f"{HOSTILE}. {HOSTILE}"


def left(verdict: Verdict, text: str = "## the verdict\n") -> None:
    """Leave what `make review` leaves."""
    written(Path("reports/review/verdict.json"), verdict.model_dump_json().encode())
    written(Path("reports/review/report.md"), text.encode())


def test_the_summary_shows_the_verdict_and_annotates_it(
    project: Path, workflow: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    left(verdict(gate("harm"), gate("floor", "passed")))

    assert ci.summary() == "do not merge: harm failed"

    assert workflow("GITHUB_STEP_SUMMARY") == "## the verdict\n"
    assert capsys.readouterr().out.splitlines() == [*ci.annotations(verdict(gate("harm")))]


def test_without_a_verdict_the_summary_says_so(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ci.summary() == "no verdict was reached"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 1}', b"\xff"])
def test_a_verdict_that_is_none_is_one_line(content: bytes, project: Path) -> None:
    written(Path("reports/review/verdict.json"), content)

    for ask in (ci.summary, lambda: ci.write_report(needs(model="success"))):
        with pytest.raises(SourceError, match=r"^reports/review/verdict.json is no verdict: run make review$"):
            ask()


def needs(base: str = "", **results: str) -> dict[str, Any]:
    found = {
        "lint": "success",
        "data": "success",
        "test": "success",
        "model": "skipped",
        "service": "skipped",
    } | results
    return {
        name: {"result": result, "outputs": {"base": base} if name == "data" else {}} for name, result in found.items()
    }


def test_a_report_with_a_verdict_is_the_reviews_own(project: Path, workflow: Callable[[str], str]) -> None:
    left(verdict(gate("harm\n::error::x")))

    said = ci.write_report(needs(model="failure"))

    assert said == "do not merge: harm ::error::x failed"
    assert Path("reports/review/report.md").read_text() == workflow("GITHUB_STEP_SUMMARY") == "## the verdict\n"


def test_a_report_without_a_model_says_what_changed(main: Path, workflow: Callable[[str], str]) -> None:
    change("README.md", "docs/`a` <b> @octocat\n# x.md")
    written(Path("reports/service/result.json"), b'{"sentence": "p99 is 3 ms, @octocat"}')

    said = ci.write_report(needs(base=git(main, "rev-parse", "main")))

    assert said == "✅ Safe to merge: the model does not change"
    lines = workflow("GITHUB_STEP_SUMMARY").splitlines()
    assert lines[0] == f"## {said}"
    assert "**Service:** p99 is 3 ms, `@octocat`" in lines
    assert [line for line in lines if line.startswith("- ")] == ["- `README.md`", "- `docs/'a' <b> @octocat # x.md`"]
    assert Path("reports/review/report.md").read_text() == workflow("GITHUB_STEP_SUMMARY")


def test_a_report_of_many_changed_files_names_some_and_counts_the_rest(main: Path) -> None:
    change(*(f"docs/{at:02}.md" for at in range(23)))

    ci.write_report(needs(base=git(main, "rev-parse", "main")))

    text = Path("reports/review/report.md").read_text()
    assert text.count("- `docs/") == 20
    assert "… and 3 more" in text


@pytest.mark.parametrize(
    ("results", "names"),
    [
        ({"data": "failure", "test": "skipped"}, "`data`"),
        ({"lint": "failure", "test": "cancelled"}, "`lint`, `test`"),
        ({"model": "failure"}, "`model`"),
        ({"model": "success"}, "`model`"),
    ],
)
def test_a_report_is_no_all_clear_where_no_verdict_was_reached(
    results: dict[str, str], names: str, project: Path, workflow: Callable[[str], str]
) -> None:
    said = ci.write_report(needs(**results))

    assert said == "❌ Do not merge: no verdict was reached"
    assert f"**Why:** {names} ended before the model could be judged." in workflow("GITHUB_STEP_SUMMARY")


def test_without_a_base_or_its_model_there_is_no_baseline(main: Path) -> None:
    assert ci.baseline("") == ""
    Path("dvc.lock").unlink()
    commit("no lock", "change")
    assert ci.baseline(git(main, "rev-parse", "HEAD")) == ""


BUILD = "import os, sys\nfrom pathlib import Path\n{}\n"


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("sys.exit('first\\nlate: no module')", "the base's service cannot be built: late: no module"),
        ("sys.exit(3)", "the base's service cannot be built: no reason given"),
    ],
)
def test_a_base_that_does_not_build_is_one_line(script: str, told: str, main: Path) -> None:
    written(Path("src/ml/__init__.py"), b"")
    written(Path("src/ml/cli.py"), BUILD.format(script).encode())
    commit("base", "change")

    with pytest.raises(UserError, match=f"^{told}$"):
        ci.baseline(git(main, "rev-parse", "HEAD"))


def test_the_bases_own_code_builds_it_from_its_own_model(main: Path) -> None:
    script = "print('warnings')\nprint('late:' + Path('models/model.onnx').read_text().replace(' ', '-'), 'built')"
    written(Path("src/ml/__init__.py"), b"")
    written(Path("src/ml/cli.py"), BUILD.format(script).encode())
    base = commit("base", "change")
    written(Path("src/ml/cli.py"), b"raise SystemExit('the change')")
    run_pipeline(seed=1)

    assert ci.baseline(base) == "late:model-2-0"
    assert Path("models/model.onnx").read_bytes() == b"model 2 1"


def test_every_action_of_the_command_line_does_something() -> None:
    from ml import cli

    assert {*ci.ACTIONS, *deliver.ACTIONS} == set(cli.CI)
