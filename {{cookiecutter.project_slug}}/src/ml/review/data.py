"""Is the data sound, and is it what the base had? Facts only; `gates` judges them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ml.review import compare
from ml.review.verdict import Column, Rows, SchemaChange

SURE = 0.01  # adjusted p-value above which a distance may be chance
SAMPLED = 50_000  # rows of a side that a distance is measured on
BINS = 50  # of a number, where its power alone is measured


def duplicates(rows: pd.DataFrame, keys: list[str]) -> float:
    """Return the share of rows whose keys stand there twice or more."""
    return float(rows.duplicated(keys, keep=False).mean())


def overlap(train: pd.DataFrame, holdout: pd.DataFrame, columns: list[str]) -> float:
    """Return the share of holdout rows whose values in the columns stand in train too, whatever their keys."""
    learned, judged = (pd.util.hash_pandas_object(side[columns], index=False) for side in (train, holdout))
    return float(judged.isin(learned).mean())


def unseen(rows: pd.DataFrame, learned: pd.DataFrame, keys: list[str]) -> np.ndarray:
    """Return a mask (n,), True where a row's keys are not among those that a model learned from."""
    known = pd.MultiIndex.from_frame(learned[keys])
    return ~pd.MultiIndex.from_frame(rows[keys]).isin(known)


def alone(train: pd.Series, target: np.ndarray, holdout: pd.Series, truth: np.ndarray, task: str) -> float:
    """Return how well one column by itself predicts the holdout: ROC AUC, of classes the best against the rest.

    The column's values (numbers in 50 quantiles) are replaced by the mean target that they have in train. For values
    it is (1 + Spearman's rank correlation) / 2, which runs from 0.5 to 1 as well.
    """
    learned, judged = _binned(train, holdout)
    targets = [target == label for label in np.unique(target)] if task == "multiclass" else [target]
    truths = [truth == label for label in np.unique(target)] if task == "multiclass" else [truth]
    found = [0.5]
    for wanted, actual in zip(targets, truths, strict=True):
        counts = np.bincount(learned, minlength=learned.max() + 2)
        means = np.bincount(learned, weights=wanted, minlength=len(counts)) / np.maximum(counts, 1)
        # What train did not have, -1, finds the last place.
        encoded = np.where(counts > 0, means, np.mean(wanted))[judged]
        if len(np.unique(actual)) < 2 or len(np.unique(encoded)) < 2:
            continue
        if task == "regression":
            from scipy import stats

            found.append((1 + stats.spearmanr(encoded, actual).statistic) / 2)
        else:
            found.append(compare.at_once(compare.ranking(actual, encoded), len(encoded))["roc_auc"])
    return float(max(found))


