"""Ring 2: exact files, clean rendering, the same bytes twice, and small enough to love."""

from __future__ import annotations

import ast
import fnmatch
import io
import json
import os
import re
import shutil
import tokenize
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from conftest import PRODUCT, ROOT, Bake, clean_environment, files_of, require, run

LIST = ROOT / "tests" / "files.txt"
MOST_FILES, MOST_TARGETS, MOST_PAGES = 90, 20, 10
# What GitHub, git, DVC, uv and the programs of a deployment prescribe or write has a form of its own.
PRESCRIBED, MOST_PRESCRIBED = (".git", ".dvc", ".python-version", "LICENSE", "deploy/", "requirements/"), 30
# Of code: neither blank, comment nor docstring. docs/decisions.md says where the figures come from.
MOST_LINES = {"pipeline": 1800, "review": 2800, "serving": 1800, "operations": 2700, "elsewhere": 600}
VERBATIM = json.loads((ROOT / "cookiecutter.json").read_text())["_copy_without_render"]
LOCKS = ("all.txt", "serving.txt")


def is_verbatim(path: str) -> bool:
    return any(fnmatch.fnmatch(path, pattern) for pattern in VERBATIM)


def lines_of_code(source: str) -> set[int]:
    """Return the numbers of the lines that hold code."""
    marks = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type not in marks]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def targets_of(makefile: Path) -> list[str]:
    return re.findall(r"^([a-z][a-z-]*):(?!=)", makefile.read_text(), re.M)


def names_in(lock: Path) -> set[str]:
    return set(re.findall(r"^([a-z0-9][a-z0-9.-]*)==", lock.read_text(), re.M))


def pins_in(lock: Path) -> set[str]:
    return set(re.findall(r"^([a-z0-9][a-z0-9.-]*==\S+)", lock.read_text(), re.M))


def test_a_project_holds_exactly_the_listed_files(bake: Bake) -> None:
    found = files_of(bake())

    if os.environ.get("REWRITE"):
        LIST.write_text("\n".join(found) + "\n")
    expected = LIST.read_text().splitlines()
    assert found == expected, 'if this is meant: make test-fast ARGS="-k exactly" REWRITE=1'


def test_no_trace_of_cookiecutter_is_left(bake: Bake) -> None:
    project = bake()

    marked = [name for name in files_of(project) if "{{ cookiecutter" in (project / name).read_text() or "{{" in name]
    named = [name for name in files_of(project) if re.search("cookiecutter", (project / name).read_text(), re.I)]
    assert marked == []
    assert named == []


def test_files_that_are_not_rendered_are_byte_identical(bake: Bake, template: Path) -> None:
    project = bake(description="{ other }", license="Proprietary", include_kubernetes=True)

    verbatim = [name for name in files_of(template / PRODUCT) if is_verbatim(name)]
    differing = [n for n in verbatim if (project / n).read_bytes() != (template / PRODUCT / n).read_bytes()]
    assert len(verbatim) > 10
    assert differing == []


def test_code_workflows_and_pipeline_are_never_rendered(template: Path) -> None:
    must = [
        name
        for name in files_of(template / PRODUCT)
        if name.endswith((".py", ".yml", ".yaml")) or Path(name).name == "Makefile"
    ]

    assert "dvc.yaml" in must
    assert [name for name in must if not is_verbatim(name)] == []


def test_no_pattern_of_files_to_copy_matches_a_folder(template: Path) -> None:
    folders = [
        path.relative_to(template / PRODUCT).as_posix() for path in (template / PRODUCT).rglob("*") if path.is_dir()
    ]

    assert len(folders) > 3
    assert [folder for folder in folders if is_verbatim(folder)] == []


def test_configuration_has_jinja_only_inside_quoted_scalars(template: Path) -> None:
    rendered = [n for n in files_of(template / PRODUCT) if n.endswith((".toml", ".yml", ".yaml", ".json"))]

    text = {name: (template / PRODUCT / name).read_text() for name in rendered}
    assert [name for name, content in text.items() if not is_verbatim(name) and re.search("{[%#]", content)] == []
    assert tomllib.loads(text["pyproject.toml"])["project"]["name"] == "{{ cookiecutter.project_slug }}"


