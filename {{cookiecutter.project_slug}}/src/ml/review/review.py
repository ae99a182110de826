"""Reviews the work tree: measures it beside production, judges it by the base's gates and writes the report."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ml.errors import SourceError, UserError
from ml.pipeline import evaluate, split, tracking, train
from ml.pipeline import params as settings
from ml.pipeline.params import Params
from ml.pipeline.tables import write_bytes, write_json
from ml.review import behaviour, card, gates, lock, measure, report, sides
from ml.review.aside import Aside
from ml.review.gates import Facts
from ml.review.verdict import Change, Code, Importance, Result, Side, Verdict

FOLDER = Path("reports/review")
CARD = Path("reports/card.md")
DRAWINGS = "drawings.json"
METRICS = str(evaluate.METRICS)
JUDGE = "src/ml/review/"
LEAST = 30  # rows; fewer cannot be compared at all
OF_MODEL = ("data", "floor", "harm", "calibration", "slices", "fairness", "behaviour", "predictions", "parity")
OF_PRODUCTION = ("harm", "calibration", "predictions")


def reason(error: Exception) -> str:
    """Return why something cannot be measured."""
    if isinstance(error, UserError):
        return str(error)
    said = " ".join(str(error).split())[:200]
    return (
        f"what is to be measured is not as the pipeline writes it ({type(error).__name__}: {said}): run make pipeline"
    )


class Collector:
    """Gathers facts; what cannot be measured leaves its gates unjudged, with the reason."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.unjudged: dict[str, str] = {}
        self.broken: dict[str, str] = {}

    def take(self, found: Callable[[], dict[str, Any]], *of: str) -> None:
        try:
            self.facts.update(found())
        except Exception as error:  # an output that no stage wrote may fail in any way
            self.unjudged.update(dict.fromkeys(of, reason(error)))


def judging(own: Params, base: sides.Commit | None) -> tuple[Params, Params | None, str]:
    """Return the settings to judge by, the base's own, and what to say of it.

    What is judged stays the change's; how it is judged comes from the base.
    """
    if base is None:
        return own, None, "There is no base yet: the gates are the change's own."
    content = base.file("params.yaml")
    if str(train.MODEL) not in base.outputs():
        return own, None, f"{base.ref} has no model yet, so it asks for nothing: the gates are the change's own."
    if content is None or not re.search(rb"(?m)^gates:", content):
        return own, None, f"{base.ref} has no gates yet: they are the change's own."
    theirs = settings.parse(content.decode(errors="replace"), f"params.yaml of {base.ref}")
    if theirs.task != own.task:
        return own, theirs, "The task changed: the base's gates do not fit it, so the change's own are used."
    return own.model_copy(update={name: getattr(theirs, name) for name in gates.JUDGED_BY}), theirs, ""


def expectations(base: sides.Commit | None) -> tuple[behaviour.Cases, behaviour.Cases, list[Change]]:
    """Return the change's cases, the base's with the change's further ones, and which of the base's are altered."""
    path = Path(behaviour.PATH)
    own = behaviour.parse(path.read_bytes() if path.exists() else b"")
    content = base.file(behaviour.PATH) if base and str(train.MODEL) in base.outputs() else None
    if content is None:
        return own, own, []
    theirs = behaviour.parse(content, f"{behaviour.PATH} of {base.ref}")
    mine, known = own.by_name(), theirs.by_name()
    altered = [
        Change(name=f"behaviour: {name}", before=_words(case), after=_words(mine.get(name)))
        for name, case in known.items()
        if mine.get(name) != case
    ]
    kept = {
        kind: [*getattr(theirs, kind), *(case for case in getattr(own, kind) if case.name not in known)]
        for kind in behaviour.Cases.model_fields
    }
    return own, behaviour.Cases(**kept), altered


