"""One machine: the service, Prometheus and Grafana with Docker Compose, here or at DOCKER_HOST over SSH."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ml.errors import UserError
from ml.operations.targets import Wanted, judge, tell
from ml.serving import image

FOLDER = Path("deploy/compose")
SERVICE = "service"


@dataclass(frozen=True)
class Host:
    """An engine, its Compose and the project that is one stage."""

    engine: str
    words: tuple[str, ...]

    @classmethod
    def of(cls, wanted: Wanted) -> Host:
        """Return the engine that DOCKER_HOST names, or this machine's; raise UserError where it has no Compose.

        Raises UserError on a runner of GitHub's own too, which ends with its job.
        """
        if os.environ.get("RUNNER_ENVIRONMENT") == "github-hosted" and not os.environ.get("DOCKER_HOST"):
            raise UserError("this runner ends with its job: set the variable DEPLOY_HOST, or DEPLOY_RUNNER")
        engine = image.find_engine()
        known = ((engine, "compose"), ("docker-compose",))
        words = next((w for w in known if shutil.which(w[0]) and not _code(*w, "version")), None)
        if words is None:
            raise UserError(f"{engine} has no Compose here: install its plugin, or docker-compose")
        own = FOLDER / f"compose.{wanted.stage}.yaml"
        files = [FOLDER / "compose.yaml", *([own] if own.exists() else [])]
        return cls(engine, (*words, f"--project-name={wanted.place}", *(f"--file={file}" for file in files)))

    def compose(self, image_name: str, about: dict[str, str], *words: str) -> str:
        """Run one command of Compose with an image and its environment."""
        return tell(*self.words, *words, more={"IMAGE": image_name, **about})

    def container(self) -> str | None:
        """Return the container of the service, None where there is none."""
        return self.compose("none", {}, "ps", "--quiet", SERVICE).strip() or None

    def running(self) -> tuple[str, dict[str, str]] | None:
        """Return the image of the service and what it was told to say, None where nothing runs."""
        if (name := self.container()) is None:
            return None
        config = json.loads(tell(self.engine, "inspect", name))[0]["Config"]
        told = dict(entry.split("=", 1) for entry in config["Env"] if "=" in entry)
        return config["Image"], {key: told.get(key, "") for key in ("ML_COMMIT", "ML_STAGE", "ML_VERSION")}

    def start(self, image_name: str, about: dict[str, str]) -> None:
        """Let the service run an image; raise UserError where it does not get ready."""
        self.compose(image_name, about, "up", "--detach", "--no-deps", SERVICE)
        name = self.container()
        if name is None or (problem := image.wait(self.engine, name)) is not None:
            raise UserError(f"{image_name}: {problem if name else 'it ended at once'}")


def plan(wanted: Wanted) -> str:
    """Return which image is replaced by which."""
    with reaching():
        found = Host.of(wanted).running()
    now = found[0] if found else "nothing"
    if found == (wanted.image, wanted.about):
        return f"{wanted.place} runs {now} already"
    return f"{wanted.place} runs {now}, and would run {wanted.image}"


def apply(wanted: Wanted) -> str:
    """Start the service, put back what ran before where it does not get ready, then start what watches it."""
    with reaching():
        host = Host.of(wanted)
        before = host.running()
        try:
            host.start(wanted.image, wanted.about)
        except UserError as error:
            raise UserError(f"{error}; {_put_back(host, before)}") from None
        host.compose(wanted.image, wanted.about, "up", "--detach", "--build", "--remove-orphans")
    return f"{wanted.place} runs {wanted.image}"


def check(wanted: Wanted) -> str:
    """Ask the service, from inside its container."""
    with reaching():
        host = Host.of(wanted)
        found, name = host.running(), host.container()
        if found is None or name is None or found[0] != wanted.image:
            raise UserError(f"{wanted.place} runs {found[0] if found else 'nothing'}, not {wanted.image}: deploy again")
        return judge(tell(host.engine, "exec", name, "python", "-c", image.ASK), wanted)


def _put_back(host: Host, before: tuple[str, dict[str, str]] | None) -> str:
    if before is None:
        host.compose("none", {}, "rm", "--stop", "--force", SERVICE)
        return "nothing ran before, so nothing runs now"
    try:
        host.start(*before)
    except UserError as error:
        return f"what ran before does not start either ({error}): look at the machine"
    return f"{before[0]} runs again"


@contextmanager
def reaching() -> Iterator[None]:
    """Let ssh use the key and the known hosts of the environment; nothing is written to the home folder."""
    key, real = os.environ.get("SSH_KEY"), shutil.which("ssh")
    if not key:
        yield
        return
    if not (hosts := os.environ.get("SSH_KNOWN_HOSTS")) or real is None:
        missing = "the program ssh" if hosts else "SSH_KNOWN_HOSTS"
        raise UserError(f"SSH_KEY is given and {missing} is not: docs/deploy.md says where it comes from")
    path = os.environ["PATH"]
    with TemporaryDirectory(prefix="ssh-") as folder:
        options = f"-i {folder}/key -o IdentitiesOnly=yes -o UserKnownHostsFile={folder}/hosts"
        script = f'#!/bin/sh\nexec {real} {options} -o StrictHostKeyChecking=yes -o BatchMode=yes "$@"\n'
        for name, text, mode in (("key", key, 0o600), ("hosts", hosts, 0o600), ("ssh", script, 0o700)):
            file = Path(folder, name)
            file.touch(mode)
            file.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
        os.environ["PATH"] = f"{folder}{os.pathsep}{path}"
        try:
            yield
        finally:
            os.environ["PATH"] = path


def _code(*words: str) -> int:
    return subprocess.run(words, capture_output=True, check=False).returncode
