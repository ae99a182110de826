from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from host import Hub
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from ml.errors import UserError
from ml.operations import comment
from ml.operations.comment import Run, harmless
from ml.operations.github import GitHub

HEAD = "4cb1617a9e0d" + "0" * 28
RUN = Run(900, 2, HEAD, 1, "deeper-trees", "https://host/runs/900", "failure")
JOBS = [
    {"name": name, "conclusion": conclusion, "html_url": f"https://host/jobs/{name}"}
    | {"started_at": "2026-11-26T10:00:00Z", "completed_at": f"2026-11-26T10:{minutes:02}:30Z"}
    for name, conclusion, minutes in (
        ("data", "success", 0),
        ("model", "success", 12),
        ("service", "skipped", 0),
        ("all-checks-pass", "success", 0),
    )
]
MARK = " ml-report run=900 attempt=2 "
RENDER = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render
SIGN = f'![](https://cml.dev/watermark.png#{HEAD} "CML watermark ml-report")'  # as CML does, and looks for


@dataclass
class Page(HTMLParser):
    """A rendered comment as a browser reads it."""

    within: list[str] = field(default_factory=list)
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    code: list[str] = field(default_factory=list)
    around_checks: list[str] | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("br", "hr", "img", "input"):
            self.within.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.within:
            while self.within.pop() != tag:
                pass

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def handle_data(self, data: str) -> None:
        (self.code if "code" in self.within else self.said).append(data)
        if data == "Checks":
            self.around_checks = [*self.within]


def shown(text: str) -> Page:
    """Return the whole comment that a report leads to, rendered."""
    page = Page()
    page.feed(RENDER(comment.body(RUN, JOBS, harmless(text), "")))
    page.close()
    return page


def assert_harmless(text: str) -> None:
    page = shown(text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"img", "script", "iframe", "style", "svg", "input", "form"})
    assert [attributes["href"] for tag, attributes in page.tags if tag == "a"] == [
        RUN.url,
        *(j["html_url"] for j in JOBS),
    ]
    assert all(not attributes for tag, attributes in page.tags if tag in ("details", "summary", "p", "li"))
    assert page.comments == [MARK]
    said = "\n".join(page.said)
    assert not re.search(r"@\w|[a-z]://|www\.|mailto:|xmpp:|#\d|\bgh-\d", said, re.IGNORECASE), said
    assert page.around_checks == ["details", "summary"]
    assert not [c for c in "".join(page.said + page.code) if c not in "\n\t\u200b" and not c.isprintable()]


