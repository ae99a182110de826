"""Writes the pages of docs/ that hold benchmarks."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path

from benchmarks.measure import Found

PACKAGES = ("dvc", "mlflow", "numpy", "onnxruntime", "pandas", "pandera", "pyarrow", "scikit-learn", "skl2onnx")
HEAD = ("| | target | measured | | how |", "| --- | --- | --- | --- | --- |")


def machine() -> str:
    """Return processor, cores, memory, system and Python; no names of hosts."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    try:
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        system = platform.platform(terse=True)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {system}, Python {platform.python_version()}"


def versions(listed: str, names: Sequence[str] = PACKAGES) -> str:
    """Return the named packages of `uv pip list --format json` in a project, and cookiecutter here."""
    found = {package["name"]: package["version"] for package in json.loads(listed)}
    pinned = [f"{name} {found[name]}" for name in names if name in found]
    return ", ".join([f"cookiecutter {metadata.version('cookiecutter')}", *pinned])


def page(
    title: str,
    command: str,
    targets: Mapping[str, str],
    rows: Mapping[str, Found],
    packages: str,
    load: tuple[float, float],
) -> str:
    """Return the document of the rows that a command measured."""
    lines = [
        f"# {title}",
        "",
        f"Written by `{command}` on {date.today().isoformat()}. "
        "Targets are ratios within one run wherever they can be, so that they hold on other machines.",
        "",
        f"- Machine: {machine()}",
        f"- Packages: {packages}",
        f"- Load average (1 minute): {load[0]:.1f} at the start, {load[1]:.1f} at the end. "
        "Above the number of cores, other work shared the machine and seconds are longer than they would be.",
        "",
        *HEAD,
        *(line(name, targets[name], found) for name, found in rows.items()),
        *(f"\n**{name}** — {found.note}" for name, found in rows.items() if found.note),
    ]
    return "\n".join(lines) + "\n"


def merged(page: str, targets: Mapping[str, str], rows: Mapping[str, Found], load: tuple[float, float]) -> str:
    """Return a page with these rows in place of their old ones; a sentence says that they were measured apart."""
    table = {name: text for text in page.splitlines() for name in targets if text.startswith(f"| {name} |")}
    notes = {name: text for text in page.splitlines() for name in targets if text.startswith(f"**{name}** — ")}
    for name, found in rows.items():
        table[name] = line(name, targets[name], found)
        notes[name] = f"**{name}** — {found.note}" if found.note else ""
    elsewhere = "" if f"- Machine: {machine()}\n" in page else f" elsewhere ({machine()})"
    loaded = f"load average {load[0]:.1f} to {load[1]:.1f}"
    apart = f"- Measured apart on {date.today().isoformat()}{elsewhere}, {loaded}: "
    names = ", ".join(rows)
    head = page.split("\n\n| | target")[0].splitlines()
    kept = [text for text in head if not (text.startswith("- Measured apart") and text.endswith(f": {names}."))]
    lines = [*kept, f"{apart}{names}.", "", *HEAD, *(table[name] for name in targets if name in table)]
    return "\n".join(lines + [f"\n{notes[name]}" for name in targets if notes.get(name)]) + "\n"


def line(name: str, target: str, found: Found) -> str:
    """Return a row of the table."""
    said = "pass" if found.passed else "**miss**"
    return f"| {name} | {target} | {found.figure} | {said} | {found.how} |"


def write(text: str, path: Path) -> None:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
