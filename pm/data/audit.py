"""What is wrong with data before it is trained on: leaks, duplicates, contradictions, shortcuts.

    python -m pm.data.audit DATA... [--test_data ...] [--benchmark_data ...] [--near 0.8]

train.py makes the same audit of its two splits. A report is no verdict: the command ends with 0 whatever it finds.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset

from pm.config import Config, default_test_fraction, fail
from pm.data import findings as auditing
from pm.data.example import text_hash
from pm.data.findings import ACROSS, DUPLICATES, ROWS_IN_TRAIN, WITHIN, across, read_side, within
from pm.data.forms import FORMS
from pm.data.near import NearPrompts, check_near
from pm.data.prepare import cached, code_hash, encode, read, split_rows
from pm.data.sources import Reading
from pm.encoding import Encoder
from pm.errors import UserError, run_main
from pm.model import load_tokenizer
from pm.task import CLASSIFICATION, PREFERENCE

LISTED = 25  # classes and languages in a table
SOURCES_LISTED = 10
ID_CHARACTERS = 40  # of an id in a table
LOPSIDED = 0.1  # from one half: share of a winner, or of longer winners, that is worth a line in a log
DOMINANT = 0.8  # share of one class that is worth a line
ENOUGH = 100  # rows below which a share says little
AUDITING = code_hash(auditing, sys.modules[__name__])


def audit(train: Dataset, test: Dataset | None = None, benchmark: Dataset | None = None,
          near: float | None = None) -> dict:
    """What was found, ready for JSON.

    Keys: `task`, `near`; `train` and `test` with the findings of `WITHIN`, labels, lengths, languages and sources;
    `overlap` (test against train) and `contamination` (benchmark against train) with those of `ACROSS`.
    A finding is `{"count", "out_of", "examples": [{"id", "of", ...}]}`. What was not asked for, or does not apply to
    a classification, is left out.

    `near` is the Jaccard similarity of two prompts' 5-grams from which they are nearly equal; it needs 7 KB a prompt.
    Raises `UserError` where `near` is out of range, or needs a package that is missing.
    """
    if near is not None:
        check_near(near)
    given = {name: rows for name, rows in (("train", train), ("test", test), ("benchmark", benchmark))
             if rows is not None}
    compares = next((rows[0]["response_a"] is not None for rows in given.values() if len(rows)), True)
    sides = {name: read_side(rows, compares, name) for name, rows in given.items()}
    prompts = {name: NearPrompts(side, near) for name, side in sides.items()} if near is not None else {}

    findings: dict = {"task": PREFERENCE if compares else CLASSIFICATION, "near": near}
    findings |= {name: within(sides[name]) for name in ("train", "test") if name in sides}
    for name in _split(findings) if prompts else ():
        findings[name]["near_prompts"] = prompts[name].within()
    for name, title in (("test", "overlap"), ("benchmark", "contamination")):
        if name in sides:
            findings[title] = across(sides[name], sides["train"])
            if prompts:
                findings[title]["near_prompts"] = prompts[name].near_to(prompts["train"])
    return findings


def cached_audit(train: Dataset, test: Dataset, benchmark: Dataset | None, key: str, cache_dir: str) -> dict:
    """`audit`, made once for each `key`."""
    def build(folder: Path) -> None:
        write(audit(train, test if len(test) else None, benchmark), folder)

    folder = cached(cache_dir, f"audit-{text_hash(AUDITING, key)}", build)
    return json.loads((folder / "audit.json").read_text("utf-8"))


def truncation(encoded: Sequence[Dataset]) -> dict[str, dict]:
    """Of each language the rows, and how many of them `max_length` cuts."""
    languages, index = np.unique([language for rows in encoded for language in rows["language"][:]],
                                 return_inverse=True)
    cut = np.concatenate([np.asarray(rows["tokens_cut"][:]) > 0 for rows in encoded])
    count, cuts = np.bincount(index), np.bincount(index, weights=cut)
    return {str(languages[place]): {"rows": int(count[place]), "cut": int(cuts[place]),
                                    "share": cuts[place] / count[place]}
            for place in np.argsort(-count, kind="stable")}


# Findings -> text


def to_markdown(findings: dict) -> str:
    """A report of about a page: sentences, then tables."""
    sections = {"Findings": _findings_table(findings), "Labels": _labels_table(findings),
                "Length and winner": _lengths_table(findings), "Languages": _languages_table(findings),
                "Sources": _names_table(findings, "sources", SOURCES_LISTED)}
    lines = ["# Data audit", "", *(f"- {line}" for line in _verdicts(findings))]
    for title, table in sections.items():
        lines += ["", f"## {title}", "", *table] if table else []
    return "\n".join(lines) + "\n"


def summary(findings: dict) -> list[str]:
    """Plain lines for a log, each only where there is something to say."""
    train = findings["train"]
    lines = _repeats("train", train)
    for side, leaks in _leak_sides(findings):
        lines += _leaks(side, leaks) + _near(side, leaks, "in the training split")
    return [f"audit: {line}" for line in (*lines, *_lopsided_labels("train", train), *_lopsided_length("train", train))]


def write(findings: dict, folder: Path) -> None:
    """Writes audit.md and audit.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "audit.md").write_text(to_markdown(findings), "utf-8")
    (folder / "audit.json").write_text(json.dumps(findings, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _leak_sides(findings: dict) -> list[tuple[str, dict]]:
    return [(side, findings[title]) for side, title in (("test", "overlap"), ("benchmark", "contamination"))
            if title in findings]


def _verdicts(findings: dict) -> list[str]:
    lines = []
    for side, leaks in _leak_sides(findings):
        lines += _leaks(side, leaks) or [
            f"no {side} row is in the training split, nor is its prompt or its group ({leaks['rows']:,} rows)"]
        lines += _near(side, leaks, "in the training split")
    for side in _split(findings):
        found = findings[side]
        lines += _repeats(side, found) or [f"{side}: no row repeats or contradicts another ({found['rows']:,} rows)"]
        lines += [*_near(side, found, "of another group"), *_lopsided_labels(side, found),
                  *_lopsided_length(side, found)]
    return lines


def _split(findings: dict) -> list[str]:
    return [side for side in ("train", "test") if side in findings]


def _leaks(side: str, leaks: dict) -> list[str]:
    """At most one line: what rows share with the training split."""
    rows, count = leaks["rows"], {name: leaks[name]["count"] for name in ACROSS if name in leaks}
    same = sum(count.get(name, 0) for name in ROWS_IN_TRAIN)
    other = count["same_prompt_other_language"]
    said = [
        (same, f"{same:,} are in the training split"),
        (count["same_prompt"], f"{count['same_prompt']:,} have a prompt of the training split"),
        (count["same_group"], f"{count['same_group']:,} have a group of the training split"
                              + (f" ({other:,} of them in other languages only)" if other else "")),
    ]
    parts = [text for number, text in said if number]
    return [f"of {rows:,} {side} rows " + ", ".join(parts)] if parts else []


def _near(side: str, found: dict, where: str) -> list[str]:
    near = found.get("near_prompts", {"count": 0})
    return [f"{side}: {near['count']:,} of {near['out_of']:,} prompts are nearly equal to one {where}"
            ] if near["count"] else []


def _repeats(side: str, found: dict) -> list[str]:
    """At most two lines: rows that repeat others, and labels that contradict others or decide nothing."""
    rows, count = found["rows"], {name: found[name]["count"] for name in WITHIN if name in found}
    ways = dict(zip(DUPLICATES, ("exactly", "in other case, spaces or Unicode form", "with the responses swapped"),
                    strict=True))
    repeated = sum(count.get(name, 0) for name in DUPLICATES)
    lines = [f"{side}: {repeated:,} of {rows:,} rows ({_percent(repeated, rows)}) repeat an earlier one: " + ", ".join(
        f"{count[name]:,} {way}" for name, way in ways.items() if count.get(name))] if repeated else []
    said = {"contradicting": "contradict the winner of an equal row",
            "tie_against_winner": "are ties where an equal row has a winner",
            "equal_responses": "have two responses that differ at most in case, spaces or Unicode form"}
    parts = [f"{count[name]:,} {what}" for name, what in said.items() if count.get(name)]
    return lines + ([f"{side}: of {rows:,} rows {', '.join(parts)}"] if parts else [])


def _lopsided_labels(side: str, found: dict) -> list[str]:
    compares = "length_by_winner" in found
    mass = {label: value["mass"] for label, value in found["labels"]["classes"].items()
            if not (compares and label == "tie")}
    label, total = max(mass, key=mass.__getitem__, default=None), sum(mass.values())
    if total < ENOUGH or mass[label] <= (0.5 + LOPSIDED if compares else DOMINANT) * total:
        return []
    return [f"{side}: {_percent(mass[label], total)} of the {'winners' if compares else 'labels'} are {label!r}"]


def _lopsided_length(side: str, found: dict) -> list[str]:
    length = found.get("length_by_winner", {"all": {"rows": 0}})["all"]
    if length["rows"] < ENOUGH or abs(length["longer_wins"] - 0.5) <= LOPSIDED:
        return []
    word, share = max(("longer", length["longer_wins"]), ("shorter", 1 - length["longer_wins"]), key=lambda way: way[1])
    return [f"{side}: the {word} response wins {share:.0%} of {length['rows']:,} decided rows; length alone is a way "
            "to the label"]


def _findings_table(findings: dict) -> list[str]:
    """What was found, and one line that names what was looked for and not found."""
    lines, nothing = [], []
    for key, title, names in (("train", "train", WITHIN), ("test", "test", WITHIN),
                              ("overlap", "test in train", ACROSS), ("contamination", "benchmark in train", ACROSS)):
        found = {name: findings[key][name] for name in names if name in findings.get(key, {})}
        for name, finding in found.items():
            if finding["count"]:
                count, of = finding["count"], finding["out_of"]
                lines.append([title, names[name], f"{count:,}", f"{of:,}", _percent(count, of),
                              _example(finding["examples"][0])])
        missing = [name for name, finding in found.items() if not finding["count"]]
        nothing += [f"{key}: {', '.join(missing)}"] if missing else []
    return [*_table(["", "finding", "count", "of", "share", "such as"], lines, len(lines)),
            *(["", f"Nothing found of {'; '.join(nothing)}."] if nothing else [])]


def _example(example: dict) -> str:
    return " = ".join(_cell(example[key]) for key in ("id", "of") if key in example)


def _labels_table(findings: dict) -> list[str]:
    """Shares of the probability mass by class; below, how many rows have more than one class."""
    sides = {side: findings[side]["labels"] for side in _split(findings)}
    classes = list(dict.fromkeys(label for labels in sides.values() for label in labels["classes"]))
    lines = [[_cell(label), *(f"{labels['classes'][label]['share']:.1%}" if label in labels["classes"] else "-"
                              for labels in sides.values())] for label in classes]
    soft = [f"{_percent(labels['rows']['soft'], findings[side]['rows'])} of {side}" for side, labels in sides.items()
            if labels["rows"].get("soft")]
    return [*_table(["class", *sides], lines, LISTED),
            *(["", f"Soft targets: {', '.join(soft)}."] if soft else [])]


def _lengths_table(findings: dict) -> list[str]:
    lengths = {side: findings[side]["length_by_winner"]["all"] for side in _split(findings)
               if "length_by_winner" in findings[side]}
    return _table(["", "decided rows", "better: mean (median) characters", "worse", "longer wins"], [
        [side, f"{length['rows']:,}", *(f"{length[f'{which}_mean']:,.0f} ({length[f'{which}_median']:,.0f})"
                                        for which in ("better", "worse")), f"{length['longer_wins']:.1%}"]
        for side, length in lengths.items() if length["rows"]], 2)


def _languages_table(findings: dict) -> list[str]:
    """Rows and groups, how often the longer response wins in train, and the share of rows that is cut."""
    by_language = findings["train"].get("length_by_winner", {"by_language": {}})["by_language"]
    longer = {name: f"{length['longer_wins']:.0%}" for name, length in by_language.items()}
    cut = {name: f"{value['share']:.1%}" for name, value in findings.get("truncated", {}).items()}
    more = {title: column for title, column in (("longer wins", longer), ("cut", cut)) if column}
    return _names_table(findings, "languages", LISTED, more)


def _names_table(findings: dict, what: str, listed: int, more: dict[str, dict[str, str]] | None = None) -> list[str]:
    """Rows and groups of both sides by language or source, with more columns as name -> cell."""
    more = more or {}
    sides = [findings[side][what] for side in _split(findings)]
    names = list(dict.fromkeys(name for side in [*sides, *more.values()] for name in side))
    lines = [[_cell(name), *(f"{side[name]['rows']:,} ({side[name]['groups']:,})" if name in side else "-"
                             for side in sides), *(column.get(name, "-") for column in more.values())]
             for name in names]
    return _table([what[:-1], *(f"{side}: rows (groups)" for side in _split(findings)), *more], lines, listed)


def _table(head: list[str], lines: list[list[str]], listed: int) -> list[str]:
    """A Markdown table of the first lines, "and N more" below; nothing for no lines."""
    if not lines:
        return []
    rule = ["---:" if cell[:1].isdigit() else "---" for cell in lines[0]]
    table = [f"| {' | '.join(line)} |" for line in [head, rule, *lines[:listed]]]
    return table + (["", f"and {len(lines) - listed:,} more"] if len(lines) > listed else [])


def _cell(text: str) -> str:
    """An id or a name as it can stand in a table."""
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= ID_CHARACTERS else text[:ID_CHARACTERS] + "…"


def _percent(count: float, of: float) -> str:
    return f"{count / of:.1%}" if of else "-"


# The command


def main(argv: list[str]) -> None:
    arguments = _parse(argv)
    output = Path(arguments.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output} cannot be made: {error.strerror}") from None
    reading = Reading(arguments.task, arguments.format, detect_languages=arguments.detect_languages,
                      max_bad_fraction=arguments.max_bad_fraction)
    data = read(arguments.data, reading, arguments.cache_dir, weighted=True)
    test, benchmark = (read(specs, reading, arguments.cache_dir) if specs else None
                       for specs in (arguments.test_data, arguments.benchmark_data))
    fraction = arguments.test_fraction
    if fraction is None:
        fraction = default_test_fraction(arguments.data, arguments.test_data)
    splits = {"train": data.rows, "test": test.rows} if test else split_rows(data, None, fraction, 0.0,
                                                                             arguments.cache_dir)
    findings = audit(splits["train"], splits["test"] if len(splits["test"]) else None,
                     benchmark.rows if benchmark else None, arguments.near)
    if arguments.model:
        encoder = Encoder(load_tokenizer(arguments.model), arguments.max_length)
        findings["truncated"] = truncation([encode(source.rows, source.key, encoder, arguments.cache_dir)
                                            for source in (data, test) if source])
    write(findings, output)
    print(f"{to_markdown(findings)}\nwrote {output / 'audit.md'} and audit.json")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pm.data.audit", allow_abbrev=False,
                                     description="Looks for leaks, duplicates, contradictions and shortcuts in data.")
    parser.add_argument("data", nargs="+", metavar="DATA", help="sources, as --data of train.py")
    parser.add_argument("--test_data", nargs="+", default=[], metavar="SOURCE", help="sources of the test split")
    parser.add_argument("--benchmark_data", nargs="+", default=[], metavar="SOURCE",
                        help="sources that must not be in the training split")
    parser.add_argument("--test_fraction", type=float, help="as for train.py; 0: no test split")
    parser.add_argument("--near", type=float, metavar="X", help="also look for prompts of at least this Jaccard "
                                                                "similarity, such as 0.8")
    parser.add_argument("--model", help="also count the rows that are cut, with the tokenizer of this model")
    parser.add_argument("--task", default=PREFERENCE, choices=(PREFERENCE, CLASSIFICATION), help="[%(default)s]")
    parser.add_argument("--format", choices=FORMS, help="as for train.py")
    parser.add_argument("--detect_languages", action="store_true", help="as for train.py")
    parser.add_argument("--output", default="audit", help="folder for audit.md and audit.json [%(default)s]")
    for name, kind in (("max_length", int), ("max_bad_fraction", float), ("cache_dir", str)):
        default = getattr(Config, name)
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"as for train.py [{default}]")
    parser.error = fail
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_main(main)
