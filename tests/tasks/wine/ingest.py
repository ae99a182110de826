"""Reads the wines."""

from __future__ import annotations

import pandas as pd
from sklearn.datasets import load_wine


def fetch(period: str, sources: dict[str, str]) -> pd.DataFrame:
    """Return all wines, whatever the period."""
    raw = load_wine(as_frame=True).frame
    return pd.DataFrame(
        {
            "alcohol": raw["alcohol"],
            "malic_acid": raw["malic_acid"],
            "colour": raw["color_intensity"].gt(5).map({True: "deep", False: "pale"}).astype("str"),
            "proline": raw["proline"].astype("int64"),
            "cultivar": raw["target"].map({0: "barolo", 1: "grignolino", 2: "barbera"}).astype("str"),
        }
    )
