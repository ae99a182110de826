"""Runs in the project's interpreter: `python review.py power` prints as JSON how well the review judges, or `million`.

Not named after its subject, statistics: Python puts this folder before its own library.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import permutations
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy import integrate, optimize, special, stats

from ml.pipeline import export, features, params, repeat, split, train
from ml.pipeline.estimators import pipeline as unfitted
from ml.pipeline.params import Params
from ml.pipeline.tables import read_output
from ml.review import compare, gates, measure
from ml.review.verdict import Metric

PAIRS, SEEDS, DRAWS, HOLDOUTS = 200, 12, 200, 1000  # row-wise swaps, retrains, new holdouts, simulated holdouts
RESAMPLES = 500
LOSS, SKILL = 0.01, "average_precision_skill"  # the loss is of ROC AUC
BASE, SHIFTS, ALIKE, ROWS = 0.2, (1.0, 0.9), 0.8, 4000  # of a simulated holdout
MILLION = 1_000_000


def side(score: np.ndarray) -> SimpleNamespace:
    """Return a side of the comparison whose second class has these scores (n,)."""
    contract = {"task": "binary", "threshold": 0.25}
    scores = np.column_stack([1 - score, score])
    return SimpleNamespace(scores=scores, contract=contract, mask=np.ones(len(score), dtype=bool))


def compared(own: Params, truth: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> dict[str, Metric]:
    """Return what the review measures of two scores (n,) of the same rows."""
    one = side(ours)
    one.truth = truth
    return {metric.name: metric for metric in measure.compared(own, one, side(theirs), {})}


settings = cache(params.read)


def drawn(resamples: int, seed: int) -> Params:
    """Return the project's settings with so many resamples."""
    own = settings()
    return own.model_copy(update={"review": own.review.model_copy(update={"resamples": resamples, "seed": seed})})


def verdict(found: dict[str, Metric]) -> dict[str, Any]:
    """Return for each metric with a margin what the gate says and whether the interval excludes zero."""
    judged = [metric for metric in found.values() if metric.margin is not None]
    said = {m.name: {"status": gates.harm(m)[0], "unlike": not m.delta.low <= 0 <= m.delta.high} for m in judged}
    statuses = [entry["status"] for entry in said.values()]
    return said | {"gate": {"status": worst(statuses), "unlike": any(entry["unlike"] for entry in said.values())}}


def worst(statuses: Iterable[str]) -> str:
    """Return what the gate says of several metrics, as `gates` does."""
    found = set(statuses)
    return next(status for status in ("failed", "not judged", "passed") if status in found)


