"""Draws a pull request's checks and its report as a reader sees them, for the README."""

from __future__ import annotations

import html
import re
import subprocess
from pathlib import Path

from conftest import require
from markdown_it import MarkdownIt

# A machine that draws may have no font with GitHub's signs.
SIGNS = {"success": "✔", "failure": "✘", "skipped": "–"}
EMOJI = {"✅": "success", "❌": "failure", "➖": "skipped"}
STYLE = """
body { margin: 0; padding: 20px; width: 860px; background: #fff; color: #1f2328; font: 14px/1.5 sans-serif }
.box { border: 1px solid #d1d9e0; border-radius: 6px; margin-bottom: 16px; overflow: hidden }
.head { background: #f6f8fa; border-bottom: 1px solid #d1d9e0; padding: 8px 14px; color: #59636e }
.head b { color: #1f2328 }
.body { padding: 4px 16px 12px }
.checks { display: flex; flex-wrap: wrap; gap: 4px 22px; padding: 10px 16px }
.success { color: #1a7f37 } .failure { color: #d1242f } .skipped { color: #59636e }
h2 { border-bottom: 1px solid #d1d9e0; padding-bottom: 6px; font-size: 20px }
table { border-collapse: collapse; font-size: 13px }
td, th { border: 1px solid #d1d9e0; padding: 4px 10px; text-align: left }
code { background: #eff1f3; padding: 1px 5px; border-radius: 4px; font-size: 12px }
details { display: inline-block; margin: 8px 22px 0 0 }
summary { font-weight: 600 }
a { color: #0969da; text-decoration: none }
"""


def sign(conclusion: str) -> str:
    return f'<span class="{conclusion}">{SIGNS[conclusion]}</span>'


def page(jobs: dict[str, str], text: str) -> str:
    """Return a page of a run's checks and of its report, which is HTML."""
    for emoji, conclusion in EMOJI.items():
        text = text.replace(emoji, sign(conclusion))
    checks = "".join(f"<span>{sign(said)} {html.escape(name)}</span>" for name, said in jobs.items())
    return (
        f'<!doctype html><meta charset="utf-8"><style>{STYLE}</style>'
        f'<div class="box"><div class="head"><b>Checks</b></div><div class="checks">{checks}</div></div>'
        f'<div class="box"><div class="head"><b>github-actions</b> commented</div><div class="body">{text}</div></div>'
    )


def rendered(comment: str) -> str:
    """Return a comment as HTML, without its signature."""
    shown = re.sub(r"!\[\]\(\S+ \"CML watermark[^)]*\)", "", comment)
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(shown)


def draw(jobs: dict[str, str], comment: str, target: Path, folder: Path) -> None:
    """Write the page and its picture."""
    written = folder / "pull-request.html"
    written.write_text(page(jobs, rendered(comment)))
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking")
    size = ("--window-size=900,940", "--force-device-scale-factor=1.5", f"--user-data-dir={folder / 'chromium'}")
    subprocess.run(
        [require("chromium"), *quiet, *size, f"--screenshot={target}", written.as_uri()],
        check=True,
        capture_output=True,
    )
