"""Ring 1: answers become a correct project, or one line and nothing on disk."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from pathlib import Path

import pytest
from conftest import DEFAULTS, ROOT, Bake, files_of
from cookiecutter.exceptions import FailedHookException
from cookiecutter.utils import create_env_with_context
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

QUESTIONS = json.loads((ROOT / "cookiecutter.json").read_text())
PUBLIC = [name for name in QUESTIONS if not name.startswith("_")]
PRE_HOOK = (ROOT / "hooks" / "pre_gen_project.py").read_text()
POST_HOOK = (ROOT / "hooks" / "post_gen_project.py").read_text()

PYTHON_CODE = (
    "'''+str(open('pwned','w'))+''' \"\"\"+str(open('pwned','w'))+\"\"\" __import__('os').system('touch pwned')"
)
TEXTS = {
    "plain": "Late flights",
    "single-quotes": "it's ''' quoted '",
    "double-quotes": 'a "quoted" """ text "',
    "backslashes": r"C:\new\table \u0041 \\ ends \\",
    "one-backslash-at-the-end": "ends with \\",
    "python-code": PYTHON_CODE,
    "shell-code": "$(touch pwned) `touch pwned`; touch pwned #",
    "html": "<script>alert('&amp;')</script> & <b>",
    "closing-braces": "a }} b %} c #} d } {",
    "other-scripts": "航班延误 прибытие ✈ 😀",
    "ten-kilobytes": "late " * 2000 + ".",
}
ACCEPTED = {
    "shortest-slug": {"project_slug": "a"},
    "longest-slug": {"project_slug": "a" * 63},
    "digits-in-slug": {"project_slug": "model-2-of-3"},
    "owner-of-one-letter": {"github_owner": "a"},
    "longest-owner": {"github_owner": "A1-" * 12 + "abc"},
    "empty-description": {"description": ""},
    "python-3.11": {"python_version": "3.11"},
    "python-3.13": {"python_version": "3.13"},
    "kubernetes": {"include_kubernetes": True},
}
REFUSED = {
    "slug-with-capitals": ("project_slug", "Flight-Delays"),
    "slug-with-underscore": ("project_slug", "flight_delays"),
    "slug-with-digit-first": ("project_slug", "2fast"),
    "slug-with-hyphen-last": ("project_slug", "flight-"),
    "slug-with-two-hyphens": ("project_slug", "flight--delays"),
    "slug-with-blank": ("project_slug", "flight delays"),
    "slug-with-dots": ("project_slug", "..flights"),
    "slug-with-newline": ("project_slug", "flight\ndelays"),
    "slug-with-backslash": ("project_slug", "flight\\delays"),
    "slug-empty": ("project_slug", ""),
    "slug-with-slash": ("project_slug", "flights/delays"),
    "slug-of-the-parent": ("project_slug", "../flights"),
    "slug-with-absolute-path": ("project_slug", "/flights"),
    "slug-too-long": ("project_slug", "a" * 64),
    "slug-of-ten-kilobytes": ("project_slug", "a" * 10_000),
    "slug-with-nul": ("project_slug", "flights\0"),
    "slug-in-cyrillic": ("project_slug", "рейсы"),
    "owner-with-underscore": ("github_owner", "ada_lovelace"),
    "owner-with-slash": ("github_owner", "ada/lovelace"),
    "owner-with-hyphen-first": ("github_owner", "-ada"),
    "owner-too-long": ("github_owner", "a" * 40),
    "owner-empty": ("github_owner", ""),
    "owner-with-quote": ("github_owner", "ada'''"),
    "python-2": ("python_version", "2.7"),
    "python-3.10": ("python_version", "3.10"),
    "python-3.14": ("python_version", "3.14"),
    "python-with-patch": ("python_version", "3.12.1"),
    "python-in-other-digits": ("python_version", "३.12"),
    "name-empty": ("project_name", ""),
    "name-of-blanks": ("project_name", "   "),
    "name-with-newline": ("project_name", "Flight\nDelays"),
    "author-empty": ("author_name", ""),
    "author-with-tab": ("author_name", "Ada\tLovelace"),
    "author-with-escape": ("author_name", "Ada \x1b[31mLovelace"),
    "description-with-newline": ("description", "one\ntwo"),
    "description-with-carriage-return": ("description", "one\rtwo"),
    "description-with-line-separator": ("description", "one\u2028two"),
    "description-with-nul": ("description", "one\0two"),
    "description-not-unicode": ("description", "one \udc80 two"),
    "description-of-ten-kilobytes-and-a-newline": ("description", "x" * 10_000 + "\ny"),
}


