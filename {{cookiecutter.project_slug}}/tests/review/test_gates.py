from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ml.pipeline.params import Params
from ml.review import gates
from ml.review.gates import Facts
from ml.review.lock import Problem
from ml.review.verdict import GATES, Change, Column, Group, Interval, Metric, Result, Rows, SchemaChange, Slice

GOLD = "average_precision_skill"
WHOLE = {GOLD: 0.3, "roc_auc": 0.7, "log_loss": 0.5, "expected_calibration_error": 0.05}
WHOLE |= {"r2": 0.9, "mean_absolute_error": 1.0, "bias": 0.0}
OFF = dict.fromkeys(GATES[1:], False)
OTHER_BYTES = {
    "same": False,
    "differ": ["models/model.onnx"],
    "largest_difference": 0.172,
    "flips": 0.042,
}
LOWER = ("expected_calibration_error", "bias")


def metric(name: str, moved: tuple[float, float, float] | None = (0.0, -0.01, 0.01), **more: Any) -> Metric:
    """Return a metric whose difference is `moved`: its value and the ends of its interval."""
    value, low, high = moved or (0.0, None, None)
    spans = {
        "candidate": Interval(value=0.5 + value, low=0.4, high=0.6),
        "production": Interval(value=0.5, low=0.4, high=0.6),
        "delta": Interval(value=value, low=low, high=high),
    }
    better = "lower" if name in LOWER else "higher"
    return Metric(**{"name": name, "better": better, "rows": 1200} | spans | more)


def part(name: str, value: float | None, low: float | None, high: float | None, rows: int = 300) -> Slice:
    return Slice(name=name, rows=rows, candidate=Interval(value=value, low=low, high=high))


def group(value: str, rate: float | None, judged: bool = True, attribute: str = "plant") -> Group:
    figures = {"selection_rate": rate, "true_positive_rate": 0.5, "mean_absolute_error": 0.5}
    return Group(attribute=attribute, value=value, rows=100, judged=judged, figures=figures)


def sound(**changes: Any) -> Facts:
    """Return the facts of a change that passes every gate of the example."""
    found = {
        "whole": WHOLE,
        "metrics": [
            metric("roc_auc", margin=0.05),
            metric(GOLD, margin=0.1),
            metric("expected_calibration_error"),
        ],
        "slices": [part("north", 0.3, 0.2, 0.4), part("south", 0.1, -0.1, 0.3)],
        "groups": [group("north", 0.5), group("south", 0.4)],
        "columns": [Column(name="load", effect=0.05, limit=0.15, p=0.5, nulls_before=0, nulls_after=0.01, alone=0.7)],
        "rows": [Rows(period="2013-01", before=600, after=610)],
        "flips": 0.1,
        "cases": 3,
        "parity": (0, 2e-7),
        "reproduced": {"same": True},
        "measured": {gate: {"status": "passed", "sentence": "quick enough"} for gate in ("service", "image")},
    }
    return Facts(**found | changes | {"whole": WHOLE | changes.get("whole", {})})


def judged(gate: str, params: Params, approved: str = "", **changes: Any) -> Result:
    found = gates.judge(sound(**changes), params, approved)
    return next(result for result in found if result.gate == gate)


@pytest.fixture
def params(settings: Callable[..., Params]) -> Params:
    return settings()


def test_a_sound_change_passes_every_gate_and_each_says_so_in_a_sentence(params: Params) -> None:
    found = gates.judge(sound(), params)

    assert [result.gate for result in found] == list(GATES)
    assert {result.status for result in found} == {"passed"}
    assert [result.gate for result in found if not result.sentence.strip()] == []


def test_a_gate_that_is_off_is_skipped_and_says_where(settings: Callable[..., Params]) -> None:
    everything = {"lock": ["train: stale"], "cases": 0, "overlap": 1.0, "flips": 1.0, "parity": (9, 1.0)}
    why = dict.fromkeys(GATES[1:], "cannot be read")

    found = gates.judge(sound(**everything, unjudged=why, broken=why), settings({"gates": OFF}))

    assert {result.status for result in found if result.gate != "gates"} == {"skipped"}
    assert {result.sentence for result in found if result.gate != "gates"} == {"turned off in params.yaml"}