def _binned(train: pd.Series, holdout: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    if not pd.api.types.is_numeric_dtype(train) or train.nunique() <= BINS:
        # A gap may tell as much as a value does, so it is a bin of its own.
        places, known = pd.factorize(train, use_na_sentinel=False)
        return places, known.get_indexer(holdout)
    edges = np.unique(np.nanquantile(train.to_numpy(dtype=float), np.linspace(0, 1, BINS + 1)[1:-1]))
    gap, sides = len(edges) + 1, (train, holdout)
    return tuple(np.where(side.isna(), gap, np.digitize(side.to_numpy(dtype=float), edges)) for side in sides)


def distance(before: pd.Series, after: pd.Series) -> tuple[float, float]:
    """Return the distance of two columns, 0 to 1, and its p-value; missing values are compared apart.

    Numbers: Kolmogorov and Smirnov's. Text: total variation, tested by chi-squared on the table of counts.
    """
    from scipy import stats

    before, after = before.dropna(), after.dropna()
    if before.empty or after.empty:
        return (0.0, 1.0) if before.empty and after.empty else (1.0, 0.0)
    if pd.api.types.is_numeric_dtype(before) and pd.api.types.is_numeric_dtype(after):
        found = stats.ks_2samp(before.to_numpy(dtype=float), after.to_numpy(dtype=float), method="asymp")
        return float(found.statistic), float(found.pvalue)
    counts = pd.concat([before.astype(str).value_counts(), after.astype(str).value_counts()], axis=1).fillna(0)
    table = counts.to_numpy().T
    shares = table / table.sum(axis=1, keepdims=True)
    p = stats.chi2_contingency(table).pvalue if table.shape[1] > 1 else 1.0
    return float(np.abs(shares[0] - shares[1]).sum() / 2), float(p)


def _sample(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.iloc[:: max(1, -(-len(rows) // SAMPLED))]


def shifts(before: pd.DataFrame, after: pd.DataFrame, names: list[str], limit: float) -> list[Column]:
    """Return each column's largest distance from the base: periods that both have, and new ones, taken apart.

    Seasons differ, so a new period may be farther from the base by the limit than the base's farthest period is from
    the rest of it.
    p-values are adjusted for all comparisons (Benjamini and Hochberg, 1995).
    """
    from scipy import stats

    old = before["period"].isin(after["period"].unique())
    new = ~after["period"].isin(before["period"].unique())
    pairs = [(_sample(before[old]), _sample(after[~new]), False), (_sample(before), _sample(after[new]), True)]
    found: list[tuple[str, float, float, float]] = []
    for name in names:
        if name not in before:
            continue
        for one, other, is_new in pairs:
            if len(one) and len(other):
                effect, p = distance(one[name], other[name])
                allowed = limit + _seasonal(before, name) if is_new and effect > limit else limit
                found.append((name, effect, allowed, p))
    adjusted = stats.false_discovery_control([p for *_, p in found]) if found else []
    worst: dict[str, Column] = {}
    for (name, effect, allowed, _), p in zip(found, adjusted, strict=True):
        if name not in worst or (p <= SURE, effect - allowed) > _excess(worst[name]):
            nulls = [float(side[name].isna().mean()) for side in (before, after)]
            worst[name] = Column(
                name=name, effect=effect, limit=allowed, p=float(p), nulls_before=nulls[0], nulls_after=nulls[1]
            )
    return list(worst.values())


def _excess(column: Column) -> tuple[bool, float]:
    return column.p <= SURE, column.effect - column.limit


def _seasonal(before: pd.DataFrame, name: str) -> float:
    periods = before["period"].unique()
    if len(periods) < 2:
        return 0.0
    parts = [(_sample(before[before["period"] != period]), before[before["period"] == period]) for period in periods]
    return max(distance(rest[name], one[name])[0] for rest, one in parts)


def rows(before: pd.DataFrame | None, after: pd.DataFrame) -> list[Rows]:
    """Return the labelled rows of each period on both sides."""
    counts = [{} if side is None else side["period"].value_counts().to_dict() for side in (before, after)]
    return [
        Rows(period=str(period), before=counts[0].get(period), after=counts[1].get(period))
        for period in sorted({*counts[0], *counts[1]})
    ]


def schema_changes(before: dict[str, Any], after: dict[str, Any]) -> list[SchemaChange]:
    """Return what differs between two models' requests and answers; breaking where a caller of today would fail."""
    old, new = ({field["name"]: field for field in side["fields"]} for side in (before, after))
    found = []
    for name in [*old, *(name for name in new if name not in old)]:
        if name not in new:
            found.append(SchemaChange(field=name, what="no longer taken", breaking=True))
        elif name not in old:
            kind = "optional" if new[name]["optional"] else "required"
            found.append(SchemaChange(field=name, what=f"new, {kind}", breaking=not new[name]["optional"]))
        else:
            found += _field_changes(old[name], new[name])
    for key in ("task", "classes"):
        if before.get(key) != after.get(key):
            what = f"{before.get(key)} becomes {after.get(key)}"
            found.append(SchemaChange(field=f"answer.{key}", what=what, breaking=True))
    return found


def _field_changes(old: dict[str, Any], new: dict[str, Any]) -> list[SchemaChange]:
    name, found = old["name"], []
    if old["type"] != new["type"]:
        widened = (old["type"], new["type"]) == ("integer", "number")
        what = f"{old['type']} becomes {new['type']}"
        found.append(SchemaChange(field=name, what=what, breaking=not widened))
    if old["optional"] != new["optional"]:
        what = "becomes optional" if new["optional"] else "becomes required"
        found.append(SchemaChange(field=name, what=what, breaking=not new["optional"]))
    for rule in new["checks"]:
        if rule not in old["checks"]:
            breaking = not _looser(rule, old["checks"])
            found.append(SchemaChange(field=name, what=f"rule {_words(rule)}", breaking=breaking))
    kept = {rule["check"] for rule in new["checks"]}
    found += [
        SchemaChange(field=name, what=f"no longer {_words(rule)}", breaking=False)
        for rule in old["checks"]
        if rule["check"] not in kept
    ]
    if set(old.get("categories", [])) != set(new.get("categories", [])):
        # The service scores an unknown category, so neither way breaks a caller.
        found.append(SchemaChange(field=name, what="other categories", breaking=False))
    return found


def _words(rule: dict[str, Any]) -> str:
    return " ".join([rule["check"], *(f"{key}={value}" for key, value in rule.items() if key != "check")])


def _looser(rule: dict[str, Any], before: list[dict[str, Any]]) -> bool:
    same = next((old for old in before if old["check"] == rule["check"]), {})
    if set(same) != set(rule):
        return False
    differing = {key for key in rule if rule[key] != same[key]}
    wider = {
        "min_value": lambda old, new: new is None or (old is not None and new < old),
        "max_value": lambda old, new: new is None or (old is not None and new > old),
        "allowed_values": lambda old, new: set(new) > set(old),
    }
    return all(key in wider and wider[key](same[key], rule[key]) for key in differing)
