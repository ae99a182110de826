"""Turns the trained model into a Bento, or serves it from the same files."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from ml.errors import UserError
from ml.serving.request import Scorer

STAGING = Path("build/bento")
MODEL = Path("models/model.onnx")
REQUIREMENTS = Path("requirements/serving.txt")
CODE = (
    "__init__.py",
    "errors.py",
    *(
        f"serving/{name}.py"
        for name in ("__init__", "body", "log", "metrics", "openapi", "request", "routes", "service", "settings")
    ),
)
SERVICE = "ml.serving.service:Predictor"


def stage(root: Path, model: Path, requirements: Path) -> Path:
    """Write everything that serving needs, and nothing else, to `build/bento` and return that folder.

    Raises UserError for a missing or broken model and for missing requirements.
    """
    for path, remedy in ((model, "make pipeline"), (requirements, "make lock")):
        if not path.is_file():
            raise UserError(f"{_within(root, path)} is missing: run {remedy}")
    scorer = Scorer(model)
    target = root / STAGING
    fresh = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    source = Path(__file__).parents[1]
    for name in CODE:
        (fresh / "ml" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, fresh / "ml" / name)
    shutil.copyfile(model, fresh / "model.onnx")
    shutil.copyfile(requirements, fresh / "requirements.txt")
    write_json(fresh / "contract.json", {**scorer.contract.entries, "model": {"sha256": scorer.digest}})
    write_json(fresh / "settings.json", {"name": project(root)["name"], **settings(root)})
    # JSON is YAML, and the standard library writes it.
    write_json(fresh / "bentofile.yaml", bentofile(project(root), python_version(root)))
    shutil.rmtree(target, ignore_errors=True)
    return fresh.rename(target)


def bentofile(about: dict[str, Any], python_version: str) -> dict[str, Any]:
    """Return BentoML's build options; the locked requirements are taken as they are, hashes included."""
    return {
        "service": SERVICE,
        "name": about["name"],
        "description": about.get("description") or about["name"],
        "include": ["ml/**/*.py", "model.onnx", "contract.json", "settings.json", "requirements.txt"],
        "docker": {"python_version": python_version},
        "python": {"requirements_txt": "./requirements.txt", "lock_packages": False, "pack_git_packages": False},
    }


def content_hash(folder: Path) -> str:
    """Return 16 hexadecimal digits of a SHA-256 over the names and bytes of all files, but for Python's bytecode."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"):
        for part in (path.relative_to(folder).as_posix().encode(), path.read_bytes()):
            found.update(len(part).to_bytes(8) + part)
    return found.hexdigest()[:16]


def build(root: Path) -> str:
    """Build the Bento of the trained model and return its tag, `<project>:<hash of what it holds>`.

    What was built before is left alone. Raises UserError for a model that is missing, or older than its schema.
    """
    staging = stage(root, root / MODEL, root / REQUIREMENTS)
    refuse_changed_schema(json.loads((staging / "contract.json").read_text(encoding="utf-8"))["fields"])
    name, version = project(root)["name"], content_hash(staging)
    tag = f"{name}:{version}"
    if (folder(root, tag) / "bento.yaml").exists():
        print(f"{tag} is built already: nothing has changed")
        return tag
    command = [sys.executable, "-m", "bentoml", "build", "--version", version, "--output", "tag"]
    done = subprocess.run(command, cwd=staging, env=_environment(root), capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"bentoml build failed:\n{(done.stderr or done.stdout).strip()}")
    return tag


def folder(root: Path, tag: str) -> Path:
    """Return the folder of a Bento that was built here."""
    return Path(_environment(root)["BENTOML_HOME"], "bentos", *tag.split(":"))


def serve(root: Path, port: int = 3000, host: str = "127.0.0.1") -> None:
    """Replace this process by BentoML serving the trained model, so that Ctrl-C reaches it and nothing else."""
    staging = stage(root, root / MODEL, root / REQUIREMENTS)
    # Whoever ends a service on their own machine does not wait for a load balancer to notice.
    environment = {"ML_DRAIN": "0", **_environment(root)}
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"port {port} of {host} cannot be used ({error.strerror}): choose another --port") from None
    os.chdir(staging)
    command = [sys.executable, "-m", "bentoml", "serve", SERVICE, "--host", host, "--port", str(port)]
    os.execve(sys.executable, command, environment)


def refuse_changed_schema(trained: list[dict[str, Any]]) -> None:
    """Raise UserError where the schema gives other fields than the model was trained with.

    Without pandera, as in an image, there is no schema to compare with.
    """
    if importlib.util.find_spec("pandera") is None:
        return
    from ml.pipeline.contract import request_fields
    from ml.pipeline.schema import Request

    changed = changed_fields(json.loads(json.dumps(request_fields(Request))), trained)
    if changed:
        raise UserError(
            f"schema.py has changed since {MODEL} was trained (field {', '.join(changed)}): run make pipeline"
        )


def changed_fields(wanted: list[dict[str, Any]], trained: list[dict[str, Any]]) -> list[str]:
    """Return the names of fields that were added, removed, changed or moved."""
    new, old = ({entry["name"]: entry for entry in entries} for entries in (wanted, trained))
    changed = [name for name in {**new, **old} if new.get(name) != old.get(name)]
    return changed or [a for a, b in zip(new, old, strict=True) if a != b]


def settings(root: Path) -> dict[str, Any]:
    """Return the section `serve` of params.yaml, its defaults where there is none."""
    from ml.pipeline import params

    path = root / params.PATH
    return (params.read(path).serve if path.exists() else params.Serve()).model_dump()


def _environment(root: Path) -> dict[str, str]:
    return {"BENTOML_HOME": str(root.resolve() / ".bentoml"), "BENTOML_DO_NOT_TRACK": "True", **os.environ}


def project(root: Path) -> dict[str, Any]:
    """Return the section `project` of pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def python_version(root: Path) -> str:
    """Return the Python that the image runs."""
    # Without it BentoML takes the builder's own, and one version would name two different Bentos.
    chosen = root / ".python-version"
    return chosen.read_text().strip() if chosen.exists() else f"{sys.version_info.major}.{sys.version_info.minor}"


def _within(root: Path, path: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a readable file."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
