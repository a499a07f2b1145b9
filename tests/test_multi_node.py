"""Training on two machines: two network namespaces with a cable between them, a rank in each, and one file system."""

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pm.data import sample

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
ADDRESSES = {"a": "10.99.0.1", "b": "10.99.0.2"}
PORT = "29400"  # the same for all: each test has it alone, since nothing else is in these networks
FLAGS = ("--model", "small-random", "--tune", "lora", "--vocab_size", "500", "--max_steps", "4", "--eval_every", "2",
         "--keep", "9", "--max_length", "128", "--log_every", "1", "--epochs", "100")
SETUP = """
mkdir -p /run/netns && mount -t tmpfs none /run/netns
ip netns add a && ip netns add b
ip link add cable netns a type veth peer name cable netns b
ip -n a addr add 10.99.0.1/24 dev cable && ip -n b addr add 10.99.0.2/24 dev cable
for host in a b; do ip -n $host link set cable up && ip -n $host link set lo up; done
echo ready && exec sleep infinity
"""

FAILED = (1, -signal.SIGABRT)  # by a traceback, or by a thread of gloo that came first

pytestmark = pytest.mark.slow


class Hosts:
    """Two machines, a and b, until `close`. Needs root, or a kernel that lets users have namespaces of their own."""

    def __init__(self):
        self.holder, self.reason = None, "no ip, unshare and nsenter"
        if all(map(shutil.which, ("ip", "unshare", "nsenter"))):
            for user in (["--user", "--map-root-user"], []):
                holder = subprocess.Popen(["unshare", *user, "--net", "--mount", "sh", "-ec", SETUP], text=True,
                                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                if holder.stdout.readline() == "ready\n":
                    self.holder, self.user = holder, bool(user)
                    return
                self.reason = holder.communicate()[1].strip()

    def inside(self, *command: str) -> list[str]:
        user = ["--user", "--preserve-credentials"] if self.user else []
        return ["nsenter", *user, "--net", "--mount", "--target", str(self.holder.pid), *command]

    def start(self, host: str, *command: str, before: str = "", log: Path) -> subprocess.Popen:
        """`command` on a host, after the shell commands `before`."""
        script = f'hostname {host}; cd {shlex.quote(str(ROOT))}; {before} exec "$@"'
        environment = os.environ | {"GLOO_SOCKET_IFNAME": "cable"}
        with log.open("w") as file:
            return subprocess.Popen(
                self.inside("ip", "netns", "exec", host, "unshare", "--uts", "sh", "-ec", script, "sh", *command),
                env=environment, stdout=file, stderr=subprocess.STDOUT)

    def kill(self, host: str) -> None:
        """Ends all processes of a host at once."""
        found = subprocess.run(self.inside("ip", "netns", "pids", host), capture_output=True, text=True, check=True)
        for process in map(int, found.stdout.split()):
            os.kill(process, signal.SIGKILL)

    def run(self, *command: str) -> None:
        subprocess.run(self.inside(*command), check=True)

    def close(self) -> None:
        for host in ADDRESSES:
            self.kill(host)
        self.holder.kill()
        self.holder.communicate()


@pytest.fixture(scope="module")
def hosts():
    made = Hosts()
    if made.holder is None:
        pytest.skip(f"no network namespaces can be made here: {made.reason}")
    yield made
    made.close()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nodes")
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for row in sample.written()["en"]:
            file.write(json.dumps(row) + "\n")
    settings = json.loads((ROOT / "ds_config.json").read_text()) | {"train_batch_size": 8}
    (folder / "ds.json").write_text(json.dumps(settings))
    (folder / "hosts").write_text("a slots=1\nb slots=1\n")
    return folder


def flags(workplace: Path, name: str, *more: str) -> list[str]:
    """Of a new run. Each has its own cache, so that both hosts meet an empty one."""
    return ["--deepspeed_config", str(workplace / "ds.json"), "--data", str(workplace / "pairs.jsonl"), "--output",
            str(workplace / name), "--cache_dir", str(workplace / f"{name}_cache"), *FLAGS, *more]


def torchrun(number: int) -> list[str]:
    return [str(BIN / "torchrun"), "--nnodes", "2", "--node_rank", str(number), "--master_addr", ADDRESSES["a"],
            "--master_port", PORT]


def by_torchrun(workplace: Path, number: int) -> list[str]:
    return [*torchrun(number), "train.py"]


def by_deepspeed(workplace: Path, number: int) -> list[str]:
    return [str(BIN / "deepspeed"), "--hostfile", str(workplace / "hosts"), "--no_ssh", "--node_rank", str(number),
            "--master_addr", ADDRESSES["a"], "--master_port", PORT, "train.py"]


def by_environment(workplace: Path, number: int) -> list[str]:
    """As other launchers do."""
    return ["env", f"RANK={number}", "LOCAL_RANK=0", "WORLD_SIZE=2", f"MASTER_ADDR={ADDRESSES['a']}",
            f"MASTER_PORT={PORT}", sys.executable, "train.py"]


def start(hosts: Hosts, workplace: Path, name: str, launcher, arguments: list[str], before: str = "") -> list:
    """A rank on each host; `before` on the second one."""
    return [hosts.start(host, *launcher(workplace, number), *arguments, before=before if number else "",
                        log=workplace / f"{name}_{host}.log") for number, host in enumerate(ADDRESSES)]


def end(processes: list, workplace: Path, name: str, expect: int = 0, timeout: float = 120) -> dict[str, str]:
    """What each host printed."""
    deadline = time.monotonic() + timeout
    codes = [process.wait(max(0.1, deadline - time.monotonic())) for process in processes]
    printed = {host: (workplace / f"{name}_{host}.log").read_text() for host in ADDRESSES}
    assert codes == [expect] * len(codes), "\n".join(printed.values())[-6000:]
    return printed


def wait_for_step(workplace: Path, name: str, step: int) -> None:
    metrics = workplace / name / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and f'"step": {step}' in metrics.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def numbers(run: Path) -> list[tuple]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["phase"], row["step"], row["loss"], row["gradient_norm"]) if row["phase"] == "train" else
            (row["phase"], row["step"], row["log_loss"], row["accuracy"]) for row in rows]


