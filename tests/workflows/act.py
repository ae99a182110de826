"""Runs a workflow file with `act` on this machine and says what ran: jobs, steps, annotations, summaries.

act gives every job the same token and knows no permissions. Here each job gets a token of its own with the grants
that the file gives it, and the fake GitHub holds it to them.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from conftest import clean_environment, require
from ruamel.yaml import YAML

HERE = Path(__file__).resolve().parent
STAND_INS = HERE / "actions"
RUN_TOKEN = re.compile(r"\b(?:github\.token|secrets\.GITHUB_TOKEN)\b")
# What a workflow that runs these tests must not hand on.
OUTER = ("ACTIONS_", "AWS_", "CI", "CML_", "GH_", "GITHUB_", "INPUT_", "PYTHON", "REPO_TOKEN", "RUNNER_", "STATE_")
LONGEST = 1800


@dataclass(frozen=True)
class Annotation:
    """A ::error, ::warning or ::notice line, with the place that it points to."""

    level: str
    message: str
    file: str | None = None
    line: int | None = None
    title: str | None = None


@dataclass
class Step:
    """A step of a job; one of a composite action is named after it, with a slash."""

    name: str
    outcome: str = "skipped"
    seconds: float = 0.0
    log: str = ""


@dataclass
class Job:
    id: str
    name: str
    conclusion: str = "skipped"
    steps: dict[tuple[str, ...], Step] = field(default_factory=dict)
    annotations: list[Annotation] = field(default_factory=list)
    outputs: dict[str, str] = field(default_factory=dict)
    summary: str = ""
    log: str = ""

    @property
    def seconds(self) -> float:
        return sum(step.seconds for key, step in self.steps.items() if len(key) == 2)


@dataclass
class Outcome:
    """What a workflow run did."""

    file: str
    name: str
    found: dict[str, Job]
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def jobs(self) -> dict[str, str]:
        """The conclusion of every job of the file, in its order: success, failure or skipped."""
        return {name: job.conclusion for name, job in self.found.items()}

    @property
    def conclusion(self) -> str:
        return "failure" if "failure" in self.jobs.values() else "success"

    @property
    def annotations(self) -> list[Annotation]:
        return [each for job in self.found.values() for each in job.annotations]

    @property
    def faults(self) -> str:
        """The end of what each failed step printed."""
        failed = [
            (job, step) for job in self.found.values() for step in job.steps.values() if step.outcome == "failure"
        ]
        return "\n".join(f"--- {job.name}: {step.name}\n{step.log[-3000:]}" for job, step in failed)

    def steps(self, job: str) -> dict[str, str]:
        """Return the outcome of the steps of a job by name, in order; those that act did not come to are skipped."""
        named: dict[str, str] = {}
        for step in self.found[job].steps.values():
            same = sum(name == step.name or name.startswith(f"{step.name} (") for name in named)
            named[f"{step.name} ({same + 1})" if same else step.name] = step.outcome
        return named

    def step(self, job: str, name: str) -> Step:
        """Return the one step whose name begins so."""
        fitting = [step for step in self.found[job].steps.values() if step.name.startswith(name)]
        assert len(fitting) == 1, f"{name}: {[step.name for step in self.found[job].steps.values()]}"
        return fitting[0]

    def log(self, job: str) -> str:
        return self.found[job].log

    def summary(self, job: str) -> str:
        return self.found[job].summary


def load(text: str) -> dict:
    return YAML(typ="safe").load(io.StringIO(text))


def grants_of(document: Mapping, job: Mapping, *, read_only: bool) -> dict[str, str]:
    """Return the grants of a job's token; in a run for a fork or Dependabot, none is to write."""
    given = job.get("permissions", document.get("permissions", {"contents": "read", "packages": "read"}))
    if isinstance(given, str):
        given = {"*": given.removesuffix("-all")}
    known = {scope: level for scope, level in given.items() if level != "none"}
    return {scope: "read" if read_only else level for scope, level in known.items()} | {"metadata": "read"}


