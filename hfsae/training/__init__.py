"""One stream of activations, one or several SAEs, on one or several processes.

`hfsae train` puts these parts together from a recipe; by hand:

```python
import hfsae
from hfsae.activations import Harvester, HarvestArguments, TextSource
from hfsae.activations import ShuffleArguments, ShuffledActivations
from hfsae.training import Trainer, TrainingArguments

lm, tokenizer, _ = hfsae.load_lm("HuggingFaceTB/SmolLM2-135M-Instruct", dtype="bfloat16")
text = hfsae.TextArguments(
    dataset=["Any text will do. " * 40, "A second document. " * 40], held_out_fraction=0.0
)
rows = hfsae.PackedRows(tokenizer, text, "train", rows=2, epochs=None)
source = TextSource(rows, Harvester(lm, ["layers.3"], HarvestArguments()))
stream = ShuffledActivations(source, ShuffleArguments(bucket_tokens=256), batch_size=64)
config = hfsae.JumpReLUSAEConfig(
    d_in=576, d_sae=1024, site="layers.3", target_l0=20, bandwidth=0.03, log_threshold=False
)
args = TrainingArguments(
    output_dir="runs/by-hand", n_tokens=512, batch_size=64, warm_start_steps=0.5
)
trained = Trainer(hfsae.JumpReLUSAE(config), stream, args).train()
```

Given one SAE, `train` returns one; given {name: SAE}, it returns that.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
