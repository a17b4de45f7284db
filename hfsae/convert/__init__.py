"""The field's file formats, one a file: `load(folder, source) -> SAE`, `save(sae, folder)`.

| format | files | read | written |
| --- | --- | --- | --- |
| hfsae | config.json, model.safetensors | yes | yes |
| gemma_scope | params.npz | yes | yes |
| gemma_scope_2 | params.safetensors, config.json | yes | yes |
| gemma_scope_2_layers | params_layer_0.safetensors ...: its clt/ and crosscoder/ | yes | yes |
| saelens | cfg.json, sae_weights.safetensors | yes | yes |
| sparsify | sae.safetensors, cfg.json | yes | yes |
| dictionary_learning | ae.pt, config.json | yes | yes |
| crosscoder | model_final.safetensors, config.json (Minder et al.) | yes | no |
| model_diff | cc_weights.safetensors, cfg.json (ckkissane's crosscoders) | yes | no |
| circuit_tracer | layer_0.safetensors ..., config.yaml: a transcoder a layer | yes | yes |
| circuit_tracer_clt | W_enc_0, W_dec_0.safetensors ..., config.yaml | yes | yes |
| openai | one .pt file | yes | yes |

`hfsae.load` recognises a format by the names of files; `hfsae convert` writes another one. Latents
and reconstructions equal those of the format's own code (scripts/interop/parity.sh compares them,
both ways). `load` raises ValueError where files are damaged, hold more than tensors, do not fit
each other, or describe what hfsae lacks; `save` where the format cannot represent the SAE.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
WRITTEN = (
    *("hfsae", "gemma_scope", "gemma_scope_2", "gemma_scope_2_layers", "saelens", "sparsify"),
    *("dictionary_learning", "circuit_tracer", "circuit_tracer_clt", "openai"),
)
"""The formats that are written, too; here, so that a mistyped one is told at once."""