def by_id(table: dict) -> dict:
    return {"argvalues": list(table.values()), "ids": list(table)}


def answers_in(hook: str, **answers: str) -> dict:
    """Render a hook as cookiecutter does and read its answers without running it."""
    context = {"cookiecutter": answers}
    module = ast.parse(create_env_with_context(context).from_string(hook).render(**context))
    constants = {node.targets[0].id: node.value for node in module.body if isinstance(node, ast.Assign)}
    return json.loads(ast.literal_eval(constants["ANSWERS"]))


@pytest.mark.parametrize("text", **by_id(TEXTS))
def test_any_printable_text_comes_out_as_it_went_in(bake: Bake, text: str) -> None:
    project = bake(description=text, author_name=text, project_name=text, project_slug="text")

    about = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    assert about["description"] == text
    assert about["authors"] == [{"name": text}]
    assert f"Copyright (c) {text}\n" in (project / "LICENSE").read_text()
    assert (project / "README.md").read_text().startswith(f"# {text}\n\n{text}\n")
    assert not list(project.rglob("pwned"))
    assert not list(bake.template.rglob("pwned"))


@pytest.mark.parametrize("answers", **by_id(ACCEPTED))
def test_good_answers_are_accepted(bake: Bake, answers: dict) -> None:
    project = bake(**answers)

    about = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    expected = DEFAULTS | answers
    assert project.name == about["name"] == expected["project_slug"]
    assert (project / ".python-version").read_text() == expected["python_version"] + "\n"
    assert f"github.com/{expected['github_owner']}/{expected['project_slug']}>" in (project / "README.md").read_text()


@pytest.mark.parametrize(
    ("choice", "spdx", "words"),
    [
        ("MIT", "MIT", "Permission is hereby granted, free of charge"),
        ("Apache-2.0", "Apache-2.0", "Apache License"),
        ("BSD-3-Clause", "BSD-3-Clause", "Redistribution and use in source and binary forms"),
        ("Proprietary", "LicenseRef-Proprietary", "All rights reserved"),
    ],
    ids=["mit", "apache", "bsd", "proprietary"],
)
def test_the_chosen_licence_is_the_only_one(bake: Bake, choice: str, spdx: str, words: str) -> None:
    project = bake(license=choice)

    text = (project / "LICENSE").read_text()
    assert words in text
    assert "Ada Lovelace" in text
    assert not re.search(r"\b(19|20)\d\d Ada", text)
    assert tomllib.loads((project / "pyproject.toml").read_text())["project"]["license"] == spdx
    assert [name for name in files_of(project) if "LICEN" in name] == ["LICENSE"]


@pytest.mark.parametrize(("name", "value"), **by_id(REFUSED))
def test_a_bad_answer_ends_in_one_line_and_leaves_nothing(
    bake: Bake, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    with pytest.raises(FailedHookException):
        bake.into(tmp_path / "out", **{"project_slug": "refused", name: value})

    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert re.fullmatch(rf'{name} ".*("|characters\)) must .+, such as \S.*', lines[0])
    assert len(lines[0]) < 250
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


def test_only_the_first_of_several_bad_answers_is_named(bake: Bake, tmp_path: Path) -> None:
    result = bake.through_cli(tmp_path / "out", "project_slug=No", "github_owner=no_no", "python_version=2.7")

    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        'project_slug "No" must be at most 63 lower-case letters, digits and single hyphens, a letter first, '
        "such as flight-delays"
    ]
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("mark", ["{{ 6 * 7 }}", "{% raw %}", "{# note #}", "{{"], ids=["value", "tag", "note", "open"])
def test_jinja_that_is_typed_is_refused_and_not_run(bake: Bake, tmp_path: Path, mark: str) -> None:
    typed = "\n".join(["Flights", "flights", f"a {mark} b", "Ada", "octocat", "1", "3.12", "n"]) + "\n"

    result = bake.through_cli(tmp_path / "out", typed=typed)

    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        f'description "a {mark} b" must not hold {{% or {{# or {{{{, such as Will this flight arrive late?'
    ]
    assert list((tmp_path / "out").iterdir()) == []


