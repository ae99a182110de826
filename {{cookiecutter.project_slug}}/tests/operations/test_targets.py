"""Where images run: what is asked of an engine or of kubectl, and what is said when it goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ml.errors import UserError
from ml.operations import targets
from ml.operations.targets import Wanted, compose, kubernetes, none

Program = Callable[[str, str], Path]
OLD, NEW, BROKEN = (f"ghcr.io/octo/late@sha256:{digit * 64}" for digit in "abc")
MODEL = "d" * 64
# An engine whose state is a file: which image the service runs, and what it was told.
ENGINE = """
import json, os, pathlib, sys
state = pathlib.Path({folder!r}, "state.json")
words = sys.argv[1:]
with open({folder!r} + "/calls", "a") as file:
    file.write(" ".join(words) + "\\n")
now = json.loads(state.read_text()) if state.exists() else None
if words[0] == "compose":
    words = [word for word in words[1:] if not word.startswith("--project-name") and not word.startswith("--file")]
    if words[0] == "up" and words[-1] == "service":
        told = [f"{{key}}={{os.environ[key]}}" for key in ("ML_COMMIT", "ML_STAGE", "ML_VERSION")]
        state.write_text(json.dumps({{"image": os.environ["IMAGE"], "told": told}}))
    elif words[0] == "rm":
        state.unlink()
    elif words[0] == "ps" and now:
        print("c0ffee")
elif words[0] == "inspect":
    runs = now["image"] != {broken!r}
    print(json.dumps([{{"Config": {{"Image": now["image"], "Env": now["told"]}}, "State": {{"Running": runs}}}}]))
elif words[0] == "logs":
    print("ml: model.onnx is damaged")
elif words[0] == "exec":
    print(pathlib.Path({folder!r}, "answers").read_text())
"""


def wanted(image: str = NEW, version: str = "") -> Wanted:
    return Wanted("staging", image, MODEL, "e" * 40, version)


def answers(**changes: Any) -> str:
    """Return what a sound service lets ASK print, with some answers changed."""
    about = {"model": MODEL, "commit": "e" * 40, "stage": "staging", "version": None}
    due = {"model": MODEL, "predictions": [{"score": 0.25, "decision": False}]}
    found = {"ready": [200, ""], "info": [200, about], "good": [200, due], "bad": [400, {}]}
    return json.dumps(found | {"due": due} | changes)


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pyproject.toml").write_text('[project]\nname = "late"\n')
    for name in ("DEPLOY_TARGET", "DOCKER_HOST", "SSH_KEY", "KUBE_CONFIG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def engine(program: Program, tmp_path: Path) -> Path:
    """Return the folder of an engine's state."""
    program("docker", ENGINE.format(folder=str(tmp_path), broken=BROKEN))
    (tmp_path / "answers").write_text(answers())
    return tmp_path


def test_nothing_is_deployed_unless_a_target_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert targets.chosen() is none
    monkeypatch.setenv("DEPLOY_TARGET", "compose")
    assert targets.chosen() is compose
    monkeypatch.setenv("DEPLOY_TARGET", "Lambda")
    with pytest.raises(UserError, match=r"^DEPLOY_TARGET=Lambda must be one of none, compose, kubernetes: change"):
        targets.chosen()


@pytest.mark.parametrize("name", targets.NAMES)
def test_every_target_has_the_three_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOY_TARGET", name)

    steps = {step for step in vars(targets.Target) if not step.startswith("_")}

    assert steps == {"plan", "apply", "check"}
    assert all(callable(getattr(targets.chosen(), step)) for step in steps)


@pytest.mark.parametrize(
    "image", ["ghcr.io/octo/late:v1.2.0", "ghcr.io/Octo/late@sha256:" + "a" * 64, "late@sha256:ab"]
)
def test_an_image_without_a_digest_is_refused(image: str) -> None:
    with pytest.raises(UserError, match=r"names no image by digest: give REPOSITORY@sha256:…$"):
        wanted(image)


def test_the_place_of_a_stage_is_a_name_that_kubernetes_takes() -> None:
    assert wanted().place == "late-staging"
    Path("pyproject.toml").write_text(f'[project]\nname = "{"a" * 54}-{"b" * 8}"\n')
    assert wanted().place == f"{'a' * 54}-staging"


def test_a_sound_service_is_told_with_its_prediction() -> None:
    said = targets.judge(answers(), wanted())

    assert said == f'late-staging answers as {MODEL[:12]}: {{"score": 0.25, "decision": false}} for the example'


