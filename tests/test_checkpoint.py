"""Checkpoints: what is committed can be read, what is broken is skipped by name, what fails leaves nothing behind."""

import errno
import hashlib
import json
import pickle
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from pm import checkpoint
from pm.checkpoint import Broken, best, commit, is_better, judge, load, names, newest, to_resume
from pm.errors import UserError

STATE = {"master/w": torch.tensor([[1.5, -0.0, 1e-40], [float("inf"), 3.0, -2.0]]), "exp_avg/w": torch.zeros(2, 3)}


def save(run: Path, step: int, keep: int = 9, is_best: bool = False, state=STATE) -> str:
    name = commit(run, state, {"step": step, "updates": step}, keep)
    judge(run, name, 1 / step if is_best else None, "log_loss", keep)
    return name


def folder(run: Path, name: str) -> Path:
    return run / "checkpoints" / name


def read(run: Path, name: str) -> str:
    return folder(run, name).read_text()


def contents(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").iterdir()}


# Commit and load


def test_what_is_committed_is_loaded_bitwise(tmp_path):
    name = commit(tmp_path, STATE, {"step": 40, "updates": 39}, 2)
    found = load(folder(tmp_path, name))
    assert name == "step_000040"
    assert found.path == folder(tmp_path, "step_000040")
    assert found.trainer == {"step": 40, "updates": 39}
    state = found.state()
    assert state.keys() == STATE.keys()
    for key, tensor in STATE.items():
        assert state[key].dtype == torch.float32
        assert state[key].numpy().tobytes() == tensor.numpy().tobytes()


def test_checkpoint_holds_three_files_and_their_sums(tmp_path):
    save(tmp_path, 1)
    path = folder(tmp_path, "step_000001")
    assert {file.name for file in path.iterdir()} == {"state.safetensors", "trainer.json", "manifest.json"}
    manifest = json.loads((path / "manifest.json").read_text())
    for name in ("state.safetensors", "trainer.json"):
        data = (path / name).read_bytes()
        assert manifest[name] == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def test_latest_names_the_newest(tmp_path):
    save(tmp_path, 1)
    assert read(tmp_path, "latest") == "step_000001\n"
    save(tmp_path, 2)
    assert read(tmp_path, "latest") == "step_000002\n"
    assert newest(tmp_path).path.name == "step_000002"
    assert contents(tmp_path) == {"step_000001", "step_000002", "latest"}


def test_the_same_step_twice_gets_another_name(tmp_path):
    assert [save(tmp_path, 5) for _ in range(3)] == ["step_000005", "step_000005_2", "step_000005_3"]
    assert names(tmp_path) == ["step_000005_3", "step_000005_2", "step_000005"]
    assert read(tmp_path, "latest") == "step_000005_3\n"


def test_names_are_sorted_by_number(tmp_path):
    for name in ("step_000009", "step_1000000", "step_000009_10", "step_000009_2", "step_000010",
                 ".step_000011.writing", "latest", "step_x"):
        folder(tmp_path, name).mkdir(parents=True)
    assert names(tmp_path) == ["step_1000000", "step_000010", "step_000009_10", "step_000009_2", "step_000009"]


def test_the_newest_and_the_best_are_kept(tmp_path):
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step, keep=2, is_best=step == 2)
    assert names(tmp_path) == ["step_000005", "step_000004", "step_000002"]
    assert read(tmp_path, "best") == "step_000002 0.5\n"


def test_a_best_that_is_passed_goes(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=1, is_best=step in (1, 3))
    assert names(tmp_path) == ["step_000004", "step_000003"]
    assert best(tmp_path) == ("step_000003", 1 / 3)


def test_a_best_that_is_passed_by_the_last_one_goes_at_once(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, keep=1, is_best=step != 2)
    assert names(tmp_path) == ["step_000003"]


def test_a_checkpoint_that_is_no_better_changes_nothing(tmp_path):
    save(tmp_path, 2, is_best=True)
    name = save(tmp_path, 3)
    for value, metric in ((0.5, "log_loss"), (0.6, "log_loss"), (0.5, "accuracy"), (float("nan"), "accuracy")):
        judge(tmp_path, name, value, metric, 9)
        assert best(tmp_path) == ("step_000002", 0.5)


