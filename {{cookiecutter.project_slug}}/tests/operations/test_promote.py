from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Program
from host import git
from oci import World, attest, push

from ml import cli
from ml.errors import UserError
from ml.operations import promote
from ml.operations.record import Exemption, Scan
from ml.operations.registry import Registry


def test_a_promotion_lets_tag_registry_and_deployment_lead_to_one_digest(world: World) -> None:
    digest = world.delivered(1)

    lines = promote.run("production", digest)

    world.agrees("production", digest)
    entry = promote.current("production")
    assert (entry.tag, entry.commit, entry.how, entry.who) == (
        "model#production#1", world.commits[1], "delivered", "a",
    )
    assert world.board.of("production") == [("model#production#1", "success")]
    assert [what for what, _ in world.target.asked] == ["plan", "apply", "check"]
    assert lines[0] == f"model#production#1: {world.store.image}@{digest} of {world.commits[1][:10]}, verified"
    about = world.board.deployments[0]
    assert (about["ref"], about["payload"]["digest"], about["required_contexts"]) == (world.commits[1], digest, [])
    assert world.target.runs == f"{world.store.image}@{digest}"


def test_a_promotion_that_runs_again_changes_nothing(world: World) -> None:
    digest = world.delivered(1)
    promote.run("staging", digest)
    tags, board = world.tags(), world.board.of("staging")

    promote.run("staging", digest)

    assert (world.tags(), world.board.of("staging")) == (tags, board)
