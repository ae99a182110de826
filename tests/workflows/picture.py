"""Draws a pull request's checks and its report as a reader sees them, for the README."""

from __future__ import annotations

import html
import re
import subprocess
from pathlib import Path

from conftest import require
from markdown_it import MarkdownIt
from world import Run

MARKS = {"success": "✓", "failure": "✗", "skipped": "–"}
STYLE = """
body { margin: 0; padding: 20px; width: 860px; background: #fff; color: #1f2328; font: 14px/1.5 sans-serif }
.box { border: 1px solid #d1d9e0; border-radius: 6px; margin-bottom: 16px; overflow: hidden }
.head { background: #f6f8fa; border-bottom: 1px solid #d1d9e0; padding: 8px 14px; color: #59636e }
.head b { color: #1f2328 }
.body { padding: 4px 16px 12px }
.check { padding: 5px 14px; border-top: 1px solid #eef1f4 }
.check:first-of-type { border-top: 0 }
.success { color: #1a7f37 } .failure { color: #d1242f } .skipped { color: #59636e }
h2 { border-bottom: 1px solid #d1d9e0; padding-bottom: 6px; font-size: 20px }
table { border-collapse: collapse; font-size: 13px }
td, th { border: 1px solid #d1d9e0; padding: 4px 10px; text-align: left }
code { background: #eff1f3; padding: 1px 5px; border-radius: 4px; font-size: 12px }
summary { font-weight: 600; margin: 6px 0 }
a { color: #0969da; text-decoration: none }
"""


def page(run: Run, comment: str) -> str:
    """Return a page of a run's checks and of the comment, without its signature."""
    shown = re.sub(r"!\[\]\(\S+ \"CML watermark[^)]*\)", "", comment)
    text = MarkdownIt("commonmark", {"html": True}).enable("table").render(shown)
    checks = "".join(
        f'<div class="check"><span class="{said}">{MARKS[said]}</span> {html.escape(run.record.name)} / {name}</div>'
        for name, said in run.jobs.items()
    )
    return (
        f'<!doctype html><meta charset="utf-8"><style>{STYLE}</style>'
        f'<div class="box"><div class="head"><b>github-actions</b> commented</div><div class="body">{text}</div></div>'
        f'<div class="box"><div class="head"><b>Checks</b></div>{checks}</div>'
    )


def draw(run: Run, comment: str, target: Path, folder: Path) -> None:
    """Write the page and its picture."""
    written = folder / "pull-request.html"
    written.write_text(page(run, comment))
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking")
    size = ("--window-size=900,1160", "--force-device-scale-factor=1.5", f"--user-data-dir={folder / 'chromium'}")
    subprocess.run(
        [require("chromium"), *quiet, *size, f"--screenshot={target}", written.as_uri()],
        check=True,
        capture_output=True,
    )