def shares(verdicts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return for each metric the share of verdicts of a kind."""
    wanted = {"failed": ("status", "failed"), "unjudged": ("status", "not judged"), "unlike": ("unlike", True)}
    return {
        metric: {
            name: np.mean([one[metric].get(key) == value for one in verdicts]) for name, (key, value) in wanted.items()
        }
        for metric in verdicts[0]
    }


def everywhere(work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Yield the work on each item, one process a core."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(work, items)


def fitted(recipe: tuple[str, dict[str, Any], int]) -> np.ndarray:
    """Return the holdout's scores (n,) of a recipe: estimator, settings and seed, trained as `repeat` does."""
    own, learned = settings(), read_output(split.TRAIN)
    estimator, knobs, seed = recipe
    model = unfitted(estimator, own.task, knobs, seed)
    model = train.fit(model, features.inputs(learned), train.target(learned, own))
    return export.expected(model, features.inputs(read_output(split.HOLDOUT)))[:, 1]


def truth_and_score() -> tuple[np.ndarray, np.ndarray]:
    """Return the holdout's target and the scores of the project's model, both (n,)."""
    holdout = read_output(split.HOLDOUT)
    runtime = export.session(train.MODEL.read_bytes())
    return train.target(holdout, settings()), export.scores(runtime, features.inputs(holdout))[:, 1]


def swapped(truth: np.ndarray, scores: np.ndarray, seed: int) -> dict[str, Any]:
    """Judge two models (2, n) after each row's two scores were swapped or not, so that neither is better."""
    swap = np.random.default_rng(seed).random(len(truth)) < 0.5
    ours, theirs = np.where(swap, scores[::-1], scores)
    return verdict(compared(drawn(RESAMPLES, seed), truth, ours, theirs))


def retrained(truth: np.ndarray, scores: np.ndarray, pair: tuple[int, int]) -> dict[str, Any]:
    """Judge one retrain against another."""
    ours, theirs = pair
    return verdict(compared(drawn(RESAMPLES, ours * len(scores) + theirs), truth, scores[ours], scores[theirs]))


def false_alarms() -> dict[str, Any]:
    """Judge models of which neither is better than the other."""
    own, (truth, score) = settings().train, truth_and_score()
    other = [(own.estimator, own.settings | {"max_leaf_nodes": 15}, own.seed), ("linear", {}, own.seed)]
    again = [(own.estimator, own.settings, own.seed + 1 + place) for place in range(SEEDS)]
    retuned, linear, *models = list(everywhere(fitted, [*other, *again]))
    found = {
        "retuned": list(everywhere(partial(swapped, truth, np.stack([score, retuned])), range(PAIRS))),
        "linear": list(everywhere(partial(swapped, truth, np.stack([score, linear])), range(PAIRS))),
        "retrains": list(everywhere(partial(retrained, truth, np.stack(models)), permutations(range(SEEDS), 2))),
    }
    return {
        **{kind: shares(verdicts) | {"pairs": len(verdicts)} for kind, verdicts in found.items()},
        **{"noise": noise(truth, models), "seeds": SEEDS, "rows": len(truth), "resamples": RESAMPLES},
    }


def noise(truth: np.ndarray, models: list[np.ndarray]) -> dict[str, float]:
    """Return the standard deviation between the retrains of the two judged metrics."""
    figures = [compare.at_once(compare.ranking(truth, score), len(truth)) for score in models]
    return {name: entry["standard_deviation"] for name, entry in repeat.spread(figures).items()}


def worsened(truth: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Return the score with so much noise on its logit that its ROC AUC is lower by LOSS on these rows."""
    logit = special.logit(np.clip(score, 1e-6, 1 - 1e-6))
    blur = np.random.default_rng(0).normal(size=len(score))
    wanted = auc(truth, score) - LOSS
    weight = optimize.brentq(lambda weight: auc(truth, logit + weight * blur) - wanted, 0, 5, xtol=1e-9)
    return special.expit(logit + weight * blur)


def auc(truth: np.ndarray, score: np.ndarray) -> float:
    """Return the ROC AUC."""
    return compare.at_once(compare.ranking(truth, score), len(truth))["roc_auc"]


def renewed(truth: np.ndarray, ours: np.ndarray, theirs: np.ndarray, seed: int) -> dict[str, Any]:
    """Judge both scores on rows drawn from these, of which the truth is known."""
    at = np.random.default_rng(seed).integers(0, len(truth), len(truth))
    return verdict(compared(drawn(RESAMPLES, seed), truth[at], ours[at], theirs[at]))


def power() -> dict[str, Any]:
    """Judge a model that is worse by exactly LOSS."""
    truth, score = truth_and_score()
    worse, own = worsened(truth, score), settings()
    skills = [compare.at_once(compare.ranking(truth, side), len(truth))[SKILL] for side in (score, worse)]
    about = {
        "loss": LOSS,
        "true_loss_of_skill": skills[0] - skills[1],
        "margin_of_skill": own.gates.harm.margins[SKILL],
    }
    found = shares(list(everywhere(partial(renewed, truth, worse, score), range(DRAWS))))
    return found | about | {"draws": DRAWS, "rows": len(truth), "resamples": RESAMPLES}


def probability(value: np.ndarray, shift: float) -> np.ndarray:
    """Return the chance of the second class at a value that is normal around 0 in the first, around `shift` in it."""
    return special.expit(special.logit(BASE) + shift * value - shift**2 / 2)


def true_figures(shift: float) -> dict[str, float]:
    """Return what the metrics of `probability` are on all rows there could be, by integration."""

    def mean(of: Callable[[float], float], centre: float) -> float:
        return integrate.quad(lambda x: of(x) * stats.norm.pdf(x - centre), centre - 9, centre + 9)[0]

    def precision(x: float) -> float:
        hits, alarms = BASE * stats.norm.sf(x - shift), (1 - BASE) * stats.norm.sf(x)
        return hits / (hits + alarms)

    square = mean(lambda x: (1 - probability(x, shift)) ** 2, shift), mean(lambda x: probability(x, shift) ** 2, 0.0)
    return {
        "roc_auc": float(stats.norm.cdf(shift / np.sqrt(2))),
        "average_precision_skill": (mean(precision, shift) - BASE) / (1 - BASE),
        "brier": BASE * square[0] + (1 - BASE) * square[1],
    }


def simulated(rows: int, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return truth and two scores of the same rows, which err alike."""
    random = np.random.default_rng(seed)
    truth = (random.random(rows) < BASE).astype(int)
    errors = random.multivariate_normal([0, 0], [[1, ALIKE], [ALIKE, 1]], rows).T
    return truth, [probability(truth * shift + error, shift) for shift, error in zip(SHIFTS, errors, strict=True)]


def held(true: dict[str, float], seed: int) -> dict[str, bool]:
    """Return for each metric whether the interval of the difference holds the true one."""
    truth, scores = simulated(ROWS, seed)
    found = compared(drawn(RESAMPLES, seed), truth, *scores)
    return {name: found[name].delta.low <= value <= found[name].delta.high for name, value in true.items()}


def coverage() -> dict[str, Any]:
    """Ask how often an interval holds a difference that is known."""
    ours, theirs = (true_figures(shift) for shift in SHIFTS)
    true = {name: ours[name] - theirs[name] for name in ours}
    found = list(everywhere(partial(held, true), range(HOLDOUTS)))
    shares_held = {name: np.mean([one[name] for one in found]) for name in true}
    return {"held": shares_held, "true": true, "holdouts": len(found), "rows": ROWS, "resamples": RESAMPLES}


def million() -> dict[str, Any]:
    """Compare two scores of a million rows as the review does, and look at the slices."""
    own, holdout = drawn(2000, 0), read_output(split.HOLDOUT)
    truth, score = truth_and_score()
    random = np.random.default_rng(0)
    at = random.integers(0, len(truth), MILLION)
    blurs = random.normal(0, 0.002, (2, MILLION))
    ours, theirs = (side(np.clip(score[at] + blur, 0, 1)) for blur in blurs)
    ours.truth, ours.holdout = truth[at], holdout[["carrier", "origin", "departure_minute", "precip"]].iloc[at]
    start = perf_counter()
    measure.compared(own, ours, theirs, {})
    between = perf_counter()
    slices = measure.sliced(own, ours, theirs)
    seconds = {"compared": between - start, "sliced": perf_counter() - between}
    return seconds | {"slices": len(slices), "rows": MILLION, "resamples": own.review.resamples}


if __name__ == "__main__":
    work = {"false_alarms": false_alarms, "power": power, "coverage": coverage, "million": million}
    print(json.dumps(work[sys.argv[1]]()))
