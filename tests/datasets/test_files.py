"""Looking for files: each once, without asking any for its state; and names and lines that are no plain text."""

import os
from pathlib import Path

from cxrjax.datasets import files


def test_every_file_is_found_once_whatever_links_there_are(tmp_path):
    raw, elsewhere = tmp_path / "raw", tmp_path / "elsewhere"
    for path in ("b.png", "sub/a.png", "sub/deep/c.png", ".hidden/d.png", "__MACOSX/e.png", ".f.png"):
        (raw / path).parent.mkdir(parents=True, exist_ok=True)
        (raw / path).touch()
    elsewhere.mkdir()
    (elsewhere / "g.png").touch()
    (raw / "a_link_to_sub").symlink_to(raw / "sub")
    (raw / "sub" / "circle").symlink_to(raw)
    (raw / "other").symlink_to(elsewhere)
    (raw / "again").symlink_to(elsewhere)
    (raw / "h.png").symlink_to(elsewhere / "g.png")
    counts = []
    found = files.below(raw, counts.append)
    assert found == ["again/g.png", "b.png", "h.png", "sub/a.png", "sub/deep/c.png"]
    assert sum(counts) == 5


def test_no_file_and_no_plain_folder_is_asked_for_its_state(tmp_path, monkeypatch):
    """On a network disk each such question takes as long as reading a small file."""
    for number in range(3):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "a.png").touch()
    asked = []
    original = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: asked.append(path) or original(path, **options))
    assert len(files.below(tmp_path)) == 3
    assert not [path for path in asked if Path(os.fspath(path)).is_relative_to(tmp_path / "0")]


def test_names_are_shown_with_composed_letters_and_escapes():
    assert files.shown("Mu\u0308ller.png") == "M\u00fcller.png"
    assert files.shown(os.fsdecode(b"radio\xe9.png")) == r"radio\xe9.png"


def test_lines_are_printed_whatever_the_terminal_knows(capsys, monkeypatch):
    files.say("Ergu\u00df \udce9")
    assert capsys.readouterr().out == "Ergu\u00df \\udce9\n"
