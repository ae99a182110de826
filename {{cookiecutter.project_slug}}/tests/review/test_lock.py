from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from tiny import edit, run

from ml.errors import UserError
from ml.review import lock

LACKS = "no remote is configured and the cache of this machine lacks"


def found(project: Path) -> list[tuple[str, str]]:
    return [(problem.kind, re.sub(r" \(\w{8}\)$", "", problem.what)) for problem in lock.problems(project)]


def locked(project: Path, path: str) -> str:
    stages = YAML(typ="safe").load((project / "dvc.lock").read_text())["stages"]
    return next(out["md5"] for stage in stages.values() for out in stage["outs"] if out["path"] == path)


def stored(store: Path, md5: str) -> Path:
    return store / "files/md5" / md5[:2] / md5[2:]


def without_data(project: Path) -> None:
    for path in ("data", "models", "reports/plots"):
        shutil.rmtree(project / path)


@pytest.fixture
def project(tiny_project: Path) -> Path:
    """Return the project of shell commands, in the place of the example's."""
    return tiny_project


@pytest.fixture
def remote(project: Path) -> Path:
    """Return the folder of a default remote that holds everything."""
    path = project / ".dvc" / "remote"
    run(project, "dvc", "remote", "add", "--default", "shelf", str(path))
    run(project, "dvc", "push", "--quiet")
    return path


def test_a_lock_that_was_just_written_is_current(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert found(project) == []
    assert capfd.readouterr() == ("", "")


def test_data_need_not_be_in_the_work_tree_nor_git_clean(project: Path) -> None:
    without_data(project)
    (project / "notes.txt").write_text("unsaved")

    assert found(project) == []


def drop_stage(project: Path) -> None:
    text = (project / "dvc.yaml").read_text()
    (project / "dvc.yaml").write_text(text.partition("  plots:")[0])


def forge_dep(project: Path) -> None:
    md5 = locked(project, "data/split/holdout.parquet")
    head, train, tail = (project / "dvc.lock").read_text().partition("\n  train:\n")
    assert md5 in tail
    (project / "dvc.lock").write_text(head + train + tail.replace(md5, "a" * 32, 1))


def forge_period(project: Path) -> None:
    path = "data/ingest/2013-02.parquet"
    edit(project / "dvc.lock", locked(project, path), locked(project, "data/ingest/2013-01.parquet"))


def strip_out(project: Path) -> None:
    edit(project / "dvc.lock", f"      md5: {locked(project, 'models/model.onnx')}\n", "")


def change(path: str, old: str, new: str) -> Callable[[Path], None]:
    return lambda project: edit(project / path, old, new)


@pytest.mark.parametrize("pulled", [True, False], ids=["data here", "data not pulled"])
@pytest.mark.parametrize(
    ("act", "wanted"),
    [
        pytest.param(
            change("params.yaml", "seed: 0", "seed: 1"),
            ("stale", "train: params.yaml: train.seed is not as the lock has it"),
            id="params",
        ),
        pytest.param(
            change("params.yaml", "stop: true", "stop: 1"),
            ("stale", "train: params.yaml: train.stop is not as the lock has it"),
            id="a truth value that Python takes for equal",
        ),
        pytest.param(
            change("params.yaml", "rows: 2", "rows: 3"),
            ("stale", "ingest@2013-01: params.yaml: data.rows is not as the lock has it"),
            id="params of a stage without deps",
        ),
        pytest.param(
            change("src/train.py", "fit", "fix"),
            ("stale", "train: src/train.py is not as the lock has it"),
            id="code",
        ),
        pytest.param(
            lambda project: (project / "src/train.py").unlink(),
            ("missing", "train: src/train.py does not exist"),
            id="code gone",
        ),
        pytest.param(
            change("dvc.yaml", "cat src/train.py", "cat  src/train.py"),
            ("stale", "train: the command is not as the lock has it"),
            id="command",
        ),
        pytest.param(drop_stage, ("stale", "plots: is in dvc.lock and not in dvc.yaml"), id="removed stage"),
        pytest.param(
            change("params.yaml", "2013-01, 2013-02]", "2013-01, 2013-02, 2013-03]"),
            ("missing", "ingest@2013-03: is in dvc.yaml and not in dvc.lock"),
            id="new stage",
        ),
        pytest.param(
            change("dvc.yaml", "      - src/train.py\n", ""),
            ("stale", "train: src/train.py is not as the lock has it"),
            id="dep taken out",
        ),
        pytest.param(
            change("dvc.yaml", "      - models/model.onnx\n", "      - models/model.onnx\n      - models/more\n"),
            ("stale", "train: models/more is not as the lock has it"),
            id="out put in",
        ),
        pytest.param(
            forge_dep,
            ("stale", "train: data/split/holdout.parquet is not as the lock has it"),
            id="hand-edited hash of a dep",
        ),
        pytest.param(
            forge_period,
            ("stale", "split: data/ingest is not as the lock has it"),
            id="hand-edited hash below a directory",
        ),
        pytest.param(strip_out, ("stale", "train: models/model.onnx is not as the lock has it"), id="hash taken out"),
        pytest.param(
            change("reports/rows.json", "2", "3"),
            ("stale", "split: reports/rows.json is not as the lock has it"),
            id="edited report",
        ),
        pytest.param(
            lambda project: (project / "reports/rows.json").unlink(),
            ("missing", "split: reports/rows.json does not exist"),
            id="report gone",
        ),
        pytest.param(
            lambda project: (project / "dvc.lock").unlink(), ("missing", "dvc.lock does not exist"), id="no lock"
        ),
        pytest.param(
            change("dvc.lock", "schema:", "<<<<<<< HEAD\nschema:"),
            ("missing", "dvc.lock is not readable as YAML of DVC's form"),
            id="conflict in the lock",
        ),
        pytest.param(
            change("dvc.lock", "    cmd:", "    command:"),
            ("missing", "dvc.lock is not readable as YAML of DVC's form"),
            id="not DVC's form",
        ),
    ],
)
def test_what_is_not_as_the_lock_has_it_is_named(
    project: Path,
    act: Callable[[Path], None],
    wanted: tuple[str, str],
    pulled: bool,
) -> None:
    act(project)
    if not pulled:
        without_data(project)

    assert wanted in found(project)


def test_an_edited_output_is_stale_where_it_is_present(project: Path) -> None:
    for path in ("models/model.onnx", "reports/plots/deep/b"):
        (project / path).unlink()
        (project / path).write_text("forged")

    assert found(project) == [
        ("stale", "plots: reports/plots is not as the lock has it"),
        ("stale", "train: models/model.onnx is not as the lock has it"),
    ]


def test_a_changed_file_that_dvc_add_keeps_is_stale(project: Path) -> None:
    (project / "raw.csv").write_text("1\n")
    run(project, "dvc", "add", "--quiet", "raw.csv")
    assert found(project) == []

    (project / "raw.csv").unlink()
    assert found(project) == []

    (project / "raw.csv").write_text("2\n")
    assert found(project) == [("stale", "raw.csv.dvc: raw.csv is not as the lock has it")]


@pytest.mark.parametrize("path", ["models/model.onnx", "data/ingest/2013-01.parquet"])
def test_without_a_remote_the_cache_of_this_machine_is_asked(project: Path, path: str) -> None:
    stored(project / ".dvc/cache", locked(project, path)).unlink()

    assert found(project) == [("unpushed", f"{LACKS} {path}")]


def test_what_a_remote_no_longer_lists_is_named_whatever_dvc_remembers(project: Path, remote: Path) -> None:
    run(project, "dvc", "status", "--cloud", "--quiet")
    assert found(project) == []

    stored(remote, locked(project, "data/ingest/2013-01.parquet")).unlink()
    assert found(project) == [("unpushed", "the remote shelf lacks data/ingest/2013-01.parquet")]


def test_a_file_of_a_directory_that_the_remote_lacks_is_named(project: Path, remote: Path) -> None:
    run(project, "dvc", "status", "--cloud", "--quiet")
    stored(remote, lock.digest(project / "reports/plots/deep/b")).unlink()

    assert found(project) == [("unpushed", "the remote shelf lacks reports/plots/deep/b")]


def test_a_directory_that_was_never_pushed_is_named(project: Path, remote: Path) -> None:
    shutil.rmtree(remote)

    assert {kind for kind, _ in found(project)} == {"unpushed"}
    assert ("unpushed", "the remote shelf lacks reports/plots") in found(project)
    assert lock.problems(project, stored=False) == []


def test_the_look_changes_nothing(project: Path, remote: Path) -> None:
    damaged = stored(remote, locked(project, "models/model.onnx"))
    damaged.chmod(0o644)
    damaged.write_text("damaged")
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}

    found(project)

    after = {path: path.read_bytes() for path in project.rglob("*") if path.is_file() and ".dvc/tmp" not in str(path)}
    assert after == {path: content for path, content in before.items() if ".dvc/tmp" not in str(path)}


