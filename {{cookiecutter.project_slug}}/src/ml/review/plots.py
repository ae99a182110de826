"""Draws a verdict as SVG for the page: colours follow the reader's light or dark mode, and nothing is fetched."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ml.review.report import by_loss, clean, figure, objective
from ml.review.verdict import Bin, Verdict

POINTS = 500  # of a curve
BARS = 40  # slices, columns or inputs in one drawing
CLASSES = 12  # rows of a confusion; rarer classes become one
WIDTH = 4.6  # inches; a phone shows the letters in their own size
# Inches around the axes, as wide as what stands there; measuring each letter would take as long as drawing all of them.
LEFT, RIGHT, TOP, BELOW, LEGEND, LETTER = 0.66, 0.12, 0.36, 0.5, 0.28, 0.075
# Drawn in colours that stand for roles, each replaced by the page's variable of that name.
NEW, OLD, INK, SOFT, LINE = "#010203", "#010204", "#010205", "#010206", "#010207"
ROLES = {
    NEW: "var(--new, #0a66c2)",
    OLD: "var(--old, #b35900)",
    INK: "var(--ink, #1f2328)",
    SOFT: "var(--soft, #59636e)",
    LINE: "var(--line, #d1d9e0)",
}
THIS, BEFORE = "this change", "production"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "review",
    "text.parse_math": False,
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def draw(
    verdict: Verdict,
    truth: np.ndarray,
    candidate: np.ndarray,
    production: np.ndarray | None,
    threshold: float | None,
    classes: list[str],
) -> dict[str, str]:
    """Return the SVG text of each drawing by name, in the order of the page.

    `truth` is (n,); `candidate` and `production` are (n,) scores of the positive class or values, or (n, classes)
    shares; `production` is None for a first model, `threshold` where the task is not binary.
    """
    models = [(candidate, NEW, THIS), *([] if production is None else [(production, OLD, BEFORE)])]
    match verdict.task:
        case "binary":
            labels = [(model >= threshold).astype(int) for model, *_ in models]
            drawn = {
                "roc": lambda: _roc(verdict, truth, models),
                "precision_recall": lambda: _precision_recall(verdict, truth, models),
                "calibration": lambda: _calibration(verdict, "mean score", "share that happened"),
                "confusion": lambda: _confusion(truth.astype(int), labels, [0, 1]),
                "scores": lambda: _scores(models, threshold),
            }
        case "multiclass":
            names = np.array(classes)
            labels = [names[model.argmax(axis=1)] for model, *_ in models]
            drawn = {
                "calibration": lambda: _calibration(verdict, "mean score of the decided class", "share that is right"),
                "confusion": lambda: _confusion(truth, labels, classes),
            }
        case _:
            drawn = {
                "calibration": lambda: _calibration(verdict, "mean prediction", "mean truth"),
                "residuals": lambda: _residuals(truth, models),
            }
    drawn |= {
        "slices": lambda: _slices(verdict),
        "shift": lambda: _shift(verdict),
        "importance": lambda: _importance(verdict),
    }
    return _written(drawn)


def slices(verdict: Verdict) -> dict[str, str]:
    """Return the drawing of the slices alone, which are measured last; none where the verdict has none yet."""
    return _written({"slices": lambda: _slices(verdict)})


def _written(drawn: dict[str, Callable[[], tuple[Figure, str] | None]]) -> dict[str, str]:
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # The page's fonts have the letters that matplotlib's own lack.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        return {name: svg(name, *found) for name, make in drawn.items() if (found := make())}


def svg(name: str, image: Figure, label: str) -> str:
    """Return the figure as SVG to stand inside a page: ids of its own, the page's colours and letters."""
    for artist in image.findobj():
        artist.set_clip_on(False)
    written = io.StringIO()
    image.savefig(written, format="svg", metadata={"Date": None}, transparent=True)
    text = written.getvalue()
    width, height = (72 * side for side in image.get_size_inches())
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    body = body[re.search(r"<svg[^>]*>", body).end() :]
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'xlink:href="#', f'href="#{name}-', body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    for drawn, shown in ROLES.items():
        body = body.replace(drawn, shown)
    said = escape(clean(label))
    head = f'<svg class="drawing" role="img" aria-label="{said}" viewBox="0 0 {width:g} {height:g}" width="100%">'
    return f"{head}\n<title>{said}</title>{body.strip()}\n"


