"""Numbers to text."""

from collections.abc import Sequence

from pm.metrics import by, summarise

COLUMNS = (("accuracy", "accuracy"), ("accuracy_single_order", "one order"), ("log_loss", "log-loss"),
           ("flip_rate", "flips"), ("prefers_first", "first"), ("longer_wins", "longer wins"))


def evaluation(predictions: Sequence[dict]) -> dict:
    """All metrics of a set of predictions, as `eval.py` writes them to `metrics.json`."""
    return {"overall": summarise(predictions)} | {
        f"by_{column}": by(predictions, column) for column in ("language", "source", "kind")
    }


def table(metrics: dict) -> str:
    """An aligned table of `evaluation(...)`: one line overall, then one per language, source and kind."""
    lines = [["", "n", "accuracy", "95 % interval", *(title for _, title in COLUMNS[1:])]]
    lines.append(_line("all", metrics["overall"]))
    for name in ("language", "source", "kind"):
        parts = metrics[f"by_{name}"]
        if len(parts) > 1:
            lines.append([""])
            lines += [_line(f"{name} {value or '-'}", part) for value, part in parts.items()]
    widths = [max(len(line[column]) for line in lines if len(line) > column) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                  for column, (cell, width) in enumerate(zip(line, widths, strict=False))).rstrip()
        for line in lines
    )


LEGEND = (
    "accuracy: both orders averaged; one order: mean of the two; flips: verdict changes with the order; first: share\n"
    "of verdicts for the response that stands first; longer wins: accuracy of that rule. Ties are in no accuracy."
)


def short(summary: dict) -> str:
    """One line of an evaluation during training."""
    return (f"accuracy {_number(summary['accuracy'])} {_interval(summary['accuracy_interval'])}  log-loss "
            f"{_number(summary['log_loss'])}  one order {_number(summary['accuracy_single_order'])}  flips "
            f"{_number(summary['flip_rate'])}  (longer wins {_number(summary['longer_wins'])}, n {summary['n']})")


def _line(name: str, summary: dict) -> list[str]:
    return [name, f"{summary['n']:,}", _number(summary["accuracy"]), _interval(summary["accuracy_interval"]),
            *(_number(summary[key]) for key, _ in COLUMNS[1:])]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(interval: list[float] | None) -> str:
    return "-" if interval is None else f"[{interval[0]:.3f}, {interval[1]:.3f}]"
