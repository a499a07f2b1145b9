"""Sources -> rows -> train and test -> token ids. What was read and tokenised is kept on disk and memory-mapped."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from datasets import Dataset
from datasets.arrow_writer import ArrowWriter
from tqdm import tqdm

from pm import encoding
from pm.data import comparison, sample, sources
from pm.data.comparison import FEATURES, text_hash
from pm.data.sources import ReadReport, identity, read_source
from pm.data.split import overlap, split
from pm.encoding import ENCODED_FEATURES, Encoder
from pm.errors import UserError

# What is kept on disk depends on this code as well: after an edit nothing stale is found.
READING = text_hash(*(Path(module.__file__).read_text("utf-8") for module in (comparison, sample, sources)))
ENCODING = text_hash(Path(encoding.__file__).read_text("utf-8"))


@dataclass(frozen=True)
class Rows:
    """Rows of text with the report of how they were read; `key` changes where they do."""

    rows: Dataset
    report: ReadReport
    key: str


def read(specs: list[str], cache_dir: str, max_bad_fraction: float) -> Rows:
    """All rows of the sources as `comparison.FEATURES` says, memory-mapped."""
    key = text_hash(READING, str(max_bad_fraction), *specs, *map(identity, specs))

    def build(folder: Path) -> None:
        report = ReadReport()
        with ArrowWriter(path=str(folder / "rows.arrow"), features=FEATURES) as writer:
            for spec in specs:
                rows = read_source(spec, max_bad_fraction, report)
                for row in tqdm(rows, desc=f"read {spec}", unit=" rows", disable=None, leave=False):
                    writer.write(row.to_row())
            writer.finalize()
        (folder / "report.json").write_text(json.dumps(asdict(report)), "utf-8")

    folder = _cached(Path(cache_dir).expanduser() / f"rows-{key}", build)
    report = ReadReport(**json.loads((folder / "report.json").read_text("utf-8")))
    return Rows(Dataset.from_file(str(folder / "rows.arrow")), report, key)


def split_rows(train: Rows, test: Rows | None, test_fraction: float) -> tuple[Dataset, Dataset]:
    """The two sides, without overlap: by group from `train`, or as given. Raises `UserError` on an overlap."""
    if test is None:
        sides = split(train.rows["group"][:], train.rows["prompt_key"][:], test_fraction)
        train_rows, test_rows = (train.rows.select(side) for side in sides)
    else:
        train_rows, test_rows = train.rows, test.rows
    check_overlap(train_rows, test_rows)
    return train_rows, test_rows


def check_overlap(train_rows: Dataset, test_rows: Dataset) -> None:
    """Raises `UserError` naming test rows that are in the training split, by id, group or prompt."""
    found = overlap(*(_keys(rows) for rows in (train_rows, test_rows)))
    if found:
        raise UserError(f"the test rows overlap with the training split: {found}")


def _keys(rows: Dataset) -> Iterator[dict]:
    columns = ("id", "group", "prompt_key", "source")
    for values in zip(*(rows[column][:] for column in columns), strict=True):
        yield dict(zip(columns, values, strict=True))


def encode(rows: Dataset, rows_key: str, encoder: Encoder, cache_dir: str) -> Dataset:
    """Rows of ids as `encoding.ENCODED_FEATURES` says, memory-mapped. A row with equal responses is left out."""
    if not len(rows):
        return Dataset.from_dict({name: [] for name in ENCODED_FEATURES}, features=ENCODED_FEATURES)
    key = text_hash(ENCODING, rows_key, encoder.fingerprint())

    def build(folder: Path) -> None:
        encoded = rows.map(encoder.encode, batched=True, batch_size=500, remove_columns=rows.column_names,
                           features=ENCODED_FEATURES, desc="tokenise", new_fingerprint=key, keep_in_memory=False,
                           cache_file_name=str(folder / "encoded.arrow"), load_from_cache_file=False)
        if not len(encoded):
            raise UserError(f"none of {len(rows)} rows is left: in each the two responses are equal")

    folder = _cached(Path(cache_dir).expanduser() / f"encoded-{key}", build)
    return Dataset.from_file(str(folder / "encoded.arrow"))


def training_texts(rows: Dataset):
    """Every text of the rows, for the tokenizer of the small model."""
    for row in rows:
        yield from (turn["content"] for turn in row["prompt"])
        yield row["response_a"]
        yield row["response_b"]


def describe(name: str, rows: Dataset, encoded: Dataset) -> str:
    """What is in a split: rows, groups, languages, truncation."""
    if not len(encoded):
        return f"{name}: no rows"
    table: dict[str, list[int]] = {}
    for language, cut in zip(encoded["language"][:], encoded["tokens_cut"][:], strict=True):
        count = table.setdefault(language, [0, 0])
        count[0] += 1
        count[1] += cut > 0
    parts = [f"{language} {count:,}" + (f" ({cut / count:.0%} cut)" if cut else "")
             for language, (count, cut) in sorted(table.items(), key=lambda item: -item[1][0])]
    dropped = len(rows) - len(encoded)
    return (f"{name}: {len(encoded):,} pairs, {len(set(encoded['group'][:])):,} groups"
            + (f", {dropped:,} left out (equal responses)" if dropped else "") + f"; {', '.join(parts)}")


def _cached(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, built at the first call: in a temporary folder that is renamed when it is whole."""
    if folder.is_dir():
        return folder
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--cache_dir {folder.parent} cannot be written: {error.strerror}") from None
    try:
        build(temporary)
        os.rename(temporary, folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