def with_tokens(document: dict) -> dict:
    """Return the workflow with a secret of its own in every job in place of the token of the run.

    act's schema does not know that an environment may come without a Deployment; it makes none anyway.
    """

    def replaced(value: object, name: str) -> object:
        if isinstance(value, dict):
            return {key: replaced(each, name) for key, each in value.items()}
        if isinstance(value, list):
            return [replaced(each, name) for each in value]
        return RUN_TOKEN.sub(f"secrets.{name}", value) if isinstance(value, str) else value

    jobs = {name: replaced(job, secret_of(name)) for name, job in document["jobs"].items()}
    for job in jobs.values():
        if isinstance(job.get("environment"), dict):
            job["environment"].pop("deployment", None)
    return document | {"jobs": jobs}


def reduced(jobs: dict, only: Iterable[str], known: Mapping[str, Mapping[str, str]]) -> dict:
    """Return the jobs, of which all but some only say what they said before, and those after them are left out."""
    before = {need for name in only for need in needs_of(jobs, name)} - set(only)
    stubs = {
        name: {
            "runs-on": "ubuntu-24.04",
            "permissions": {},
            "outputs": {key: known.get(name, {}).get(key, "") for key in jobs[name].get("outputs", {})},
            "needs": jobs[name].get("needs", []),
            "steps": [{"run": "true"}],
        }
        for name in before
    }
    return {name: stubs.get(name, job) for name, job in jobs.items() if name in {*only, *before}}


def needs_of(jobs: dict, name: str) -> set[str]:
    """Return every job that has to end before one begins."""
    direct = jobs[name].get("needs", [])
    direct = {direct} if isinstance(direct, str) else set(direct)
    return direct | {further for need in direct for further in needs_of(jobs, need)}


def secret_of(job: str) -> str:
    return "TOKEN_OF_" + re.sub(r"\W", "_", job).upper()


def references(source: Path) -> set[str]:
    """Return every `uses` of a workflow or action below the folder that lies in another repository."""
    files = [*source.glob(".github/workflows/*.y*ml"), *source.glob(".github/actions/*/action.y*ml")]
    used = {use for file in files for use in re.findall(r"(?m)^\s*(?:- )?uses:\s*[\"']?([^\s\"'#]+)", file.read_text())}
    return {use for use in used if not use.startswith(("./", "docker:"))}


def stand_in(use: str) -> Path:
    """Return the folder that stands in for a repository of `uses`; fail where there is none."""
    _, name, *below = use.partition("@")[0].split("/")
    folder = STAND_INS / name
    assert folder.joinpath(*below, "action.yml").is_file(), f"no stand-in for {use}: add one to {STAND_INS}"
    return folder


def trusted_certificates(certificate: Path, target: Path) -> Path:
    """Write the certificates that this machine trusts anyway, and one more."""
    system = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
    known = Path(system).read_text() if system and Path(system).is_file() else ""
    target.write_text(f"{known}\n{certificate.read_text()}")
    return target


def host_environment(home: Path, certificates: Path, tools: Path) -> dict[str, str]:
    """Return what a runner's environment has: this machine's, without what its user or an outer workflow has set."""
    kept = {name: value for name, value in clean_environment().items() if not name.startswith(OUTER)}
    trusted = ("CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
    return (
        kept
        | dict.fromkeys(trusted, str(certificates))
        | {
            "HOME": str(home),
            "PATH": f"{tools}{os.pathsep}{kept['PATH']}",
            "STAND_INS": str(STAND_INS),
            "STAND_INS_PYTHON": sys.executable,
            "GIT_TERMINAL_PROMPT": "0",
        }
    )


def command(
    source: Path,
    file: str,
    event: str,
    payload: Path,
    *,
    actor: str,
    variables: Mapping[str, str],
    secrets: Mapping[str, str],
    environment: Mapping[str, str],
    runners: Iterable[str],
) -> list[str]:
    """Return act's command line for one run."""
    words = [require("act"), event, "-W", f".github/workflows/{file}", "-e", str(payload), "--actor", actor]
    words += ["--action-offline-mode", "--no-skip-checkout", "--no-cache-server", "--json"]
    words += ["--defaultbranch", "main", "--container-daemon-socket", "-"]
    for runner in runners:
        words += ["-P", f"{runner}=-self-hosted"]
    for use in sorted(references(source)):
        path, _, ref = use.partition("@")
        words += ["--local-repository", f"{'/'.join(path.split('/')[:2])}@{ref}={stand_in(use)}"]
    for flag, values in (("--var", variables), ("-s", secrets), ("--env", environment)):
        for name, value in values.items():
            words += [flag, f"{name}={value}"]
    return words


def execute(
    words: list[str],
    source: Path,
    environment: Mapping[str, str],
    document: dict,
    file: str,
    tell: Callable[[Job, str], None],
) -> Outcome:
    """Run act and return what it did; `tell` hears of each job as it begins and ends."""
    outcome = Outcome(file, document.get("name", file), {})
    process = subprocess.Popen(
        words,
        cwd=source,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    late = threading.Timer(LONGEST, lambda: os.killpg(process.pid, signal.SIGKILL))
    late.start()
    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr))
    reader.start()
    try:
        strange = [line for line in process.stdout if not hear(outcome, document, line, tell)]
        process.wait()
        reader.join()
    finally:
        late.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    outcome.errors = strange + errors
    complete(outcome, document)
    said = "".join(outcome.errors)
    assert "nsupported platform" not in said, said
    # act fails for a failed job, and for what is no run at all.
    assert process.returncode == 0 or "failure" in outcome.jobs.values(), said
    return outcome


