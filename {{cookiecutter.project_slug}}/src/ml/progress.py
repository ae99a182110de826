"""Shows work that takes longer than two seconds, on a terminal only."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm

DELAY = 2.0  # seconds


@contextmanager
def steps(title: str, total: int) -> Iterator[tqdm]:
    """Yield a bar to `update`; it appears after two seconds, its clock runs on, and it is silent in a pipe or a log."""
    from tqdm import tqdm

    with tqdm(total=total, desc=title, delay=DELAY, disable=None, leave=False) as bar:
        done = threading.Event()

        def tick() -> None:
            while not done.wait(0.5):
                if bar.format_dict["elapsed"] >= DELAY:
                    bar.refresh()

        clock = threading.Thread(target=tick, daemon=True)
        if not bar.disable:
            clock.start()
        try:
            yield bar
        finally:
            done.set()