HOSTILE = {
    "a mention": "@octocat and (@octo/team), a@example.org",
    "a mention as numbers": "&#64;octocat &#x40;octocat &#0000064;octocat",
    "a mention as a name": "&commat;octocat",
    "an escaped mention": r"\@octocat @\octocat \\@octocat",
    "a mention in a table": "| a |\n| --- |\n| @octocat |",
    "a mention in HTML": "<details>\n@octocat\n</details>",
    "a mention in a folded part's title": "<details><summary>@octocat</summary></details>",
    "a fence in HTML": "<details>\n```\n@octocat <img src=x>\n```\n</details>",
    "a fence in a title": "<summary>\n```\n@octocat <img src=x>\n```",
    "a fence in HTML of another kind": "<div>\n```\n@octocat <img src=x>\n```\n</div>",
    "a fence in a comment": "<!--\n```\n-->\n<img src=x>\n```",
    "a fence in a list": "- ```\n  ```\n@octocat <img src=x>\n```\n",
    "a fence in a list, deep": "- a\n\n    ```\n```\n@octocat <img src=x>",
    "a fence in a quote": "> ```\n> ```\n@octocat\n\n> ```\n```\n<img src=x>",
    "a fence at the very beginning, as code": "    ```\n```\n@octocat <img src=x>",
    "a fence after a tab": "\t```\n```\n@octocat <img src=x>",
    "a fence that ends in spaces": "```\ncode\n```  \n@octocat <img src=x>",
    "a fence that ends in a tab": "```\ncode\n```\t\n@octocat <img src=x>",
    "a fence that seems to end": "```\n```x\n~~~\n````\n@octocat <img src=x>\n```",
    "a fence of tildes with a backtick": "~~~ `\n~~~\n@octocat <img src=x>",
    "no fence, by its information": "``` a`b\n@octocat <img src=x>\n```",
    "a fence within a paragraph": "text\n```\n```\n@octocat",
    "a fence with spaces of another kind": "```\n```\u00a0\n@octocat <img src=x>",
    "a fence behind what is not seen": "\u200b```\n```\n@octocat <img src=x>",
    "a line's end of another kind": "```\u2028```\n@octocat\x0b<img src=x>\x85",
    "an unclosed fence": "text\n\n~~~~sh\nmake",
    "an unclosed folded part": "<details><summary>a</summary>\n\n<details>\n\ntext",
    "a folded part that code seems to close": "<details>\n\n```\n</details>\n```\n\n`</details>` `\n</details> `",
    "a folded part that is closed too often": "</details>\n</details>\n<details>\n",
    "a folded part in a list": "- <details>\n  </details>\n\n  <details>\n- a",
    "an unclosed title": "<details>\n<summary>\n\ntext",
    "a title in a title": "<summary><summary>a</summary>\n<summary>b</summary></summary>",
    "many folded parts": "<details>\n" * 100,
    "tags in tags": "<<img src=x>img src=x> <det<img src=x>ails> <<details>img src=x>",
    "a tag over lines": "<img\nsrc=x\nonerror=alert(1)>",
    "a tag with attributes": "<details open onclick=alert(1)>\n<summary class=x>a</summary>\n</details>",
    "a tag in capitals": "<IMG SRC=x> <Script>alert(1)</Script> <DETAILS>",
    "a tag in code": "`<img src=x>` ``<b>``",
    "a tag after an escape": r"\<img src=x> \\<img src=x> \`<img src=x>`",
    "a tag of entities": "&lt;img src=x&gt; &#60;img src=x&#62;",
    "a declaration": "<!DOCTYPE html> <![CDATA[<img src=x>]]> <?php ?>",
    "a comment": "<!-- secret --> <!--> <!---> <!-- open",
    "a forged marker": "<!-- ml-report run=999999 attempt=1 -->",
    "an image": '![x](https://host/x.png) ![x] (y) !![x](y) !\\[x](y) ![x][y] ! [x](y "t")',
    "an image by reference": "![x][y] ![y][] ![y]\n\n[y]: https://host/x.png\n[z]:\n  <x.png>",
    "a link": "[x](https://host) [x](javascript:alert(1)) [x] (y) [[x](y)](z) [a\\](b](c)",
    "a link by reference": "[x][y] [y][] [y]\n\n[y]: x 'title'\n\n[y\n]: x\n",
    "a footnote": "a[^1]\n\n[^1]: @octocat",
    "an autolink": "<https://host> <mailto:a@example.org> <a@example.org> <1@example.org> <javascript:alert(1)>",
    "a bare address": "https://host (https://host) *https://host* _https://host_ 0https://host éhttps://host",
    "a bare address without a scheme": "www.host.org _www.host.org_ (WWW.host.org)",
    "an escaped address": r"https\://host https:\//host https:/\/host www\.host.org ww\w.host.org",
    "an address as numbers": "https&#58;//host https&colon;//host &#119;ww.host.org",
    "other addresses": "ftp://host mailto:a@example.org xmpp:a@example.org irc://host x-github-client://x",
    "an issue": r"#1 octo/late#1 GH-1 gh-1 _GH-1_ gh\-1 \#1 fixes #12 &#35;1",
    "a Mermaid diagram": '```mermaid\nflowchart\nA --> B; click A "https://host"\nA@{ img: "//host/x.png" }\n```',
    "a diagram of another kind": "```geojson\n{}\n```\n```math\n\\href{javascript:x}{y}\n```\n~~~Mermaid\nx\n~~~",
    "text that turns": "\u202egnp.exe\u2066 \u200e\u061c \u202a",
    "text that is not seen": "@\u200boctocat <\u200bimg src=x> ]\u2060( \ufeff\u00ad\u180e\u034f\u3164",
    "signs that control": "\x00\x1b[31mred\x07\x7f\x9b",
    "bytes that are no text": b"\xff\xfe@octocat\xc0".decode(errors="replace"),
    "a setext heading": "a\n===\nb\n---\n# c\n",
    "a table without an end": "| a | b |\n| --- | --- |\n| ` | <details> |",
    "a task": "- [ ] a\n- [x](y)",
    "emphasis": "@*octocat* **@octocat** @**o** ~~@octocat~~ @`octocat`",
    "code without an end": "a ` b @octocat\n\n`` <img src=x>",
    "a hard break": "@octocat\\\nhttps:\\\n//host",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_a_report_could_do_it_does_not(text: str) -> None:
    assert_harmless(text)
    assert_harmless(f"text\n{text}\n{text}")


PIECES = [
    *(
        "\n",
        "\n\n",
        " ",
        "    ",
        "\t",
        "```",
        "````",
        "~~~",
        "`",
        "``",
        "- ",
        "1. ",
        "> ",
        "| ",
        "| --- |",
        "\\",
        "*",
        "_",
    ),
    *(
        "@octocat",
        "@",
        "&#64;",
        "&commat;",
        "&",
        ";",
        "#1",
        "#",
        "GH-1",
        "https://host",
        "://",
        "www.host.org",
        ":",
        "/",
    ),
    *(
        "<",
        ">",
        "<details>",
        "</details>",
        "<summary>",
        "</summary>",
        "<img src=x>",
        "<script>",
        "<!--",
        "-->",
        "<div>",
    ),
    *("!", "[", "]", "(", ")", "[x](y)", "![x](y)", "[x]: y", "[x]", "]: ", "sh", "mermaid", "geojson", "---", "==="),
    *("\u200b", "\u202e", "\u00a0", "\r", "\x00", "x", "1", "$", "~"),
]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=40).map("".join))
@example("- ```\n  ```\n@octocat")
def test_no_text_can_do_anything(text: str) -> None:
    assert_harmless(text)


