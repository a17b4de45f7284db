"""Write the SAELens fixtures, with SAELens' own code. Needs the saelens environment.

PYTHONHASHSEED=0 FOLDER/saelens/bin/python scripts/interop/write_fixtures_saelens.py OUT
writes OUT/saelens/NAME/. Names that start with `refuse_` have no expected.safetensors: they are
SAEs that cannot be held exactly.
"""

import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sae_lens
import torch
from fixture import D_IN, D_OUT, D_SAE, fill, fresh, inputs, value, write
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.temporal_sae import TemporalSAE, TemporalSAEConfig
from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening
from safetensors.torch import load_file, save_file
from torch import Tensor

SIZE = {"d_in": D_IN, "d_sae": D_SAE}
CLASSES = {
    "standard": sae_lens.StandardSAE,
    "gated": sae_lens.GatedSAE,
    "jumprelu": sae_lens.JumpReLUSAE,
    "topk": sae_lens.TopKSAE,
    "transcoder": sae_lens.Transcoder,
    "skip_transcoder": sae_lens.SkipTranscoder,
    "jumprelu_transcoder": sae_lens.JumpReLUTranscoder,
    "jumprelu_skip_transcoder": sae_lens.JumpReLUSkipTranscoder,
    "abstopk": sae_lens.AbsTopKSAE,
    "matching_pursuit": sae_lens.MatchingPursuitSAE,
}
CONFIGS = {
    "standard": sae_lens.StandardSAEConfig,
    "gated": sae_lens.GatedSAEConfig,
    "jumprelu": sae_lens.JumpReLUSAEConfig,
    "topk": sae_lens.TopKSAEConfig,
    "transcoder": sae_lens.TranscoderConfig,
    "skip_transcoder": sae_lens.SkipTranscoderConfig,
    "jumprelu_transcoder": sae_lens.JumpReLUTranscoderConfig,
    "jumprelu_skip_transcoder": sae_lens.JumpReLUSkipTranscoderConfig,
    "abstopk": sae_lens.AbsTopKSAEConfig,
    "matching_pursuit": sae_lens.MatchingPursuitSAEConfig,
}
TRAINERS = {
    "standard": (sae_lens.StandardTrainingSAE, sae_lens.StandardTrainingSAEConfig),
    "gated": (sae_lens.GatedTrainingSAE, sae_lens.GatedTrainingSAEConfig),
    "jumprelu": (sae_lens.JumpReLUTrainingSAE, sae_lens.JumpReLUTrainingSAEConfig),
    "topk": (sae_lens.TopKTrainingSAE, sae_lens.TopKTrainingSAEConfig),
    "batchtopk": (sae_lens.BatchTopKTrainingSAE, sae_lens.BatchTopKTrainingSAEConfig),
    "matryoshka_batchtopk": (
        sae_lens.MatryoshkaBatchTopKTrainingSAE,
        sae_lens.MatryoshkaBatchTopKTrainingSAEConfig,
    ),
}
SCALE = 0.6180339887


def metadata(hook: str = "blocks.1.hook_resid_post", **more: Any) -> SAEMetadata:
    """What the training runner writes about the model."""
    return SAEMetadata(
        model_name="gpt2",
        hook_name=hook,
        hook_head_index=None,
        context_size=128,
        prepend_bos=True,
        seqpos_slice=[None],
        model_from_pretrained_kwargs={},
        **more,
    )


def computed(sae: Any, x: Tensor, heads: int | None = None) -> tuple[Tensor, Tensor]:
    """The latents and the reconstruction, flattened where the SAE works on heads."""
    shaped = x if heads is None else x.unflatten(-1, (heads, -1))
    with torch.no_grad():
        latents, recon = sae.encode(shaped), sae(shaped)
    return latents, recon if heads is None else recon.flatten(-2)


def check(folder: Path, name: str, heads: int | None = None, **load: Any) -> None:
    """Load an inference folder as a user does and write what it computes."""
    x = inputs(name)
    write(folder, x, *computed(sae_lens.SAE.load_from_disk(folder, **load), x, heads))


def saved(out: Path, name: str, architecture: str, **config: Any) -> Path:
    """An inference SAE, saved by SAELens."""
    config.setdefault("metadata", metadata())
    folder = fresh(out / name)
    sae = CLASSES[architecture](CONFIGS[architecture](**SIZE, **config))
    fill(name, sae)
    sae.save_model(folder)
    return folder


def trainer(name: str, architecture: str, **config: Any) -> Any:
    """A training SAE with distinctive numbers."""
    sae_class, config_class = TRAINERS[architecture]
    sae = sae_class(config_class(**SIZE, metadata=metadata(), **config))
    fill(name, sae)
    if "batchtopk" in architecture:
        sae.topk_threshold.fill_(0.83)
    return sae


def trained(out: Path, name: str, architecture: str, **config: Any) -> None:
    """A training SAE, saved for inference as at the end of a SAELens run."""
    folder = fresh(out / name)
    trainer(name, architecture, **config).save_inference_model(folder)
    check(folder, name)


