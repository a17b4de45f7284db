"""What does a latent mean, and how certain is it: explanations, scores, controls.

1. `hfsae explain` (runs/stage_explain.py) calls `study.explain`, which reads held-out text once
   (`corpus`: two halves, the activations of some latents), chooses latents with the windows that
   explain and those that test them (`windows`), and writes this plan down.
2. An explainer makes a line of text of each latent's shown windows (`explainers`: a template, a
   judge, people's labels, a file): another explainer, or another prompt of it, is made there.
3. A scorer makes questions of a latent's tested windows and its explanation, and values of the
   answers (`scorers`: another score is another class there; `prompts`: text as data); whoever is
   asked is a judge (`judges`).
4. The same is asked with controls, and a verdict says whether the judge can tell a latent's
   explanation from another's (`verdicts`); `lexical` is the score beside it that needs no judge.
5. The report has scores beside controls, the best, the worst and random latents (`report`), and
   an SAE of re-drawn weights that fire as often may go the same way for comparison (`untrained`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
