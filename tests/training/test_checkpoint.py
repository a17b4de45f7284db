import errno

import pytest
import torch

from hfsae.training import checkpoint


def test_a_checkpoint_gives_back_every_bit(tmp_path):
    state = {"weights": torch.randn(5, 3), "step": 3, "nested": {"a": [1.5, "x", None]}}
    path = checkpoint.save(tmp_path, 3, state)
    loaded = checkpoint.load(path)
    assert torch.equal(loaded.pop("weights"), state.pop("weights")) and loaded == state


def test_only_the_newest_are_kept_and_the_newest_is_found(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    for step in (5, 10, 200, 1000):
        checkpoint.save(tmp_path, step, {"step": step}, keep=2)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000200.pt", "step-00001000.pt"]
    assert checkpoint.load(checkpoint.latest(tmp_path)) == {"step": 1000}


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left"), RuntimeError("write")])
def test_a_full_disk_leaves_earlier_checkpoints_and_no_half_file(tmp_path, monkeypatch, failure):
    checkpoint.save(tmp_path, 1, {"step": 1})

    def half_save(state, file):
        file.write(b"half")
        raise failure

    monkeypatch.setattr(torch, "save", half_save)
    with pytest.raises(OSError, match=r"could not write the checkpoint .*step-00000002.*resumes"):
        checkpoint.save(tmp_path, 2, {"step": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001.pt"]


def test_what_a_killed_save_left_is_removed_by_the_next(tmp_path):
    (tmp_path / "step-00000007.tmp-123").write_bytes(b"half")
    assert checkpoint.latest(tmp_path) is None
    checkpoint.save(tmp_path, 8, {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000008.pt"]


def test_a_damaged_file_is_named_and_nothing_in_it_is_executed(tmp_path):
    class Attack:
        def __reduce__(self):
            return (pytest.fail, ("executed",))

    torch.save({"x": Attack()}, tmp_path / "step-00000001.pt")
    (tmp_path / "step-00000002.pt").write_bytes(b"not a checkpoint")
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=f"{path.name} cannot be read as a checkpoint"):
            checkpoint.load(path)