def checkpoint(
    out: Path,
    name: str,
    architecture: str,
    scaler: Callable[[str], ActivationScaler] | None = None,
    change: Callable[[Path], None] | None = None,
    **config: Any,
) -> None:
    """A checkpoint as SAELens saves it during a run.

    Expected are the numbers of the inference SAE that SAELens makes of it, with the input scale
    folded as at the end of a run. BatchTopK's own encoding, over the whole batch, comes along.
    """
    folder = fresh(out / name)
    trainer(name, architecture, **config).save_model(folder)
    if change:
        change(folder)
    sae = sae_lens.TrainingSAE.load_from_disk(folder)
    x = inputs(name)
    more = {}
    if scaler is None:
        latents, recon = computed(sae, x)
        if "batchtopk" in architecture:
            more = {"latents_batch": latents, "recon_batch": recon}
    else:
        made = scaler(name)
        made.save(str(folder / "activation_scaler.json"))
        if made.scaling_factor is not None:
            sae.fold_activation_norm_scaling_factor(made.scaling_factor)
        if made.whitening is not None:
            sae.fold_activation_whitening(
                made.whitening.mean, made.whitening.matrix, made.whitening.inverse_matrix
            )
    with tempfile.TemporaryDirectory() as temporary:
        sae.save_inference_model(temporary)
        found = computed(sae_lens.SAE.load_from_disk(temporary), x)
    if scaler is None and "batchtopk" not in architecture:
        torch.testing.assert_close(found, (latents, recon))
    write(folder, x, *found, **more)


def scaled(name: str) -> ActivationScaler:
    """The scale that SAELens estimates for `expected_average_only_in`."""
    made = ActivationScaler()
    made.scaling_factor = SCALE
    return made


def whitened(name: str) -> ActivationScaler:
    """The whitening that SAELens estimates for `covariance_whitening`."""
    made = ActivationScaler()
    matrix = torch.eye(D_IN, dtype=torch.float64) + value(name, "whitening", (D_IN, D_IN)).double()
    made.whitening = ActivationWhitening(
        mean=value(name, "mean", (D_IN,)).double(), matrix=matrix, inverse_matrix=matrix.inverse()
    )
    return made


def log_threshold(folder: Path) -> None:
    """Turn a JumpReLU checkpoint into one of the versions that trained the logarithm."""
    path = folder / "sae_weights.safetensors"
    tensors = load_file(path)
    tensors["log_threshold"] = tensors.pop("threshold").log()
    save_file(tensors, path)


