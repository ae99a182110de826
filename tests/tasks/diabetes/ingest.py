"""Reads the patients."""

from __future__ import annotations

import pandas as pd
from sklearn.datasets import load_diabetes


def fetch(period: str, sources: dict[str, str]) -> pd.DataFrame:
    """Return all patients, whatever the period; wards of five stand in for a real grouping."""
    raw = load_diabetes(as_frame=True, scaled=False).frame.reset_index(names="patient")
    renamed = raw.rename(columns={"bp": "blood_pressure", "target": "progression"})
    return renamed.assign(sex=renamed["sex"].astype(int).astype("str"), ward=renamed["patient"] // 5)[
        ["age", "sex", "bmi", "blood_pressure", "s5", "patient", "ward", "progression"]
    ]
