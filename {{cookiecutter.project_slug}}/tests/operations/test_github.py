from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from host import Call, Hub, git, serving

from ml.errors import SourceError, UserError
from ml.operations.github import DeniedError, GitHub, NotFoundError


@pytest.fixture
def clone_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that makes a repository with such an origin and goes there, on a machine without gh."""

    def made(address: str) -> None:
        git(tmp_path, "init", "--quiet", "clone")
        git(tmp_path / "clone", "remote", "add", "origin", address)
        monkeypatch.chdir(tmp_path / "clone")
        monkeypatch.setattr("shutil.which", lambda name: None)

    return made


def test_a_workflow_says_which_repository_and_which_api(hub: Hub) -> None:
    hub.on("GET .", {"id": 1, "name": "late"})

    github = GitHub.open()

    assert github == GitHub(hub.root, "octo/late", "secret")
    assert github.get(".") == {"id": 1, "name": "late"}
    assert hub.calls[0].headers["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("address", "root", "name"),
    [
        ("https://github.com/octo/late.git", "https://api.github.com", "octo/late"),
        ("https://github.com/octo/late", "https://api.github.com", "octo/late"),
        ("https://github.com/octo/late/", "https://api.github.com", "octo/late"),
        ("https://someone:word@github.com/octo/late.git", "https://api.github.com", "octo/late"),
        ("git@github.com:octo/late.git", "https://api.github.com", "octo/late"),
        ("ssh://git@github.com:22/octo/late.git", "https://api.github.com", "octo/late"),
        ("git@git.example.org:octo/late.x.git", "https://git.example.org/api/v3", "octo/late.x"),
        ("https://git.example.org:8443/octo/late", "https://git.example.org/api/v3", "octo/late"),
    ],
)
def test_on_a_laptop_origin_says_it(address: str, root: str, name: str, clone_of: Callable[[str], None]) -> None:
    clone_of(address)

    assert GitHub.open() == GitHub(root, name, "")


@pytest.mark.parametrize("address", ["/srv/late.git", "file:///srv/late.git", "../late.git", "https://github.com/late"])
def test_an_origin_that_is_not_on_the_web_is_one_line(address: str, clone_of: Callable[[str], None]) -> None:
    clone_of(address)

    with pytest.raises(UserError, match=r"^origin is no address of a repository on GitHub: git remote add origin ADD"):
        GitHub.open()


def test_without_an_origin_the_line_says_so(clone_of: Callable[[str], None]) -> None:
    clone_of("https://github.com/octo/late")
    git(Path.cwd(), "remote", "remove", "origin")

    with pytest.raises(UserError, match=r"^[^\n]*origin[^\n]*$"):
        GitHub.open()


def test_the_token_of_the_environment_comes_before_the_one_that_gh_keeps(
    clone_of: Callable[[str], None], program: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    clone_of("https://git.example.org/octo/late")
    gh = program(
        "gh",
        "import sys; print('kept' if sys.argv[1:] == ['auth', 'token', '--hostname', sys.argv[-1]] "
        "and sys.argv[-1] == 'git.example.org' else 'other')",
    )
    monkeypatch.setattr("shutil.which", lambda name: str(gh))

    assert GitHub.open().token == "kept"
    monkeypatch.setenv("GH_TOKEN", "mine")
    assert GitHub.open().token == "mine"
    monkeypatch.setenv("GITHUB_TOKEN", "the workflow's")
    assert GitHub.open().token == "the workflow's"


def test_without_a_login_nothing_is_sent_as_a_token(
    hub: Hub, program: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    program("gh", "import sys; sys.exit('not logged in')")
    monkeypatch.delenv("GITHUB_TOKEN")
    hub.on("GET .", {"id": 1})

    GitHub.open().get(".")

    assert "Authorization" not in hub.calls[0].headers


def test_a_netrc_does_not_replace_the_token(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    hub.on("GET .", {"id": 1})

    GitHub.open().get(".")

    assert hub.calls[0].headers["Authorization"] == "Bearer secret"


@pytest.mark.parametrize("key", [None, "jobs"])
def test_a_list_is_read_to_its_last_page(key: str | None, hub: Hub) -> None:
    entries = [{"id": at} for at in range(250)]
    hub.on("GET jobs", {key: entries} if key else entries)

    found = [*GitHub.open().pages("jobs", key, state="open")]

    assert found == entries
    assert [(call.query["state"], call.query.get("page")) for call in hub.calls] == [
        ("open", None),
        ("open", "2"),
        ("open", "3"),
    ]


def test_no_page_is_asked_for_before_it_is_needed(hub: Hub) -> None:
    hub.on("GET jobs", [{"id": at} for at in range(250)])

    assert next(GitHub.open().pages("jobs"))["id"] == 0
    assert len(hub.calls) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, DeniedError), (403, DeniedError), (404, NotFoundError), (422, UserError), (502, UserError)],
)
def test_a_refusal_is_one_line_with_githubs_reason(status: int, kind: type[UserError], hub: Hub) -> None:
    hub.on("GET pulls", (status, {}, {"message": "Not\n::set-output today"}))

    with pytest.raises(kind, match=rf"^GitHub refuses GET pulls \({status}\): Not ::set-output today$") as caught:
        GitHub.open().get("pulls")

    assert type(caught.value) is kind


@pytest.mark.parametrize("body", [b"<html>gateway</html>", b"[1]", b"null", b"\xff", b""])
def test_a_refusal_without_a_reason_is_one_line_too(body: bytes, hub: Hub) -> None:
    hub.on("GET pulls", (503, {}, body))

    with pytest.raises(UserError, match=r"^GitHub refuses GET pulls \(503\): Service Unavailable$"):
        GitHub.open().get("pulls")


def test_an_answer_that_is_no_json_is_one_line(hub: Hub) -> None:
    hub.on("GET pulls", b"<html>sign in to the network</html>")

    with pytest.raises(UserError, match=r"^GitHub's answer is not JSON: http://127.0.0.1:\d+/repos/octo/late/pulls$"):
        [*GitHub.open().pages("pulls")]


def test_no_answer_is_one_line_without_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        github = GitHub(f"http://127.0.0.1:{unused.getsockname()[1]}", "octo/late", "secret")

        with pytest.raises(
            UserError, match=r"^GitHub does not answer \(ConnectionError\): GET http://[^\n]*/pulls$"
        ) as e:
            github.get("pulls")

    assert "secret" not in str(e.value)


def test_what_is_sent_is_json_and_an_empty_answer_is_none(hub: Hub) -> None:
    hub.on("POST dispatches", (204, {}, b""))
    hub.on("PATCH comments/1", {"id": 1})

    github = GitHub.open()

    assert github.send("POST", "dispatches", {"ref": "a\nb"}) is None
    assert github.send("PATCH", "comments/1", {"body": "é"}) == {"id": 1}
    assert hub.sent() == [("POST", "dispatches", {"ref": "a\nb"}), ("PATCH", "comments/1", {"body": "é"})]


def test_a_redirect_to_another_host_does_not_take_the_token_along(hub: Hub, tmp_path: Path) -> None:
    with serving() as elsewhere:
        hub.on("GET zip", (302, {"Location": f"{elsewhere.root.replace('127.0.0.1', 'localhost')}/blob"}, b""))
        elsewhere.on("GET /blob", b"content")

        GitHub.open().download("zip", tmp_path / "file", 100)

    assert (tmp_path / "file").read_bytes() == b"content"
    assert hub.calls[0].headers["Authorization"] == "Bearer secret"
    assert [call.headers.get("Authorization") for call in elsewhere.calls] == [None]


def test_a_download_ends_where_it_is_too_large(hub: Hub, tmp_path: Path) -> None:
    hub.on("GET zip", b"x" * 1_000_000)

    with pytest.raises(SourceError, match=r"^zip is larger than 1 MB: it is not read$"):
        GitHub.open().download("zip", tmp_path / "file", 999_999)
    assert (tmp_path / "file").stat().st_size < 1_000_000

    GitHub.open().download("zip", tmp_path / "file", 1_000_000)
    assert (tmp_path / "file").stat().st_size == 1_000_000


def test_a_download_that_breaks_off_is_one_line(hub: Hub, tmp_path: Path) -> None:
    def half(call: Call) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Length": "1000"}, b"x" * 500

    hub.on("GET zip", half)

    with pytest.raises(UserError, match=r"^GitHub stopped answering \(ChunkedEncodingError\): GET zip$"):
        GitHub.open().download("zip", tmp_path / "file", 10_000)
