"""A promotion in a process of its own that waits for leave before it changes something, or reads what decides.

What it reads else it has read when it waits the next time, so others can act between that and its consequences.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import requests

from ml.errors import UserError
from ml.operations import promote

OUTSIDE = ("push", "ls-remote", "fetch")
SECONDS = 60


class Quiet:
    """A deploy target that does nothing."""

    def plan(self, _: Any) -> str:
        return ""

    apply = check = plan


def act(pipe: Connection, folder: str, environment: dict[str, str], words: list[str]) -> None:
    """Promote, roll back or mend, as the words say."""
    os.setpgrp()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    promote.targets.chosen = Quiet
    run, request = subprocess.run, requests.Session.request

    def leave(what: str) -> None:
        pipe.send(("at", what))
        pipe.recv()

    def gated_run(command: list[str], *rest: Any, **more: Any) -> Any:
        if command[0] == "gh" or command[1] in OUTSIDE:
            leave(" ".join(command[:2]))
        return run(command, *rest, **more)

    def gated_request(session: requests.Session, method: str, url: str, **more: Any) -> Any:
        if method != "GET" or url.endswith("/issues"):
            leave(f"{method} {url}")
        return request(session, method, url, **more)

    subprocess.run, requests.Session.request = gated_run, gated_request
    verbs = {"promote": promote.run, "rollback": promote.rollback, "mend": lambda: promote.status(mend=True)[0]}
    try:
        pipe.send(("done", verbs[words[0]](*words[1:])))
    except UserError as error:
        pipe.send(("refused", str(error)))


class Actor:
    """One such process, as the test sees it."""

    def __init__(self, folder: Path, words: list[str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["actor"])
        self.words = words
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=act, args=(theirs, str(folder), dict(os.environ), words), daemon=True)
        self.process.start()
        theirs.close()
        self.state, self.told = self._next()

    def step(self) -> None:
        """Let it do the one thing that it waits for."""
        self.pipe.send(None)
        self.state, self.told = self._next()

    def kill(self, chance: random.Random | None = None) -> None:
        """Kill it where it waits, or somewhere in what it does next; what it has started goes on to its end."""
        if chance is not None:
            self.pipe.send(None)
            time.sleep(chance.uniform(0, 0.015))
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()
        self.state = "killed"
        _wait(lambda: _gone(self.process.pid))

    def end(self) -> None:
        """Let it go on to its end."""
        while self.state == "at":
            self.step()
        self.process.join()

    def _next(self) -> tuple[str, Any]:
        if not self.pipe.poll(SECONDS):
            raise AssertionError(f"{self.words} does nothing")
        return self.pipe.recv()


def _gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def _wait(true: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not true():
        if time.monotonic() > end:
            raise AssertionError("a process that was started does not end")
        time.sleep(0.002)
