"""Posts a run's report on its pull request; the one place where text of unreviewed code meets a token that writes.

Runs from the default branch's code, in `report.yml`. What the checks concluded comes from GitHub's API; the report is
text from the run's artifact and is made harmless before it is posted.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from ml.errors import SourceError, UserError
from ml.operations import bundle
from ml.operations.github import GitHub
from ml.review import report

TITLE = "ml-report"
WATERMARK = f"CML watermark {TITLE}"
ARTIFACT = "report"
BOT = "github-actions[bot]"
MOST = 5_000_000  # bytes of the artifact
MOST_FILES = 50
LONGEST = 56_000  # characters of a report; GitHub refuses a comment of more than 65,536
FIRST_PAGE = 30  # comments that CML looks at
GATE = "all-checks-pass"
TRAINING = "model"
PAST_RUNS = 20
MARK = re.compile(r"<!-- ml-report run=(\d+) attempt=(\d+) -->")
MARKS = {"success": "✅", "skipped": "➖", None: "⏳"}
KNOWN = ("", "sh", "mermaid")
DEEPEST = 4  # folded parts within each other
SHOWN = 40  # checks in the table
FENCE = re.compile(r" {0,3}(?P<mark>`{3,}|~{3,})(?P<info>.*)")
FOLD = re.compile(r" {0,3}(?P<open><details>)?(?:<summary>(?P<title>.*)</summary>)?(?P<close></details>)?[ \t]*")
# What a report draws; a Mermaid diagram can do more than that, on a click too.
CHART = re.compile(r'\s*(?:xychart-beta|(?:x-axis|bar|line) \[[-\d., "]*\])')
INERT = [
    (re.compile(pattern, re.IGNORECASE), harmless)
    for pattern, harmless in (
        (r"\\(?=[!-/:-@\[-`{-~])", "\\\\\u200b"),  # an escape would hide from what follows
        (r"!(?=\s*\[)", ""),  # an image
        (r"\](?=\s*[(\[:])", "]\u200b"),  # a link needs both brackets side by side
        (r":(?=//)|(?<=mailto):|(?<=xmpp):", "\u200b:"),
        (r"(www)\.", "\\1\u200b."),
        (r"@", "@\u200b"),
        (r"#(?=\d)", "#\u200b"),
        (r"(gh)-(?=\d)", "\\1\u200b-"),
    )
]


@dataclass(frozen=True)
class Run:
    """A finished run of the checks, as the API tells it."""

    number: int
    attempt: int
    head: str
    repository: int
    branch: str
    url: str
    conclusion: str | None

    @classmethod
    def of(cls, told: dict[str, Any]) -> Run:
        """Return the run of an answer of the API."""
        return cls(
            number=told["id"],
            attempt=told["run_attempt"],
            head=told["head_sha"],
            repository=(told["head_repository"] or {}).get("id", 0),
            branch=told["head_branch"] or "",
            url=told["html_url"],
            conclusion=told["conclusion"],
        )


def post(number: int) -> str:
    """Post the report of a run on its pull request, or edit the one that is there; return what was done.

    Raises UserError where GitHub refuses.
    """
    github = GitHub.open()
    run = Run.of(github.get(f"actions/runs/{number}"))
    request = pull_request(github, run)
    if request is None:
        return f"run {number} belongs to no open pull request whose head is {run.head[:10]}: nothing posted"
    jobs = [*github.pages(f"actions/runs/{number}/attempts/{run.attempt}/jobs", "jobs")]
    saved = saving(github, jobs)
    text = body(run, jobs, read_report(github, run), saved)
    return publish(github, request["number"], text, run)


def pull_request(github: GitHub, run: Run) -> dict[str, Any] | None:
    """Return the open pull request whose head is the run's commit in the run's repository; None where it moved on.

    The event does not name the pull requests of forks, and what an artifact says of it would not be believed.
    """
    for found in github.pages("pulls", state="open"):
        head = found["head"]
        if head["sha"] == run.head and (head["repo"] or {}).get("id") == run.repository:
            return found
    return None


def read_report(github: GitHub, run: Run) -> str:
    """Return the run's report, made harmless; why there is none where it cannot be read."""
    with TemporaryDirectory(prefix="report-") as scratch:
        try:
            if not bundle.download(github, run.number, ARTIFACT, Path(scratch), MOST, MOST_FILES):
                return "The run left no report: its jobs ended before one could be written."
            path = Path(scratch, ARTIFACT, "review", report.MARKDOWN)
            if not path.is_file() or path.is_symlink():
                raise SourceError(f"the artifact {ARTIFACT} holds no {report.MARKDOWN}")
            return harmless(path.read_bytes().decode(errors="replace"))
        except UserError as error:
            return f"The report was not posted: {report.prose(str(error))}"


