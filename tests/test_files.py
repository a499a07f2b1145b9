"""Folders that are seen whole or not at all, and folders of one process."""

import os
import signal
import subprocess
import sys

import pytest

from pm.files import hold, written_aside


def fill(folder, text: str) -> None:
    with written_aside(folder) as temporary:
        (temporary / "file").write_text(text)


def test_a_folder_takes_the_place_of_the_one_before(tmp_path):
    fill(tmp_path / "export", "old")
    (tmp_path / "export/other").write_text("goes")
    fill(tmp_path / "export", "new")
    assert {path.name for path in (tmp_path / "export").iterdir()} == {"file"}
    assert (tmp_path / "export/file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_one_that_fails_leaves_what_was_there(tmp_path):
    fill(tmp_path / "export", "old")
    with pytest.raises(ValueError, match="not yet"), written_aside(tmp_path / "export") as temporary:
        (temporary / "file").write_text("half")
        assert (tmp_path / "export/file").read_text() == "old"
        raise ValueError("not yet")
    assert (tmp_path / "export/file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_a_link_stays_one_and_its_folder_is_replaced(tmp_path):
    fill(tmp_path / "disk/real", "old")
    (tmp_path / "export").symlink_to(tmp_path / "disk/real")
    fill(tmp_path / "export", "new")
    assert (tmp_path / "export").is_symlink()
    assert (tmp_path / "disk/real/file").read_text() == "new"


def test_what_a_killed_process_left_does_not_come_into_it(tmp_path):
    (tmp_path / ".export.writing").mkdir()
    (tmp_path / ".export.writing/half").write_text("")
    fill(tmp_path / "export", "new")
    assert {path.name for path in (tmp_path / "export").iterdir()} == {"file"}


def test_a_folder_is_kept_until_its_process_ends_even_by_kill(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "import sys; from pathlib import Path; from pm.files import hold\n"
                              "hold(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()", str(tmp_path)],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    for _ in range(2):
        with pytest.raises(BlockingIOError, match=f"^process {other.pid} on "):
            hold(tmp_path)
    other.send_signal(signal.SIGKILL)
    other.communicate()
    hold(tmp_path)
    hold(tmp_path)  # its own it may take twice
    assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
