"""Numbers to text."""

COMPARISON_COLUMNS = (("accuracy", "accuracy"), ("accuracy_with_ties", "with ties"),
                      ("accuracy_single_order", "one order"), ("log_loss", "log-loss"), ("flip_rate", "flips"),
                      ("prefers_first", "first"), ("longer_wins", "longer wins"))
CLASS_COLUMNS = (("accuracy", "accuracy"), ("macro_f1", "macro-F1"), ("log_loss", "log-loss"),
                 ("most_common", "most common"))
CONFUSIONS = 10


def table(metrics: dict) -> str:
    """An aligned table of `metrics.evaluation`: one line overall, then one per language, source and kind (or class),
    and what the numbers mean."""
    overall = metrics["overall"]
    columns = [column for column in (CLASS_COLUMNS if "macro_f1" in overall else COMPARISON_COLUMNS)
               if column[0] in overall]
    lines = [["", "n", "accuracy", "95 % interval", *(title for _, title in columns[1:])]]
    lines.append(_line("all", overall, columns))
    for name in ("language", "source", "kind"):
        parts = metrics[f"by_{name}"]
        if len(parts) > 1:
            lines.append([""])
            lines += [_line(f"{name} {value or '-'}", part, columns) for value, part in parts.items()]
    text = _aligned(lines)
    if "by_class" not in metrics:
        return f"{text}\n\n{_legend(overall)}"
    classes = [["class", "n", "precision", "recall", "F1"]]
    classes += [[name, f"{part['n']:,}", *(_number(part[key]) for key in ("precision", "recall", "f1"))]
                for name, part in metrics["by_class"].items()]
    return f"{text}\n\n{_aligned(classes)}\n\n{_confusions(metrics['confusion'])}"


def short(summary: dict) -> str:
    """One line of an evaluation during training."""
    start = (f"accuracy {_number(summary['accuracy'])} {_interval(summary['accuracy_interval'])}  log-loss "
             f"{_number(summary['log_loss'])}  ")
    if "macro_f1" in summary:
        return start + (f"macro-F1 {_number(summary['macro_f1'])}  (most common class "
                        f"{_number(summary['most_common'])}, n {summary['n']})")
    return start + (f"one order {_number(summary['accuracy_single_order'])}  flips {_number(summary['flip_rate'])}  "
                    f"(longer wins {_number(summary['longer_wins'])}, n {summary['n']})")


def _legend(overall: dict) -> str:
    text = ("accuracy: both orders averaged; one order: mean of the two; flips: verdict changes with the order; first: "
            "share\nof verdicts for the response that stands first; longer wins: accuracy of that rule. Ties are in no "
            "accuracy")
    return text + (" but\n'with ties', where the most probable of a, b and tie must be the label."
                   if "accuracy_with_ties" in overall else ".")


def _confusions(confusion: dict[str, dict[str, int]]) -> str:
    wrong = [(count, label, found) for label, row in confusion.items() for found, count in row.items()
             if found != label]
    if not wrong:
        return "no row was taken for another class"
    wrong.sort(key=lambda item: -item[0])
    named = ", ".join(f"{label} → {found} ({count:,})" for count, label, found in wrong[:CONFUSIONS])
    return f"taken most often for another class: {named}"


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in lines if len(line) > column) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                  for column, (cell, width) in enumerate(zip(line, widths, strict=False))).rstrip()
        for line in lines
    )


def _line(name: str, summary: dict, columns) -> list[str]:
    return [name, f"{summary['n']:,}", _number(summary["accuracy"]), _interval(summary["accuracy_interval"]),
            *(_number(summary[key]) for key, _ in columns[1:])]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(interval: list[float] | None) -> str:
    return "-" if interval is None else f"[{interval[0]:.3f}, {interval[1]:.3f}]"
