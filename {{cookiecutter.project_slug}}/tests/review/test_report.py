from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import verdicts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from ruamel.yaml import YAML
from sklearn import metrics as sk

from ml.errors import UserError
from ml.review import plots, report
from ml.review.card import card
from ml.review.verdict import Verdict

KINDS = {name: getattr(verdicts, name) for name in ("full", "first", "failed", "loosened", "hostile", "huge")}
OURS = {"<details>", "</details>", "<summary>", "</summary>"}
VOID = {"meta", "link", "br", "path", "use", "rect", "circle"}
FACTS = {
    "name": "flight-delays",
    "description": "Will this flight arrive late?",
    "owner": "Ada Lovelace",
    "license": "Apache-2.0",
    "decision": "Tell the passenger.",
    "intended_use": "Warn passengers.",
    "out_of_scope": "Crews and compensation.",
    "limits": ["Learned from flights of 2013."],
    "periods_train": ["2013-08", "2013-09"],
    "periods_holdout": ["2013-10"],
    "rows_train": 54000,
    "rows_holdout": 28618,
    "model_sha256": "a" * 64,
    "model_md5": "b" * 32,
    "data_md5": "c" * 32,
    "estimator": "boosting",
    "settings": {"max_iter": 150},
    "commit": "4cb1617a9e0d",
    "environment": {"python": "3.12.8"},
    "rollback": "Version 12, commit 255b15d0c1aa.",
    "threshold": 0.25,
}


@pytest.fixture(params=KINDS, scope="module")
def verdict(request: pytest.FixtureRequest) -> Verdict:
    return KINDS[request.param]()


