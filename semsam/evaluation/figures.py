"""Figures of a dataset's numbers as PNG files: precision and recall, confusion of names, trust in predicted IoUs."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from jaxtyping import Float64, Int64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from semsam.evaluation.dataset_numbers import DatasetNumbers
from semsam.evaluation.matches import RECALLS, Matches

MOST_NAMES = 24  # In a confusion; of more names those that are confused most.
Curves = Mapping[str, Sequence[tuple[int, float]]]  # Steps and values, by the line's name.
_IOUS = (0.5, 0.75)
_DOTS_PER_INCH = 120
_LONGEST = 24  # Letters of a name.
_PANELS = 3  # In a row.
_MOST_POINTS = 400  # Of a line; of more the means.
_DOTS = 40  # A line of fewer points shows where they are.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Told apart by everybody.


def figures_of(numbers: DatasetNumbers) -> dict[str, bytes]:
    """The figures that there is anything to draw for: `precision_recall`, `calibration`, `objects`, `parts`.

    The same numbers give the same bytes.
    """
    curves = {name: one.images for name, one in numbers.protocols.items() if isinstance(one.images, Matches)}
    calibration = numbers.protocols.get("iou_calibration")
    figures = {}
    # What the user has set for figures of their own is left alone, and does not change ours.
    with mpl.rc_context(mpl.rcParamsDefault):
        if curves:
            figures["precision_recall"] = _png(_precision_recall(curves))
        if calibration is not None:
            figures["calibration"] = _png(_reliability(calibration.images.per_class(), calibration.values))
        for what, names in (
            ("objects", numbers.prompts.vocabulary.objects),
            ("parts", numbers.prompts.vocabulary.parts),
        ):
            counts = numbers.prompts.confusion(what.removesuffix("s"))
            if counts.any():
                figures[what] = _png(_confusion(counts, names, what))
    return figures


def curves(panels: Mapping[str, Curves], marked: int | None = None) -> bytes:
    """Lines over steps, a panel for each group of them, and a line down at the step that is `marked`.

    A name has one colour in all panels.
    """
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    colours = {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(names)}
    with mpl.rc_context(mpl.rcParamsDefault):
        rows = -(-len(panels) // _PANELS)
        figure = Figure((4.2 * _PANELS, 2.9 * rows), layout="constrained")
        places = figure.subplots(rows, _PANELS, squeeze=False).ravel()
        for axes, (title, lines) in zip(places, panels.items(), strict=False):
            _lines(axes, title, lines, colours)
            if marked is not None:
                axes.axvline(marked, color="0.5", linewidth=1, linestyle="--")
        for axes in places[len(panels) :]:
            axes.set_axis_off()
        return _png(figure)


def _lines(axes: Axes, title: str, lines: Curves, colours: Mapping[str, str]) -> None:
    for name, points in lines.items():
        pieces = np.array_split(np.array(points, np.float64), min(len(points), _MOST_POINTS))
        steps, values = (np.array([piece[:, place].mean() for piece in pieces]) for place in (0, 1))
        # A name may begin with an underscore, which the library would leave out.
        line = axes.plot(
            steps, values, color=colours[name], linewidth=1.4, marker="o" if len(pieces) < _DOTS else "", markersize=3
        )
        line[0].set_label(name.lstrip("_"))
    axes.grid(color="0.9")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    if len(lines) > 1:
        axes.legend(fontsize=7)


def most_confused(counts: Int64[np.ndarray, "t n"], most: int) -> Int64[np.ndarray, " kept"]:
    """The names to show, in their own order: all that occur, or the `most` with the most mistakes from or to them."""
    names = counts[:, :-1]
    occurs = np.flatnonzero((counts.sum(1) > 0) | (names.sum(0) > 0))
    if len(occurs) <= most:
        return occurs
    mistakes = counts.sum(1) + names.sum(0) - 2 * np.diagonal(names)
    return np.sort(occurs[np.argsort(-mistakes[occurs], kind="stable")[:most]])


def _precision_recall(curves: Mapping[str, Matches]) -> Figure:
    figure = Figure((10, 4.2), layout="constrained")
    for axes, iou in zip(figure.subplots(1, 2, sharey=True), _IOUS, strict=True):
        for colour, (name, matches) in zip(_COLOURS * 2, curves.items(), strict=False):
            precision = matches.precisions(iou)
            label = f"{name.replace('_', ' ')}: {precision.mean():.3f}"
            axes.plot(RECALLS, precision, color=colour, linewidth=1.6, label=label)
        _unit_square(axes, "recall", f"IoU {iou}, mean over names")
        axes.legend(fontsize=8, title="AP", title_fontsize=8)
    figure.axes[0].set_ylabel("precision")
    return figure


def _reliability(tenths: Mapping[str, Mapping[str, float]], values: Mapping[str, float]) -> Figure:
    """The mean true IoU of each tenth of the predicted ones, over how many levels there are in each."""
    predicted, true, levels = (np.array([row[n] for row in tenths.values()]) for n in ("predicted", "true", "levels"))
    figure = Figure((5.2, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="as predicted")
    above.plot(predicted, true, color=_COLOURS[0], marker="o", linewidth=1.6, label="model")
    _unit_square(above, "", "  ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in values.items()))
    above.set_xlim(min(0.0, predicted.min()), max(1.0, predicted.max()))  # Raw predictions may lie beyond 0 and 1.
    above.set_ylabel("best IoU under the click")
    above.legend(fontsize=8, loc="upper left")
    starts = [float(name.split()[0]) for name in tenths]
    bars = below.bar(starts, levels, 0.1, align="edge", color=_COLOURS[5], edgecolor="white")
    below.bar_label(bars, [f"{count:.0f}" for count in levels], fontsize=7)
    below.margins(y=0.2)
    below.set_ylabel("levels")
    below.set_xlabel("predicted IoU")
    return figure


def _confusion(counts: Int64[np.ndarray, "t n"], names: Sequence[str], what: str) -> Figure:
    """Shares of what the regions of each name (row) were taken for; names that are not shown have a column together."""
    kept = most_confused(counts, MOST_NAMES)
    rows = counts[kept]
    columns, labels = [rows[:, kept]], [_short(names[name]) for name in kept]
    if len(kept) < len(names) and (others := np.delete(rows[:, :-1], kept, axis=1)).any():
        columns.append(others.sum(1, keepdims=True))
        labels.append("(other names)")
    if rows[:, -1].any():
        columns.append(rows[:, -1:])
        labels.append("(no name)")
    table = np.concatenate(columns, axis=1)
    totals = rows.sum(1)
    shares = np.divide(table, totals[:, None], out=np.zeros(table.shape), where=totals[:, None] > 0)
    side = max(2.2, 0.34 * len(kept))
    figure = Figure((side * table.shape[1] / len(kept) + 3.2, side + 2.2), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    figure.colorbar(image, ax=axes, label="share of the row", shrink=0.8)
    # Names are a user's: a dollar sign in one begins no formula.
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8, parse_math=False)
    rows_said = [f"{label} ({total})" for label, total in zip(labels, totals.tolist(), strict=False)]
    axes.set_yticks(range(len(kept)), rows_said, fontsize=8, parse_math=False)
    axes.set_xlabel("taken for")
    axes.set_ylabel("true name (regions)")
    occurring = int(((counts.sum(1) > 0) | (counts[:, :-1].sum(0) > 0)).sum())
    axes.set_title(_title(what, len(kept), occurring, float(np.trace(counts[:, :-1]) / counts.sum())), fontsize=10)
    _write_shares(axes, shares)
    return figure


def _title(what: str, shown: int, occurring: int, share_right: float) -> str:
    of = f"the {shown} most confused of {occurring} names" if shown < occurring else f"{shown} names"
    return f"{what}: {of}\nof all regions {share_right:.1%} named rightly"


def _write_shares(axes: Axes, shares: Float64[np.ndarray, "r c"]) -> None:
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            colour = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=colour)


def _unit_square(axes: Axes, label: str, title: str) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.grid(color="0.9")
    axes.set_xlabel(label)
    axes.set_title(title, fontsize=10)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # The library's own font has no letters for some languages' names; these show as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(file, format="png", dpi=_DOTS_PER_INCH)
    return file.getvalue()