def _words(case: behaviour.Case | None) -> str:
    return "" if case is None else json.dumps(case.model_dump(exclude={"name"}, exclude_defaults=True), sort_keys=True)


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """Return the settings that differ, by dotted key."""
    old, new = gates.flat(before), gates.flat(after)
    return [
        Change(name=key, before=gates.text(old.get(key)), after=gates.text(new.get(key)))
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def collect(
    params: Params,
    own_lock: dict[str, str],
    base: sides.Commit | None,
    against: sides.Commit | None,
    cases: behaviour.Cases,
    other: Aside,
    committed: bool,
) -> tuple[Facts, dict[str, Any]]:
    """Return the facts, and what only the report shows (with the sides, and what gives their drawings)."""
    found, shown = Collector(), dict[str, Any]()

    def problems() -> dict[str, Any]:
        return {"lock": lock.of_commit(other.problems(), base) if committed else other.problems()}

    found.take(lambda: {"reproduced": measure.reproduced()}, "determinism")
    try:
        ours = measure.candidate(params)
    except Exception as error:  # as in Collector
        found.unjudged.update(dict.fromkeys(OF_MODEL, reason(error)))
        found.take(problems, "lock")
        return Facts(first=against is None, **found.facts, unjudged=found.unjudged), shown
    theirs = None
    if against is not None:
        try:
            theirs = measure.production(against, ours, own_lock)
            if theirs.mask.sum() < LEAST:
                rows = f"{theirs.mask.sum()} of {len(theirs.mask)} holdout rows"
                raise UserError(f"production's model learned from all but {rows}: too few to compare on")
        except Exception as error:  # as in Collector
            unfit = isinstance(error, UserError) and not isinstance(error, SourceError)
            if unfit:
                found.unjudged.update(dict.fromkeys(OF_PRODUCTION, str(error)))
            else:
                found.broken.update(dict.fromkeys(OF_PRODUCTION, f"production cannot be read: {reason(error)}"))
            theirs = None
    found.facts["whole"] = measure.whole(params, ours)
    found.take(lambda: {"grouping": other.start_groups(*measure.to_group(params, ours))}, "fairness")
    found.take(lambda: {"schema_changes": measure.schema_changes(ours, base)}, "data")
    found.take(lambda: measure.columns(params, ours, base, own_lock), "data")
    asked, whole = (ours.runtime, ours.contract, ours.holdout), found.facts["whole"]
    found.take(lambda: {"behaviour": behaviour.failures(cases, *asked), "cases": len(cases.all())}, "behaviour")
    found.take(lambda: {"parity": measure.parity(ours), "misreported": measure.misreported(whole)}, "parity")
    # Late, since resampling uses every core, of which the second process has left one by now; the slices last, beside
    # which the second process draws the rest.
    found.take(lambda: {"metrics": measure.compared(params, ours, theirs, measure.noise())}, "harm", "calibration")
    shown["reliability"] = measure.reliability(params, ours.truth, ours.scores, ours.contract)
    known = theirs.importance if theirs and theirs.same else {}
    shown["importance"] = [
        Importance(name=name, candidate=value, production=known.get(name))
        for name, value in sorted(ours.importance.items(), key=lambda item: (-item[1], item[0]))
    ]
    if theirs is not None:
        changed = measure.flipped(ours, theirs)[theirs.mask]
        shown["flips"] = found.facts["flips"] = float(changed.mean())
        shown["largest"] = measure.largest(params, ours, theirs)
        shown["reliability_before"] = measure.reliability(
            params, ours.truth[theirs.mask], theirs.scores[theirs.mask], theirs.contract
        )
    seen = {key: found.facts[key] for key in ("metrics", "columns") if key in found.facts}
    seen = Verdict.model_construct(task=params.task, objective=params.objective.metric, **seen, **shown)
    shown["drawn"] = other.start_drawing(*to_draw(seen, ours, theirs))
    found.take(lambda: {"slices": measure.sliced(params, ours, theirs)}, "slices")
    if (grouping := found.facts.pop("grouping", None)) is not None:
        found.take(lambda: {"groups": grouping()}, "fairness")
    found.facts["measured"] = measure.results(hashlib.sha256(ours.model).hexdigest())
    found.take(problems, "lock")
    shown["sides"] = (ours, theirs)
    facts = Facts(first=against is None, **found.facts, unjudged=found.unjudged, broken=found.broken)
    return facts, shown


def notes(facts: Facts, params: Params) -> list[str]:
    """Return what a reader should know beside the gates."""
    found = []
    for metric in facts.metrics:
        # Two retrains of one recipe differ by sqrt(2) deviations of one, and 19 of 20 times by less than twice that.
        usual = 2 * 2**0.5 * (metric.noise or 0.0)
        if metric.margin is not None and metric.margin < usual:
            found.append(
                f"The margin {metric.margin:g} of {metric.name} is below what a retrain alone may move ({usual:.4f}): "
                "expect false alarms, or raise it."
            )
    if facts.metrics and not any(metric.noise is not None for metric in facts.metrics):
        found.append("The noise of retraining is not known: reports/repeat/metrics.json is missing or not readable.")
    return found


def edited(code: list[Code]) -> list[str]:
    """Return a note where the change edits what judges it."""
    files = [part.path for part in code if part.path.startswith(JUDGE)]
    if not files:
        return []
    rest = f" and {len(files) - 2} more" if len(files) > 2 else ""
    return [f"The change edits the review itself, and is judged by it as edited: {', '.join(files[:2])}{rest}."]


def run(
    params: Params,
    other: Aside,
    against: str | None = None,
    base: str | None = None,
    approved: str = "",
    *,
    committed: bool = False,
) -> Verdict:
    """Write the report, the page and the card of the work tree, and return the verdict.

    With `committed`, the lock gate judges the lock of HEAD's commit, whatever the pipeline made here since.
    """
    base_ref = base or sides.default_base()
    at_base = sides.Commit.at(base_ref) if base_ref else None
    other_ref = against or sides.newest_production() or base_ref
    at_other = sides.Commit.at(other_ref) if other_ref else None
    model, commit = str(train.MODEL), tracking.commit()
    sha, dirty = commit.get("git.commit", ""), commit.get("git.dirty") == "true"
    if at_other is not None and model not in at_other.outputs():
        if against:
            raise UserError(f"{against} has no {model} in its dvc.lock: name a commit that has one with --against")
        # What is in production and cannot be read is not a first model, unless it was delivered before any lock was.
        at_other = at_other if sides.STAGE.fullmatch(other_ref) and at_other.ever("dvc.lock") else None
    own_lock = sides.locked(Path("dvc.lock").read_bytes(), "the work tree") if Path("dvc.lock").exists() else {}
    unjudged: dict[str, str] = {}
    try:
        judged_by, theirs, note = judging(params, at_base)
    except UserError as error:
        judged_by, theirs, note, unjudged = params, None, "", {"gates": str(error)}
    cases, held_to, altered = behaviour.Cases(), behaviour.Cases(), []
    try:
        cases, held_to, altered = expectations(at_base)
    except UserError as error:
        unjudged["behaviour"] = str(error)
    loosened = [*(gates.loosened(theirs, params) if theirs else []), *altered]
    facts, shown = collect(judged_by, own_lock, at_base, at_other, held_to, other, committed)
    facts = replace(facts, loosened=loosened, unjudged={**facts.unjudged, **unjudged})
    results = gates.judge(facts, judged_by)
    base_results, own_results = [], []
    if loosened:
        own_facts, own_shown = collect(params, own_lock, at_base, at_other, cases, other, committed)
        own_facts = replace(own_facts, loosened=loosened, unjudged={**own_facts.unjudged, **unjudged})
        base_results, own_results = results, gates.judge(own_facts, params, approved)
        if approved:
            facts, shown, results = own_facts, own_shown, own_results
    seen_sides, drawn = shown.pop("sides", None), shown.pop("drawn", None)
    code = sides.changed(at_base.sha) if at_base else []
    verdict = Verdict(
        project=project()["name"],
        task=params.task,
        decision=params.objective.decision,
        objective=judged_by.objective.metric,
        confidence=judged_by.review.confidence,
        candidate=Side(ref="work tree", commit=sha, dirty=dirty, model=own_lock.get(model, "")),
        production=at_other.side() if at_other else None,
        base=at_base.side() if at_base else None,
        approved=approved,
        results=results,
        base_results=base_results,
        own_results=own_results,
        loosened=loosened,
        notes=[*([note] if note else []), *edited(code), *notes(facts, judged_by)],
        metrics=facts.metrics,
        slices=facts.slices,
        groups=facts.groups,
        columns=facts.columns,
        schema_changes=facts.schema_changes,
        rows=facts.rows,
        params=differences(theirs.model_dump(mode="json"), params.model_dump(mode="json")) if theirs else [],
        code=code,
        service=facts.measured.get("service", {}),
        environment=tracking.environment(),
        commands=commands(sha, at_other, at_base),
        **shown,
    )
    write(verdict, seen_sides, params, lambda: drawn() | other.slices(verdict))
    return verdict


def write(
    verdict: Verdict,
    seen: tuple[measure.Candidate, measure.Production | None] | None,
    params: Params,
    drawn: Callable[[], dict[str, str]],
) -> None:
    """Write verdict, report and page, and the card where there is a model."""
    drawings = {}
    if seen is not None:
        drawings, ours = drawn(), seen[0]
        content = card.card(verdict, card_facts(verdict, params, ours))
        write_bytes(content.encode(), CARD)
        write_json({"model": hashlib.sha256(ours.model).hexdigest(), "drawings": drawings}, FOLDER / DRAWINGS)
    report.write(verdict, drawings, FOLDER)


def join(verdict: Verdict) -> Verdict:
    """Write the report again with what load test and image's checks found after the verdict, and return both as one.

    What was turned off stays off. Without a model there is nothing to join.
    """
    if not (FOLDER / DRAWINGS).is_file():
        return verdict
    kept = json.loads((FOLDER / DRAWINGS).read_text())
    measured = measure.results(kept["model"])

    def judged(results: list[Result]) -> list[Result]:
        off = {result.gate for result in results if result.sentence == gates.OFF}
        return [
            Result(gate=result.gate, **measured[result.gate]) if result.gate in measured.keys() - off else result
            for result in results
        ]

    lists = {name: judged(getattr(verdict, name)) for name in ("results", "base_results", "own_results")}
    joined = verdict.model_copy(update={**lists, "service": measured.get("service", verdict.service)})
    report.write(joined, kept["drawings"], FOLDER)
    return joined


def to_draw(verdict: Verdict, ours: measure.Candidate, theirs: measure.Production | None) -> tuple[Any, ...]:
    """Return what `plots.draw` takes, both models on the rows that neither learned from."""
    mask = slice(None) if theirs is None else theirs.mask
    scores = [side.scores[mask] for side in (ours, theirs) if side is not None]
    if verdict.task == "binary":
        scores = [side[:, 1] for side in scores]
    before = scores[1] if theirs is not None else None
    contract = ours.contract
    return verdict, ours.truth[mask], scores[0], before, contract.get("threshold"), contract.get("classes", [])


def lines(verdict: Verdict) -> list[str]:
    """Return the verdict as a terminal shows it."""
    width = max(len(result.gate) for result in verdict.results)
    against = f"against {verdict.production.ref}" if verdict.production else "the first model"
    mends = {result.gate: f"; to merge: {result.remedy}" for result in verdict.blocked if result.remedy}
    told = [f"{r.gate:<{width}}  {r.status:<10}  {r.sentence}{mends.get(r.gate, '')}" for r in verdict.results]
    ending = [] if verdict.blocked else [verdict.headline]
    return [*told, *verdict.notes, f"{FOLDER}/report.html ({against})", *ending]


def diff(ref: str) -> str:
    """Return as Markdown which settings and metrics differ from a commit.

    Raises UserError where a side has no metrics, since an empty table would say that nothing changed.
    """
    commit, found = sides.Commit.at(ref), []
    for name, load in (("params.yaml", YAML(typ="safe").load), (METRICS, json.loads)):
        if (then := commit.file(name)) is None:
            raise UserError(f"{ref} has no {name}: choose a commit after its make pipeline, with --against")
        if not Path(name).exists():
            raise UserError(f"{name} is missing here: run make pipeline")
        found += differences(_values(then, load, f"{name} of {ref}"), _values(Path(name).read_bytes(), load, name))
    rows = [f"| {change.name} | {change.before} | {change.after} |" for change in found]
    return "\n".join([f"| | {ref} | work tree |", "| --- | --- | --- |", *rows] if rows else [f"the same as on {ref}"])


def _values(content: bytes, load: Callable[[str], Any], where: str) -> dict[str, Any]:
    try:
        found = load(content.decode())
    except (YAMLError, ValueError):
        found = None
    if not isinstance(found, dict) or not found:
        raise UserError(f"{where} holds no values to compare: run make pipeline, or name a commit that has them")
    return found


def card_facts(verdict: Verdict, params: Params, ours: measure.Candidate) -> dict[str, Any]:
    """Return what the card says beside the verdict."""
    about = project()
    periods = {side: sorted(getattr(ours, side)["period"].unique()) for side in ("train", "holdout")}
    before, license = verdict.production, about.get("license", "")
    return {
        "name": about["name"],
        "description": about.get("description", ""),
        "owner": next((author["name"] for author in about.get("authors", [])), ""),
        "license": license if isinstance(license, str) else license.get("text", ""),
        "decision": params.objective.decision,
        "intended_use": params.card.intended_use,
        "out_of_scope": params.card.out_of_scope,
        "limits": params.card.limits,
        "periods_train": periods["train"],
        "periods_holdout": periods["holdout"],
        "rows_train": len(ours.train),
        "rows_holdout": len(ours.holdout),
        "model_sha256": hashlib.sha256(ours.model).hexdigest(),
        "model_md5": hashlib.md5(ours.model, usedforsecurity=False).hexdigest(),
        "data_md5": hashlib.md5(split.TRAIN.read_bytes(), usedforsecurity=False).hexdigest(),
        "estimator": params.train.estimator,
        "settings": params.train.settings,
        "commit": verdict.candidate.commit,
        "environment": verdict.environment,
        "rollback": f"{before.version or before.ref}, commit {before.commit[:12]}, model {before.model[:12]}"
        if before
        else "none: this is the first model",
        "threshold": ours.contract.get("threshold"),
        "scored_only": params.deliver.reproduce == "evaluate",
    }


def project() -> dict[str, Any]:
    """Return the section `project` of pyproject.toml; raise UserError where it has none with a name."""
    try:
        found = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
        _ = found["name"], [author["name"] for author in found.get("authors", [])]
    except (ValueError, KeyError, TypeError):
        said = "pyproject.toml needs a section project with a name, and authors with theirs"
        raise UserError(f"{said}: restore it with git") from None
    return found


def commands(commit: str, against: sides.Commit | None, base: sides.Commit | None) -> list[str]:
    """Return what makes this report again, though branches move on."""
    fetch = [f"git checkout {commit}"] if commit else []
    named = [f"AGAINST={against.sha[:12]}"] if against else []
    named += [f'ARGS="--base {base.sha[:12]}"'] if base else []
    return [*fetch, "make setup", "make pipeline", " ".join(["make review", *named])]
