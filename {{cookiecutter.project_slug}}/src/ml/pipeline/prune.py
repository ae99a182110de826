"""Takes away what the settings no longer name, so that the same settings leave the same files and the same lock."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path("data/ingest")
LOCK = Path("dvc.lock")
BREACHES = Path("reports/contract")
LAST = ("split", "train", "evaluate", "repeat")


def stale(periods: list[str], folder: Path = FOLDER) -> list[Path]:
    """Return the files of periods that are not listed."""
    return [path for path in sorted(folder.glob("*.parquet")) if path.stem not in periods]


def ordered(lock: str, periods: list[str]) -> str:
    """Return the text of a lock without the stages of other periods, in the order of a cold run.

    DVC keeps the entries of stages that are gone and puts new ones last.
    """
    head, *stages = re.split(r"(?m)^(?=  \S)", lock)
    wanted = [*(f"ingest@{period}" for period in periods), *LAST]
    places = {name: place for place, name in enumerate(wanted)}
    named = {stage.strip().partition(":\n")[0].strip("'\""): stage for stage in stages}
    kept = [name for name in named if name in places or not name.startswith("ingest@")]
    return head + "".join(named[name] for name in sorted(kept, key=lambda name: places.get(name, len(places))))


def run(periods: list[str]) -> list[Path]:
    """Delete data and breach reports that are out of date, put the lock in order, and return the deleted data.

    DVC's cache still has the data.
    """
    from ml.pipeline.tables import write_bytes

    removed = stale(periods)
    for path in [*removed, *BREACHES.glob("*.json")]:
        path.unlink()
    if LOCK.exists():
        old = LOCK.read_text(encoding="utf-8")
        new = ordered(old, periods)
        if new != old:
            write_bytes(new.encode(), LOCK)
    return removed