@pytest.mark.parametrize(
    ("path", "text"),
    [("dvc.yaml", "stages: ["), ("dvc.yaml", "stages:\n  train: 1\n"), ("params.yaml", "a: [")],
    ids=["dvc.yaml is not YAML", "dvc.yaml is not DVC's", "params.yaml is not YAML"],
)
def test_what_dvc_cannot_read_is_one_line(project: Path, path: str, text: str) -> None:
    (project / path).write_text(text)

    with pytest.raises(UserError, match=r"^DVC cannot read this project: ") as caught:
        lock.problems(project)

    assert "\n" not in str(caught.value)


def test_a_remote_that_cannot_be_reached_is_one_line(
    project: Path,
    remote: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(lock, "listed", refuse)

    with pytest.raises(UserError, match=r"^the remote shelf cannot be listed \(no route to host\): check its address"):
        lock.problems(project)


def test_a_remote_whose_package_is_not_installed_is_one_line(
    project: Path, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(_: object) -> None:
        raise ImportError("s3 is supported, but requires 'dvc-s3' to be installed")

    monkeypatch.setattr(lock, "_holder", absent)

    with pytest.raises(UserError, match=r"^the remote needs dvc-s3: add it to the group pipeline"):
        lock.problems(project)


def test_it_is_quick_with_nothing_imported(project: Path) -> None:
    begun = time.monotonic()
    source = str(Path(lock.__file__).parents[2])
    program = f"import sys; sys.path.insert(0, {source!r}); from pathlib import Path; from ml.review import lock; "
    run(project, sys.executable, "-c", program + "assert lock.problems(Path.cwd()) == []")

    assert time.monotonic() - begun < 10  # a busy machine's; 1.4 s on a quiet one