@pytest.mark.parametrize("gate", [*GATES])
def test_what_could_not_be_measured_is_not_judged_and_says_why(gate: str, params: Params) -> None:
    found = judged(gate, params, unjudged={gate: "holdout.parquet is missing"})

    assert (found.status, found.sentence) == ("not judged", "holdout.parquet is missing")


@pytest.mark.parametrize("gate", GATES[1:])
def test_what_must_not_stand_fails_even_where_it_could_not_be_judged(gate: str, params: Params) -> None:
    found = judged(gate, params, broken={gate: "the object is damaged"}, unjudged={gate: "missing"})

    assert (found.status, found.sentence) == ("failed", "the object is damaged")


def test_a_first_model_has_nothing_to_lose(params: Params) -> None:
    alone = [metric(name, production=None, delta=None) for name in (GOLD, "roc_auc", "expected_calibration_error")]
    found = gates.judge(sound(first=True, metrics=alone, flips=None, columns=[], rows=[]), params)

    assert {result.status for result in found} == {"passed"}
    said = {result.gate: result.sentence for result in found}
    assert said["harm"] == said["predictions"] == gates.FIRST
    assert said["data"] == f"sound; {gates.FIRST}"
    assert said["calibration"].endswith(gates.FIRST)


def moved(**changes: Any) -> list[Column]:
    usual = {"name": "load", "effect": 0.05, "limit": 0.15, "p": 0.0, "nulls_before": 0.0, "nulls_after": 0.0}
    return [Column(**usual | changes)]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param({"leaks": ["hours"]}, "hours, known only after the event, is an input", id="known leak"),
        pytest.param({"duplicates": 0.02}, "2.00% of rows share their keys, at most 0.10%", id="duplicates"),
        pytest.param({"overlap": 0.3}, "30.0% of holdout rows were learned from, at most 1.0%", id="overlap"),
        pytest.param(
            {"schema_changes": [SchemaChange(field="age", what="no longer taken", breaking=True)]},
            "callers break: age no longer taken",
            id="schema",
        ),
        pytest.param(
            {"columns": moved(alone=0.95)}, "load alone predicts too well (0.950, at most 0.9): a leak?", id="leak"
        ),
        pytest.param({"columns": moved(effect=0.2)}, "load lies 0.20 from the base's, at most 0.15", id="shift"),
        pytest.param({"columns": moved(nulls_after=0.06)}, "load is missing in 6.0%, 0.0% on the base", id="nulls"),
        pytest.param(
            {"columns": moved(nulls_before=0.06)}, "load is missing in 0.0%, 6.0% on the base", id="fewer nulls"
        ),
        pytest.param(
            {"rows": [Rows(period="2013-01", before=1000, after=700)]},
            "2013-01 has 700 rows, 1,000 on the base",
            id="rows",
        ),
    ],
)
def test_each_fault_of_the_data_is_named_with_its_value_and_rule(
    changes: dict[str, Any], sentence: str, params: Params
) -> None:
    found = judged("data", params, **changes)

    assert (found.status, found.sentence) == ("failed", sentence)
    assert found.remedy
    assert found.file == "src/ml/pipeline/schema.py"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"duplicates": 0.001, "overlap": 0.01}, id="as many as allowed"),
        pytest.param({"columns": moved(effect=0.9, p=0.02)}, id="a distance that may be chance"),
        pytest.param({"columns": moved(effect=0.3, limit=0.3)}, id="as far as a season"),
        pytest.param({"columns": moved(alone=0.9, nulls_after=0.05)}, id="at the limits"),
        pytest.param({"columns": [Column(name="load", alone=0.7)]}, id="a column that was not compared"),
        pytest.param(
            {"schema_changes": [SchemaChange(field="age", what="new, optional", breaking=False)]}, id="kind to callers"
        ),
        pytest.param({"rows": [Rows(period="2013-01", before=None, after=700)]}, id="a new period"),
        pytest.param({"rows": [Rows(period="2013-01", before=600, after=480)]}, id="as few rows as allowed"),
    ],
)
def test_what_the_rules_of_the_data_allow_passes(changes: dict[str, Any], params: Params) -> None:
    assert judged("data", params, **changes).status == "passed"


