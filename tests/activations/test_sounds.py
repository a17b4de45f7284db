"""Sound: how files decode, how they are cut, and when a position is."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hfsae.activations import AudioArguments, HarvestArguments, InputSource
from hfsae.activations.sounds import Sounds

from ..tiny_encoders import RATE, block, save_pictures, save_sounds, whole_model

wavfile = pytest.importorskip("scipy.io.wavfile")
HOP = 320  # samples, of both models


def source_of(loaded, rows: int = 2, **fields) -> InputSource:
    """Everything is on the test side."""
    args = AudioArguments(**{"held_out_fraction": 1.0} | fields)
    return InputSource(args, loaded, [block(loaded.model, 1)], HarvestArguments(rows=rows))


def of_document(source: InputSource, document: int) -> tuple[torch.Tensor, list[int]]:
    """A file's activations, and their positions."""
    acts, positions = [], []
    for batch in source.batches("test"):
        own = batch.document == document
        acts.append(batch.activations[source.sites[0]][own])
        positions += batch.position[own].tolist()
    order = np.argsort(positions)
    return torch.cat(acts)[order], sorted(positions)


def waves_of(sounds: Sounds) -> list[np.ndarray]:
    return [sounds.sound(document) for document in range(len(sounds.names))]


@pytest.fixture
def heard(encoder):
    def read(folder: Path) -> list[np.ndarray]:
        reader = source_of(encoder("wav2vec2"), files=str(folder)).reader
        assert isinstance(reader, Sounds)
        return waves_of(reader)

    return read


def test_samples_of_every_kind_become_numbers_from_minus_one_to_one(heard, tmp_path):
    wave = np.random.default_rng(0).uniform(-0.9, 0.9, 800)
    folder = tmp_path / "sounds"
    folder.mkdir()
    kinds = [(wave * 2**15).astype(np.int16), (wave * 2**31).astype(np.int32)]
    kinds += [wave.astype(np.float32), np.round(wave * 128 + 128).astype(np.uint8)]
    kinds += [np.stack([wave, -wave / 2], axis=1).astype(np.float32)]
    for i, kind in enumerate(kinds):
        wavfile.write(folder / f"{i}.wav", RATE, kind)
    steps = (2**-15, 2**-24, 2**-24, 2**-7, 2**-24)
    expected = [wave] * 4 + [wave / 4]
    for got, want, step in zip(heard(folder), expected, steps, strict=True):
        assert got.dtype == np.float32 and np.abs(got - want).max() <= step


def test_samples_of_three_bytes_are_read(heard, tmp_path):
    import wave

    values = np.array([-(2**23), -1, 0, 1, 2**22, 2**23 - 1] * 200)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(3)
        file.setframerate(RATE)
        file.writeframes(b"".join(int(v).to_bytes(3, "little", signed=True) for v in values))
    assert np.allclose(heard(tmp_path)[0], values / 2**23, atol=2**-24, rtol=0)


def test_another_rate_is_resampled_to_the_same_tones(heard, tmp_path):
    def tone(rate: int) -> np.ndarray:
        return 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)

    for i, rate in enumerate((8_000, 44_100, 22_050)):
        wavfile.write(tmp_path / f"{i}.wav", rate, tone(rate).astype(np.float32))
    for got in heard(tmp_path):
        assert len(got) == RATE
        middle = slice(1000, -1000)  # the filter meets the end of the sound outside it
        assert np.abs(got - tone(RATE))[middle].max() < 0.005


def test_activations_are_the_hidden_states_of_whole_files(encoder, tmp_path):
    waves = save_sounds(tmp_path, [0.5, 0.25, 0.5])
    loaded, model = encoder("wav2vec2"), whole_model("wav2vec2")
    source = source_of(loaded, files=str(tmp_path))
    for document, wave in enumerate(waves):
        inputs = loaded.processor(wave, sampling_rate=RATE, return_tensors="pt")
        with torch.no_grad():
            expected = model(**inputs, output_hidden_states=True).hidden_states[2][0]
        acts, positions = of_document(source, document)
        assert positions == list(range(len(expected)))
        torch.testing.assert_close(acts, expected, rtol=1e-4, atol=1e-5)
    assert source.caption(0, 5) == "0.wav, 0.10 s" and source.seconds(5) == 5 * HOP / RATE


