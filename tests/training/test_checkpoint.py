"""Checkpoints are whole, or noticed not to be."""

import pytest
import torch

from hfsae.training import checkpoint


def test_a_checkpoint_gives_back_every_bit(tmp_path):
    state = {"weights": torch.randn(5, 3), "step": 3, "nested": {"a": [1.5, "x", None]}}
    path = checkpoint.save(tmp_path, 3, state)
    loaded = checkpoint.load(path)
    assert torch.equal(loaded.pop("weights"), state.pop("weights")) and loaded == state


def test_only_the_newest_are_kept(tmp_path):
    for step in (5, 10, 200, 1000):
        checkpoint.save(tmp_path, step, {"step": step}, keep=2)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000200.pt", "step-00001000.pt"]


def test_a_full_disk_leaves_earlier_checkpoints_and_no_half_file(tmp_path, full_disk):
    checkpoint.save(tmp_path, 1, {"step": 1})
    with pytest.raises(OSError, match=r"could not write the checkpoint .*step-00000002.*to resume"):
        checkpoint.save(tmp_path, 2, {"weights": torch.zeros(10_000)})
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001.pt"]


def test_what_a_killed_save_left_is_removed_by_the_next(tmp_path):
    (tmp_path / "step-00000007.tmp-123").write_bytes(b"half")
    checkpoint.save(tmp_path, 8, {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000008.pt"]


def test_a_damaged_file_is_named_and_nothing_in_it_is_executed(tmp_path):
    class Attack:
        def __reduce__(self):
            return (pytest.fail, ("executed",))

    torch.save({"x": Attack()}, tmp_path / "step-00000001.pt")
    (tmp_path / "step-00000002.pt").write_bytes(b"not a checkpoint")
    for path in list(tmp_path.iterdir()):
        with pytest.raises(ValueError, match=f"{path.name} is damaged"):
            checkpoint.load(path)


def flip_a_bit(path, share: float) -> None:
    """At this share of the file's bytes."""
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_flipped_bit_is_noticed(tmp_path, share):
    path = checkpoint.save(tmp_path, 20, {"step": 20, "weights": torch.arange(5000)})
    flip_a_bit(path, share)
    with pytest.raises(ValueError, match=r"20\.pt is damaged \(.*delete it to go on from the one"):
        checkpoint.load(path)
    assert path.exists(), "who only looks changes nothing"


def test_a_checkpoint_of_a_later_version_is_refused(tmp_path):
    path = checkpoint.save(tmp_path, 20, {"format": checkpoint.FORMAT + 1})
    with pytest.raises(ValueError, match=r"later version of hfsae wrote .*20\.pt \(format 2"):
        checkpoint.load(path)