def test_a_failure_names_two_faults_and_counts_the_rest(params: Params) -> None:
    found = judged("data", params, leaks=["a", "b", "c", "d"])

    assert found.sentence == (
        "a, known only after the event, is an input; b, known only after the event, is an input and 2 more"
    )


@pytest.mark.parametrize(
    ("kinds", "remedy"),
    [
        pytest.param(["stale"], "make pipeline, then commit dvc.lock and reports/", id="stale"),
        pytest.param(["unpushed"], "make push", id="unpushed"),
        pytest.param(["unpushed", "missing"], "make pipeline, then commit dvc.lock and reports/", id="both"),
    ],
)
def test_a_lock_is_mended_by_what_is_wrong_with_it(kinds: list[str], remedy: str, params: Params) -> None:
    assert judged("lock", params, lock=[Problem(kind, "what") for kind in kinds]).remedy == remedy


def test_a_stale_lock_fails_with_what_is_stale(params: Params) -> None:
    found = judged("lock", params, lock=[Problem("stale", "train: params.yaml: train.seed is not as the lock has it")])

    assert (found.status, found.file) == ("failed", "dvc.lock")
    assert "train.seed is not as the lock has it" in found.sentence


@pytest.mark.parametrize(
    ("whole", "status", "sentence"),
    [
        pytest.param({}, "passed", f"{GOLD} 0.3000, floor 0.12", id="above"),
        pytest.param({GOLD: 0.12, "roc_auc": 0.6}, "passed", f"{GOLD} 0.1200, floor 0.12", id="at the floor"),
        pytest.param({GOLD: 0.11}, "failed", f"{GOLD} 0.1100, at least 0.12", id="objective below"),
        pytest.param({"roc_auc": 0.59}, "failed", "roc_auc 0.5900, at least 0.6", id="another below"),
        pytest.param({GOLD: float("nan")}, "failed", f"{GOLD} nan, at least 0.12", id="no figure"),
    ],
)
def test_no_metric_may_be_below_its_floor(whole: dict[str, float], status: str, sentence: str, params: Params) -> None:
    found = judged("floor", params, whole=whole)

    assert (found.status, found.sentence) == (status, sentence)


@pytest.mark.parametrize(
    ("value", "status"), [(1.9, "passed"), (2.0, "passed"), (2.1, "failed"), (float("nan"), "failed")]
)
def test_the_floor_of_an_error_is_a_ceiling(
    value: float, status: str, settings: Callable[..., Params], small: dict
) -> None:
    params = settings(small["regression"])

    found = judged("floor", params, whole={"mean_absolute_error": value})

    assert found.status == status
    assert status == "passed" or f"mean_absolute_error {value:.4f}, at most 2" in found.sentence


