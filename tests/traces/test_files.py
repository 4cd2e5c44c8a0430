"""What ttscope keeps for itself."""

from traces import files


def test_the_version_of_the_code_changes_with_any_of_its_files(tmp_path, monkeypatch):
    for name in ("traces/files.py", "tui/a.py", "advisor/b/c.py", "advisor/d.json", "tests/e.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(files, "__file__", str(tmp_path / "traces" / "files.py"))
    seen = [files.code_version.__wrapped__()]
    for name in ("tui/a.py", "advisor/b/c.py", "advisor/d.json"):
        (tmp_path / name).write_text("2")
        seen.append(files.code_version.__wrapped__())
    assert len(set(seen)) == 4
    (tmp_path / "tests/e.py").write_text("2")
    assert files.code_version.__wrapped__() == seen[-1]
