"""The Markdown of both layers: links resolve, targets and verbs exist, and the tutorial runs as it is written."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import PRODUCT, Bake, clean_environment, require, run

WHO = {"NAME": "Ada Lovelace", "EMAIL": "ada@example.com"}
HOME = "https://github.com/OWNER/cookiecutter-mlops-actions"
MINUTES = 25
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
CODE = re.compile(r"^```\w*\n(.*?)^```$|`([^`\n]+)`", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")
# What differs between machines and runs: port, hash, version, decimal, the width of a table.
MASKS = (
    (r"127\.0\.0\.1:\d+", "127.0.0.1:<port>"),
    (r"\b[0-9a-f]{7,64}\b", "<hash>"),
    (r"[-+]?\b\d+(\.\d+)+(e[-+]?\d+)?", "<number>"),
    (r"-{3,}", "---"),
    (r"\s+", " "),
)


@dataclass(frozen=True)
class Step:
    """A block of commands and the lines that the tutorial shows of what they print."""

    commands: str
    shown: tuple[str, ...]


def steps_of(text: str) -> list[Step]:
    """Return the `bash` blocks in order, each with the `text` blocks that follow it."""
    steps: list[Step] = []
    for language, body in FENCE.findall(text):
        if language == "bash":
            steps.append(Step(body, ()))
        elif language == "text":
            steps[-1] = Step(steps[-1].commands, (*steps[-1].shown, *body.splitlines()))
    return steps


def masked(line: str) -> str:
    for pattern, name in MASKS:
        line = re.sub(pattern, name, line)
    return line.strip()


def missing_lines(shown: tuple[str, ...], printed: str) -> list[str]:
    """Return the shown lines that were not printed; one that ends in … needs the same beginning only."""
    found = [masked(line) for line in printed.splitlines()]
    return [
        line
        for line in shown
        if masked(line) not in found
        and not (line.endswith("…") and any(other.startswith(masked(line[:-1])) for other in found))
    ]


def code_in(markdown: Path) -> str:
    """Return the fenced blocks and the code spans of a page, one a line."""
    return "\n".join(block or span for block, span in CODE.findall(markdown.read_text()))


def targets_of(makefile: Path) -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):(?!=)", makefile.read_text(), re.M))


def pages_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.md"))


@pytest.fixture(scope="session")
def outer(template: Path) -> list[Path]:
    """The template's own pages."""
    return [page for page in pages_of(template) if PRODUCT not in page.parts]


@pytest.fixture(scope="session")
def inner(bake: Bake) -> list[Path]:
    """The pages of a project."""
    return pages_of(bake())


def test_there_are_pages_in_both_layers(outer: list[Path], inner: list[Path]) -> None:
    assert {"README.md", "CONTRIBUTING.md", "tutorial.md", "options.md"} <= {page.name for page in outer}
    assert {"README.md", "make-it-yours.md", "metrics.md"} <= {page.name for page in inner}


def test_every_relative_link_leads_to_a_file(outer: list[Path], inner: list[Path]) -> None:
    broken = [
        f"{page.name}: {target}"
        for page in [*outer, *inner]
        for target in LINK.findall(page.read_text())
        if "://" not in target
        and not target.startswith("#")
        and not (page.parent / unquote(target.partition("#")[0])).exists()
    ]

    assert broken == []


def test_every_make_target_that_a_page_names_exists(outer: list[Path], inner: list[Path], template: Path) -> None:
    theirs = targets_of(template / PRODUCT / "Makefile")
    both = theirs | targets_of(template / "Makefile")

    unknown = [
        f"{page.name}: make {target}"
        for pages, known in ((outer, both), (inner, theirs))
        for page in pages
        for targets in re.findall(r"\bmake((?: [a-z][a-z-]*\b(?!=))+)", code_in(page))
        for target in targets.split()
        if target not in known
    ]

    assert unknown == []


def test_every_verb_that_a_page_names_exists(outer: list[Path], inner: list[Path], template: Path) -> None:
    verbs = set(re.findall(r'^    "([a-z]+)": \(', (template / PRODUCT / "src/ml/cli.py").read_text(), re.M))

    named = {verb for page in [*outer, *inner] for verb in re.findall(r"(?<![\w.-])ml ([a-z]+)\b", code_in(page))}
    assert {"ingest", "train", "serve"} <= verbs
    assert named
    assert named - verbs == set()


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("| AP | 0.17 |", "| AP   | 0.16973 |"),
        ("at http://127.0.0.1:3000", "at http://127.0.0.1:41235"),
        ("model: 0a1b2c3d4e", "model: ffffffffff"),
        ("row 0, day_of_week: must…", "row 0, day_of_week: must be >= 1"),
        ("…", "anything"),
    ],
    ids=["decimal", "port", "hash", "beginning", "gap"],
)
def test_a_shown_line_may_differ_in(shown: str, printed: str) -> None:
    assert missing_lines((shown,), f"before\n{printed}\nafter") == []


@pytest.mark.parametrize(
    ("shown", "printed"),
    [("28618 rows", "28619 rows"), ("ran: train", "ran: split"), ("must be…", "row must be")],
    ids=["count", "word", "beginning"],
)
def test_a_shown_line_may_not_differ_in(shown: str, printed: str) -> None:
    assert missing_lines((shown,), printed) == [shown]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def reader(template: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a reader for whom GitHub has the template as it lies here."""
    who = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in WHO.items()}
    repository = tmp_path / "template.git"
    tracking = {"GIT_DIR": str(repository), "GIT_WORK_TREE": str(template)}
    for words in (["init", "--quiet", "-b", "main"], ["add", "--all"], ["commit", "--quiet", "-m", "Template"]):
        done = run(require("git"), *words, cwd=template, **who, **tracking)
        assert done.returncode == 0, done.stderr
    told = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{repository}.insteadOf", "GIT_CONFIG_VALUE_0": HOME}
    return clean_environment(**who, **told, PORT=str(free_port()))


def played(steps: list[Step], folder: Path, environment: dict[str, str]) -> tuple[int, list[str]]:
    """Run the blocks in one shell and return its exit code and what each block that began has printed."""
    mark = "=== the next block begins ==="
    script, log = folder / "tutorial.sh", folder / "tutorial.log"
    script.write_text("".join(f"echo; echo '{mark}'\n{step.commands}" for step in steps))
    home = folder / "home"
    home.mkdir()
    # A file and a group of its own: a server in the background holds no pipe and does not outlive the test.
    with log.open("w") as out:
        shell = subprocess.Popen(
            [require("bash"), "-euo", "pipefail", str(script)],
            cwd=home,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code = shell.wait(timeout=MINUTES * 60)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            stop(shell.pid)
    return code, log.read_text().split(f"\n{mark}\n")[1:]


def stop(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.mark.slow
def test_the_tutorial_runs_as_it_is_written(template: Path, reader: dict[str, str], tmp_path: Path) -> None:
    require("curl")
    steps = steps_of((template / "docs" / "tutorial.md").read_text())

    code, printed = played(steps, tmp_path, reader)

    assert code == 0, (
        f"block {len(printed)} of {len(steps)}:\n{steps[len(printed) - 1].commands}\n{printed[-1][-3000:]}"
    )
    assert len(printed) == len(steps)
    pairs = zip(steps, printed, strict=True)
    untrue = [
        (number, line) for number, (step, text) in enumerate(pairs, 1) for line in missing_lines(step.shown, text)
    ]
    assert untrue == [], "\n".join(
        f"block {number}:\n{printed[number - 1][-2000:]}" for number in {n for n, _ in untrue}
    )