def harmless(text: str) -> str:
    """Return Markdown that mentions nobody, loads nothing, links nowhere and cannot swallow what follows.

    Fenced code stays as it is, so that a command can be copied. Fences and folded parts are moved to the margin, where
    they end whatever stands before them, so that they are here what they are to CommonMark.
    """
    told, fence, chart, depth, size = list[str](), "", False, 0, 0
    for line in map(_seen, text.splitlines()):
        before, match, fold = (fence, depth), FENCE.fullmatch(line), FOLD.fullmatch(line)
        if fence and match and match["mark"].startswith(fence) and not match["info"].strip():
            fence = ""
        elif fence:
            line = line if not chart or CHART.fullmatch(line) else ""
        elif match and not ("`" in match["mark"] and "`" in match["info"]):
            fence, info = match["mark"], match["info"].strip()
            line, chart = fence + (info if info in KNOWN else ""), info == "mermaid"
        elif line.strip() and fold and 0 <= depth + bool(fold["open"]) - bool(fold["close"]) <= DEEPEST:
            depth += bool(fold["open"]) - bool(fold["close"])
            title = "" if fold["title"] is None else f"<summary>{_inert(fold['title'])}</summary>"
            # Only an empty line ends a block of HTML, within which a fence would be none.
            line = f"{fold['open'] or ''}{title}{fold['close'] or ''}\n"
        else:
            line = _inert(line)
        size += len(line) + 1
        if size > LONGEST:
            fence, depth = before
            break
        told.append(line)
    ending = [*([fence] if fence else []), *(["\n… the rest was left out"] if size > LONGEST else [])]
    return "\n".join([*told, *ending]) + "\n\n</details>" * depth


def _seen(line: str) -> str:
    return report.UNSEEN.sub("", "".join(c for c in line if c == "\t" or c.isprintable()))


def _inert(line: str) -> str:
    line = re.sub(r"&(?=[#\w])", "&amp;", line)
    line = re.sub(r"<(?=[a-zA-Z/!?])[^<>]*>?", lambda tag: tag[0].replace("<", "‹").replace(">", "›"), line)
    for pattern, harmless in INERT:
        line = pattern.sub(harmless, line)
    return line


def body(run: Run, jobs: list[dict[str, Any]], text: str, saved: str) -> str:
    """Return the comment: what the checks concluded, the report, each check with its page."""
    verdict = next((job["conclusion"] for job in jobs if job["name"] == GATE), None)
    bad = [job["name"] for job in jobs if job["conclusion"] not in ("success", "skipped", None) and job["name"] != GATE]
    named = ", ".join([*map(report.code, bad[:SHOWN]), *([f"{len(bad) - SHOWN} more"] if len(bad) > SHOWN else [])])
    told = "✅ all checks pass" if verdict == "success" else f"❌ {named or GATE} not passed"
    rows = [
        f"| {MARKS.get(job['conclusion'], '❌')} | [{_plain(job['name'])}]({job['html_url']}) | {_took(job)} |"
        for job in jobs[:SHOWN]
    ]
    if len(jobs) > SHOWN:
        rows.append(f"| | … and {len(jobs) - SHOWN} more | |")
    head = f"**Checks of {run.head[:10]}:** {told} · [run]({run.url}){f' · {saved}' if saved else ''}"
    table = [
        "<details><summary>Checks</summary>",
        "",
        "| | check | took |",
        "| --- | --- | ---: |",
        *rows,
        "",
        "</details>",
    ]
    mark = f"<!-- ml-report run={run.number} attempt={run.attempt} -->"
    return "\n".join([mark, head, "", text.strip("\n"), "", *table, ""])