def exported(run: Path) -> str:
    return hashlib.sha256((run / "export/adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def one_host(workplace):
    """The run of two ranks on one host."""
    command = [str(BIN / "torchrun"), "--standalone", "--nproc_per_node", "2", "train.py"]
    result = subprocess.run([*command, *flags(workplace, "one_host")], cwd=ROOT, text=True,
                            capture_output=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return workplace / "one_host"


@pytest.mark.parametrize("launcher", [by_torchrun, by_deepspeed])
def test_two_hosts_train_as_one_with_two_ranks(hosts, workplace, one_host, launcher):
    name = launcher.__name__
    printed = end(start(hosts, workplace, name, launcher, flags(workplace, name)), workplace, name)
    assert numbers(workplace / name) == numbers(one_host)
    assert exported(workplace / name) == exported(one_host)
    assert "exported to" in printed["a"] and "exported to" not in printed["b"]


def test_a_run_that_lost_its_last_checkpoint_goes_on_on_two_hosts(hosts, workplace, one_host):
    """From that of two ranks on one host; both hosts log the same steps again."""
    shutil.copytree(one_host, workplace / "resumed")
    for path in (workplace / "resumed/checkpoints").glob("step_000004*"):
        (path / "manifest.json").unlink()
    arguments = ["--deepspeed_config", str(workplace / "ds.json"), "--resume", str(workplace / "resumed")]
    printed = end(start(hosts, workplace, "resumed", by_environment, arguments), workplace, "resumed")
    assert "at step 2 of 4" in printed["a"]
    assert numbers(workplace / "resumed") == numbers(one_host)
    assert exported(workplace / "resumed") == exported(one_host)


@pytest.mark.parametrize("flag", ["--output", "--resume"])
def test_a_host_that_does_not_see_the_run_is_told_so(hosts, workplace, one_host, flag):
    """The second host has an empty folder, or a copy of the run, where the first one has the run."""
    name = f"alone{flag.replace('-', '_')}"
    run, copy = workplace / name, workplace / f"{name}_copy"
    arguments = flags(workplace, name)
    if flag == "--resume":
        arguments = ["--deepspeed_config", str(workplace / "ds.json"), "--resume", str(run)]
        shutil.copytree(one_host, run)
        shutil.copytree(one_host, copy)
    for folder in (run, copy):
        folder.mkdir(exist_ok=True)
    before = f"mount --bind {shlex.quote(str(copy))} {shlex.quote(str(run))};"
    printed = end(start(hosts, workplace, name, by_environment, arguments, before), workplace, name, expect=2)
    for text in printed.values():
        assert text.splitlines()[-1] == (f"error: {flag} must be one folder that all machines share, under the same "
                                         f"path; what the first rank writes to {run} is not seen on b")
    assert not list(run.glob(".seen_*"))


@pytest.mark.parametrize(("lines", "told"), [(0, "{data}"), (20, "the data of {run} is no longer what")])
def test_an_error_names_the_host_that_has_it(hosts, workplace, lines, told):
    """The data is empty, or other data, on the second host."""
    name = f"data_{lines}"
    data, there = workplace / f"{name}.jsonl", workplace / f"{name}_there.jsonl"
    rows = (workplace / "pairs.jsonl").read_text("utf-8").splitlines(True)
    data.write_text("".join(rows), "utf-8")
    there.write_text("".join(rows[:lines]), "utf-8")
    before = f"mount --bind {shlex.quote(str(there))} {shlex.quote(str(data))};"
    arguments = flags(workplace, name)
    arguments[arguments.index("--data") + 1] = str(data)
    printed = end(start(hosts, workplace, name, by_environment, arguments, before), workplace, name, expect=2)
    for text in printed.values():
        assert text.splitlines()[-1].startswith(f"error: on b: {told.format(data=data, run=workplace / name)}")


def test_a_signal_to_one_rank_stops_both_with_a_checkpoint(hosts, workplace):
    processes = start(hosts, workplace, "stopped", by_environment, [*flags(workplace, "stopped"), "--max_steps", "500"])
    wait_for_step(workplace, "stopped", 3)
    processes[1].terminate()
    printed = end(processes, workplace, "stopped")
    step = numbers(workplace / "stopped")[-1][1]
    assert f"stopped at step {step};" in printed["a"]
    assert (workplace / "stopped/checkpoints/latest").read_text().startswith(f"step_{step:06d}")


def test_the_host_that_is_left_ends_where_the_other_one_dies(hosts, workplace):
    arguments = [*flags(workplace, "killed"), "--max_steps", "500"]
    left, killed = start(hosts, workplace, "killed", by_environment, arguments)
    wait_for_step(workplace, "killed", 3)
    hosts.kill("b")
    assert killed.wait(30) == -signal.SIGKILL
    assert left.wait(30) in FAILED
    assert "[10.99.0.2]" in (workplace / "killed_a.log").read_text()  # gloo's words differ


# Seconds where the libraries and the kernel have minutes.
IMPATIENT = f"""
import sys, time
from datetime import timedelta
sys.path.insert(0, {str(ROOT)!r})
from torch.distributed import distributed_c10d
from pm import distributed
from pm.errors import run_main

distributed_c10d.default_pg_timeout = timedelta(seconds=5)
distributed.MEETING = timedelta(seconds=5)

def main(argv):
    distributed.start()
    print("met", flush=True)
    %s

run_main(main)
distributed.end()
"""


def impatient(hosts: Hosts, workplace: Path, name: str, work: str, some=tuple(ADDRESSES)) -> list:
    """A script that meets and then does `work`, on `some` of the hosts."""
    (workplace / f"{name}.py").write_text(IMPATIENT % work)
    return [hosts.start(host, *by_environment(workplace, number)[:-1], str(workplace / f"{name}.py"),
                        before="echo 3 > /proc/sys/net/ipv4/tcp_retries2;", log=workplace / f"{name}_{host}.log")
            for number, host in enumerate(ADDRESSES) if host in some]


@pytest.mark.parametrize(("name", "work", "ending"), [
    ("in_a_step", "[distributed.all_reduce_sum(distributed.torch.zeros(9)) for _ in range(10**9)]", "ab"),
    ("while_one_works", "distributed.on_main(lambda: time.sleep(20))", "b")])
def test_a_host_ends_where_the_cable_is_cut(hosts, workplace, name, work, ending):
    """Then no connection is closed: the other one is silent."""
    processes = dict(zip(ADDRESSES, impatient(hosts, workplace, name, work), strict=True))
    deadline = time.monotonic() + 60
    while not all("met" in (workplace / f"{name}_{host}.log").read_text() for host in ADDRESSES):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    hosts.run("ip", "-n", "b", "link", "set", "cable", "down")
    try:
        assert all(processes[host].wait(18) in FAILED for host in ending)
        assert len(ending) == 2 or processes["a"].poll() is None
    finally:
        hosts.run("ip", "-n", "b", "link", "set", "cable", "up")
        for host, process in processes.items():
            hosts.kill(host)
            process.wait(30)


@pytest.mark.parametrize("missing", ["a", "b"])
def test_a_rank_says_that_others_did_not_come(hosts, workplace, missing):
    there = "ab".replace(missing, "")
    (process,) = impatient(hosts, workplace, f"without_{missing}", "pass", there)
    assert process.wait(60) == 2
    printed = (workplace / f"without_{missing}_{there}.log").read_text().splitlines()[-1]
    assert printed.startswith(f"error: rank {'ab'.index(there)} on {there} did not meet all 2 ranks at MASTER_ADDR "
                              f"10.99.0.1, MASTER_PORT {PORT} within 5 s: ")


def test_ranks_wait_longer_for_work_than_a_collective_operation_would(hosts, workplace):
    processes = impatient(hosts, workplace, "patient",
                          "print(distributed.on_main(lambda: time.sleep(8) or 'made'), flush=True)")
    assert [process.wait(60) for process in processes] == [0, 0]
    assert [(workplace / f"patient_{host}.log").read_text().splitlines()[-1] for host in ADDRESSES] == ["made"] * 2
