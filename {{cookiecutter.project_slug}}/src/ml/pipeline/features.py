"""YOURS: how a request becomes the numbers that an estimator takes.

Every column of `schema.Request` is used: strings as categories, the rest as 32-bit floats. What stands here is
converted to ONNX and served, so each transformer must have an ONNX form; training refuses by name what has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ml.pipeline.schema import Request

if TYPE_CHECKING:
    from sklearn.compose import ColumnTransformer


def names() -> tuple[list[str], list[str]]:
    """Return the names of the text columns and of the number columns of a request, each in its order."""
    columns = Request.to_schema().columns
    text = [name for name, column in columns.items() if str(column.dtype).startswith("str")]
    return text, [name for name in columns if name not in text]


def inputs(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the model's inputs as the service builds them: missing text is "", numbers are float32 with NaN."""
    text, numbers = names()
    return pd.concat([rows[text].fillna("").astype(object), rows[numbers].astype(np.float32)], axis=1)[text + numbers]


def transformer(family: str) -> ColumnTransformer:
    """Return the unfitted features for a family of estimators (see `ml.pipeline.estimators`).

    `boosting` takes missing numbers as they are, `forest` needs them filled, `linear` (and any other estimator)
    also one column a category and numbers of one scale. Unknown categories become -1, or zeros in every column.
    """
    # Here, since what only scores need not wait for scikit-learn.
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

    text, numbers = names()
    ordinal = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, dtype=np.float32)
    columns = {
        "boosting": (ordinal, "passthrough"),
        "forest": (ordinal, SimpleImputer(strategy="median")),
    }
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False, dtype=np.float32)
    scaled = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    categories, amounts = columns.get(family, (one_hot, scaled))
    parts = [("text", categories, text), ("numbers", amounts, numbers)]
    return ColumnTransformer([part for part in parts if part[2]])
