"""`ml VERB`: parses the words and calls one function; each verb imports what it needs and no more."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ml.errors import UserError

Words = argparse.Namespace


def ingest(words: Words) -> None:
    from ml.pipeline import params, periods

    periods.run(words.period, params.read())


def split(_: Words) -> None:
    from ml.pipeline import params, split

    split.run(params.read())


def train(_: Words) -> None:
    from ml.pipeline import params, train

    train.run(params.read())


def evaluate(_: Words) -> None:
    from ml.pipeline import evaluate, params

    evaluate.run(params.read())


def repeat(_: Words) -> None:
    from ml.pipeline import params, repeat

    repeat.run(params.read())


def prune(_: Words) -> None:
    from ml.pipeline import params, prune

    for path in prune.run(params.read().data.periods):
        print(f"removed {path}: its period is no longer in params.yaml")


def tune(words: Words) -> None:
    from ml.pipeline import params, tune

    tune.run(params.read(), trials=words.trials, timeout=words.timeout)


def review(words: Words) -> None:
    from ml.review import aside

    # Looking for cycles takes a seventh of the time, and a review ends before they could fill memory.
    gc.disable()
    with aside.second_process() as other:
        from ml.pipeline import params
        from ml.review import review

        settings = params.read()
        verdict = review.run(settings, other, words.against, words.base, words.approved, committed=words.committed)
    for line in review.lines(verdict):
        print(line)
    if verdict.blocked:
        raise UserError(verdict.headline)


def take(words: Words) -> None:
    from ml.operations import bundle

    print(bundle.take(words.run, words.folder))


def ci(words: Words) -> None:
    from ml.operations import ci, deliver

    print((ci.ACTIONS | deliver.ACTIONS)[words.action](words), end="")


def release(words: Words) -> None:
    from ml.operations import release

    print(release.run(words.bump, words.commit))


def diff(words: Words) -> None:
    from ml.review import review

    print(review.diff(words.against))


def reproduce(words: Words) -> None:
    from ml.pipeline import params
    from ml.review import reproduce

    reproduce.run(params.read(), full=words.full)


def build(_: Words) -> None:
    from ml.serving import build

    print(build.build(Path.cwd()))


def serve(words: Words) -> None:
    from ml.serving import build

    build.serve(Path.cwd(), words.port)


def score(words: Words) -> None:
    from ml.serving import batch, build

    told = batch.run(words.model or build.MODEL, words.source, words.target)
    print(f"{told.rows:,} rows of {told.files} files scored")
    for name, count in told.unknown.items():
        print(f"{name}: {count:,} values that training did not know")


def loadtest(words: Words) -> None:
    from gevent import monkey

    monkey.patch_all()
    from ml.pipeline import params
    from ml.serving import loadtest

    settings = params.read()
    if settings.gates.service is None:
        print("gates.service is turned off in params.yaml: nothing is loaded")
        return loadtest.skip(Path.cwd())
    limits, how = settings.gates.service.model_dump(), settings.loadtest.model_dump()
    print(loadtest.run(Path.cwd(), words.candidate, words.baseline, how, limits, words.network))


def image(words: Words) -> None:
    from ml.serving import image

    print(image.run(Path.cwd(), words.base, words.network))


def storage(words: Words) -> None:
    from ml.operations import storage

    match words.action:
        case "push":
            print(storage.push(agreed=words.yes, again=words.again, optional=words.optional))
        case "pull":
            print(storage.pull(words.names, partial=words.partial))
        case "check":
            storage.check(words.names or ["HEAD"])
        case "gc":
            print(storage.gc(dry_run=words.dry_run, versions=words.versions))
        case "status":
            print("\n".join(storage.status()))


def github(words: Words) -> None:
    from ml.operations import repository
    from ml.operations.github import GitHub

    for line in repository.run(GitHub.open(), dry_run=words.dry_run):
        print(line, flush=True)


def promote(words: Words) -> None:
    from ml.operations import promote

    print("\n".join(promote.run(words.stage, words.digest)))


def rollback(words: Words) -> None:
    from ml.operations import promote

    print("\n".join(promote.rollback(words.version)))


def registry(words: Words) -> None:
    from ml.operations import promote

    if words.action == "history":
        print("\n".join(promote.audit()))
        return
    table, faults = promote.status(mend=words.mend)
    print("\n".join([*table, *faults]))
    if faults:
        raise UserError(
            f"{len(faults)} disagreements between tags, registry and Deployments: each line says what mends it"
        )


VERBS: dict[str, tuple[Callable[[Words], None], str, str]] = {
    "ingest": (ingest, "read, join and check one period", "ml ingest 2013-01"),
    "split": (split, "part the rows into train and holdout", "ml split"),
    "train": (train, "fit, convert to ONNX and record the run", "ml train"),
    "evaluate": (evaluate, "score the holdout with the ONNX file", "ml evaluate"),
    "repeat": (repeat, "train with other seeds, to know what a retrain alone moves", "ml repeat"),
    "prune": (prune, "remove what params.yaml no longer lists from data/ and dvc.lock", "ml prune"),
    "tune": (tune, "search estimators and settings; the best goes to params.yaml", "ml tune --trials 20 --timeout 600"),
    "diff": (diff, "show which settings and metrics differ from a commit", "ml diff --against main"),
    "review": (review, "judge the work tree against production and write the report", "ml review --against main"),
    "reproduce": (reproduce, "retrain from dvc.lock elsewhere and compare the bytes", "ml reproduce --full"),
    "take": (take, "bring here what CI trained for this commit", "ml take"),
    "ci": (ci, "what only a workflow does", "ml ci plan"),
    "github": (github, "set rules, labels and environments of the repository on GitHub", "ml github --dry-run"),
    "release": (release, "tag the next version; in a workflow, publish it", "ml release --bump minor"),
    "storage": (storage, "store the objects of dvc.lock, or bring them here", "ml storage pull models"),
    "promote": (promote, "verify an image, let a stage lead to it and deploy it", "ml promote staging sha256:…"),
    "rollback": (rollback, "put the version before, or a named one, into production", "ml rollback v1.2.0"),
    "registry": (registry, "say what each stage runs, and what disagrees", "ml registry status --mend"),
    "build": (build, "make the Bento of the service and the model", "ml build"),
    "score": (score, "score the rows of files, here or at a URL", "ml score flights.parquet scores.parquet"),
    "image": (image, "build the container image of the Bento and check it", "ml image --base python:3.13-slim"),
    "loadtest": (loadtest, "load a service beside another and compare", "ml loadtest --baseline late:0123456789abcdef"),
    "serve": (serve, "answer requests at http://127.0.0.1:3000", "ml serve --port 3001"),
}


CI = {
    "plan": "say what a change must compute",
    "pack": "pack what was made here and the commit lacks",
    "approval": "say which code owner approved the commit",
    "baseline": "build the base's Bento, to load-test beside it",
    "reproduce": "make the model again as params.yaml asks, and compare",
    "summary": "show the verdict on the job's page and at the lines to edit",
    "report": "write the one report of a run; NEEDS holds its jobs as JSON",
    "comment": "post the report of a run on its pull request",
    "commit-lock": "publish and commit what a run trained",
    "store": "store what main's own run had to make",
    "deliver": "say what a merge needs",
    "login": "let the container engine into the registry",
    "publish": "push the image as sha-COMMIT and tell its digest",
    "scan": "judge the scan of the image",
    "record": "record what the image is, beside it",
    "promote": "promote an image to a stage, and ask the service",
    "version": "start the release that the pull request's label asks for",
}


def parser() -> argparse.ArgumentParser:
    """Return the parser; its help shows every verb with an example."""
    examples = "\n".join(f"  {example}" for _, _, example in VERBS.values())
    root = argparse.ArgumentParser(
        prog="ml",
        description="What the pipeline's stages and the make targets run.",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = root.add_subparsers(dest="verb", metavar="VERB", required=True)
    words = {
        name: verbs.add_parser(name, help=text, description=text, epilog=f"example: {example}")
        for name, (_, text, example) in VERBS.items()
    }
    words["ingest"].add_argument("period", help="a period of data.periods in params.yaml")
    words["tune"].add_argument("--trials", type=int, help="how many in all (default: tune.trials in params.yaml)")
    words["tune"].add_argument("--timeout", type=float, help="seconds after which no further trial starts")
    words["diff"].add_argument("--against", default="main", metavar="REF", help="a commit (default: main)")
    words["review"].add_argument(
        "--against", metavar="REF", help="compare with it (default: production, then the base)"
    )
    words["review"].add_argument(
        "--base", metavar="REF", help="take the gates from it (default: origin/main, then main)"
    )
    words["review"].add_argument(
        "--approved", default="", metavar="WHO", help="the code owner who let gates be loosened"
    )
    words["review"].add_argument(
        "--committed", action="store_true", help="hold the lock of HEAD's commit, and not the work tree's, to its gate"
    )
    words["take"].add_argument("--run", type=int, metavar="ID", help="a run's number (default: the newest of HEAD)")
    words["take"].add_argument("--folder", type=Path, help="a bundle that is here already")
    words["ci"].add_argument("action", choices=CI, help="; ".join(f"{name}: {what}" for name, what in CI.items()))
    words["ci"].add_argument("--base", default="", metavar="COMMIT", help="the base, for `baseline` (default: none)")
    words["ci"].add_argument("--run", type=int, metavar="ID", help="the run, for `comment`, `commit-lock` and `store`")
    words["ci"].add_argument("--digest", metavar="DIGEST", help="the image, for `record` and `promote`")
    words["ci"].add_argument("--stage", choices=("staging", "production"), help="for `promote`")
    words["ci"].add_argument("--full", action="store_true", help="`reproduce` runs every stage again")
    words["ci"].add_argument("--dispatch", action="store_true", help="`commit-lock` starts the checks by hand")
    words["reproduce"].add_argument("--full", action="store_true", help="run every stage again, not only train")
    words["release"].add_argument("--bump", choices=("patch", "minor", "major"), help="which part rises (patch)")
    words["release"].add_argument("--commit", metavar="REF", help="a commit that was delivered (default: production's)")
    words["github"].add_argument("--dry-run", action="store_true", help="change nothing, say what would be set")
    _storage(words["storage"])
    words["promote"].add_argument("stage", choices=("staging", "production"))
    words["promote"].add_argument("digest", metavar="DIGEST", help="the image, sha256:…")
    words["rollback"].add_argument(
        "version", nargs="?", metavar="VERSION", help="v1.2.0, model#production#7 or a digest (default: the one before)"
    )
    actions = words["registry"].add_subparsers(dest="action", metavar="ACTION", required=True)
    told = actions.add_parser("status", help="a table of the stages, and what disagrees")
    told.add_argument("--mend", action="store_true", help="let the registry's tags and Deployments follow the GTO tags")
    actions.add_parser("history", help="every promotion, newest first")
    words["score"].add_argument("source", metavar="IN", help="a file, folder or glob; .parquet, .csv or .csv.gz")
    words["score"].add_argument("target", metavar="OUT", help="the file to write; .parquet or .csv")
    words["score"].add_argument("--model", type=Path, help="an ONNX file of this project (default: models/model.onnx)")
    words["image"].add_argument("--base", metavar="IMAGE", help="base image (default: the official slim Python)")
    words["image"].add_argument("--network", metavar="NAME", help="network of the build, such as host")
    for side, meant in (("candidate", "default: the Bento of the trained model"), ("baseline", "default: none")):
        words["loadtest"].add_argument(f"--{side}", metavar="WHAT", help=f"a URL, a Bento or an image ({meant})")
    words["loadtest"].add_argument("--network", metavar="NAME", help="network of containers, such as host")
    words["serve"].add_argument("--port", type=int, default=3000, help="port on 127.0.0.1 (default: 3000)")
    return root


def _storage(words: argparse.ArgumentParser) -> None:
    actions = words.add_subparsers(dest="action", metavar="ACTION", required=True)
    push = actions.add_parser("push", help="store every object of dvc.lock that the storage lacks")
    push.add_argument("--yes", action="store_true", help="agree that data of a public repository becomes public")
    push.add_argument("--again", action="store_true", help="replace objects that are stored by those of this machine")
    push.add_argument("--optional", action="store_true", help="where nothing may be written, say so and succeed")
    pull = actions.add_parser("pull", help="bring objects here and check them out")
    pull.add_argument("names", nargs="*", metavar="PATH", help="outputs, or folders of them (default: all)")
    pull.add_argument("--partial", action="store_true", help="leave what is nowhere to make pipeline")
    check = actions.add_parser("check", help="fail where a commit locks objects that nobody pushed")
    check.add_argument("names", nargs="*", metavar="COMMIT", help="default: HEAD")
    actions.add_parser("status", help="say what is here and what is stored")
    gc = actions.add_parser("gc", help="delete stored objects that no branch, tag or recent production version names")
    gc.add_argument("--dry-run", action="store_true", help="delete nothing, say what would go")
    gc.add_argument("--versions", type=int, default=5, metavar="N", help="production versions to keep (default: 5)")


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; return 0, or 1 (3 for rejected rows, 130 when interrupted) after one line on standard error."""
    words = parser().parse_args(arguments)
    try:
        VERBS[words.verb][0](words)
    except UserError as error:
        _fail(str(error))
        return error.code
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}; nothing half-written was kept")
    except KeyboardInterrupt:
        _fail("interrupted; nothing half-written was kept")
        return 130
    return 0


def _fail(message: str) -> int:
    told = " ".join(message.split())
    print(f"ml: {told}", file=sys.stderr)
    if os.environ.get("GITHUB_ACTIONS"):
        print(f"::error::{told.replace('%', '%25')}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
