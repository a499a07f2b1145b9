"""Metrics to plots, as SVG whose text is text, so that whatever shows it has the fonts for it. Needs matplotlib."""

import io
import itertools
import re
import warnings
from collections.abc import Callable, Sequence

MODEL, OTHER, MUTED = "#1f5fa8", "#c8591b", "#9aa3ad"
MOST_BARS = 40
NOT_IN_XML = re.compile("[\x00-\x1f\ufffe\uffff]")
SMALLEST_BIN = 0.005  # share of the rows: a smaller one is not drawn
STYLE = {"svg.fonttype": "none", "text.parse_math": False, "svg.hashsalt": "pm", "font.family": "sans-serif",
         "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11,
         "axes.titlelocation": "left", "axes.axisbelow": True, "legend.frameon": False}


def available() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def plots(metrics: dict, history: Sequence[dict] = ()) -> dict[str, str]:
    """SVG by name, none of them without matplotlib. `metrics` as of `metrics.evaluation`; `history`: the lines of a
    run's metrics.jsonl."""
    if not available():
        return {}
    known = {name: found["accuracy"] for name, found in metrics["overall"].get("shortcuts", {}).items()}
    best = max(known, key=lambda name: known[name] or 0.0, default="")
    languages = dict(list(metrics["by_language"].items())[:MOST_BARS])
    more = len(metrics["by_language"]) - len(languages)
    drawn = {"accuracy_by_language": _svg(
        "Accuracy by language, with 95 % intervals" + (f" ({more} more in the table)" if more else ""),
        (7, 1.2 + 0.26 * len(languages)), _accuracies, languages, best)}
    drawn["reliability"] = _svg("Reliability: is it right as often as it says?", (5, 4.4), _reliability,
                                metrics["reliability"])
    if "orders" in metrics:
        lengths = {name: part for name, part in metrics["by_length_difference"].items() if part["accuracy"] is not None}
        drawn["accuracy_by_length_difference"] = _svg(
            "Accuracy by length of the better response, against the worse one", (7, 1.2 + 0.3 * len(lengths)),
            _accuracies, lengths, best)
        drawn["orders"] = _svg("Probability of A, in each order of the responses", (5, 4.4), _orders, metrics["orders"])
    drawn["lengths"] = _svg("Length, and how many rows were cut", (6, 3.2), _lengths, metrics["lengths"])
    if any(line["phase"] == "train" for line in history):
        drawn["learning_curve"] = _svg("Learning curve", (7, 3.6), _learning, history)
    return drawn


def _svg(title: str, size: tuple[float, float], draw: Callable, *values) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Glyph .* missing")  # the viewer's fonts are used, not ours
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        draw(axes, *values)
        axes.set_title(title, pad=12)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _accuracies(axes, parts: dict[str, dict], shortcut: str) -> None:
    """A point with its interval for each part, that of the shortcut which is best overall beside it."""
    names = list(parts)[::-1]
    drawn = {}
    for place, name in enumerate(names):
        part = parts[name]
        if part["accuracy"] is None:
            continue
        low, high = part["accuracy_interval"] or (part["accuracy"], part["accuracy"])
        axes.plot([low, high], [place, place], color=MODEL, linewidth=1.5, solid_capstyle="butt")
        drawn["model"], = axes.plot(part["accuracy"], place, "o", color=MODEL, markersize=5)
        known = part.get("shortcuts", {}).get(shortcut, {}).get("accuracy")
        if known is not None:
            drawn[f"the best shortcut, {shortcut.replace('_', ' ')}"], = axes.plot(
                known, place, "|", color=OTHER, markersize=11, markeredgewidth=2)
    axes.axvline(0.5, color=MUTED, linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(names)), [f"{_printable(name) or '-'} ({parts[name]['n']:,})" for name in names])
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("accuracy")
    axes.grid(axis="x", color="#e6e8eb", linewidth=0.6)
    if drawn:
        axes.figure.legend(drawn.values(), drawn.keys(), loc="outside lower right", ncols=2, fontsize=9)


def _printable(name: str) -> str:
    """Without what no SVG may hold."""
    return NOT_IN_XML.sub(" ", name)


