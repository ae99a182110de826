"""The rows of docs/benchmarks.md: one method each."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.measure import RSS_UNIT, CommandFailedError, Cost, Found, cost, interleaved, middle, ratio
from tests.conftest import ROOT, Bake, clean_environment

PROBE, PROMOTION, REVIEW = (Path(__file__).with_name(f"{name}.py") for name in ("probe", "promotion", "review"))
THEIRS = (
    "DVC_SITE_CACHE_DIR",
    "MLFLOW_TRACKING_URI",
    "OMP_NUM_THREADS",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONHASHSEED",
    "PYTHONPATH",
)
SHELLS = ({"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"}, {"PYTHONHASHSEED": "2", "OMP_NUM_THREADS": "2"})
STAGES = [*(f"ingest 2013-{month:02}" for month in range(1, 11)), "split", "train", "evaluate", "repeat"]
GB = 1e9
JUDGED = ("average_precision_skill", "roc_auc")  # the metrics of gates.harm.margins
TARGETS = {
    "bake": "under 1 s of processor time beyond `cookiecutter --version`",
    "month": "the twelfth month at most 0.2 of the period stages of all twelve",
    "overhead": "cold `dvc repro` of ten months at most 6 × the same functions in one process",
    "unchanged": "`dvc repro` with nothing to do at most 1.5 × `dvc status`",
    "caches": "`data/` and `models/` deleted: `dvc repro` restores them without running `train`",
    "determinism": "two folders, other hash seeds, 1 and 2 threads: the same `dvc.lock`, byte for byte",
    "memory": "peak of any stage under 1.5 GB",
    "cli": "`ml --help` at most 0.2 s over a bare Python start",
    "false_alarms": "where neither model is better, `harm` fails at most 5 % of pairs, plus a standard error",
    "power": "a model whose ROC AUC is truly lower by the margin, 0.01, fails `harm` in at least 95 %",
    "coverage": "93 to 97 % of the 95 % intervals of a difference hold the true one",
    "review": "`ml review` of a changed model at most 2 × `ml evaluate`, in under 1 GB",
    "review_million": "a million rows compared and sliced in under 5 minutes and 2 GB",
    "promotion": "a promotion at most 2 s, a rollback at most 10 s, without smoke test, against a registry beside it",
    "prose": "all jobs of a pull request that changes prose at most 0.15 × those of one that trains on everything",
}


class Round(NamedTuple):
    """A cold pipeline and the same functions in one process, in the same folder and shell, and what each said."""

    cold: Cost
    stages: list[dict]
    single: Cost
    whole: dict
    lock: bytes


class Bench:
    """Two projects, baked and set up once, and what is measured in them."""

    def __init__(self, scratch: Path, repeats: int) -> None:
        self.scratch, self.repeats = scratch, repeats
        self.template = Bake(ROOT, scratch)

    @cached_property
    def a(self) -> Path:
        return self.prepared("a")

    @cached_property
    def b(self) -> Path:
        return self.prepared("b")

    @cached_property
    def baked(self) -> Path:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return self.template.into(self.scratch / "once", project_slug="bench", python_version=version)

    def prepared(self, name: str) -> Path:
        """Return a project that is committed and has run once, so that its environment has its bytecode."""
        project = shutil.copytree(self.baked, self.scratch / name / "bench")
        cost(["make", "setup"], project, clean_environment())
        self.commit(project, "Bake")
        self.first = self.run(project, "python", PROBE, *STAGES)
        self.run(project, "dvc", "status")
        return project

    def commit(self, project: Path, message: str) -> None:
        """Commit all that is there."""
        who = ("-c", "user.name=Bench", "-c", "user.email=bench@example.com")
        self.run(project, "git", "add", "--all")
        self.run(project, "git", *who, "commit", "--quiet", "--no-verify", "--message", message)

    def cookiecutter(self, *arguments: str | Path) -> Cost:
        """Run cookiecutter with this interpreter."""
        return cost([sys.executable, "-m", "cookiecutter", *arguments], self.scratch, clean_environment())

    def run(self, project: Path, *command: str | Path, **more: str) -> Cost:
        """Run in the project as its Makefile does; what DVC remembers of the machine stays in the project too."""
        environment = {name: value for name, value in clean_environment().items() if name not in THEIRS}
        environment |= {"DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment["DVC_SITE_CACHE_DIR"] = str(project / ".dvc/tmp/site")
        environment["PATH"] = os.pathsep.join([str(project / ".venv/bin"), environment["PATH"]])
        # The environment's own program, whatever a caller's PATH would find first.
        own = project / ".venv/bin" / command[0]
        return cost([own if own.exists() else command[0], *command[1:]], project, environment | more)

    def fresh(self, project: Path) -> None:
        """Make the project what `git clone` would give, but for its environment."""
        self.run(project, "git", "reset", "--quiet", "--hard")
        self.run(project, "git", "clean", "-qfdx", "--exclude", ".venv")

    @cached_property
    def rounds(self) -> list[Round]:
        """Cold pipelines and single processes in turn, in two folders and two shells."""
        found = []
        for index in range(self.repeats):
            project, shell = (self.a, self.b)[index % 2], SHELLS[index % 2]
            self.fresh(project)
            single = self.probed(project, "single", "python", PROBE, *STAGES, **shell | {"PYTHONHASHSEED": "0"})
            self.fresh(project)
            cold = self.probed(project, "cold", "dvc", "repro", **shell)
            found.append(Round(*cold, single[0], single[1][0], (project / "dvc.lock").read_bytes()))
        return found

    def probed(self, project: Path, name: str, *command: str | Path, **more: str) -> tuple[Cost, list[dict]]:
        """Run with an `ml` that also says what it took, and return what each process said."""
        shim, log = self.scratch / name / "ml", self.scratch / name / "log"
        shim.parent.mkdir(exist_ok=True)
        log.unlink(missing_ok=True)
        python = project / ".venv/bin/python"
        shim.write_text(f'#!/bin/sh\nexec "{python}" "{PROBE}" "$*"\n')
        shim.chmod(0o755)
        path = os.pathsep.join([str(shim.parent), clean_environment()["PATH"]])
        found = self.run(project, *command, PATH=path, PROBE_LOG=str(log), **more)
        return found, [json.loads(line) for line in log.read_text().splitlines()]

    @cached_property
    def done(self) -> Path:
        """A project whose pipeline has run."""
        project = self.b
        self.run(project, "git", "reset", "--quiet", "--hard")
        self.run(project, "ml", "prune")
        self.run(project, "dvc", "repro")
        return project

    @cached_property
    def changed(self) -> Path:
        """A copy of a finished project, whose change of a setting is trained and not yet merged."""
        project = shutil.copytree(self.done, self.scratch / "changed", symlinks=True, ignore=only(self.done, ".venv"))
        (project / ".venv").symlink_to(self.done / ".venv")
        self.commit(project, "Train")
        params = project / "params.yaml"
        params.write_text(re.sub(r"(?m)^(    max_iter:) \d+$", r"\1 120", params.read_text()))
        self.run(project, "dvc", "repro")
        self.run(project, "ml", "review")
        return project

    def said(self, project: Path, word: str, **more: str) -> tuple[dict, Cost]:
        """Return what review.py prints, and what it cost."""
        found = self.run(project, "python", REVIEW, word, **more)
        return json.loads(found.printed.splitlines()[-1]), found

    def bake(self) -> Found:
        """Bake against `cookiecutter --version`."""
        folders = iter(range(5))
        words = (ROOT, "--no-input", "--config-file", self.template.config, "--output-dir")
        bakes, starts = interleaved(
            lambda: self.cookiecutter(*words, self.scratch / f"bake-{next(folders)}"),
            lambda: self.cookiecutter("--version"),
            5,
        )
        more = middle(bakes, "cpu") - middle(starts, "cpu")
        return Found(
            f"{more:.2f} s",
            more < 1,
            "median of 5, in turn; processor time of the process and its children",
            f"`cookiecutter --version` alone takes {middle(starts, 'cpu'):.2f} s.",
        )

    def month(self) -> Found:
        """Add the twelfth month to eleven, against all twelve."""
        whole, growing = self.a, self.b
        self.fresh(growing)
        set_months(growing, 11)
        self.run(growing, "dvc", "repro", "ingest")
        lock = (growing / "dvc.lock").read_bytes()

        def one() -> Cost:
            set_months(growing, 12)
            found = self.run(growing, "dvc", "repro", "ingest")
            if ran(found) != ["ingest@2013-12"]:
                raise CommandFailedError(f"adding a month ran {', '.join(ran(found)) or 'nothing'}")
            forget(growing, "2013-12", lock)
            return found

        def twelve() -> Cost:
            self.fresh(whole)
            set_months(whole, 12)
            return self.run(whole, "dvc", "repro", "ingest")

        ones, twelves = interleaved(one, twelve, self.repeats)
        self.fresh(growing)
        cpu, wall = ratio(ones, twelves, "cpu"), ratio(ones, twelves, "wall")
        return Found(
            f"{max(cpu, wall):.2f}",
            max(cpu, wall) <= 0.2,
            f"`dvc repro ingest` after eleven months against cold with twelve; {self.repeats} pairs in turn, "
            "the larger of processor and wall time",
            f"Processor time: {middle(ones, 'cpu'):.1f} s of {middle(twelves, 'cpu'):.1f} s ({cpu:.2f}); wall time: "
            f"{middle(ones, 'wall'):.1f} s of {middle(twelves, 'wall'):.1f} s ({wall:.2f}). Even without DVC the share "
            "would be 0.08; the start of DVC and its look at the eleven others are the rest.",
        )

    def unchanged(self) -> Found:
        """Run a finished pipeline again, against `dvc status`."""
        project = self.done
        repros, statuses = interleaved(
            lambda: self.run(project, "dvc", "repro"), lambda: self.run(project, "dvc", "status"), 7
        )
        found = ratio(repros, statuses, "wall")
        prune = self.run(project, "ml", "prune")
        return Found(
            f"{found:.2f} ×",
            found <= 1.5 and not any(ran(repro) for repro in repros),
            "median of 7 ratios of wall time, in turn",
            f"`dvc repro` {middle(repros, 'wall'):.1f} s, `dvc status` {middle(statuses, 'wall'):.1f} s. "
            f"`make pipeline` runs `ml prune` before it: another {prune.wall:.1f} s.",
        )

    def overhead(self) -> Found:
        """Compare the cold pipeline with one process, and say where the rest goes."""
        colds, singles = [found.cold for found in self.rounds], [found.single for found in self.rounds]
        found = ratio(colds, singles, "wall")
        return Found(
            f"{found:.1f} ×",
            found <= 6,
            f"median of {self.repeats} ratios of wall time, in turn, each from what `git clone` gives: no cache, "
            "no run-cache, no MLflow store",
            f"Wall time {middle(colds, 'wall'):.0f} s against {middle(singles, 'wall'):.0f} s, processor time "
            f"{middle(colds, 'cpu'):.0f} s against {middle(singles, 'cpu'):.0f} s "
            f"({ratio(colds, singles, 'cpu'):.1f} ×). {self._where()}",
        )

    def _where(self) -> str:
        cold, stages, single, whole, _ = self.rounds[0]
        in_stages = sum(stage["cpu"] for stage in stages)
        work = sum(sum(stage["work"].values()) for stage in stages)
        one = sum(whole["work"].values())
        dvc = self.run(self.a, "dvc", "stage", "list").cpu
        functions = ", ".join(f"{verb} {seconds:.1f} s" for verb, seconds in whole["work"].items())
        return (
            f"Where the processor time of the first cold run, with one thread, goes ({cold.cpu:.1f} s): "
            f"the functions {work:.1f} s (in one process {one:.1f} s: {functions}); {len(stages)} interpreters and "
            f"their imports {in_stages - work:.1f} s (in one process {single.cpu - one:.1f} s); DVC "
            f"{cold.cpu - in_stages:.1f} s, of which {dvc:.1f} s is its start and reading `dvc.yaml`, and the rest is "
            "hashing, locking, the state database and a shell for each stage. The first run after `make setup` also "
            f"compiles bytecode, once: {self.first.cpu - single.cpu:.0f} s more."
        )

    def caches(self) -> Found:
        """Delete data and models, then the lock too, and see what runs."""
        cold = middle([found.cold for found in self.rounds], "wall")
        project = self.done
        model, lock = (project / "models/model.onnx").read_bytes(), (project / "dvc.lock").read_bytes()
        restored = []
        for names in (("data", "models"), ("data", "models", "dvc.lock")):
            for name in names:
                path = project / name
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            restored.append(self.run(project, "dvc", "repro"))
        again, later = (ran(found) for found in restored)
        same = (project / "models/model.onnx").read_bytes() == model and (project / "dvc.lock").read_bytes() == lock
        return Found(
            (f"ran {', '.join(again)}" if again else "no stage ran") if same else "restored other bytes",
            "train" not in again and same,
            "the stages that DVC says it runs; model and lock compared byte for byte",
            f"Restoring takes {restored[0].wall:.1f} s against {cold:.0f} s cold; with `dvc.lock` deleted too it "
            f"takes {restored[1].wall:.1f} s and runs {', '.join(later) or 'nothing'}.",
        )

    def determinism(self) -> Found:
        """Compare the locks of all cold runs."""
        locks = {found.lock for found in self.rounds}
        enough = len(self.rounds) > 1
        return Found(
            ("the same" if len(locks) == 1 else f"{len(locks)} different locks") if enough else "one run only",
            enough and len(locks) == 1,
            f"the locks of the {len(self.rounds)} cold runs above, in two folders in turn: `PYTHONHASHSEED=1 "
            "OMP_NUM_THREADS=1` and `PYTHONHASHSEED=2 OMP_NUM_THREADS=2`",
        )

    def memory(self) -> Found:
        """Find the largest stage."""
        peaks: dict[str, int] = {}
        for stage in (stage for found in self.rounds for stage in found.stages):
            (verb,) = stage["work"]
            peaks[verb] = max(stage["rss"] * RSS_UNIT, peaks.get(verb, 0))
        largest = max(peaks.values())
        return Found(
            f"{largest / GB:.2f} GB",
            largest < 1.5 * GB,
            "largest resident set of each stage in the cold runs above",
            ", ".join(f"`{verb}` {peak / GB:.2f} GB" for verb, peak in peaks.items()) + ".",
        )

    def cli(self) -> Found:
        """Start `ml --help` and a bare Python."""
        project = self.a
        helps, bares = interleaved(
            lambda: self.run(project, "ml", "--help"), lambda: self.run(project, "python", "-c", "pass"), 11
        )
        more = middle(helps, "wall") - middle(bares, "wall")
        return Found(
            f"{more:.2f} s",
            more <= 0.2,
            "difference of the medians of 11 wall times, in turn",
            f"A bare start takes {middle(bares, 'wall'):.2f} s.",
        )

    def false_alarms(self) -> Found:
        """Judge models of which neither is better: scores swapped row by row, and retrains with other seeds."""
        found, _ = self.said(self.done, "false_alarms", OMP_NUM_THREADS="1")
        kinds = {"retuned": "retuned, swapped", "linear": "linear, swapped", "retrains": "retrained"}
        failed = {kind: found[kind]["gate"]["failed"] for kind in kinds}
        excluded = "; ".join(f"{what} {unlike(found[kind])}" for kind, what in kinds.items())
        usual = ", ".join(f"{metric} {found['noise'][metric]:.4f}" for metric in JUDGED)
        return Found(
            ", ".join(f"{what} {failed[kind]:.1%}" for kind, what in kinds.items()),
            all(share <= 0.05 + (0.05 * 0.95 / found[kind]["pairs"]) ** 0.5 for kind, share in failed.items()),
            f"the holdout's {found['rows']:,} rows, margins of `params.yaml`, {found['resamples']} resamples. Swapped: "
            f"{found['linear']['pairs']} times, each row at random, the scores of the model and of one with smaller "
            f"trees, or of a linear one; retrained: the {found['retrains']['pairs']} ordered pairs of {found['seeds']} "
            "seeds of one recipe",
            f"How often the 95 % interval of a difference excludes zero: {excluded}. For swapped scores 5 % is right. "
            "Retrains do differ on these rows, by the luck of a seed and not by the recipe, and more rows would not "
            "help: a gate that asked for no significant difference would be red that often for nothing. Hence the "
            "margins, and the noise of retraining stated beside them (standard deviations here: "
            f"{usual}). The more the scores of two equal models differ by row, the wider the interval, and the more "
            "often it reaches beyond the margin: that is the share of the linear model.",
        )

    def power(self) -> Found:
        """Judge a model that is worse by the margin."""
        found, _ = self.said(self.done, "power", OMP_NUM_THREADS="1")
        share = found["gate"]["failed"]
        return Found(
            f"{share:.1%}",
            share >= 0.95,
            f"noise on the logit of the model's own score, so much that ROC AUC is {found['loss']:g} lower on the "
            f"whole holdout; {found['draws']} new holdouts of {found['rows']:,} rows drawn from it with replacement, "
            f"{found['resamples']} resamples",
            "The gate passes only what excludes a loss beyond the margin, so a loss as large as the margin passes "
            f"once in forty by design. By metric: roc_auc {found['roc_auc']['failed']:.1%}, average_precision_skill "
            f"{found['average_precision_skill']['failed']:.1%} (its true loss is {found['true_loss_of_skill']:.4f}, "
            f"margin {found['margin_of_skill']:g}); not judged {found['gate']['unjudged']:.1%}.",
        )

    def coverage(self) -> Found:
        """Ask how often an interval holds a difference that is known."""
        found, _ = self.said(self.done, "coverage", OMP_NUM_THREADS="1")
        error = (0.95 * 0.05 / found["holdouts"]) ** 0.5
        true = ", ".join(f"{metric} {value:.4f}" for metric, value in found["true"].items())
        return Found(
            ", ".join(f"{metric} {share:.1%}" for metric, share in found["held"].items()),
            all(0.93 <= share <= 0.97 for share in found["held"].values()),
            f"{found['holdouts']:,} simulated holdouts of {found['rows']:,} rows, {found['resamples']} resamples; two "
            "calibrated scores, normal in each class and correlated",
            f"A standard error of these shares is {error:.1%}. The true differences, by integration: {true}.",
        )

    def review(self) -> Found:
        """Review a changed model against main, and evaluate it."""
        project = self.changed
        reviews, evaluations = interleaved(
            lambda: self.run(project, "ml", "review"), lambda: self.run(project, "ml", "evaluate"), self.repeats
        )
        found, peak = ratio(reviews, evaluations, "wall"), max(review.rss for review in reviews)
        return Found(
            f"{found:.1f} ×, {peak / GB:.2f} GB",
            found <= 2 and peak < GB,
            f"median of {self.repeats} ratios of wall time, in turn, and the largest resident set",
            f"Wall time {middle(reviews, 'wall'):.1f} s against {middle(evaluations, 'wall'):.1f} s, processor time "
            f"{middle(reviews, 'cpu'):.1f} s against {middle(evaluations, 'cpu'):.1f} s. Most of `ml evaluate` is its "
            "imports; a review has those of DVC and matplotlib besides, in a second process, draws "
            "`review.resamples` times ten metrics of two models, and holds every row of train to the contract. Both "
            "processes want a core, so the ratio is worse where other work has them.",
        )

    def review_million(self) -> Found:
        """Compare and slice a million rows."""
        found, used = self.said(self.done, "million")
        seconds = found["compared"] + found["sliced"]
        return Found(
            f"{seconds:.0f} s, {used.rss / GB:.2f} GB",
            seconds < 300 and used.rss < 2 * GB,
            f"{found['rows']:,} rows drawn from the holdout with noise on both scores; every metric of two models by "
            f"{found['resamples']:,} resamples, the objective's metric of {found['slices']} slices by 500; the largest "
            "resident set",
            f"All metrics {found['compared']:.0f} s, slices {found['sliced']:.0f} s; processor time of the whole "
            f"{used.cpu:.0f} s.",
        )

    def promotion(self) -> Found:
        """Promote and roll back images against a real registry and a bare repository."""
        copy = shutil.copytree(self.a, self.scratch / "promoted", symlinks=True, ignore=only(self.a, ".venv"))
        (copy / ".venv").symlink_to(self.a / ".venv")
        shutil.copy(PROMOTION, copy / "tests/operations")
        printed = self.run(copy, "pytest", "-q", "tests/operations/promotion.py").printed
        found = json.loads(next(line for line in printed.splitlines() if line.startswith("{")))
        promoted, rolled = max(found["promoted"]), max(found["rolled"])
        return Found(
            f"{promoted:.1f} s, {rolled:.1f} s",
            promoted <= 2 and rolled <= 10,
            f"the slowest of {len(found['promoted'])} promotions (verify, tag in git and registry, Deployment) and of "
            f"{len(found['rolled'])} rollbacks (issue, then the same); a stand-in signs and verifies",
            f"Median {median(found['promoted']):.2f} s and {median(found['rolled']):.2f} s.",
        )

    def prose(self) -> Found:
        """Run the workflow of a change to prose, and of one that makes all from nothing."""
        sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/workflows")]
        from real import Project
        from world import World

        project = Project(self.done)
        base = os.environ.get("BASE_IMAGE", "")
        project.done("make", "image", f"ARGS=--network host{f' --base {base}' if base else ''}")
        if base:
            version = (self.done / ".python-version").read_text().strip()
            cost(["docker", "tag", base, f"python:{version}-slim"], self.scratch, clean_environment())
        with World.open(self.scratch / "known", project, after=("push --yes",)) as world:
            pull = world.pull_request(world.change({"README.md": "# Late?\n"}, "Ask"))
            few = world.run("pull-request.yml", pull.event())
        bare = project.copy(self.scratch / "bare" / "bench").forget()
        with World.open(self.scratch / "unknown", bare) as world:
            all_of_it = world.run("pull-request.yml", world.push())
        took = [sum(job.seconds for job in run.found.values()) for run in (few, all_of_it)]
        green = all(run.jobs["all-checks-pass"] == "success" for run in (few, all_of_it))
        return Found(
            f"{took[0] / took[1]:.3f}",
            green and took[0] / took[1] <= 0.15,
            "the steps of all jobs of pull-request.yml, added up, as `act` runs them, environment from a cache: "
            "a change of README.md against the first push, which ingests ten months, trains, tests, builds and loads; "
            "one run each",
            f"{took[0]:.0f} s against {took[1]:.0f} s. Jobs of the change to prose: "
            + ", ".join(f"{name} {job.seconds:.0f} s" for name, job in few.found.items() if job.conclusion != "skipped")
            + ".",
        )


def unlike(found: dict) -> str:
    """Return by metric how often an interval excludes zero."""
    return " and ".join(f"{found[metric]['unlike']:.1%} ({metric})" for metric in JUDGED)


def only(folder: Path, name: str) -> Callable[[str, list[str]], list[str]]:
    """Return what `shutil.copytree` should leave out: this name, right in the folder."""
    return lambda place, _: [name] if Path(place) == folder else []


def set_months(project: Path, count: int) -> None:
    """List the first `count` months of 2013 in params.yaml."""
    params = project / "params.yaml"
    listed = "".join(f"    - 2013-{month:02}\n" for month in range(1, count + 1))
    text, changed = re.subn(r"(?m)^(  periods:.*\n)(    - .*\n)+", rf"\g<1>{listed}", params.read_text())
    if changed != 1:
        raise CommandFailedError("params.yaml has no list data.periods")
    params.write_text(text)


def forget(project: Path, period: str, lock: bytes) -> None:
    """Take every trace of a period from the project: file, cached copy, run-cache, lock."""
    path = project / "data/ingest" / f"{period}.parquet"
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    path.unlink()
    (project / ".dvc/cache/files/md5" / digest[:2] / digest[2:]).unlink()
    shutil.rmtree(project / ".dvc/cache/runs")
    (project / "dvc.lock").write_bytes(lock)


def ran(repro: Cost) -> list[str]:
    """Return the stages that `dvc repro` ran."""
    return re.findall(r"Running stage '([^']+)'", repro.printed)
