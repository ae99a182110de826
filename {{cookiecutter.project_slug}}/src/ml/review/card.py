"""Writes the model card: Markdown whose front matter a model hub reads."""

from __future__ import annotations

import io
import re
from typing import Any

from markupsafe import Markup
from ruamel.yaml import YAML

from ml.errors import UserError
from ml.review.report import Name, clean, environment, in_markdown, objective, prose
from ml.review.verdict import Verdict

PATH = "reports/card.md"
LICENSES = ("mit", "apache-2.0", "bsd-3-clause")  # as the hub names them
PARAMS, PROJECT, RUN = "write it in params.yaml", "write it in pyproject.toml", "run make pipeline, then make review"
FACTS = {
    **dict.fromkeys(("name", "description", "owner", "license"), PROJECT),
    **dict.fromkeys(("decision", "intended_use", "out_of_scope", "limits", "estimator"), PARAMS),
    **dict.fromkeys(("periods_train", "periods_holdout", "rows_train", "rows_holdout"), RUN),
    **dict.fromkeys(("model_sha256", "model_md5", "data_md5", "commit", "environment", "rollback"), RUN),
}


def card(verdict: Verdict, facts: dict[str, Any]) -> str:
    """Return the card.

    Raises UserError that names what is missing; only `settings` may be empty, and `threshold` where the task has none.
    """
    known = facts | {"metrics": verdict.metrics}
    needed = FACTS | {"metrics": RUN} | ({"threshold": RUN} if verdict.task == "binary" else {})
    for name, remedy in needed.items():
        value = known.get(name)
        if value in (None, "", 0, [], {}) or (isinstance(value, str) and not clean(value)):
            raise UserError(f"{PATH} cannot be written: '{name}' is missing; {remedy}")
    text = (
        environment(in_full)
        .get_template("card.md.jinja")
        .render(
            v=verdict,
            facts={"settings": {}, "threshold": None, "scored_only": False} | facts,
            head=Markup(front_matter(verdict, facts)),
            objective=objective(verdict),
            name=Name,
            names=lambda values: [Name(value) for value in values],
        )
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def in_full(value: Any) -> Markup:
    """Return what the card shows for a value: the same as a comment, but sentences at their whole length."""
    return Markup(prose(value, longest=len(value))) if type(value) is str else in_markdown(value)


def front_matter(verdict: Verdict, facts: dict[str, Any]) -> str:
    """Return the fields that a hub reads, as YAML."""
    task = f"tabular-{'regression' if verdict.task == 'regression' else 'classification'}"
    spoken = clean(facts["license"]).lower()
    known = {"license": spoken} if spoken in LICENSES else {"license": "other", "license_name": spoken}
    name = clean(facts["name"])
    measured = [
        {"name": clean(metric.name), "type": clean(metric.name), "value": metric.candidate.value, "verified": False}
        for metric in verdict.metrics
        if metric.candidate.value is not None
    ]
    periods = ", ".join(clean(period) for period in facts["periods_holdout"])
    data = {"name": f"{name}, holdout {periods}", "type": "tabular", "revision": clean(facts["data_md5"])}
    result = {"task": {"type": task, "name": verdict.task}, "dataset": data, "metrics": measured}
    fields = {
        **known,
        "library_name": "onnx",
        "pipeline_tag": task,
        "tags": ["tabular", verdict.task, "onnx"],
        "model-index": [{"name": name, "results": [result]}],
    }
    written = io.StringIO()
    yaml = YAML()
    yaml.width = 4096
    yaml.dump(fields, written)
    return written.getvalue()
