"""Moves stages to images that are proven to come from deliver.yml, forward and back.

The truth is an annotated tag of GTO at `origin`, `model#production#7`, which only one of two promotions can create; the
tag in the registry and the Deployment follow it. `settle` makes them follow, and may be killed at any point.
"""

from __future__ import annotations

from dataclasses import dataclass

from ml.operations.record import Record
from ml.operations.registry import Registry

STAGES = ("staging", "production")
SIGNER = ".github/workflows/deliver.yml"
SOURCE = "refs/heads/main"


@dataclass(frozen=True)
class Assignment:
    """One assignment of a stage, as its GTO tag says; `digest` is empty where somebody made the tag by hand."""

    stage: str
    number: int
    commit: str
    when: str
    digest: str
    how: str
    who: str
    run: str

    @property
    def tag(self) -> str:
        """Return the GTO tag's name."""


def history(stage: str | None = None) -> list[Assignment]:
    """Return every assignment that `origin` holds, of one stage or all, oldest first."""


def current(stage: str) -> Assignment | None:
    """Return the newest assignment of a stage, None before the first; its image is not verified."""


def versions() -> dict[str, str]:
    """Return the commit of each released version (`v1.2.0`) that `origin` holds, oldest first."""


def verify(registry: Registry, digest: str) -> Record:
    """Return the record of an image that deliver.yml made from main and that passed; raise UserError with what lacks.

    Attested by GitHub; with COSIGN=true signed by cosign; in a private repository without ATTEST=true recorded by a
    run of deliver.yml, unsigned.
    """


def frozen() -> str | None:
    """Return the address of the open issue labelled `rollback` that freezes promotion to production, if any."""


def run(stage: str, digest: str, how: str = "delivered") -> list[str]:
    """Verify, promote, deploy to DEPLOY_TARGET and ask the service; return what was done in lines.

    This is all that `ml promote` and the promotion jobs do. Running it again finishes what was killed. Raises UserError:
    unverified; frozen (delivered to production only); another promotion won; production has a newer commit; the
    deployment failed (then the stage goes back to what it was, and the Deployment says `failure`).
    """


def promote(stage: str, digest: str, how: str = "delivered") -> Assignment:
    """Verify an image and let the stage's GTO tag, registry tag and Deployment (`in_progress`) lead to it."""


def rollback(version: str | None = None) -> list[str]:
    """Open the incident issue, then do as `run` with the good version before, or a named one; return what was done.

    `version` is `v1.2.0`, a GTO tag such as `model#production#7`, or a digest that production has run.
    """


def settle(stage: str) -> Assignment | None:
    """Let the registry's tag and the Deployment follow the newest GTO tag of a stage, once its image is verified."""


def status(*, mend: bool = False) -> list[str]:
    """Return a table of the stages in lines, and each disagreement with the command that mends it.

    With `mend` they are mended first. Raises UserError after the table where disagreements are left.
    """


def audit() -> list[str]:
    """Return the audit trail in lines: every assignment of every stage, newest first."""
