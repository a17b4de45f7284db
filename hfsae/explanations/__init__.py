"""What does a latent mean, and how certain is it: explanations, scores, controls.

reading.py      one pass over held-out text: two halves, the activations of some latents
windows.py      windows that explain a latent, windows that test it; which latents
explainers.py   text from windows: a template, people's labels, a file
judges/         who answers questions
prompts.py      what is asked, and what answers mean
scorers/        scores that a judge is asked for, each in a file
asking.py       cases with their controls put to a judge; explanations by a judge
scores.py       how well activations are predicted; controls; intervals over latents
verdicts.py     a judge's scores together: means, failures, can it tell real from shuffled
kept.py         what the pass found, kept while answers are awaited
study.py        all of it in order: read, choose, plan, explain, score
stored.py       names of all other latents, from the examples that `hfsae collect` stored
redrawn.py      the same of an SAE of re-drawn weights that fire as often
report.py       Markdown: scores beside controls, the best, the worst, random latents

Another explainer is a function of `explainers.Material`s, another score a `scorers.Scorer`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
