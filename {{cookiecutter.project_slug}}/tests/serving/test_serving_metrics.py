from __future__ import annotations

from typing import Any

import numpy as np
import prometheus_client
import pytest
from small import contract

from ml.serving import metrics
from ml.serving.metrics import NO_FIELD, Metrics, Scores, known_rules
from ml.serving.request import Contract


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test the names that another has used."""
    registry = prometheus_client.CollectorRegistry()
    for name in ("Counter", "Gauge"):
        kind = getattr(prometheus_client, name)
        monkeypatch.setattr(
            metrics.prometheus_client, name, lambda *a, kind=kind, **k: kind(*a, registry=registry, **k)
        )
    monkeypatch.setattr(metrics, "Scores", lambda *a, **k: Scores(*a, registry=registry, **k))


def made(task: str = "binary") -> Metrics:
    return Metrics(Contract.parse(contract(task)), {"model": "abc", "version": "", "stage": ""})


def samples(metric: Any) -> dict[tuple[str, ...], float]:
    found = (sample for family in metric.collect() for sample in family.samples if not sample.name.endswith("_created"))
    return {(sample.name, *sample.labels.values()): sample.value for sample in found}


@pytest.mark.parametrize("count", [1, 7, 8, 1000])
def test_a_column_is_counted_as_its_values_are(count: int) -> None:
    values = np.random.default_rng(count).normal(0, 1, count).astype(np.float32)
    values[::5] = [0.05, 0.1, np.nan, np.inf, -np.inf][count % 5]
    buckets = [0.05, 0.1, 0.5, 1.0]
    whole, single = (Scores("x", "x", buckets=buckets, registry=prometheus_client.CollectorRegistry()) for _ in "ab")

    whole.observe_all(values)
    for value in values[np.isfinite(values)].tolist():
        single.observe(value)

    assert samples(whole) == pytest.approx(samples(single))


@pytest.mark.parametrize(
    ("task", "scores", "below", "counted"),
    [
        ("binary", [[0.9, 0.1], [0.2, 0.8]], ("ml_score_bucket", "0.5"), 1),
        ("multiclass", [[0.9, 0.1], [0.2, 0.8]], ("ml_score_bucket", "0.5"), 0),
        ("regression", [[-12.0], [300.0]], ("ml_value_bucket", "-10.0"), 1),
    ],
)
def test_each_task_counts_what_it_answers(
    task: str, scores: list[list[float]], below: tuple[str, str], counted: int
) -> None:
    found = made(task)

    found.count_scores(np.array(scores, np.float32), task)

    assert samples(found.scores)[below] == counted
    assert samples(found.scores)[below[0], "+Inf"] == 2


def test_values_of_any_unit_find_a_bucket() -> None:
    found = made("regression")

    found.count_scores(np.array([[-2e5], [-0.15], [0.0], [3.0], [4e5], [1e9]], np.float32), "regression")

    counts = [value for name, value in samples(found.scores).items() if name[0].endswith("_bucket")]
    assert np.diff([0, *counts]).max() == 1


def test_every_rule_of_the_contract_has_its_counter_and_others_share_one() -> None:
    agreement, found = Contract.parse(contract()), made()
    bad = [{"carrier": 1, "distance": 0, "temp": "x"}, {"distance": None, "carrier": "UA", "temp": -99}, {"tmp": 1}, 5]

    _, problems, _ = agreement.columns(bad)
    found.count_problems(problems)

    assert all(
        (problem.field, problem.rule) in found.rejected for problem in problems if problem.field in contract_fields()
    )
    counted = {pair: int(counter._value.get()) for pair, counter in found.rejected.items() if counter._value.get()}
    assert sum(counted.values()) == len(problems)
    assert counted[NO_FIELD, "unknown field"] == counted[NO_FIELD, "must be an object of named fields"] == 1
    assert set(counted) <= set(known_rules(agreement))


def contract_fields() -> set[str]:
    return {entry["name"] for entry in contract()["fields"]}