@given(st.text())
@settings(max_examples=50, deadline=None)
def test_what_is_harmless_stays_so(text: str) -> None:
    once = harmless(text)

    assert_harmless(once)
    assert len(once) <= comment.LONGEST + 200


@pytest.mark.parametrize("info", ["", "sh"])
def test_a_command_in_a_fence_stays_what_it_is(info: str) -> None:
    commands = (
        "git checkout model@v1\n  curl https://host/x?a=1&b=2 | tee <(cat) #1\n![ -f x ] && a[0](b) \\@\n</details>"
    )

    text = harmless(f"Do it again:\n\n```{info}\n{commands}\n```\n\n@octocat")

    assert f"```{info}\n{commands}\n```\n" in text
    assert commands in "".join(shown(text).code)


def test_a_report_that_is_honest_reads_as_before() -> None:
    report = (
        "## ✅ Safe to merge: every gate passed\n\n**Why:** 12 gates passed, 2 skipped.\n\n"
        "| | gate | what it says |\n| --- | --- | --- |\n| ✅ | harm | call it a day: 0.3 < 0.4 & 5 > 4 |\n\n"
        "<details>\n<summary>Calibration</summary>\n\n"
        '```mermaid\nxychart-beta\n    x-axis ["0.040", "-0.107"]\n    bar [0.030, 0.094]\n    line [0.040, 1]\n```\n\n'
        "- `make review AGAINST=main`\n\n</details>\n"
    )

    assert [*filter(None, harmless(report).splitlines())] == [*filter(None, report.splitlines())]


def test_of_a_diagram_only_bars_and_lines_are_left() -> None:
    lines = ['A --> B; click A "x"', "click A call x()", "%%{init: {}}%%", "bar [a]", "    bar [0.1, -1]", "bar [1]; x"]

    assert harmless("```mermaid\n" + "\n".join(lines) + "\n```").split() == ["```mermaid", "bar", "[0.1,", "-1]", "```"]


@pytest.mark.parametrize("info", ["geojson", "topojson", "stl", "math", "Mermaid", "mermaid x", "suggestion", "sh x"])
def test_of_a_fence_only_known_information_is_left(info: str) -> None:
    assert harmless(f"~~~ {info}\nx\n~~~") == "~~~\nx\n~~~"


