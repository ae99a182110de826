"""Shows a verdict as a pull-request comment in Markdown and as one HTML page that needs nothing beside it."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ml.pipeline.tables import write_bytes
from ml.review.verdict import Bin, Interval, Metric, Slice, Verdict

JSON, MARKDOWN, PAGE = "verdict.json", "report.md", "report.html"
LONGEST = 60_000  # GitHub refuses a comment of more than 65,536 characters
SHOWN = 20  # rows of a table in Markdown
LONGEST_NAME, LONGEST_PROSE = 80, 240  # characters, in Markdown
CUT_FIRST = (
    *("environment", "service", "importance", "decisions", "calibration", "data"),
    *("fairness", "slices", "own", "changed", "metrics", "commands"),
)
GATES = (Markup(""), "gate", "what it says")
MARKS = {"passed": "✅", "failed": "❌", "not judged": "⚠️", "skipped": "➖"}
# Letters, figures and what cannot begin or end markup; every other word is shown as code.
PLAIN = re.compile(r"(?:[^\W_]|[.,;!?%'’\"“”‘()/=+−–—±≤≥→×·…-])*")
LINK = re.compile(r"www\.|gh-\d", re.IGNORECASE)
BULLET = re.compile(r"[-+=]+|\d+[.)]")
UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")


class Name(str):
    """Text that data, git or a person chose: quoted as code, never read as markup."""


class Share(float):
    """A share from 0 to 1, shown in percent."""


class Difference(Interval):
    """An interval that is shown with its signs."""


@dataclass(frozen=True)
class Table:
    caption: str
    head: tuple[str, ...]
    rows: list[list[Any]]

    @cached_property
    def numeric(self) -> list[bool]:
        """Say for each column whether it holds figures only."""
        return [not any(isinstance(row[at], str | list) for row in self.rows) for at in range(len(self.head))]


@dataclass(frozen=True)
class Section:
    """A part that can be folded; `drawings` name those that belong to it on the page."""

    key: str
    title: str
    tables: tuple[Table, ...] = ()
    says: tuple[str, ...] = ()
    drawings: tuple[str, ...] = ()
    commands: list[str] = field(default_factory=list)
    chart: str = ""


def clean(text: str) -> str:
    """Return the text on one line, without characters that are not seen or that turn the direction of reading."""
    seen = (" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    return " ".join(UNSEEN.sub("", "".join(seen)).split())


def code(text: str) -> str:
    """Return the text as a Markdown code span of at most 80 characters, good inside a table."""
    quoted = _cut(clean(text), LONGEST_NAME).replace("`", "'").replace("|", "¦")
    return f"`{quoted}`" if quoted else "–"


def prose(text: str, longest: int = LONGEST_PROSE) -> str:
    """Return a sentence for Markdown, its words that could be markup, a link or a mention as code."""
    words = _cut(clean(text), longest).split(" ")
    return " ".join(_word(word, first=at == 0) for at, word in enumerate(words)) or "–"


def _word(word: str, first: bool) -> str:
    opening, core, closing = re.fullmatch(r"([(\"“‘']*)(.*?)([)\"”’'.,;:!?…]*)", word).groups()
    if LINK.search(word) or (first and BULLET.fullmatch(word)):
        return code(word)
    return word if PLAIN.fullmatch(core) else f"{opening}{code(core)}{closing}"


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1].rstrip()}…"


def number(value: float, sign: str = "") -> str:
    """Return a figure with as many decimals as its size calls for."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if value == 0:
        return "0"
    if not isinstance(value, int) and 0 < size < 0.00005:
        return "≈ 0"
    places = 0 if isinstance(value, int) or size >= 1000 else 2 if size >= 10 else 4
    return format(value, f"{sign},.{places}f").replace("-", "−")


