from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from host import CONFIG, FIRST, Call, Hub, commit, files_below, git, listing, md5, run_pipeline, stored, written

from ml import objects
from ml.errors import ReadOnlyError, SourceError, UserError
from ml.operations import bundle, publish
from ml.review import lock

PLOTS = {"one.json": b"1", "deep/two.json": b"22"}
BETTER = {**FIRST, "models/model.onnx": b"better", "plots": PLOTS}
METRICS = b'{"auc": 0.8}'
MADE = {md5(b"better"), md5(b"22"), f"{md5(listing(PLOTS))}.dir"}


@dataclass
class Change:
    """A pull request whose lock is stale, and what CI trained for it; the test works in report.yml's checkout."""

    hub: Hub
    origin: Path
    branch: str
    head: str
    files: dict[str, bytes]

    def told(self, **more: Any) -> None:
        """Let the API know run 900 of the head, its pull request and its artifact."""
        run = {"id": 900, "run_attempt": 1, "head_sha": self.head, "head_branch": self.branch, "html_url": "u"}
        self.hub.on("GET actions/runs/900", {**run, "conclusion": "failure", "head_repository": {"id": 1}, **more})
        self.hub.on("GET .", {"id": 1, "default_branch": "main"})
        self.asked(self.head, self.branch)
        self.hub.on("GET actions/runs/900/artifacts", {"artifacts": []})
        self.hub.artifact(900, "trained", self.files)
        self.hub.on("POST actions/workflows/pull-request.yml/dispatches", (204, {}, b""))

    def asked(self, head: str, branch: str) -> None:
        """Let there be one pull request, from this head and branch."""
        self.hub.on("GET pulls", [{"number": 12, "head": {"sha": head, "ref": branch, "repo": {"id": 1}}}])

    def linked(self, path: str, target: Path) -> None:
        """Put a link into the head's commit, in the place of whatever stands there."""
        index = {**os.environ, "GIT_INDEX_FILE": str(self.origin / "scratch"), "GIT_DIR": str(self.origin)}

        def plumb(*words: str, content: str = "") -> str:
            done = subprocess.run(["git", *words], env=index, input=content, check=True, capture_output=True, text=True)
            return done.stdout.strip()

        plumb("read-tree", self.head)
        gone = "".join(f"0 {'0' * 40}\t{name}\n" for name in plumb("ls-files", path).splitlines())
        blob = plumb("hash-object", "-w", "--stdin", content=str(target))
        plumb("update-index", "--index-info", content=f"{gone}120000 {blob}\t{path}\n")
        self.head = plumb("commit-tree", plumb("write-tree"), "-p", self.head, "-m", "with a link")
        plumb("update-ref", f"refs/heads/{self.branch}", self.head)
        self.told()

    def refs(self) -> str:
        return git(self.origin, "for-each-ref")

    def show(self, *words: str) -> str:
        return git(self.origin, *words, f"refs/heads/{self.branch}")


@pytest.fixture
def propose(
    pushed: Path, origin: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Change]:
    """Return what pushes a commit with other code than its lock's, trains on it, and goes to a checkout of main."""

    def proposed(branch: str = "change", message: str = "Try more trees") -> Change:
        document = Path("dvc.yaml").read_text().replace('"true"', '"better"')
        written(Path("dvc.yaml"), document.encode())
        head = commit(message, branch)
        run_pipeline(BETTER, METRICS, command="better")
        bundle.pack()
        change = Change(hub, origin, branch, head, files_below(bundle.FOLDER))
        git(tmp_path, "clone", "--quiet", "--depth=1", "--branch=main", origin.as_uri(), "runner")
        monkeypatch.chdir(tmp_path / "runner")
        change.told()
        return change

    return proposed


