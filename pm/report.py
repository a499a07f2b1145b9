"""Numbers to text: one line, a table for the terminal, a page of Markdown, a page of HTML. Pure."""

import html
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

COMPARISON_COLUMNS = (("accuracy_with_ties", "with ties"), ("accuracy_single_order", "one order"),
                      ("log_loss", "log-loss"), ("ece", "ECE"), ("flip_rate", "flips"), ("prefers_first", "first"))
CLASS_COLUMNS = (("macro_f1", "macro-F1"), ("log_loss", "log-loss"), ("ece", "ECE"), ("most_common", "most common"))
SHORTCUTS = {"longer": "the longer response", "more_markdown": "the response with more Markdown",
             "always_a": "always response a", "n_grams": "a regression on n-grams of the responses",
             "prompt_only": "a regression on n-grams of the prompt", "response_only": "this model without the prompt"}
BESIDE = (("longer", "longer"), ("n_grams", "n-grams"))
NAME_CHARACTERS = 32  # of a language, source or kind on the terminal
FEWEST_TRIPLES = 20  # of responses, to say something of circles
NUMBER = re.compile(r"[-+]?[\d,]+(\.\d+)?|-|\[.*\]")
TITLES = {"language": "Language", "source": "Source", "kind": "Kind", "length": "Length in tokens",
              "length_difference": "Length of the better response against the worse one"}
ON_TERMINAL = ("language", "source", "kind")
LISTED = 30  # lines of a table, on the terminal and on the page of Markdown
CONFUSIONS = 10
OFTEN_FLIPS = 0.1
FAVOURS = 0.05  # from one half: share of verdicts for the response that stands first
TEXT_CHARACTERS = 700

LEGEND = ("accuracy: both orders averaged; one order: mean of the two; flips: verdict changes with the order; first: "
          "share\nof verdicts for the response that stands first; {beside}: {these}. Ties are in no accuracy")


class Table(NamedTuple):
    head: list[str]
    lines: list[list[str]]


class Block(NamedTuple):
    """One part of a report. `plots` are SVG, `texts` rows to be read: (heading, language, [(label, text)]). One that
    is `folded` is not on the page of Markdown, and closed on that of HTML."""

    title: str = ""
    sentences: Sequence[str] = ()
    table: Table | None = None
    plots: Sequence[str] = ()
    texts: Sequence[tuple[str, str, list[tuple[str, str]]]] = ()
    note: str = ""
    folded: bool = False


def short(summary: dict) -> str:
    """One line of an evaluation during training."""
    start = (f"accuracy {_number(summary['accuracy'])} {_interval(summary['accuracy_interval'])}  log-loss "
             f"{_number(summary['log_loss'])}  ")
    if "macro_f1" in summary:
        return start + (f"macro-F1 {_number(summary['macro_f1'])}  (most common class "
                        f"{_number(summary['most_common'])}, n {summary['n']})")
    shortcuts = ", ".join(f"{title} {_number(summary['shortcuts'][name]['accuracy'])}" for name, title in BESIDE
                          if name in summary["shortcuts"])
    return start + (f"one order {_number(summary['accuracy_single_order'])}  flips {_number(summary['flip_rate'])}  "
                    f"({shortcuts}, n {summary['n']})")


def table(metrics: dict) -> str:
    """For the terminal: `metrics.evaluation` as an aligned table, the shortcuts, and what it comes to in words."""
    parts = [("all", metrics["overall"])]
    for name in ON_TERMINAL:
        found = metrics[f"by_{name}"]
        if len(found) > 1:
            parts.append(("", None))
            parts += [(" ".join(f"{name} {value or '-'}".split())[:NAME_CHARACTERS], part)
                      for value, part in list(found.items())[:LISTED]]
            parts += [(f"and {len(found) - LISTED:,} more in the report", None)] if len(found) > LISTED else []
    texts = [aligned(_summaries(parts, metrics["overall"]))]
    if "by_class" in metrics:
        texts += [aligned(_classes(metrics)), _wrapped(_confusions(metrics["confusion"]))]
    else:
        tied = " but\n'with ties', where the most probable of a, b and tie must be the label."
        beside = [title for name, title in BESIDE if name in metrics["overall"]["shortcuts"]]
        legend = LEGEND.format(beside=", ".join(beside), these="these shortcuts" if beside[1:] else "this shortcut")
        texts += [legend + (tied if "accuracy_with_ties" in metrics["overall"] else "."),
                  aligned(_shortcut_table(metrics["overall"]))]
    if "difference" in metrics:
        texts.append(f"minus {metrics['difference']['other']}:\n{aligned(_every_number(metrics['difference']))}")
    texts.append("\n".join(map(_wrapped, verdicts(metrics))))
    if "benchmark" in metrics:
        found = metrics["benchmark"]
        note = _missing(found)
        texts.append(f"{found['name']}:\n{aligned(_benchmark_table(found))}" + (f"\n{_wrapped(note)}" if note else ""))
    return "\n\n".join(texts)


