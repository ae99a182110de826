"""The review's page in a real browser: it fetches nothing, says nothing in the console and fits a phone."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import require
from real import Project

PHONE, DESK = 375, 1200  # CSS pixels


class Browser:
    """One page of Chromium, driven through the two pipes of its DevTools protocol."""

    def __init__(self, write: int, read: int) -> None:
        self.out, self.into = os.fdopen(write, "wb", buffering=0), os.fdopen(read, "rb")
        self.events: list[dict[str, Any]] = []
        self.session: dict[str, str] = {}
        self.sent = 0
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Network", "Log", "Runtime"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: object) -> dict[str, Any]:
        """Send a command and return its result; events that arrive meanwhile are kept."""
        self.sent += 1
        command = {"id": self.sent, "method": method, "params": params} | self.session
        self.out.write(json.dumps(command).encode() + b"\0")
        while (message := self.next()).get("id") != self.sent:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def next(self) -> dict[str, Any]:
        """Return the next message."""
        text = bytearray()
        while (letter := self.into.read(1)) != b"\0":
            assert letter, "Chromium ended"
            text += letter
        return json.loads(text)

    def open(self, page: Path, width: int) -> None:
        """Show the page and return when it has loaded."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width == PHONE)
        self.events = []
        self("Page.navigate", url=page.as_uri())
        while not self.of("Page.loadEventFired"):
            self.events.append(self.next())

    def of(self, *methods: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event.get("method") in methods]

    def value(self, expression: str) -> Any:
        return self("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]


@contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    """Yield a browser without a network; it ends with the block."""
    (read, theirs), (ours, write) = os.pipe(), os.pipe()
    options = "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    # The protocol's pipes are descriptors 3 and 4, whatever numbers they have here.
    command = f'exec "$0" {options} --remote-debugging-pipe "--user-data-dir=$1" 3<&{ours} 4>&{theirs}'
    process = subprocess.Popen(
        ["bash", "-c", command, require("chromium"), profile],
        pass_fds=(ours, theirs),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(ours)
    os.close(theirs)
    try:
        yield Browser(write, read)
    finally:
        process.kill()
        process.wait(timeout=30)


def complaints(browser: Browser, page: Path, width: int) -> list[str]:
    """Return what is wrong with the page at a width: what it fetches, says in the console, or shows too wide."""
    browser.open(page, width)
    asked = [sent["request"]["url"] for sent in browser.of("Network.requestWillBeSent")]
    found = [f"fetches {url}" for url in asked if url != page.as_uri() and not url.startswith("data:")]
    found += [f"logs {entry['entry']['text']}" for entry in browser.of("Log.entryAdded")]
    found += [f"says {said['type']}" for said in browser.of("Runtime.consoleAPICalled")]
    found += ["throws" for _ in browser.of("Runtime.exceptionThrown")]
    shown = browser.value("document.documentElement.scrollWidth")
    return found + ([f"is {shown} px wide at {width}"] if shown > width else [])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def reviewed(judged: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project after a review of a change."""
    project = judged.copy(tmp_path_factory.mktemp("reviewed") / "copy")
    project.change("max_iter: 30", "max_iter: 33")
    project.done(require("make"), "pipeline", "review", OMP_NUM_THREADS="1")
    return project


@pytest.mark.slow
@pytest.mark.parametrize("width", [PHONE, DESK], ids=["phone", "desk"])
def test_the_page_of_a_real_review_is_quiet_and_fits(browser: Browser, reviewed: Project, width: int) -> None:
    page = reviewed / "reports/review/report.html"

    assert complaints(browser, page, width) == []
    assert browser.value("document.querySelectorAll('svg.drawing').length") > 0
    assert browser.value("document.querySelector('h1').innerText")


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("<img src='https://example.invalid/x.png'>", "fetches https://example.invalid/x.png"),
        ("<script>console.error('no')</script>", "says error"),
        ("<script>missing()</script>", "throws"),
        ("<div style='width: 500px'>wide</div>", "is 500 px wide at 375"),
        (
            "<meta http-equiv='Content-Security-Policy' content=\"script-src 'none'\"><script>1</script>",
            "logs Executing inline script",
        ),
    ],
    ids=["fetch", "console", "throw", "wide", "policy"],
)
def test_a_page_that_is_not_quiet_or_does_not_fit_is_caught(
    browser: Browser, tmp_path: Path, body: str, complaint: str
) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<!doctype html><meta name=viewport content='width=device-width'>"
        f"<link rel=icon href='data:,'><style>body {{ margin: 0 }}</style>{body}"
    )

    found = complaints(browser, page, PHONE)

    assert any(said.startswith(complaint) for said in found), found
