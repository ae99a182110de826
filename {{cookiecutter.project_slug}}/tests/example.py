"""The problem that the tests carry: jobs of a workshop, all four files in one.

The tests put it in the place of params.yaml, schema.py, ingest.py and features.py, so that they hold
whatever those say. It has what a problem can have: text with and without categories, gaps, keys of three columns,
a group, rows without a label, and a target for each task that follows from other fields than that of the next.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pytest
from pandera.typing import Series
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from ml.pipeline import estimators, evaluate, features, ingest, schema, train, tune
from ml.review import measure

PERIODS = ["2013-01", "2013-02", "2013-03", "2013-04", "2013-05"]
KEYS = ["started", "plant", "job"]
TEXT = ["plant", "material"]
NUMBERS = ["minute", "length", "load", "temperature", "age"]
TARGETS = {"binary": "failed", "multiclass": "grade", "regression": "hours"}
LABELLED = 600  # rows of a period
UNLABELLED = 40

PARAMS = """\
# What the workshop wants to know.
objective:
  decision: Tell the fitter, before the job starts, that the machine will fail.
  metric: average_precision_skill # what tuning compares
  floor: 0.12 # not worth serving below
  costs: # of one wrong decision
    false_alarm: 1 # a check for nothing
    miss: 3 # a failure out of the blue

task: binary # binary, multiclass or regression

data:
  target: failed # a column of Row
  sources: # a path, a URL, or package:NAME/FILE
    jobs: data/raw/jobs.csv
    machines: package:workshop/machines.csv
  rows: # that a period may have
    min: 100
    max: 500
  periods:
    - 2013-01
    - 2013-02
    - 2013-03
    - 2013-04
    - 2013-05

split:
  by: time # time, group or random
  holdout: 1 # newest periods
  leaks: # known only after the event
    - repair_minutes

train:
  estimator: boosting # linear, forest, boosting, or the path of a scikit-learn class
  settings:
    learning_rate: 0.1
    max_iter: 150
    max_leaf_nodes: 31
    min_samples_leaf: 50
  seed: 0

evaluate:
  bins: 15 # of the calibration table
  min_rows: 200 # a slice with fewer is not reported
  slices: # pandas expressions over the columns of Row
    plant: plant
    part_of_day: minute // 360
    hot: temperature > 40

tune:
  estimators: [linear, forest, boosting]
  folds: 3 # newest training periods
  rows: 60000 # a fold learns from at most so many
  trials: 30

repeat:
  seeds: 2

review:
  resamples: 200
  confidence: 0.95

gates:
  data:
    duplicates: 0.001
    overlap: 0.01
    leak: 0.9
    shift: 0.15
    nulls: 0.05
    rows: 0.2
  lock: true
  floor:
    metrics:
      roc_auc: 0.6
  harm:
    margins:
      average_precision_skill: 0.1
      roc_auc: 0.05
  calibration:
    error: 0.15
    margin: 0.05
  slices:
    floor: 0.0
  fairness:
    groups:
      plant: plant
    difference:
      selection_rate: 0.6
    ratio:
      selection_rate: 0.2
  behaviour: true
  predictions:
    flips: 0.3
  parity: true
  determinism: true
  service:
    ratio:
      p50: 1.15
      p95: 1.2
      p99: 1.5
      throughput: 0.87
    errors: 0.001
    p99_ms: 500
  image: true

loadtest:
  users: 8
  seconds: 0.5
  starts: 4
  rounds: 8
  budget: 80
  sizes: [1, 1, 1, 1, 10, 100]
  invalid: 0.02

serve:
  workers: 1
  timeout: 10
  drain: 5
  batching: false
  limits:
    bytes: 2000000
    rows: 5000
  log:
    to: none
    share: 1.0
    bytes: 100000000
    files: 5
    queue: 10000

report:
  rows: masked

card:
  intended_use: Decide which machines to look at before a job.
  out_of_scope: Anything else.
  limits:
    - Drawn from a formula.
