"""Foreign rows become `Comparison`s here. `chosen` and `rejected` exist nowhere else in the package.

A source is `sample`, a local file (.jsonl, .json, .csv, .parquet; .jsonl also .gz), or a Hugging Face dataset
(hub id or local folder) as `id`, `id@config`, `id#splits` or `id@config#splits`, where `splits` are
comma-separated patterns such as `train` or `es_*,ar_*`.
"""

import csv
import fnmatch
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pm.data import sample
from pm.data.comparison import LABELS, ROLES, Comparison, prompt_key, text_hash
from pm.errors import UserError, first_line

FILE_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")


class BadRow(ValueError):
    """Why one row was rejected."""


@dataclass
class ReadReport:
    """How many rows were read, and `where: reason` of those that were rejected."""

    read: int = 0
    rejected: list[str] = field(default_factory=list)

    def describe(self) -> str:
        return f"{len(self.rejected):,} of {self.read:,} rows rejected, such as {'; '.join(self.rejected[:5])}"


def read_source(spec: str, max_bad_fraction: float, report: ReadReport) -> Iterator[Comparison]:
    """The rows of one source. Each bad one is noted in `report` as `file:line: reason` and left out.

    Raises `UserError` where the source cannot be read, holds no rows, has columns of no known form, or where more
    than `max_bad_fraction` of its rows are bad.
    """
    before = (report.read, len(report.rejected))
    for where, row, language in _raw_rows(spec):
        report.read += 1
        try:
            if isinstance(row, BadRow):
                raise row
            convert = next((convert for columns, convert in FORMS if columns <= row.keys()), None)
            if convert is None:
                known = "; ".join(", ".join(sorted(columns)) for columns, _ in FORMS)
                raise BadRow(f"columns {sorted(map(str, row))} are none of the known forms: {known}")
            yield convert(row, language, Path(spec).name if _is_file(spec) else spec)
        except BadRow as error:
            report.rejected.append(f"{where}: {error}")
    read, rejected = report.read - before[0], len(report.rejected) - before[1]
    if not read:
        raise UserError(f"{spec} holds no rows")
    if rejected > max_bad_fraction * read:
        reasons = "; ".join(report.rejected[before[1] :][:3])
        raise UserError(f"{spec}: {rejected} of {read} rows are bad, more than --max_bad_fraction "
                        f"{max_bad_fraction:g} allows: {reasons}")


def identity(spec: str) -> str:
    """Changes where the source's contents change: the key of the cache."""
    if spec == "sample":
        return "sample " + text_hash(json.dumps(sample.written()))
    if _is_file(spec):
        status = _existing(spec).stat()
        return f"{Path(spec).resolve()} {status.st_size} {status.st_mtime_ns}"
    return spec + " " + " ".join(f"{name}={split._fingerprint}" for name, split in _hub_splits(spec))


# Where the rows come from: (where, row or BadRow, language or "")


def _raw_rows(spec: str) -> Iterator[tuple[str, dict | BadRow, str]]:
    if spec == "sample":
        for row in sample.rows():
            yield row["id"], row, row["language"]
    elif _is_file(spec):
        path = _existing(spec)
        reader = {".gz": _read_jsonl, ".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv,
                  ".parquet": _read_parquet}[path.suffix]
        try:
            for number, row in reader(path):
                yield f"{path}:{number}", row, ""
        except (EOFError, zlib.error, gzip.BadGzipFile, PermissionError, IsADirectoryError) as error:
            raise UserError(f"{path} cannot be read: {error}") from None
    else:
        for name, split in _hub_splits(spec):
            for number, row in enumerate(split, 1):
                yield f"{spec}[{name}]:{number}", row, _language_of_split(name)


def _is_file(spec: str) -> bool:
    return spec.endswith(FILE_ENDINGS)


def _existing(spec: str) -> Path:
    path = Path(spec)
    if not path.is_file():
        raise UserError(f"--data {spec}: there is no such file")
    return path


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict | BadRow]]:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, parse_json_row(line)


