from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest
from conftest import Program
from host import Call, Hub, written
from oci import Store, push

from ml.errors import SourceError, UserError
from ml.operations.registry import INDEX, MANIFEST, TITLE, MovedError, Registry, kept_login, sha256

KIND = "application/vnd.ml.delivery.v1+json"
DIGEST = f"sha256:{'5' * 64}"
MADE = json.dumps({"mediaType": MANIFEST, "layers": []}).encode()


@pytest.fixture
def registry(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Registry:
    """Return a repository in a real registry."""
    monkeypatch.setenv("REGISTRY", store.image)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return Registry.open()


@pytest.fixture
def front(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """Return a registry that answers as it is told, for what docker-registry does not do."""
    monkeypatch.setenv("REGISTRY", f"{hub.root.removeprefix('http://')}/octo/late")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    for name in ("USER", "PASSWORD"):
        monkeypatch.delenv(f"REGISTRY_{name}", raising=False)
    return hub


def test_a_tag_leads_to_the_very_digest(registry: Registry) -> None:
    first, second = push(registry, "first"), push(registry, "second")
    assert registry.resolve("staging") is None

    for digest in (first, second, second):
        registry.tag(digest, "staging")
        assert (registry.resolve("staging"), registry.resolve(digest)) == (digest, digest)

    with pytest.raises(
        SourceError, match=r"^127\.0\.0\.1:\d+/octo/late has no sha256:555555555555: it was deleted, or n"
    ):
        registry.tag(DIGEST, "staging")
    assert registry.resolve("staging") == second


def test_files_lie_beside_an_image_and_come_back_as_they_were(registry: Registry, tmp_path: Path) -> None:
    digest = push(registry, "image")
    files = {
        "record.json": written(tmp_path / "a", b"{}"),
        "model.onnx": written(tmp_path / "b", os.urandom(3_000_000)),
    }

    made = registry.attach(digest, KIND, files)

    assert registry.attach(digest, KIND, files) == made
    assert [entry["digest"] for entry in registry.referrers(digest, KIND)] == [made]
    assert registry.referrers(digest, "application/other") == []
    assert registry.referrers(push(registry, "other image"), KIND) == []
    found = registry.files(made)
    assert registry.read(found["record.json"]) == b"{}"
    registry.fetch(found["model.onnx"], tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == (tmp_path / "b").read_bytes()
    second = registry.attach(digest, KIND, {"record.json": written(tmp_path / "a", b"[]")})
    assert [entry["digest"] for entry in registry.referrers(digest, KIND)] == [made, second]
    assert registry.resolve(digest) == digest


def test_nothing_lies_beside_an_image_that_is_not_there(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="it was deleted, or never pushed"):
        registry.attach(DIGEST, KIND, {"record.json": written(tmp_path / "a", b"{}")})


def test_damaged_bytes_are_not_taken(registry: Registry, store: Store, tmp_path: Path) -> None:
    digest = push(registry, "image")
    made = registry.attach(digest, KIND, {"model.onnx": written(tmp_path / "b", b"good")})
    layer = registry.files(made)["model.onnx"]
    for path in store.folder.rglob(f"{layer['digest'].removeprefix('sha256:')}/data"):
        path.write_bytes(b"evil")

    with pytest.raises(SourceError, match="gives other bytes than sha256:"):
        registry.read(layer)
    with pytest.raises(SourceError, match=r"gives other bytes than sha256:\w{12} for model\.onnx$"):
        registry.fetch(layer, tmp_path / "out/model.onnx")

    assert [*(tmp_path / "out").iterdir()] == []


def test_a_registry_that_is_down_is_one_line(registry: Registry, store: Store) -> None:
    store.stop()

    with pytest.raises(UserError, match=r"^127\.0\.0\.1:\d+ does not answer \(ConnectionError\): try again later$"):
        registry.resolve("staging")

    store.start()
    assert registry.resolve("staging") is None


def test_a_registry_that_is_busy_for_a_moment_is_asked_again(front: Hub) -> None:
    busy = [503, 429]
    front.on(
        "GET /v2/octo/late/manifests/staging",
        lambda _: (busy.pop(), {}, b"") if busy else (200, {"Content-Type": MANIFEST}, MADE),
    )

    assert Registry.open().resolve("staging") == sha256(MADE)

    assert len(front.calls) == 3


def test_a_manifest_with_another_digest_is_not_believed(front: Hub) -> None:
    front.on(f"GET /v2/octo/late/manifests/{DIGEST}", (200, {"Content-Type": MANIFEST}, MADE))

    with pytest.raises(SourceError, match=r"gives other bytes than sha256:555555555555: do not trust this registry$"):
        Registry.open().resolve(DIGEST)


def test_a_tag_that_somebody_else_moves_at_once_is_told(front: Hub) -> None:
    digest = sha256(MADE)
    front.on(f"GET /v2/octo/late/manifests/{digest}", (200, {"Content-Type": MANIFEST}, MADE))
    front.on("PUT /v2/octo/late/manifests/staging", (201, {}, b""))
    front.on("GET /v2/octo/late/manifests/staging", (200, {"Content-Type": MANIFEST}, b"{}"))

    with pytest.raises(
        MovedError, match=f"staging leads to {sha256(b'{}')} and not to {digest}: somebody else moves it"
    ):
        Registry.open().tag(digest, "staging")


@pytest.mark.parametrize("status", [401, 403])
def test_a_package_that_is_not_connected_says_what_to_do(front: Hub, status: int) -> None:
    challenge = {"WWW-Authenticate": 'Basic realm="here"'} if status == 401 else {}
    front.on("GET /v2/octo/late/manifests/staging", (status, challenge, {"errors": [{"code": "DENIED"}]}))

    with pytest.raises(
        UserError, match=rf"\({status}\): this token may not; on ghcr\.io connect the package with the re"
    ):
        Registry.open().resolve("staging")


def test_a_registry_that_keeps_its_files_elsewhere_shows_no_token_there(
    front: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGISTRY_USER", "ada")
    monkeypatch.setenv("REGISTRY_PASSWORD", "secret")
    digest = sha256(MADE)
    elsewhere = front.root.replace("127.0.0.1", "localhost")

    def guarded(call: Call) -> object:
        fits = call.headers.get("Authorization")
        return (307, {"Location": f"{elsewhere}/kept"}, b"") if fits else (401, {"WWW-Authenticate": "Basic"}, b"")

    front.on(f"GET /v2/octo/late/blobs/{digest}", guarded)
    front.on("GET /kept", MADE)

    assert Registry.open().read({"digest": digest}) == MADE

    assert "Authorization" not in front.calls[-1].headers


def test_what_else_a_registry_refuses_is_told_in_its_words(front: Hub) -> None:
    told = {"errors": [{"code": "UNSUPPORTED", "message": "read-only\nmode"}]}
    front.on("GET /v2/octo/late/manifests/staging", (405, {}, told))
    with pytest.raises(UserError, match=r"refuses GET octo/late/manifests/staging \(405\): read-only mode$"):
        Registry.open().resolve("staging")

    front.on("GET /v2/octo/late/manifests/staging", (400, {}, b"<html>"))
    with pytest.raises(UserError, match=r"\(400\): Bad Request$"):
        Registry.open().resolve("staging")


def test_a_token_is_asked_for_as_the_registry_says(front: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_USER", "ada")
    monkeypatch.setenv("REGISTRY_PASSWORD", "secret")
    tokens = {"repository:octo/late:pull": "reads", "repository:octo/late:pull,push": "writes"}

    def guarded(scope: str, answer: object) -> object:
        realm = f'Bearer realm="{front.root}/token",service="late",scope="{scope}"'

        def answered(call: Call) -> object:
            fits = call.headers.get("Authorization") == f"Bearer {tokens[scope]}"
            return answer if fits else (401, {"WWW-Authenticate": realm}, {"errors": []})

        return answered

    digest = sha256(MADE)
    kept = {"staging": b"{}"}
    front.on("GET /token", lambda call: {"token": tokens[call.query["scope"]], "expires_in": 300})
    found = (200, {"Content-Type": MANIFEST}, MADE)
    front.on(f"GET /v2/octo/late/manifests/{digest}", guarded("repository:octo/late:pull", found))
    at = "/v2/octo/late/manifests/staging"
    front.on(f"GET {at}", lambda _: (200, {"Content-Type": MANIFEST}, kept["staging"]))
    front.on(f"PUT {at}", guarded("repository:octo/late:pull,push", (201, {}, b"")))
    kept["staging"] = b"{}"

    registry = Registry.open()
    with pytest.raises(MovedError):
        registry.tag(digest, "staging")

    asked = [call for call in front.calls if call.path == "/token"]
    assert [call.query["scope"].rpartition(":")[2] for call in asked] == ["pull", "pull,push"]
    assert {call.headers["Authorization"] for call in asked} == {f"Basic {base64.b64encode(b'ada:secret').decode()}"}
    assert {call.query["service"] for call in asked} == {"late"}
    put = [call for call in front.calls if call.method == "PUT"]
    assert json.loads(MADE) == put[-1].body


def test_the_password_goes_to_no_realm_without_tls(front: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_USER", "ada")
    monkeypatch.setenv("REGISTRY_PASSWORD", "secret")
    challenge = {"WWW-Authenticate": 'Bearer realm="http://elsewhere.test/token",service="late"'}
    front.on("GET /v2/octo/late/manifests/staging", (401, challenge, b""))

    with pytest.raises(UserError, match="asks for a login in a way that is not known here: Bearer realm="):
        Registry.open().resolve("staging")

    assert all("Authorization" not in call.headers for call in front.calls)


def test_a_login_that_is_asked_for_plainly_is_given(front: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_USER", "ada")
    monkeypatch.setenv("REGISTRY_PASSWORD", "secret")
    due = f"Basic {base64.b64encode(b'ada:secret').decode()}"
    front.on(
        "GET /v2/octo/late/manifests/staging",
        lambda call: (
            (200, {"Content-Type": MANIFEST}, MADE)
            if call.headers.get("Authorization") == due
            else (401, {"WWW-Authenticate": 'Basic realm="late"'}, b"")
        ),
    )

    assert Registry.open().resolve("staging") == sha256(MADE)


def test_a_token_that_is_not_given_says_what_to_do(front: Hub) -> None:
    challenge = {"WWW-Authenticate": f'Bearer realm="{front.root}/token",service="late"'}
    front.on("GET /v2/octo/late/manifests/staging", (401, challenge, b""))
    front.on("GET /token", (403, {}, b""))

    with pytest.raises(UserError, match=r"gives no token for .*octo/late \(403\): this token may not; on ghcr"):
        Registry.open().resolve("staging")


def test_the_referrers_api_is_used_where_there_is_one(front: Hub, tmp_path: Path) -> None:
    at = f"/v2/octo/late/referrers/{DIGEST}"
    entries = [{"digest": f"sha256:{n}", "artifactType": kind} for n, kind in enumerate((KIND, "other", KIND))]
    pages = {"": entries[:2], "2": entries[2:]}

    def answered(call: Call) -> object:
        page = call.query.get("page", "")
        link = {} if page else {"Link": f'<{at}?page=2>; rel="next"'}
        return 200, {"Content-Type": INDEX, **link}, json.dumps({"manifests": pages[page]}).encode()

    front.on(f"GET {at}", answered)

    assert [entry["digest"] for entry in Registry.open().referrers(DIGEST, KIND)] == ["sha256:0", "sha256:2"]


@pytest.mark.parametrize("status", [303, 404, 406])
def test_where_there_is_no_referrers_api_the_tag_that_stands_for_it_is_read(front: Hub, status: int) -> None:
    front.on(f"GET /v2/octo/late/referrers/{DIGEST}", (status, {"Location": "/v2/elsewhere"}, b""))
    index = json.dumps({"manifests": [{"digest": "sha256:1", "artifactType": KIND}]}).encode()
    front.on(f"GET /v2/octo/late/manifests/{DIGEST.replace(':', '-')}", (200, {"Content-Type": INDEX}, index))

    assert [entry["digest"] for entry in Registry.open().referrers(DIGEST, KIND)] == ["sha256:1"]
    assert "/v2/elsewhere" not in [call.path for call in front.calls]


def test_a_registry_with_the_referrers_api_gets_no_tag(front: Hub, tmp_path: Path) -> None:
    digest = sha256(MADE)
    front.on(f"GET /v2/octo/late/manifests/{digest}", (200, {"Content-Type": MANIFEST}, MADE))
    for content in (b"{}",):
        front.on(f"HEAD /v2/octo/late/blobs/{sha256(content)}", (200, {}, b""))

    def put(call: Call) -> object:
        return 201, {"OCI-Subject": digest}, b""

    layer = {"mediaType": "application/json", "digest": sha256(b"{}"), "size": 2, "annotations": {TITLE: "a.json"}}
    config = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": sha256(b"{}"), "size": 2}
    subject = {"mediaType": MANIFEST, "digest": digest, "size": len(MADE)}
    due = {"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": KIND, "config": config}
    content = json.dumps({**due, "layers": [layer], "subject": subject}).encode()
    front.on(f"PUT /v2/octo/late/manifests/{sha256(content)}", put)

    assert Registry.open().attach(digest, KIND, {"a.json": written(tmp_path / "a.json", b"{}")}) == sha256(content)

    assert [call.path.rpartition("/")[2] for call in front.calls if call.method == "PUT"] == [sha256(content)]


@pytest.mark.parametrize("image", ["ghcr.io", "Ghcr.io/octo/late", "ghcr.io/octo/late:tag", "ghcr.io/octo late", "/x"])
def test_a_repository_that_is_none_is_refused(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY", image)

    with pytest.raises(
        UserError, match=f"^REGISTRY={image} is no repository of images: HOST/OWNER/NAME in lower case$"
    ):
        Registry.open()


def test_without_a_variable_the_package_of_the_repository_is_it(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REGISTRY", raising=False)
    monkeypatch.setenv("GITHUB_REPOSITORY", "Octo/Late.Flights")

    assert Registry.open().image == "ghcr.io/octo/late.flights"


def test_a_login_of_docker_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Program) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert kept_login("ghcr.io") is None

    auths = {"ghcr.io": {"auth": base64.b64encode(b"ada:se:cret").decode()}, "https://index.docker.io/v1/": {}}
    written(tmp_path / "config.json", json.dumps({"auths": auths}).encode())
    assert kept_login("ghcr.io") == ("ada", "se:cret")
    assert kept_login("docker.io") is None
    assert kept_login("quay.io") is None

    told = "import json, sys; print(json.dumps({'Username': 'bob', 'Secret': sys.stdin.read()}))"
    program("docker-credential-safe", told)
    written(tmp_path / "config.json", json.dumps({"auths": auths, "credsStore": "safe"}).encode())
    assert kept_login("docker.io") == ("bob", "https://index.docker.io/v1/")
    written(tmp_path / "config.json", b"{")
    assert kept_login("ghcr.io") is None
