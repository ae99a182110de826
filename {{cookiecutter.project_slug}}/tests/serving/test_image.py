from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ml import cli
from ml.errors import UserError
from ml.serving import build, image
from ml.serving.request import Scorer

ENGINE = """\
#!/bin/sh
echo "$@" >> "$LOG"
case "$1 $2" in
    "inspect --type=image") cat "$ANSWERS/image.json" ;;
    "inspect "*) cat "$ANSWERS/container.json" ;;
    "run "*) echo c0ffee ;;
    "logs "*) echo "no such model" >&2 ;;
    "exec c0ffee") case "$3" in sh) cat "$ANSWERS/tools" ;; *) cat "$ANSWERS/asked.json" ;; esac ;;
    "build "*) test ! -e "$ANSWERS/broken" || { echo "step 4"; echo "no space left on device" >&2; exit 1; } ;;
esac
"""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: Path) -> Path:
    """A container engine that notes what it is told and answers what lies in its folder; all is well at first."""
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / "docker").write_text(ENGINE)
    (folder / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("LOG", str(folder / "log"))
    monkeypatch.setenv("ANSWERS", str(folder))
    monkeypatch.setenv("BENTOML_HOME", str(project / ".bentoml"))
    monkeypatch.setattr(build, "build", lambda root: "late:abc")
    scorer = Scorer(project / build.MODEL)
    answer = scorer.predictions(scorer.score(scorer.contract.columns([scorer.contract.example()]).columns))
    (folder / "image.json").write_text(json.dumps([{"Size": 300_000_000, "Config": {"User": "1034:1034"}}]))
    (folder / "container.json").write_text(json.dumps([{"State": {"Running": True}}]))
    (folder / "tools").write_text("")
    asked = {"info": [200, {"model": scorer.digest}], "bad": [400, {}]}
    good = [200, {"model": scorer.digest, "predictions": answer}]
    (folder / "asked.json").write_text(json.dumps(asked | {"good": good}))
    return folder


def result(project: Path) -> dict[str, Any]:
    return json.loads((project / "reports/image/result.json").read_text())


def test_a_good_image_passes_and_says_so_to_the_review(engine: Path, project: Path) -> None:
    assert image.run(project, base="other:1", network="host") == "late:abc"

    found = result(project)
    assert (found["status"], found["model"]) == ("passed", Scorer(project / build.MODEL).digest)
    assert found["sentence"] == "300 MB; answers without network, disk or rights in 512 MB"
    told = (engine / "log").read_text().splitlines()
    building = next(line for line in told if line.startswith("build"))
    assert "--build-arg=BASE_IMAGE=other:1 " in building
    assert "--network=host " in building
    assert f"--build-arg=MODEL={found['model']} " in building
    assert building.endswith("/.bentoml/bentos/late/abc")
    running = next(line for line in told if line.startswith("run"))
    assert set(image.CONFINED) <= set(running.split())
    assert told[-1] == "rm --force c0ffee"


def asked(engine: Path, **changes: Any) -> None:
    path = engine / "asked.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        pytest.param(
            lambda folder: (folder / "image.json").write_text('[{"Size": 1, "Config": {"User": ""}}]'),
            "it runs as root",
            id="root",
        ),
        pytest.param(lambda folder: (folder / "tools").write_text("/usr/bin/gcc\n"), "it holds gcc", id="a compiler"),
        pytest.param(
            lambda folder: (folder / "container.json").write_text('[{"State": {"Running": false}}]'),
            "it ends at once: no such model",
            id="ends",
        ),
        pytest.param(lambda folder: asked(folder, info=[200, {"model": "x"}]), "it serves another model", id="model"),
        pytest.param(
            lambda folder: asked(folder, good=[200, {"predictions": []}]),
            "it answers [200, {'predictions': []}]",
            id="prediction",
        ),
        pytest.param(
            lambda folder: asked(folder, bad=[500, {}]), "it answers 500 to a field that does not exist", id="bad row"
        ),
    ],
)
def test_an_image_that_is_not_as_it_should_be_fails_by_name(
    engine: Path, project: Path, spoil: Any, fault: str
) -> None:
    spoil(engine)

    with pytest.raises(UserError, match="late:abc is built and not as it should be: "):
        image.run(project)

    assert result(project)["status"] == "failed"
    assert fault in result(project)["sentence"]
    assert (engine / "log").read_text().splitlines()[-1] == "rm --force c0ffee"


def test_an_image_that_never_gets_ready_is_given_up(
    engine: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "READY", 0)

    with pytest.raises(UserError, match="it is not ready after 0 s"):
        image.run(project)


def test_a_build_that_fails_is_one_line_and_leaves_no_result_of_before(
    engine: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image.run(project)
    (engine / "broken").touch()

    with pytest.raises(UserError, match=r"^docker build: no space left on device$"):
        image.run(project)

    assert not (project / "reports/image/result.json").exists()


def test_without_an_engine_one_line_says_what_works_without(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(project)

    assert cli.main(["image"]) == 1

    assert capsys.readouterr().err.splitlines() == [
        "ml: no container engine here: install docker or podman; make serve works without"
    ]


def test_an_engine_that_does_not_answer_is_named(engine: Path, project: Path) -> None:
    (engine / "docker").write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2\nexit 1\n")

    with pytest.raises(UserError, match=r"^docker info: Cannot connect to the Docker daemon$"):
        image.run(project)


def test_every_unwanted_tool_is_looked_for_whatever_the_shell(tmp_path: Path) -> None:
    for name in ("gcc", "git"):
        (tmp_path / name).touch(mode=0o755)

    done = subprocess.run(
        ["/bin/sh", "-c", image.UNWANTED], capture_output=True, text=True, check=True, env={"PATH": str(tmp_path)}
    )

    assert done.stdout.split() == [str(tmp_path / "gcc"), str(tmp_path / "git")]


def test_the_dockerfile_puts_what_changes_most_last() -> None:
    text = (Path(__file__).parents[2] / image.DOCKERFILE).read_text()

    places = [text.index(words) for words in ("--require-hashes", "COPY --from=dependencies", "COPY src /app/bento")]
    assert places == sorted(places)
    assert "\nUSER 1034:1034\n" in text