def parse_json_row(line: bytes) -> dict | BadRow:
    """One JSON object, strictly: UTF-8, no duplicate keys, no NaN or Infinity."""
    try:
        row = json.loads(line.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except BadRow as error:
        return error
    except UnicodeDecodeError as error:
        return BadRow(f"not UTF-8 at byte {error.start}")
    except RecursionError:
        return BadRow("nested too deeply")
    except ValueError as error:
        return BadRow(f"not JSON: {error}")
    return row if isinstance(row, dict) else BadRow(f"not an object but {type(row).__name__}")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict:
    row: dict = {}
    for name, value in pairs:
        if name in row:
            raise BadRow(f"key {name!r} stands twice")
        row[name] = value
    return row


def _refuse_constant(name: str):
    raise BadRow(f"{name} is not a number in JSON")


def _read_json(path: Path) -> Iterator[tuple[int, dict | BadRow]]:
    try:
        rows = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=_unique_keys,
                          parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(rows, list):
        raise UserError(f"{path} must hold a list of objects, not {type(rows).__name__}")
    for number, row in enumerate(rows, 1):
        yield number, row if isinstance(row, dict) else BadRow(f"not an object but {type(row).__name__}")


def _read_csv(path: Path) -> Iterator[tuple[int, dict | BadRow]]:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            _refuse_repeated(path, reader.fieldnames or [])
            for row in reader:
                yield reader.line_num, BadRow("more cells than columns") if None in row else row
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num + 1}: {error}") from None


def _refuse_repeated(path: Path, columns: Sequence[str]) -> None:
    twice = [column for column, count in Counter(columns).items() if count > 1]
    if twice:
        raise UserError(f"{path}: column {twice[0]!r} stands twice")


