from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from example import inputs

from ml.errors import ParamsError
from ml.pipeline import estimators


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("name", ["linear", "forest", "boosting"])
def test_every_family_has_an_estimator_of_each_task_and_takes_settings(name: str, task: str) -> None:
    setting = {"linear": {"tol": 0.01}, "forest": {"n_estimators": 7}, "boosting": {"max_iter": 7}}[name]

    found = estimators.estimator(name, task, setting, seed=5)

    assert hasattr(found, "predict_proba") is (task != "regression")
    assert found.get_params().items() >= {"random_state": 5, **setting}.items()


def test_a_class_is_found_by_its_path_and_shares_the_defaults_of_its_family() -> None:
    forest = estimators.estimator("sklearn.ensemble.RandomForestClassifier", "binary", {}, seed=0)
    other = estimators.estimator("sklearn.naive_bayes.GaussianNB", "binary", {}, seed=0)

    assert forest.min_samples_leaf == 20
    assert type(other).__name__ == "GaussianNB"
    assert estimators.family("sklearn.ensemble.RandomForestClassifier") == "forest"
    assert estimators.family("sklearn.naive_bayes.GaussianNB") == "other"


def test_a_setting_overrides_a_default_of_the_family() -> None:
    assert estimators.estimator("forest", "binary", {"min_samples_leaf": 3}, seed=0).min_samples_leaf == 3


@pytest.mark.parametrize(
    ("name", "task", "settings", "sentence"),
    [
        pytest.param("boostin", "binary", {}, "'boostin' is neither a family (linear, forest, boosting)", id="family"),
        pytest.param("sklearn.nope.Nope", "binary", {}, "'sklearn.nope.Nope' is neither", id="module"),
        pytest.param("sklearn.svm.SVB", "binary", {}, "'sklearn.svm.SVB' is neither", id="class"),
        pytest.param("json.loads", "binary", {}, "'json.loads' is neither", id="function"),
        pytest.param("sklearn.linear_model", "binary", {}, "'sklearn.linear_model' is neither", id="no class"),
        pytest.param(
            "boosting", "binary", {"max_itre": 3}, "train.settings.max_itre is not a setting of HistGrad", id="setting"
        ),
        pytest.param("sklearn.linear_model.Ridge", "binary", {}, "is not a classifier with", id="regressor"),
        pytest.param("sklearn.linear_model.RidgeClassifier", "binary", {}, "with predict_proba", id="no shares"),
        pytest.param("sklearn.naive_bayes.GaussianNB", "regression", {}, "is not a regressor", id="classifier"),
        pytest.param("sklearn.preprocessing.StandardScaler", "multiclass", {}, "is not a classifier", id="transformer"),
    ],
)
def test_an_estimator_that_cannot_do_the_task_is_refused_by_name(name, task, settings, sentence: str) -> None:
    with pytest.raises(ParamsError) as caught:
        estimators.estimator(name, task, settings, seed=0)

    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["linear", "forest", "boosting", "sklearn.naive_bayes.GaussianNB"])
def test_the_same_seed_gives_the_same_model_and_new_categories_and_gaps_are_scored(
    rows: pd.DataFrame, name: str
) -> None:
    some, truth = inputs(rows.head(800)), rows["failed"].head(800).to_numpy(dtype=int)
    fast = {"forest": {"n_estimators": 5}, "boosting": {"max_iter": 5}}.get(name, {})
    odd = some.head(3).assign(plant="??", material="", temperature=np.float32("nan"))

    one, two = (estimators.pipeline(name, "binary", fast, seed=1).fit(some, truth) for _ in range(2))

    # The threads of a forest add up in any order.
    np.testing.assert_allclose(one.predict_proba(some), two.predict_proba(some), rtol=1e-12)
    assert np.isfinite(one.predict_proba(odd)).all()


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("sklearn.tree.DecisionTreeClassifier", "forest"),
        ("sklearn.ensemble.ExtraTreesClassifier", "forest"),
        ("sklearn.ensemble.HistGradientBoostingClassifier", "boosting"),
        ("sklearn.naive_bayes.GaussianNB", "other"),
    ],
)
def test_a_tree_by_its_path_gets_the_features_of_a_tree(name: str, family: str) -> None:
    assert estimators.family(name) == family
