"""Verdicts of every kind, to be shown."""

from __future__ import annotations

import math
from typing import Any

from ml.review.verdict import (
    GATES,
    Bin,
    Change,
    Code,
    Column,
    Flip,
    Group,
    Importance,
    Interval,
    Metric,
    Result,
    Rows,
    SchemaChange,
    Side,
    Slice,
    Verdict,
)

OBJECTIVE = "average_precision_skill"
CARRIERS = ("9E", "AA", "AS", "B6", "DL", "EV", "F9", "FL", "HA", "MQ", "OO", "UA", "US", "VX", "WN", "YV")
INPUTS = (
    *("departure_minute", "carrier", "dest", "origin", "distance", "temp", "humid", "wind_speed", "precip"),
    *("visib", "pressure", "seats", "plane_age", "weekday"),
)
HOSTILE = (
    "@octocat",
    "@github/security",
    "a@example.com",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](https://example.com/x.png)",
    "[click](javascript:alert(1))",
    "https://example.com",
    "www.example.com",
    "a(www.example.com",
    "#123",
    "octo/cat#1",
    "GH-123",
    "a | b | c",
    "`code` ``` fence",
    "```mermaid",
    "line\n\n## heading\r\n- item",
    "\u202egnp.exe\u2066\u200b\ufeff",
    "\x00\x1b[31mred\x07",
    "</details></td></table>",
    "$x^2$ $`y`$",
    "# heading",
    "- item",
    "1. item",
    "> quote",
    "*bold* _it_ ~~gone~~",
    "\\",
    "&lt;b&gt; &#64;octocat",
    ":tada:",
    "{{ 7 * 7 }} {% raw %}",
    "]]>",
    "--- \n...\n",
    "\ud800",
    "",
    " ",
    "x" * 500,
)


def _span(value: float, half: float) -> Interval:
    return Interval(value=value, low=value - half, high=value + half)


def _metric(name: str, better: str, candidate: float, production: float, half: float, **more: Any) -> Metric:
    return Metric(
        name=name,
        better=better,
        rows=28618,
        candidate=_span(candidate, half),
        production=_span(production, half),
        delta=_span(candidate - production, half / 2),
        **more,
    )


def _results(**other: Result) -> list[Result]:
    said = {
        "gates": "No gate is looser than the base's.",
        "data": "No row stands there twice, no input gives the outcome away, no column moved by more than 0.1.",
        "lock": "dvc.lock says what params.yaml, code and data give.",
        "floor": "average_precision_skill is 0.2813, at least 0.12; roc_auc is 0.7121, at least 0.62.",
        "harm": "No metric can have lost more than its margin.",
        "calibration": "The calibration error is 0.0312, at most 0.08.",
        "slices": "All 24 slices are above 0.",
        "fairness": "The groups of origin differ by at most 0.0700 in selection_rate.",
        "behaviour": "All 12 checks of tests/behaviour.yaml hold.",
        "predictions": "4.1 % of the decisions changed, at most 15 %.",
        "parity": "The ONNX file answers as scikit-learn does, on 28,618 rows.",
        "determinism": "A retrain gave the committed bytes.",
        "service": "No load test was made.",
        "image": "No image was built.",
    }
    quiet = ("service", "image")
    return [
        other.get(name) or Result(gate=name, status="skipped" if name in quiet else "passed", sentence=said[name])
        for name in GATES
    ]


