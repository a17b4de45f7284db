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
both ways); an SAE that a format cannot represent is refused.
"""

from .build import to_jumprelu as to_jumprelu
from .formats import FORMATS as FORMATS
from .formats import WRITTEN as WRITTEN
from .formats import load_folder as load_folder
from .formats import save_as as save_as
from .formats import save_set_as as save_set_as
