"""Folders that are seen whole or not at all."""

import pytest

from pm.files import written_aside


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