@pytest.mark.parametrize("line", ["@", "&a", "<details>", "x", "```", "<summary>a</summary>", "- ~~~"])
def test_a_report_that_is_too_long_is_cut_and_still_shows_the_checks(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"{line}\n" * 70_000
    assert len(comment.body(RUN, JOBS, harmless(text), "")) < 58_000
    monkeypatch.setattr(comment, "LONGEST", 2_000)

    page = shown(text)

    assert "… the rest was left out" in "".join(page.said + page.code)
    assert page.around_checks == ["details", "summary"]


def test_a_cut_does_not_open_what_it_should_close() -> None:
    text = "x" * (comment.LONGEST - 3) + "\n```\n@octocat"

    assert_harmless(text)
    assert "```" not in harmless(text)


def test_the_body_says_what_the_api_says_and_links_each_check() -> None:
    text = comment.body(RUN, JOBS, "report", "model reused")

    lines = text.splitlines()
    assert lines[0] == f"<!--{MARK}-->"
    assert lines[1] == "**Checks of 4cb1617a9e:** ✅ all checks pass · [run](https://host/runs/900) · model reused"
    assert "| ✅ | [data](https://host/jobs/data) | 30 s |" in lines
    assert "| ✅ | [model](https://host/jobs/model) | 12 min |" in lines
    assert "| ➖ | [service](https://host/jobs/service) |  |" in lines


def concluded(**conclusions: str | None) -> list[dict[str, Any]]:
    return [{"name": name.replace("_", "-"), "conclusion": what, "html_url": "u"} for name, what in conclusions.items()]


@pytest.mark.parametrize(
    ("jobs", "told"),
    [
        (concluded(test="failure", all_checks_pass="failure"), "❌ `test` not passed"),
        (concluded(test="cancelled", data="timed_out", model="skipped"), "❌ `test`, `data` not passed"),
        (concluded(test="success", all_checks_pass="failure"), "❌ all-checks-pass not passed"),
        (concluded(test="success", all_checks_pass=None), "❌ all-checks-pass not passed"),
        (concluded(test="success"), "❌ all-checks-pass not passed"),
        ([], "❌ all-checks-pass not passed"),
    ],
)
def test_only_the_required_check_makes_the_body_say_that_all_pass(jobs: list[dict[str, Any]], told: str) -> None:
    text = comment.body(RUN, jobs, "✅ all checks pass", "")

    assert text.splitlines()[1] == f"**Checks of 4cb1617a9e:** {told} · [run](https://host/runs/900)"


def test_names_of_jobs_are_no_markup_and_do_not_fill_the_comment() -> None:
    names = ["a | b](https://evil) <img src=x> @octocat `", *(f"{at}" + "x" * 300 for at in range(300))]
    jobs = [{"name": name, "conclusion": "failure", "html_url": "https://host/job"} for name in names]

    text = comment.body(RUN, jobs, "report", "")
    page = Page()
    page.feed(RENDER(text))

    assert len(text) < 9_000
    assert "… and 261 more" in text
    assert {attributes["href"] for tag, attributes in page.tags if tag == "a"} == {RUN.url, "https://host/job"}
    assert not [text for text in page.said if "@o" in text]
    assert "img" not in {tag for tag, _ in page.tags}


def told_run(hub: Hub, number: int = 900, attempt: int = 1, repository: int | None = 1, **more: Any) -> None:
    """Let the API know a run of HEAD and its jobs."""
    told = {
        "id": number,
        "run_attempt": attempt,
        "head_sha": HEAD,
        "head_branch": "deeper-trees",
        "conclusion": "success",
    }
    told |= {"html_url": RUN.url, "head_repository": repository and {"id": repository}}
    hub.on(f"GET actions/runs/{number}", told | more)
    hub.on(f"GET actions/runs/{number}/attempts/{attempt}/jobs", {"jobs": JOBS})
    hub.answers.setdefault(f"GET /repos/octo/late/actions/runs/{number}/artifacts", {"artifacts": []})


def request(number: int, sha: str, repository: int | None) -> dict[str, Any]:
    return {"number": number, "head": {"sha": sha, "ref": "deeper-trees", "repo": repository and {"id": repository}}}


@pytest.fixture
def asked(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Return the API with a run, its pull request 12, its report and no comment; CML is not installed."""
    told_run(hub)
    hub.on("GET pulls", [request(12, HEAD, 1)])
    hub.artifact(900, "report", {"review/report.md": b"## verdict @octocat"})
    hub.on("GET issues/12/comments", [])
    hub.on("POST issues/12/comments", (201, {}, {"id": 1}))
    monkeypatch.setattr("shutil.which", lambda name: None)
    return hub


def posted(hub: Hub) -> list[tuple[str, str]]:
    return [(method, path) for method, path, _ in hub.sent()]


def test_the_report_is_posted_on_the_pull_request_of_the_run(asked: Hub) -> None:
    assert comment.post(900) == "the report stands on #12"

    [(method, path, sent)] = asked.sent()
    assert (method, path) == ("POST", "issues/12/comments")
    assert sent["body"].startswith("<!-- ml-report run=900 attempt=1 -->\n**Checks of 4cb1617a9e:** ✅ all checks pass")
    assert "## verdict @\u200boctocat" in sent["body"]
    assert sent["body"].endswith(f"\n\n{SIGN}")


def test_the_pull_request_is_found_by_head_and_repository_alone(asked: Hub) -> None:
    others = [request(at, "f" * 40, 1) for at in range(120)] + [request(200, HEAD, 2), request(201, HEAD, None)]
    asked.on("GET pulls", [*others, request(12, HEAD, 1)])
    told_run(asked, pull_requests=[{"number": 200}], head_branch="main")

    assert comment.post(900) == "the report stands on #12"

    assert {call.query["state"] for call in asked.calls if call.path.endswith("/pulls")} == {"open"}
    assert posted(asked) == [("POST", "issues/12/comments")]


@pytest.mark.parametrize(
    ("repository", "requests"), [(1, []), (1, [request(12, "f" * 40, 1)]), (None, [request(12, HEAD, 1)])]
)
def test_a_run_whose_pull_request_moved_on_posts_nothing(
    repository: int | None, requests: list[dict[str, Any]], asked: Hub
) -> None:
    told_run(asked, repository=repository)
    asked.on("GET pulls", requests)

    assert comment.post(900).endswith("belongs to no open pull request whose head is 4cb1617a9e: nothing posted")
    assert posted(asked) == []


def standing(number: int, run: int, attempt: int = 1, login: str = "github-actions[bot]") -> dict[str, Any]:
    text = f"<!-- ml-report run={run} attempt={attempt} -->\nold\n\n{SIGN}"
    return {"id": number, "user": {"login": login}, "body": text}


def said_by(login: str, count: int, start: int = 1000) -> list[dict[str, Any]]:
    return [{"id": start + at, "user": {"login": login}, "body": f"comment {at}"} for at in range(count)]


@pytest.mark.parametrize(("run", "attempt"), [(901, 1), (900, 3)])
def test_a_stale_run_does_not_overwrite_a_newer_report(run: int, attempt: int, asked: Hub) -> None:
    told_run(asked, attempt=2)
    asked.on("GET issues/12/comments", [standing(5, run, attempt)])

    assert comment.post(900) == "a newer report stands on #12 already: nothing posted"
    assert posted(asked) == []


@pytest.mark.parametrize(("run", "attempt"), [(899, 7), (900, 1), (900, 2)])
def test_an_older_report_is_replaced_in_its_place(run: int, attempt: int, asked: Hub) -> None:
    told_run(asked, attempt=2)
    asked.on("GET issues/12/comments", [*said_by("octocat", 3), standing(5, run, attempt)])
    asked.on("PATCH issues/comments/5", {"id": 5})

    comment.post(900)

    [(method, path, sent)] = asked.sent()
    assert (method, path) == ("PATCH", "issues/comments/5")
    assert sent["body"].startswith("<!-- ml-report run=900 attempt=2 -->")


@pytest.mark.parametrize("installed", [True, False], ids=["CML", "no CML"])
@pytest.mark.parametrize("before", [40, 140])
def test_among_many_comments_ours_is_found_and_no_second_one_is_posted(
    before: int, installed: bool, asked: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: name if installed else None)
    asked.on("GET issues/12/comments", [*said_by("octocat", before), standing(5, 899), *said_by("hubot", 3, 2000)])
    asked.on("PATCH issues/comments/5", {"id": 5})

    comment.post(900)

    assert posted(asked) == [("PATCH", "issues/comments/5")]


@pytest.mark.parametrize(
    "other",
    [
        standing(6, 10**12, login="octocat"),
        standing(6, 10**12) | {"user": None},
        {"id": 6, "user": {"login": "github-actions[bot]"}, "body": "quoted: <!-- ml-report run=9999 attempt=1 -->"},
        {"id": 6, "user": {"login": "github-actions[bot]"}, "body": None},
    ],
    ids=["a stranger's", "a deleted user's", "a quotation", "without text"],
)
def test_a_comment_that_only_looks_like_ours_is_neither_believed_nor_in_the_way(
    other: dict[str, Any], asked: Hub
) -> None:
    asked.on("GET issues/12/comments", [other])

    comment.post(900)

    assert posted(asked) == [("POST", "issues/12/comments")]


CML = """
import json, os, sys
from pathlib import Path
log = Path({log!r})
log.write_text(json.dumps([sys.argv[1:], Path(sys.argv[-1]).read_text(), os.environ.get("REPO_TOKEN")]))
{ending}
"""


@pytest.fixture
def cml(
    asked: Hub, program: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """Return what installs a program in CML's place that notes how it was called, and where it notes it."""
    monkeypatch.setattr("shutil.which", lambda name: name)

    def install(ending: str = "") -> Path:
        program("cml", CML.format(log=str(tmp_path / "cml.json"), ending=ending))
        return tmp_path / "cml.json"

    return install


@pytest.mark.parametrize(
    ("comments", "verb"),
    [
        ([], "create"),
        ([standing(5, 899)], "update"),
        ([*said_by("octocat", 29), standing(5, 899)], "update"),
        ([standing(6, 899, login="octocat")], "create"),
    ],
    ids=["none yet", "ours", "ours at the end of the first page", "a stranger's"],
)
def test_cml_writes_the_comment_where_it_can(
    comments: list[dict[str, Any]], verb: str, asked: Hub, cml: Callable[[], Path]
) -> None:
    log = cml()
    asked.on("GET issues/12/comments", comments)

    assert comment.post(900) == "the report stands on #12 (CML)"

    words, text, token = json.loads(log.read_text())
    assert words[:2] == ["comment", verb]
    assert words[2:-1] == ["--target=pr/12", "--watermark-title=ml-report", "--publish=false"]
    assert text.startswith("<!-- ml-report run=900 attempt=1 -->")
    assert "watermark" not in text
    assert token == "secret"
    assert posted(asked) == []


def test_where_cml_would_edit_anothers_comment_the_api_is_used(asked: Hub, cml: Callable[[], Path]) -> None:
    log = cml()
    asked.on("GET issues/12/comments", [standing(5, 899), standing(6, 899, login="octocat")])
    asked.on("PATCH issues/comments/5", {"id": 5})

    comment.post(900)

    assert posted(asked) == [("PATCH", "issues/comments/5")]
    assert not log.exists()


def test_where_cml_fails_the_api_is_used_and_the_run_says_why(
    asked: Hub, cml: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    cml("sys.exit('first\\n::error::\\nGot an unexpected response')")

    assert comment.post(900) == "the report stands on #12"

    assert posted(asked) == [("POST", "issues/12/comments")]
    assert (
        capsys.readouterr().out
        == "::warning::cml comment create: Got an unexpected response; the API is used instead\n"
    )


def test_where_cml_fails_after_it_posted_no_second_comment_appears(asked: Hub, cml: Callable[[str], Path]) -> None:
    log = cml("sys.exit(1)")
    asked.on("GET issues/12/comments", lambda call: [standing(5, 900)] if log.exists() else [])
    asked.on("PATCH issues/comments/5", {"id": 5})

    comment.post(900)

    assert posted(asked) == [("PATCH", "issues/comments/5")]


def body_of(hub: Hub) -> str:
    return hub.sent()[-1][2]["body"]


@pytest.mark.parametrize(
    ("files", "more", "told"),
    [
        (None, {}, "The run left no report: its jobs ended before one could be written."),
        ({"other.md": b"x"}, {}, "The report was not posted: the artifact report holds no report.md"),
        ({"review/report.md/x": b""}, {}, "The report was not posted: the artifact report holds no report.md"),
        (
            {"../report.md": b"x"},
            {},
            "The report was not posted: report holds '../report.md', which leaves its folder",
        ),
        ({"x": b"x" * 5_000_001}, {}, "The report was not posted: the artifact report of run 900 has 5,000,"),
        ({str(at): b"" for at in range(51)}, {}, "The report was not posted: report unpacks to more than 50 files"),
        (
            {"review/report.md": b""},
            {"expired": True},
            "The report was not posted: the artifact report of run 900 has exp",
        ),
        ({"review/report.md": b"x" * 900}, {"number": 8}, "The report was not posted: GitHub refuses GET"),
    ],
    ids=["none", "another file", "a folder", "an escape", "too large", "too many", "expired", "refused"],
)
def test_without_a_report_the_conclusions_are_posted_with_the_reason(
    files: dict[str, bytes] | None, more: dict[str, Any], told: str, asked: Hub
) -> None:
    asked.on("GET actions/runs/900/artifacts", {"artifacts": []})
    if files is not None:
        asked.artifact(900, "report", files, **more)
    if "number" in more:
        asked.on("GET actions/artifacts/8/zip", (410, {}, {"message": "Artifact has expired"}))

    comment.post(900)

    assert told in body_of(asked)
    assert "✅ all checks pass" in body_of(asked)


def test_a_report_that_is_no_text_is_posted_harmless(asked: Hub) -> None:
    asked.on("GET actions/runs/900/artifacts", {"artifacts": []})
    asked.artifact(900, "report", {"review/report.md": b"\xff\x00<img src=x>\n" * 10_000})

    comment.post(900)

    assert len(body_of(asked)) < 65_536
    assert "<img" not in body_of(asked)


def test_a_refused_comment_is_one_line(asked: Hub) -> None:
    asked.on("POST issues/12/comments", (403, {}, {"message": "Resource not accessible by integration"}))

    with pytest.raises(
        UserError, match=r"^GitHub refuses POST issues/12/comments \(403\): Resource not accessible by int"
    ):
        comment.post(900)


def job(name: str, conclusion: str, minutes: int) -> dict[str, Any]:
    return {
        **{"name": name, "conclusion": conclusion, "html_url": "u"},
        **{"started_at": "2026-11-26T10:00:00Z", "completed_at": f"2026-11-26T10:{minutes:02}:00Z"},
    }


def past(hub: Hub, *minutes: int | None) -> None:
    """Let the newest successful runs have trained for so long, or not at all."""
    hub.on("GET actions/workflows/pull-request.yml/runs", {"workflow_runs": [{"id": at} for at in range(len(minutes))]})
    for at, took in enumerate(minutes):
        jobs = [job("test", "success", 50), job("model", "skipped" if took is None else "success", took or 0)]
        hub.on(f"GET actions/runs/{at}/jobs", {"jobs": jobs})


@pytest.mark.parametrize(
    ("minutes", "told"),
    [
        ((None, 10, None, 4, 6, 50), "model reused, saved about 6.0 min"),
        ((8,), "model reused, saved about 8.0 min"),
        ((0, None), "model reused, saved about 0.1 min"),
        ((None, None), "model reused"),
        ((), "model reused"),
    ],
)
def test_what_was_saved_is_what_the_newest_trainings_took(minutes: tuple[int | None, ...], told: str, hub: Hub) -> None:
    past(hub, *minutes)

    assert comment.saving(GitHub.open(), [job("model", "skipped", 0), job("test", "success", 1)]) == told


def test_where_the_model_was_trained_nothing_was_saved(hub: Hub) -> None:
    assert comment.saving(GitHub.open(), JOBS) == ""
    assert hub.calls == []