@pytest.mark.parametrize(
    ("delta", "status", "sentence"),
    [
        pytest.param((0.0, 0.0, 0.0), "passed", "the same on 1,200 rows", id="the same"),
        pytest.param((0.03, 0.01, 0.05), "passed", "better by 0.0300 (0.0100 to 0.0500) on 1,200 rows", id="better"),
        pytest.param(
            (-0.02, -0.03, -0.01),
            "passed",
            "worse by 0.0200 (0.0100 to 0.0300) on 1,200 rows, within what is allowed",
            id="worse within the margin",
        ),
        pytest.param(
            (0.0, -0.04, 0.05),
            "passed",
            "no evidence of harm on 1,200 rows; a loss of up to 0.0400 cannot be excluded",
            id="no evidence",
        ),
        pytest.param(
            (-0.07, -0.1, -0.04),
            "failed",
            "roc_auc lost 0.0700 on 1,200 rows; a loss of 0.1000 cannot be excluded, margin 0.05",
            id="lost",
        ),
        pytest.param(
            (0.01, -0.06, 0.03),
            "not judged",
            "1,200 rows are too few: roc_auc could have lost 0.0600, margin 0.05",
            id="gained and not sure",
        ),
        pytest.param(
            (0.0, -0.2, 0.2),
            "not judged",
            "1,200 rows are too few: roc_auc could have lost 0.2000, margin 0.05",
            id="too few rows",
        ),
        pytest.param((-0.1, -0.3, 0.1), "not judged", "1,200 rows are too few", id="lost, perhaps by chance"),
        pytest.param((-0.1, -0.19, -0.01), "failed", "roc_auc lost 0.1000", id="surely lost on few rows"),
        pytest.param(None, "not judged", "roc_auc has no interval on 1,200 rows", id="no interval"),
    ],
)
@pytest.mark.parametrize("better", ["higher", "lower"])
def test_harm_is_told_in_a_sentence_of_its_own(
    better: str, delta: tuple[float, float, float] | None, status: str, sentence: str
) -> None:
    value, low, high = delta or (0.0, None, None)
    if better == "lower" and delta:
        value, low, high = -value, -high, -low

    found = gates.harm(metric("roc_auc", (value, low, high), better=better, margin=0.05))

    assert found[0] == status
    assert found[1].startswith(sentence)


def test_without_a_margin_a_metric_is_told_and_never_judged(params: Params) -> None:
    lost = metric("recall", (-0.5, -0.6, -0.4))

    assert gates.harm(lost) == ("passed", "worse by 0.5000 (0.4000 to 0.6000) on 1,200 rows; no margin is set for it")
    assert judged("harm", params, metrics=[lost, metric("roc_auc", margin=0.05)]).status == "passed"


def test_a_sure_loss_stands_above_a_metric_that_too_few_rows_show(params: Params) -> None:
    unsure, lost = metric("roc_auc", (0.0, -0.2, 0.2), margin=0.05), metric(GOLD, (-0.3, -0.4, -0.2), margin=0.1)

    assert judged("harm", params, metrics=[unsure, lost]).status == "failed"
    assert GOLD in judged("harm", params, metrics=[unsure, lost]).sentence
    assert judged("harm", params, metrics=[unsure, metric(GOLD, margin=0.1)]).status == "not judged"


def test_harm_speaks_of_the_objective_first(params: Params) -> None:
    found = judged("harm", params)

    assert found.sentence.startswith(f"{GOLD}: no evidence of harm")


@pytest.mark.parametrize(
    ("error", "delta", "status", "sentence"),
    [
        pytest.param(0.15, (0.0, -0.01, 0.05), "passed", "at most 0.0500 above production", id="at both limits"),
        pytest.param(0.2, (0.0, -0.01, 0.01), "failed", "expected_calibration_error 0.2000, at most 0.15", id="large"),
        pytest.param(0.05, (0.04, 0.0, 0.06), "failed", "may have risen by 0.0600 against production", id="risen"),
        pytest.param(0.05, (-0.1, -0.2, -0.05), "passed", "at most 0.0000 above production", id="fallen"),
    ],
)
def test_calibration_is_held_to_a_limit_and_to_production(
    error: float, delta: tuple[float, float, float], status: str, sentence: str, params: Params
) -> None:
    found = judged(
        "calibration",
        params,
        whole={"expected_calibration_error": error},
        metrics=[metric("expected_calibration_error", delta)],
    )

    assert found.status == status
    assert sentence in found.sentence
    risen = status == "failed" and error <= 0.15
    assert (found.observed, found.threshold) == (("0.0600", "0.05") if risen else (f"{error:.4f}", "0.15"))