def verdicts(metrics: dict) -> list[str]:
    """What the numbers come to, in plain words, bad news first."""
    overall = metrics["overall"]
    if "shortcuts" not in overall:
        return _about_calibration(overall)
    lines = []
    interval = overall["accuracy_interval"]
    if overall["accuracy"] is not None and (interval is None or interval[0] <= 0.5):
        shown = _interval(interval) if interval else "(of a single group of prompts)"
        lines.append(f"The accuracy, {_number(overall['accuracy'])} {shown}, is not shown to be above chance.")
    above = []
    for name, found in overall["shortcuts"].items():
        between = found["difference_interval"]
        if found["difference"] is None or name == "always_a":
            continue
        if between and between[0] > 0:
            above.append(f"{SHORTCUTS.get(name, name)} ({_number(found['accuracy'])})")
        else:
            how = "below" if between and between[1] < 0 else "not above"
            lines.append(f"The model is {how} a shortcut: {SHORTCUTS.get(name, name)} has "
                         f"{_number(found['accuracy'])}, from which the model differs by {found['difference']:+.3f}"
                         f"{f' {_interval(between)}' if between else ''}.")
    if above:
        lines.append(f"The model is above {'; '.join(above)}.")
    weak = [name for name, part in metrics["by_language"].items()
            if part["accuracy"] is not None and (part["accuracy_interval"] or [0.0])[0] <= 0.5]
    if weak and len(metrics["by_language"]) > 1:
        lines.append(f"Not shown to be above chance in {len(weak)} of {len(metrics['by_language'])} languages: "
                     f"{', '.join(weak[:LISTED])}.")
    if overall["flip_rate"] > OFTEN_FLIPS:
        first = overall["prefers_first"]
        side = "" if abs(first - 0.5) < FAVOURS else f", mostly to the {'first' if first > 0.5 else 'second'} response"
        lines.append(f"The verdict of {overall['flip_rate']:.0%} of the rows changes with the order of the responses"
                     f"{side}: read both orders, as is done here.")
    ranks = metrics.get("ranking")
    if ranks and ranks["triples"] >= FEWEST_TRIPLES:
        lines.append(f"Of {ranks['triples']:,} triples of responses to one prompt {ranks['cycle_rate']:.1%} go in a "
                     "circle (by lot: 25 %).")
    return lines + _about_calibration(overall)


def _about_calibration(overall: dict) -> list[str]:
    if "ece_calibrated" not in overall:
        return [f"Probabilities are off by {overall['ece']:.3f} on average (expected calibration error); no "
                "temperature was fitted."]
    return [f"Probabilities are off by {overall['ece_calibrated']:.3f} on average (expected calibration error) with "
            f"temperatures, {overall['ece']:.3f} without; log-loss {_number(overall['log_loss_calibrated'])} and "
            f"{_number(overall['log_loss'])}."]


# Pages