def older(
    out: Path, name: str, architecture: str, changes: dict[str, Any], heads: int | None = None
) -> None:
    """The weights of an inference SAE beside the flat cfg.json of a version before 6.

    In `changes`, "without" names keys to leave out and "tensors" adds to the weights.
    """
    config: dict[str, Any] = {
        "architecture": architecture,
        **SIZE,
        "activation_fn_str": "relu",
        "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False,
        "context_size": 128,
        "model_name": "gpt2-small",
        "hook_name": "blocks.1.hook_resid_pre",
        "hook_layer": 1,
        "hook_head_index": None,
        "prepend_bos": True,
        "dataset_path": "Skylion007/openwebtext",
        "dataset_trust_remote_code": True,
        "normalize_activations": "none",
        "dtype": "torch.float32",
        "device": "cpu",
        "sae_lens_training_version": "3.11.0",
        "activation_fn_kwargs": {},
        "neuronpedia_id": None,
        "model_from_pretrained_kwargs": {},
        "seqpos_slice": [None],
    }
    changes = dict(changes)
    add = changes.pop("tensors", {})
    gone = changes.pop("without", ())
    config |= changes
    for key in gone:
        del config[key]
    folder = fresh(out / name)
    made = CONFIGS[architecture](**SIZE)
    sae = CLASSES[architecture](made)
    fill(name, sae)
    weights = {key: tensor.contiguous() for key, tensor in sae.state_dict().items()}
    save_file(weights | add, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    if not name.startswith("refuse_"):
        check(folder, name, heads)


def main() -> None:
    """Write them all."""
    warnings.simplefilter("ignore")
    out = Path(sys.argv[1]) / "saelens"
    for step in (write_saes, write_transcoders, write_trained, write_older, write_refused):
        step(out)


def write_saes(out: Path) -> None:
    for architecture, config in (
        ("standard", {}),
        ("gated", {}),
        ("jumprelu", {}),
        ("topk", {"k": 5}),
    ):
        variants: dict[str, dict[str, Any]] = {
            "": {},
            "_no_b_dec_to_input": {"apply_b_dec_to_input": False},
            "_layer_norm": {"normalize_activations": "layer_norm"},
        }
        if architecture == "standard":
            for tag in ("constant_norm_rescale", "expected_average_only_in"):
                variants["_" + tag] = {"normalize_activations": tag}
        for tag, more in variants.items():
            name = architecture + tag
            check(saved(out, name, architecture, **config, **more), name)
    for architecture in ("standard", "jumprelu"):
        name = architecture + "_hook_z"
        hook = metadata("blocks.1.attn.hook_z")
        more = {"reshape_activations": "hook_z", "metadata": hook}
        check(saved(out, name, architecture, **more), name, heads=3)
    name = "topk_rescale_acts_by_decoder_norm"
    check(saved(out, name, "topk", k=5, rescale_acts_by_decoder_norm=True), name)
    name = "topk_wide"  # k above what is positive: the ReLU after top-k matters
    check(saved(out, name, "topk", k=20), name)
    name = "standard_bfloat16"
    check(saved(out, name, "standard", dtype="bfloat16"), name, dtype="float32")
    name = "jumprelu_negative_threshold"
    folder = fresh(out / name)
    sae = sae_lens.JumpReLUSAE(sae_lens.JumpReLUSAEConfig(**SIZE, metadata=metadata()))
    fill(name, sae)
    with torch.no_grad():
        sae.threshold[::2] -= 1
    sae.save_model(folder)
    check(folder, name)


def write_transcoders(out: Path) -> None:
    output = metadata(
        "blocks.1.hook_mlp_in", hook_name_out="blocks.1.hook_mlp_out", hook_head_index_out=None
    )
    for architecture in (
        "transcoder",
        "skip_transcoder",
        "jumprelu_transcoder",
        "jumprelu_skip_transcoder",
    ):
        more = {"d_out": D_OUT, "apply_b_dec_to_input": False, "metadata": output}
        check(saved(out, architecture, architecture, **more), architecture)
    name = "skip_transcoder_layer_norm"  # normalised on the way in, not out; the skip takes raw x
    more |= {"normalize_activations": "layer_norm"}
    check(saved(out, name, "skip_transcoder", **more), name)


def write_trained(out: Path) -> None:
    widths = {"matryoshka_widths": [6, 12, D_SAE]}
    for tag, architecture, config in (
        ("standard", "standard", {}),
        ("gated", "gated", {}),
        ("jumprelu", "jumprelu", {}),
        ("topk", "topk", {"k": 5}),
        ("topk_no_rescale", "topk", {"k": 5, "rescale_acts_by_decoder_norm": False}),
        ("batchtopk", "batchtopk", {"k": 4.5}),
        ("batchtopk_no_rescale", "batchtopk", {"k": 5, "rescale_acts_by_decoder_norm": False}),
        ("matryoshka_batchtopk", "matryoshka_batchtopk", {"k": 5, **widths}),
    ):
        trained(out, f"trained_{tag}", architecture, **config)
        if tag != "topk_no_rescale":
            checkpoint(out, f"checkpoint_{tag}", architecture, **config)
        more = {"normalize_activations": "expected_average_only_in"}
        if tag in ("standard", "jumprelu", "topk", "batchtopk", "batchtopk_no_rescale"):
            checkpoint(out, f"checkpoint_{tag}_scaled", architecture, scaled, **config, **more)
    checkpoint(out, "checkpoint_jumprelu_log_threshold", "jumprelu", change=log_threshold)
    more = {"normalize_activations": "covariance_whitening"}
    checkpoint(out, "checkpoint_standard_whitened", "standard", whitened, **more)
    more["apply_b_dec_to_input"] = False
    checkpoint(out, "checkpoint_gated_whitened", "gated", whitened, **more)


def write_older(out: Path) -> None:
    for architecture in ("standard", "gated", "jumprelu"):
        older(out, f"older_{architecture}", architecture, {})
    kwargs = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}}
    older(out, "older_topk", "topk", {**kwargs, "architecture": "standard"})
    older(out, "older_normalize_true", "standard", {"normalize_activations": True})
    older(out, "older_hook_z", "standard", {"hook_name": "blocks.1.attn.hook_z"}, heads=3)
    keep = {
        "hook_point": "blocks.1.hook_resid_pre",
        "hook_point_layer": 1,
        "hook_point_head_index": None,
        "normalize_activations": False,
        "use_ghost_grads": False,
        "tensors": {"scaling_factor": torch.ones(D_SAE)},
        "without": (
            "architecture",
            "activation_fn_str",
            "activation_fn_kwargs",
            "apply_b_dec_to_input",
            "finetuning_scaling_factor",
            "hook_name",
            "hook_layer",
            "hook_head_index",
            "sae_lens_training_version",
            "neuronpedia_id",
            "model_from_pretrained_kwargs",
        ),
    }
    older(out, "older_hook_point", "standard", keep)


def write_refused(out: Path) -> None:
    factor = {"scaling_factor": 1 + value("refuse", "threshold", (D_SAE,))}
    changes = {"finetuning_scaling_factor": True, "tensors": factor}
    older(out, "refuse_finetuning_scaling_factor", "standard", changes)
    saved(out, "refuse_abstopk", "abstopk", k=5)
    saved(out, "refuse_matching_pursuit", "matching_pursuit")
    torch.manual_seed(0)
    temporal = TemporalSAE(TemporalSAEConfig(**SIZE, n_heads=2, bottleneck_factor=2, kval_topk=5))
    temporal.save_model(fresh(out / "refuse_temporal"))
    whitening = {"normalize_activations": "covariance_whitening"}
    saved(out, "refuse_covariance_whitening", "standard", **whitening)


if __name__ == "__main__":
    main()
