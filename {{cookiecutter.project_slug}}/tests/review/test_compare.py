from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ml.pipeline import metrics
from ml.pipeline.params import METRICS, Params
from ml.review import compare

CLASSES = ["long", "middle", "short"]
CONTRACTS = {
    "binary": {"threshold": 0.25},
    "multiclass": {"classes": CLASSES},
    "regression": {},
}
ALSO = {"binary": {"selection_rate"}, "multiclass": set(), "regression": {"bias"}}
SOME = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def drawn(task: str, seed: int, rows: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return truth and scores with many ties: every score is one of `steps` + 1 values."""
    random = np.random.default_rng(seed)
    if task == "binary":
        score = random.integers(0, steps + 1, rows) / steps
        return random.integers(0, 2, rows), np.column_stack([1 - score, score])
    if task == "multiclass":
        parts = random.integers(0, steps + 1, (rows, 3)) + 1.0
        return np.array(CLASSES, dtype=object)[random.integers(0, 3, rows)], parts / parts.sum(axis=1, keepdims=True)
    return random.normal(5, 3, rows), random.integers(0, steps + 1, rows).astype(float)


def quietly(params: Params, truth: np.ndarray, score: np.ndarray) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return metrics.of_task(params, CONTRACTS[params.task], truth, score)


def lacking(task: str, truth: np.ndarray) -> bool:
    """Return whether a class does not occur, or values do not differ: scikit-learn then writes what it agreed upon."""
    return len(np.unique(truth.astype(str))) < {"binary": 2, "multiclass": 3, "regression": 2}[task]


def assert_same(params: Params, found: dict[str, float], truth: np.ndarray, score: np.ndarray) -> None:
    wanted = quietly(params, truth, score)
    for name, value in found.items():
        if not np.isfinite(value):
            assert lacking(params.task, truth), name
        else:
            assert value == pytest.approx(wanted[name], rel=1e-9, abs=1e-9), name


@pytest.fixture(params=list(METRICS))
def params(request: pytest.FixtureRequest, settings: Callable[..., Params], small: dict) -> Params:
    return settings(small[request.param])


def test_every_metric_of_the_task_is_measured(params: Params) -> None:
    truth, score = drawn(params.task, 0, 20, 5)

    found = compare.at_once(compare.measure(params, CONTRACTS[params.task], truth, score), 20)

    assert set(found) == set(METRICS[params.task]) | ALSO[params.task]


@SOME
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 60), steps=st.sampled_from([1, 3, 1000]))
def test_with_weights_of_one_a_figure_is_that_of_the_pipeline(params: Params, seed: int, rows: int, steps: int) -> None:
    truth, score = drawn(params.task, seed, rows, steps)

    found = compare.at_once(compare.measure(params, CONTRACTS[params.task], truth, score), rows)

    assert_same(params, found, truth, score)


@SOME
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 40), steps=st.sampled_from([1, 3, 1000]))
@example(seed=6047, rows=2, steps=1)
def test_a_weight_is_how_often_a_row_stands_there(params: Params, seed: int, rows: int, steps: int) -> None:
    truth, score = drawn(params.task, seed, rows, steps)
    times = np.random.default_rng(seed + 1).integers(0, 4, (3, rows))
    times[:, 0] += 1

    found = compare.measure(params, CONTRACTS[params.task], truth, score)(times.astype(float))

    for at, counts in enumerate(times):
        figures = {name: values[at] for name, values in found.items()}
        assert_same(params, figures, np.repeat(truth, counts), np.repeat(score, counts, axis=0))


def test_a_constant_score_ranks_nothing(settings: Callable[..., Params]) -> None:
    truth = np.array([0, 1, 1, 0, 0])
    score = np.full((5, 2), 0.5)

    found = compare.at_once(compare.measure(settings(), CONTRACTS["binary"], truth, score), 5)

    assert found["roc_auc"] == 0.5
    assert found["average_precision"] == pytest.approx(0.4)
    assert found["average_precision_skill"] == pytest.approx(0)


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_of_one_class_alone_there_is_no_ranking(task: str, settings: Callable[..., Params], small: dict) -> None:
    truth, score = drawn(task, 0, 12, 4)
    truth[:] = truth[0]

    found = compare.at_once(compare.measure(settings(small[task]), CONTRACTS[task], truth, score), 12)

    assert np.isnan(found["roc_auc"])


def test_one_metric_alone_is_the_same_as_among_the_others(params: Params) -> None:
    truth, score = drawn(params.task, 1, 50, 9)
    weights = compare.weights(50, range(10), 0)
    whole = compare.measure(params, CONTRACTS[params.task], truth, score)(weights)

    for name in METRICS[params.task]:
        alone = compare.measure(params, CONTRACTS[params.task], truth, score, only=name)(weights)
        assert list(alone) == [name]
        np.testing.assert_array_equal(alone[name], whole[name])


def counted(rows: int, resamples: int, seed: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Return the weights that a bootstrap gave its measure, and the shapes in which it gave them."""
    shapes: list[tuple[int, int]] = []

    def weights(drawn: np.ndarray) -> dict[str, np.ndarray]:
        shapes.append(drawn.shape)
        return {"weights": drawn}

    return compare.bootstrap({"it": weights}, rows, resamples, seed)["it"]["weights"], shapes


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("cells", [1, 100, 350, 10_000], ids=lambda cells: f"{cells} cells")
def test_the_draws_follow_from_the_seed_and_not_from_the_size_of_a_chunk_or_the_machine(
    cells: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = compare.weights(50, range(23), seed=4)

    monkeypatch.setattr(compare, "CELLS", cells)
    monkeypatch.setattr(compare, "THREADS", threads)
    found, shapes = counted(50, 23, seed=4)

    np.testing.assert_array_equal(found, wanted)
    assert all(rows * resamples <= max(cells, 50) for resamples, rows in shapes)
    assert (wanted.sum(axis=1) == 50).all()
    assert not np.array_equal(wanted, compare.weights(50, range(23), seed=5))
    assert len(np.unique(wanted, axis=0)) == 23


def test_a_bootstrap_holds_no_more_weights_than_a_chunk_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "CELLS", 1000)

    found, shapes = counted(90, 40, seed=0)

    assert sorted(shapes) == [(7, 90)] + [(11, 90)] * 3
    assert found.sum(axis=1).tolist() == [90.0] * 40


def test_two_equal_models_differ_by_nothing_in_every_draw(params: Params) -> None:
    truth, score = drawn(params.task, 2, 80, 1000)
    sides = {side: compare.measure(params, CONTRACTS[params.task], truth, score.copy()) for side in ("one", "other")}

    found = compare.bootstrap(sides, 80, 50, seed=0)

    for name, draws in found["one"].items():
        difference = compare.interval(0.0, draws - found["other"][name], 0.95)
        assert (difference.low, difference.high) == (0, 0)


def test_a_difference_is_paired_and_so_far_surer_than_two_figures(settings: Callable[..., Params], small: dict) -> None:
    params, error = settings(small["regression"]), np.abs(np.random.default_rng(0).normal(0, 2, 300))
    truth = np.zeros(300)
    sides = {side: compare.measure(params, {}, truth, error + more) for side, more in (("one", 0.0), ("other", 0.1))}

    found = compare.bootstrap(sides, 300, 200, seed=0)

    one, other = (found[side]["mean_absolute_error"] for side in sides)
    np.testing.assert_allclose(other - one, 0.1)
    assert np.std(one) > 0.05


def test_an_interval_holds_the_true_figure_about_as_often_as_it_says(
    settings: Callable[..., Params], small: dict
) -> None:
    params, held = settings(small["regression"]), 0
    for seed in range(100):
        error = np.random.default_rng(seed).normal(0.3, 1, 60)
        measure = compare.measure(params, {}, np.zeros(60), error)
        draws = compare.bootstrap({"it": measure}, 60, 200, seed)["it"]["bias"]
        span = compare.interval(compare.at_once(measure, 60)["bias"], draws, 0.9)
        held += span.low <= 0.3 <= span.high

    assert 82 <= held <= 97


def test_an_interval_lies_between_the_percentiles_of_the_draws_that_have_a_figure() -> None:
    draws = np.array([np.nan, *np.arange(101), np.inf])

    found = compare.interval(50.0, draws, 0.9)

    assert (found.value, found.low, found.high) == (50, pytest.approx(5), pytest.approx(95))


@pytest.mark.parametrize(
    ("value", "draws"),
    [
        pytest.param(0.5, [np.nan, np.nan], id="no draw has a figure"),
        pytest.param(float("nan"), [0.1, 0.2], id="the rows have no figure"),
        pytest.param(float("-inf"), [0.1, 0.2], id="the figure has no bound"),
    ],
)
def test_where_there_is_no_figure_there_is_no_interval(value: float, draws: list[float]) -> None:
    found = compare.interval(value, np.array(draws), 0.95)

    assert (found.low, found.high) == (None, None)


def test_the_smallest_detectable_difference_is_two_point_eight_deviations_at_95_percent() -> None:
    draws = np.random.default_rng(0).normal(3, 2, 10_000)

    assert compare.detectable(draws, 0.95) == pytest.approx(2.8016 * np.std(draws), rel=1e-4)
    assert compare.detectable(np.append(draws, np.nan), 0.95) == compare.detectable(draws, 0.95)
    assert compare.detectable(draws, 0.99) > compare.detectable(draws, 0.95)


def test_a_part_is_measured_by_the_draws_of_its_own_rows(params: Params) -> None:
    truth, score = drawn(params.task, 6, 90, 7)
    places = np.flatnonzero(np.arange(90) % 3 == 1)
    contract = CONTRACTS[params.task]
    drawn_weights = compare.weights(90, range(5), 0)

    found = compare.within(compare.measure(params, contract, truth[places], score[places]), places)(drawn_weights)

    for at, weights in enumerate(drawn_weights[:, places].astype(int)):
        figures = {name: values[at] for name, values in found.items()}
        assert_same(params, figures, np.repeat(truth[places], weights), np.repeat(score[places], weights, axis=0))
