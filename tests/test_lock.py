"""A folder has one owner at a time, and nothing of a dead one bars the next."""

import errno
import json
import os
import socket
import threading

import pytest

from hfsae.io.file_names import IN_USE, IN_USE_LOCK
from hfsae.io.files import locked

from .helpers import held_elsewhere


def test_a_second_one_is_refused_in_one_sentence_that_names_the_first(tmp_path):
    with held_elsewhere(tmp_path):
        owner = f"process {os.getpid()} on host {socket.gethostname()} since 20.. UTC"
        owner = owner.replace("20..", r"20\S+ \S+")
        with pytest.raises(ValueError, match=f"{tmp_path} is in use by {owner}; wait"):
            locked(tmp_path).__enter__()
    with locked(tmp_path):
        pass


def test_whoever_has_it_may_take_it_again(tmp_path):
    with locked(tmp_path):
        with locked(tmp_path / "." / "x" / ".."):
            pass
        assert (tmp_path / IN_USE).exists()
    assert not list(tmp_path.iterdir())


def test_one_that_waits_gets_it_when_the_first_is_done(tmp_path, caplog):
    caplog.set_level("INFO")
    with held_elsewhere(tmp_path) as is_over:
        threading.Timer(0.1, is_over.set).start()
        with locked(tmp_path, wait=True):
            assert json.loads((tmp_path / IN_USE).read_text())["process"] == os.getpid()
    assert "waiting for" in caplog.text and not list(tmp_path.iterdir())


def test_a_folder_that_was_made_for_it_goes_if_nothing_came_into_it(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "a" / "b"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["file"]


@pytest.mark.parametrize("content", ["", "[" * 900, '{"process": 1}', '{"process": "\\u001b[2J"}'])
def test_what_a_killed_process_left_bars_nobody(tmp_path, content, caplog):
    (tmp_path / IN_USE).write_text(content)
    with locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir()) and not caplog.text


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, caplog):
    fcntl = pytest.importorskip("fcntl")

    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path):
        (tmp_path / "file").touch()
    assert "cannot be locked (No locks available): do not start a second run there" in caplog.text


def test_the_processes_of_one_run_share_their_folder(tmp_path, monkeypatch):
    with held_elsewhere(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with locked(tmp_path):
            pass


def test_a_link_in_its_place_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / IN_USE).symlink_to(tmp_path / "precious")
    with locked(tmp_path):
        pass
    (tmp_path / IN_USE_LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match=r"cannot be made or written to \("):
        locked(tmp_path).__enter__()
    assert (tmp_path / "precious").read_text() == "precious"
