"""What may go wrong or be done wrong, and which gates must then be red; each is declared before it is run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from real import Project

FORGE = Path(__file__).with_name("forge.py")
TRAIN, INGEST, SPLIT, SCHEMA = (f"src/ml/pipeline/{name}.py" for name in ("train", "ingest", "split", "schema"))
VISIB = '    visib: Series[float] = within(0, 100, "Visibility at the origin, miles", 10, nulls=0.1)\n'
FILTER = "rows.filter(list(schema.Row.to_schema().columns))"
READ = "    truth, holdout_truth = target(train, params), target(holdout, params)\n"
LABELLED = "    labelled = rows[rows[target].notna()]\n"
SIDES = "    train, holdout = labelled[~mask], labelled[mask]\n"


def own_code(project: Project) -> dict[str, str]:
    """Return the variables under which a copy runs its own code and not that of the shared environment."""
    return {"PYTHONPATH": str(project / "src"), "OMP_NUM_THREADS": "1"}


def repro(project: Project) -> None:
    project.done("make", "pipeline", **own_code(project))


def forged(how: str) -> Callable[[Project], None]:
    """Return what rewrites the model and all that was written of it, and has DVC take it for the pipeline's."""

    def apply(project: Project) -> None:
        project.done("python", FORGE, how, **own_code(project))
        project.done("ml", "evaluate", **own_code(project))
        project.done("dvc", "commit", "--force", "--quiet")

    return apply


def edited(name: str, old: str, new: str) -> Callable[[Project], None]:
    """Return what changes code or settings and runs the pipeline, as an author would."""

    def apply(project: Project) -> None:
        project.change(old, new, name)
        repro(project)

    return apply


def relearned(project: Project, setting: str = "max_iter: 30", other: str = "max_iter: 27") -> bytes:
    """Return the model of another setting; the project is left as it was."""
    project.change(setting, other)
    repro(project)
    model = (project / "models/model.onnx").read_bytes()
    project.change(other, setting)
    repro(project)
    return model


def of_another_model(project: Project) -> None:
    model = relearned(project)
    (project / "models/model.onnx").write_bytes(model)
    project.done("ml", "evaluate", **own_code(project))
    project.done("dvc", "commit", "--force", "--quiet")


def forge_lock(project: Project) -> None:
    """Lock a model of other settings as if the pipeline's had made it, with all its reports."""
    setting, other = "max_iter: 30", "max_iter: 27"
    project.change(setting, other)
    repro(project)
    project.change(other, setting)
    project.done("dvc", "commit", "--force", "--quiet")
    project.done("ml", "reproduce", **own_code(project))


def poison_the_run_cache(project: Project) -> None:
    """Leave an entry that claims another model for these inputs, and let DVC restore it instead of training."""
    names = ("models/model.onnx", "reports/train/expected.parquet")
    honest = [locked(project, name) for name in names]
    setting, other = "max_iter: 30", "max_iter: 27"
    project.change(setting, other)
    repro(project)
    foreign = [locked(project, name) for name in names]
    project.change(other, setting)
    project.done("git", "checkout", "--quiet", "dvc.lock", "reports")
    entry = next(p for p in (project / ".dvc/cache/runs").rglob("*") if p.is_file() and honest[0] in p.read_text())
    text = entry.read_text()
    entry.chmod(0o644)
    for old, new in zip(honest, foreign, strict=True):
        text = text.replace(old, new)
    entry.write_text(text)
    lock = (project / "dvc.lock").read_text()
    (project / "dvc.lock").write_text(re.sub(r"(?m)^  train:\n(    .*\n|  - .*\n)*", "", lock))
    for name in names:
        (project / name).unlink()
    said = project.done("dvc", "repro", **own_code(project))
    assert "Stage 'train' is cached" in said, said
    assert locked(project, names[0]) == foreign[0]
    project.done("ml", "reproduce", **own_code(project))


def locked(project: Project, path: str) -> str:
    """Return the md5 that dvc.lock has for an output."""
    return re.search(rf"- path: {re.escape(path)}\n(?:      .*\n)*?      md5: (\w+)", project.lock.decode())[1]


def add_a_leak(project: Project) -> None:
    """Make the delay at departure an input, under a name that nobody forbade."""
    project.change(VISIB, VISIB + '    waited: Series[float] = within(-120, 2880, "Minutes", 0, nulls=0.2)\n', SCHEMA)
    project.change("        departure_minute=", '        waited=rows["dep_delay"],\n        departure_minute=', INGEST)
    repro(project)


def rename_a_column(project: Project) -> None:
    project.change(VISIB, VISIB.replace("visib", "visibility"), SCHEMA)
    project.change(FILTER, FILTER.replace("rows.", 'rows.rename(columns={"visib": "visibility"}).'), INGEST)
    repro(project)


