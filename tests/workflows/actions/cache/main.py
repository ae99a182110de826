"""Restores."""

import shutil
from pathlib import Path

import caches
import environment
from stand_in import WORKSPACE, append, fail, lines, output, required, true


def main() -> None:
    key, paths = required("key"), lines("path") or fail("Input required and not supplied: path")
    if len(key) > 512 or "," in key:
        fail(f"Key Validation Error: {key}")
    if prepared := environment.fitting(paths):
        environment.make(prepared, WORKSPACE / ".venv")
        print(f"Cache restored from key: {key}")
        output("cache-hit", "true")
        return
    append("GITHUB_STATE", f"KEY={key}")
    found = caches.find(key, lines("restore-keys"), paths)
    if found is None and true("fail-on-cache-miss"):
        fail(f"Failed to restore cache entry. Input key: {key}")
    if found is None:
        print(f"Cache not found for input keys: {', '.join([key, *lines('restore-keys')])}")
        return
    if not true("lookup-only"):
        for number, path in enumerate(paths):
            restore(found / str(number), WORKSPACE / Path(path).expanduser())
    exact = found.name == key.replace("/", "%")
    print(f"Cache restored from key: {found.name}")
    if exact:
        append("GITHUB_STATE", "HIT=true")
    output("cache-hit", str(exact).lower())


def restore(kept: Path, target: Path) -> None:
    if not kept.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if kept.is_dir():
        shutil.copytree(kept, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(kept, target)


main()
