from __future__ import annotations

import math

import numpy as np
import pytest

from ml.errors import UserError
from ml.pipeline import metrics
from ml.pipeline.params import Costs

COSTS = Costs(false_alarm=1, miss=3)
TRUTH = np.array([0, 0, 1, 1])
SCORE = np.array([0.1, 0.4, 0.35, 0.8])


def test_binary_figures_agree_with_four_rows_worked_out_by_hand() -> None:
    found = metrics.binary(TRUTH, SCORE, 0.375, COSTS, bins=2)

    assert found["rows"] == 4
    assert found["base_rate"] == 0.5
    # Of the four pairs of a late and a punctual row, three are in order.
    assert found["roc_auc"] == 0.75
    # Late rows rank first and third: (1/1 + 2/3) / 2.
    assert found["average_precision"] == pytest.approx(5 / 6)
    assert found["average_precision_skill"] == pytest.approx((5 / 6 - 0.5) / 0.5)
    assert found["log_loss"] == pytest.approx(-sum(map(math.log, [0.9, 0.6, 0.35, 0.8])) / 4)
    assert found["brier"] == pytest.approx((0.01 + 0.16 + 0.4225 + 0.04) / 4)
    # Below a half: mean score 0.85 / 3 against one in three; above: 0.8 against 1.
    assert found["expected_calibration_error"] == pytest.approx((3 * abs(0.85 / 3 - 1 / 3) + 0.2) / 4)
    assert (found["precision"], found["recall"], found["selection_rate"]) == (0.5, 0.5, 0.5)
    # One false alarm and one miss.
    assert found["cost"] == (1 + 3) / 4
    assert (found["cost_of_never"], found["cost_of_always"]) == (2 * 3 / 4, 2 * 1 / 4)


def test_the_skill_is_nought_for_a_constant_and_one_for_a_perfect_score() -> None:
    truth = np.tile([0, 0, 0, 1], 25)

    constant = metrics.binary(truth, np.full(100, 0.25), 0.25, COSTS, 10)
    perfect = metrics.binary(truth, truth.astype(float), 0.25, COSTS, 10)

    assert constant["average_precision_skill"] == pytest.approx(0)
    assert perfect["average_precision_skill"] == 1
    assert perfect["cost"] == perfect["brier"] == perfect["expected_calibration_error"] == 0


@pytest.mark.parametrize("outcome", [0, 1])
@pytest.mark.filterwarnings("ignore")
def test_rows_of_one_outcome_have_no_ranking_but_keep_the_other_figures(outcome: int) -> None:
    found = metrics.binary(np.full(4, outcome), SCORE, 0.375, COSTS, 5)

    assert math.isnan(found["roc_auc"])
    assert found["brier"] == pytest.approx(np.mean((SCORE - outcome) ** 2))
    assert found["cost"] == (6 / 4 if outcome else 2 / 4)


def test_the_calibration_error_agrees_with_a_plain_sum_over_bins() -> None:
    random = np.random.default_rng(0)
    score = random.uniform(size=5000)
    truth = (random.uniform(size=5000) < score**2).astype(int)

    wanted = 0.0
    for low in range(10):
        inside = (score >= low / 10) & (score < (low + 1) / 10)
        wanted += inside.sum() / 5000 * abs(score[inside].mean() - truth[inside].mean())

    assert metrics.expected_calibration_error(truth, score, 10) == pytest.approx(wanted)
    # The mean of |p - p²| is 1/6.
    assert wanted == pytest.approx(1 / 6, abs=0.02)


def test_the_calibration_table_keeps_both_ends_and_drops_empty_bins() -> None:
    table = metrics.calibration(np.array([0, 1, 1]), np.array([0.0, 1.0, 0.95]), 10)

    assert table["rows"].tolist() == [1, 2]
    assert table["predicted"].tolist() == [0.0, pytest.approx(0.975)]
    assert table["observed"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("false_alarm", "miss", "wanted"), [(1, 3, 0.25), (1, 1, 0.5), (4, 1, 0.8)], ids=["miss", "even", "alarm"]
)
def test_the_threshold_costs_least_on_calibrated_scores(false_alarm: float, miss: float, wanted: float) -> None:
    costs = Costs(false_alarm=false_alarm, miss=miss)
    random = np.random.default_rng(1)
    score = random.uniform(size=200_000)
    truth = (random.uniform(size=200_000) < score).astype(int)
    candidates = np.linspace(0.05, 0.95, 19)

    found = [metrics.cost(truth, score >= at, costs) for at in candidates]

    assert metrics.threshold(costs) == wanted
    assert candidates[np.argmin(found)] == pytest.approx(wanted, abs=0.051)
    assert metrics.cost(truth, score >= wanted, costs) == pytest.approx(min(found), rel=0.01)