def lose_an_object(project: Project) -> None:
    remote = project / "remote"
    project.done("dvc", "remote", "add", "--default", "store", str(remote))
    project.done("dvc", "push")
    project.commit("Add a remote")
    victim = max((path for path in remote.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    victim.unlink()


def forget_production(project: Project) -> None:
    """Damage production's model in the cache, after another one was made."""
    md5 = locked(project, "models/model.onnx")
    project.change("max_iter: 30", "max_iter: 29")
    repro(project)
    stored = project / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    stored.chmod(0o644)
    stored.write_bytes(b"not a model")


def without_production(apply: Callable[[Project], None]) -> Callable[[Project], None]:
    """Return the same in a repository whose main never had a model."""

    def both(project: Project) -> None:
        project.done("git", "rm", "--quiet", "--cached", "dvc.lock")
        project.done("git", "commit", "--quiet", "--no-verify", "--message", "Before the first model")
        apply(project)

    return both


def measured(gate: str) -> Callable[[Project], None]:
    def apply(project: Project) -> None:
        model = project.python(
            "import hashlib, pathlib; print(hashlib.sha256(pathlib.Path('models/model.onnx').read_bytes()).hexdigest())"
        ).strip()
        folder = project / f"reports/{gate}"
        folder.mkdir(parents=True)
        result = {"model": model, "status": "failed", "sentence": "p99 is 1.8 times production's, at most 1.2"}
        (folder / "result.json").write_text(json.dumps(result))

    return apply


def stale(project: Project) -> None:
    project.change("max_iter: 30", "max_iter: 31")


def loosen(project: Project) -> None:
    project.change("    error: 0.12", "    error: 0.2")


def too_few(project: Project) -> None:
    """Judge another model by one evening of the newest month."""
    project.change(LABELLED, LABELLED + FEW, SPLIT)
    project.change("max_iter: 30", "max_iter: 60")
    repro(project)


FEW = """\
    newest = sorted(params.data.periods)[-1]
    labelled = labelled[(labelled["period"] != newest) | (labelled["time_hour"].dt.day == 2)]
    labelled = labelled[(labelled["period"] != newest) | (labelled["departure_minute"] > 1140)]
"""
SHIFT = '.assign(pressure=lambda found: found["pressure"] + 20)'
FLIPPED = READ + '    truth = np.where(train["carrier"] == "US", 1 - truth, truth)\n'
SHUFFLED = READ + "    truth = np.random.default_rng(0).permutation(truth)\n"
COPIED = SIDES + "    train = pd.concat([train, holdout.sample(300, random_state=0).assign(flight=99_000)])\n"


@dataclass(frozen=True)
class Sabotage:
    """`red` are the gates that must fail or stay unjudged, and no other."""

    name: str
    red: set[str]
    apply: Callable[[Project], None]

    def __str__(self) -> str:
        return self.name


SABOTAGES = [
    Sabotage(
        "shuffled labels", {"floor", "harm", "calibration", "slices", "predictions"}, edited(TRAIN, READ, SHUFFLED)
    ),
    Sabotage("weaker model", {"harm"}, edited("params.yaml", "max_iter: 30", "max_iter: 5")),
    Sabotage("weak first model", {"floor"}, without_production(edited("params.yaml", "max_iter: 30", "max_iter: 1"))),
    Sabotage("one carrier's scores turned round", {"slices"}, forged("carrier")),
    Sabotage("squared scores", {"calibration", "predictions"}, forged("squared")),
    Sabotage("monotone transform that keeps every decision", {"calibration"}, forged("squeezed")),
    Sabotage("one origin warned far more often", {"fairness"}, without_production(forged("origin"))),
    Sabotage("broken invariance", {"behaviour"}, forged("unseen")),
    Sabotage("threshold moved", {"predictions"}, forged("threshold")),
    Sabotage("ONNX of another model", {"parity"}, of_another_model),
    Sabotage("stale lock", {"lock"}, stale),
    Sabotage("forged lock", {"determinism"}, forge_lock),
    Sabotage("poisoned run-cache", {"determinism"}, poison_the_run_cache),
    Sabotage("file missing from the remote", {"lock"}, lose_an_object),
    Sabotage("leaking feature", {"data", "behaviour", "predictions"}, add_a_leak),
    Sabotage("shifted column", {"data"}, edited(INGEST, FILTER, FILTER + SHIFT)),
    Sabotage("renamed column", {"data", "behaviour"}, rename_a_column),
    Sabotage("holdout rows copied into train", {"data"}, edited(SPLIT, SIDES, COPIED)),
    Sabotage("production unreadable", {"data", "harm", "calibration", "predictions"}, forget_production),
    Sabotage("too few rows to judge", {"data", "harm", "calibration", "slices", "fairness"}, too_few),
    Sabotage("gate loosened in the same change", {"gates"}, loosen),
    Sabotage("slow service", {"service"}, measured("service")),
    Sabotage("bad image", {"image"}, measured("image")),
]
CONTROLS = [
    Sabotage("nothing changed", set(), lambda project: None),
    Sabotage("an honest change", set(), edited("params.yaml", "max_iter: 30", "max_iter: 33")),
    Sabotage("the first model ever", set(), without_production(lambda project: None)),
]
