"""Runs among a project's tests, whose `world` has a registry and a repository: prints as JSON what promotions take."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from oci import World

from ml.operations import promote

TIMES = 10


def seconds(work: Callable[[], object]) -> float:
    """Return how long something takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def test_what_promotions_and_rollbacks_take(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    digests = [world.delivered(3, f"image {number}") for number in range(2 * TIMES)]
    promoted, rolled = [], []
    for digest in digests:
        promoted.append(seconds(lambda digest=digest: promote.promote("production", digest)))
        if len(promoted) > TIMES:
            rolled.append(seconds(promote.rollback))
            for issue in world.board.issues:
                issue["state"] = "closed"
    with capsys.disabled():
        print(f"\n{json.dumps({'promoted': promoted, 'rolled': rolled})}")