def test_what_ci_trained_becomes_one_commit_on_the_branch(propose: Callable[..., Change]) -> None:
    change = propose()
    here = git(Path.cwd(), "rev-parse", "HEAD")

    said = publish.commit_lock(900, dispatch=False)

    made = change.show("rev-parse")
    assert said == f"{made[:10]} on change takes what run 900 trained (3 objects stored)"
    assert change.show("log", "-1", "--format=%P %an %cn <%ce>") == (
        f"{change.head} github-actions[bot] github-actions[bot] <41898282+github-actions[bot]@users.noreply.github.com>"
    )
    assert change.show("log", "-1", "--format=%B").startswith(
        "Take what run 900 trained\n\nMade by CI from " + change.head
    )
    assert git(change.origin, "diff", "--name-only", change.head, made).split() == ["dvc.lock", "metrics.json"]
    assert git(change.origin, "show", f"{made}:metrics.json") == METRICS.decode()
    assert stored(change.origin) >= MADE
    assert git(Path.cwd(), "status", "--short") == ""
    assert git(Path.cwd(), "rev-parse", "HEAD") == here
    assert change.hub.sent() == []


def test_the_commit_has_a_lock_that_is_current_and_stored(
    propose: Callable[..., Change], clone: Callable[[str], Path]
) -> None:
    propose()
    publish.commit_lock(900, dispatch=False)

    other = clone("other")
    git(other, "checkout", "--quiet", "change")

    assert lock.problems(other) == []


def test_where_a_push_starts_no_checks_they_are_started_by_hand(propose: Callable[..., Change]) -> None:
    change = propose()

    publish.commit_lock(900, dispatch=True)

    assert change.hub.sent() == [("POST", "actions/workflows/pull-request.yml/dispatches", {"ref": "change"})]
    assert change.show("rev-parse") != change.head


@pytest.mark.parametrize(
    "branch",
    [
        "a;touch pwned",
        "$(touch pwned)",
        "`touch pwned`",
        "a'b\"c",
        "-d",
        "+main",
        "refs/heads/main",
        "é/ü",
        "%n",
        "HEAD",
    ],
)
def test_a_branch_may_have_any_name(branch: str, propose: Callable[..., Change]) -> None:
    change = propose(branch.replace(" ", "\u00a0"))
    main = git(change.origin, "rev-parse", "refs/heads/main")

    publish.commit_lock(900, dispatch=True)

    assert change.show("rev-parse", "--verify", "--end-of-options").splitlines()[-1] != change.head
    assert git(change.origin, "log", "-1", "--format=%P", f"refs/heads/{change.branch}", "--") == change.head
    assert git(change.origin, "rev-parse", "refs/heads/main") == main
    assert change.hub.sent()[0][2] == {"ref": change.branch}
    assert list(Path.cwd().rglob("pwned*")) == []


def test_a_fork_takes_its_result_itself(propose: Callable[..., Change]) -> None:
    change = propose()
    before = change.refs()

    for repository in ({"id": 2}, None):
        change.told(head_repository=repository)
        assert publish.commit_lock(900, dispatch=True) == "the branch lies in a fork: its owner runs make take"

    assert change.refs() == before
    assert change.hub.sent() == []


def other_head(change: Change) -> None:
    change.asked("f" * 40, "change")


def to_main(change: Change) -> None:
    change.asked(change.head, "main")


def no_artifact(change: Change) -> None:
    change.hub.on("GET actions/runs/900/artifacts", {"artifacts": []})


@pytest.mark.parametrize(
    ("arrange", "told"),
    [
        (other_head, "no open pull request has the head {}: it moved on"),
        (lambda change: change.hub.on("GET pulls", []), "no open pull request has the head {}: it moved on"),
        (to_main, "main is the default branch: nothing is committed to it"),
        (no_artifact, "the run trained nothing that its commit lacks"),
    ],
    ids=["another head", "closed", "the default branch", "no artifact"],
)
def test_where_there_is_nothing_to_do_it_says_why_and_pushes_nothing(
    arrange: Callable[[Change], None], told: str, propose: Callable[..., Change]
) -> None:
    change = propose()
    arrange(change)
    before = change.refs()

    assert publish.commit_lock(900, dispatch=True) == told.format(change.head[:10])

    assert change.refs() == before
    assert change.hub.sent() == []