def blocks(metrics: dict, plots: dict[str, str], texts: Sequence[tuple[str, str, list[tuple[str, str]]]] = ()
           ) -> Iterator[Block]:
    """The parts of a report, in order."""
    overall = metrics["overall"]
    yield Block("", verdicts(metrics))
    yield Block("Overall", table=_every_number(overall))
    if "shortcuts" in overall:
        yield Block("Shortcuts", table=_shortcut_table(overall), note="An accuracy means something only above what "
                    "can be had without reading. Differences are paired, on the same rows.")
    if "difference" in metrics:
        yield Block("Against the other model", table=_every_number(metrics["difference"]), note="Of the rows that both "
                    f"have, this model minus {metrics['difference']['other']}.")
    if "benchmark" in metrics:
        yield Block(metrics["benchmark"]["name"], table=_benchmark_table(metrics["benchmark"]),
                    note=_missing(metrics["benchmark"]))
    if plots:
        yield Block("Plots", plots=list(plots.values()))
    for name, parts in metrics.items():
        if name.startswith("by_") and name != "by_class" and len(parts) > 1:
            dimension = name.removeprefix("by_")
            crossed = " and ".join(dimension.replace("_", " ").split(","))
            yield Block(TITLES.get(dimension, f"By {crossed}"), folded=dimension not in TITLES,
                        table=_summaries([(value or "-", part) for value, part in parts.items()], overall))
    if "by_class" in metrics:
        yield Block("Classes", [_confusions(metrics["confusion"])], _classes(metrics))
    if metrics.get("ranking"):
        yield Block("Rankings of three and more responses", table=_every_number(metrics["ranking"]))
    if texts:
        yield Block("The surest mistakes", texts=texts)
    yield Block("What this is", table=Table(["", ""], [[name, _shown(value)] for name, value in
                                                       metrics.get("about", {}).items()]))


def to_markdown(title: str, parts: Iterator[Block]) -> str:
    """A page: sentences and tables, without plots and texts."""
    lines = [f"# {title}"]
    for block in parts:
        if block.folded or not (block.sentences or block.table):
            continue
        lines += ["", f"## {block.title}"] if block.title else []
        lines += ["", *(f"- {_markdown(sentence)}" for sentence in block.sentences)] if block.sentences else []
        lines += ["", *markdown_table(block.table, LISTED)] if block.table else []
        lines += ["", block.note] if block.note else []
    return "\n".join(lines) + "\n"


def markdown_table(found: Table, listed: int) -> list[str]:
    """The first lines, and "and N more" below."""
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(_markdown, cells))} |"

    if not found.lines:
        return []
    rule = f"|{'|'.join('---:' if _is_number(cell) else '---' for cell in found.lines[0])}|"
    more = len(found.lines) - listed
    return [line(found.head), rule, *map(line, found.lines[:listed]), *(["", f"and {more:,} more"] if more > 0 else [])]


def _markdown(text: str) -> str:
    """On one line, and neither a cell's end nor a tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def to_html(title: str, parts: Iterator[Block]) -> str:
    """A page that needs no other file: tables, plots and texts, each text in its own direction."""
    body = [f"<h1>{html.escape(title)}</h1>"]
    for block in parts:
        heading = f"<h2>{html.escape(block.title)}</h2>" if block.title else ""
        body.append(f"<details><summary>{heading}</summary>" if block.folded else heading)
        if block.sentences:
            body.append(f"<ul>{''.join(f'<li>{html.escape(sentence)}' for sentence in block.sentences)}</ul>")
        if block.table:
            body.append(_html_table(block.table))
        body.append(f"<p class=note>{html.escape(block.note)}</p>" if block.note else "")
        if block.plots:
            body.append(f"<div class=plots>{''.join(f'<figure>{svg}</figure>' for svg in block.plots)}</div>")
        for heading, language, labelled in block.texts:
            inner = "".join(f"<dt>{html.escape(label)}<dd dir=auto lang='{html.escape(language)}'>"
                            f"{html.escape(_cut(text))}" for label, text in labelled)
            body.append(f"<section><h3>{html.escape(heading)}</h3><dl>{inner}</dl></section>")
        body.append("</details>" if block.folded else "")
    return PAGE.format(title=html.escape(title), body="\n".join(filter(None, body)))


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, "Noto Sans", sans-serif; color: #1c2026; max-width: 1080px; margin: 2rem auto;
       padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.1rem; margin: 2rem 0 .5rem; }}
h3 {{ font-size: .95rem; margin: 1rem 0 0; }} summary h2 {{ display: inline-block; cursor: pointer; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }}
th, td {{ padding: .15rem .7rem .15rem 0; border-bottom: 1px solid #e6e8eb; text-align: left; white-space: nowrap; }}
td.wide {{ white-space: normal; overflow-wrap: anywhere; }}
th {{ font-weight: 600; }} .number {{ text-align: right; }} .note {{ color: #5a6470; }}
.plots {{ display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }}
figure {{ margin: 0; max-width: 100%; }} svg {{ max-width: 100%; height: auto; }}
section {{ border-left: 3px solid #e6e8eb; padding-left: .9rem; margin: 1rem 0; }}
dl {{ margin: 0; }} dt {{ color: #5a6470; font-size: .85rem; }}
dd {{ margin: 0 0 .4rem; white-space: pre-wrap; overflow-wrap: anywhere; }}
</style></head>
<body>
{body}
</body></html>
"""


