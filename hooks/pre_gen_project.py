"""Refuses answers that would make a broken project: one line with the value, the rule and a good example."""

from __future__ import annotations

import json
import re
import sys

# `tojson` writes ' as \u0027 and a raw string keeps backslashes, so no answer can end this string or run as code.
ANSWERS = r'''{{ cookiecutter | tojson }}'''  # fmt: skip

WORDED = ("project_name", "description", "author_name")
FILLED = ("project_name", "author_name")
PATTERNS = {
    "project_slug": (
        r"(?=.{1,63}\Z)[a-z][a-z0-9]*(-[a-z0-9]+)*",
        "at most 63 lower-case letters, digits and single hyphens, a letter first",
    ),
    "github_owner": (
        r"(?=.{1,39}\Z)[A-Za-z0-9]+(-[A-Za-z0-9]+)*",
        "at most 39 letters, digits and single hyphens, as in the address of a GitHub profile",
    ),
    "python_version": (r"3\.1[123]", "one of 3.11, 3.12, 3.13"),
}
EXAMPLES = {
    "project_name": "Flight Delays",
    "project_slug": "flight-delays",
    "description": "Will this flight arrive late?",
    "author_name": "Ada Lovelace",
    "github_owner": "octocat",
    "python_version": "3.12",
}
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
JINJA = re.compile("[{][%#{]")


def broken_rule(name: str, value: str) -> str | None:
    """Return the rule that the answer breaks, or None."""
    if name in PATTERNS:
        pattern, rule = PATTERNS[name]
        return None if re.fullmatch(pattern, value) else f"must be {rule}"
    if name in FILLED and not value.strip():
        return "must not be empty"
    if UNPRINTABLE.search(value):
        return "must be one line of printable text"
    if JINJA.search(value):
        # cookiecutter renders stored answers at every update, so these would not come back as typed.
        return "must not hold " + " or ".join("{" + mark for mark in "%#{")
    return None


def shown(value: str) -> str:
    """Return the value as one short printable line."""
    text = UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))
    return text if len(text) <= 60 else f'{text[:50]}…" ({len(value)} characters)'


def refusals(answers: dict[str, object]) -> list[str]:
    """Return one line for each answer that breaks its rule."""
    lines = []
    for name in (*WORDED, *PATTERNS):
        # The folder exists before this runs, so cookiecutter.json replaces a slug that could leave others behind.
        value = str(answers["__slug_given" if name == "project_slug" else name])
        rule = broken_rule(name, value)
        if rule:
            lines.append(f"{name} {shown(value)} {rule}, such as {EXAMPLES[name]}")
    return lines


def main() -> None:
    lines = refusals(json.loads(ANSWERS))
    if lines:
        sys.exit(lines[0])


if __name__ == "__main__":
    main()
