"""Searches families and settings on train alone, judging each on rows later than those it learned from."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.trial import TrialState
from ruamel.yaml import YAML
from sqlalchemy.exc import SQLAlchemyError

from ml.errors import UserError
from ml.pipeline import export, metrics, schema, split, tracking
from ml.pipeline.contract import keys
from ml.pipeline.estimators import pipeline
from ml.pipeline.features import inputs
from ml.pipeline.params import METRICS, PATH, Params
from ml.pipeline.tables import read_output, rounded, write_bytes
from ml.pipeline.train import contract, fit, target
from ml.progress import steps

SETTING = re.compile(r"(?P<indent> +)(?P<key>\w+):(?P<value>[^#\n]*)(?P<comment>#.*)?")
STUDIES = "sqlite:///tune.db"
Fold = tuple[np.ndarray, np.ndarray]


def folds(rows: pd.DataFrame, params: Params, keys: list[str]) -> list[Fold]:
    """Return positions to learn from and to judge on: an expanding window over periods, else parts of groups or rows.

    Raises UserError when there are too few training periods for that many folds.
    """
    count = params.tune.folds
    if params.split.by != "time":
        columns = [params.split.group] if params.split.by == "group" else keys
        part = np.floor(split.share(rows[columns], params.split.seed + 1) * max(count, 2))
        return [(np.flatnonzero(part != i), np.flatnonzero(part == i)) for i in range(count)]
    periods = sorted(rows["period"].unique())
    if len(periods) <= count:
        raise UserError(
            f"tune.folds = {count} needs {count + 1} training periods, there are {len(periods)}; "
            "lower tune.folds or list more data.periods in params.yaml"
        )
    found = rows["period"].to_numpy()
    return [(np.flatnonzero(found < newest), np.flatnonzero(found == newest)) for newest in periods[-count:]]


def suggestion(trial: optuna.Trial, estimators: list[str], task: str) -> tuple[str, dict[str, Any]]:
    """Return a family and its settings."""
    name = trial.suggest_categorical("estimator", estimators)
    match name:
        case "linear":
            strength = trial.suggest_float("linear.strength", 1e-3, 1e2, log=True)
            return name, {"alpha": strength} if task == "regression" else {"C": 1 / strength}
        case "forest":
            return name, {
                "n_estimators": trial.suggest_int("forest.n_estimators", 40, 160, step=20),
                "min_samples_leaf": trial.suggest_int("forest.min_samples_leaf", 20, 200, log=True),
                "max_features": trial.suggest_float("forest.max_features", 0.2, 1.0),
            }
        case "boosting":
            return name, {
                "learning_rate": trial.suggest_float("boosting.learning_rate", 0.02, 0.3, log=True),
                "max_iter": trial.suggest_int("boosting.max_iter", 50, 400, log=True),
                "max_leaf_nodes": trial.suggest_int("boosting.max_leaf_nodes", 8, 64, log=True),
                "min_samples_leaf": trial.suggest_int("boosting.min_samples_leaf", 20, 500, log=True),
                "l2_regularization": trial.suggest_float("boosting.l2_regularization", 1e-3, 10, log=True),
            }
        case _:
            raise UserError(
                f"tune.estimators: {name!r} has no search space; choose from linear, forest, boosting in params.yaml"
            )


def cross_validated(
    rows: pd.DataFrame, truth: np.ndarray, parts: list[Fold], params: Params, name: str, settings: dict[str, Any]
) -> list[float]:
    """Return the objective's metric on each fold; at most `tune.rows` rows, drawn with the seed, are learned from."""
    scores = [_judged(rows, truth, part, params, name, settings) for part in parts]
    # Optuna would count the trial as failed, and the search would repeat it for ever.
    if not np.isfinite(scores).all():
        raise UserError(
            f"{params.objective.metric} cannot be computed on every fold, since one holds a single class or row; "
            "lower tune.folds or choose another objective.metric in params.yaml"
        )
    return scores


def _judged(
    rows: pd.DataFrame, truth: np.ndarray, part: Fold, params: Params, name: str, settings: dict[str, Any]
) -> float:
    learn, judge = part
    random = np.random.default_rng(params.train.seed)
    if len(learn) > params.tune.rows:
        learn = np.sort(random.choice(learn, params.tune.rows, replace=False))
    model = fit(pipeline(name, params.task, settings, params.train.seed), rows.iloc[learn], truth[learn])
    scores = export.expected(model, rows.iloc[judge])
    return metrics.of_task(params, contract(params, model), truth[judge], scores)[params.objective.metric]