def figure(value: Any) -> str:
    """Return a number, a share or an interval as it is read; a dash for nothing."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case Difference() if value.value == value.low == value.high == 0:
            return "0"
        case Interval():
            sign = "+" if isinstance(value, Difference) else ""
            ends = [figure(None) if end is None else number(end, sign) for end in (value.value, value.low, value.high)]
            return ends[0] if value.low is None else f"{ends[0]} ({ends[1]} to {ends[2]})"
        case Share():
            return f"{number(100 * value) if 0 < value < 0.001 else format(100 * value, '.1f')} %"
    return number(value)


def in_markdown(value: Any) -> Markup:
    """Return what a Markdown template shows for a value."""
    match value:
        case Markup():
            return value
        case Name():
            return Markup(code(value))
        case str():
            return Markup(prose(value))
        case list():
            return Markup(" ").join(map(in_markdown, value))
    return Markup(figure(value))


def in_html(value: Any) -> Markup:
    """Return what the page shows for a value."""
    match value:
        case Markup():
            return value
        case Name():
            return Markup("<code>{}</code>").format(clean(value) or "–")
        case str():
            return escape(clean(value))
        case list():
            return Markup(" ").join(map(in_html, value))
        case Interval() if value.low is not None:
            first, _, ends = figure(value).partition(" ")
            return Markup(f"{first} <small>{ends}</small>") if ends else Markup(first)
    return Markup(figure(value))


@cache
def environment(shown: Callable[[Any], Markup]) -> Environment:
    """Return the templates; whatever they show passes through `shown`, so that nothing is left raw by oversight."""
    return Environment(
        loader=PackageLoader("ml.review"),
        finalize=shown,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def objective(verdict: Verdict) -> Metric | None:
    """Return the metric that the change is judged by."""
    return next((metric for metric in verdict.metrics if metric.name == verdict.objective), None)


def by_loss(verdict: Verdict) -> list[Slice]:
    """Return the slices, those that lost most against production first."""
    judged = objective(verdict)
    gain = -1 if judged and judged.better == "lower" else 1

    def change(part: Slice) -> float:
        known = part.candidate.value is not None and part.production is not None
        return gain * (part.candidate.value - part.production) if known else math.inf

    return sorted(verdict.slices, key=change)


def sections(verdict: Verdict) -> list[Section]:
    """Return what stands below the gates, in reading order; a section without content is left out."""
    v, compared = verdict, verdict.production is not None
    alone = () if compared else ("First model: nothing to compare with.",)
    found = [
        Section(
            "own",
            "Gates as this change would set them",
            _tables(("Judged by the change's own gates", GATES, _gates(v.own_results))),
        ),
        Section(
            "changed",
            "What changed",
            _tables(
                ("What was compared", ("side", "commit", "model"), _sides(v)),
                ("Gates", ("setting", "before", "after"), _changes(v.loosened)),
                ("Settings", ("setting", "before", "after"), _changes(v.params)),
                ("Files", ("file", "added", "removed"), [[Name(c.path), c.added, c.removed] for c in v.code]),
            ),
        ),
        Section(
            "metrics",
            "Metrics",
            _tables(
                (
                    f"On {figure(v.metrics[0].rows) if v.metrics else 0} rows, with {100 * v.confidence:g} % intervals",
                    ("metric", "this change", "production", "difference"),
                    [[Name(m.name), m.candidate, m.production, _signed(m.delta)] for m in v.metrics],
                ),
                (
                    "What a difference is measured by",
                    ("metric", "better", "margin", "a retrain moves it by", "smallest detectable", "in words"),
                    [
                        [Name(m.name), m.better, m.margin, m.noise, m.detectable, m.sentence]
                        for m in v.metrics
                        if compared
                    ],
                ),
            ),
            alone,
            ("roc", "precision_recall", "confusion", "scores", "residuals"),
        ),
        Section(
            "slices",
            "Slices",
            _tables(
                (
                    "The objective's metric, largest loss first",
                    ("slice", "rows", "this change", "production", "flips"),
                    [[Name(s.name), s.rows, s.candidate, s.production, _share(s.flips)] for s in by_loss(v)],
                )
            ),
            drawings=("slices",),
        ),
        Section("fairness", "Fairness", _fairness(v)),
        Section(
            "decisions",
            "Decisions that changed",
            _tables(
                (
                    "Largest changes",
                    ("before", "after", "row"),
                    [[f.before, f.after, [Name(f"{k}: {x}") for k, x in f.row.items()]] for f in v.largest],
                )
            ),
            (f"{figure(Share(v.flips))} of the decisions changed.",) if v.flips is not None else (),
        ),
        Section("data", "Data", _data(v), drawings=("shift",)),
        Section(
            "importance",
            "Importance",
            _tables(
                (
                    "What the objective's metric loses when an input is shuffled",
                    ("input", "this change", "production", "difference"),
                    [
                        [Name(i.name), i.candidate, i.production, _gap(i.candidate, i.production)]
                        for i in sorted(v.importance, key=lambda i: -(i.candidate or 0))
                    ],
                )
            ),
            drawings=("importance",),
        ),
        Section(
            "calibration",
            "Calibration",
            _tables(
                ("This change", ("predicted", "observed", "rows"), _bins(v.reliability)),
                ("Production", ("predicted", "observed", "rows"), _bins(v.reliability_before)),
            ),
            drawings=("calibration",),
            chart=_chart(v),
        ),
        Section("service", "Service", _tables(("Measured under load", ("figure", "value"), list(_flat(v.service))))),
        Section("environment", "Environment", _tables(("Made with", ("what", "value"), list(_flat(v.environment))))),
        Section("commands", "Do it again", says=_uncommitted(v), commands=v.commands),
    ]
    return [part for part in found if part.tables or part.says or part.commands]


def _uncommitted(v: Verdict) -> tuple[str, ...]:
    said = "The work tree had changes that no commit holds: commit them, and name that commit."
    return (said,) if v.candidate.dirty and v.commands else ()


def _tables(*parts: tuple[str, tuple[str, ...], list[list[Any]]]) -> tuple[Table, ...]:
    return tuple(Table(*part) for part in parts if part[2])


def _signed(interval: Interval | None) -> Difference | None:
    return interval and Difference(**interval.model_dump())


def _gap(after: float | None, before: float | None) -> Difference | None:
    known = after is not None and before is not None
    return Difference(value=after - before, low=None, high=None) if known else None


def _share(value: float | None) -> Share | None:
    return None if value is None else Share(value)


def _gates(results: Iterable[Any]) -> list[list[Any]]:
    order = ("failed", "not judged", "passed", "skipped")
    ranked = sorted(results, key=lambda result: order.index(result.status))
    return [[Markup(MARKS[result.status]), result.gate, result.sentence] for result in ranked]


def _sides(v: Verdict) -> list[list[Any]]:
    sides = (("this change", v.candidate), ("base", v.base), ("production", v.production))
    return [
        [
            title,
            [Name(side.ref), Name(side.commit[:10]), *(["with uncommitted changes"] if side.dirty else [])],
            [Name(part) for part in (side.model[:40], side.version) if part],
        ]
        for title, side in sides
        if side
    ]


def _changes(changes: Iterable[Any]) -> list[list[Any]]:
    return [[Name(change.name), Name(change.before), Name(change.after)] for change in changes]


def _fairness(v: Verdict) -> tuple[Table, ...]:
    figures = tuple(dict.fromkeys(name for group in v.groups for name in group.figures))
    rows = [
        [
            [Name(f"{group.attribute}={group.value}"), *([] if group.judged else ["too small to judge"])],
            group.rows,
            *(group.figures.get(name) for name in figures),
        ]
        for group in v.groups
    ]
    return _tables(("By group", ("group", "rows", *figures), rows))


def _data(v: Verdict) -> tuple[Table, ...]:
    shifted = sorted((c for c in v.columns if c.effect is not None), key=lambda column: -column.effect)
    inputs = sorted((c for c in v.columns if c.alone is not None), key=lambda column: -column.alone)
    return _tables(
        ("Rows by period", ("period", "before", "after"), [[Name(r.period), r.before, r.after] for r in v.rows]),
        (
            "Columns against the base",
            ("column", "shift", "limit", "p", "nulls"),
            [[Name(c.name), c.effect, c.limit, c.p, _move(c.nulls_before, c.nulls_after)] for c in shifted],
        ),
        ("What an input predicts by itself", ("input", "ROC AUC"), [[Name(c.name), c.alone] for c in inputs]),
        (
            "The request",
            ("field", "change", "breaks a caller"),
            [[Name(c.field), c.what, c.breaking] for c in v.schema_changes],
        ),
    )


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _opening(text: str) -> str:
    # A name of code stays as it is.
    return text[:1].upper() + text[1:] if re.match(r"[^\W_]+\b", text) else text


def _move(before: float | None, after: float | None) -> Markup:
    return Markup(f"{figure(_share(before))} → {figure(_share(after))}")


def _bins(bins: Iterable[Bin]) -> list[list[Any]]:
    return [[part.predicted, part.observed, part.rows] for part in bins]


def _flat(value: Any, name: str = "") -> Iterable[list[Any]]:
    match value:
        case dict():
            for key, part in value.items():
                yield from _flat(part, f"{name}.{key}" if name else str(key))
        case None | float() | int():
            yield [Name(name), value]
        case _:
            yield [Name(name), Name(value)]


def _chart(v: Verdict) -> Markup:
    known = [(b.predicted, b.observed) for b in v.reliability if b.predicted is not None and b.observed is not None]
    if len(known) < 2:
        return Markup("")
    predicted, observed = ([f"{value:.3f}" for value in side] for side in zip(*known, strict=True))
    names = ", ".join(f'"{value}"' for value in predicted)
    lines = [f"x-axis [{names}]", f"bar [{', '.join(observed)}]", f"line [{', '.join(predicted)}]"]
    return Markup("\n    ".join(["xychart-beta", *lines]))


def _context(verdict: Verdict) -> dict[str, Any]:
    base, own = (verdict.model_copy(update={"results": side}) for side in (verdict.base_results, verdict.own_results))
    readings = {result.gate: result.status for result in verdict.own_results}
    return {
        "v": verdict,
        "base": base,
        "own": own,
        "differ": [r for r in verdict.base_results if readings.get(r.gate, r.status) != r.status],
        "readings": readings,
        "objective": objective(verdict),
        "difference": (judged := objective(verdict)) and _signed(judged.delta),
        "gates": Table("What each gate says", GATES, _gates(verdict.results)),
        "skipped": [result.gate for result in verdict.results if result.status == "skipped"],
        "marks": {status: Markup(mark) for status, mark in MARKS.items()},
        "name": Name,
        "sentence": _sentence,
        "opening": _opening,
        "share": _share,
        "shown": SHOWN,
    }


def markdown(verdict: Verdict) -> str:
    """Return the comment, shorter than 60,000 characters.

    A table has at most 20 rows; then whole sections go in the order of CUT_FIRST until the rest fits, and the
    comment names them.
    """
    template, context = environment(in_markdown).get_template("report.md.jinja"), _context(verdict)
    kept, cut, text = sections(verdict), [], ""
    for key in ("", *CUT_FIRST):
        cut += [part.title.lower() for part in kept if part.key == key]
        kept = [part for part in kept if part.key != key]
        text = template.render(context, sections=kept, cut=cut)
        if len(text) < LONGEST:
            break
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def page(verdict: Verdict, drawings: dict[str, str]) -> str:
    """Return the page: everything in full, the drawings (name to SVG) in the sections they belong to."""
    placed = {name for part in sections(verdict) for name in part.drawings}
    parts = [
        replace(part, drawings=tuple(name for name in part.drawings if name in drawings)) for part in sections(verdict)
    ]
    return (
        environment(in_html)
        .get_template("page.html.jinja")
        .render(
            _context(verdict),
            sections=parts,
            drawings={name: Markup(svg) for name, svg in drawings.items()},
            others=[name for name in drawings if name not in placed],
        )
    )


def write(verdict: Verdict, drawings: dict[str, str], folder: Path) -> None:
    """Write verdict.json, report.md and report.html, each whole or not at all."""
    comment, shown = markdown(verdict), page(verdict, drawings)
    document = json.dumps(verdict.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    # A file's name may hold bytes that are no text; JSON can write what UTF-8 cannot.
    write_bytes(document.encode(errors="backslashreplace"), folder / JSON)
    write_bytes(comment.encode(), folder / MARKDOWN)
    write_bytes(shown.encode(), folder / PAGE)