@pytest.fixture(scope="module")
def scored() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, and two scores that know something of it; shapes (2000,)."""
    random = np.random.default_rng(0)
    truth = (random.uniform(size=2000) < 0.25).astype(int)
    return truth, *(np.clip(random.beta(2, 5, size=2000) + 0.1 * truth, 0, 1) for _ in range(2))


@pytest.fixture(scope="module")
def drawn(scored: tuple[np.ndarray, ...]) -> dict[str, str]:
    return plots.draw(verdicts.full(), *scored, 0.25, [])


def parsed(text: str) -> list[Any]:
    return MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)


def leaves(text: str) -> list[Any]:
    """Return the inline tokens, and those blocks that hold text themselves."""
    return [leaf for token in parsed(text) for leaf in (token.children or [token])]


def tables(text: str) -> list[list[list[str]]]:
    """Return the tables of a Markdown text as rows of cells, the head first."""
    found: list[list[list[str]]] = []
    for token in parsed(text):
        match token.type:
            case "table_open":
                found.append([])
            case "tr_open":
                found[-1].append([])
            case "th_open" | "td_open":
                found[-1][-1].append("")
            case "inline" if found and found[-1] and token.level > 2:
                found[-1][-1][-1] = token.content
    return found


def assert_harmless(text: str) -> None:
    """Fail where GitHub would show anything but text, code, our tables, folds and one chart."""
    for token in leaves(text):
        match token.type:
            case "html_inline" | "html_block":
                tags = re.findall(r"<[^>]*>", token.content)
                assert set(tags) <= OURS, token.content
            case "fence":
                assert token.info == "mermaid"
                assert re.fullmatch(r'xychart-beta\n( +(x-axis|bar|line) \[[-\d., "]+\]\n)+', token.content)
            case "text":
                assert not re.search(r"@|#|://|www\.|gh-\d|[$|`<>\\&*_~]", token.content, re.IGNORECASE), token.content
            case kind:
                assert kind not in ("link_open", "image", "code_block", "hr", "lheading_open"), token
    lines = Counter(text.splitlines())
    assert lines["<details>"] == lines["</details>"] == len(re.findall(r"(?m)^<summary>[\w ]+</summary>$", text))
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b-\u200f\ufeff\x00-\x09\x0b-\x1f]", text)
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")
    for head, *rows in table_lines(text):
        assert {row.count("|") for row in rows} <= {head.count("|")}


def table_lines(text: str) -> list[list[str]]:
    return [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]


class Page(HTMLParser):
    """The elements of a page; a tag that closes another one than it should fails."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.depth: list[str] = []
        self.feed(text)
        self.close()
        assert not self.depth

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), f"{tag} has an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.depth.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.depth.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.depth or self.depth[-1] != "style":
            self.words.append(data)

    def of(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


def test_the_comment_is_short_harmless_and_the_same_every_time(verdict: Verdict) -> None:
    text = report.markdown(verdict)

    assert len(text) < 60_000
    assert text == report.markdown(verdict)
    assert_harmless(text)
    assert text.encode()


def test_the_verdict_comes_before_any_table_and_in_at_most_three_lines() -> None:
    text = report.markdown(verdicts.full())

    above = text.split("\n|")[0].split("\n\n")
    assert above[0] == "## ✅ Safe to merge: 12 gates passed, 2 skipped"
    assert above[1] == "**Why:** no gate failed; skipped: service, image."
    assert [line.split(":**")[0] for line in above[1:]] == ["**Why", "**Against production", "**How sure"]
    assert "`average_precision_skill` 0.2813, was 0.2751: +0.0062 (−0.0004 to +0.0127)" in above[2]
    assert "on 28,618 rows; they show a difference of 0.0094 four times in five" in above[3]
    assert "; a retrain alone moves it by 0.0021." in above[3]


def test_every_gate_is_told_with_those_that_block_first_and_their_remedies() -> None:
    loose = verdicts.loosened()

    text = report.markdown(loose)

    gates = next(table for table in tables(text) if table[0][1:] == ["gate", "what it says"])
    assert [row[1] for row in gates[1:3]] == ["gates", "harm"]
    assert sorted(row[1] for row in gates[1:]) == sorted(result.gate for result in loose.results)
    assert Counter(row[0] for row in gates[1:]) == {"❌": 2, "✅": 10, "➖": 2}
    assert "- **gates**: Take it back, or ask a code owner to approve. See `params.yaml:94`." in text


def test_a_loosened_change_begins_with_it_and_gives_both_readings() -> None:
    text = report.markdown(verdicts.loosened())

    assert text.startswith("> [!CAUTION]\n> **This change loosens the gates that judge it.**")
    looser, differing, *_ = tables(text)
    assert looser[1] == ["`gates.harm.margins.roc_auc`", "`0.01`", "`0.05`"]
    assert differing[1:] == [["harm", "❌ failed", "✅ passed"]]
    assert text.index("By the change's own gates") < text.index("## ❌")


def test_an_approved_change_says_by_whom_and_that_its_own_gates_decide() -> None:
    own = verdicts.loosened().own_results
    approved = verdicts.loosened(approved="@ada", results=own)

    text, shown = report.markdown(approved), report.page(approved, {})

    assert "Approved: `@ada`" in text.splitlines()[1]
    assert "which decide since they were approved: ❌ do not merge: gates failed" in text
    assert "By the base's gates: ❌ do not merge: gates, harm failed" in text
    assert "By the base’s gates</dt>" in shown


def test_a_first_model_says_that_there_is_nothing_to_compare_with() -> None:
    text, shown = report.markdown(verdicts.first()), report.page(verdicts.first(), {})

    assert "**Against production:** first model: nothing to compare with." in text
    assert "First model: nothing to compare with." in shown
    assert not {"Decisions that changed", "Data"} & set(re.findall("<summary>(.*?)</summary>", text))


def test_an_empty_verdict_leaves_its_sections_out() -> None:
    bare = verdicts.full(
        **{name: [] for name, value in verdicts.full() if isinstance(value, list) and name != "results"},
        service={},
        environment={},
        production=None,
        flips=None,
    )

    found = re.findall("<summary>(.*?)</summary>", report.markdown(bare))

    assert found == ["What changed", "Metrics"]


def test_long_tables_are_shortened_and_then_the_least_important_sections_cut() -> None:
    huge = verdicts.huge()

    text, shown = report.markdown(huge), report.page(huge, {})

    assert max(len(table) for table in tables(text)) <= 21
    assert "… and " in text
    assert "Left out to keep this comment short: environment, service" in text.splitlines()[-1]
    assert "The page report.html has everything." in text.splitlines()[-1]
    kept = re.findall("<summary>(.*?)</summary>", text)
    assert "Metrics" in kept
    assert "Environment" not in kept
    assert shown.count(huge.slices[0].name) > 24


def test_the_figures_of_the_table_are_those_of_the_verdict() -> None:
    whole = verdicts.full()

    found = tables(report.markdown(whole))

    metrics = next(table for table in found if table[0] == ["metric", "this change", "production", "difference"])
    assert [row[0].strip("`") for row in metrics[1:]] == [metric.name for metric in whole.metrics]
    assert float(metrics[2][1].split()[0]) == whole.metrics[1].candidate.value
    slices = next(table for table in found if table[0][0] == "slice")
    assert slices[1][0] == "`carrier=9E`", "the largest loss comes first"


@pytest.mark.parametrize("text", verdicts.HOSTILE, ids=ascii)
def test_hostile_text_is_harmless_wherever_it_stands(text: str) -> None:
    everywhere = verdicts.hostile((text, f"Found {text} here.", f"({text}),"))

    assert_harmless(report.markdown(everywhere))
    assert_harmless(report.markdown(everywhere.model_copy(update={"approved": ""})))
    assert_page_is_closed(Page(report.page(everywhere, {})))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.one_of(
            st.text(max_size=40),
            st.text(alphabet="@#`|<>$[]()!*_~\\&:/.-+=1w\n\t \u202e\u200bax", max_size=40),
            st.lists(st.sampled_from(verdicts.HOSTILE), max_size=4).map("".join),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_no_text_at_all_becomes_markup(texts: list[str]) -> None:
    hostile = verdicts.hostile(tuple(texts))

    for verdict in (hostile, hostile.model_copy(update={"approved": ""})):
        text = report.markdown(verdict)
        assert_harmless(text)
        assert len(text) < 60_000


def assert_page_is_closed(page: Page) -> None:
    """Fail where the page runs or fetches anything."""
    policy = page.of("meta")[1]["content"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    for tag, attributes in page.elements:
        assert tag not in ("script", "img", "image", "iframe", "object", "form", "base")
        assert not any(name.startswith("on") or name in ("src", "srcset", "action") for name in attributes)
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,")), attributes


@pytest.mark.parametrize("kind", ["first", "loosened", "hostile"])
def test_the_page_is_well_formed_closed_and_can_be_used_without_a_mouse(
    kind: str, scored: tuple[np.ndarray, ...], drawn: dict[str, str]
) -> None:
    verdict = KINDS[kind]()
    drawings = plots.draw(verdict, *scored, 0.25, []) if kind == "hostile" else drawn

    page = Page(report.page(verdict, drawings))

    assert_page_is_closed(page)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    targets = [attributes["href"] for attributes in page.of("a", "use")]
    assert {target.removeprefix("#") for target in targets if target} <= set(ids)
    assert page.of("html") == [{"lang": "en"}]
    assert page.of("a")[0] == {"class": "skip", "href": "#verdict"}
    assert len(page.of("h1")) == len(page.of("title")[:1]) == 1
    assert len(page.of("caption")) == len(page.of("table"))
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.of("th"))
    scrolled = [attributes for _, attributes in page.elements if attributes.get("class") == "scroll"]
    assert all(attributes["tabindex"] == "0" and attributes["aria-label"] for attributes in scrolled)
    assert len(page.of("svg")) == len(drawings)
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in page.of("svg"))


def test_the_page_of_plain_text_holds_no_address(drawn: dict[str, str]) -> None:
    text = report.page(verdicts.full(), drawn)

    assert len(drawn) == 8
    assert [word for word in ("http:", "https:", "//", "src=", "url(", "<script", "@import") if word in text] == []
    assert "prefers-color-scheme: dark" in text


def test_the_page_shows_what_the_comment_shows(drawn: dict[str, str]) -> None:
    whole = verdicts.loosened()

    words = " ".join(" ".join(Page(report.page(whole, drawn)).words).split())

    for table in tables(report.markdown(whole)):
        for cell in (cell for row in table[1:] for cell in row if cell.startswith("`")):
            for name in re.findall("`([^`]+)`", cell):
                assert name in words


def test_a_page_without_its_drawings_and_with_others_is_still_whole(drawn: dict[str, str]) -> None:
    odd = {"mine": drawn["roc"]}

    page = Page(report.page(verdicts.full(), odd))

    assert len(page.of("svg")) == 1
    assert "drawings" in [attributes.get("id") for attributes in page.of("details")]


def test_the_same_input_draws_the_same_bytes(scored: tuple[np.ndarray, ...], drawn: dict[str, str]) -> None:
    assert plots.draw(verdicts.full(), *scored, 0.25, []) == drawn
    assert list(drawn) == [
        *("roc", "precision_recall", "calibration", "confusion", "scores", "slices", "shift", "importance")
    ]


def test_drawings_follow_the_page_and_keep_their_ids_apart(drawn: dict[str, str]) -> None:
    whole = "".join(drawn.values())

    ids = re.findall(r'\bid="([^"]+)"', whole)
    assert len(ids) == len(set(ids))
    assert {f"#{name}" for name in ids} >= set(re.findall(r'href="([^"]+)"', whole))
    assert "#0102" not in whole
    assert {"--new", "--old", "--ink", "--soft", "--line"} == set(re.findall(r"var\((--\w+)", whole))
    assert "stroke-dasharray" in drawn["roc"], "the models differ by more than their colour"
    assert not re.search("font-family|DejaVu|<style|<metadata", whole)


def test_curves_have_at_most_500_points() -> None:
    random = np.random.default_rng(1)
    truth, score = random.integers(0, 2, 20_000), random.uniform(size=20_000)

    drawn = plots.draw(verdicts.full(), truth, score, None, 0.25, [])

    longest = max(path.count("L ") for path in re.findall(r' d="([^"]+)"', drawn["roc"] + drawn["precision_recall"]))
    assert 100 < longest <= 500


@pytest.mark.parametrize("digits", [1, 9], ids=["with ties", "without"])
def test_curves_are_those_of_scikit_learn(digits: int) -> None:
    random = np.random.default_rng(1)
    truth = random.integers(0, 2, 500)
    score = np.round(random.uniform(size=500), digits)

    found = plots.curves(truth, score)

    roc = sk.roc_curve(truth, score, drop_intermediate=False)[:2]
    precision, recall, _ = sk.precision_recall_curve(truth, score)
    for (x, y), (wanted_x, wanted_y) in ((found["roc"], roc), (found["precision_recall"], (recall, precision))):
        order = slice(None) if wanted_x[0] == 0 else slice(None, None, -1)
        np.testing.assert_allclose(x, wanted_x[order])
        np.testing.assert_allclose(y, wanted_y[order])


@pytest.mark.parametrize("compared", [True, False], ids=["compared", "first"])
def test_classes_and_values_have_drawings_of_their_own(compared: bool) -> None:
    random = np.random.default_rng(2)
    classes = [f"class $x^{at}$ <b>" for at in range(15)]
    truth, shares = np.array(classes)[random.integers(0, 15, 300)], random.dirichlet(np.ones(15), 300)
    values = random.normal(size=900)

    named = plots.draw(verdicts.full(task="multiclass"), truth, shares, shares if compared else None, None, classes)
    valued = plots.draw(verdicts.full(task="regression"), values, values * 0.9, values if compared else None, None, [])

    assert list(named)[:2] == ["calibration", "confusion"]
    assert ">others<" in named["confusion"]
    assert "class $x" in named["confusion"]
    assert list(valued)[:2] == ["calibration", "residuals"]


def test_a_verdict_without_slices_bins_or_columns_has_no_drawings_of_them(scored: tuple[np.ndarray, ...]) -> None:
    empty = verdicts.full(slices=[], reliability=[], reliability_before=[], columns=[], importance=[])

    assert list(plots.draw(empty, *scored, 0.25, [])) == ["roc", "precision_recall", "confusion", "scores"]


def test_a_drawing_names_what_it_left_out(scored: tuple[np.ndarray, ...]) -> None:
    many = verdicts.full(slices=verdicts.full().slices * 5)

    assert "the first 40 of 120" in plots.draw(many, *scored, 0.25, [])["slices"]


@pytest.mark.parametrize("make", [verdicts.full, verdicts.hostile], ids=["full", "hostile"])
def test_three_files_are_written_whole(make: Callable[[], Verdict], tmp_path: Path) -> None:
    verdict = make()

    report.write(verdict, {}, tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md", "verdict.json"]
    text = (tmp_path / "verdict.json").read_text()
    assert Verdict.model_validate(json.loads(text)).model_dump(mode="json") == verdict.model_dump(mode="json")
    assert text.startswith('{\n  "version": 1,')
    assert (tmp_path / "report.md").read_text() == report.markdown(verdict)


def front_matter(text: str) -> dict[str, Any]:
    _, head, _ = text.split("---\n", 2)
    return YAML(typ="safe").load(io.StringIO(head))


def test_the_card_gives_a_hub_its_fields() -> None:
    fields = front_matter(card(verdicts.full(), FACTS))

    assert fields["license"] == "apache-2.0"
    assert (fields["library_name"], fields["pipeline_tag"]) == ("onnx", "tabular-classification")
    (model,) = fields["model-index"]
    (result,) = model["results"]
    assert result["task"]["type"] == "tabular-classification"
    assert result["dataset"]["name"] == "flight-delays, holdout 2013-10"
    assert result["metrics"][0] == {
        "name": "average_precision_skill",
        "type": "average_precision_skill",
        "value": 0.2813,
        "verified": False,
    }


def test_the_card_of_hostile_facts_is_harmless_and_its_front_matter_still_parsed() -> None:
    odd = "a: b\n---\n'\"@octocat <b> \u202e#1 $x$"
    hostile = FACTS | {name: odd for name, value in FACTS.items() if isinstance(value, str)}
    hostile |= {"limits": [*verdicts.HOSTILE], "settings": {text: text for text in verdicts.HOSTILE}}

    text = card(verdicts.hostile(), hostile)

    fields = front_matter(text)
    assert fields["model-index"][0]["name"] == "a: b --- '\"@octocat <b> #1 $x$"
    assert fields["license"] == "other"
    assert_harmless(text.split("---\n", 2)[2])


@pytest.mark.parametrize("dirty", [True, False])
def test_the_card_says_where_no_commit_holds_what_made_the_model(dirty: bool) -> None:
    made = verdicts.full().candidate.model_copy(update={"dirty": dirty})

    text = card(verdicts.full(candidate=made), FACTS)

    assert f"- Commit: `{FACTS['commit']}`{', with changes that no commit holds' if dirty else ''}\n" in text


@pytest.mark.parametrize("name", sorted(set(FACTS) - {"settings"}))
@pytest.mark.parametrize("gone", [True, False], ids=["gone", "empty"])
def test_a_card_with_a_field_missing_is_refused_by_its_name(name: str, gone: bool) -> None:
    facts = {key: value for key, value in FACTS.items() if key != name} if gone else FACTS | {name: type(FACTS[name])()}
    if not gone and name == "threshold":
        facts[name] = None

    with pytest.raises(UserError, match=rf"^reports/card.md cannot be written: '{name}' is missing; \w+"):
        card(verdicts.full(), facts)


def test_a_card_of_values_needs_no_threshold_and_no_settings() -> None:
    facts = FACTS | {"threshold": None, "settings": {}, "license": "LicenseRef-Proprietary"}

    text = card(verdicts.full(task="regression"), facts)

    assert front_matter(text)["pipeline_tag"] == "tabular-regression"
    assert front_matter(text)["license_name"] == "licenseref-proprietary"
    assert "acts on a score" not in text
