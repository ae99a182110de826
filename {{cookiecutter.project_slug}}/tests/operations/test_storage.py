from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from host import CONFIG, git, make, md5, stored, written

from ml import objects, refs
from ml.errors import ReadOnlyError, SourceError, UserError
from ml.operations import storage

Clone = Callable[[str], Path]

ALL = 6  # objects of `laptop`: two files, a directory's list and its two files


def test_what_one_pushes_another_pulls(laptop: Path, clone: Clone) -> None:
    assert storage.push() == "5 of 5 objects pushed to origin (0.0 MB)"

    other = clone("other")
    assert storage.pull([]) == "5 of 5 objects pulled"

    assert (other / "models/model.onnx").read_bytes() == b"model"
    assert (other / "plots/deep/two.json").read_bytes() == b"2"
    assert storage.status() == ["5 objects of dvc.lock: 5 here, 5 at origin"]


def test_only_what_is_missing_moves(laptop: Path, clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.push()
    make({"data/a.parquet": b"rows", "models/model.onnx": b"another model"})

    assert storage.push().startswith("1 of 2 objects pushed")
    assert storage.push().startswith("0 of 2 objects pushed")

    clone("other")
    storage.pull([])
    monkeypatch.setattr(refs, "fetch", pytest.fail)
    assert storage.pull([]) == "0 of 2 objects pulled"


def test_one_model_out_of_hundreds_of_objects_is_all_that_is_downloaded(laptop: Path, clone: Clone) -> None:
    many = {f"{at:03}": os.urandom(2000) for at in range(500)}
    make({"models/model.onnx": b"model" * 1000, "data/many": many})
    assert storage.push().startswith("502 of 502 objects")

    other = clone("other")
    before = len(list((other / ".git/objects").rglob("*")))
    assert storage.pull(["models"]) == "1 of 1 objects pulled"

    assert (other / "models/model.onnx").stat().st_size == 5000
    assert not (other / "data").exists()
    kept = [path for path in (other / ".dvc/objects").rglob("*") if path.is_file()]
    assert [path.stat().st_size for path in kept] == [5000]
    assert len(list((other / ".git/objects").rglob("*"))) == before


def test_a_clone_downloads_no_object_and_is_never_a_partial_one(laptop: Path, origin: Path, clone: Clone) -> None:
    storage.push()

    other = clone("other")
    model = git(origin, "for-each-ref", "--format=%(objectname)", refs.SPACE).split()[0]
    missing = subprocess.run(["git", "cat-file", "-e", model], stderr=subprocess.DEVNULL)
    assert missing.returncode != 0
    storage.pull([])

    settings = git(other, "config", "--local", "--list")
    assert "promisor" not in settings
    assert "partial" not in settings
    assert refs.SPACE not in git(other, "for-each-ref")
    assert not (other / ".git/FETCH_HEAD").exists()
    assert git(other, "fsck", "--full") == ""


@pytest.mark.parametrize("kind", ["--depth=1", "--filter=blob:none"], ids=["shallow", "partial"])
def test_a_shallow_or_partial_clone_pulls_and_pushes_and_stays_as_it_is(
    kind: str, laptop: Path, origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make({"data/a.parquet": b"other rows"}, "later")
    storage.push()
    git(origin, "config", "uploadpack.allowFilter", "true")
    git(tmp_path, "clone", "--quiet", kind, origin.as_uri(), "runner")
    monkeypatch.chdir(tmp_path / "runner")
    before = git(Path.cwd(), "count-objects", "-v"), git(Path.cwd(), "config", "--local", "--list")

    assert storage.pull([]) == "1 of 1 objects pulled"
    written(objects.place(objects.CACHE, md5(b"trained here")), b"trained here")
    lock = Path("dvc.lock")
    lock.write_text(lock.read_text().replace(md5(b"other rows"), md5(b"trained here")))
    assert storage.push().startswith("1 of 1 objects pushed")

    assert md5(b"trained here") in stored(origin)
    assert (git(Path.cwd(), "count-objects", "-v"), git(Path.cwd(), "config", "--local", "--list")) == before


def test_twenty_writers_at_once_lose_nothing_and_need_no_second_try(laptop: Path, origin: Path, tmp_path: Path) -> None:
    common = written(tmp_path / "common", b"common")
    own = [{md5(part): written(tmp_path / f"own{at}", part)} for at in range(20) for part in [b"own %d" % at]]
    script = (
        "import json, sys; from pathlib import Path; from ml import refs; refs.TRIES = 2;"
        "refs.push({md5: Path(path) for md5, path in json.loads(sys.argv[1]).items()}, 'origin')"
    )

    writers = [
        subprocess.Popen([sys.executable, "-c", script, json.dumps({k: str(v) for k, v in {**common, **one}.items()})])
        for common, one in zip([{md5(b"common"): common}] * 20, own, strict=True)
    ]

    assert [writer.wait() for writer in writers] == [0] * 20
    assert stored(origin) == {md5(b"common"), *(next(iter(one)) for one in own)}


@pytest.mark.parametrize("verb", ["push", "pull"])
def test_what_a_killed_run_left_the_next_one_mends(
    verb: str, laptop: Path, origin: Path, clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    make({"data/many": {str(at): os.urandom(20_000) for at in range(200)}})
    if verb == "pull":
        storage.push()
        clone("other")

    for delay in (0.2, 0.4, 0.8, 1.2):
        command = [sys.executable, "-m", "ml.cli", "storage", verb]
        run = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
        time.sleep(delay)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        assert run.returncode in (0, -signal.SIGKILL)

    said = storage.push() if verb == "push" else storage.pull([])
    assert said.endswith("pulled") or "pushed" in said
    if verb == "pull":
        assert len(list(Path("data/many").iterdir())) == 200
    for path in (path for path in Path(".dvc/objects").rglob("*") if path.is_file() and path.suffix != ".tmp"):
        assert refs.digest(path) == f"{path.parent.name}{path.name}".removesuffix(".dir")
    assert len(stored(origin)) == 201
    clone("third")
    storage.pull([])
    assert len(list(Path("data/many").iterdir())) == 200


def test_what_a_killed_run_left_is_removed_once_it_is_an_hour_old(laptop: Path, clone: Clone) -> None:
    storage.push()
    clone("other")
    folder = objects.place(objects.FOLDER, md5(b"model")).parent
    for name, age in (("old.1.tmp", 4000), ("young.1.tmp", 10)):
        written(folder / name, b"")
        os.utime(folder / name, (time.time() - age,) * 2)

    storage.pull([])

    assert {path.name for path in folder.glob("*.tmp")} == {"young.1.tmp"}


def test_a_file_over_the_hosts_limit_is_named_with_the_way_out(laptop: Path, origin: Path) -> None:
    large = Path("large")
    with large.open("wb") as file:
        file.truncate(100_000_001)
    make({"models/model.onnx": b"model"})
    lock = Path("dvc.lock")
    lock.write_text(lock.read_text().replace(md5(b"model"), refs.digest(large)))
    place = objects.place(objects.CACHE, refs.digest(large))
    place.parent.mkdir(parents=True)
    large.rename(place)

    with pytest.raises(UserError, match=r"^models/model.onnx has 100 MB, over .*: move .* S3, GCS or Azure \(docs/sto"):
        storage.push()

    assert stored(origin) == set()


def test_a_push_is_parted_into_lots_that_a_host_takes(
    laptop: Path, origin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make({"data/many": {f"{at}": b"%d" % at * 100 for at in range(5)}, "models/model.onnx": b"m" * 1000})
    monkeypatch.setattr(refs, "AT_ONCE", 2)
    monkeypatch.setattr(refs, "MOST_AT_ONCE", 900)
    pushed = []
    git = refs.git
    monkeypatch.setattr(refs, "git", lambda *words, **more: pushed.append(words) or git(*words, **more))

    assert storage.push().startswith("7 of 7 objects")

    lots = [[word for word in words if refs.SPACE in word] for words in pushed if words[0] == "push"]
    assert [len(lot) for lot in lots] == [1, 1, 2, 2, 1]
    assert len(stored(origin)) == 7
    assert len([words for words in pushed if words[0] == "ls-remote"]) <= 3


def read_only(origin: Path) -> None:
    hook = origin / "hooks/pre-receive"
    hook.write_text("#!/bin/sh\necho 'Permission to a/b.git denied to somebody' >&2\nexit 1\n")
    hook.chmod(0o755)


def test_a_token_that_only_reads_pulls_and_pushing_says_why_not(laptop: Path, origin: Path, clone: Clone) -> None:
    storage.push()
    read_only(origin)
    clone("fork")
    assert storage.pull([]) == "5 of 5 objects pulled"
    written(objects.place(objects.CACHE, md5(b"new")), b"new")
    lock = Path("dvc.lock")
    lock.write_text(lock.read_text().replace(md5(b"model"), md5(b"new")))

    with pytest.raises(
        ReadOnlyError, match=r"^origin takes no objects from here \(remote: Permission to a/b.git denied"
    ):
        storage.push()
    assert storage.push(optional=True).startswith("nothing pushed: origin takes no objects")


@pytest.mark.parametrize("where", ["cache", "folder"])
def test_an_object_damaged_here_is_noticed_and_fetched_again(where: str, laptop: Path) -> None:
    storage.push()
    damaged = objects.place(objects.CACHE if where == "cache" else objects.FOLDER, md5(b"model"))
    damaged.chmod(0o644)
    damaged.write_bytes(b"MODEL")
    other = objects.place(objects.FOLDER if where == "cache" else objects.CACHE, md5(b"model"))
    other.unlink()

    storage.pull(["models"])

    assert objects.place(objects.FOLDER, md5(b"model")).read_bytes() == b"model"
    assert objects.place(objects.CACHE, md5(b"model")).read_bytes() == b"model"


def test_an_object_damaged_before_it_is_pushed_is_named(laptop: Path, origin: Path) -> None:
    damaged = objects.place(objects.CACHE, md5(b"model"))
    damaged.write_bytes(b"MODEL")

    with pytest.raises(
        UserError, match=r"^models/model.onnx \(\w{8}\) is damaged here: delete \.dvc/cache/.*, then make"
    ):
        storage.push()

    assert stored(origin) == set()


def test_an_object_damaged_at_the_host_is_named_and_pushed_again(laptop: Path, origin: Path, clone: Clone) -> None:
    storage.push()
    false = git(laptop, "rev-parse", "HEAD")
    git(laptop, "push", "--quiet", "--no-verify", "--force", "origin", f"{false}:{refs.SPACE}{md5(b'model')}")
    clone("other")

    with pytest.raises(
        SourceError, match=r"^damaged at origin: models/model.onnx \(\w{8}\); .*: ml storage push --again$"
    ):
        storage.pull([])

    os.chdir(laptop)
    storage.push(again=True)
    os.chdir(laptop.parent / "other")
    storage.pull([])
    assert Path("models/model.onnx").read_bytes() == b"model"


def test_what_is_nowhere_is_named(laptop: Path, clone: Clone) -> None:
    storage.push()
    Path("data/a.parquet").unlink()
    make({"data/a.parquet": b"other rows"})
    clone("other")

    with pytest.raises(SourceError, match=r"^neither here nor at origin: data/a.parquet; its maker runs make push"):
        storage.pull([])
    with pytest.raises(UserError, match=r"^neither here nor at origin: data/a.parquet; make pipeline makes"):
        storage.push()
    assert storage.status()[1:] == ["lost: data/a.parquet (make pipeline makes it)"]


def test_a_path_that_is_no_output_is_named(laptop: Path) -> None:
    with pytest.raises(UserError, match=r"^model is no output of dvc.lock: one of data/a.parquet, models/model.onnx"):
        storage.pull(["model"])


def test_a_push_is_stopped_where_its_lock_names_what_nobody_pushed(laptop: Path) -> None:
    with pytest.raises(UserError, match=r"names objects that nobody pushed: data/a.parquet, models/model.onnx, plots"):
        storage.check(["HEAD"])

    storage.push()
    storage.check(["HEAD"])


def test_objects_of_a_fork_are_found_there(
    laptop: Path, origin: Path, clone: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork = tmp_path / "fork.git"
    git(tmp_path, "clone", "--quiet", "--bare", str(origin), str(fork))
    git(laptop, "remote", "set-url", "origin", str(fork))
    storage.push()
    clone("other")

    with pytest.raises(SourceError, match="neither here nor at origin"):
        storage.pull([])
    monkeypatch.setenv("STORAGE_ALSO", fork.as_uri())
    assert storage.pull([]) == "5 of 5 objects pulled"


def test_gc_keeps_what_branches_tags_and_the_newest_versions_name(laptop: Path, origin: Path) -> None:
    kept = {"main": b"on main", "branch": b"on a branch", "tag": b"released", "new": b"in production"}
    for name, content in [("old", b"an old version"), ("lost", b"thrown away"), *kept.items()]:
        make({"models/model.onnx": content}, name)
        storage.push()
        if name == "old":
            git(laptop, "tag", "-a", "-m", name, "model#production#1")
        if name == "new":  # went back to, and its own commit takes no tag
            text = f"Assign production\n\nCommit: {git(laptop, 'rev-parse', 'HEAD')}\n"
            git(laptop, "tag", "-a", "-m", text, "model#production#12", "HEAD~2")
        if name == "tag":
            git(laptop, "tag", "-a", "-m", name, "model@v1.0.0")
        if name == "branch":
            git(laptop, "branch", "work")
    make({"models/model.onnx": kept["main"]}, "back")
    git(laptop, "push", "--quiet", "--no-verify", "--tags", "origin", "work")
    before = stored(origin)

    assert storage.gc(dry_run=True, versions=1) == "2 of 6 objects at origin would be deleted; 4 are in use"
    assert stored(origin) == before
    assert storage.gc(dry_run=False, versions=1) == "2 of 6 objects at origin deleted; 4 are in use"

    assert stored(origin) == {md5(content) for content in kept.values()}


def test_the_first_push_to_where_anyone_can_read_asks_once(
    laptop: Path, origin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refs, "anonymous", lambda remote: True)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    asked = []
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or "n")

    with pytest.raises(UserError, match=r"^nothing was pushed$"):
        storage.push()
    assert stored(origin) == set()
    assert "the data becomes public" in asked[0]

    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(UserError, match="to agree: make push ARGS=--yes"):
        storage.push()
    storage.push(agreed=True)
    make({"models/model.onnx": b"later"})
    storage.push()
    assert len(asked) == 1


def test_a_repository_that_is_a_folder_is_not_public(laptop: Path) -> None:
    assert refs.anonymous("origin") is False


@pytest.fixture
def web(origin: Path) -> Iterator[tuple[str, list[str]]]:
    """Return the address of a host of the repository and the paths that are asked of it; /private/ wants a password."""
    git(origin, "update-server-info")
    asked: list[str] = []

    class Host(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path.startswith("/private/"):
                self.send_response(401)
                self.send_header("WWW-Authenticate", "Basic")
                self.end_headers()
            else:
                super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Host, directory=origin.parent))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("folder", "public"), [("", True), ("/private", False)], ids=["public", "private"])
def test_a_repository_is_public_where_it_opens_without_a_password(
    folder: str, public: bool, laptop: Path, web: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, asked = web
    monkeypatch.setenv("GITHUB_TOKEN", "secret")
    monkeypatch.setenv("GITHUB_SERVER_URL", address)
    git(laptop, "remote", "set-url", "origin", f"{address}{folder}/origin.git")

    assert refs.anonymous("origin") is public

    assert any(path.startswith(f"{folder}/origin.git/info/refs") for path in asked)


def test_the_git_hook_stops_a_push_of_a_lock_whose_objects_nobody_pushed(laptop: Path, origin: Path) -> None:
    hook = Path(refs.__file__).parents[2] / ".githooks/pre-push"
    git(laptop, "config", "core.hooksPath", str(hook.parent))
    written(laptop / ".venv/bin/ml", f'#!/bin/sh\nexec {sys.executable} -m ml.cli "$@"\n'.encode())
    (laptop / ".venv/bin/ml").chmod(0o755)
    git(laptop, "commit", "--quiet", "--allow-empty", "--no-verify", "-m", "later")

    stopped = subprocess.run(["git", "push", "--quiet", "origin", "HEAD:main"], capture_output=True, text=True)

    assert stopped.returncode != 0
    assert "ml: dvc.lock names objects that nobody pushed: data/a.parquet" in stopped.stderr
    assert git(origin, "rev-parse", "main") != git(laptop, "rev-parse", "HEAD")
    storage.push()
    git(laptop, "push", "--quiet", "origin", "HEAD:main")
    assert git(origin, "rev-parse", "main") == git(laptop, "rev-parse", "HEAD")


def test_a_repository_that_does_not_answer_is_one_line(laptop: Path, tmp_path: Path) -> None:
    git(laptop, "remote", "set-url", "origin", str(tmp_path / "gone.git"))

    with pytest.raises(SourceError, match=r"^origin cannot be listed: fatal: "):
        storage.push()


def test_without_a_git_remote_it_says_how_to_add_one(laptop: Path) -> None:
    git(laptop, "remote", "remove", "origin")

    with pytest.raises(UserError, match=r"^git has no remote yet: git remote add origin ADDRESS, then make push$"):
        storage.push()


def test_with_another_default_remote_dvc_does_it_all(laptop: Path, tmp_path: Path, clone: Clone) -> None:
    Path(".dvc/config").write_text(
        CONFIG.replace("= refs", "= own") + f"['remote \"own\"']\n    url = {tmp_path}/own\n"
    )
    git(laptop, "commit", "--quiet", "-am", "move")
    git(laptop, "push", "--quiet", "--no-verify", "origin", "HEAD:main")

    storage.push()
    clone("other")
    storage.pull(["models"])
    assert Path("models/model.onnx").read_bytes() == b"model"
    assert not Path("data").exists()
    storage.pull([])

    assert Path("plots/deep/two.json").read_bytes() == b"2"
    assert stored(tmp_path / "origin.git") == set()
    with pytest.raises(UserError, match="dvc gc --cloud"):
        storage.gc(dry_run=True, versions=1)


@pytest.mark.parametrize(
    "reason",
    [
        "failed to transfer 'ab' - Access Denied: An error occurred (AccessDenied) when calling PutObject",
        "ci@late.iam.gserviceaccount.com does not have storage.objects.create access: 403",
        "This request is not authorized to perform this operation using this permission.",
        "unexpected error - Unable to locate credentials",
    ],
    ids=["S3", "GCS", "Azure", "a fork"],
)
def test_a_cloud_that_takes_nothing_from_here_is_no_failure_where_pushing_is_optional(
    reason: str, laptop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*words: str) -> str:
        raise UserError(f"dvc {words[0]}: {reason}")

    monkeypatch.setattr(storage, "in_refs", lambda: False)
    monkeypatch.setattr(storage, "dvc", refused)

    assert storage.push(optional=True) == f"nothing pushed: dvc push: {reason}"
    with pytest.raises(ReadOnlyError):
        storage.push()


def test_a_cloud_that_does_not_answer_is_a_failure_also_where_pushing_is_optional(
    laptop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: str) -> str:
        raise UserError("dvc push: could not connect to the endpoint")

    monkeypatch.setattr(storage, "in_refs", lambda: False)
    monkeypatch.setattr(storage, "dvc", lost)

    with pytest.raises(UserError, match="could not connect"):
        storage.push(optional=True)


def test_the_package_that_a_kind_of_remote_needs_is_named(
    laptop: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = "ERROR: unexpected error - s3 is supported, but requires 'dvc-s3' to be installed: No module named 'dvc_s3'"
    (tmp_path / "dvc.py").write_text(f"raise SystemExit({said!r})")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(storage, "in_refs", lambda: False)

    with pytest.raises(UserError, match=r"^the remote needs dvc-s3: add it to the group pipeline in pyproject\.toml"):
        storage.pull([])
