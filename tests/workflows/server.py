"""Answers for the fake GitHub: REST under / and /api/v3, git over smart HTTP, and the storage behind artifacts."""

from __future__ import annotations

import base64
import json
import os
import re
import ssl
import subprocess
import threading
import traceback
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from api import ROUTES, Asked, Listing, Route
from github import NEVER, Answer, Call, GitHub, Push, RefusedError, Repository, Token


@contextmanager
def serving(folder: Path) -> Iterator[GitHub]:
    """Yield a server with its state below the folder; it ends with the block."""
    certificate, key = make_certificate(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    # A handshake on accept would let one slow client stop all others.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    port = server.server_address[1]
    github = GitHub(folder, f"https://127.0.0.1:{port}", f"https://localhost:{port}", certificate)
    server.github = github
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield github
    finally:
        server.shutdown()
        server.server_close()
    assert not github.errors, github.errors[0]


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Return a certificate for this machine that trusts itself, and its key."""
    folder.mkdir(parents=True, exist_ok=True)
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=fake-github"
    names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    files = ["-out", str(certificate), "-keyout", str(key)]
    subprocess.run(["openssl", *words.split(), *names, *files], check=True, capture_output=True)
    return certificate, key


class Handler(BaseHTTPRequestHandler):
    """Reads requests and writes answers; what they mean is said elsewhere."""

    protocol_version = "HTTP/1.1"
    server_version = "fake-github"
    # Small answers in two packets wait for each other otherwise.
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        return

    @property
    def github(self) -> GitHub:
        return self.server.github

    def do_GET(self) -> None:
        self.handle_request()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def handle_request(self) -> None:
        body = self.read_body()
        path, _, query_text = self.path.partition("?")
        path = urllib.parse.unquote(path)
        query = dict(urllib.parse.parse_qsl(query_text, keep_blank_values=True))
        token = None
        try:
            token = self.find_token()
            answer = self.canned_answer(path) or self.answer(path, query, body, token)
        except RefusedError as refused:
            answer = refused.answer
        except Exception:
            self.github.errors.append(traceback.format_exc())
            answer = Answer(500, {"message": "Server Error"})
        short = re.sub("^/api/v3", "", path)
        self.github.log.append(Call(self.command, short, query, _parsed(body), token, answer.status))
        self.send(answer)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def find_token(self) -> Token | None:
        """Return the caller's token, None where there is none; refuse an unknown one."""
        scheme, _, value = self.headers.get("Authorization", "").partition(" ")
        if not scheme or self.path.startswith("/blob/"):
            return None
        if scheme.lower() == "basic":
            name, _, password = base64.b64decode(value).decode().partition(":")
            value = password if password not in ("", "x-oauth-basic") else name
        token = self.github.tokens.get(value.strip())
        if token is None:
            raise RefusedError(401, "Bad credentials")
        return token

    def canned_answer(self, path: str) -> Answer | None:
        for canned in self.github.canned:
            if canned.method in ("", self.command) and canned.pattern.search(path) and canned.left[0] > 0:
                canned.left[0] -= 1
                return canned.answer
        return None

    def answer(self, path: str, query: dict[str, str], body: bytes, token: Token | None) -> Answer:
        if found := re.match(r"/([^/]+/[^/]+?)(?:\.git)?(/info/refs|/git-upload-pack|/git-receive-pack)$", path):
            return self.git(found[1], found[2], query, body, token)
        if found := re.match(r"/uploads/repos/([^/]+/[^/]+)/releases/(\d+)/assets$", path):
            return self.upload(found[1], int(found[2]), query, body, token)
        if found := re.match(r"/blob/(\w+)$", path):
            return self.blob(found[1])
        if found := re.match(r"(?:/api/v3)?/app/installations/([^/]+/[^/]+)/access_tokens$", path):
            return self.app(found[1], _parsed(body))
        if found := re.match(r"(?:/api/v3)?/repos/([^/]+/[^/]+)(/.*)?$", path):
            return self.rest(found[1], found[2] or "", query, _parsed(body), token)
        raise RefusedError(404, "Not Found")

    def blob(self, key: str) -> Answer:
        """Hand out a file, and refuse a caller who sends GitHub's token to the storage behind it, as that does."""
        if "Authorization" in self.headers:
            raise RefusedError(401, "InvalidAuthenticationInfo")
        if key not in self.github.blobs:
            raise RefusedError(403, "AuthenticationFailed")
        return Answer(200, raw=self.github.blobs[key].read_bytes(), headers={"Content-Type": "application/zip"})

    def upload(self, name: str, number: int, query: dict[str, str], body: bytes, token: Token | None) -> Answer:
        """Take a file of a release."""
        repository = self.visible(name, token)
        if token is None or not token.may("contents", "write", repository):
            raise RefusedError(403, "Resource not accessible by integration")
        release = repository.releases.get(number)
        if release is None:
            raise RefusedError(404, "Not Found")
        if query["name"] in release.assets:
            raise RefusedError(422, "Validation Failed", errors=[{"field": "name", "code": "already_exists"}])
        release.assets[query["name"]] = body
        return Answer(201, {"name": query["name"], "size": len(body), "state": "uploaded"})

    def app(self, name: str, body: object) -> Answer:
        """Stand in for the two calls, signed with a JWT, by which an app gets its token."""
        assert isinstance(body, dict)
        token = self.github.app_token(self.repository(name, None), body["app"], body["key"], body["permissions"])
        return Answer(201, {"token": token.value, "permissions": token.grants})

    def repository(self, name: str, token: Token | None) -> Repository:
        """Return a repository; one that the caller may not see is not found."""
        found = self.github.repositories.get(name)
        if found is None:
            raise RefusedError(404, "Not Found")
        return found

    def rest(self, name: str, path: str, query: dict, body: object, token: Token | None) -> Answer:
        repository = self.visible(name, token)
        for each in ROUTES:
            found = each.pattern.match(path)
            if each.method == self.command and found:
                self.allow(repository, token, each)
                asked = Asked(repository, token, query, body if isinstance(body, dict) else {}, self.github.address)
                with self.github.lock:
                    return self.paged(each.answer(self.github, asked, **found.groupdict()), query)
        raise RefusedError(404, "Not Found")

    def visible(self, name: str, token: Token | None) -> Repository:
        repository = self.repository(name, token)
        if repository.private and (token is None or token.repository not in (None, name)):
            raise RefusedError(404, "Not Found")
        return repository

    def allow(self, repository: Repository, token: Token | None, each: Route) -> None:
        """Refuse a call without its grant; reading what is public needs none."""
        if each.level == "read" and (not repository.private or each.scopes == ("metadata",)):
            return
        if token is None:
            raise RefusedError(401, "Requires authentication")
        if not any(token.may(scope, each.level, repository) for scope in each.scopes):
            raise RefusedError(403, "Resource not accessible by integration")

    def paged(self, result: object, query: dict[str, str]) -> Answer:
        """Return a page of a listing, with links to the others."""
        if isinstance(result, Answer):
            return result
        if not isinstance(result, Listing):
            return Answer(200, result)
        size, page = min(int(query.get("per_page", 30)), 100), int(query.get("page", 1))
        last = max(-(-len(result.entries) // size), 1)
        address = f"{self.github.address}{self.path.partition('?')[0]}"
        pages = {"prev": page - 1, "next": page + 1, "first": 1, "last": last}
        links = [
            f'<{address}?{urllib.parse.urlencode(query | {"page": str(number)})}>; rel="{name}"'
            for name, number in pages.items()
            if 1 <= number <= last and number != page
        ]
        shown = result.entries[(page - 1) * size : page * size]
        body = {"total_count": len(result.entries), result.key: shown} if result.key else shown
        return Answer(200, body, {"Link": ", ".join(links)} if links else {})

    def git(self, name: str, service: str, query: dict[str, str], body: bytes, token: Token | None) -> Answer:
        """Answer git over smart HTTP, with the rights of the token."""
        pushing = "git-receive-pack" in (query.get("service"), service.strip("/"))
        repository = self.github.repositories.get(name)
        if token is None and (pushing or repository is None or repository.private):
            return Answer(401, {"message": "Requires authentication"}, {"WWW-Authenticate": 'Basic realm="GitHub"'})
        if repository is None or (repository.private and not token.may("contents", "read", repository)):
            raise RefusedError(404, "Repository not found.")
        if pushing and not token.may("contents", "write", repository):
            return Answer(403, raw=f"Permission to {name}.git denied to {token.login}.\n".encode())
        asked = {} if service != "/git-receive-pack" else _commands(body)
        answer = self.http_backend(repository, service, body, token)
        if asked:
            self.note(repository, asked, token)
        return answer

    def http_backend(self, repository: Repository, service: str, body: bytes, token: Token | None) -> Answer:
        environment = os.environ | {
            "GIT_PROJECT_ROOT": str(repository.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "PATH_INFO": service,
            "QUERY_STRING": self.path.partition("?")[2],
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "REMOTE_ADDR": "127.0.0.1",
            "MAY_CHANGE_WORKFLOWS": "yes" if token and token.may("workflows", "write", repository) else "no",
            "REMOTE_USER": token.login if token else "",
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
        status = int(headers.pop("Status", "200").split(" ")[0])
        return Answer(status if head else 500, raw=content or done.stderr[:0], headers=headers)

    def note(self, repository: Repository, asked: dict[str, tuple[str, str]], token: Token) -> None:
        """Record the refs that a push moved, and what follows from it."""
        with self.github.lock:
            now = repository.refs()
            for ref, (old, new) in asked.items():
                if now.get(ref, NEVER) == new:
                    kept = (None if sha == NEVER else sha for sha in (old, new))
                    self.github.pushes.append(Push(repository.name, ref, *kept, token))
        if any(ref.startswith("refs/heads/") for ref in asked):
            for each in (repository, repository.parent):
                if each is not None:
                    self.github.refresh(each)

    def send(self, answer: Answer) -> None:
        json_body = b"" if answer.body is None else json.dumps(answer.body).encode()
        content = json_body if answer.raw is None else answer.raw
        self.send_response(answer.status)
        for name, value in ({"Content-Type": "application/json; charset=utf-8"} | answer.headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()


def _parsed(body: bytes) -> object:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _commands(body: bytes) -> dict[str, tuple[str, str]]:
    """Return by ref the old and the new hash that a push asks for: the lines before the first flush."""
    asked, at = {}, 0
    while (size := int(body[at : at + 4] or b"0", 16)) >= 4:
        line = body[at + 4 : at + size].split(b"\0")[0].decode().strip()
        if not line.startswith(("shallow ", "push-cert")):
            old, new, ref = line.split(" ", 2)
            asked[ref] = (old, new)
        at += size
    return asked
