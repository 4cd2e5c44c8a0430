"""Recordings that are given twice are read once."""

import shutil

from tui.verbs.demo import SHIPPED
from tui.verbs.open_all import open_all

ONE, OTHER = sorted(SHIPPED.iterdir())[:2]


def test_the_same_folder_twice_is_one_recording(capsys):
    found = open_all([SHIPPED, SHIPPED / ".." / SHIPPED.name])
    assert [each.path.name for each in found] == [each.path.name for each in open_all([SHIPPED])]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(found)
    assert all("the same recording as" in line for line in said)


def test_a_copy_under_another_name_is_the_same_and_another_run_is_not(tmp_path, capsys):
    copy = shutil.copytree(ONE, tmp_path / "renamed")
    found = open_all([ONE, OTHER, copy])
    assert [each.path for each in found] == [ONE, OTHER]
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"ttscope: {copy}: the same recording as {ONE}, read once"


def test_a_recording_that_differs_in_its_rows_is_kept(tmp_path, capsys):
    copy = shutil.copytree(ONE, tmp_path / "less")
    next(copy.glob("drafts-*")).unlink()
    assert len(open_all([ONE, copy])) == 2
    assert not capsys.readouterr().err