def test_the_same_answers_give_the_same_bytes(bake: Bake, tmp_path: Path) -> None:
    first, second = bake(license="Apache-2.0"), bake.into(tmp_path, license="Apache-2.0")

    assert files_of(first) == files_of(second)
    for name in files_of(first):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
        assert (first / name).stat().st_mode == (second / name).stat().st_mode, name


def test_what_checks_leave_in_the_template_folder_stays_out_of_a_project(template: Path, tmp_path: Path) -> None:
    used = shutil.copytree(template, tmp_path / "template")
    for name in (
        "src/ml/__pycache__/cli.pyc",
        ".hypothesis/examples/a/b",
        ".pytest_cache/README.md",
        ".ruff_cache/1/x",
    ):
        (used / PRODUCT / name).parent.mkdir(parents=True, exist_ok=True)
        (used / PRODUCT / name).write_bytes(b"plain\x89")

    project = Bake(used, tmp_path).into(tmp_path / "out")

    assert files_of(project) == LIST.read_text().splitlines()


def test_scripts_and_git_hooks_can_be_executed(bake: Bake) -> None:
    project = bake()

    scripts = [n for n in files_of(project) if (project / n).read_bytes().startswith(b"#!")]
    assert {"scripts/setup", "scripts/venv", ".githooks/pre-commit", ".githooks/post-checkout"} <= set(scripts)
    assert [name for name in scripts if not os.access(project / name, os.X_OK)] == []


@pytest.mark.parametrize("arguments", [("format", "--check"), ("check",)], ids=["format", "style"])
@pytest.mark.parametrize("layer", ["template", "project"])
def test_ruff_has_nothing_to_change(bake: Bake, template: Path, layer: str, arguments: tuple[str, ...]) -> None:
    folder = template if layer == "template" else bake()

    result = run(require("ruff"), *arguments, "--no-cache", "--quiet", ".", cwd=folder)

    assert result.returncode == 0, result.stdout + result.stderr


def test_both_layers_have_one_style() -> None:
    outer, inner = (tomllib.loads((ROOT / p / "pyproject.toml").read_text())["tool"]["ruff"] for p in ("", PRODUCT))

    assert outer == inner


def test_no_two_test_modules_share_a_name() -> None:
    # pytest imports them by name alone, and then collects nothing.
    names = Counter(path.name for path in (ROOT / PRODUCT).rglob("test_*.py"))

    assert [name for name, count in names.items() if count > 1] == []


def test_a_project_is_small_enough_to_love(bake: Bake) -> None:
    project = bake(include_kubernetes=True)

    files = [name for name in files_of(project) if not name.startswith(("tests/", ".github/"))]
    rooms = Counter()
    for name in (name for name in files if name.endswith(".py")):
        room = Path(name).parts[2] if name.count("/") > 2 else "elsewhere"
        rooms[room] += len(lines_of_code((project / name).read_text()))
    prescribed = [name for name in files if name.startswith(PRESCRIBED)]
    pages = [name for name in files if name.startswith("docs/")]
    assert len(files) - len(prescribed) - len(pages) <= MOST_FILES
    assert len(pages) <= MOST_PAGES
    assert len(prescribed) <= MOST_PRESCRIBED
    assert {room: lines for room, lines in rooms.items() if lines > MOST_LINES[room]} == {}
    assert set(MOST_LINES) == set(rooms)
    assert 0 < len(targets_of(project / "Makefile")) <= MOST_TARGETS


@pytest.mark.parametrize("layer", ["template", "project"])
def test_make_help_says_what_every_target_is_for(bake: Bake, template: Path, layer: str) -> None:
    folder = template if layer == "template" else bake()

    result = run(require("make"), cwd=folder)

    said = dict(re.findall(r"^  ([a-z-]+) +(\S.{9,})$", result.stdout, re.M))
    assert result.returncode == 0
    assert "help" in said
    assert list(said) == targets_of(folder / "Makefile")