def study(params: Params) -> optuna.Study:
    """Return the study of these settings and this data: the old one where it was begun before."""
    relevant = params.model_dump(mode="json")
    del relevant["tune"]["trials"]
    content = json.dumps(relevant, sort_keys=True).encode() + split.TRAIN.read_bytes()
    try:
        return optuna.create_study(
            study_name=hashlib.sha256(content).hexdigest()[:16],
            storage=STUDIES,
            direction=METRICS[params.task][params.objective.metric],
            load_if_exists=True,
        )
    except (SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        reason = str(error).splitlines()[0][:160]
        raise UserError(f"{STUDIES} cannot be written ({reason}): mend it or delete the file") from None


def finished(of: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that ran to their end."""
    return of.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


def upcoming(of: optuna.Study, total: int, timeout: float | None, seed: int) -> Iterator[optuna.Trial]:
    """Yield trials to tell the study of, until `total` are complete or `timeout` seconds have gone.

    Each draws with a seed of its own, so that an interrupted search goes on as if it had not been.
    """
    start = time.monotonic()
    while (done := len(finished(of))) < total and (timeout is None or time.monotonic() - start < timeout):
        # The liar would count the trial that an interrupt left running.
        of.sampler = optuna.samplers.TPESampler(seed=seed + done, constant_liar=False)
        yield of.ask()


def write_winner(name: str, settings: dict[str, Any], path: Path = PATH) -> None:
    """Put estimator and settings into params.yaml; every other line keeps its place and its comment.

    Raises UserError, and writes nothing, where the section is spelled in a way that cannot be edited by lines.
    """
    new = edited(path.read_text(encoding="utf-8"), name, settings)
    train = YAML(typ="safe").load(new)["train"]
    if train.get("estimator") != name or train.get("settings") != settings:
        raise UserError(f"{path}: train cannot be edited line by line; set estimator: {name}, settings: {settings}")
    write_bytes(new.encode(), path)


def edited(text: str, name: str, settings: dict[str, Any]) -> str:
    """Return the text of params.yaml with another estimator and settings in `train`, and no other line changed."""
    lines = text.splitlines(keepends=True)
    begin = 1 + next(i for i, line in enumerate(lines) if line.startswith("train:"))
    end = next((i for i, line in enumerate(lines[begin:], begin) if line[:1].strip()), len(lines))
    section: list[str] = []
    left, level, inside, place = dict(settings), "", False, 0
    for line in lines[begin:end]:
        if found := SETTING.match(line):
            indent, key, value, comment = found["indent"], found["key"], found["value"], found["comment"] or ""
            comment = " " * (len(value) - len(value.rstrip())) + comment
            level = level or indent
            if indent == level:
                inside = key == "settings"
                line = {
                    "estimator": f"{level}estimator: {name}{comment}\n",
                    "settings": f"{level}settings:{comment}\n",
                }.get(key, line)
            elif inside and key not in left:
                continue
            elif inside:
                line = f"{indent}{key}: {json.dumps(left.pop(key))}{comment}\n"
            if inside or (key == "estimator" and not place):
                place = len(section) + 1
        section.append(line)
    if not any(line.startswith(f"{level}settings:") for line in section):
        section.insert(place, f"{level}settings:\n")
        place += 1
    section[place:place] = [f"{level * 2}{key}: {json.dumps(value)}\n" for key, value in left.items()]
    return "".join([*lines[:begin], *section, *lines[end:]])


def run(params: Params, *, trials: int | None = None, timeout: float | None = None) -> None:
    """Search, record each trial in MLflow below one run, and write the best to params.yaml if it beats the present."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    train = read_output(split.TRAIN)
    rows, truth = inputs(train), target(train, params)
    parts = folds(train, params, keys(schema.Row))
    total = trials or params.tune.trials
    searched = study(params)
    with tracking.experiment() as mlflow, mlflow.start_run(**_parent(mlflow, searched.study_name)):
        mlflow.set_tags({"stage": "tune", "tune.study": searched.study_name, **tracking.commit()})
        if "current" not in searched.user_attrs:
            scores = cross_validated(rows, truth, parts, params, params.train.estimator, params.train.settings)
            searched.set_user_attr("current", float(np.mean(scores)))
        with steps("tune", total) as bar:
            bar.update(len(finished(searched)))
            for trial in upcoming(searched, total, timeout, params.train.seed):
                name, settings = suggestion(trial, params.tune.estimators, params.task)
                settings = _short(settings)
                scores = cross_validated(rows, truth, parts, params, name, settings)
                trial.set_user_attr("recipe", {"estimator": name, "settings": settings})
                searched.tell(trial, float(np.mean(scores)))
                _log_child(mlflow, trial.number, name, settings, scores, params.objective.metric)
                bar.set_postfix(best=f"{searched.best_value:.4f}")
                bar.update()
    _conclude(searched, params)


def _parent(mlflow: Any, name: str) -> dict[str, str]:
    found = mlflow.search_runs(filter_string=f"tags.\"tune.study\" = '{name}' and tags.stage = 'tune'", max_results=1)
    return {"run_id": found.iloc[0]["run_id"]} if len(found) else {"run_name": f"tune {name}"}


def _short(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in settings.items()}


def _log_child(mlflow: Any, number: int, name: str, settings: dict[str, Any], scores: list[float], metric: str) -> None:
    with mlflow.start_run(run_name=f"{name} {number}", nested=True, tags={"stage": "tune"}):
        mlflow.log_params({"estimator": name, **settings})
        mlflow.log_metrics({f"fold_{i}.{metric}": score for i, score in enumerate(scores)})
        mlflow.log_metric(metric, float(np.mean(scores)))


def _conclude(searched: optuna.Study, params: Params) -> None:
    metric, current = params.objective.metric, searched.user_attrs["current"]
    done = finished(searched)
    if not done:
        print("no trial was completed; params.yaml is as it was")
        return
    best = searched.best_trial
    recipe = best.user_attrs["recipe"]
    better = best.value > current if METRICS[params.task][metric] == "maximize" else best.value < current
    print(
        f"{metric} over {params.tune.folds} folds: now {rounded(current, 4)}, best of {len(done)} trials "
        f"{rounded(best.value, 4)} ({recipe['estimator']})"
    )
    if not better:
        print("nothing beat the settings in params.yaml; it is as it was")
        return
    write_winner(recipe["estimator"], recipe["settings"])
    print(f"params.yaml: train is now {recipe['estimator']} {json.dumps(recipe['settings'])}; run make pipeline")