def test_multiclass_figures_agree_with_four_rows_worked_out_by_hand() -> None:
    truth = np.array(["a", "b", "c", "c"], dtype=object)
    score = np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.2, 0.2, 0.6], [0.1, 0.1, 0.8]])

    found = metrics.multiclass(truth, score, ["a", "b", "c"], bins=2)

    assert found["accuracy"] == 0.75
    # Recalls 1, 0 and 1; F1 of a is 2/3 (one of two calls), of b 0, of c 1.
    assert found["balanced_accuracy"] == pytest.approx(2 / 3)
    assert found["f1_macro"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert found["roc_auc"] == 1.0
    loss = -sum(map(math.log, [0.6, 0.4, 0.6, 0.8])) / 4
    base = -(2 * math.log(0.25) + 2 * math.log(0.5)) / 4
    assert found["log_loss"] == pytest.approx(loss)
    assert found["log_loss_skill"] == pytest.approx(1 - loss / base)
    assert found["brier"] == pytest.approx(((0.16 + 0.09 + 0.01) + (0.25 + 0.36 + 0.01) + 0.24 + 0.06) / 4)
    # All likeliest shares are above a half: mean 0.625 against three of four right.
    assert found["expected_calibration_error"] == pytest.approx(0.125)


def test_a_class_without_a_row_leaves_the_ranking_open_and_the_rest_known() -> None:
    found = metrics.multiclass(np.array(["a", "a"], dtype=object), np.array([[0.9, 0.1], [0.4, 0.6]]), ["a", "b"], 5)

    assert math.isnan(found["roc_auc"])
    assert found["accuracy"] == 0.5


def test_regression_figures_agree_with_four_rows_worked_out_by_hand() -> None:
    found = metrics.regression(np.array([0.0, 10.0, 20.0, 30.0]), np.array([1.0, 10.0, 17.0, 36.0]))

    assert found == {
        "rows": 4,
        "mean_absolute_error": 2.5,
        "root_mean_squared_error": pytest.approx(math.sqrt(46 / 4)),
        "median_absolute_error": 2.0,
        "r2": pytest.approx(1 - 46 / 500),
        "bias": 1.0,
    }


def test_the_task_decides_which_figures_and_which_column_of_the_scores(settings, small) -> None:
    both = np.c_[1 - SCORE, SCORE]
    of = {task: settings({**changes, "evaluate.bins": 2}) for task, changes in small.items()}
    costs = of["binary"].objective.costs
    words = TRUTH.astype(str).astype(object)

    found = metrics.of_task(of["binary"], {"threshold": 0.375}, TRUTH, both)

    assert found == metrics.binary(TRUTH, SCORE, 0.375, costs, 2)
    assert metrics.of_task(of["multiclass"], {"classes": ["0", "1"]}, words, both)["rows"] == 4
    assert "r2" in metrics.of_task(of["regression"], {}, TRUTH, SCORE)


def test_a_class_that_was_not_learned_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"^the class z is judged but was not learned"):
        metrics.multiclass(np.array(["x", "z"], dtype=object), np.full((2, 2), 0.5), ["x", "y"], 2)


def test_the_threshold_itself_is_a_decision_to_act() -> None:
    scores = np.array([[0.75, 0.25], [0.76, 0.24], [0.1, 0.9]])

    assert metrics.decisions({"task": "binary", "threshold": 0.25}, scores).tolist() == [True, False, True]
    assert metrics.decisions({"task": "multiclass", "classes": ["a", "b"]}, scores).tolist() == ["a", "a", "b"]
    assert metrics.decisions({"task": "regression"}, scores[:, 0]) is None
