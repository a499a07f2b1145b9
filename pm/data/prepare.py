"""Sources -> rows -> train and test -> token ids. What was read and tokenised is kept on disk and memory-mapped."""

import hashlib
import json
import os
import shutil
import socket
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset
from datasets.arrow_writer import ArrowWriter
from tqdm import tqdm

from pm import encoding
from pm.data import example, forms, languages, sample, sources
from pm.data import split as splitting
from pm.data.example import FEATURES, text_hash
from pm.data.sources import Reading, ReadReport, identity, read_source, split_weight
from pm.data.split import calibration_split, overlap, split
from pm.encoding import ENCODED_FEATURES, Encoder
from pm.errors import UserError


def code_hash(*modules) -> str:
    """What is kept on disk depends on the code that made it as well: after an edit nothing stale is found."""
    return text_hash(*(Path(module.__file__).read_text("utf-8") for module in modules))


READING = code_hash(example, forms, languages, sample, sources)
SPLITTING = code_hash(splitting)
ENCODING = code_hash(encoding)
SPLITS = ("train", "calibration", "test")


@dataclass(frozen=True)
class Rows:
    """Rows of text with the report of how they were read; `key` changes where they do. `weights` are those of the
    sources, in their order (`source_index`)."""

    rows: Dataset
    report: ReadReport
    key: str
    weights: list[float]


def read(data: list[str], reading: Reading, cache_dir: str, weighted: bool = False) -> Rows:
    """All rows of the sources as `example.FEATURES` says, memory-mapped. Only `weighted` sources may have weights."""
    specs, weights = zip(*map(split_weight, data), strict=True)
    if not weighted and any(weight != 1 for weight in weights):
        raise UserError(f"{' '.join(data)}: only the sources of the training split may have a weight")
    key = text_hash(READING, repr(reading), *specs, *map(identity, specs))

    def build(folder: Path) -> None:
        report, count = ReadReport(), 0
        with ArrowWriter(path=str(folder / "rows.arrow"), features=FEATURES) as writer:
            for index, spec in enumerate(specs):
                rows = read_source(spec, reading, report)
                for row in tqdm(rows, desc=f"read {spec}", unit=" rows", disable=None, leave=False):
                    writer.write(row.to_row(index))
                    count += 1
            writer.finalize()
        if not count:
            raise UserError(f"{' '.join(data)}: no row is left; {report.describe()}")
        (folder / "report.json").write_text(json.dumps(asdict(report)), "utf-8")

    folder = cached(cache_dir, f"rows-{key}", build)
    report = ReadReport(**json.loads((folder / "report.json").read_text("utf-8")))
    return Rows(Dataset.from_file(str(folder / "rows.arrow")), report, key, list(weights))


def split_rows(train: Rows, test: Rows | None, test_fraction: float, calibration_fraction: float,
               cache_dir: str) -> dict[str, Dataset]:
    """The rows of each of `SPLITS`, without overlap: by group from `train`, or the test split as given.

    Raises `UserError` where a given test split has rows of `train`.
    """
    if test is not None:
        check_overlap(train.rows, test.rows)
    key = split_key(train, test, test_fraction, calibration_fraction)

    def build(folder: Path) -> None:
        groups, prompts = (np.array(train.rows[name][:], dtype=object) for name in ("group", "prompt_key"))
        rest, tested = (np.array(side, dtype=np.int64) for side in split(groups, prompts, test_fraction))
        trained, calibrated = (rest[side] for side in calibration_split(groups[rest], prompts[rest],
                                                                        calibration_fraction))
        for name, numbers in zip(SPLITS, (trained, calibrated, tested), strict=True):
            np.save(folder / f"{name}.npy", numbers)

    folder = cached(cache_dir, f"split-{key}", build)
    rows = {name: train.rows.select(np.load(folder / f"{name}.npy")) for name in SPLITS}
    return rows if test is None else rows | {"test": test.rows}


def split_key(train: Rows, test: Rows | None, test_fraction: float, calibration_fraction: float) -> str:
    """Changes where one of the splits does."""
    return text_hash(SPLITTING, train.key, test.key if test else str(test_fraction), str(calibration_fraction))


def check_overlap(train_rows: Dataset, test_rows: Dataset) -> None:
    """Raises `UserError` naming test rows that are in the training split, by id, group or prompt."""
    found = overlap(_keys(train_rows), _keys(test_rows))
    if found:
        raise UserError(f"the test rows overlap with the training split: {found}")


def _keys(rows: Dataset) -> pa.Table:
    return rows.select_columns(["id", "group", "prompt_key", "source"]).with_format("arrow")[:]


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

    folder = cached(cache_dir, f"encoded-{key}", build)
    return Dataset.from_file(str(folder / "encoded.arrow"))


def training_texts(rows: Dataset):
    """Every text of the rows, for the tokenizer of the small model."""
    for batch in rows.iter(1000):
        for prompt, *responses in zip(batch["prompt"], batch["response_a"], batch["response_b"], strict=True):
            yield from (turn["content"] for turn in prompt)
            yield from (text for text in responses if text is not None)


def fingerprint(encoded: Dataset, targets_NC: np.ndarray) -> str:
    """Changes where texts, their order, their languages or their targets do."""
    digest = hashlib.sha256("\n".join([*encoded["content"][:], *encoded["language"][:]]).encode())
    digest.update(np.round(targets_NC * 1e6).astype(np.int64).tobytes())  # the last bits depend on the machine
    return digest.hexdigest()[:16]


def describe(name: str, rows: Dataset, encoded: Dataset, rates: np.ndarray | None = None) -> str:
    """What is in a split: rows, groups, and of each language the rows, how many of them were cut, and with `rates`
    that are not all 1 how many are used in an epoch."""
    if not len(encoded):
        return f"{name}: no rows"
    languages, index = np.unique(encoded["language"][:], return_inverse=True)
    count = np.bincount(index)
    cut = np.bincount(index, weights=np.asarray(encoded["tokens_cut"][:]) > 0)
    used = None if rates is None or np.all(rates == 1) else np.bincount(index, weights=rates)
    parts = []
    for place in np.argsort(-count, kind="stable"):
        notes = [f"{cut[place] / count[place]:.0%} cut"] if cut[place] else []
        notes += [f"{used[place]:,.0f} in an epoch"] if used is not None else []
        parts.append(f"{languages[place]} {count[place]:,}" + (f" ({', '.join(notes)})" if notes else ""))
    dropped = _count(rows, "response_a") - _count(encoded, "a_ids")  # a text may have become several rows
    text = (f"{name}: {len(encoded):,} rows, {len(set(encoded['group'][:])):,} groups"
            + (f", {dropped:,} left out (equal responses)" if dropped else "") + f"; {', '.join(parts)}")
    return textwrap.fill(text, 120, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def _count(rows: Dataset, column: str) -> int:
    """How many rows have a value there."""
    batches = rows.select_columns([column]).with_format("arrow").iter(10_000)
    return sum(len(batch) - batch[column].null_count for batch in batches)


def cached(cache_dir: str, name: str, build: Callable[[Path], None]) -> Path:
    """A folder of the cache, built at the first call: in a temporary folder that is renamed when it is whole."""
    folder = Path(cache_dir).expanduser() / name
    if folder.is_dir():
        return folder
    temporary = folder.with_name(f"{folder.name}.{socket.gethostname()}.{os.getpid()}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--cache_dir {cache_dir} cannot be written: {error.strerror}") from None
    try:
        build(temporary)
        os.rename(temporary, folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