"""


class Request(pa.DataFrameModel):
    """A job as it is ordered."""

    plant: Series[str] = pa.Field(isin=["north", "south", "east", "west", "port"])
    material: Series[str] = pa.Field(str_matches=r"^[A-Z]{2}\d$")
    minute: Series[int] = pa.Field(in_range={"min_value": 0, "max_value": 1439})
    length: Series[int] = pa.Field(in_range={"min_value": 1, "max_value": 10_000})
    load: Series[float] = pa.Field(ge=0, le=100)
    temperature: Series[float] = pa.Field(nullable=True, ge=-60, metadata={"max_null_share": 0.1})
    age: Series[float] = pa.Field(nullable=True, ge=0, lt=100, metadata={"max_null_share": 0.25})


class Row(Request):
    """A job with its keys, its machine and what became of it."""

    started: Series[pd.DatetimeTZDtype] = pa.Field(dtype_kwargs={"unit": "us", "tz": "UTC"})
    job: Series[int]
    machine: Series[str]
    failed: Series[pd.Int8Dtype] = pa.Field(nullable=True, isin=[0, 1], metadata={"max_null_share": 0.1})
    grade: Series[str] = pa.Field(isin=["short", "middle", "long"])
    hours: Series[float]

    class Config:
        strict = True
        unique = ["started", "plant", "job"]


def fetch(period: str, sources: dict[str, str]) -> pd.DataFrame:
    """Return a period's rows in no order; they are drawn from its name, and its sources are not read."""
    random = np.random.default_rng([*period.encode()])
    count = LABELLED + UNLABELLED
    hours = np.sort(random.integers(0, 27 * 24, count))
    materials = [f"{a}{b}{digit}" for a in "AKX" for b in "BZ" for digit in range(6)]
    rows = pd.DataFrame(
        {
            "plant": random.choice(["north", "south", "east", "west", "port"], count, p=[0.4, 0.3, 0.2, 0.06, 0.04]),
            "material": random.choice(materials, count),
            "minute": random.integers(0, 1440, count),
            "length": random.integers(1, 10_001, count),
            "load": random.uniform(0, 100, count),
            "temperature": np.where(random.uniform(size=count) < 0.05, np.nan, random.normal(30, 15, count)),
            "age": np.where(random.uniform(size=count) < 0.15, np.nan, random.integers(0, 40, count)),
            "started": (pd.Timestamp(period, tz="UTC") + pd.to_timedelta(hours, unit="h")).as_unit("us"),
            "machine": [f"M{number:02}" for number in random.integers(0, 60, count)],
        }
    ).astype({"plant": "str", "material": "str", "machine": "str"})
    odds = (rows["load"] - 70) / 15 + rows["age"].fillna(10) / 20 + (rows["plant"] == "south")
    failed = pd.Series(random.uniform(size=count) < 1 / (1 + np.exp(-odds))).astype("Int8")
    worked = rows["length"] + random.normal(0, 700, count)
    found = rows.assign(
        job=rows.groupby(["started", "plant"]).cumcount() + 1,
        failed=failed.mask(random.permutation(count) < UNLABELLED),
        grade=pd.cut(worked, [-np.inf, 3000, 6500, np.inf], labels=["short", "middle", "long"]).astype("str"),
        hours=worked / 1000,
    )
    return found[list(Row.to_schema().columns)].sample(frac=1, random_state=0).reset_index(drop=True)


def inputs(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the model's inputs as the service builds them."""
    return pd.concat([rows[TEXT].fillna("").astype(object), rows[NUMBERS].astype(np.float32)], axis=1)


def transformer(family: str) -> ColumnTransformer:
    """Return the unfitted features for a family of estimators."""
    filled = SimpleImputer(strategy="median")
    ordinal = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, dtype=np.float32)
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False, dtype=np.float32)
    steps = {"boosting": (ordinal, "passthrough"), "forest": (ordinal, filled)}
    categories, amounts = steps.get(family, (one_hot, make_pipeline(filled, StandardScaler())))
    return ColumnTransformer([("text", categories, TEXT), ("numbers", amounts, NUMBERS)])


def install(patch: pytest.MonkeyPatch) -> None:
    """Put this problem in the place of the project's own until the patch is undone."""
    patch.setattr(schema, "Request", Request)
    patch.setattr(schema, "Row", Row)
    patch.setattr(features, "Request", Request, raising=False)
    patch.setattr(ingest, "fetch", fetch)
    for module in (features, train, evaluate, tune, measure):
        patch.setattr(module, "inputs", inputs)
    for module in (features, estimators):
        patch.setattr(module, "transformer", transformer)
