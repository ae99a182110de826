from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import verdicts

from ml.review.verdict import Interval, Result, Verdict, json_schema

SCHEMA = Path(__file__).parents[2] / "docs" / "verdict.schema.json"


def problems(document: dict[str, Any]) -> list[str]:
    found = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).iter_errors(document)
    return [error.json_path for error in found]


def test_the_published_schema_is_that_of_the_code() -> None:
    remedy = "run: python -m ml.review.verdict > docs/verdict.schema.json"

    assert SCHEMA.read_text() == json_schema(), remedy


@pytest.mark.parametrize("make", [verdicts.full, verdicts.first, verdicts.failed, verdicts.loosened, verdicts.hostile])
def test_every_verdict_is_valid_by_the_schema_and_reads_back(make: Any) -> None:
    verdict: Verdict = make()

    written = json.loads(json.dumps(verdict.model_dump(mode="json"), allow_nan=False))

    assert problems(written) == []
    assert Verdict.model_validate(written) == verdict


@pytest.mark.parametrize(
    ("change", "place"),
    [
        pytest.param({"task": "ranking"}, "$.task", id="unknown task"),
        pytest.param(
            {"results": [{"gate": "harm", "status": "fine", "sentence": ""}]}, "$.results[0].status", id="status"
        ),
        pytest.param({"more": 1}, "$", id="unknown key"),
        pytest.param({"flips": "many"}, "$.flips", id="text for a number"),
    ],
)
def test_what_is_no_verdict_is_not_valid(change: dict[str, Any], place: str) -> None:
    assert problems(verdicts.full().model_dump(mode="json") | change) == [place]


def test_a_figure_that_is_not_defined_is_null() -> None:
    found = Interval(value=math.nan, low=-math.inf, high=1.0)

    assert found.model_dump(mode="json") == {"value": None, "low": None, "high": 1.0}


def test_failed_gates_come_before_those_that_were_not_judged_and_both_block() -> None:
    results = [
        Result(gate=name, status=status, sentence="")
        for name, status in (("data", "passed"), ("harm", "not judged"), ("image", "skipped"), ("slices", "failed"))
    ]

    verdict = verdicts.full(results=results)

    assert [found.gate for found in verdict.blocked] == ["slices", "harm"]
    assert verdict.headline == "do not merge: slices failed; harm not judged"


def test_a_headline_names_few_of_many_gates() -> None:
    assert verdicts.failed().headline == "do not merge: gates, data, lock and 9 more failed; service, image not judged"
