"""Does a feeling that is injected again turn knowledge into choices? "The echo amplifies the
knowledge" (arXiv:2605.08611): knowledge and echo 80 % good choices, knowledge 52 %, the echo alone
no more than nothing, though it makes ratings of threat follow how alike the place is.

    python scripts/citing/echo.py [--quick] OUT.json

Twelve events that we wrote, each with a place like it and one unlike it (echo_scenes.yaml). Latents
of fear fire on ten sentences of fear more than on ten calm ones, by twice their spread. The echo is
half of their largest activations in an event, added (`hfsae.steer`) where an early site is like the
event (`when`): the cosine with its mean, less that of calm texts, over the like place's median.
Conditions: A neither, B the event as text, C the echo, BC both; and BC with random latents of the
same strengths (3 draws). Told: log-probability of the good choice less that of the bad one, a token
(and the share above 0); the slope of threat, log P(dangerous) less log P(safe) of the like place
less that of the unlike one. Differences with 95 % intervals over events. Formula, strength and
threshold are ours: the paper's are not public to us.
"""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
import yaml
from claim import Run, Subject, activations, mean, subjects, to_file, token_ids
from torch import Tensor

import hfsae

TEXTS = yaml.safe_load((Path(__file__).parent / "echo_scenes.yaml").read_text("utf-8"))
SHARE, EARLY = 0.5, 0.3


@torch.no_grad()
def log_probability(subject: Subject, text: str, continuation: str) -> float:
    """Of a continuation, per token, in nats."""
    ids, n = token_ids(subject, f"{text} {continuation}"), token_ids(subject, text).shape[1]
    out = subject.lm(input_ids=ids, use_cache=False, logits_to_keep=ids.shape[1] - n + 1)
    logs = out.logits[0, :-1].float().log_softmax(-1)
    return float(logs.gather(1, ids[0, n:, None]).mean())


def measured(subject: Subject, scene: Mapping[str, str], knowledge: str, echo) -> dict[str, float]:
    """Choice and threat in a scene, after knowledge; `echo()` is a context for each pass."""

    def preference(text: str, better: str, worse: str) -> float:
        with echo():
            return log_probability(subject, text, better) - log_probability(subject, text, worse)

    like, unlike = (f"{knowledge}Now {scene[key]}." for key in ("like", "unlike"))
    threat = [preference(f"{text} This place is", "dangerous", "safe") for text in (like, unlike)]
    choice = preference(f"{like} I will", scene["good"], scene["bad"])
    return {"choice": choice, "slope": threat[0] - threat[1]}


def of_fear(subject: Subject) -> Tensor:
    """Indices of the latents of fear."""
    with torch.no_grad():
        both = [
            torch.stack([subject.sae.encode(x).amax(0) for x in activations(subject, TEXTS[kind])])
            for kind in ("fear", "calm")
        ]
    spread = torch.cat(both).std(0) / len(both[0]) ** 0.5
    return (both[0].mean(0) - both[1].mean(0) > 2 * spread.clamp(min=1e-6)).nonzero()[:, 0]


def echo_of(subject: Subject, scene: Mapping[str, str], latents: Tensor, seed: int | None):
    """A context in which an event's echo is injected; with a seed through random latents."""
    early = f"layers.{round(EARLY * int(subject.sae.config.site.split('.')[1]))}"
    event = subject.sae.encode(activations(subject, [scene["event"]])[0]).detach()
    strengths = SHARE * event.amax(0)[latents]
    calm = torch.cat(activations(subject, TEXTS["calm"], early)).mean(0)
    direction = activations(subject, [scene["event"]], early)[0].mean(0) - calm

    def likeness(x: Tensor) -> Tensor:
        return torch.cosine_similarity(x - calm, direction, dim=-1)

    limit = likeness(activations(subject, [scene["like"]], early)[0]).median()
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randperm(subject.sae.config.d_sae, generator=generator)[: len(latents)]
    edits = {int(i): float(s) for i, s in zip(latents, strengths, strict=True) if s > 0}
    if not edits:
        return nullcontext
    return lambda: hfsae.steer(
        subject.lm, subject.sae, edits, when={early: lambda x: likeness(x.float()) > limit}
    )


def of_subject(subject: Subject, scenes: list[Mapping[str, str]], n_random: int) -> Run:
    latents, table = of_fear(subject), list[dict[str, dict[str, float]]]()
    for scene in scenes:
        echo, known = echo_of(subject, scene, latents, None), f"{scene['event']} "
        row = {"A": measured(subject, scene, "", nullcontext)}
        row["B"] = measured(subject, scene, known, nullcontext)
        row["C"] = measured(subject, scene, "", echo)
        row["BC"] = measured(subject, scene, known, echo)
        others = [echo_of(subject, scene, latents, seed) for seed in range(n_random)]
        random = [measured(subject, scene, known, other) for other in others]
        row["random"] = {k: sum(r[k] for r in random) / n_random for k in random[0]}
        table.append(row)
    run: Run = {"model": subject.name, "events": len(scenes), "latents": len(latents)}
    for name in ("choice", "slope"):
        values = {kind: [row[kind][name] for row in table] for kind in table[0]}
        run[name] = {kind: mean(own) for kind, own in values.items()}
        above = {kind: mean([float(x > 0) for x in own]) for kind, own in values.items()}
        run |= {"good": above} if name == "choice" else {}
        run[f"{name}, difference"] = {
            f"{a} - {b}": mean([x - y for x, y in zip(values[a], values[b], strict=True)])
            for a, b in (("C", "A"), ("BC", "B"), ("BC", "random"))
        }
    return run


def measure(quick: bool) -> Iterator[Run]:
    for subject in subjects(quick):
        yield of_subject(subject, TEXTS["scenes"][: 2 if quick else None], 1 if quick else 3)


if __name__ == "__main__":
    to_file(__doc__, measure)