def _reliability(axes, reliability: dict[str, list[dict]]) -> None:
    rows = sum(part["n"] for part in reliability["before"])
    shown = {name: [part for part in bins if part["n"] >= SMALLEST_BIN * rows] for name, bins in reliability.items()}
    low = min(part[key] for bins in shown.values() for part in bins for key in ("confidence", "outcome"))
    axes.plot([low, 1], [low, 1], color=MUTED, linewidth=0.8)
    styles = {"before": (OTHER if "after" in reliability else MODEL, "logits as they are"),
              "after": (MODEL, "with temperature")}
    for name, bins in shown.items():
        color, label = styles[name]
        most = max(part["n"] for part in bins)
        confidence, outcome = ([part[key] for part in bins] for key in ("confidence", "outcome"))
        axes.plot(confidence, outcome, color=color, linewidth=1.2)
        axes.scatter(confidence, outcome, [12 + 110 * part["n"] / most for part in bins], color=color, label=label,
                     alpha=0.85, linewidths=0)
    axes.set_xlabel("confidence (probability of the verdict)")
    axes.set_ylabel("share of right verdicts")
    axes.legend(loc="upper left", markerscale=0.7, fontsize=9)
    axes.grid(color="#e6e8eb", linewidth=0.6)


def _orders(axes, counts: Sequence[Sequence[int]]) -> None:
    from matplotlib.colors import LogNorm

    most = max(map(max, counts))
    image = axes.imshow([[count or float("nan") for count in row] for row in counts], origin="lower", cmap="Blues",
                        extent=(0, 1, 0, 1), norm=LogNorm(1, max(2, most)))
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
    axes.axhline(0.5, color=MUTED, linewidth=0.5)
    axes.axvline(0.5, color=MUTED, linewidth=0.5)
    axes.set_xlabel("read as B, A")
    axes.set_ylabel("read as A, B")
    axes.figure.colorbar(image, label="rows", shrink=0.8, format="{x:,.0f}")


def _lengths(axes, lengths: dict[str, list]) -> None:
    edges = lengths["edges"]
    widths = [high - low for low, high in itertools.pairwise(edges)]
    axes.bar(edges[:-1], lengths["rows"], widths, align="edge", color=MODEL, label="rows")
    if any(lengths["cut"]):
        axes.bar(edges[:-1], lengths["cut"], widths, align="edge", color=OTHER, label="cut to fit")
    axes.set_xlabel("tokens of a sequence")
    axes.set_ylabel("rows")
    axes.legend(fontsize=9)


def _learning(axes, history: Sequence[dict]) -> None:
    """Loss of each step (its running mean), and loss and accuracy of each evaluation."""
    train = [line for line in history if line["phase"] == "train" and line["loss"] is not None]
    tested = [line for line in history if line["phase"] == "eval"]
    smooth, mean = [], train[0]["loss"] if train else 0.0
    for line in train:
        mean += (line["loss"] - mean) * max(0.05, 1 / (len(smooth) + 1))
        smooth.append(mean)
    axes.plot([line["step"] for line in train], smooth, color=MUTED, linewidth=1.2, label="training loss")
    axes.set_xlabel("step")
    axes.set_ylabel("nats")
    if tested:
        steps = [line["step"] for line in tested]
        axes.plot(steps, [line["log_loss"] for line in tested], "o-", color=OTHER, markersize=4, label="test log-loss")
        right = axes.twinx()
        right.spines["right"].set_visible(True)
        known = [line for line in tested if line["accuracy"] is not None]
        for line in known:
            ends = line["accuracy_interval"] or [line["accuracy"]] * 2
            right.plot([line["step"]] * 2, ends, color=MODEL, linewidth=1.2)
        if known:
            right.plot([line["step"] for line in known], [line["accuracy"] for line in known], "s-", color=MODEL,
                       markersize=4, linewidth=1.2, label="test accuracy")
            right.legend(loc="lower right", fontsize=9)
        right.set_ylabel("accuracy")
        right.set_ylim(0, 1)
    axes.legend(loc="lower left", fontsize=9)