def test_a_commit_that_was_made_here_is_not_followed_by_another(propose: Callable[..., Change]) -> None:
    change = propose(message="Take what run 899 trained")
    before = change.refs()

    assert publish.commit_lock(900, dispatch=True).startswith(f"{change.head[:10]} was committed here already and does")

    assert change.refs() == before
    assert change.hub.sent() == []


def replaced(name: str, content: bytes | None) -> Callable[[Change], None]:
    def tamper(change: Change) -> None:
        change.files = {key: value for key, value in change.files.items() if key != name}
        if content is not None:
            change.files[name] = content

    return tamper


def relocked(edit: Callable[[dict[str, Any]], None], **files: bytes) -> Callable[[Change], None]:
    """Return what changes the bundle's lock, which is JSON, and adds files."""

    def tamper(change: Change) -> None:
        document = json.loads(change.files["files/dvc.lock"])
        edit(document["stages"])
        added = {f"files/{name}": content for name, content in files.items()}
        change.files = {**change.files, "files/dvc.lock": json.dumps(document).encode(), **added}

    return tamper


def named(path: str, content: bytes) -> Callable[[dict[str, Any]], None]:
    return lambda stages: stages["all"]["outs"].append({"path": path, "hash": "md5", "md5": md5(content)})


WORKFLOW = ".github/workflows/pull-request.yml"
UNFIT = "the trained result does not fit the commit: "
FORGED = {
    "an object with other bytes": (
        replaced(f"objects/{md5(b'better')}", b"worse"),
        "the object .{8} of the bundle has another hash",
    ),
    "a report with other bytes": (
        replaced("files/metrics.json", b'{"auc": 1}'),
        "metrics.json of the bundle is not what",
    ),
    "a lock that is not YAML": (replaced("files/dvc.lock", b"a: ["), "dvc.lock of the bundle is not readable"),
    "no lock": (replaced("files/dvc.lock", None), "[^ ]* holds no dvc.lock: it is no bundle"),
    "an object too few": (
        replaced(f"objects/{md5(b'better')}", None),
        f"neither the bundle nor the storage has 1 of its objects, such as {md5(b'better')[:8]}",
    ),
    "a file of a directory too few": (
        replaced(f"objects/{md5(b'22')}", None),
        f"neither the bundle nor the storage has 1 of its objects, such as {md5(b'22')[:8]}",
    ),
    "an object that nobody names": (replaced(f"objects/{md5(b'x')}", b"x"), "the bundle's dvc.lock names no object"),
    "another command": (
        relocked(lambda stages: stages["all"].update(cmd="true")),
        f"{UNFIT}all: the command is not as the lock has it",
    ),
    "another stage": (
        relocked(lambda stages: stages.update(more={"cmd": "x"})),
        f"{UNFIT}more: is in dvc.lock and not",
    ),
    "a file that no stage makes": (
        relocked(named(WORKFLOW, b"on: push"), **{WORKFLOW: b"on: push"}),
        f"{UNFIT}all: {WORKFLOW} is not as the lock has it",
    ),
}


@pytest.mark.parametrize(("tamper", "told"), FORGED.values(), ids=FORGED)
def test_a_forged_result_is_refused_in_one_line_and_nothing_is_pushed(
    tamper: Callable[[Change], None], told: str, propose: Callable[..., Change]
) -> None:
    change = propose()
    tamper(change)
    change.told()
    before = change.refs()

    with pytest.raises(SourceError, match=rf"^{told}[^\n]*$"):
        publish.commit_lock(900, dispatch=True)

    assert change.refs() == before
    assert change.hub.sent() == []


def test_a_result_of_another_commit_does_not_fit(propose: Callable[..., Change]) -> None:
    change = propose()
    main = git(change.origin, "rev-parse", "refs/heads/main^{tree}")
    change.head = git(change.origin, "commit-tree", main, "-p", change.head, "-m", "back")
    git(change.origin, "update-ref", "refs/heads/change", change.head)
    change.told()
    before = change.refs()

    with pytest.raises(SourceError, match=f"^{UNFIT}all: the command is not as the lock has it$"):
        publish.commit_lock(900, dispatch=True)

    assert change.refs() == before