def _read_parquet(path: Path) -> Iterator[tuple[int, dict]]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        file = pyarrow.parquet.ParquetFile(path)
        _refuse_repeated(path, file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _hub_splits(spec: str) -> list[tuple[str, object]]:
    """The chosen splits of a dataset: those that the patterns name, else the ones named train, else all."""
    from datasets import load_dataset

    name, _, patterns = spec.partition("#")
    name, _, config = name.partition("@")
    try:
        splits = load_dataset(name, config or None)
    except Exception as error:  # the library raises a dozen kinds; what the user typed is the cause of nearly all
        raise UserError(f"--data {spec}: neither a local file ({', '.join(FILE_ENDINGS)}) nor a dataset that can be "
                        f"loaded: {first_line(error)}") from None
    wanted = patterns.split(",") if patterns else ["train", "*_train"]
    chosen = [key for key in splits if any(fnmatch.fnmatchcase(key, pattern) for pattern in wanted)]
    if not chosen and patterns:
        raise UserError(f"--data {spec}: none of the splits {', '.join(splits)} matches {patterns!r}")
    return [(key, splits[key]) for key in chosen or splits]


def _language_of_split(name: str) -> str:
    """`es_train` -> `es`: how `multilingual/orca_dpo_pairs` and others name their splits."""
    match = re.fullmatch(r"([a-z]{2})(_[A-Za-z]+)+", name)
    return match[1] if match else ""


# What a row becomes


def _pair_row(row: dict, language: str, source: str) -> Comparison:
    winner = row["winner"]
    targets = {"a": [1.0, 0.0], "b": [0.0, 1.0], "tie": [0.5, 0.5]}
    if not isinstance(winner, str) or winner not in targets:
        raise BadRow(f"winner must be one of {', '.join(targets)}, not {winner!r}")
    return _comparison(row, language, source, _prompt(row["prompt"], "prompt"), _text(row, "response_a"),
                       _text(row, "response_b"), targets[winner])


def _orca_row(row: dict, language: str, source: str) -> Comparison:
    system = row.get("system")
    if system is not None and not isinstance(system, str):
        raise BadRow(f"system must be text, not {type(system).__name__}")
    turns = [{"role": "system", "content": system}] if system and system.strip() else []
    prompt = turns + _prompt(row["question"], "question")
    return _ranked(row, language, source, prompt, _text(row, "chosen"), _text(row, "rejected"))


def _chosen_row(row: dict, language: str, source: str) -> Comparison:
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        if row.get("prompt") is None:
            raise BadRow("a prompt column is needed where chosen and rejected are plain text")
        return _ranked(row, language, source, _prompt(row["prompt"], "prompt"), _text(row, "chosen"),
                       _text(row, "rejected"))
    good, bad = _turns(chosen, "chosen"), _turns(rejected, "rejected")
    if row.get("prompt") is not None:
        prompt = _prompt(row["prompt"], "prompt")
        good, bad = (turns[len(prompt):] if turns[: len(prompt)] == prompt else turns for turns in (good, bad))
    else:
        prompt = good[:-1]
        good, bad = good[len(prompt):], bad[len(prompt):] if bad[: len(prompt)] == prompt else bad
    for name, turns in (("chosen", good), ("rejected", bad)):
        if [turn["role"] for turn in turns] != ["assistant"]:
            raise BadRow(f"{name} must be the prompt followed by one assistant turn")
    return _ranked(row, language, source, _prompt(prompt, "prompt"), good[0]["content"], bad[0]["content"])


def _ranked(row: dict, language: str, source: str, prompt: list[dict], chosen: str, rejected: str) -> Comparison:
    """A/B from chosen/rejected; which of them is A is drawn from a hash of the texts."""
    if int(text_hash("order", prompt_key(prompt), chosen, rejected), 16) % 2:
        return _comparison(row, language, source, prompt, chosen, rejected, [1.0, 0.0])
    return _comparison(row, language, source, prompt, rejected, chosen, [0.0, 1.0])


def _comparison(row: dict, language: str, source: str, prompt: list[dict], a: str, b: str, target: list[float]):
    identifier = _optional(row, "id") or text_hash(json.dumps(prompt), a, b)
    return Comparison(
        id=identifier,
        group=_group(row) or "prompt-" + prompt_key(prompt),
        language=_optional(row, "language") or language or "und",
        source=_optional(row, "source") or source,
        kind=_optional(row, "kind"),
        prompt=prompt, response_a=a, response_b=b, target=target,
    )


def _group(row: dict) -> str:
    """What links translations: our `group`, or the row number in the original of `multilingual/orca_dpo_pairs`."""
    index = _optional(row, "mllm_index")
    return _optional(row, "group") or (f"mllm-{index}" if index else "")


def _optional(row: dict, column: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise BadRow(f"{column} must be text, not {type(value).__name__}")
    return _storable(str(value), column)


def _text(row: dict, column: str) -> str:
    return _check_text(row[column], column)


def _check_text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{name} must be text, not {type(value).__name__}")
    if not value.strip():
        raise BadRow(f"{name} is empty")
    return _storable(value, name)


def _storable(text: str, name: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(f"{name} is not UTF-8, or holds a lone surrogate") from None
    return text


def _prompt(value: object, name: str) -> list[dict[str, str]]:
    if isinstance(value, str):
        return [{"role": "user", "content": _check_text(value, name)}]
    turns = _turns(value, name)
    if turns[-1]["role"] != "user":
        raise BadRow(f"{name} must end with a user turn, not {turns[-1]['role']}")
    return turns


def _turns(value: object, name: str) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise BadRow(f"{name} must be text or a list of turns, not {type(value).__name__}")
    turns = []
    for turn in value:
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            raise BadRow(f"{name}: each turn must have role and content")
        if turn["role"] not in ROLES:
            raise BadRow(f"{name}: role must be one of {', '.join(ROLES)}, not {turn['role']!r}")
        if turn["role"] == "system" and turn["content"] == "":
            continue
        turns.append({"role": turn["role"], "content": _check_text(turn["content"], f"{name} turn")})
    return turns


# The known forms of a row; the first whose columns a row has is taken.
FORMS: tuple[tuple[set[str], Callable[[dict, str, str], Comparison]], ...] = (
    ({"prompt", "response_a", "response_b", "winner"}, _pair_row),
    ({"question", "chosen", "rejected"}, _orca_row),
    ({"chosen", "rejected"}, _chosen_row),
)

assert LABELS == ("a", "b")  # the targets above are written for these two classes