@pytest.mark.parametrize(
    ("changes", "said"),
    {
        "not-ready": ({"ready": [503, ""]}, "/readyz says 503"),
        "another-model": ({"info": [200, {"model": "f" * 64}]}, f"its model is {'f' * 64}, not {MODEL}"),
        "another-answer": ({"good": [200, {"predictions": []}]}, 'it predicts 200 {"predictions": []} for its own'),
        "an-error": ({"good": [500, {}]}, "it predicts 500 {} for its own example"),
        "takes-everything": ({"bad": [200, {}]}, "it answers 200 to a field that does not exist"),
    }.values(),
    ids=["not-ready", "another-model", "another-answer", "an-error", "takes-everything"],
)
def test_each_fault_of_a_service_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        targets.judge(answers(**changes), wanted())

    assert said in str(error.value)


@pytest.mark.parametrize("printed", ["", "Traceback", "[]", '{"ready": [200, ""], "info": [200, "<html>"]}'])
def test_what_is_no_answer_of_a_service_is_one_line(printed: str) -> None:
    with pytest.raises(UserError, match=r"^late-staging answers .*: look at its log$"):
        targets.judge(printed, wanted())


def test_compose_replaces_an_image_and_then_renews_what_watches_it(engine: Path) -> None:
    compose.apply(wanted(OLD))

    assert compose.plan(wanted(OLD)) == f"late-staging runs {OLD} already"
    assert compose.plan(wanted(NEW)) == f"late-staging runs {OLD}, and would run {NEW}"
    assert compose.apply(wanted(NEW)) == f"late-staging runs {NEW}"
    assert compose.check(wanted(NEW)).startswith("late-staging answers as ")

    ups = [line.split(" up ")[1] for line in (engine / "calls").read_text().splitlines() if " up " in line]
    assert ups[-2:] == ["--detach --no-deps service", "--detach --build --remove-orphans"]


def test_compose_puts_back_what_ran_before_with_what_it_was_told(engine: Path) -> None:
    compose.apply(wanted(OLD, version="v1.2.0"))

    with pytest.raises(UserError) as error:
        compose.apply(wanted(BROKEN, version="v1.3.0"))

    assert str(error.value) == f"{BROKEN}: it ends at once: ml: model.onnx is damaged; {OLD} runs again"
    kept = json.loads((engine / "state.json").read_text())
    assert (kept["image"], kept["told"][-1]) == (OLD, "ML_VERSION=v1.2.0")


def test_compose_leaves_nothing_of_a_first_image_that_does_not_start(engine: Path) -> None:
    with pytest.raises(UserError, match=r"; nothing ran before, so nothing runs now$"):
        compose.apply(wanted(BROKEN))

    assert not (engine / "state.json").exists()
    with pytest.raises(UserError, match=r"^late-staging runs nothing, not ghcr.io"):
        compose.check(wanted(NEW))


def test_compose_does_not_deploy_to_a_runner_that_ends(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_ENVIRONMENT", "github-hosted")

    with pytest.raises(UserError, match=r"^this runner ends with its job: set the variable DEPLOY_HOST"):
        compose.apply(wanted())

    monkeypatch.setenv("DOCKER_HOST", "ssh://deploy@machine")
    assert compose.apply(wanted()) == f"late-staging runs {NEW}"


def test_compose_lays_a_stages_own_file_over_the_common_one(engine: Path) -> None:
    compose.plan(wanted())
    compose.FOLDER.mkdir(parents=True)
    (compose.FOLDER / "compose.staging.yaml").touch()
    compose.plan(wanted())

    first, *_, last = [line for line in (engine / "calls").read_text().splitlines() if " ps " in line]
    assert "--file=deploy/compose/compose.yaml --file=" not in first
    assert "--file=deploy/compose/compose.yaml --file=deploy/compose/compose.staging.yaml" in last


def test_a_machine_without_engine_or_kubectl_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    (kubernetes.OVERLAYS / "staging").mkdir(parents=True)

    with pytest.raises(UserError, match="no container engine here: install docker or podman"):
        compose.apply(wanted())
    with pytest.raises(UserError, match="kubectl is not on this machine: install it, or choose another DEPLOY_TARGET"):
        kubernetes.apply(wanted())


def test_kubernetes_without_manifests_says_where_they_come_from() -> None:
    with pytest.raises(UserError, match=r"^deploy/kubernetes/overlays/staging does not exist: .* include_kubernetes"):
        kubernetes.plan(wanted())


def test_a_kustomization_pins_digest_namespace_and_what_the_service_says() -> None:
    found = kubernetes.pinned(wanted(version="v1.2.0"))

    assert found["images"] == [{"name": "model-service", "newName": "ghcr.io/octo/late", "digest": NEW.split("@")[1]}]
    assert found["namespace"] == "late-staging"
    (container,) = json.loads(found["patches"][0]["patch"])["spec"]["template"]["spec"]["containers"]
    assert {one["name"]: one["value"] for one in container["env"]} == {
        "ML_COMMIT": "e" * 40,
        "ML_STAGE": "staging",
        "ML_VERSION": "v1.2.0",
    }