def _axes(
    title: str, x: str = "", y: str = "", height: float = 3.4, left: float = LEFT, below: float = BELOW
) -> tuple[Figure, Axes]:
    image = Figure((WIDTH, height))
    axes = image.subplots(gridspec_kw=_inside(height, left, below))
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.tick_params(length=0)
    return image, axes


def _inside(height: float, left: float, below: float) -> dict[str, float]:
    """Return where the axes stand, in shares of the figure."""
    return {"left": left / WIDTH, "right": 1 - RIGHT / WIDTH, "bottom": below / height, "top": 1 - TOP / height}


def _line(axes: Axes, x: Any, y: Any, colour: str, label: str, **more: Any) -> None:
    dashed = colour == OLD
    axes.plot(x, y, color=colour, label=label, linestyle=(0, (4, 2)) if dashed else "-", linewidth=1.6, **more)


def _thin(*sides: np.ndarray) -> list[np.ndarray]:
    at = np.unique(np.linspace(0, len(sides[0]) - 1, POINTS).astype(int))
    return [side[at] for side in sides]


def curves(truth: np.ndarray, score: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the points of both curves, x and y, from the largest score (n,) to the smallest; equal scores are one."""
    # Not scikit-learn's, whose import takes longer than all drawings.
    falling = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.diff(score[falling], append=-np.inf))
    hits, taken = np.cumsum(truth[falling])[last], last + 1
    positives = hits[-1]
    with np.errstate(invalid="ignore"):
        true_positive, false_positive = hits / positives, (taken - hits) / (len(truth) - positives)
    return {
        "roc": (np.append(0, false_positive), np.append(0, true_positive)),
        "precision_recall": (np.append(0, true_positive), np.append(1, hits / taken)),
    }


def _worth(verdict: Verdict, metric: str, model: str) -> str:
    found = next((m for m in verdict.metrics if m.name == metric), None)
    interval = found and (found.candidate if model == THIS else found.production)
    return f"{model}: {figure(interval.value)}" if interval else model


def _roc(verdict: Verdict, truth: np.ndarray, models: list[Any]) -> tuple[Figure, str]:
    image, axes = _axes("ROC", "false positive rate", "true positive rate")
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle=":")
    for score, colour, label in reversed(models):
        _line(axes, *_thin(*curves(truth, score)["roc"]), colour, _worth(verdict, "roc_auc", label))
    axes.legend(loc="lower right", reverse=True, title="area", alignment="left")
    return image, "ROC curve: true positive rate by false positive rate."


def _precision_recall(verdict: Verdict, truth: np.ndarray, models: list[Any]) -> tuple[Figure, str]:
    image, axes = _axes("Precision and recall", "recall", "precision")
    axes.axhline(np.mean(truth), color=SOFT, linewidth=0.8, linestyle=":")
    for score, colour, label in reversed(models):
        points = _thin(*curves(truth, score)["precision_recall"])
        _line(axes, *points, colour, _worth(verdict, "average_precision", label))
    axes.set_ylim(0, 1.02)
    axes.legend(loc="upper right", reverse=True)
    return image, "Precision by recall; the dotted line is the share of positive rows."


def _calibration(verdict: Verdict, x: str, y: str) -> tuple[Figure, str] | None:
    def known(bins: list[Bin]) -> np.ndarray:
        found = [(b.predicted, b.observed, b.rows) for b in bins if b.predicted is not None and b.observed is not None]
        return np.array(found, dtype=float).reshape(-1, 3)

    sides = [(known(verdict.reliability), NEW, THIS), (known(verdict.reliability_before), OLD, BEFORE)]
    if not any(len(side) for side, *_ in sides):
        return None
    image, axes = _axes("Calibration", x, y)
    ends = np.concatenate([side[:, :2].ravel() for side, *_ in sides])
    whole = (0.0, 1.0) if verdict.task != "regression" else (ends.min(), ends.max())
    axes.plot(whole, whole, color=SOFT, linewidth=0.8, linestyle=":")
    for side, colour, label in reversed(sides):
        if len(side):
            hollow = colour == OLD
            _line(axes, side[:, 0], side[:, 1], colour, label)
            size = 12 + 70 * side[:, 2] / side[:, 2].max()
            face = "none" if hollow else colour
            axes.scatter(
                side[:, 0], side[:, 1], s=size, marker="D" if hollow else "o", facecolor=face, edgecolor=colour
            )
    axes.legend(loc="upper left", reverse=True)
    return image, f"Calibration: {y} by {x}; a larger mark stands for more rows, the dotted line is exact."


def _confusion(truth: np.ndarray, labels: list[np.ndarray], classes: list[Any]) -> tuple[Figure, str]:
    if len(classes) > CLASSES:
        often = sorted(classes, key=lambda name: (-np.sum(truth == name), name))[: CLASSES - 1]
        truth, *labels = (np.where(np.isin(side, often), side, "others") for side in (truth, *labels))
        classes = [*often, "others"]
    size = len(classes)
    names = [_short(name, 12) for name in classes]
    tall = LETTER * max(map(len, names)) if size >= 5 else 0.15  # of the names below, which then stand upright
    panel = 1.1 + 0.24 * size + tall
    height = 3.4 if size == 2 else len(labels) * panel
    image = Figure((WIDTH, height))
    grid = (1, len(labels)) if size == 2 else (len(labels), 1)
    around = _inside(height, 0.42 + LETTER * max(map(len, names)), 0.35 + tall)
    gaps = {"wspace": 0.32, "hspace": (TOP + 0.35 + tall) / (panel - TOP - 0.35 - tall)}
    panels = image.subplots(*grid, squeeze=False, gridspec_kw=around | gaps).ravel()
    for axes, label, (title, colour) in zip(panels, labels, ((THIS, NEW), (BEFORE, OLD)), strict=False):
        counts = np.array([[np.sum((truth == was) & (label == said)) for said in classes] for was in classes])
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        for (row, column), share in np.ndenumerate(shares):
            axes.add_patch(Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, color=colour, alpha=0.06 + 0.5 * share))
            said = f"{100 * share:.0f} %\n{counts[row, column]:,}" if size == 2 else f"{100 * share:.0f}"
            axes.text(column, row, said, ha="center", va="center", fontsize=9 if size == 2 else 7)
        axes.set(title=f"Confusion, {title}", xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), xlabel="predicted")
        axes.set_xticks(range(size), names, rotation=0 if size < 5 else 90)
        axes.set_yticks(range(size), names)
        axes.set_ylabel("actual")
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    return image, "Confusion: share in percent of each actual class (a row) by predicted class."


def _scores(models: list[Any], threshold: float | None) -> tuple[Figure, str]:
    image, axes = _axes("Scores", "score", "rows")
    edges = np.linspace(0, 1, BARS + 1)
    _histograms(axes, models, edges)
    axes.axvline(threshold, color=INK, linewidth=1, linestyle=":", label=f"threshold {threshold:g}")
    axes.legend(loc="upper right", reverse=True)
    return image, f"Rows by score; the decision changes at {threshold:g}."


def _residuals(truth: np.ndarray, models: list[Any]) -> tuple[Figure, str]:
    image, axes = _axes("Residuals", "prediction minus truth", "rows")
    left = [(value - truth, colour, label) for value, colour, label in models]
    _histograms(axes, left, np.histogram_bin_edges(np.concatenate([side for side, *_ in left]), BARS))
    axes.axvline(0, color=INK, linewidth=1, linestyle=":")
    axes.legend(loc="upper right", reverse=True)
    return image, "Rows by prediction minus truth."


def _histograms(axes: Axes, models: list[Any], edges: np.ndarray) -> None:
    for values, colour, label in reversed(models):
        counts = np.histogram(values, edges)[0]
        if colour == NEW:
            axes.stairs(counts, edges, color=colour, fill=True, alpha=0.22, label=label)
            axes.stairs(counts, edges, color=colour, linewidth=1.2)
        else:
            axes.stairs(counts, edges, color=colour, linewidth=1.4, linestyle=(0, (4, 2)), label=label)


def _short(name: object, longest: int = 24) -> str:
    text = clean(str(name))
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _rows(title: str, x: str, names: list[str], of: int) -> tuple[Figure, Axes]:
    shown = f"{title} (the first {len(names)} of {of})" if of > len(names) else title
    labels = [_short(name) for name in names]
    left = 0.15 + LETTER * max(map(len, labels))
    image, axes = _axes(shown, x, height=1.15 + 0.2 * len(names), left=left, below=BELOW + LEGEND)
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    return image, axes


def _slices(verdict: Verdict) -> tuple[Figure, str] | None:
    known = [part for part in by_loss(verdict) if part.candidate.value is not None]
    if not known:
        return None
    image, axes = _rows("Slices", _short(verdict.objective), [part.name for part in known[:BARS]], len(known))
    if (whole := objective(verdict)) and whole.candidate.value is not None:
        axes.axvline(whole.candidate.value, color=SOFT, linewidth=0.9, linestyle=":", label="all rows, this change")
    for at, part in enumerate(known[:BARS]):
        if part.candidate.low is not None and part.candidate.high is not None:
            axes.plot([part.candidate.low, part.candidate.high], [at, at], color=NEW, linewidth=1.4)
    shown = list(enumerate(known[:BARS]))
    _marks(axes, [(part.candidate.value, at) for at, part in shown], [(part.production, at) for at, part in shown])
    return image, f"{verdict.objective} of each slice with its interval, largest loss against production first."


def _marks(axes: Axes, new: list[Any], old: list[Any]) -> None:
    if new:
        axes.scatter(*zip(*new, strict=True), s=22, color=NEW, label=THIS, zorder=3)
    if old := [(value, at) for value, at in old if value is not None]:
        axes.scatter(*zip(*old, strict=True), s=26, marker="D", facecolor="none", edgecolor=OLD, label=BEFORE, zorder=4)
    axes.figure.legend(loc="lower left", ncols=3, handletextpad=0.3, columnspacing=1.2)


def _shift(verdict: Verdict) -> tuple[Figure, str] | None:
    known = sorted((c for c in verdict.columns if c.effect is not None), key=lambda c: -c.effect)
    if not known:
        return None
    shown = known[:BARS]
    image, axes = _rows("Shift against the base", "distance, 0 to 1", [c.name for c in shown], len(known))
    axes.barh(range(len(shown)), [c.effect for c in shown], height=0.6, color=NEW, alpha=0.75, label="distance")
    limits = [(column.limit, at) for at, column in enumerate(shown) if column.limit is not None]
    if limits:
        axes.scatter(*zip(*limits, strict=True), marker="|", s=70, color=INK, linewidth=1.4, label="limit")
    axes.set_xlim(left=0)
    axes.figure.legend(loc="lower left", ncols=2, handletextpad=0.3, columnspacing=1.2)
    return image, "How far the values of each column moved from the base's, with the limit."


def _importance(verdict: Verdict) -> tuple[Figure, str] | None:
    known = sorted(verdict.importance, key=lambda i: -(i.candidate or 0))
    if not known:
        return None
    shown = known[:BARS]
    image, axes = _rows("Importance", f"loss of {_short(verdict.objective)}", [i.name for i in shown], len(known))
    axes.barh(range(len(shown)), [i.candidate or 0 for i in shown], height=0.6, color=NEW, alpha=0.75, label=THIS)
    axes.axvline(0, color=LINE, linewidth=0.8)
    _marks(axes, [], [(i.production, at) for at, i in enumerate(shown)])
    return image, f"What {verdict.objective} loses when an input is shuffled, of both models."