def _html_table(found: Table) -> str:
    def cells(tag: str, line: Sequence[str], like: Sequence[str]) -> str:
        kinds = ["number" if _is_number(cell) else "wide" if len(cell) > 60 else "" for cell in like]
        return "".join(f"<{tag}{f' class={kind}' if kind else ''} dir=auto>{html.escape(cell)}</{tag}>"
                       for cell, kind in zip(line, kinds, strict=True))

    if not found.lines:
        return ""
    head = f"<tr>{cells('th', found.head, found.lines[0])}</tr>" if any(found.head) else ""
    body = "".join(f"<tr>{cells('td', line, line)}</tr>" for line in found.lines)
    return f"<table>{head}{body}</table>"


# Tables


def _summaries(parts: Sequence[tuple[str, dict | None]], overall: dict) -> Table:
    """A line for each summary, an empty one for None."""
    columns = [column for column in (CLASS_COLUMNS if "macro_f1" in overall else COMPARISON_COLUMNS)
               if column[0] in overall]
    beside = [column for column in BESIDE if column[0] in overall.get("shortcuts", {})]
    lines = []
    for name, part in parts:
        if part is None:
            lines.append([name])
            continue
        numbers = [part.get(f"{key}_calibrated", part[key]) for key, _ in columns]
        numbers += [part["shortcuts"][key]["accuracy"] for key, _ in beside]
        lines.append([name, f"{part['n']:,}", _number(part["accuracy"]), _interval(part["accuracy_interval"]),
                      *map(_number, numbers)])
    return Table(["", "n", "accuracy", "95 % interval", *(title for _, title in (*columns, *beside))], lines)


def _shortcut_table(overall: dict) -> Table:
    return Table(["shortcut", "accuracy", "95 % interval", "model minus it", "95 % interval"], [
        [SHORTCUTS.get(name, name), _number(found["accuracy"]), _interval(found["accuracy_interval"]),
         "-" if found["difference"] is None else f"{found['difference']:+.3f}", _interval(found["difference_interval"])]
        for name, found in overall["shortcuts"].items()])


def _every_number(summary: dict) -> Table:
    """A line for each number that a summary holds, with its interval."""
    return Table(["", "value", "95 % interval"], [
        [name.replace("_", " "), f"{value:,}" if isinstance(value, int) else _number(value),
         _interval(summary.get(f"{name}_interval"))]
        for name, value in summary.items() if value is None or isinstance(value, (int, float))
        if not name.endswith("_interval")])


def _classes(metrics: dict) -> Table:
    return Table(["class", "n", "precision", "recall", "F1"], [
        [name, f"{part['n']:,}", *(_number(part[key]) for key in ("precision", "recall", "f1"))]
        for name, part in metrics["by_class"].items()])


def _benchmark_table(benchmark: dict) -> Table:
    return Table(["", "score"], [[name, _number(value)] for name, value in benchmark["scores"].items()])


def _missing(benchmark: dict) -> str:
    return f"Without a row: {', '.join(benchmark['missing'])}." if benchmark["missing"] else ""


def _confusions(confusion: dict[str, dict[str, int]]) -> str:
    wrong = [(count, label, found) for label, row in confusion.items() for found, count in row.items()
             if found != label]
    if not wrong:
        return "no row was taken for another class"
    wrong.sort(key=lambda item: -item[0])
    named = ", ".join(f"{label} → {found} ({count:,})" for count, label, found in wrong[:CONFUSIONS])
    return f"taken most often for another class: {named}"


def aligned(found: Table) -> str:
    lines = [found.head, *found.lines]
    widths = [max(len(line[column]) for line in lines if len(line) > column) for column in range(len(found.head))]
    return "\n".join(
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                  for column, (cell, width) in enumerate(zip(line, widths, strict=False))).rstrip()
        for line in lines
    )


def _is_number(cell: str) -> bool:
    return NUMBER.fullmatch(cell) is not None


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, subsequent_indent="  ")


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_CHARACTERS else f"{text[:TEXT_CHARACTERS]} […]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(interval: list[float] | None) -> str:
    return "-" if interval is None else f"[{interval[0]:.3f}, {interval[1]:.3f}]"
