"""A small world to run workflows in: a repository on the fake GitHub, people who change it, and runs that follow.

with World.open(tmp_path, project) as world:
    branch = world.change({"params.yaml": ("max_iter: 30", "max_iter: 40")}, "Train longer")
    pull = world.pull_request(branch)
    run = world.run("pull-request.yml", pull.event())
    assert run.jobs["model"] == "success"
    world.report(run)
    assert "Train longer" in world.comments(pull)[0].body
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import act
import github as fake
from conftest import PRODUCT, ROOT, clean_environment, require
from real import Project
from ruamel.yaml import YAML
from server import serving

OWNER = "octocat"
DEPENDABOT = "dependabot[bot]"
STAND_INS = act.STAND_INS
MEMORY = Path("/dev/shm")
ROOM = 4e9  # bytes; the jobs of two runs at once
PRODUCT_WORKFLOWS = ROOT / PRODUCT / ".github/workflows"
Edit = str | bytes | None | tuple[str, str] | list[tuple[str, str]]


@dataclass(frozen=True)
class Branch:
    """A branch that someone has pushed."""

    place: Place
    name: str
    sha: str


@dataclass(frozen=True)
class Event:
    """What starts a run; `sha` and `ref` are those of the code that runs."""

    name: str
    payload: dict
    sha: str
    ref: str
    actor: str
    head: fake.Repository
    branch: str
    read_only: bool = False
    pulls: tuple[int, ...] = ()
    head_sha: str = ""


@dataclass
class Run:
    """A finished run: what act saw, and its artifacts."""

    id: int
    outcome: act.Outcome
    record: fake.Run
    folder: Path
    repository: fake.Repository
    event: Event

    def __getattr__(self, name: str) -> object:
        """Return what the outcome has: jobs, conclusion, annotations, steps(), step(), log(), summary()."""
        if name.startswith("_") or name == "outcome":
            raise AttributeError(name)
        return getattr(self.outcome, name)

    @property
    def artifacts(self) -> list[str]:
        return [each.name for each in self.repository.artifacts(self.id)]

    def artifact(self, name: str) -> Path:
        """Return a folder with what an artifact holds."""
        packed = next(each.file for each in self.repository.artifacts(self.id) if each.name == name)
        target = self.folder / "artifacts" / name
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(target)
        return target


@dataclass
class Place:
    """Someone's clone of the repository or of a fork, with the rights to push there."""

    project: Project
    repository: fake.Repository
    token: fake.Token
    certificates: Path

    def run(self, *words: str) -> str:
        """Return what a command prints in the clone; fail with it."""
        trusted = dict.fromkeys(("GIT_SSL_CAINFO", "SSL_CERT_FILE"), str(self.certificates))
        # Compiling every import anew would make a pipeline half as slow again.
        return self.project.done(*words, PYTHONDONTWRITEBYTECODE="", **trusted)

    def git(self, *words: str) -> str:
        return self.run("git", *words).strip()

    def change(
        self,
        edits: Mapping[str, Edit],
        message: str,
        *,
        name: str = "",
        base: str = "main",
        before: tuple[str, ...] = (),
        after: tuple[str, ...] = (),
        push: bool = True,
    ) -> Branch:
        """Commit edits on a new branch and push it; `before` and `after` the commit make targets run.

        An edit is a file's new content, (old, new) texts within it, or None to delete it.
        """
        name = name or re.sub(r"\W+", "-", message.lower()).strip("-")
        self.git("checkout", "--quiet", "--force", "-B", name, base)
        for path, edit in edits.items():
            apply(self.project / path, edit)
        for target in before:
            self.make(target)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--no-verify", "--allow-empty", "--message", message)
        for target in after:
            self.make(target)
        if push:
            self.git("push", "--quiet", "--no-verify", "--force", "origin", name)
        return Branch(self, name, self.git("rev-parse", "HEAD"))

    def make(self, target: str) -> str:
        """Run a make target, with arguments after a space."""
        verb, _, arguments = target.partition(" ")
        return self.run("make", verb, *([f"ARGS={arguments}"] if arguments else []))