@pytest.mark.parametrize(
    ("before", "after", "status"),
    [
        pytest.param(-0.1, 0.1, "passed", id="as far on the other side"),
        pytest.param(0.1, -0.02, "passed", id="nearer, though the difference is large"),
        pytest.param(0.0, -0.1, "failed", id="lower than production"),
        pytest.param(0.0, 0.1, "failed", id="higher than production"),
    ],
)
def test_a_bias_counts_by_its_size(
    before: float, after: float, status: str, settings: Callable[..., Params], small: dict
) -> None:
    spans = {"candidate": after, "production": before, "delta": after - before}
    bias = metric("bias", **{key: Interval(value=at, low=at - 0.01, high=at + 0.01) for key, at in spans.items()})

    found = judged("calibration", settings(small["regression"]), whole={"bias": after}, metrics=[bias])

    assert found.status == status
    assert found.observed == (f"{abs(after) - abs(before) + 0.01:.4f}" if status == "failed" else f"{abs(after):.4f}")


@pytest.mark.parametrize(
    ("slices", "status", "sentence"),
    [
        pytest.param(
            [part("a", 0.2, 0.1, 0.3), part("b", -0.1, -0.2, 0.05)],
            "passed",
            "worst of 2: b -0.1000 on 300 rows, floor 0",
            id="low by chance",
        ),
        pytest.param(
            [part("a", -0.1, -0.2, -0.01), part("b", -0.2, -0.3, -0.1)],
            "failed",
            f"b: {GOLD} -0.2000 on 300 rows, floor 0; a: {GOLD} -0.1000 on 300 rows, floor 0",
            id="surely low, the lowest first",
        ),
        pytest.param(
            [part("a", None, None, None)], "not judged", "no slice of evaluate.slices has 200", id="no figure"
        ),
        pytest.param([], "not judged", "no slice of evaluate.slices has 200 rows with a figure", id="no slice"),
    ],
)
def test_only_a_slice_that_is_surely_below_the_floor_fails(
    slices: list[Slice], status: str, sentence: str, params: Params
) -> None:
    found = judged("slices", params, slices=slices)

    assert found.status == status
    assert found.sentence.startswith(sentence)


def test_the_worst_slice_by_an_error_is_the_one_with_the_largest(settings: Callable[..., Params]) -> None:
    params = settings({"objective.metric": "log_loss", "gates.slices.floor": 0.7})
    calm, wild = part("calm", 0.5, 0.4, 0.6), part("wild", 0.9, 0.8, 1.0)

    assert judged("slices", params, slices=[calm, part("near", 0.75, 0.6, 0.9)]).sentence.startswith("worst of 2: near")
    assert judged("slices", params, slices=[calm, wild]).sentence == "wild: log_loss 0.9000 on 300 rows, floor 0.7"


@pytest.mark.parametrize(
    ("groups", "status", "sentence"),
    [
        pytest.param([group("n", 0.8), group("s", 0.3)], "passed", "selection_rate by plant differs by 0.5", id="fair"),
        pytest.param(
            [group("n", 0.95), group("s", 0.3), group("e", 0.6)],
            "failed",
            "selection_rate differs by 0.650 by plant, at most 0.6",
            id="difference",
        ),
        pytest.param(
            [group("n", 0.5), group("s", 0.05)],
            "failed",
            "selection_rate has a ratio of 0.10 by plant, at least 0.2",
            id="ratio",
        ),
        pytest.param(
            [group("n", 0.9), group("s", 0.0, judged=False)], "not judged", "plant has fewer than two", id="one group"
        ),
        pytest.param(
            [group("n", 0.5), group("s", 0.45), group("e", 1.0, judged=False)], "passed", "selection_rate", id="small"
        ),
        pytest.param(
            [group("n", 0.9), group("s", None)], "not judged", "selection_rate has no value in a group", id="no value"
        ),
        pytest.param([group("n", 0.0), group("s", 0.0)], "passed", "selection_rate", id="nobody is chosen"),
    ],
)
def test_groups_may_differ_by_so_much(groups: list[Group], status: str, sentence: str, params: Params) -> None:
    found = judged("fairness", params, groups=groups)

    assert found.status == status
    assert found.sentence.startswith(sentence)


