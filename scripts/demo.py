"""The main job on this machine: bake, set up, train, change a setting, review, build, serve, ask.

The project stands in build/demo, and the next demo replaces it; KEEP=dir makes it there, for good.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SLUG = "flight-delays"
STEPS = 9
SHOWN = re.compile(r"Running stage '(.+)':|(average_precision_skill .* rows .*)")
SETTING, OLD, NEW = "max_leaf_nodes", 31, 7
BLOCKED = "ml: do not merge: "


class Demo:
    """Runs the steps in one project and keeps what they print in `demo.log`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.project, self.log = folder, folder / SLUG, folder / "demo.log"
        self.done: list[tuple[str, float]] = []
        # The template's own environment must not be found by the project's.
        own = str(Path(sys.executable).parent)
        path = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if part != own)
        dropped = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "VENV", "VIRTUAL_ENV", "KEEP", "ARGS")
        self.environment = {k: v for k, v in os.environ.items() if k not in dropped} | {"PATH": path}

    @contextmanager
    def step(self, name: str, what: str) -> Iterator[None]:
        """Announce a step and say how long it took."""
        print(f"[{len(self.done) + 1}/{STEPS}] {name}: {what}", flush=True)
        start = time.monotonic()
        yield
        self.done.append((name, time.monotonic() - start))
        print(f"      {self.done[-1][1]:.1f} s\n", flush=True)

    def run(self, *command: str, unless: str | None = None) -> str:
        """Run a command in the project and return what it prints; leave with its last lines when it fails.

        It may fail where one of its lines begins with `unless`.
        """
        lines = []
        running = subprocess.Popen(
            command,
            cwd=self.project,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        with running, self.log.open("a") as log:
            log.write(f"$ {' '.join(command)}\n")
            for line in running.stdout:
                lines.append(line)
                log.write(line)
                if found := SHOWN.match(line):
                    print(f"      {found[1] or found[2]}", flush=True)
        refused = unless is not None and any(line.startswith(unless) for line in lines)
        if running.returncode and not refused:
            tail = "".join(lines[-30:])
            sys.exit(f"{tail}\n\ndemo: `{' '.join(command)}` failed; the project and demo.log stay in {self.folder}")
        return "".join(lines)

    def commit(self, message: str) -> None:
        """Commit everything, as whoever has no git identity here."""
        self.run("git", "add", "--all")
        who = [] if self._has_identity() else ["-c", "user.name=Demo", "-c", "user.email=demo@example.com"]
        self.run("git", *who, "commit", "--quiet", "--message", message)

    def _has_identity(self) -> bool:
        found = subprocess.run(["git", "config", "user.email"], cwd=self.project, capture_output=True, check=False)
        return found.returncode == 0

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Yield the address of the running service; it ends with the block."""
        port = _free_port()
        address = f"http://127.0.0.1:{port}"
        command = ["make", "serve", f"ARGS=--port {port}"]
        with self.log.open("a") as log:
            server = subprocess.Popen(
                command, cwd=self.project, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
            try:
                _wait_for(f"{address}/readyz", server)
                yield address
            finally:
                os.killpg(server.pid, 15)
                server.wait(timeout=20)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(address: str, server: subprocess.Popen, seconds: int = 60) -> None:
    for _ in range(seconds * 4):
        if server.poll() is not None:
            sys.exit("demo: the service ended before it was ready; see demo.log")
        try:
            urllib.request.urlopen(address, timeout=2)
            return
        except OSError:
            time.sleep(0.25)
    sys.exit(f"demo: the service was not ready after {seconds} s; see demo.log")


def ask(address: str, rows: list[dict]) -> tuple[int, dict]:
    """Return status and answer of POST /predict."""
    body = json.dumps({"rows": rows}).encode()
    request = urllib.request.Request(f"{address}/predict", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def change_setting(project: Path) -> None:
    """Change one line of params.yaml."""
    params = project / "params.yaml"
    text = params.read_text()
    changed, count = re.subn(rf"(?m)^(\s+{SETTING}: ){OLD}$", rf"\g<1>{NEW}", text)
    if count != 1:
        sys.exit(f"demo: params.yaml has no line `{SETTING}: {OLD}`")
    params.write_text(changed)


def verdict(printed: str) -> str:
    """Return the lines of a review, without make's own, and last whether it blocks."""
    lines = [line for line in printed.splitlines() if not line.startswith(("make: ", BLOCKED))]
    blocked = [line.removeprefix("ml: ") for line in printed.splitlines() if line.startswith(BLOCKED)]
    return "\n".join([*lines, *(blocked or ["no gate blocks this change"])])


def indented(text: str) -> str:
    """Return the text moved to the right."""
    return "\n".join(f"      {line}" for line in text.strip().splitlines())


def play(demo: Demo) -> None:
    """Run every step."""
    with demo.step("bake", "a repository from the template"):
        answers = {"project_slug": SLUG, "python_version": f"{sys.version_info.major}.{sys.version_info.minor}"}
        with demo.log.open("w") as log:
            log.write("$ cookiecutter\n")
        hook = subprocess.run(
            [sys.executable, "-m", "cookiecutter", str(ROOT), "--no-input", "--output-dir", str(demo.folder)]
            + [f"{key}={value}" for key, value in answers.items()],
            capture_output=True,
            text=True,
            check=False,
        )
        if hook.returncode:
            sys.exit(hook.stdout + hook.stderr)
    with demo.step("setup", "environment, git, DVC, git hooks (the first time on a machine this downloads)"):
        demo.run("make", "setup")
        demo.commit("Bake the project")
    with demo.step("pipeline", "ten months of real flights: ingest, split, train, evaluate, repeat"):
        demo.run("make", "pipeline")
        demo.commit("Train the first model")
    with demo.step("change", f"a branch with {SETTING}: {NEW} (was {OLD}); only what depends on it runs again"):
        demo.run("git", "switch", "--quiet", "--create", "smaller-trees")
        change_setting(demo.project)
        demo.run("make", "pipeline")
        demo.commit(f"Set {SETTING} to {NEW}")
    with demo.step("review", "branch against main, on the same flights: is it safe to merge?"):
        print(indented(verdict(demo.run("make", "review", unless=BLOCKED))))
    with demo.step("build", "the Bento: service, model and locked requirements"):
        print(indented(demo.run(".venv/bin/ml", "build")))
    with ExitStack() as running:
        with demo.step("serve", "the model, on loopback"):
            address = running.enter_context(demo.serving())
            print(f"      {address}")
        with demo.step("ask", "a Tuesday morning flight, an evening one in a storm, and one that cannot be"):
            contract = json.loads((demo.project / "build/bento/contract.json").read_text())
            row = {field["name"]: field["example"] for field in contract["fields"]}
            storm = row | {"departure_minute": 1140, "precip": 0.6, "visib": 0.5, "humid": 97, "pressure": 996}
            status, answer = ask(address, [row, storm])
            print(f"      {status} {json.dumps(answer['predictions'])}")
            status, answer = ask(address, [row | {"day_of_week": 8}])
            print(f"      {status} {answer['error']}")
    with demo.step("check", "the lock: nothing is left to run"):
        print(indented(demo.run(".venv/bin/dvc", "status")))


def scratch() -> Path:
    """Return an empty folder: KEEP, which must not hold a project yet, or build/demo, which is made anew."""
    keep = os.environ.get("KEEP")
    folder = Path(keep).resolve() if keep else ROOT / "build" / "demo"
    if keep and (folder / SLUG).exists():
        sys.exit(f"demo: {folder / SLUG} exists already: name another folder or remove it")
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main() -> None:
    """Play the demo and say what to look at."""
    demo = Demo(scratch())
    play(demo)
    print("took: " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in demo.done))
    here = os.path.relpath(demo.project)
    print(f"""
look at (in {here}):
  README.md                       what the repository is
  params.yaml                     every setting, the objective first
  dvc.lock                        what made what, by hash
  reports/evaluate/metrics.json   what the model is worth
  reports/review/report.html      the review: what changed, how sure, which gate said what (in a browser)
  reports/card.md                 the model's card
  build/bento/contract.json       what a request must hold
  make help                       what you can do next
  .venv/bin/mlflow ui --backend-store-uri sqlite:///mlflow.db   both trainings side by side""")


if __name__ == "__main__":
    main()
