"""Nowhere: the image is published, and asked on this machine in a container that may do next to nothing."""

from __future__ import annotations

from ml.errors import UserError
from ml.operations.targets import Wanted, judge
from ml.serving import image


def plan(wanted: Wanted) -> str:
    """Say that nothing is deployed."""
    return f"DEPLOY_TARGET is none: {wanted.stage} is deployed nowhere"


def apply(wanted: Wanted) -> str:
    """Say what there is."""
    return f"{wanted.image} is published as {wanted.stage}"


def check(wanted: Wanted) -> str:
    """Run the image here without network, disk or rights, and ask it."""
    engine = image.find_engine()
    about = [f"--env={name}={text}" for name, text in wanted.about.items()]
    with image.running(engine, wanted.image, *image.CONFINED, *about) as name:
        if (problem := image.wait(engine, name)) is not None:
            raise UserError(f"{wanted.image}: {problem}")
        return judge(image.tell(engine, "exec", name, "python", "-c", image.ASK), wanted)