def apply(file: Path, edit: Edit) -> None:
    """Change a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if edit is None:
        file.unlink()
    elif isinstance(edit, bytes):
        file.write_bytes(edit)
    elif isinstance(edit, str):
        file.write_text(edit)
    else:
        for old, new in [edit] if isinstance(edit, tuple) else edit:
            text = file.read_text()
            assert text.count(old) == 1, f"{file.name} holds {old!r} {text.count(old)} times"
            file.write_text(text.replace(old, new))


@dataclass(frozen=True)
class PullRequest:
    """An open pull request."""

    world: World
    record: fake.Pull

    @property
    def number(self) -> int:
        return self.record.number

    def review(self, login: str, state: str = "APPROVED", commit: str = "") -> None:
        """Let someone review the newest commit, or an older one."""
        number = self.world.github.next_id()
        self.record.reviews.append(fake.Review(number, login, state, commit or self.record.sha))

    def event(self, action: str = "opened") -> Event:
        """Return the event that starts its checks; those of a fork or of Dependabot have a token that only reads."""
        world, pull = self.world, self.record
        assert pull.merge_sha, "GitHub runs nothing for a pull request that conflicts"
        payload = {
            "action": action,
            "number": pull.number,
            "pull_request": world.github.pull_json(world.repository, pull),
        }
        foreign = pull.head is not world.repository or pull.login == DEPENDABOT
        ref = f"refs/pull/{pull.number}/merge"
        return world.event(
            "pull_request",
            payload,
            sha=pull.merge_sha,
            ref=ref,
            actor=pull.login,
            head=pull.head,
            branch=pull.branch,
            read_only=foreign,
            pulls=(pull.number,),
            head_sha=pull.sha,
        )


@dataclass
class World:
    """The repository on the fake GitHub, its owner's clone, and every run so far."""

    folder: Path
    github: fake.GitHub
    repository: fake.Repository
    owner: Place
    variables: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    venv: Path | None = None

    @staticmethod
    @contextmanager
    def open(
        folder: Path, project: Project | Path, *, name: str = "", private: bool = False, after: tuple[str, ...] = ()
    ) -> Iterator[World]:
        """Yield a world whose repository holds a copy of the project; `after` the push make targets run."""
        for tool in ("act", "node", "openssl"):
            require(tool)
        source = project if isinstance(project, Project) else Project(project)
        name = name or f"{OWNER}/{source.folder.name}"
        with serving(folder / "github") as github:
            repository = github.repository(name, private=private)
            place = join(folder / "owner", github, repository, source, OWNER)
            venv = (source / ".venv").resolve() if (source / ".venv/.stamp").exists() else None
            world = World(folder, github, repository, place, venv=environment_of(venv))
            world.prepare(after)
            yield world

    def prepare(self, after: tuple[str, ...]) -> None:
        """Push the first commit and make the runner's tools."""
        if self.venv:
            (self.owner.project / ".python-version").write_text(f"{self.python.rpartition('.')[0]}\n")
            self.owner.git("add", "--all")
            self.owner.git(
                "commit", "--quiet", "--no-verify", "--allow-empty", "--message", "Name this machine's Python"
            )
        self.owner.git("push", "--quiet", "--no-verify", "origin", "HEAD:main")
        for target in after:
            self.owner.make(target)
        tools = self.folder / "tools"
        tools.mkdir()
        host = self.github.address.removeprefix("https://")
        stand_in = f'"{sys.executable}" "{Path(__file__).parent / "attestation.py"}"'
        (tools / "gh").write_text(GH.format(host=host, gh=require("gh"), attestation=stand_in))
        (tools / "gh").chmod(0o755)
        base = Path(sys._base_executable if not self.venv else os.path.realpath(self.venv / "bin/python"))
        version = self.python
        binaries = self.folder / "pythons" / version / "x64/bin"
        binaries.mkdir(parents=True)
        for alias in ("python", "python3", f"python{version.rpartition('.')[0]}"):
            (binaries / alias).symlink_to(base)

    @property
    def python(self) -> str:
        """The version of the one Python that the runner has."""
        if self.venv:
            return (self.venv / ".stamp").read_text().split(" ")[0]
        return ".".join(map(str, sys.version_info[:3]))

    def change(self, edits: Mapping[str, Edit], message: str, **more: object) -> Branch:
        """Let the owner push a branch; see Place.change."""
        return self.owner.change(edits, message, **more)

    def fork(self, login: str) -> Place:
        """Return a stranger's clone of a fork of their own."""
        name = f"{login}/{self.repository.name.split('/')[1]}"
        repository = self.github.repository(name, parent=self.repository)
        return join(self.folder / login, self.github, repository, self.owner.project, login)

    def pull_request(self, branch: Branch, *, login: str = "", draft: bool = False, title: str = "") -> PullRequest:
        """Open a pull request for a branch, which may be a fork's."""
        source = branch.place
        record = self.github.open_pull(
            self.repository,
            branch.name,
            login=login or source.token.login,
            title=title or branch.name,
            head=source.repository,
            draft=draft,
        )
        return PullRequest(self, record)

    def event(self, name: str, payload: dict, **about: object) -> Event:
        """Return an event with what every payload holds."""
        actor = about.setdefault("actor", OWNER)
        about = {"head": self.repository, "branch": self.repository.branch} | about
        shared = {
            "repository": self.github.repository_json(self.repository),
            "sender": fake.user_json(actor),
        }
        return Event(name, payload | shared, **about)

    def push(self, ref: str = "refs/heads/main", before: str = fake.NEVER, actor: str = OWNER) -> Event:
        """Return the event of a push to a branch, or of a tag."""
        sha = self.repository.resolve(ref)
        payload = {
            "ref": ref,
            "before": before,
            "after": sha,
            "forced": False,
            "deleted": False,
            "created": before == fake.NEVER,
        }
        branch = re.sub(r"^refs/\w+/", "", ref)
        return self.event("push", payload, sha=sha, ref=ref, branch=branch, actor=actor)

    def merge_group(self, pull: PullRequest) -> Event:
        """Return the event of the merge queue that tests a pull request on top of main."""
        sha, base = pull.record.merge_sha, self.repository.resolve("main")
        ref = f"refs/heads/gh-readonly-queue/main/pr-{pull.number}-{base}"
        self.repository.git("update-ref", ref, sha)
        group = {"head_sha": sha, "head_ref": ref, "base_sha": base, "base_ref": "refs/heads/main"}
        payload = {"action": "checks_requested", "merge_group": group}
        return self.event("merge_group", payload, sha=sha, ref=ref, branch=ref.removeprefix("refs/heads/"))

    def dispatch(
        self, file: str, ref: str = "main", inputs: Mapping[str, str] | None = None, actor: str = OWNER
    ) -> Event:
        """Return the event of a run that is started by hand or through the API."""
        full = f"refs/heads/{ref}"
        payload = {"ref": full, "workflow": f".github/workflows/{file}", "inputs": dict(inputs or {})}
        return self.event(
            "workflow_dispatch", payload, sha=self.repository.resolve(full), ref=full, branch=ref, actor=actor
        )

    def schedule(self, cron: str) -> Event:
        ref = f"refs/heads/{self.repository.branch}"
        return self.event("schedule", {"schedule": cron}, sha=self.repository.resolve(ref), ref=ref)

    def workflow_run(self, run: Run) -> Event:
        """Return the event of a run that has ended: the code is that of the default branch."""
        ref = f"refs/heads/{self.repository.branch}"
        payload = {
            "action": "completed",
            "workflow_run": self.github.run_json(self.repository, run.record),
            "workflow": {"name": run.record.name, "path": f".github/workflows/{run.record.file}"},
        }
        return self.event("workflow_run", payload, sha=self.repository.resolve(ref), ref=ref)

    def merge(self, pull: PullRequest) -> Event:
        """Merge a pull request and return the push to main."""
        self.github.refresh(self.repository)
        before, record = self.repository.resolve("main"), pull.record
        self.repository.git("update-ref", "refs/heads/main", record.merge_sha)
        record.state, record.merged = "closed", True
        self.github.refresh(self.repository)
        self.owner.git("fetch", "--quiet", "origin")
        self.owner.git("checkout", "--quiet", "--force", "-B", "main", "origin/main")
        return self.push(before=before)

    def report(self, run: Run, **more: object) -> Run:
        """Run report.yml for a run that has ended; fail where GitHub would not start it."""
        text = self.repository.git("show", f"{self.repository.branch}:.github/workflows/report.yml")
        trigger = act.load(text)["on"]["workflow_run"]
        assert run.record.name in trigger["workflows"], trigger
        assert "completed" in trigger.get("types", ["completed"])
        return self.run("report.yml", self.workflow_run(run), **more)

    def run(
        self,
        file: str,
        event: Event,
        *,
        missing: tuple[str, ...] = (),
        runners: tuple[str, ...] = ("ubuntu-24.04",),
        again: Run | None = None,
        only: tuple[str, ...] = (),
        given: Mapping[str, Mapping[str, str]] | None = None,
    ) -> Run:
        """Run a workflow of the event's commit and return what it did; `missing` actions, such as setup-cml, fail.

        With `again`, all jobs of that run are run again, or `only` some of them: then the others are taken to have
        succeeded with the outputs that they had, or that are `given` for them, and artifacts stay.
        """
        number = again.id if again else self.github.next_id()
        attempt = self.repository.runs[number].attempt + 1 if again else 1
        folder = self.folder / "runs" / f"{number}-{attempt}"
        if not only:
            shutil.rmtree(self.repository.artifacts_folder / str(number), ignore_errors=True)
        known = outputs_of(again, given or {}) if again and only else {}
        source, document = self.checked_out(event, file, folder, only, known)
        assert event.name in document["on"], f"{file} does not start on {event.name}"
        record = self.record(number, file, document, event, attempt)
        environment = act.host_environment(self.home(folder), trusted(self.github), self.folder / "tools")
        environment |= self.stand_ins(missing, file)
        secrets = self.tokens(document, event, folder)
        environment |= {"STAND_INS_TOKENS": str(folder / "tokens.json"), "STAND_INS_RUN_TOKEN": secrets["GITHUB_TOKEN"]}
        (folder / "event.json").write_text(json.dumps(event.payload))
        words = act.command(
            source,
            file,
            event.name,
            folder / "event.json",
            actor=event.actor,
            # A fork has neither, Dependabot has no secrets.
            variables={} if self.is_foreign(event) else self.variables,
            secrets=secrets if event.read_only else self.secrets | secrets,
            environment=self.runner_variables(number, attempt, event),
            runners=runners,
        )
        began = time.monotonic()
        with workspace(folder) as place:
            # act works below it, and BentoML reads no hidden folder.
            environment |= dict.fromkeys(("XDG_CACHE_HOME", "TMPDIR"), str(place))
            outcome = act.execute(words, source, environment, document, file, functools.partial(self.told, record))
        outcome.seconds = time.monotonic() - began
        self.finish(record, outcome)
        run = Run(number, outcome, record, folder, self.repository, event)
        self.runs.append(run)
        shutil.rmtree(folder / "home", ignore_errors=True)
        return run

    def cancelled(self, file: str, event: Event) -> Run:
        """Return a run that was cancelled before its first job."""
        number = self.github.next_id()
        folder = self.folder / "runs" / f"{number}-1"
        _, document = self.checked_out(event, file, folder)
        record = self.record(number, file, document, event, 1)
        jobs = {name: act.Job(name, name, "cancelled") for name in document["jobs"]}
        self.finish(record, act.Outcome(file, record.name, jobs))
        record.conclusion = "cancelled"
        return Run(number, act.Outcome(file, record.name, jobs), record, folder, self.repository, event)

    def forge(self, run: Run, name: str, files: Mapping[str, bytes]) -> Path:
        """Put an artifact in the place of one that a run uploaded, as code of a pull request could."""
        return self.github.artifact(self.repository, run.id, name, dict(files))

    def is_foreign(self, event: Event) -> bool:
        return event.read_only and event.head is not self.repository

    def checked_out(
        self,
        event: Event,
        file: str,
        folder: Path,
        only: tuple[str, ...] = (),
        known: Mapping[str, Mapping[str, str]] | None = None,
    ) -> tuple[Path, dict]:
        """Return the work tree that act reads the workflow from, and the workflow as its author wrote it.

        Of a run of `only` some jobs, the others do nothing and have the outputs that are `known`.
        """
        source = folder / "source"
        source.parent.mkdir(parents=True)
        bare = str(self.repository.folder)
        for words in (
            ("clone", "--quiet", "--shared", "--no-checkout", bare, str(source)),
            ("-C", str(source), "fetch", "--quiet", "origin", event.sha),
            ("-C", str(source), "checkout", "--quiet", "--detach", event.sha),
            ("-C", str(source), "remote", "set-url", "origin", f"{self.github.address}/{self.repository.name}"),
        ):
            subprocess.run(["git", *words], check=True, capture_output=True, env=clean_environment())
        document = act.load((source / ".github/workflows" / file).read_text())
        if only:
            document["jobs"] = act.reduced(document["jobs"], only, known or {})
        for path in source.glob(".github/workflows/*.y*ml"):
            with path.open("r+") as opened:
                changed = act.with_tokens(document if path.name == file else act.load(opened.read()))
                opened.seek(0)
                opened.truncate()
                YAML().dump(changed, opened)
        return source, document

    def record(self, number: int, file: str, document: dict, event: Event, attempt: int) -> fake.Run:
        jobs = [fake.Job(self.github.next_id(), name) for name in document["jobs"]]
        made = fake.Run(
            number,
            file,
            document.get("name", file),
            event.name,
            event.head_sha or event.sha,
            event.branch,
            event.head,
            event.actor,
            attempt,
            pulls=[*event.pulls],
            jobs=jobs,
        )
        self.repository.runs[number] = made
        return made

    def told(self, record: fake.Run, job: act.Job, status: str) -> None:
        """Keep the API's view of a job in step."""
        with self.github.lock:
            known = next((each for each in record.jobs if each.name == job.name), None)
            if known is None:
                record.jobs = [each for each in record.jobs if each.name != job.id]
                known = fake.Job(self.github.next_id(), job.name)
                record.jobs.append(known)
            known.status, known.started = status, known.started or fake.now()
            known.completed = known.completed or (fake.now() if status == "completed" else None)
            known.conclusion = job.conclusion if status == "completed" else None

    def finish(self, record: fake.Run, outcome: act.Outcome) -> None:
        for name, job in outcome.found.items():
            self.told(record, job, "completed")
            known = next(each for each in record.jobs if each.name == name)
            known.steps = [
                {"name": step.name, "number": number, "status": "completed", "conclusion": step.outcome}
                for number, step in enumerate(job.steps.values(), 1)
            ]
        record.status, record.conclusion = "completed", outcome.conclusion

    def home(self, folder: Path) -> Path:
        """Return a home folder with an empty configuration of act, which would ask for one."""
        home = folder / "home"
        (home / ".config/act").mkdir(parents=True)
        (home / ".config/act/actrc").touch()
        return home

    def stand_ins(self, missing: tuple[str, ...], file: str) -> dict[str, str]:
        """Return what the stand-in actions read."""
        unknown = [name for name in missing if not (STAND_INS / name).is_dir()]
        assert not unknown, f"no action stands in for {unknown}"
        return {
            "STAND_INS_ARTIFACTS": str(self.repository.artifacts_folder),
            "STAND_INS_ATTESTATIONS": str(self.attestations),
            "STAND_INS_CACHES": str(self.folder / "caches"),
            "STAND_INS_MISSING": " ".join(missing),
            "STAND_INS_PYTHONS": str(self.folder / "pythons"),
            "STAND_INS_VENV": str(self.venv or ""),
            "STAND_INS_VULNERABILITIES": str(self.folder / "vulnerabilities.json"),
            "STAND_INS_WORKFLOW": file,
        }

    @property
    def attestations(self) -> Path:
        """The folder of what was attested, by digest, and of the key that signs it."""
        folder = self.folder / "attestations"
        if not folder.exists():
            folder.mkdir()
            (folder / "key").write_bytes(os.urandom(32))
        return folder

    def tokens(self, document: dict, event: Event, folder: Path) -> dict[str, str]:
        """Return a token for every job, and one without grants for what has no job."""
        name = self.repository.name
        made = {
            job: self.github.token(
                fake.WORKFLOW_LOGIN, act.grants_of(document, declared, read_only=event.read_only), name, "workflow"
            ).value
            for job, declared in document["jobs"].items()
        }
        (folder / "tokens.json").write_text(json.dumps(made))
        run_token = self.github.token(fake.WORKFLOW_LOGIN, {"metadata": "read"}, name, "workflow")
        return {act.secret_of(job): token for job, token in made.items()} | {"GITHUB_TOKEN": run_token.value}

    def runner_variables(self, number: int, attempt: int, event: Event) -> dict[str, str]:
        return {
            "GITHUB_RUN_ID": str(number),
            "GITHUB_RUN_NUMBER": str(number),
            "GITHUB_RUN_ATTEMPT": str(attempt),
            "GITHUB_REPOSITORY": self.repository.name,
            "GITHUB_REPOSITORY_ID": str(self.repository.id),
            "GITHUB_SERVER_URL": self.github.address,
            "GITHUB_API_URL": self.github.api,
            "GITHUB_TRIGGERING_ACTOR": event.actor,
            "GITHUB_REF": event.ref,
            "GITHUB_REF_TYPE": "tag" if event.ref.startswith("refs/tags/") else "branch",
            "SHA_REF": event.sha,
        }

    def comments(self, pull: PullRequest) -> list[fake.Comment]:
        return [each for each in self.repository.comments if each.issue == pull.number]

    def comment(self, pull: PullRequest, body: str, login: str = OWNER) -> fake.Comment:
        """Let someone comment."""
        made = fake.Comment(self.github.next_id(), pull.number, body, login)
        self.repository.comments.append(made)
        return made

    def refs(self, prefix: str = "refs/") -> dict[str, str]:
        return self.repository.refs(prefix)

    def calls(self, method: str = "", pattern: str = "") -> list[fake.Call]:
        return self.github.calls(method, pattern)

    def show(self, ref: str, path: str) -> str:
        """Return a file as a ref of the repository has it."""
        return self.repository.git("show", f"{ref}:{path}")

    def started(self) -> list[tuple[str, str]]:
        """Return what GitHub would start, as (event, ref): no push of a workflow's own token, but its dispatches."""
        pushes = [("push", each.ref) for each in self.github.pushes if each.token.kind == "app"]
        return pushes + [(each.file, each.ref) for each in self.repository.dispatches]


@contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """Yield a folder for the jobs of a run, in memory where there is room: git and SQLite often wait for a disk."""
    able = MEMORY.is_dir() and not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC
    where = MEMORY if able and shutil.disk_usage(MEMORY).free > ROOM else folder
    with tempfile.TemporaryDirectory(prefix="act-", dir=where, ignore_cleanup_errors=True) as place:
        yield Path(place)


def outputs_of(run: Run, given: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Return by job the outputs that a run's steps had, and what is given in their place."""
    kept = {
        name: {key.partition(".")[2]: value for key, value in job.outputs.items()}
        for name, job in run.outcome.found.items()
    }
    return {name: outputs | dict(given.get(name, {})) for name, outputs in kept.items()}


GH = """#!/bin/sh
[ "$1" != attestation ] || exec {attestation} "$@"
# For another host than github.com, gh takes the token from another variable and does not know a remote with a port.
export GH_HOST={host} GH_ENTERPRISE_TOKEN="${{GH_TOKEN:-${{GITHUB_TOKEN:-}}}}"
if [ -z "$GH_REPO" ] && git remote get-url origin >/dev/null 2>&1; then GH_REPO=$GITHUB_REPOSITORY; fi
[ -z "$GH_REPO" ] || export GH_REPO="$GH_HOST/$GH_REPO"
exec "{gh}" "$@"
"""


def environment_of(venv: Path | None) -> Path | None:
    """Return the environment itself, where a copy's consists of links to it."""
    return (venv / ".stamp").resolve().parent if venv else None


def trusted(github: fake.GitHub) -> Path:
    """Return a file of all certificates that this machine trusts, and the server's."""
    target = github.folder / "certificates.pem"
    return target if target.exists() else act.trusted_certificates(github.certificate, target)


def join(folder: Path, github: fake.GitHub, repository: fake.Repository, source: Project, login: str) -> Place:
    """Return a clone for someone, made from a folder that has all of the repository and its environment."""
    if (source / ".venv").exists():
        project = source.copy(folder)
    else:
        shutil.copytree(source.folder, folder, symlinks=True)
        project = Project(folder)
    token = github.token(login, {"*": "write"}, repository.name)
    place = Place(project, repository, token, trusted(github))
    if not (project / ".git").exists():
        place.git("init", "--quiet", "--initial-branch", "main")
    for name, value in (("user.name", login), ("user.email", f"{login}@example.com")):
        place.git("config", name, value)
    place.git("add", "--all")
    place.git("commit", "--quiet", "--no-verify", "--allow-empty", "--message", "Begin")
    address = github.address.replace("https://", f"https://{login}:{token.value}@")
    verb = "set-url" if "origin" in place.git("remote").split() else "add"
    place.git("remote", verb, "origin", f"{address}/{repository.name}")
    return place


def product_jobs() -> set[tuple[str, str]]:
    """Return every workflow and job of the product."""
    files = sorted(PRODUCT_WORKFLOWS.glob("*.y*ml"))
    return {(file.name, job) for file in files for job in act.load(file.read_text())["jobs"]}


DECLARED: dict[tuple[str, str], set[str]] = {}


def executes(file: str, *jobs: str) -> Callable:
    """Declare the jobs that a scenario executes; it fails where one of them did not run in its world.

    The declaration is what `undeclared` reads, in whichever process the scenario itself runs.
    """

    def decorate(scenario: Callable) -> Callable:
        for job in jobs:
            DECLARED.setdefault((file, job), set()).add(f"{scenario.__module__}.{scenario.__name__}")

        @functools.wraps(scenario)
        def checked(*args: object, **fixtures: object) -> None:
            scenario(*args, **fixtures)
            world = next(value for value in fixtures.values() if isinstance(value, World))
            ran = {
                job.id
                for run in world.runs
                if run.record.file == file
                for job in run.outcome.found.values()
                if job.conclusion in ("success", "failure")
            }
            assert set(jobs) <= ran, f"declared and not executed in {file}: {sorted(set(jobs) - ran)}"

        return checked

    return decorate


def undeclared() -> set[tuple[str, str]]:
    """Return the product's jobs that no scenario of this folder declares."""
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        importlib.import_module(file.stem)
    return product_jobs() - set(DECLARED)