@pytest.mark.parametrize("broken", [1, 2])
def test_a_best_that_does_not_verify_gives_way_to_one_made_after_a_resume(tmp_path, broken, capsys):
    for step in (1, 2):
        save(tmp_path, step, is_best=step == broken)
    (folder(tmp_path, f"step_00000{broken}") / "state.safetensors").write_bytes(b"broken")
    assert to_resume(tmp_path).path.name == f"step_00000{3 - broken}"
    assert "forgetting the best checkpoint" in capsys.readouterr().out
    name = commit(tmp_path, STATE, {"step": 2}, 9)
    judge(tmp_path, name, 9.0, "log_loss", 9)
    assert best(tmp_path) == ("step_000002_2", 9.0)


def test_a_best_that_verifies_stays_best_after_a_resume(tmp_path):
    for step in (1, 2):
        save(tmp_path, step, is_best=step == 1)
    assert to_resume(tmp_path).path.name == "step_000002"
    assert best(tmp_path) == ("step_000001", 1)


def test_without_a_value_there_is_no_best(tmp_path):
    save(tmp_path, 1)
    assert best(tmp_path) is None


def test_what_is_just_written_is_kept_though_a_later_step_exists(tmp_path):
    save(tmp_path, 60)
    save(tmp_path, 40, keep=1)  # after a resume from a checkpoint before step 60, which did not verify
    assert names(tmp_path) == ["step_000060", "step_000040"]
    assert read(tmp_path, "latest") == "step_000040\n"


# Broken checkpoints


