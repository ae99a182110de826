"""Writes docs/benchmarks.md."""

from __future__ import annotations

import json
import os
import platform
from datetime import date
from importlib import metadata
from pathlib import Path

from benchmarks.measure import Found
from benchmarks.rows import TARGETS

PACKAGES = ("dvc", "mlflow", "numpy", "onnxruntime", "pandas", "pandera", "pyarrow", "scikit-learn", "skl2onnx")


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


def versions(listed: str) -> str:
    """Return the main packages of `uv pip list --format json` in a project, and cookiecutter here."""
    found = {package["name"]: package["version"] for package in json.loads(listed)}
    pinned = [f"{name} {found[name]}" for name in PACKAGES if name in found]
    return ", ".join([f"cookiecutter {metadata.version('cookiecutter')}", *pinned])


def page(rows: dict[str, Found], packages: str, load: tuple[float, float]) -> str:
    """Return the document."""
    lines = [
        "# Benchmarks",
        "",
        f"Written by `make bench` on {date.today().isoformat()}. "
        "Targets are ratios within one run wherever they can be, so that they hold on other machines.",
        "",
        f"- Machine: {machine()}",
        f"- Packages: {packages}",
        f"- Load average (1 minute): {load[0]:.1f} at the start, {load[1]:.1f} at the end. "
        "Above the number of cores, other work shared the machine and seconds are longer than they would be.",
        "",
        "| | target | measured | | how |",
        "| --- | --- | --- | --- | --- |",
        *(line(name, found) for name, found in rows.items()),
        *(f"\n**{name}** — {found.note}" for name, found in rows.items() if found.note),
    ]
    return "\n".join(lines) + "\n"


def line(name: str, found: Found) -> str:
    """Return a row of the table."""
    said = "pass" if found.passed else "**miss**"
    return f"| {name} | {TARGETS[name]} | {found.figure} | {said} | {found.how} |"


def write(text: str, path: Path) -> None:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