def hear(outcome: Outcome, document: dict, line: str, tell: Callable[[Job, str], None]) -> bool:
    """Take in a line of act's; return whether it belongs to a job."""
    try:
        said = json.loads(line)
    except ValueError:
        return False
    if "nsupported platform" in said.get("msg", "") or "jobID" not in said:
        return False
    name = f"{said['jobID']} ({', '.join(map(str, said['matrix'].values()))})" if said.get("matrix") else said["jobID"]
    new = name not in outcome.found
    job = outcome.found.setdefault(name, Job(said["jobID"], name))
    if new:
        tell(job, "in_progress")
    take(job, said, document["jobs"][job.id])
    if "jobResult" in said:
        job.conclusion = said["jobResult"]
        tell(job, "completed")
    return True


def take(job: Job, said: dict, declared: dict) -> None:
    """Take a line in that belongs to a job."""
    if said.get("raw_output"):
        job.log += said["msg"]
    if said.get("command") in ("error", "warning", "notice"):
        job.annotations.append(annotation(said))
        job.log += said["raw"]
    if said.get("command") == "summary":
        job.summary += said["content"]
    identifier = said.get("stepID")
    if not identifier:
        return
    key = (said.get("stage", "Main"), *identifier)
    step = job.steps.setdefault(key, Step(""))
    if not step.name or said["msg"].startswith("⭐ Run"):
        step.name = step_name(said, declared)
    if said.get("raw_output"):
        step.log += said["msg"]
    if "stepResult" in said:
        step.outcome = said["stepResult"]
        step.seconds = said.get("executionTime", 0) / 1e9
    if said.get("command") == "set-output" and len(key) == 2:
        job.outputs[f"{identifier[0]}.{said['name']}"] = said["arg"]


def annotation(said: dict) -> Annotation:
    about = said.get("kvPairs") or {}
    line = int(about["line"]) if about.get("line", "").isdigit() else None
    return Annotation(said["command"], said["arg"], about.get("file"), line, about.get("title"))


def step_name(said: dict, declared: dict) -> str:
    """Return a step's name as its author wrote it, since act's has the secrets masked."""
    first, *rest = said["stepID"]
    name = names_of(declared).get(first, first)
    begun = re.match(r"⭐ Run \w+ (.*)", said["msg"], re.DOTALL)
    within = f"{name} / {(begun[1] if begun else rest[-1]).strip()}" if rest else name
    return within if said.get("stage", "Main") == "Main" else f"{said['stage']} {within}"


def names_of(declared: dict) -> dict[str, str]:
    """Return the names of a job's steps by what act calls them: their id, or their number."""
    steps = declared.get("steps", [])
    return {
        step.get("id", str(number)): step.get("name") or step.get("uses") or step.get("run", "").strip()
        for number, step in enumerate(steps)
    }


def complete(outcome: Outcome, document: dict) -> None:
    """Add what act does not mention: the jobs and steps that were skipped. Keep the file's order."""
    ordered: dict[str, Job] = {}
    for name, declared in document["jobs"].items():
        ran = {key: job for key, job in outcome.found.items() if job.id == name} or {name: Job(name, name)}
        for job in ran.values():
            steps = {("Main", key): Step(shown) for key, shown in names_of(declared).items()}
            ran_steps = {key: step for key, step in job.steps.items() if step.outcome != "skipped"}
            job.steps = steps | ran_steps
        ordered |= ran
    outcome.found = ordered
