"""Saves what the job made, unless the key is there already or the run may not write."""

import os
import shutil
from pathlib import Path

import caches
from stand_in import WORKSPACE, lines

key = os.environ.get("STATE_KEY", "")
paths = lines("path")
target = caches.entry(caches.scopes()[0], key, paths)
if os.environ.get("STAND_INS_CACHE_READ_ONLY"):
    print("Failed to save: cache write denied: the token of this run is read-only")
elif key and not os.environ.get("STATE_HIT") and not target.exists():
    fresh = target.with_name(f"{target.name}.{os.getpid()}")
    fresh.mkdir(parents=True)
    for number, path in enumerate(paths):
        source = WORKSPACE / Path(path).expanduser()
        if source.is_dir():
            shutil.copytree(source, fresh / str(number), symlinks=True)
        elif source.exists():
            shutil.copy2(source, fresh / str(number))
    fresh.rename(target)
    print(f"Cache saved with key: {key}")
