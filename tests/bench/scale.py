"""A million pairs from a file to a planned epoch: seconds and rows/s of each part, and the peak memory.

    python tests/bench/scale.py [--rows 1000000] [--folder /tmp/scale] [--max_length 2048]

The rows are made here: words drawn from a Zipf law, lengths log-normal, 20 languages, a tenth of the prompts twice.
A second call finds everything in the cache under the folder. Not collected by pytest.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np

from pm.config import parse
from pm.data.prepare import read, split_rows
from pm.data.sources import Reading
from pm.plan import epoch_rows, plan_step
from pm.run import load_data

LANGUAGES = [f"l{number:02}" for number in range(20)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/scale"))
    parser.add_argument("--max_length", default="2048")
    arguments = parser.parse_args()
    run = arguments.folder / "run"
    run.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / f"{arguments.rows}.jsonl"
    if not path.exists():
        write_rows(path, arguments.rows)
    print(f"{arguments.rows:,} rows, {path.stat().st_size / 2**20:,.0f} MB; "
          f"before: {peak():,.0f} MB, mostly imported libraries")
    config = parse(["--data", str(path), "--cache_dir", str(arguments.folder / "cache"), "--max_length",
                    arguments.max_length]).config

    rows = measured("read", arguments.rows, lambda: read(config.data, Reading(), config.cache_dir))
    measured("split", arguments.rows, lambda: split_rows(rows, None, config.test_fraction, config.cache_dir))
    data = measured("all of load_data (tokeniser, audit, encode)", arguments.rows, lambda: load_data(config, run))
    lengths = np.asarray(data.train.with_format("numpy")["tokens"][:])
    order = measured("draw an epoch", len(lengths), lambda: epoch_rows(data.rates, 0, 0))
    measured("plan its steps", len(lengths), lambda: [
        plan_step(lengths, order[start : start + 64], 4096, 1) for start in range(0, len(order), 64)])


def measured(name: str, rows: int, work):
    started = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    print(f"{name:44} {seconds:8.1f} s  {rows / seconds:12,.0f} rows/s   peak {peak():8,.0f} MB", flush=True)
    return result


def peak() -> float:
    """The largest resident memory so far, in MB; memory-mapped files count while they are looked at."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def write_rows(path: Path, rows: int) -> None:
    random = np.random.RandomState(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyzéäñçшжд的是不"))
    words = np.array(["".join(random.choice(letters, random.randint(2, 9))) for _ in range(50_000)])
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, rows, 1000):
            lengths = np.clip(random.lognormal(3.3, 0.8, (1000, 3)), 3, 400).astype(int)
            drawn = words[np.minimum(random.zipf(1.3, lengths.sum()) - 1, len(words) - 1)]
            texts = iter(np.split(drawn, np.cumsum(lengths.ravel())[:-1]))
            previous = ""
            for number in range(start, min(rows, start + 1000)):
                prompt, a, b = (" ".join(next(texts)) for _ in range(3))
                previous = prompt = previous if number % 10 == 1 else prompt
                row = {"id": f"row-{number}", "language": LANGUAGES[number % 20], "prompt": prompt, "response_a": a,
                       "response_b": b, "winner": "ab"[number % 2]}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
