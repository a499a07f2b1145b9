"""Sources to raw rows to `Example`s.

A source is `sample`, a local file (.jsonl, .json, .csv, .parquet, each also .gz; or .txt, of which each paragraph is a
row in the language that the file is named after), or a Hugging Face dataset (hub id or local folder) as `id`,
`id@config`, `id#splits` or `id@config#splits`, where `splits` are comma-separated patterns such as `train` or
`es_*,ar_*`. `:0.5` at the end is its weight: each of its rows is used half as often.
"""

import csv
import fnmatch
import gzip
import io
import itertools
import json
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from datasets import ClassLabel

from pm.data import sample
from pm.data.example import Example, text_hash
from pm.data.forms import FORMS, BadRow, examples
from pm.data.languages import detector, language_of_name
from pm.errors import UserError, first_line
from pm.task import LANGUAGE, PREFERENCE

FILE_ENDINGS = tuple(kind + packed for kind in (".jsonl", ".json", ".csv", ".parquet", ".txt")
                     for packed in ("", ".gz"))


@dataclass(frozen=True)
class Reading:
    """How rows are read; the flags of the same names say what each means. Raises `UserError`."""

    task: str = PREFERENCE
    format: str | None = None
    margin_scale: float = 1.0
    detect_languages: bool = False
    max_bad_fraction: float = 0.01

    def __post_init__(self):
        if not 0 < self.margin_scale < math.inf:
            raise UserError(f"--margin_scale {self.margin_scale}: must be a number above 0")
        if not 0 <= self.max_bad_fraction <= 1:
            raise UserError(f"--max_bad_fraction {self.max_bad_fraction}: must be between 0 and 1")
        if self.format and self.task not in FORMS[self.format].tasks:
            task = FORMS[self.format].tasks[0]
            raise UserError(f"--format {self.format} is of {'pm.pretrain' if task == LANGUAGE else f'--task {task}'}")


@dataclass
class ReadReport:
    """How many rows were read, and `where: reason` of those that were rejected."""

    read: int = 0
    rejected: list[str] = field(default_factory=list)

    def describe(self) -> str:
        return f"{len(self.rejected):,} of {self.read:,} rows rejected, such as {'; '.join(self.rejected[:5])}"


def split_weight(spec: str) -> tuple[str, float]:
    """A source as written to the source itself and its weight. Raises `UserError` for a weight of 0 or of infinity."""
    match = re.fullmatch(r"(.+):(\d+(?:\.\d*)?|\.\d+)", spec)
    if not match or os.path.exists(spec):
        return spec, 1.0
    weight = float(match[2])
    if not 0 < weight < math.inf:
        raise UserError(f"--data {spec}: a weight must be above 0" + (", and a finite number" if weight else ""))
    return match[1], weight


def read_source(spec: str, reading: Reading, report: ReadReport) -> Iterator[Example]:
    """The rows of one source. Each bad one is noted in `report` as `file:line: reason` and left out.

    Raises `UserError` where the source cannot be read, holds no rows, has columns of no known form, or where more
    than `max_bad_fraction` of its rows are bad.
    """
    before = (report.read, len(report.rejected))
    detect = detector() if reading.detect_languages else None
    name = Path(spec).name if _is_file(spec) else spec
    for where, row, language in _raw_rows(spec):
        report.read += 1
        try:
            if isinstance(row, BadRow):
                raise row
            yield from examples(row, reading.task, reading.format, reading.margin_scale, language, name, detect)
        except BadRow as error:
            report.rejected.append(f"{where}: {error}")
    read, rejected = report.read - before[0], len(report.rejected) - before[1]
    if not read:
        raise UserError(f"{spec} holds no rows")
    if rejected > reading.max_bad_fraction * read:
        reasons = "; ".join(report.rejected[before[1] :][:3])
        raise UserError(f"{spec}: {rejected} of {read} rows are bad, more than --max_bad_fraction "
                        f"{reading.max_bad_fraction:g} allows: {reasons}")