@pytest.fixture
def aim(tmp_path: Path) -> Path:
    """Return a folder of the runner that links lead to."""
    written(tmp_path / "aim/config", b"of the runner")
    return tmp_path / "aim"


@pytest.mark.parametrize("name", ["metrics.json", "dvc.lock"])
def test_a_link_in_the_commit_in_the_place_of_a_file_is_refused(
    name: str, propose: Callable[..., Change], aim: Path
) -> None:
    change = propose()
    change.linked(name, aim / "config")
    before = change.refs()

    with pytest.raises(SourceError, match=rf"^{name} of the commit leads elsewhere$"):
        publish.commit_lock(900, dispatch=True)

    assert files_below(aim) == {"config": b"of the runner"}
    assert change.refs() == before


def test_a_folder_of_the_commit_that_leads_elsewhere_is_refused(propose: Callable[..., Change], aim: Path) -> None:
    change = propose()
    relocked(named("reports/x.json", b"{}"), **{"reports/x.json": b"{}"})(change)
    change.linked("reports", aim)
    before = change.refs()

    with pytest.raises(SourceError, match=r"^reports/x.json of the commit leads elsewhere$"):
        publish.commit_lock(900, dispatch=True)

    assert files_below(aim) == {"config": b"of the runner"}
    assert change.refs() == before


@pytest.mark.parametrize("path", [".dvc", ".dvc/config", ".dvc/tmp", ".dvc/config.local"])
def test_settings_of_the_commit_for_dvc_are_not_followed(path: str, propose: Callable[..., Change], aim: Path) -> None:
    change = propose()
    change.linked(path, aim if path in (".dvc", ".dvc/tmp") else aim / "config")

    publish.commit_lock(900, dispatch=False)

    assert change.show("log", "-1", "--format=%P") == change.head
    assert files_below(aim) == {"config": b"of the runner"}


def moved_on(change: Change) -> None:
    git(change.origin, "update-ref", "refs/heads/change", git(change.origin, "rev-parse", "refs/heads/later"))


def set_back(change: Change) -> None:
    git(change.origin, "update-ref", "refs/heads/change", f"{change.head}^")


def deleted(change: Change) -> None:
    git(change.origin, "update-ref", "-d", "refs/heads/change")


@pytest.mark.parametrize("meanwhile", [moved_on, set_back, deleted])
def test_a_branch_that_moves_meanwhile_is_left_as_it_is(
    meanwhile: Callable[[Change], None], propose: Callable[..., Change]
) -> None:
    change = propose()
    tree = git(change.origin, "rev-parse", f"{change.head}^{{tree}}")
    later = git(change.origin, "commit-tree", tree, "-p", change.head, "-m", "later")
    git(change.origin, "update-ref", "refs/heads/later", later)
    blob = change.hub.answers["GET /blobs/7"]
    heads = []

    def answer(_: Call) -> bytes:
        meanwhile(change)
        heads.append(git(change.origin, "for-each-ref", "refs/heads"))
        return blob

    change.hub.on("GET /blobs/7", answer)

    with pytest.raises(UserError, match=r"^change takes no commit: [^\n]+$|^[0-9a-f]{10} cannot be fetched: [^\n]+$"):
        publish.commit_lock(900, dispatch=True)

    assert git(change.origin, "for-each-ref", "refs/heads") == heads[0]
    assert change.hub.sent() == []


def test_where_the_host_takes_nothing_no_commit_is_made(propose: Callable[..., Change]) -> None:
    change = propose()
    hook = written(
        change.origin / "hooks/pre-receive", b"#!/bin/sh\necho 'Permission denied to somebody' >&2\nexit 1\n"
    )
    hook.chmod(0o755)
    before = change.refs()

    with pytest.raises(ReadOnlyError, match=r"^origin takes no objects from here"):
        publish.commit_lock(900, dispatch=True)

    assert change.refs() == before