def _plain(name: str) -> str:
    return re.sub(r"[^\w .()-]", "", name)[:80]


def _seconds(job: dict[str, Any]) -> float:
    if job["conclusion"] == "skipped" or not job.get("started_at") or not job.get("completed_at"):
        return 0.0
    start, end = (datetime.fromisoformat(job[key]) for key in ("started_at", "completed_at"))
    return (end - start).total_seconds()


def _took(job: dict[str, Any]) -> str:
    seconds = _seconds(job)
    return "" if not seconds else f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def saving(github: GitHub, jobs: list[dict[str, Any]]) -> str:
    """Return what was saved where no model had to be trained: the median of what it took in the newest runs."""
    if not any(job["name"] == TRAINING and job["conclusion"] == "skipped" for job in jobs):
        return ""
    query = {"status": "success", "per_page": PAST_RUNS}
    past = github.get(f"actions/workflows/{bundle.WORKFLOW}/runs", **query)["workflow_runs"]
    took = []
    for run in past[:PAST_RUNS]:
        for job in github.pages(f"actions/runs/{run['id']}/jobs", "jobs"):
            if job["name"] == TRAINING and job["conclusion"] == "success":
                took.append(_seconds(job))
        if len(took) == 3:
            break
    if not took:
        return "model reused"
    return f"model reused, saved about {max(median(took) / 60, 0.1):.1f} min"


def publish(github: GitHub, number: int, text: str, run: Run) -> str:
    """Write the comment with CML where it is installed, else through the API; an older run never covers a newer one."""
    comments = [*github.pages(f"issues/{number}/comments")]
    mine = _mine(comments)
    if mine and _mark(mine[-1]) > (run.number, run.attempt):
        return f"a newer report stands on #{number} already: nothing posted"
    seen = [comment for comment in comments[:FIRST_PAGE] if f'"{WATERMARK}"' in (comment["body"] or "")]
    if shutil.which("cml") and (not mine or seen[-1:] == mine[-1:]):
        try:
            _cml("update" if mine else "create", number, text, github.token)
            return f"the report stands on #{number} (CML)"
        except UserError as error:
            print(f"::warning::{error}; the API is used instead")
            mine = mine or _mine([*github.pages(f"issues/{number}/comments")])
    signed = f'{text}\n\n![](https://cml.dev/watermark.png#{run.head} "{WATERMARK}")'  # so that CML finds it
    if mine:
        github.send("PATCH", f"issues/comments/{mine[-1]['id']}", {"body": signed})
    else:
        github.send("POST", f"issues/{number}/comments", {"body": signed})
    return f"the report stands on #{number}"


def _mine(comments: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # Anybody can write a comment that looks like ours, but not as the workflow's own user.
    bots = [comment for comment in comments if (comment["user"] or {}).get("login") == BOT]
    return [comment for comment in bots if MARK.match(comment["body"] or "")]


def _mark(comment: dict[str, Any]) -> tuple[int, int]:
    match = MARK.match(comment["body"])
    return int(match[1]), int(match[2])


def _cml(verb: str, number: int, text: str, token: str) -> None:
    with TemporaryDirectory(prefix="comment-") as scratch:
        path = Path(scratch, "report.md")
        path.write_text(text, encoding="utf-8")
        words = [f"--target=pr/{number}", f"--watermark-title={TITLE}", "--publish=false", str(path)]
        own = {"REPO_TOKEN": token, "ITERATIVE_DO_NOT_TRACK": "1"}
        done = subprocess.run(["cml", "comment", verb, *words], env=os.environ | own, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"cml comment {verb}: {(done.stderr.strip().splitlines() or ['no reason given'])[-1][:200]}")