def test_pieces_are_read_apart_and_their_positions_follow_each_other(encoder, tmp_path):
    (wave,) = save_sounds(tmp_path, [1.1])
    loaded, model = encoder("wav2vec2"), whole_model("wav2vec2")
    source = source_of(loaded, files=str(tmp_path), seconds=0.5)
    acts, positions = of_document(source, 0)
    expected = []
    for first in range(0, len(wave), RATE // 2):
        part = wave[first : first + RATE // 2]
        inputs = loaded.processor(part, sampling_rate=RATE, return_tensors="pt")
        with torch.no_grad():
            expected.append(model(**inputs, output_hidden_states=True).hidden_states[2][0])
    torch.testing.assert_close(acts, torch.cat(expected), rtol=1e-4, atol=1e-5)
    assert positions == list(range(len(acts)))
    n = len(expected[0])
    assert source.seconds(n) == 0.5 and source.seconds(2 * n + 1) == pytest.approx(1.02)
    assert np.array_equal(source.reader.sound(0, 2), wave[RATE:])


def test_padding_is_left_out(encoder, tmp_path):
    save_sounds(tmp_path, [0.31, 1.0, 1.5])
    loaded, model = encoder("whisper"), whole_model("whisper")
    source = source_of(loaded, files=str(tmp_path))
    assert of_document(source, 0)[1] == list(range(16))  # 15.5 steps of 20 ms
    assert of_document(source, 1)[1] == list(range(50))
    acts, positions = of_document(source, 2)
    assert positions == list(range(75)) and source.caption(2, 60) == "2.wav, 1.20 s"
    parts = [source.reader.sound(2, number) for number in (0, 1)]
    inputs = loaded.processor(parts, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        start = torch.ones(2, 1, dtype=torch.long)
        output = model(**inputs, decoder_input_ids=start, output_hidden_states=True)
    states = output.encoder_hidden_states[2]
    expected = torch.cat([states[0], states[1, :25]])
    torch.testing.assert_close(acts, expected, rtol=1e-4, atol=1e-5)


def test_a_rest_that_is_too_short_for_the_model_is_left_out(encoder, tmp_path, caplog):
    save_sounds(tmp_path, [0.502, 0.5])
    source = source_of(encoder("wav2vec2"), files=str(tmp_path), seconds=0.25)
    assert len(source.pieces("test")) == 4
    n = len(of_document(source, 1)[1])
    assert len(of_document(source, 0)[1]) == n == source.n_positions("test") // 2
    assert not caplog.text


def test_a_file_that_is_no_sound_is_counted_and_more_of_them_are_refused(encoder, tmp_path, caplog):
    save_sounds(tmp_path, [0.05] * 101)
    data = (tmp_path / "5.wav").read_bytes()
    (tmp_path / "5.wav").write_bytes(data[: len(data) // 2])
    source = source_of(encoder("wav2vec2"), 32, files=str(tmp_path))
    documents = torch.cat([batch.document for batch in source.batches("test")])
    assert sorted({*documents.tolist()}) == [i for i in range(101) if i != 5]
    assert "5.wav cannot be read and is left out: " in caplog.text
    wavfile.write(tmp_path / "6.wav", RATE, np.full(800, np.nan, np.float32))
    source = source_of(encoder("wav2vec2"), 32, files=str(tmp_path))
    with pytest.raises(ValueError, match=r"2 of 101 sounds cannot be read, more than 1%"):
        list(source.batches("test"))


def test_a_chunk_that_scipy_does_not_know_is_no_reason_to_stop(heard, tmp_path):
    (wave,) = save_sounds(tmp_path, [0.1])
    data = (tmp_path / "0.wav").read_bytes() + b"note" + (4).to_bytes(4, "little") + b"abcd"
    data = data[:4] + (len(data) - 8).to_bytes(4, "little") + data[8:]
    (tmp_path / "0.wav").write_bytes(data)
    assert np.array_equal(heard(tmp_path)[0], wave)


def test_compressed_sound_names_the_package_that_reads_it(encoder, tmp_path, monkeypatch):
    (tmp_path / "news.flac").write_bytes(b"fLaC")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ValueError, match=r"news.flac is read by .*: pip install soundfile; or"):
        source_of(encoder("wav2vec2"), files=str(tmp_path))


def test_compressed_sound_is_read_by_soundfile(encoder, tmp_path, monkeypatch):
    from types import ModuleType, SimpleNamespace

    wave = np.random.default_rng(0).uniform(-1, 1, (4_000, 2)).astype(np.float32)
    reader = ModuleType("soundfile")
    reader.info = lambda path: SimpleNamespace(frames=4_003, samplerate=RATE)
    reader.read = lambda path, dtype, always_2d: (wave, RATE)
    monkeypatch.setitem(sys.modules, "soundfile", reader)
    (tmp_path / "a.mp3").write_bytes(b"ID3")
    source = source_of(encoder("wav2vec2"), files=str(tmp_path))
    sound = source.reader.sound(0)  # its head names more samples than it has
    assert np.allclose(sound[:4_000], wave.mean(axis=1)) and sound[4_000:].tolist() == [0] * 3
    assert len(of_document(source, 0)[1]) == source.n_positions("test") > 0


@pytest.mark.usefixtures("as_for_users")
def test_settings_that_do_not_suit_the_model_are_refused(encoder, tmp_path):
    save_sounds(tmp_path, [0.2])
    speech, files = encoder("wav2vec2"), str(tmp_path)
    for fields, sentence in (
        ({}, "audio names no sound; give audio.files"),
        ({"files": files, "rate": 8000}, "audio.rate is 8000, and Wav2Vec2Model takes 16000"),
        ({"files": files, "rate": 0}, "audio.rate is 0; it must be 1 or more"),
        ({"files": files, "seconds": -1.0}, "audio.seconds is -1.0; it must be 0 or more"),
        ({"files": files, "seconds": 0.001}, "audio.seconds is 0.001, too short for the model"),
        ({"files": files, "held_out_fraction": -1}, "audio.held_out_fraction is -1; use a"),
        ({"files": f"{files}/none.wav"}, r"audio.files: no file with \.wav, \.flac, .* is at"),
    ):
        with pytest.raises(ValueError, match=sentence):
            source_of(speech, **fields)
    with pytest.raises(ValueError, match=r"audio.seconds is 2, and the model takes at most 1 at"):
        source_of(encoder("whisper"), files=files, seconds=2.0)
    save_pictures(tmp_path, 1)
    with pytest.raises(ValueError, match="ViTModel reads pictures, not sound; give images in"):
        source_of(encoder("vit"), files=files)
    with pytest.raises(ValueError, match="this source is of sounds, not of pictures"):
        source_of(speech, files=files).picture(0)
    site = "feature_projection"
    args = AudioArguments(files=files)
    assert InputSource(args, speech, [site]).sites == [site]
    with pytest.raises(ValueError, match=r"conv_layers.0 have 8 positions in a second, and the"):
        InputSource(args, speech, ["feature_extractor.conv_layers.0"])