def first_row(spec: str) -> dict | None:
    """A row of a source as it stands there, to look at its columns; None where there is none that can be read."""
    return next((row for _, row, _ in _raw_rows(spec) if isinstance(row, dict)), None)


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
        kind = "." + path.name.removesuffix(".gz").rpartition(".")[2]
        reader = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet,
                  ".txt": _read_txt}[kind]
        stem = path.name.partition(".")[0] if kind == ".txt" else ""
        language = language_of_name(stem) or (stem if re.fullmatch("[a-z]{2}", stem) else "")
        try:
            for number, row in reader(path):
                yield f"{path}:{number}", row, language
        except (EOFError, zlib.error, gzip.BadGzipFile, PermissionError, IsADirectoryError) as error:
            raise UserError(f"{path} cannot be read: {first_line(error)}") from None
    else:
        config = spec.partition("#")[0].partition("@")[2]
        for name, split in _hub_splits(spec):
            language = language_of_name(name) or language_of_name(config)
            classes = {column: feature.names for column, feature in split.features.items()
                       if isinstance(feature, ClassLabel)}  # numbers with names; -1 is none
            for number, row in enumerate(split, 1):
                for column, names in classes.items():
                    row[column] = names[row[column]] if row[column] in range(len(names)) else None
                yield f"{spec}[{name}]:{number}", row, language


def _is_file(spec: str) -> bool:
    return spec.endswith(FILE_ENDINGS)


def _existing(spec: str) -> Path:
    if not os.path.isfile(spec):  # unlike Path.is_file, False for a name that is too long
        raise UserError(f"--data {spec}: there is no such file")
    return Path(spec)


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict | BadRow]]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, parse_json_row(line)


def _read_txt(path: Path) -> Iterator[tuple[int, dict | BadRow]]:
    """Paragraphs, which empty lines separate, each with the number of its first line."""
    paragraph: list[bytes] = []
    with _open(path) as file:
        for number, line in enumerate(itertools.chain(file, [b""]), 1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                paragraph.append(line)
            elif paragraph:
                try:
                    row = {"text": b"".join(paragraph).decode("utf-8").replace("\r\n", "\n").strip()}
                except UnicodeDecodeError as error:
                    row = BadRow(f"not UTF-8 at byte {error.start}")
                yield number - len(paragraph), row
                paragraph = []


def parse_json_row(line: bytes) -> dict | BadRow:
    """One JSON object, strictly: UTF-8, no duplicate keys, no NaN or Infinity."""
    try:
        row = STRICT.decode(line.decode("utf-8"))
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


STRICT = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)


def _read_json(path: Path) -> Iterator[tuple[int, dict | BadRow]]:
    try:
        with _open(path) as file:
            rows = STRICT.decode(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(rows, list):
        raise UserError(f"{path} must hold a list of objects, not {type(rows).__name__}")
    for number, row in enumerate(rows, 1):
        yield number, row if isinstance(row, dict) else BadRow(f"not an object but {type(row).__name__}")


def _read_csv(path: Path) -> Iterator[tuple[int, dict | BadRow]]:
    csv.field_size_limit(2**31 - 1)
    with io.TextIOWrapper(_open(path), encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
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
        raise UserError(f"{path}: column {twice[0]!r:.50} stands twice")


def _read_parquet(path: Path) -> Iterator[tuple[int, dict]]:
    import pyarrow.parquet

    try:
        number = 0
        file = pyarrow.parquet.ParquetFile(_open(path))
        _refuse_repeated(path, file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except UserError:
        raise
    except Exception as error:  # a damaged file, or a value that Python has no type for: the library raises many kinds
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None


def _hub_splits(spec: str) -> list[tuple[str, object]]:
    """The chosen splits of a dataset: those that the patterns name, else the ones of training, else all."""
    from datasets import load_dataset

    name, _, patterns = spec.partition("#")
    name, _, config = name.partition("@")
    try:
        splits = load_dataset(name, config or None)
    except Exception as error:  # the library raises a dozen kinds; what the user typed is the cause of nearly all
        raise UserError(f"--data {spec}: neither a local file ({', '.join(FILE_ENDINGS)}) nor a dataset that can be "
                        f"loaded: {first_line(error)}") from None
    wanted = patterns.split(",") if patterns else ["train", "train_*", "*_train"]
    chosen = [key for key in splits if any(fnmatch.fnmatchcase(key, pattern) for pattern in wanted)]
    if not chosen and patterns:
        raise UserError(f"--data {spec}: none of the splits {', '.join(splits)} matches {patterns!r}")
    return [(key, splits[key]) for key in chosen or splits]