def test_jinja_on_the_command_line_is_rendered_by_cookiecutter_before_the_template_sees_it(
    bake: Bake, tmp_path: Path
) -> None:
    result = bake.through_cli(tmp_path / "out", "project_slug=flights", "description={{ 6 * 7 }}")

    assert result.returncode == 0
    about = tomllib.loads((tmp_path / "out" / "flights" / "pyproject.toml").read_text())["project"]
    assert about["description"] == "42"


def test_typed_answers_become_a_project_and_the_next_three_commands(bake: Bake, tmp_path: Path) -> None:
    typed = "\n".join(['Wine\'s "Best"', "", "a \\ b", "Ada", "octocat", "3", "3.11", "y"]) + "\n"

    result = bake.through_cli(tmp_path / "out", typed=typed)

    assert result.returncode == 0
    assert re.findall(r"^  (\S.*)$", result.stdout.split("Next:")[1], re.M) == [
        "cd wine-s-best",
        "make setup",
        "make pipeline",
    ]
    project = tmp_path / "out" / "wine-s-best"
    assert tomllib.loads((project / "pyproject.toml").read_text())["project"]["description"] == "a \\ b"
    assert (project / "LICENSE").read_text().startswith("BSD 3-Clause")


@pytest.mark.parametrize(
    ("name", "slug"),
    [("Flight Delays", "flight-delays"), ("  Wine & Dine!  ", "wine-dine"), ("Größe", "grosse"), ("✈", "ml-project")],
    ids=["words", "marks", "accents", "nothing-to-spell"],
)
def test_the_slug_is_derived_from_the_name(bake: Bake, tmp_path: Path, name: str, slug: str) -> None:
    result = bake.through_cli(tmp_path / "out", f"project_name={name}")

    assert result.returncode == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == [slug]


@pytest.mark.parametrize("hook", [PRE_HOOK, POST_HOOK], ids=["pre", "post"])
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(text=st.text() | st.text(alphabet="'\"\\{}%#\nr "))
def test_no_text_can_leave_the_string_that_holds_the_answers(hook: str, text: str) -> None:
    assert answers_in(hook, project_name=text)["project_name"] == text


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_categories=["Cc", "Cs"])) | st.text(alphabet="'\"\\{}%#uUn "))
def test_any_line_of_text_reads_back_from_toml(text: str) -> None:
    context = {"cookiecutter": {"description": text, "author_name": text}}
    environment = create_env_with_context(context)

    for name in ("__toml_description", "__toml_author"):
        rendered = environment.from_string(QUESTIONS[name]).render(**context)
        assert tomllib.loads(f'text = "{rendered}"')["text"] == text


def test_there_are_at_most_eight_questions_each_with_a_worded_prompt() -> None:
    assert len(PUBLIC) <= 8
    assert set(QUESTIONS["__prompts__"]) == set(PUBLIC)
    assert set(DEFAULTS) == set(PUBLIC)


def test_the_options_page_has_a_row_for_each_question_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| ", (ROOT / "docs" / "options.md").read_text(), re.M)

    first = {name: value[0] if isinstance(value, list) else value for name, value in QUESTIONS.items()}
    expected = {name: f"`{json.dumps(value) if isinstance(value, bool) else value}`" for name, value in first.items()}
    assert [name for name, _ in rows] == PUBLIC
    assert dict(rows) == {name: expected[name] for name in PUBLIC} | {"project_slug": "from the project name"}


def test_the_options_page_names_every_licence() -> None:
    row = next(
        line for line in (ROOT / "docs" / "options.md").read_text().splitlines() if line.startswith("| `license`")
    )

    assert all(f"`{name}`" in row for name in QUESTIONS["license"])
    assert all((ROOT / "{{cookiecutter.project_slug}}" / f"LICENSE-{name}").exists() for name in QUESTIONS["license"])