@pytest.mark.parametrize("target", ["lint", "pipeline", "serve"])
def test_a_target_without_an_environment_says_what_to_run_first(bake: Bake, target: str) -> None:
    result = run(require("make"), target, cwd=bake())

    assert result.returncode == 2
    assert result.stdout == ""
    assert re.fullmatch(
        r"Makefile:\d+: \*\*\* there is no environment here yet: run `make setup` first\.  Stop\.\n", result.stderr
    )


def test_setup_names_all_that_the_machine_lacks_at_once(bake: Bake, tmp_path: Path) -> None:
    for tool in ("bash", "cat", "dirname", "env", "make"):
        (tmp_path / tool).symlink_to(require(tool))

    result = run(require("make"), "setup", cwd=bake(), PATH=str(tmp_path))

    missing = [line for line in result.stderr.splitlines() if line.startswith("missing: ")]
    assert result.returncode == 2
    assert len(missing) == 2
    assert "Python 3.11 or newer" in missing[0]
    assert "apt install python3 python3-venv" in missing[0]
    assert missing[1].startswith("missing: git is not on PATH: ")
    assert not (bake() / ".venv").exists()


def test_setup_passes_over_a_python_that_does_not_run_and_names_one_without_venv(bake: Bake, tmp_path: Path) -> None:
    for tool in ("bash", "cat", "dirname", "env", "make", "git"):
        (tmp_path / tool).symlink_to(require(tool))
    for name, body in (("python3.12", "exit 127"), ("python3", "echo 3.11.2 no")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)

    result = run(require("make"), "setup", cwd=bake(), PATH=str(tmp_path))

    assert result.returncode == 2
    missing = [line for line in result.stderr.splitlines() if line.startswith("missing: ")]
    assert missing == [
        f"missing: {tmp_path}/python3 cannot make environments: apt install python3-venv, or the like on your system"
    ]


@pytest.mark.parametrize(
    "lock", [ROOT / "requirements.txt", *(ROOT / PRODUCT / "requirements" / n for n in LOCKS)], ids=lambda p: p.name
)
def test_a_lock_has_hashes_for_every_pin_and_no_address(lock: Path) -> None:
    text = lock.read_text()

    entries = re.split(r"\n(?=\S)", text.rstrip("\n"))
    assert len(entries) > 20
    assert [
        e.split()[0]
        for e in entries
        if not re.fullmatch(r"[a-z0-9.-]+==\S+( ; .+?)?( \\\n    --hash=sha256:[0-9a-f]{64})+", e)
    ] == []
    assert "//" not in text


def test_the_image_holds_nothing_that_only_training_needs() -> None:
    everything, serving = (ROOT / PRODUCT / "requirements" / name for name in LOCKS)

    assert pins_in(serving) <= pins_in(everything)
    assert {"bentoml", "onnxruntime"} <= names_in(serving)
    assert not names_in(serving) & {
        "dvc",
        "mlflow",
        "pandas",
        "pandera",
        "pyarrow",
        "scikit-learn",
        "scipy",
        "skl2onnx",
    }


def test_git_ignores_what_is_made_and_keeps_what_is_reviewed(bake: Bake, tmp_path: Path) -> None:
    project = shutil.copytree(bake(), tmp_path / "project")
    made = ["data/ingest/a.parquet", "models/model.onnx", "reports/contract/a.json", "reports/evaluate/plots/roc.csv"]
    made += [
        "reports/evaluate/predictions.parquet",
        "mlflow.db",
        "mlflow.db-wal",
        "tune.db",
        ".bentoml/x",
        "src/ml/x.tmp",
    ]
    kept = ["reports/split/rows.json", "reports/evaluate/metrics.json", "dvc.lock"]
    for name in made + kept:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).touch()
    git = require("git")
    run(git, "init", "-q", cwd=project)

    untracked = run(git, "ls-files", "--others", "--exclude-standard", cwd=project).stdout.splitlines()

    assert sorted(untracked) == sorted(files_of(bake()) + kept)


def test_the_environment_of_these_tests_is_the_callers() -> None:
    assert not {"MAKEFLAGS", "ARGS", "VIRTUAL_ENV"} & set(clean_environment())