def test_each_attribute_is_judged_by_itself(settings: Callable[..., Params]) -> None:
    params = settings({"gates.fairness.groups": {"plant": "plant", "shift": "minute // 720"}})
    plants, shifts = [group("n", 0.9), group("s", 0.8)], [group("0", 0.2, attribute="shift")]

    assert judged("fairness", params, groups=plants + shifts).status == "not judged"
    apart = [*shifts, group("1", 0.15, attribute="shift")]
    assert judged("fairness", params, groups=plants + apart).status == "passed"


@pytest.mark.parametrize(
    ("gate", "changes", "status", "sentence"),
    [
        pytest.param("behaviour", {"cases": 1}, "passed", "1 case as expected", id="as expected"),
        pytest.param("behaviour", {"cases": 0}, "not judged", "tests/behaviour.yaml holds no case", id="no case"),
        pytest.param("behaviour", {"behaviour": ["a: not so"]}, "failed", "a: not so", id="not as expected"),
        pytest.param("predictions", {"flips": 0.3}, "passed", "30.0% of decisions change", id="as many flips"),
        pytest.param(
            "predictions", {"flips": 0.31}, "failed", "31.0% of decisions change, at most 30.0%", id="too many flips"
        ),
        pytest.param(
            "parity",
            {"parity": (3, 0.25)},
            "failed",
            "the ONNX file differs from scikit-learn on 3 rows, by up to 0.25",
            id="parity",
        ),
        pytest.param(
            "parity",
            {"misreported": ["roc_auc", "brier", "recall"]},
            "failed",
            "reports/evaluate/metrics.json says another roc_auc, brier than the model gives",
            id="misreported",
        ),
        pytest.param("determinism", {"reproduced": None}, "skipped", "no retrain of this lock", id="no retrain"),
        pytest.param(
            "determinism",
            {"reproduced": OTHER_BYTES},
            "failed",
            "a retrain gave other bytes of models/model.onnx: scores differ by up to 0.17, 4.2% of decisions",
            id="other bytes",
        ),
        pytest.param(
            "determinism",
            {"reproduced": {**OTHER_BYTES, "largest_difference": None, "flips": None}},
            "failed",
            "a retrain gave other bytes of models/model.onnx",
            id="other bytes that cannot be compared",
        ),
        pytest.param("service", {"measured": {}}, "skipped", "not measured here", id="no load test"),
        pytest.param(
            "image",
            {"measured": {"image": {"status": "failed", "sentence": "runs as root", "remedy": "USER 1000"}}},
            "failed",
            "runs as root",
            id="image",
        ),
    ],
)
def test_the_other_gates_say_what_they_saw(
    gate: str, changes: dict[str, Any], status: str, sentence: str, params: Params
) -> None:
    found = judged(gate, params, **changes)

    assert found.status == status
    assert found.sentence.startswith(sentence)


def test_a_loosened_gate_fails_until_somebody_approves_it(params: Params) -> None:
    change = Change(name="gates.lock", before="true", after="")

    alone = judged("gates", params, loosened=[change])
    approved = judged("gates", params, approved="Ada", loosened=[change])

    assert (alone.status, alone.sentence, alone.file) == ("failed", "gates.lock: true becomes none", "params.yaml")
    assert (approved.status, approved.sentence) == ("passed", "gates.lock: true becomes none, approved by Ada")
    assert judged("gates", params, approved="Ada").sentence == "no gate is looser than on the base"


def test_a_loosened_expectation_is_found_in_its_own_file(params: Params) -> None:
    found = judged("gates", params, loosened=[Change(name="behaviour: an old machine", before="{}", after="")])

    assert found.file == "tests/behaviour.yaml"


