"""Diabetes progression (Efron et al., 2004; the copy that scikit-learn carries)."""

from __future__ import annotations

import pandera.pandas as pa
from pandera.typing import Series


class Request(pa.DataFrameModel):
    """A patient at the baseline."""

    age: Series[float] = pa.Field(ge=0, le=120, metadata={"description": "years", "example": 59})
    sex: Series[str] = pa.Field(isin=["1", "2"], metadata={"description": "as coded by the source", "example": "2"})
    bmi: Series[float] = pa.Field(gt=5, lt=100, nullable=True, metadata={"description": "kg/m²", "example": 32.1})
    blood_pressure: Series[float] = pa.Field(gt=20, lt=300, metadata={"description": "mean, mmHg", "example": 101})
    s5: Series[float] = pa.Field(gt=0, metadata={"description": "log of serum triglycerides", "example": 4.86})


class Row(Request):
    """A patient, the ward, and the progression one year later."""

    patient: Series[int]
    ward: Series[int]
    progression: Series[float] = pa.Field(ge=0)

    class Config:
        strict = True
        unique = ["patient"]