def full(**changes: Any) -> Verdict:
    """Return a binary verdict with every part filled, all gates passed."""
    names = [*(f"carrier={name}" for name in CARRIERS), "origin=EWR", "origin=JFK", "origin=LGA"]
    names += [f"part_of_day={part}" for part in range(4)] + ["rain"]
    parts = {
        "project": "flight-delays",
        "task": "binary",
        "decision": "Tell the passenger, at the scheduled departure, that the flight will arrive late.",
        "objective": OBJECTIVE,
        "confidence": 0.95,
        "candidate": Side(ref="deeper-trees", commit="4cb1617a9e0d", model="7c1f0e52", version=""),
        "production": Side(ref="main", commit="255b15d0c1aa", model="a94d77b1", version="12"),
        "base": Side(ref="main", commit="255b15d0c1aa"),
        "results": _results(),
        "notes": ["The load test was made on another machine than production's."],
        "metrics": [
            _metric(
                OBJECTIVE,
                "higher",
                0.2813,
                0.2751,
                0.0131,
                detectable=0.0094,
                noise=0.0021,
                margin=0.025,
                sentence="Better by 0.0062, three times what a retrain alone moves; no change is still possible.",
            ),
            _metric("roc_auc", "higher", 0.7121, 0.7089, 0.0064, detectable=0.0041, noise=0.0008, margin=0.01),
            _metric("log_loss", "lower", 0.4701, 0.4733, 0.0071, noise=0.0009),
            _metric("brier", "lower", 0.1518, 0.1531, 0.0030, noise=0.0004),
            _metric("expected_calibration_error", "lower", 0.0312, 0.0287, 0.0052),
            _metric("cost", "lower", 0.5127, 0.5190, 0.0090),
        ],
        "slices": [
            Slice(
                name=name,
                rows=400 + 173 * at,
                candidate=_span(0.2 + 0.12 * math.sin(at), 0.03 + 0.08 / (at + 1)),
                production=0.2 + 0.12 * math.sin(at) + 0.02 * math.cos(3 * at),
                flips=0.02 + 0.002 * at,
            )
            for at, name in enumerate(names)
        ],
        "groups": [
            Group(
                attribute="origin",
                value=value,
                rows=rows,
                judged=rows > 200,
                figures={"selection_rate": 0.3 + at / 30, "true_positive_rate": 0.6, "false_positive_rate": 0.21},
            )
            for at, (value, rows) in enumerate({"EWR": 10101, "JFK": 9230, "LGA": 9187, "SWF": 100}.items())
        ],
        "columns": [
            Column(
                name=name,
                effect=0.13 * 0.8**at,
                limit=0.1,
                p=0.001 * 3**at if at < 6 else 1.0,
                nulls_before=0.01 * (at % 3),
                nulls_after=0.012 * (at % 3),
                alone=0.5 + 0.13 / (at + 1),
            )
            for at, name in enumerate(INPUTS)
        ],
        "schema_changes": [
            SchemaChange(field="plane_age", what="is new and may be left out", breaking=False),
            SchemaChange(field="seats", what="must now be at least 1", breaking=True),
        ],
        "rows": [Rows(period=f"2013-{month:02}", before=27000 + month, after=27000 + month) for month in range(1, 10)]
        + [Rows(period="2013-10", before=None, after=28618)],
        "reliability": [
            Bin(predicted=0.04 + at / 15, observed=0.03 + at / 15.6, rows=6000 // (at + 1)) for at in range(13)
        ],
        "reliability_before": [
            Bin(predicted=0.04 + at / 15, observed=0.05 + at / 17, rows=6100 // (at + 1)) for at in range(12)
        ],
        "flips": 0.041,
        "largest": [
            Flip(
                row={"carrier": "EV", "origin": "EWR", "dest": "ORD", "departure_minute": f"{1100 + at}"},
                before=0.62 - at / 40,
                after=0.19 + at / 50,
            )
            for at in range(8)
        ],
        "importance": [
            Importance(name=name, candidate=0.09 * 0.75**at, production=0.08 * 0.77**at if at < 12 else None)
            for at, name in enumerate(INPUTS)
        ],
        "params": [
            Change(name="train.settings.max_leaf_nodes", before="31", after="63"),
            Change(name="train.settings.l2_regularization", before="", after="1.0"),
        ],
        "code": [
            Code(path="src/ml/pipeline/features.py", added=14, removed=3),
            Code(path="docs/page.png", added=None, removed=None),
        ],
        "service": {"latency_ms": {"p50": 3.1, "p99": 11.8}, "requests_per_second": 412.5, "failures": 0},
        "environment": {"python": "3.12.8", "scikit-learn": "1.9.0", "onnxruntime": "1.31.0", "machine": "x86_64"},
        "commands": ["git checkout 4cb1617a9e0d", "make setup", "make pull", "make review"],
    }
    return Verdict(**parts | changes)


def first(**changes: Any) -> Verdict:
    """Return the verdict on a first model."""
    whole = full()
    alone = {"production": None, "delta": None, "noise": None, "margin": None, "sentence": ""}
    return full(
        **{
            "production": None,
            "base": None,
            "metrics": [metric.model_copy(update=alone) for metric in whole.metrics],
            "slices": [part.model_copy(update={"production": None, "flips": None}) for part in whole.slices],
            "importance": [part.model_copy(update={"production": None}) for part in whole.importance],
            **{key: [] for key in ("columns", "schema_changes", "rows", "reliability_before")},
            **{key: [] for key in ("largest", "params", "code", "notes")},
            "flips": None,
        }
        | changes
    )


def failed(**changes: Any) -> Verdict:
    """Return a verdict in which every gate blocks."""
    results = [
        Result(
            gate=name,
            status="not judged" if name in ("service", "image") else "failed",
            sentence=f"The {name} gate found -0.0312 where at least -0.025 is asked for.",
            observed="-0.0312",
            threshold="-0.025",
            remedy="Set train.settings back, or raise the margin in a change of its own.",
            file="params.yaml",
            line=12,
        )
        for name in GATES
    ]
    return full(**{"results": results} | changes)


def loosened(**changes: Any) -> Verdict:
    """Return a verdict on a change that would pass by its own gates only."""
    blocking = {
        "gates": Result(
            gate="gates",
            status="failed",
            sentence="gates.harm.margins.roc_auc went from 0.01 to 0.05.",
            remedy="Take it back, or ask a code owner to approve.",
            file="params.yaml",
            line=94,
        ),
        "harm": Result(
            gate="harm",
            status="failed",
            sentence="roc_auc may have lost 0.0142; the margin is 0.01.",
            observed="-0.0142",
            threshold="-0.01",
            remedy="Train with more trees, or show that the loss is worth it.",
        ),
    }
    return full(
        **{
            "results": _results(**blocking),
            "base_results": _results(**blocking),
            "own_results": _results(gates=blocking["gates"]),
            "loosened": [
                Change(name="gates.harm.margins.roc_auc", before="0.01", after="0.05"),
                Change(name="gates.fairness", before="{…}", after="false"),
            ],
        }
        | changes
    )


def hostile(texts: tuple[str, ...] = HOSTILE) -> Verdict:
    """Return a verdict in which every name and sentence is one of the texts."""
    count = iter(range(10**6))

    def text() -> str:
        return texts[next(count) % len(texts)]

    def replaced(value: Any, key: str = "") -> Any:
        match value:
            case str() if key not in ("task", "status", "better"):
                return text()
            case list():
                return [replaced(item) for item in value * (3 if len(value) < len(texts) else 1)]
            case dict() if key in ("row", "figures", "service", "environment"):
                return {f"{text()}{at}": replaced(item) for at, item in enumerate(value.values())}
            case dict():
                return {name: replaced(item, name) for name, item in value.items()}
        return value

    return Verdict.model_validate(replaced(loosened().model_dump()))


def huge(times: int = 30) -> Verdict:
    """Return a verdict whose lists are many times as long, with long names."""
    whole = loosened()
    lists = {name: value * times for name, value in whole if isinstance(value, list)}
    rows = [
        flip.model_copy(update={"row": {f"{'k' * 90}{at}": "v" * 300 for at in range(12)}}) for flip in whole.largest
    ]
    return whole.model_copy(
        update=lists
        | {"largest": rows * times}
        | {"environment": {f"{'package' * 20}{at}": "$ | ` " * 100 for at in range(times)}}
        | {"service": {f"{'figure' * 20}{at}": "@x " * 100 for at in range(times)}}
        | {
            "results": [
                part.model_copy(update={"sentence": "$ " * 900, "remedy": "@a " * 900}) for part in whole.results
            ]
            * times
        }
    )
