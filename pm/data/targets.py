"""From the labels of rows to one probability per class. Shapes: N rows, C classes."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value, concatenate_datasets

from pm.errors import UserError, first_line


def classes(rows: Dataset) -> tuple[str, ...]:
    """The names of all classes in the rows' targets; numbers in their own order, else by the alphabet."""
    names = pc.unique(_flat(rows)[1].field("label")).to_pylist()
    return tuple(sorted(names, key=int if all(name.isdecimal() for name in names) else None))


def target_matrix(rows: Dataset, labels: Sequence[str]) -> np.ndarray:
    """Targets (N, C) in the order of `labels`.

    Where the labels are `a` and `b` alone, the probability of a tie goes half to each: both are pulled to even odds.
    Raises `UserError` where a row has another class.
    """
    if not len(rows):
        return np.zeros((0, len(labels)))
    counts, flat = _flat(rows)
    encoded = flat.field("label").dictionary_encode()
    names = encoded.dictionary.to_pylist()
    folded = {"tie": ("a", "b")} if tuple(labels) == ("a", "b") else {}
    weights = np.zeros((len(names), len(labels)))
    for place, name in enumerate(names):
        parts = folded.get(name, (name,))
        if not set(parts) <= set(labels):
            raise UserError(f"class {name!r} of the data is none of the model's: {', '.join(labels)}; name all with "
                            "--labels")
        for part in parts:
            weights[place, labels.index(part)] = 1 / len(parts)
    matrix = np.zeros((len(rows), len(labels)))
    numbers = np.repeat(np.arange(len(rows)), counts)
    np.add.at(matrix, numbers, weights[encoded.indices.to_numpy()] * flat.field("probability").to_numpy()[:, None])
    return matrix


def with_targets(rows: Dataset, matrix_NC: np.ndarray) -> Dataset:
    """The rows with `target` as one number per label."""
    if not len(rows):
        return rows
    targets = Dataset.from_dict({"target": matrix_NC}, features=Features({"target": List(Value("float64"))}))
    return concatenate_datasets([rows.remove_columns("target"), targets], axis=1)


def distil(contents: Sequence[str], own_NC: np.ndarray, labels: Sequence[str], path: Path, temperature: float,
           weight: float) -> tuple[np.ndarray, int]:
    """Targets (N, C) mixed with a teacher's, and how many rows it has predictions of; the others keep their own.

    `path` is the `predictions.jsonl` of an evaluation over the same texts, joined on `content`. The target becomes
    `(1 - weight) * own + weight * softmax(teacher's log-probabilities / temperature)`.
    Raises `UserError` where it cannot be read, has other classes or no row in common.
    """
    taught = {}
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                row = json.loads(line)
                found = row["probability"]
                if set(found) != set(labels):
                    raise UserError(f"--teacher {path}:{number} has the classes {', '.join(found)}; "
                                    f"those of this run are {', '.join(labels)}")
                taught[row["content"]] = [float(found[label]) for label in labels]
    except OSError as error:
        raise UserError(f"--teacher {path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--teacher {path} holds no predictions of eval.py: {first_line(error)}") from None
    own_NC = own_NC.copy()
    common = [(number, taught[content]) for number, content in enumerate(contents) if content in taught]
    if not common:
        raise UserError(f"--teacher {path}: none of its {len(taught):,} rows is in the training split")
    numbers, probabilities = (np.array(part) for part in zip(*common, strict=True))
    if not np.isfinite(probabilities).all():
        raise UserError(f"--teacher {path} holds probabilities that are not finite")
    # softmax(logits / T) is that of log-probabilities too
    log_NC = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)) / temperature
    teacher_NC = np.exp(log_NC - np.logaddexp.reduce(log_NC, axis=1, keepdims=True))
    own_NC[numbers] = (1 - weight) * own_NC[numbers] + weight * teacher_NC
    return own_NC, len(common)


def _flat(rows: Dataset) -> tuple[np.ndarray, pa.StructArray]:
    """How many classes each row names, and all of them in one array."""
    column = rows.with_format("arrow")["target"][:]
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pc.list_value_length(column).to_numpy(zero_copy_only=False), column.flatten()
