"""Ring 5: `dvc remote add -d`, the cloud's variables and nothing else move a project's storage to a bucket."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from conftest import Bake, clean_environment, require, run
from moto.server import ThreadedMotoServer
from real import Project, refusal
from ruamel.yaml import YAML

pytestmark = pytest.mark.slow
REGION = "eu-west-1"
READS = ("s3:GetObject", "s3:ListBucket")
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AccessKeyId",
    "AWS_SECRET_ACCESS_KEY": "SecretAccessKey",
    "AWS_SESSION_TOKEN": "SessionToken",
}
STAGES = """\
stages:
  train:
    cmd: mkdir -p models && grep -A 3 '^train:' params.yaml > models/model.onnx
    deps: [params.yaml]
    outs: [models/model.onnx]
  plots:
    cmd: mkdir -p plots && echo 1 > plots/one.json && echo 2 > plots/two.json
    outs: [plots]
"""
GATE = "from pathlib import Path; from ml.review import lock; print([p.what for p in lock.problems(Path.cwd())])"
NOBODY = {"AWS_EC2_METADATA_DISABLED": "true"}


@dataclass(frozen=True)
class Cloud:
    """AWS on this machine, with the bucket `late`; `reader` and `writer` are what a job has in its environment after
    it showed GitHub's token for a role of that name. Nobody else may do anything."""

    address: str
    reader: dict[str, str]
    writer: dict[str, str]

    def objects(self) -> set[str]:
        """Return the names of what the bucket holds."""
        used = {name.lower(): self.reader[name] for name in SECRETS}
        bucket = boto3.client("s3", endpoint_url=self.address, region_name=REGION, **used)
        return {entry["Key"] for entry in bucket.list_objects_v2(Bucket="late").get("Contents", [])}


def policy(**statement: object) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [statement] if statement else []})


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "root", "aws_secret_access_key": "root"}
    s3, iam, sts = (
        boto3.client(name, endpoint_url=address, region_name=REGION, **keys) for name in ("s3", "iam", "sts")
    )
    s3.create_bucket(Bucket="late", CreateBucketConfiguration={"LocationConstraint": REGION})
    variables = {}
    for name, actions in (("reader", READS), ("writer", (*READS, "s3:PutObject"))):
        role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=policy())["Role"]["Arn"]
        rights = policy(Effect="Allow", Action=actions, Resource="*")
        iam.put_role_policy(RoleName=name, PolicyName="objects", PolicyDocument=rights)
        answer = sts.assume_role_with_web_identity(
            RoleArn=role, RoleSessionName="GitHubActions", WebIdentityToken="header.claims.signature"
        )
        variables[name] = {name: answer["Credentials"][key] for name, key in SECRETS.items()}
        variables[name] |= {"AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION, "AWS_ENDPOINT_URL": address}
    # From here on the policies count.
    strictly = urllib.request.Request(f"{address}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
    urllib.request.urlopen(strictly, timeout=30).close()
    yield Cloud(address, **variables)
    server.stop()


@pytest.fixture(scope="module")
def project(bake: Bake, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose lock has DVC's package for S3, after its pipeline and the move, not pushed yet."""
    project = Project(bake.into(tmp_path_factory.mktemp("bucket")))
    project.change('    "dvc>=3.67",\n', '    "dvc>=3.67",\n    "dvc-s3",\n', "pyproject.toml")
    path = os.pathsep.join([str(Path(require("uv")).parent), clean_environment()["PATH"]])
    locked = run(project / "scripts/lock", cwd=project.folder, PATH=path)
    assert locked.returncode == 0, locked.stderr
    project.done(require("make"), "setup")
    for words in (
        ("config", "user.name", "Ada"),
        ("config", "user.email", "ada@example.com"),
        ("init", "--quiet", "--bare", "../origin.git"),
        ("remote", "add", "origin", str(project.folder.parent / "origin.git")),
    ):
        project.done("git", *words)
    (project / "dvc.yaml").write_text(STAGES)
    (project / ".gitignore").write_text("/.venv/\n/models/\n/plots/\n")
    project.done("dvc", "repro", "--quiet")
    project.done("dvc", "remote", "add", "-d", "store", "s3://late/flights")
    project.commit("Move the storage")
    return project


def hashes(project: Project) -> set[str]:
    """Return the hashes of all that dvc.lock names, the files of folders too."""
    stages = YAML(typ="safe").load(project.lock)["stages"].values()
    own = {out["md5"] for stage in stages for out in stage["outs"]}
    lists = [project / f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}" for md5 in own if md5.endswith(".dir")]
    return own | {entry["md5"] for path in lists for entry in json.loads(path.read_text())}


def test_one_command_and_the_variables_move_the_storage_to_a_bucket(project: Project, cloud: Cloud) -> None:
    # Nothing is there yet: the gate says so, and the hook stops a push of such a lock.
    (said,) = project.done("python", "-c", GATE, **cloud.reader).splitlines()
    assert said.startswith("['the remote store lacks models/model.onnx (")
    stopped = project.run("git", "push", "--quiet", "origin", "main", **cloud.reader)
    assert stopped.returncode != 0
    assert "ml: dvc.lock names what nobody pushed: the remote store lacks models/model.onnx" in stopped.stderr

    # Who may only read is told so, and a check may go on.
    denied = project.run("make", "push", **cloud.reader)
    assert refusal(denied).startswith("ml: dvc push: failed to transfer ")
    assert "Access Denied" in denied.stderr
    assert project.done("make", "push", "ARGS=--optional", **cloud.reader).startswith("nothing pushed: dvc push: ")
    assert cloud.objects() == set()

    project.done("make", "push", **cloud.writer)

    # The objects and no run-cache.
    found = hashes(project)
    assert len(found) == 4
    assert cloud.objects() == {f"flights/files/md5/{md5[:2]}/{md5[2:]}" for md5 in found}
    assert project.done("python", "-c", GATE, **cloud.reader) == "[]\n"
    project.done("git", "push", "--quiet", "origin", "main", **cloud.reader)
    assert project.done("git", "ls-remote", "origin").split()[1::2] == ["refs/heads/main"]


def test_a_clean_clone_with_the_readers_variables_has_it_all(project: Project, cloud: Cloud, tmp_path: Path) -> None:
    project.done("make", "push", **cloud.writer)
    project.done("git", "clone", "--quiet", project.folder, tmp_path / "clone")
    clone = Project(tmp_path / "clone")
    (clone / ".venv").symlink_to(project / ".venv")

    assert clone.done("python", "-c", GATE, **cloud.reader) == "[]\n"
    clone.done("make", "pull", "ARGS=plots", **cloud.reader)
    assert not (clone / "models").exists()
    clone.done("make", "pull", **cloud.reader)

    for name in ("models/model.onnx", "plots/one.json", "plots/two.json"):
        assert (clone / name).read_bytes() == (project / name).read_bytes()
    assert clone.done("git", "status", "--short", "--untracked-files=no") == ""


def test_without_the_variables_one_line_says_so(project: Project, cloud: Cloud) -> None:
    nobody = {"AWS_ENDPOINT_URL": cloud.address, **NOBODY}

    assert "Unable to locate credentials" in refusal(project.run("ml", "storage", "check", **nobody))
    assert "Unable to locate credentials" in refusal(project.run("make", "push", **nobody))
    assert project.done("make", "push", "ARGS=--optional", **nobody).startswith("nothing pushed: ")
