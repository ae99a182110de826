"""Keeps the files that the answers ask for, deletes the others and says what to do next."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

ANSWERS = r'''{{ cookiecutter | tojson }}'''  # fmt: skip

# What checks that ran inside the template folder leave behind.
CACHES = ("**/__pycache__", ".hypothesis", ".pytest_cache", ".ruff_cache")
# What an answer of false leaves out.
OPTIONAL = {"include_kubernetes": ("deploy/kubernetes",)}
LICENSES = ("MIT", "Apache-2.0", "BSD-3-Clause", "Proprietary")


def main() -> None:
    answers = json.loads(ANSWERS)
    Path(f"LICENSE-{answers['license']}").replace("LICENSE")
    # Under its own name it would stop pyenv and uv from working in the template's folder.
    Path("dot-python-version").replace(".python-version")
    for name in LICENSES:
        Path(f"LICENSE-{name}").unlink(missing_ok=True)
    for folder in (folder for name, folders in OPTIONAL.items() if not answers[name] for folder in folders):
        shutil.rmtree(folder)
    for pattern in CACHES:
        for folder in list(Path().glob(pattern)):
            shutil.rmtree(folder)
    # A hook runs in the project's folder; PWD is where the person stands.
    project, stands = Path.cwd(), Path(os.environ.get("PWD", "/nowhere"))
    here = project.relative_to(stands) if project.is_relative_to(stands) else project
    print(f"\nNext:\n  cd {here}\n  make setup\n  make pipeline\n\n`make help` lists the rest.")


if __name__ == "__main__":
    main()