def rewrite(path: Path, data: bytes, seal: bool = False) -> None:
    """Replaces a file's content; `seal`: the manifest agrees with it."""
    path.write_bytes(data)
    if seal:
        manifest = json.loads((path.parent / "manifest.json").read_text())
        manifest[path.name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        (path.parent / "manifest.json").write_text(json.dumps(manifest))


def flip_last_byte(path: Path) -> None:
    data = path.read_bytes()
    rewrite(path, data[:-1] + bytes([data[-1] ^ 1]))


def halve(path: Path) -> None:
    rewrite(path, path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "flipped byte in the state": (lambda path: flip_last_byte(path / "state.safetensors"),
                                  "state.safetensors has another sha256 than its manifest says"),
    "flipped byte in trainer.json": (lambda path: flip_last_byte(path / "trainer.json"),
                                     "trainer.json has another sha256 than its manifest says"),
    "truncated state": (lambda path: halve(path / "state.safetensors"), "state.safetensors has "),
    "empty state": (lambda path: rewrite(path / "state.safetensors", b""), "state.safetensors has 0 bytes, not "),
    "missing state": (lambda path: (path / "state.safetensors").unlink(), "state.safetensors"),
    "missing trainer.json": (lambda path: (path / "trainer.json").unlink(), "trainer.json"),
    "missing manifest": (lambda path: (path / "manifest.json").unlink(), "manifest.json"),
    "manifest that is not JSON": (lambda path: rewrite(path / "manifest.json", b"{"), "Expecting property name"),
    "manifest that is not UTF-8": (lambda path: rewrite(path / "manifest.json", b"\xff"), "utf-8"),
    "manifest that is no object": (lambda path: rewrite(path / "manifest.json", b"[]"), "list indices"),
    "manifest without the state": (lambda path: rewrite(path / "manifest.json", b"{}"), "state.safetensors"),
    "trainer.json that is not JSON": (lambda path: rewrite(path / "trainer.json", b"{", seal=True), "Expecting"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_broken_checkpoint_is_named_and_the_older_one_taken(tmp_path, damage):
    save(tmp_path, 1)
    save(tmp_path, 2)
    break_it, words = DAMAGE[damage]
    break_it(folder(tmp_path, "step_000002"))
    said: list[str] = []
    assert newest(tmp_path, said.append).path.name == "step_000001"
    assert len(said) == 1
    assert said[0].startswith(f"skipping checkpoint {folder(tmp_path, 'step_000002')}: ")
    assert words in said[0]


@pytest.mark.parametrize("damage", DAMAGE)
def test_load_says_what_is_broken(tmp_path, damage):
    save(tmp_path, 1)
    break_it, words = DAMAGE[damage]
    break_it(folder(tmp_path, "step_000001"))
    with pytest.raises(Broken, match=words):
        load(folder(tmp_path, "step_000001"))


def test_a_file_with_a_checkpoints_name_is_skipped(tmp_path):
    save(tmp_path, 1)
    folder(tmp_path, "step_000002").write_text("")
    said: list[str] = []
    assert newest(tmp_path, said.append).path.name == "step_000001"
    assert "step_000002" in said[0]


def test_a_whole_newest_is_taken_without_a_word(tmp_path):
    save(tmp_path, 1)
    said: list[str] = []
    assert newest(tmp_path, said.append).path.name == "step_000001"
    assert said == []


def test_a_missing_or_wrong_latest_does_not_matter(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    folder(tmp_path, "latest").write_text("step_000001\n")
    assert newest(tmp_path).path.name == "step_000002"
    folder(tmp_path, "latest").unlink()
    assert newest(tmp_path).path.name == "step_000002"


def test_no_checkpoint_that_verifies_is_an_error(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
        flip_last_byte(folder(tmp_path, f"step_00000{step}") / "state.safetensors")
    said: list[str] = []
    with pytest.raises(UserError, match=r"has no checkpoint that can be read \(2 tried\)"):
        newest(tmp_path, said.append)
    assert [line.split(":")[0][-11:] for line in said] == ["step_000002", "step_000001"]


def test_no_checkpoint_at_all_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"has no checkpoint that can be read \(0 tried\)"):
        newest(tmp_path)


def test_the_name_of_a_broken_checkpoint_is_not_used_again(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    flip_last_byte(folder(tmp_path, "step_000002") / "state.safetensors")
    assert save(tmp_path, 2) == "step_000002_2"
    assert newest(tmp_path).path.name == "step_000002_2"


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.mkdir, (self.marker,)


def test_the_evil_pickle_is_evil(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_a_pickle_in_place_of_the_state_is_skipped_and_not_executed(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    rewrite(folder(tmp_path, "step_000002") / "state.safetensors", pickle.dumps(Evil(tmp_path / "executed")))
    assert newest(tmp_path, lambda line: None).path.name == "step_000001"
    assert not (tmp_path / "executed").exists()


def test_a_pickle_with_a_manifest_that_agrees_is_not_executed(tmp_path):
    save(tmp_path, 1)
    rewrite(folder(tmp_path, "step_000001") / "state.safetensors", pickle.dumps(Evil(tmp_path / "executed")), seal=True)
    with pytest.raises(SafetensorError):
        load(folder(tmp_path, "step_000001")).state()
    assert not (tmp_path / "executed").exists()


# Writes that fail


@contextmanager
def files_of_at_most(size: int):
    """Every write past `size` bytes of a file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(state, path):
        Path(path).write_bytes(b"the first half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(OSError, match="No space left") as error:
            save(tmp_path, 2)
    assert error.value.errno == errno.ENOSPC
    assert contents(tmp_path) == {"step_000001", "latest"}
    assert read(tmp_path, "latest") == "step_000001\n"
    assert save(tmp_path, 2) == "step_000002"


def test_a_state_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    save(tmp_path, 1)
    with files_of_at_most(2000), pytest.raises(SafetensorError, match="File too large"):
        save(tmp_path, 2, state={"master/w": torch.zeros(4000)})
    assert contents(tmp_path) == {"step_000001", "latest"}
    assert read(tmp_path, "latest") == "step_000001\n"


def test_a_trainer_json_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    save(tmp_path, 1)
    with files_of_at_most(2000), pytest.raises(OSError, match="File too large"):
        commit(tmp_path, STATE, {"step": 2, "rows": ["x" * 100] * 100}, 9)
    assert contents(tmp_path) == {"step_000001", "latest"}
    assert read(tmp_path, "latest") == "step_000001\n"


def test_a_failed_best_keeps_the_old_best(tmp_path):
    save(tmp_path, 1, is_best=True)
    with files_of_at_most(2000), pytest.raises(SafetensorError):
        save(tmp_path, 2, is_best=True, state={"master/w": torch.zeros(4000)})
    assert best(tmp_path) == ("step_000001", 1)


def test_what_a_killed_write_left_is_no_checkpoint(tmp_path):
    save(tmp_path, 1)
    left = folder(tmp_path, ".step_000002.writing")
    left.mkdir()
    (left / "state.safetensors").write_text("half")
    assert newest(tmp_path).path.name == "step_000001"
    assert save(tmp_path, 3) == "step_000003"
    assert contents(tmp_path) == {"step_000001", "step_000003", "latest"}


# The best


@pytest.mark.parametrize(("value", "best", "metric", "better"), [
    (0.5, None, "log_loss", True),
    (0.4, 0.5, "log_loss", True),
    (0.5, 0.5, "log_loss", False),
    (0.6, 0.5, "log_loss", False),
    (0.6, 0.5, "accuracy", True),
    (0.5, 0.5, "accuracy", False),
    (0.4, 0.5, "accuracy", False),
    (0.0, None, "accuracy", True),
    (None, None, "log_loss", False),
    (None, 0.5, "log_loss", False),
])
def test_better_is_lower_loss_or_higher_accuracy(value, best, metric, better):
    assert is_better(value, best, metric) is better
