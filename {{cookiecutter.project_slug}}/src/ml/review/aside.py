"""Asks DVC and draws in a second process, while the first one measures; both wait for their imports at once."""

from __future__ import annotations

import atexit
import gc
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml.errors import UserError

if TYPE_CHECKING:
    from ml.review.lock import Problem
    from ml.review.verdict import Group, Verdict


class Aside:
    """What another process does meanwhile: look at the lock, get ready to draw, compare groups, draw."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        # What keeps the lock of this folder from being current, as `lock.problems` gives it.
        self.problems: Callable[[], list[Problem]] = self._start("lock", "problems", Path.cwd())
        executor.submit(_get_ready)

    def start_groups(self, *words: Any) -> Callable[[], list[Group]]:
        """Return what gives, once it is there, what `groups.figures` gives."""
        return self._start("groups", "figures", *words)

    def start_drawing(self, *words: Any) -> Callable[[], dict[str, str]]:
        """Return what gives, once it is there, what `plots.draw` gives."""
        return self._start("plots", "draw", *words)

    def slices(self, verdict: Verdict) -> dict[str, str]:
        """Return what `plots.slices` gives."""
        return self._start("plots", "slices", verdict)()

    def _start(self, *words: Any) -> Callable[[], Any]:
        started = _told(lambda: self.executor.submit(_call, *words))
        return lambda: _told(started.result)


@contextmanager
def second_process() -> Iterator[Aside]:
    """Yield a process that ends with the block."""
    # A fork would copy the threads of ONNX Runtime half.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_begin) as executor:
        yield Aside(executor)


def _told(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except BrokenExecutor:
        raise UserError("the review's second process was ended from outside, perhaps for want of memory") from None


def _begin() -> None:
    gc.disable()
    # Ctrl-C reaches both; the first one ends the second.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Taking all that was imported apart again would keep the first one waiting for half a second.
    atexit.register(os._exit, 0)


def _get_ready() -> None:
    import ml.review.plots  # noqa: F401


def _call(module: str, function: str, *words: Any) -> Any:
    return getattr(import_module(f"ml.review.{module}"), function)(*words)
