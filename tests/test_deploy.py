"""Where images run: manifests against published schemas, kubectl against an API, Compose and Prometheus for real."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cluster
import kubernetes_validate
import pytest
from cluster import Cluster
from conftest import PRODUCT, Bake, clean_environment, require, run
from load import example, fetch
from real import Project, ask, free_port, serving
from ruamel.yaml import YAML

VERSIONS = ("1.30", "1.37")  # of Kubernetes
STAGES = ("staging", "production")
KINDS = {"ServiceAccount", "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"}
GOOD, BROKEN, OTHER = (f"ghcr.io/octo/late@sha256:{digit * 64}" for digit in "abc")
COMMIT = "1234567890" * 4
CALL = """
from ml.errors import UserError
from ml.operations.targets import Wanted, chosen
try:
    print(getattr(chosen(), {step!r})(Wanted(**{wanted!r})))
except UserError as error:
    raise SystemExit(f"ml: {{error}}")
"""
EXPORTED = re.compile(r"^(?:ml|bentoml)_\w+", re.M)


def yaml(text: str) -> list[Any]:
    return list(YAML(typ="safe").load_all(text))


def wanted(image: str, model: str = "", stage: str = "staging") -> dict[str, str]:
    return {"stage": stage, "image": image, "model": model, "commit": COMMIT, "version": "v1.2.0"}


def call(project: Project, target: str, step: str, what: dict[str, str], **more: str) -> str:
    """Return what a target's step prints."""
    done = tried(project, target, step, what, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def refused(project: Project, target: str, step: str, what: dict[str, str], **more: str) -> str:
    """Return the one line with which a target's step fails."""
    done = tried(project, target, step, what, **more)
    assert done.returncode == 1, done.stdout
    (line,) = done.stderr.splitlines()
    return line.removeprefix("ml: ")


def tried(
    project: Project, target: str, step: str, what: dict[str, str], **more: str
) -> subprocess.CompletedProcess[str]:
    return project.run("python", "-c", CALL.format(step=step, wanted=what), DEPLOY_TARGET=target, **more)


# Manifests: what kubectl makes of them, whatever the cluster.


@pytest.fixture(scope="session")
def manifests(bake: Bake) -> dict[str, list[Any]]:
    """The objects of each stage, as kubectl builds them."""
    folder = bake(include_kubernetes=True) / "deploy/kubernetes/overlays"
    found = {stage: run(require("kubectl"), "kustomize", folder / stage, cwd=folder) for stage in STAGES}
    assert {stage: done.stderr for stage, done in found.items()} == dict.fromkeys(STAGES, "")
    return {stage: yaml(done.stdout) for stage, done in found.items()}


def of_kind(objects: list[Any], kind: str) -> Any:
    (found,) = [one for one in objects if one["kind"] == kind]
    return found


def test_manifests_are_there_only_where_they_were_asked_for(bake: Bake) -> None:
    with_them, without = bake(include_kubernetes=True), bake()

    assert (with_them / "deploy/kubernetes/base/workload.yaml").exists()
    assert not (without / "deploy/kubernetes").exists()
    assert (without / "deploy/compose/compose.yaml").exists()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("stage", STAGES)
def test_every_manifest_fits_the_published_schema(manifests: dict[str, list[Any]], stage: str, version: str) -> None:
    assert {one["kind"] for one in manifests[stage]} == KINDS
    for one in manifests[stage]:
        assert kubernetes_validate.validate(one, version, strict=True) == version


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schemas_refuse_an_unknown_field_and_a_wrong_type(manifests: dict[str, list[Any]], version: str) -> None:
    for spoiled in ({"replica": 2}, {"replicas": "two"}):
        found = json.loads(json.dumps(of_kind(manifests["production"], "Deployment")))
        found["spec"] |= spoiled

        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(found, version, strict=True)


@pytest.mark.parametrize("stage", STAGES)
def test_pods_may_do_next_to_nothing(manifests: dict[str, list[Any]], stage: str) -> None:
    pod = of_kind(manifests[stage], "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    assert pod["automountServiceAccountToken"] is False
    assert of_kind(manifests[stage], "ServiceAccount")["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert {"requests", "limits"} == set(container["resources"])
    assert {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness")} == {"/readyz"}
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert of_kind(manifests[stage], "NetworkPolicy")["spec"]["egress"] == []


@pytest.mark.parametrize("stage", STAGES)
def test_what_selects_pods_selects_those_of_the_deployment(manifests: dict[str, list[Any]], stage: str) -> None:
    labels = of_kind(manifests[stage], "Deployment")["spec"]["template"]["metadata"]["labels"]
    budget, policy = (of_kind(manifests[stage], kind)["spec"] for kind in ("PodDisruptionBudget", "NetworkPolicy"))
    selectors = [budget["selector"]["matchLabels"], policy["podSelector"]["matchLabels"]]
    selectors += [of_kind(manifests[stage], "Service")["spec"]["selector"]]
    selectors += [of_kind(manifests[stage], "Deployment")["spec"]["selector"]["matchLabels"]]

    assert all(selector.items() <= labels.items() for selector in selectors)


def test_a_pod_has_longer_to_end_than_the_service_takes(manifests: dict[str, list[Any]], template: Path) -> None:
    pod = of_kind(manifests["production"], "Deployment")["spec"]["template"]["spec"]
    drain = next(float(one["value"]) for one in pod["containers"][0]["env"] if one["name"] == "ML_DRAIN")
    serve = yaml((template / PRODUCT / "params.yaml").read_text())[0]["serve"]

    assert drain + serve["timeout"] < pod["terminationGracePeriodSeconds"]


# Kubernetes: real kubectl, an API that records.


@pytest.fixture(scope="module")
def project(small: Project, bake: Bake, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A trained project with manifests."""
    found = small.copy(tmp_path_factory.mktemp("deploy") / "copy")
    shutil.copytree(bake(include_kubernetes=True) / "deploy", found / "deploy", dirs_exist_ok=True)
    return found


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Cluster]:
    require("kubectl")
    with cluster.running() as found:
        found.good = {GOOD, OTHER}
        yield found


Step = Callable[..., str]


@pytest.fixture
def deploy(api: Cluster, project: Project, tmp_path: Path) -> Step:
    """Return a function that runs a step against the API; with `good=False` it must fail."""

    def step(name: str, image: str, good: bool = True, model: str = "") -> str:
        # kubectl keeps what it discovers below HOME.
        more = {"KUBE_CONFIG": api.config, "HOME": str(tmp_path)}
        return (call if good else refused)(project, "kubernetes", name, wanted(image, model), **more)

    return step


@pytest.mark.slow
def test_a_plan_shows_the_difference_and_changes_nothing(api: Cluster, deploy: Step) -> None:
    first = deploy("plan", GOOD)
    assert api.changes() == []
    deploy("apply", GOOD)
    same, other = deploy("plan", GOOD), deploy("plan", OTHER)

    assert re.search(rf"^\+ .*image: {GOOD}$", first, re.M)
    assert same == f"flight-delays-staging is as it would be: {GOOD}"
    changed = [line for line in other.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    assert [line.split("image: ")[-1] for line in changed if "image:" in line] == [GOOD, OTHER]


@pytest.mark.slow
def test_what_is_applied_is_pinned_by_digest_in_the_stages_own_namespace(api: Cluster, deploy: Step) -> None:
    assert deploy("apply", GOOD) == f"flight-delays-staging runs {GOOD}"

    paths = [change.split("/namespaces/")[1] for change in api.changes()]
    assert {path.split("/")[0] for path in paths} == {"flight-delays-staging"}
    assert len(paths) == len(KINDS)
    container = api.objects["deployments", "flight-delays-staging", "model"]["spec"]["template"]["spec"]["containers"]
    assert [one["image"] for one in container] == [GOOD]
    told = {one["name"]: one["value"] for one in container[0]["env"]}
    assert told | {"ML_COMMIT": COMMIT, "ML_STAGE": "staging", "ML_VERSION": "v1.2.0"} == told
    for one in (o for key, o in api.objects.items() if o["kind"] in KINDS):
        clean = {key: value for key, value in one.items() if key != "status"}
        for version in VERSIONS:
            kubernetes_validate.validate(clean, version, strict=True)


@pytest.mark.slow
def test_an_image_that_does_not_get_ready_is_undone_and_the_reason_is_told(api: Cluster, deploy: Step) -> None:
    deploy("apply", GOOD)

    said = deploy("apply", BROKEN, good=False)

    assert said == f"{BROKEN}: ImagePullBackOff cannot pull {BROKEN}; what ran before runs again"
    assert api.image() == GOOD
    deployment = api.objects["deployments", "flight-delays-staging", "model"]
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == GOOD


@pytest.mark.slow
def test_a_rollout_that_was_killed_is_not_what_a_later_failure_goes_back_to(api: Cluster, deploy: Step) -> None:
    deploy("apply", GOOD)
    key = ("deployments", "flight-delays-staging", "model")
    left = json.loads(json.dumps(api.objects[key]).replace(GOOD, BROKEN.replace("b", "d", 1)))
    api.store(key, left)

    said = deploy("apply", BROKEN, good=False)

    assert said.endswith("; what ran before runs again")
    assert api.objects[key]["spec"]["template"]["spec"]["containers"][0]["image"] == GOOD
    assert deploy("apply", OTHER) == f"flight-delays-staging runs {OTHER}"
    assert api.image() == OTHER


@pytest.mark.slow
def test_a_first_image_that_does_not_get_ready_says_that_there_is_nothing_to_go_back_to(deploy: Step) -> None:
    assert deploy("apply", BROKEN, good=False).endswith("; nothing ran before, so there is nothing to put back")


@pytest.mark.slow
def test_the_smoke_test_asks_a_pod_for_predictions(api: Cluster, deploy: Step, project: Project) -> None:
    deploy("apply", GOOD)
    about = {"ML_COMMIT": COMMIT, "ML_STAGE": "staging", "ML_VERSION": "v1.2.0"}
    with serving(project, **about) as address:
        model = json.loads(fetch(address, "/info"))["model"]

        def inside(words: list[str]) -> tuple[int, str]:
            port = address.rsplit(":", 1)[1]
            command = [sys.executable, *words[1:]]
            done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(BENTOML_PORT=port))
            return done.returncode, done.stdout + done.stderr

        api.exec = inside
        said = deploy("check", GOOD, model=model)
        other_model = deploy("check", GOOD, good=False, model="f" * 64)
        other_image = deploy("check", OTHER, good=False, model=model)

    assert re.fullmatch(
        rf"flight-delays-staging answers as {model[:12]}: .*\"score\": 0\.\d+.* for the example", said
    ), said
    assert other_model.startswith(f"flight-delays-staging answers, and its model is {model}, not {'f' * 64}")
    assert other_image == f"flight-delays-staging runs {GOOD}, not {OTHER}: deploy again"


@pytest.mark.slow
def test_a_cluster_that_is_away_is_one_line(project: Project, tmp_path: Path) -> None:
    with cluster.running() as gone:
        config = gone.config

    more = {"KUBE_CONFIG": config, "HOME": str(tmp_path)}
    for step in ("plan", "apply", "check"):
        said = refused(project, "kubernetes", step, wanted(GOOD), **more)
        assert said.startswith("kubectl: "), said
        assert "refused" in said, said
    assert list((project / "build").glob("pinned-*")) == []


# The dashboard: every question of it, asked of a real Prometheus that scrapes the real service.


def panels(template: Path) -> list[dict[str, Any]]:
    return json.loads((template / PRODUCT / "deploy/compose/dashboard.json").read_text())["panels"]


def test_no_two_panels_of_the_dashboard_overlap_and_each_says_what_it_shows(template: Path) -> None:
    found = panels(template)
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in found)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]

    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in found}) == len(found)
    assert [panel["title"] for panel in found if not panel["description"].endswith(".")] == []


def started(config: Path, data: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
    options = {"config.file": config, "storage.tsdb.path": data, "web.listen-address": f"127.0.0.1:{port}"}
    words = [f"--{key}={value}" for key, value in options.items()]
    with log.open("w") as file:
        return subprocess.Popen([require("prometheus"), *words], stdout=file, stderr=file)


def asked(prometheus: str, query: str) -> list[tuple[dict[str, str], float]]:
    """Return labels and value of each series that PromQL finds."""
    text = fetch(prometheus, f"/api/v1/query?{urllib.parse.urlencode({'query': query})}")
    return [(one["metric"], float(one["value"][1])) for one in json.loads(text)["data"]["result"]]


def until(true: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "nothing in time"
        time.sleep(0.2)


def answers(prometheus: str, query: str) -> list[tuple[dict[str, str], float]]:
    """The same, and nothing while Prometheus starts."""
    try:
        return asked(prometheus, query)
    except OSError:
        return []


@pytest.mark.slow
def test_each_panel_shows_what_was_sent(small: Project, template: Path, tmp_path: Path) -> None:
    config = (template / PRODUCT / "deploy/compose/prometheus.yml").read_text()
    port = free_port()
    with serving(small, ML_VERSION="v1.2.0", ML_STAGE="staging") as address:
        for old, new in (("service:3000", address.removeprefix("http://")), ("15s", "1s")):
            assert old in config
            config = config.replace(old, new)
        (tmp_path / "prometheus.yml").write_text(config)
        process = started(tmp_path / "prometheus.yml", tmp_path / "data", port, tmp_path / "log")
        try:
            prometheus = f"http://127.0.0.1:{port}"
            good = example(address)
            send(address, good, 1)
            count = 'sum(bentoml_service_request_total{endpoint="/predict"})'
            until(lambda: answers(prometheus, count) == [({}, 5.0)])
            send(address, good, 10)
            until(lambda: answers(prometheus, count) == [({}, 55.0)])
            found = {
                panel["title"]: {
                    target["legendFormat"]: asked(prometheus, target["expr"].replace("$__rate_interval", "30s"))
                    for target in panel["targets"]
                }
                for panel in panels(template)
            }
            exported = set(EXPORTED.findall(fetch(address, "/metrics")))
            text = (template / PRODUCT / "deploy/compose/dashboard.json").read_text()
            (note,) = json.loads(text)["annotations"]["list"]
            marked = asked(prometheus, note["expr"])
        finally:
            process.terminate()
            process.wait(30)

    def values(panel: str, legend: str, label: str) -> dict[str, float]:
        return {labels.get(label, ""): value for labels, value in found[panel][legend]}

    def one(panel: str, legend: str) -> float:
        ((_, value),) = found[panel][legend]
        return value

    by_code = values("Requests", "{{http_response_code}}", "http_response_code")
    assert {code for code, rate in by_code.items() if rate} == {"200", "400"}
    assert by_code["200"] / by_code["400"] == pytest.approx(4, rel=0.01)
    assert 0 < one("Latency", "p50") <= one("Latency", "p95") <= one("Latency", "p99") < 10
    assert one("Errors", "refused") == pytest.approx(0.2, rel=0.01)
    assert one("Errors", "failed") == 0
    assert (one("In progress", "requests"), one("In progress", "instances")) == (0, 1)
    scores = values("Scores", "{{le}}", "le")
    assert len(scores) == 21
    assert scores["+Inf"] > 40
    assert 0 < one("Mean score", "mean") < 1
    assert {tuple(labels.values()) for labels, _ in found["Rejected rows"]["{{field}}: {{rule}}"]} == {
        ("distance", "required")
    }
    assert set(values("Unknown categories", "{{field}}", "field")) == {"carrier"}
    ((version, instances),) = found["Versions"]["{{version}} {{stage}} {{model}}"]
    assert (version["version"], version["stage"], instances) == ("v1.2.0", "staging", 1)
    assert values("Lost lines of the log", "{{reason}}", "reason") == {"full": 0, "disk": 0}
    assert [labels["version"] for labels, _ in marked] == ["v1.2.0"]
    named = set(re.findall(r"\b(?:ml|bentoml)_[a-z_]+", text)) - {"ml_"}
    assert {name for name in named if name not in exported} == set()


def send(address: str, good: dict, times: int) -> None:
    """Send four good requests, one of them with an unknown category, and one bad, so many times."""
    for _ in range(times):
        for rows in ([good], [good], [good], [{**good, "carrier": "??"}], [{**good, "distance": None}]):
            ask(address, rows)


# Containers: Compose and the smoke test on a real engine, with images in a real registry.


def docker(*words: str) -> str:
    done = subprocess.run([require("docker"), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def engine() -> None:
    done = subprocess.run([require("docker"), "info"], capture_output=True, text=True)
    if done.returncode:
        (pytest.fail if os.environ.get("REQUIRE_ALL") else pytest.skip)(f"docker does not answer: {done.stderr[-200:]}")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return host and port of a registry."""
    folder, port = tmp_path_factory.mktemp("registry"), free_port()
    settings = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (folder / "config.yml").write_text(json.dumps(settings))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [require("docker-registry"), "serve", str(folder / "config.yml")], stdout=log, stderr=log
        )
    try:
        until(lambda: reachable(f"http://127.0.0.1:{port}/v2/"))
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def reachable(address: str) -> bool:
    try:
        return urllib.request.urlopen(address, timeout=2).status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def images(engine: None, registry: str, project: Project) -> Iterator[dict[str, str]]:
    """Three images by digest: the project's, the same under another digest, and one that ends at once."""
    base = f" --base {name}" if (name := os.environ.get("BASE_IMAGE")) else ""
    built = project.done(require("make"), "image", f"ARGS=--network host{base}").splitlines()[-1]
    made = {"good": built}
    for kind, line in (("other", "LABEL another=one"), ("broken", 'ENTRYPOINT ["false"]')):
        made[kind] = f"{registry}/late:{kind}"
        build(f"FROM {built}\n{line}\n", made[kind])
    found = {}
    for kind, tag in made.items():
        docker("tag", tag, f"{registry}/late:{kind}")
        pushed = docker("push", "--quiet", f"{registry}/late:{kind}")
        digest = re.search(r"sha256:[0-9a-f]{64}", docker("inspect", "--format={{json .RepoDigests}}", pushed))[0]
        found[kind] = f"{registry}/late@{digest}"
    try:
        yield found
    finally:
        for kind in made:
            docker("rmi", "--force", f"{registry}/late:{kind}", found[kind])


def build(dockerfile: str, tag: str, folder: Path | None = None) -> None:
    words = [require("docker"), "build", "--quiet", "--network=host", f"--tag={tag}"]
    done = subprocess.run([*words, str(folder) if folder else "-"], input=dockerfile, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def model(project: Project) -> str:
    return json.loads((project / "build/bento/contract.json").read_text())["model"]["sha256"]


@pytest.mark.slow
def test_without_a_target_the_published_image_is_asked_here(
    project: Project, images: dict[str, str], model: str
) -> None:
    assert "deployed nowhere" in call(project, "none", "plan", wanted(images["good"], model))
    assert call(project, "none", "apply", wanted(images["good"], model)).endswith(" is published as staging")
    assert call(project, "none", "check", wanted(images["good"], model)).startswith(
        f"flight-delays-staging answers as {model[:12]}"
    )

    assert f"its model is {model}, not" in refused(project, "none", "check", wanted(images["good"], "f" * 64))
    assert "it ends at once" in refused(project, "none", "check", wanted(images["broken"], model))
    missing = images["good"].split("@")[0] + "@sha256:" + "0" * 64
    assert refused(project, "none", "check", wanted(missing, model)).startswith("docker run: ")


@pytest.fixture
def machine(project: Project, images: dict[str, str], tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Return the addresses of service and Prometheus, both in the host's network since an engine may have no other.

    Prometheus is the host's own binary in an image; there is none of Grafana to be had without Docker Hub.
    """
    service, prometheus = free_port(), free_port()
    folder = project / "deploy/compose"
    kept = shutil.copytree(folder, tmp_path / "kept")
    shutil.copy(require("prometheus"), tmp_path / "prometheus")
    good = docker("inspect", "--format={{json .RepoTags}}", images["good"])
    (tmp_path / "Dockerfile").write_text(
        f"FROM {json.loads(good)[0]}\nUSER root\nCOPY prometheus /bin/prometheus\nHEALTHCHECK NONE\n"
        'ENTRYPOINT ["/bin/prometheus"]\n'
    )
    build("", "late-prometheus:test", tmp_path)
    text = (folder / "Dockerfile").read_text()
    (folder / "Dockerfile").write_text(re.sub(r"prom/prometheus:\S+", "late-prometheus:test", text))
    change(folder / "prometheus.yml", "service:3000", f"127.0.0.1:{service}")
    change(folder / "prometheus.yml", "15s", "1s")
    settings = yaml((folder / "compose.yaml").read_text())[0]
    del settings["services"]["grafana"]
    for one in settings["services"].values():
        del one["ports"]
        one["network_mode"] = "host"
    settings["services"]["prometheus"]["command"] += [f"--web.listen-address=127.0.0.1:{prometheus}"]
    (folder / "compose.yaml").write_text(json.dumps(settings))
    # The one file of a stage that is laid over.
    mine = {"services": {"service": {"environment": {"BENTOML_PORT": str(service), "ML_DRAIN": "0"}}}}
    (folder / "compose.staging.yaml").write_text(json.dumps(mine))
    try:
        yield f"http://127.0.0.1:{service}", f"http://127.0.0.1:{prometheus}"
    finally:
        label = "label=com.docker.compose.project=flight-delays-staging"
        for name in docker("ps", "--all", "--quiet", "--filter", label).split():
            docker("rm", "--force", name)
        for name in docker("volume", "ls", "--quiet", "--filter", label).split():
            docker("volume", "rm", name)
        for name in docker("images", "--quiet", "--filter=reference=flight-delays-staging?prometheus").split():
            docker("rmi", "--force", name)
        docker("rmi", "--force", "late-prometheus:test")
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.slow
def test_compose_starts_replaces_and_puts_back(
    project: Project, images: dict[str, str], model: str, machine: tuple[str, str]
) -> None:
    service, prometheus = machine
    good, other, broken = (wanted(images[kind], model) for kind in ("good", "other", "broken"))

    assert refused(project, "compose", "apply", broken).endswith("; nothing ran before, so nothing runs now")
    assert refused(project, "compose", "check", good).startswith("flight-delays-staging runs nothing, not ")

    assert call(project, "compose", "plan", good).endswith(f"runs nothing, and would run {images['good']}")
    assert call(project, "compose", "apply", good) == f"flight-delays-staging runs {images['good']}"
    assert call(project, "compose", "plan", good) == f"flight-delays-staging runs {images['good']} already"
    assert f"answers as {model[:12]}" in call(project, "compose", "check", good)
    assert json.loads(fetch(service, "/info"))["version"] == "v1.2.0"
    until(lambda: answers(prometheus, 'up{job="model"}') and answers(prometheus, 'up{job="model"}')[0][1] == 1)
    until(lambda: answers(prometheus, 'sum(ml_model_info{version="v1.2.0",stage="staging"})') == [({}, 1.0)])

    call(project, "compose", "apply", {**other, "version": "v1.3.0"})
    assert refused(project, "compose", "check", good).startswith(f"flight-delays-staging runs {images['other']}, not ")
    said = refused(project, "compose", "apply", {**broken, "version": "v1.4.0"})

    assert "it ends at once" in said
    assert said.endswith(f"; {images['other']} runs again")
    assert json.loads(fetch(service, "/info"))["version"] == "v1.3.0"
    assert f"answers as {model[:12]}" in call(project, "compose", "check", {**other, "version": "v1.3.0"})
    until(lambda: answers(prometheus, 'sum(ml_model_info{version="v1.3.0"})') == [({}, 1.0)])


@pytest.mark.slow
def test_another_machine_is_reached_over_ssh_with_the_key_of_the_environment(
    project: Project, engine: None, tmp_path: Path
) -> None:
    (tmp_path / "ssh").write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$*" >> {tmp_path}/asked\n'
        f'while [ "$1" != -i ]; do shift; done; cat "$2" > {tmp_path}/key; echo "$2" > {tmp_path}/where\n'
        "unset DOCKER_HOST; exec docker system dial-stdio\n"
    )
    (tmp_path / "ssh").chmod(0o755)
    path = f"{tmp_path}:{project.environment()['PATH']}"
    more = {"DOCKER_HOST": "ssh://deploy@far.example", "PATH": path, "SSH_KEY": "private"}
    code = """
from ml.operations.targets import compose
from ml.serving import image
with compose.reaching():
    print(image.tell(image.find_engine(), "version", "--format={{.Server.Version}}"))
"""

    said = refused(project, "compose", "plan", wanted(GOOD), **more)
    done = project.run("python", "-c", code, SSH_KNOWN_HOSTS="far.example ssh-ed25519 AAAA", **more)

    assert said == "SSH_KEY is given and SSH_KNOWN_HOSTS is not: docs/deploy.md says where it comes from"
    assert done.stdout.strip() == docker("version", "--format={{.Server.Version}}"), done.stderr
    lines = (tmp_path / "asked").read_text().splitlines()
    assert lines
    assert all("far.example" in line and "StrictHostKeyChecking=yes" in line for line in lines)
    assert (tmp_path / "key").read_text() == "private\n"
    assert not Path((tmp_path / "where").read_text().strip()).exists()
