from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.atomic import atomic_file, atomic_folder
from data_pipeline.errors import DataError


class StopError(Exception):
    pass


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file"
    with pytest.raises(StopError), atomic_file(path) as stream:
        stream.write(b"half")
        raise StopError
    assert names(path.parent) == []
    with atomic_file(path) as stream:
        stream.write(b"first")
        assert not path.exists()
    with pytest.raises(StopError), atomic_file(path) as stream:
        raise StopError
    assert path.read_bytes() == b"first"
    assert names(path.parent) == ["file"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder"
    with pytest.raises(StopError), atomic_folder(path) as folder:
        (folder / "a").write_text("half")
        raise StopError
    assert names(tmp_path) == []
    with atomic_folder(path) as folder:
        (folder / "a").write_text("first")
    with pytest.raises(DataError, match="already exists"), atomic_folder(path) as folder:
        (folder / "b").write_text("second")
    assert names(path) == ["a"]
    with atomic_folder(path, overwrite=True) as folder:
        (folder / "b").write_text("second")
        assert names(path) == ["a"]
    assert names(path) == ["b"]
    assert names(tmp_path) == ["folder"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*inside: "), atomic_folder(tmp_path / "file" / "inside"):
        pass
    with pytest.raises(DataError, match=r"cannot write .*x: No space"), atomic_file(tmp_path / "x") as stream:
        Path("/dev/full").write_bytes(b"1")
        stream.write(b"")


def killed_inside(code):
    script = f"import os, signal\nfrom pathlib import Path\nfrom data_pipeline import atomic\n{code}"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == -signal.SIGKILL


def test_what_a_killed_writer_left_is_swept_by_the_next_one(tmp_path):
    path = tmp_path / "folder"
    killed_inside(f"with atomic.atomic_folder(Path({str(path)!r})):\n  os.kill(os.getpid(), signal.SIGKILL)")
    assert len(names(tmp_path)) == 1
    with atomic_folder(tmp_path / "folder2"), atomic_folder(path):
        pass
    assert names(tmp_path) == ["folder", "folder2"]


def test_a_writer_killed_between_its_renames_loses_nothing(tmp_path):
    path = tmp_path / "folder"
    with atomic_folder(path) as folder:
        (folder / "a").write_text("old")
    killed_inside(
        "rename = Path.rename\n"
        "def once(self, to):\n  rename(self, to)\n  os.kill(os.getpid(), signal.SIGKILL)\n"
        "Path.rename = once\n"
        f"with atomic.atomic_folder(Path({str(path)!r}), overwrite=True): pass"
    )
    assert not path.exists()
    with pytest.raises(DataError, match="already exists"), atomic_folder(path):
        pass
    assert (path / "a").read_text() == "old"
    assert names(tmp_path) == ["folder"]


def test_a_living_writer_is_left_in_peace(tmp_path):
    path = tmp_path / "folder"
    with atomic_folder(path, overwrite=True) as first:
        with atomic_folder(path) as second:
            assert first.is_dir()
            (second / "b").write_text("")
        (first / "a").write_text("")
    assert names(path) == ["a"]
    assert names(tmp_path) == ["folder"]
