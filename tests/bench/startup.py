"""Seconds from the command to the end of the first training step, with an empty cache and with a filled one.

    python tests/bench/startup.py [--times 3]

Of each part the best of all times, counted from the command: "rank" is started by the launcher, "imports" are done when
the run's folder is written, "data" is read, tokenised and audited, "model" built; then come DeepSpeed's engine and the
first step. "processor" is user and system time of all processes up to there, which says more where others use the
machine too. A run is killed after its step. Needs Linux and the launcher's port, 29500; not collected by pytest.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEEPSPEED = Path(sys.executable).with_name("deepspeed")
COMMANDS = {"deepspeed": [sys.executable, DEEPSPEED, "train.py"], "python": [sys.executable, "train.py"]}
PARTS = ("rank", "imports", "data", "model", "step", "processor")


def first_step(command: list, folder: Path, cache: Path) -> dict[str, float]:
    """The parts of one run."""
    run, log = folder / "run", folder / "log"
    signs = {"rank": lambda: command[1] != DEEPSPEED or "spawned with command" in log.read_text(),
             "imports": (run / "environment.json").exists, "data": lambda: "\nrun: " in log.read_text(),
             "model": lambda: "\nmodel: " in log.read_text(), "step": (run / "metrics.jsonl").exists}
    found: dict[str, float] = {}
    started = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen([*command, "--deepspeed_config", "ds_config.json", "--output", run, "--cache_dir",
                                    cache], cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
    try:
        while len(found) < len(signs):
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.01)
            found |= {part: time.perf_counter() - started for part, seen in signs.items() if part not in found
                      and seen()}
        return found | {"processor": processor_time(process.pid)}
    finally:
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def processor_time(session: int) -> float:
    """User and system seconds of all processes of a session and of their children that have ended."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()  # from the third on: proc_pid_stat(5)
        except OSError:  # it has just ended
            continue
        ticks += sum(map(int, fields[11:15])) if int(fields[3]) == session else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=3)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no run is left behind
    print("command    cache  " + "".join(f"{part:>11}" for part in PARTS))
    for name, command in COMMANDS.items():
        runs: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
        for _ in range(arguments.times):
            with tempfile.TemporaryDirectory() as folder:
                for cache, found in runs.items():
                    (Path(folder) / cache).mkdir()
                    found.append(first_step(command, Path(folder) / cache, Path(folder) / "cache"))
        for cache, found in runs.items():
            print(f"{name:9}  {cache:5}  " + "".join(f"{min(run[part] for run in found):11.1f}" for part in PARTS),
                  flush=True)


if __name__ == "__main__":
    main()
