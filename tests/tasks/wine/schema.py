"""Wines of three cultivars (UCI; the copy that scikit-learn carries)."""

from __future__ import annotations

import pandera.pandas as pa
from pandera.typing import Series


class Request(pa.DataFrameModel):
    """A chemical analysis."""

    alcohol: Series[float] = pa.Field(ge=8, le=20, metadata={"description": "percent by volume", "example": 13.2})
    malic_acid: Series[float] = pa.Field(ge=0, le=10, metadata={"description": "g/l", "example": 1.8})
    colour: Series[str] = pa.Field(isin=["pale", "deep"], metadata={"description": "seen", "example": "deep"})
    proline: Series[int] = pa.Field(gt=0, lt=5000, metadata={"description": "mg/l", "example": 1065})


class Row(Request):
    """An analysis and the cultivar."""

    cultivar: Series[str] = pa.Field(isin=["barolo", "grignolino", "barbera"])

    class Config:
        strict = True
