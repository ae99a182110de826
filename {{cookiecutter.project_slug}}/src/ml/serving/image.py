"""Builds the container image of the Bento, and proves what it promises in a container that may do next to nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml.errors import UserError
from ml.serving import build
from ml.serving.request import Scorer

DOCKERFILE = Path("deploy/Dockerfile")
RESULT = Path("reports/image/result.json")
ENGINES = ("docker", "podman")
# No network, no disk, no rights, little memory: what runs so runs anywhere.
CONFINED = ("--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--memory=512m")
READY = 60  # seconds
# One call a tool: dash looks at the first word of `command -v` alone.
UNWANTED = "for tool in cc gcc git; do command -v $tool; done; true"
PROBE = """
import os, urllib.request
urllib.request.urlopen(f"http://127.0.0.1:{os.environ['BENTOML_PORT']}/readyz", timeout=2)
"""
# Asked inside a container, here or at a deployment, so that nobody must open a port for it.
ASK = """
import json, os, urllib.error, urllib.request

def ask(path, rows=None):
    body = None if rows is None else json.dumps({"rows": rows}).encode()
    where = f"http://127.0.0.1:{os.environ['BENTOML_PORT']}{path}"
    request = urllib.request.Request(where, body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return [answer.status, parsed(answer.read())]
    except urllib.error.HTTPError as error:
        return [error.code, parsed(error.read())]

def parsed(body):
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")

post = ask("/docs.json")[1]["paths"]["/predict"]["post"]
row = post["requestBody"]["content"]["application/json"]["example"]["rows"][0]
due = post["responses"]["200"]["content"]["application/json"]["example"]
print(json.dumps({"ready": ask("/readyz"), "info": ask("/info"), "good": ask("/predict", [row]),
                  "bad": ask("/predict", [{**row, "no such field": 0}]), "due": due}))
"""


def run(root: Path, base: str | None = None, network: str | None = None) -> str:
    """Build the image of the trained model, check it, write `reports/image/result.json` and return the tag.

    `base` replaces the official slim Python image, `network` is the build's.
    Raises UserError where no engine answers, the build fails or a check does.
    """
    engine = find_engine()
    tag = build.build(root)
    scorer = Scorer(root / build.MODEL)
    (root / RESULT).unlink(missing_ok=True)
    (root / RESULT).parent.mkdir(parents=True, exist_ok=True)
    tell(engine, *arguments(root, tag, scorer.digest, base, network), show=True)
    faults, size = check(engine, tag, scorer)
    content = {
        "model": scorer.digest,
        "status": "failed" if faults else "passed",
        "sentence": "; ".join(faults) or f"{size / 1e6:.0f} MB; answers without network, disk or rights in 512 MB",
        "remedy": f"mend {DOCKERFILE}, then make image" if faults else "",
        "file": str(DOCKERFILE) if faults else "",
    }
    build.write_json(root / RESULT, content)
    if faults:
        raise UserError(f"{tag} is built and not as it should be: {content['sentence']}")
    return tag


def find_engine() -> str:
    """Return the container engine of this machine; raise UserError where none answers."""
    engine = next((name for name in ENGINES if shutil.which(name)), None)
    if engine is None:
        raise UserError("no container engine here: install docker or podman; make serve works without")
    tell(engine, "info")
    return engine


def arguments(root: Path, tag: str, digest: str, base: str | None, network: str | None) -> list[str]:
    """Return the words of the build: the Bento's folder is its context."""
    folder = build.folder(root, tag)
    given = {
        "PYTHON_VERSION": build.python_version(root),
        "BASE_IMAGE": base,
        "SOURCE": next(iter(build.project(root).get("urls", {}).values()), None),
        "REVISION": _git(root, "rev-parse", "HEAD"),
        "MODEL": digest,
    }
    words = [f"--build-arg={name}={value}" for name, value in given.items() if value]
    words += [f"--network={network}"] if network else []
    return ["build", "--quiet", f"--tag={tag}", f"--file={root / DOCKERFILE}", *words, str(folder)]


def check(engine: str, tag: str, scorer: Scorer) -> tuple[list[str], int]:
    """Return what is wrong with the image, and its size in bytes."""
    about = json.loads(tell(engine, "inspect", "--type=image", tag))[0]
    faults = [] if about["Config"].get("User", "").split(":")[0] not in ("", "0", "root") else ["it runs as root"]
    with running(engine, tag, *CONFINED) as name:
        found = tell(engine, "exec", name, "sh", "-c", UNWANTED).split()
        faults += [f"it holds {Path(tool).name}" for tool in found]
        if (problem := wait(engine, name)) is not None:
            return [*faults, problem], about["Size"]
        answers = json.loads(tell(engine, "exec", name, "python", "-c", ASK))
    return faults + disagreements(answers, scorer), about["Size"]


def disagreements(answers: dict[str, Any], scorer: Scorer) -> list[str]:
    """Return where the answers of a service differ from those of the model."""
    wanted = scorer.predictions(scorer.score(scorer.contract.columns([scorer.contract.example()]).columns))
    faults = []
    if answers["info"][1].get("model") != scorer.digest:
        faults.append("it serves another model")
    if answers["good"] != [200, {"model": scorer.digest, "predictions": wanted}]:
        faults.append(f"it answers {str(answers['good'])[:200]}")
    if answers["bad"][0] != 400:
        faults.append(f"it answers {answers['bad'][0]} to a field that does not exist")
    return faults


@contextmanager
def running(engine: str, tag: str, *words: str) -> Iterator[str]:
    """Yield the name of a running container that is removed with the block."""
    name = tell(engine, "run", "--detach", *words, tag).strip()
    try:
        yield name
    finally:
        subprocess.run([engine, "rm", "--force", name], capture_output=True, check=False)


def ended(engine: str, name: str) -> str | None:
    """Return the last line of a container that ended, whether or not it was started again; None where it runs."""
    about = json.loads(tell(engine, "inspect", name))[0]
    if about["State"]["Running"] and not about.get("RestartCount"):
        return None
    last = subprocess.run([engine, "logs", "--tail=1", name], capture_output=True, text=True, check=False)
    return (last.stdout + last.stderr).strip()[-200:]


def wait(engine: str, name: str) -> str | None:
    """Return why a container does not get ready; None once it is."""
    end = time.monotonic() + READY
    while time.monotonic() < end:
        if (reason := ended(engine, name)) is not None:
            return f"it ends at once: {reason}"
        if (
            subprocess.run([engine, "exec", name, "python", "-c", PROBE], capture_output=True, check=False).returncode
            == 0
        ):
            return None
        time.sleep(0.5)
    return f"it is not ready after {READY} s"


def tell(engine: str, *words: str, show: bool = False) -> str:
    """Return what the engine prints; raise UserError with its last line, after the others with `show`."""
    done = subprocess.run([engine, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()] or ["no reason given"]
        if show:
            print("\n".join(lines[-30:-1]))
        raise UserError(f"{engine} {words[0]}: {lines[-1].strip()}")
    return done.stdout


def _git(root: Path, *words: str) -> str:
    try:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