def leaves(value: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {key: leaf for name, inner in value.items() for key, leaf in leaves(inner, f"{prefix}.{name}").items()}


FULL = {
    "gates.floor.metrics": {"roc_auc": 0.6, "log_loss": 0.6},
    "gates.harm.margins": {GOLD: 0.1, "log_loss": 0.05},
    "gates.fairness.difference": {"selection_rate": 0.6, "true_positive_rate": 0.4},
}
HIGHER_IS_LOOSER = [
    *(f"gates.data.{name}" for name in ("duplicates", "overlap", "leak", "shift", "nulls", "rows")),
    "gates.floor.metrics.log_loss",
    f"gates.harm.margins.{GOLD}",
    "gates.harm.margins.log_loss",
    "gates.calibration.error",
    "gates.calibration.margin",
    "gates.fairness.difference.selection_rate",
    "gates.fairness.difference.true_positive_rate",
    "gates.predictions.flips",
    *(f"gates.service.{name}" for name in ("ratio.p50", "ratio.p95", "ratio.p99", "errors", "p99_ms")),
    "evaluate.min_rows",
]
LOWER_IS_LOOSER = [
    "objective.floor",
    "gates.floor.metrics.roc_auc",
    "gates.slices.floor",
    "gates.fairness.ratio.selection_rate",
    "gates.service.ratio.throughput",
]
SWITCHES = [f"gates.{name}" for name in ("lock", "behaviour", "parity", "determinism", "image")]
ALTOGETHER = [
    f"gates.{name}" for name in ("data", "floor", "harm", "calibration", "slices", "fairness", "predictions", "service")
]


def names(base: Params, own: Params) -> list[str]:
    return [change.name for change in gates.loosened(base, own)]


def test_every_leaf_of_the_gates_is_in_a_table_of_directions(settings: Callable[..., Params]) -> None:
    found = leaves(settings(FULL).gates.model_dump(mode="json"), "gates")

    known = [*HIGHER_IS_LOOSER, *LOWER_IS_LOOSER, *SWITCHES, "gates.fairness.groups.plant"]
    assert set(found) == {name for name in known if name.startswith("gates.")}


@pytest.mark.parametrize(
    ("name", "looser"), [*((name, 1) for name in HIGHER_IS_LOOSER), *((name, -1) for name in LOWER_IS_LOOSER)]
)
def test_a_limit_that_lets_more_pass_is_listed_and_one_that_lets_less_pass_is_not(
    name: str, looser: int, settings: Callable[..., Params]
) -> None:
    base = settings(FULL)
    value = {**leaves(base.model_dump(mode="json"), "")}[f".{name}"]
    step = 1 if isinstance(value, int) else max(abs(value) / 2, 0.0001) if value < 0.9 else 0.05

    more, less = (settings({**FULL, name: value + way * step}) for way in (looser, -looser))

    assert gates.loosened(base, more) == [Change(name=name, before=str(value), after=str(value + looser * step))]
    assert gates.loosened(base, less) == []
    assert gates.loosened(base, base) == []


@pytest.mark.parametrize("name", [*SWITCHES, *ALTOGETHER])
def test_a_gate_that_is_turned_off_is_listed_and_one_that_is_turned_on_is_not(
    name: str, settings: Callable[..., Params]
) -> None:
    found = names(settings(FULL), settings({**FULL, name: False}))

    assert found
    assert {entry for entry in found if not entry.startswith(name)} == set()
    assert names(settings({**FULL, name: False}), settings(FULL)) == []


def test_turning_off_the_floor_is_listed_though_it_names_no_metric_besides_the_objective(
    settings: Callable[..., Params],
) -> None:
    base, own = settings({"gates.floor": {"metrics": {}}}), settings({"gates.floor": False})

    assert names(base, own) != []


@pytest.mark.parametrize(
    ("changes", "listed"),
    [
        pytest.param({"objective.decision": "Something else."}, [], id="words"),
        pytest.param({"objective.metric": "roc_auc"}, ["objective.metric"], id="the objective"),
        pytest.param({"objective.costs.miss": 9}, ["objective.costs.miss"], id="a cost up"),
        pytest.param({"objective.costs.miss": 1}, ["objective.costs.miss"], id="a cost down"),
        pytest.param({"evaluate.bins": 9}, ["evaluate.bins"], id="fewer bins"),
        pytest.param({"evaluate.bins": 99}, ["evaluate.bins"], id="more bins"),
        pytest.param({"evaluate.slices.hot": "temperature > 90"}, ["evaluate.slices.hot"], id="a slice changed"),
        pytest.param(
            {"evaluate.slices": {"plant": "plant", "hot": "temperature > 40"}},
            ["evaluate.slices.part_of_day"],
            id="a slice less",
        ),
        pytest.param({"evaluate.slices.old": "age > 30"}, [], id="a slice more"),
        pytest.param({"review.resamples": 300}, ["review.resamples"], id="resamples"),
        pytest.param({"review.confidence": 0.8}, ["review.confidence"], id="less sure"),
        pytest.param({"review.confidence": 0.99}, ["review.confidence"], id="surer"),
        pytest.param({"review.seed": 7}, ["review.seed"], id="another seed of the review"),
        pytest.param({"split.holdout": 2}, ["split.holdout"], id="another holdout"),
        pytest.param({"split.by": "random", "split.holdout": 0.2}, ["split.by", "split.holdout"], id="another split"),
        pytest.param({"split.seed": 7}, ["split.seed"], id="another seed of the split"),
        pytest.param({"split.leaks": []}, ["split.leaks"], id="a leak less"),
        pytest.param({"split.leaks": ["hours"]}, ["split.leaks"], id="another leak"),
        pytest.param({"split.leaks": ["hours", "repair_minutes"]}, [], id="a leak more"),
        pytest.param({"gates.fairness.groups.plant": "machine"}, ["gates.fairness.groups.plant"], id="a group changed"),
        pytest.param({"gates.fairness.groups": {"job": "job"}}, ["gates.fairness.groups.plant"], id="a group less"),
        pytest.param({"gates.fairness.groups.job": "job"}, [], id="a group more"),
        pytest.param({"gates.floor.metrics": {}}, ["gates.floor.metrics.roc_auc"], id="a floor less"),
        pytest.param({"gates.floor.metrics.recall": 0.1}, [], id="a floor more"),
        pytest.param({"gates.harm.margins": {GOLD: 0.1}}, ["gates.harm.margins.roc_auc"], id="a margin less"),
        pytest.param({"gates.harm.margins.brier": 0.1}, [], id="a margin more"),
        pytest.param({"gates.fairness.ratio": {}}, ["gates.fairness.ratio.selection_rate"], id="a ratio less"),
        pytest.param({"train.seed": 9, "tune.trials": 3, "report.rows": "full"}, [], id="what is not judged by"),
    ],
)
def test_any_other_difference_counts_as_looser_unless_it_only_adds(
    changes: dict[str, Any], listed: list[str], settings: Callable[..., Params]
) -> None:
    assert names(settings(), settings(changes)) == listed


def test_another_task_is_looser_whatever_else_it_brings(settings: Callable[..., Params], small: dict) -> None:
    assert names(settings(small["binary"]), settings(small["regression"]))[0] == "task"


def test_the_floor_of_an_error_may_fall_and_not_rise(settings: Callable[..., Params]) -> None:
    of = {"objective.metric": "log_loss", "gates.slices.floor": 0.8}
    base = settings({**of, "objective.floor": 0.7})

    assert names(base, settings({**of, "objective.floor": 0.6, "gates.slices.floor": 0.5})) == []
    up = settings({**of, "objective.floor": 0.9, "gates.slices.floor": 0.9})
    assert names(base, up) == ["objective.floor", "gates.slices.floor"]


def test_a_setting_is_shown_as_params_yaml_has_it(settings: Callable[..., Params]) -> None:
    change = gates.loosened(settings(), settings({"gates.lock": False}))[0]

    assert (change.name, change.before, change.after) == ("gates.lock", "true", "false")
    assert [gates.text(value) for value in (True, None, 0.5, "x", [1])] == ["true", "", "0.5", "x", "[1]"]
