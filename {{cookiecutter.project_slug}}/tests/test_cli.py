from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ml
from ml import cli
from ml.errors import UserError

HEAVY = ["bentoml", "mlflow", "numpy", "optuna", "pandas", "pandera", "pydantic", "ruamel", "sklearn", "skl2onnx"]


def python(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(ml.__file__).parents[1])}
    return subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch):
    """Return what makes `ml split` do something else."""

    def stand_in(action) -> None:
        monkeypatch.setitem(cli.VERBS, "split", (action, "", ""))

    return stand_in


@pytest.mark.parametrize("words", [["--help"], ["tune", "--help"], []], ids=" ".join)
def test_help_imports_nothing_that_only_a_verb_needs(tmp_path: Path, words: list[str]) -> None:
    program = (
        "import sys\nfrom ml.cli import main\n"
        f"try:\n    main({words})\nexcept SystemExit:\n    pass\n"
        f"print(sorted(set({HEAVY}) & set(sys.modules)))"
    )

    shown = python("-c", program, folder=tmp_path)

    assert shown.stdout.splitlines()[-1] == "[]"
    assert "usage: ml" in shown.stdout + shown.stderr


@pytest.mark.parametrize("name", list(cli.VERBS))
def test_every_verb_explains_itself_with_an_example_that_parses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, text, example = cli.VERBS[name]
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])

    shown = capsys.readouterr().out
    assert caught.value.code == 0
    assert text in " ".join(shown.split())
    assert f"example: {example}" in " ".join(shown.split())
    assert example.split()[:2] == ["ml", name]
    assert cli.parser().parse_args(example.split()[1:]).verb == name


def test_the_help_lists_every_verb_with_its_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])

    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert [example for _, _, example in cli.VERBS.values() if example not in lines] == []


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["fly"], id="unknown verb"),
        pytest.param([], id="no verb"),
        pytest.param(["ingest"], id="no period"),
        pytest.param(["tune", "--trials", "many"], id="not a number"),
        pytest.param(["split", "--fast"], id="unknown option"),
    ],
)
def test_words_that_cannot_be_understood_exit_with_two(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)

    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_the_words_reach_the_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setitem(cli.VERBS, "tune", (seen.append, "", ""))

    assert cli.main(["tune", "--trials", "20", "--timeout", "1.5"]) == 0

    assert (seen[0].trials, seen[0].timeout) == (20, 1.5)


def full_disk(_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "data/split/train.parquet.tmp")


def full_disk_somewhere(_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def broken_library(_: object) -> None:
    raise OSError("[Errno 28] Error writing bytes\nto file. Detail: No space left on device")


def two_lines(_: object) -> None:
    raise UserError("split.group = 'x'\n  is not a column")


def interrupted(_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("action", "code", "line"),
    [
        pytest.param(two_lines, 1, "ml: split.group = 'x' is not a column", id="user's error"),
        pytest.param(
            full_disk,
            1,
            "ml: data/split/train.parquet.tmp: No space left on device; nothing half-written was kept",
            id="full disk",
        ),
        pytest.param(
            full_disk_somewhere, 1, "ml: No space left on device; nothing half-written was kept", id="no file"
        ),
        pytest.param(
            broken_library,
            1,
            "ml: [Errno 28] Error writing bytes to file. Detail: No space left on device; "
            "nothing half-written was kept",
            id="library's error",
        ),
        pytest.param(interrupted, 130, "ml: interrupted; nothing half-written was kept", id="Ctrl-C"),
    ],
)
def test_a_failure_is_one_line_on_standard_error(
    verb, action, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    verb(action)

    assert cli.main(["split"]) == code

    shown = capsys.readouterr()
    assert shown.err == f"{line}\n"
    assert shown.out == ""


def test_a_fault_of_the_program_is_not_hidden(verb) -> None:
    verb(lambda _: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        cli.main(["split"])


def test_a_command_outside_a_project_is_one_line_and_exit_one(tmp_path: Path) -> None:
    shown = python("-m", "ml.cli", "split", folder=tmp_path)

    assert shown.returncode == 1
    assert shown.stderr == ("ml: params.yaml is missing: run this in the project's folder, or restore it with git\n")
