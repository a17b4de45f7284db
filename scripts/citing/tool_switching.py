"""Is the tool that a model calls one direction? "Tool calling is linearly readable and steerable in
language models" (arXiv:2605.07990): to add the difference of two tools' mean activations switches
77 to 100 % of calls, a random vector of that norm none. Its models have 270 million parameters and
more, its tools come with schemas.

    python scripts/citing/tool_switching.py [--quick] OUT.json

Four tools, 13 requests each (tool_requests.yaml). A prompt has one example of each tool, then a
request and "Tool:"; the call is the tool whose first token is the most probable of the four. The
direction is `hfsae.mean_difference` of six requests each, added at the last token at a site; of the
other six, those that are called rightly are switched to each other tool. Told are the share that is
called rightly (chance .25), and the share switched, with 95 % intervals by resampled requests,
beside random vectors of the same norm (5 each; "to": to that same tool) and beside the direction
for another tool. Sites: after a half, two thirds and five sixths of the blocks.
"""

from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
import yaml
from claim import Run, Subject, mean, subjects, to_file, token_ids
from torch import Tensor
from transformers import DynamicCache

import hfsae
from hfsae.evaluation import Interval

REQUESTS = yaml.safe_load((Path(__file__).parent / "tool_requests.yaml").read_text("utf-8"))
TOOLS = [*REQUESTS]
N_RANDOM = 5


def prompt(request: str) -> str:
    shown = [f"Request: {REQUESTS[tool][0]}\nTool: {tool}\n" for tool in TOOLS]
    head = f"Choose the tool for each request: {', '.join(TOOLS)}.\n\n"
    return f"{head}{''.join(shown)}Request: {request}\nTool:"


@torch.no_grad()
def calls(subject: Subject, request: str, site: str, added: Tensor) -> list[int]:
    """The tool that is called, for each of some vectors [k, d] added at the last token."""
    ids = token_ids(subject, prompt(request))

    cache = DynamicCache(config=subject.lm.config)
    past = {hfsae.lm.cache_name(subject.lm): cache, "use_cache": True}
    subject.lm(input_ids=ids[:, :-1], logits_to_keep=1, **past)
    cache.batch_repeat_interleave(len(added))
    with hfsae.patch(subject.lm, {site: lambda x: x + added[:, None].to(x)}):
        logits = subject.lm(input_ids=ids[:, -1:].expand(len(added), 1), **past).logits[:, -1]
    names = [subject.tokenizer(f" {tool}", add_special_tokens=False) for tool in TOOLS]
    return logits[:, [name["input_ids"][0] for name in names]].argmax(-1).tolist()


def share(hits: list[list[float]]) -> Interval | None:
    """Of hits of each request, with the interval by resampled requests."""
    if not hits:
        return None
    return mean([float(np.mean(own)) for own in hits], [float(len(own)) for own in hits])


def of_site(subject: Subject, site: str, n: int) -> Run:
    d, tokenizer = subject.lm.config.hidden_size, subject.tokenizer
    fitted = {tool: [prompt(one) for one in REQUESTS[tool][1 : 1 + n]] for tool in TOOLS}
    first, *others = fitted.values()
    means = [torch.zeros(d)]  # less that of the first tool
    for texts in others:
        means.append(hfsae.mean_difference(subject.lm, site, texts, first, tokenizer=tokenizer))
    generator = torch.Generator().manual_seed(0)
    towards = {}  # for two tools: their direction, then random vectors of its norm
    for a, b in permutations(range(len(TOOLS)), 2):
        own = means[b] - means[a]
        noise = torch.randn(N_RANDOM, d, generator=generator)
        noise *= own.norm() / noise.norm(dim=1, keepdim=True)
        towards[a, b] = torch.cat([own[None], noise])
    hits: dict[str, list[list[float]]] = {
        name: [] for name in ("right", "switched", "random, to", "random, any", "other's, to")
    }
    for i, tool in enumerate(TOOLS):
        others = [j for j in range(len(TOOLS)) if j != i]
        added = torch.cat([torch.zeros(1, d), *(towards[i, j] for j in others)])
        for request in REQUESTS[tool][7 : 7 + n]:
            called, *rest = calls(subject, request, site, added)
            hits["right"].append([float(called == i)])
            if called != i:
                continue
            by_target = np.array(rest).reshape(len(others), -1)
            target = np.array(others)[:, None]
            hits["switched"].append((by_target[:, :1] == target).ravel().tolist())
            hits["random, to"].append((by_target[:, 1:] == target).ravel().tolist())
            hits["random, any"].append((by_target[:, 1:] != i).ravel().tolist())
            rotated = np.roll(target, 1, axis=0)
            hits["other's, to"].append((by_target[:, :1] == rotated).ravel().tolist())
    return {"site": site, **{name: share(own) for name, own in hits.items()}}


def measure(quick: bool) -> Iterator[Run]:
    for subject in subjects(quick):
        depth = subject.lm.config.num_hidden_layers
        sites = [f"layers.{depth * part // 6}" for part in ((3,) if quick else (3, 4, 5))]
        rows = [of_site(subject, site, 2 if quick else 6) for site in sites]
        yield {"model": subject.name, "tools": len(TOOLS), "requests": 24, "rows": rows}


if __name__ == "__main__":
    to_file(__doc__, measure)