def test_with_another_default_remote_the_objects_go_there(propose: Callable[..., Change], tmp_path: Path) -> None:
    change = propose()
    own = f"['remote \"own\"']\n    url = {tmp_path}/own\n"
    Path(".dvc/config").write_text(CONFIG.replace("= refs", "= own") + own)
    for content in (b"rows", b"1"):
        written(objects.place(tmp_path / "own/files/md5", md5(content)), content)

    publish.commit_lock(900, dispatch=False)

    kept = {"".join(path.parts[-2:]) for path in (tmp_path / "own/files/md5").rglob("*") if path.is_file()}
    assert kept == {md5(b"rows"), md5(b"1"), *MADE}
    assert not stored(change.origin) & MADE
    assert change.show("rev-parse") != change.head


@pytest.fixture
def merged(pushed: Path, origin: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Change:
    """Return main after the merge of a fork's change: its lock names objects that only the run of main made."""
    run_pipeline(BETTER, METRICS)
    bundle.pack()
    change = Change(hub, origin, "main", commit("Merge a fork"), files_below(bundle.FOLDER))
    git(tmp_path, "clone", "--quiet", "--depth=1", origin.as_uri(), "runner")
    monkeypatch.chdir(tmp_path / "runner")
    change.told()
    hub.on("POST actions/runs/900/rerun-failed-jobs", (201, {}, {}))
    return change


AGAIN = ("POST", "actions/runs/900/rerun-failed-jobs", None)


def test_what_mains_own_run_made_is_stored_and_its_failed_jobs_run_again_once(merged: Change) -> None:
    assert not stored(merged.origin) & MADE

    assert publish.store_of_main(900) == "3 objects that run 900 made are stored; its failed jobs run again"
    assert stored(merged.origin) >= MADE
    assert merged.hub.sent() == [AGAIN]

    merged.told(run_attempt=2)
    assert publish.store_of_main(900) == "what run 900 made is stored already: its log says why it failed"
    assert merged.hub.sent() == [AGAIN]
    assert git(merged.origin, "rev-parse", "main") == merged.head


@pytest.mark.parametrize(
    ("arrange", "said"),
    [
        (lambda change: change.told(head_branch="change"), "run 900 is not of main: nothing is stored"),
        (lambda change: change.told(head_repository={"id": 2}), "run 900 is not of main: nothing is stored"),
        (no_artifact, "everything that the lock names is stored"),
    ],
    ids=["a branch", "a fork", "no artifact"],
)
def test_nothing_of_another_run_is_stored(arrange: Callable[[Change], None], said: str, merged: Change) -> None:
    arrange(merged)
    before = merged.refs()

    assert publish.store_of_main(900) == said

    assert merged.refs() == before
    assert merged.hub.sent() == []


def test_a_main_without_a_lock_stores_nothing(merged: Change) -> None:
    tree = "\n".join(line for line in merged.show("ls-tree").splitlines() if not line.endswith("\tdvc.lock"))
    words = ["git", "-C", str(merged.origin), "mktree"]
    made = subprocess.run(words, input=tree, check=True, capture_output=True, text=True).stdout.strip()
    merged.head = git(merged.origin, "commit-tree", made, "-p", merged.head, "-m", "no lock")
    git(merged.origin, "update-ref", "refs/heads/main", merged.head)
    merged.told()

    assert publish.store_of_main(900) == f"{merged.head[:10]} has no dvc.lock: there is nothing to store for it"
    assert not stored(merged.origin) & MADE


@pytest.mark.parametrize(
    ("tamper", "told"),
    [
        (
            relocked(lambda stages: stages["all"].update(cmd="x")),
            ".{10} locks other objects than its own run made: make",
        ),
        (replaced(f"objects/{md5(b'better')}", b"worse"), "the object .{8} of the bundle has another hash"),
        (replaced(f"objects/{md5(b'x')}", b"x"), "the bundle's dvc.lock names no object"),
    ],
    ids=["another lock", "other bytes", "an object that nobody names"],
)
def test_what_is_not_what_main_locks_is_not_stored(tamper: Callable[[Change], None], told: str, merged: Change) -> None:
    tamper(merged)
    merged.told()
    before = merged.refs()

    with pytest.raises(SourceError, match=rf"^{told}[^\n]*$"):
        publish.store_of_main(900)

    assert merged.refs() == before
    assert merged.hub.sent() == []
