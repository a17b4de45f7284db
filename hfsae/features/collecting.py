"""Fill a FeatureStore from one pass over token batches."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..activations import HarvestArguments, Harvested, Harvester, TokenBatch
from ..activations.cache import lm_digest
from ..activations.token_text import REPLACEMENT, decoded, is_part, token_text
from ..activations.tokens import TextInput, token_rows
from ..io.errors import Refused
from ..lm import check_arguments, contract, model_and_path, tokenizer_of
from ..models import SAE
from ..models.fingerprint import DECODER, decoder_hash
from .arguments import CollectArguments
from .layout import NEAR, nearest_rows, plane
from .logit_lens import FORMULA, LensTokens, last_written, lens_tokens, residual_directions
from .resume import Resume
from .store import COLUMNS, FeatureStore
from .summary import BLOCK_LATENTS, HISTOGRAM_EDGES, LatentStatistics, Windows

if TYPE_CHECKING:
    import pyarrow

logger = logging.getLogger(__name__)


@torch.no_grad()
def collect(
    lm: PreTrainedModel | Mapping[str, PreTrainedModel],
    sae: SAE,
    text: TextInput,
    args: CollectArguments | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    norm_limits: dict[str, float] | None = None,
    harvest: HarvestArguments | None = None,
    progress: Callable[[int], object] | None = None,
    resume: Path | None = None,
) -> FeatureStore:
    """Every latent's firings in a text, the tokens it promotes, the latents most similar to it.

        store = hfsae.collect(lm, sae, ["one document", "another", ...])
        print(hfsae.features.show(store[17]))

    Args:
        lm: of an SAE over several models, those by the names that its sites have.
        text: documents as strings, a `TextArguments`, or rows of tokens from `PackedRows`.
        tokenizer: None: the one that `hfsae.load_lm` loaded with the model.
        norm_limits: the training Harvester's, so that the same outliers are left out here. (Limits
            of other sites, such as a transcoder's target, are ignored.)
        harvest: the training's, whose cache may have these activations already.
        progress: called after each batch with its number of tokens.
        resume: a file that keeps what was collected so far, renewed every minute and removed at the
            end: after a stop the same call goes on from it, with the same result to the bit. A file
            of other weights, text or settings is not used.

    Raises:
        ValueError: no token is left, or the SAE is not for this model or tokenizer
            (`hfsae.lm.contract`).
    """
    lms = dict(lm) if isinstance(lm, Mapping) else {"": lm}
    first = next(iter(lms.values()))
    check_arguments("collect", first, sae)
    tokenizer = tokenizer or tokenizer_of(first)
    _hold(lm, sae, tokenizer)
    args = args or CollectArguments()
    names, harvest = sae.config.reads.names, harvest or HarvestArguments()
    harvester = Harvester(lm, names, harvest, norm_limits=norm_limits)
    sizes = {name: getattr(args, name) for name in ("top", "reservoir", "window", "seed")}
    seen = LatentStatistics(sae.config.d_sae, **sizes, device=sae.W_dec.device)
    limits = harvester.norm_limits
    kept = Resume(resume, "" if resume is None else _key(lms, sae, tokenizer, args, limits))
    batches = kept.rest(token_rows(text, first, sae.config, tokenizer), seen)
    if progress is not None and seen.n_rows:
        progress(sum(part.numel() for part in seen.tokens))
    for batch in batches:
        contract.check_rows(first, sae, batch.input_ids, batch.document)
        _encode_into(seen, sae, batch, harvester(batch))
        kept.save(batch, seen)
        if progress is not None:
            progress(batch.input_ids.numel())
    _check_seen(seen, harvester)
    store = _build_store(sae, *_lens_of(lm, sae), tokenizer, seen, args)
    kept.end()
    return store


def _hold(
    lm: PreTrainedModel | Mapping[str, PreTrainedModel],
    sae: SAE,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    if isinstance(lm, Mapping):
        contract.check_models(lm, sae, tokenizer)
    else:
        contract.check_model(lm, sae, tokenizer)


def _lens_of(
    lm: PreTrainedModel | Mapping[str, PreTrainedModel], sae: SAE
) -> tuple[PreTrainedModel, Float[Tensor, "d_sae d_model"] | None]:
    """The model that the SAE writes into last, and its rows as they reach the residual stream."""
    site, rows = last_written(sae)
    if not isinstance(lm, Mapping):
        return lm, residual_directions(lm, rows, site)
    name, place = model_and_path(site, lm)
    return lm[name], residual_directions(lm[name], rows, place)


def _check_seen(seen: LatentStatistics, harvester: Harvester) -> None:
    """Refuse a summary of no tokens, and log a summary without firings."""
    if not seen.n_tokens:
        raise Refused(
            f"no token is left to collect from: {harvester.dropped_special} are special or "
            f"padding, {harvester.dropped_outliers} above norm_limits; give more or other text"
        )
    warn_of_silence(seen, "tokens")


def warn_of_silence(seen: LatentStatistics, units: str) -> None:
    """Log a summary without firings; `units`: the plural of what was read."""
    if not seen.histogram.any():
        logger.warning(
            "no latent fired on any of the %s %s: the feature store has no examples; lower "
            "the thresholds or the sparsity, or train longer",
            f"{seen.n_tokens:,}",
            units,
        )


def _key(
    lms: Mapping[str, PreTrainedModel],
    sae: SAE,
    tokenizer: PreTrainedTokenizerBase,
    args: CollectArguments,
    limits: dict[str, float],
) -> str:
    """A hash of what a summary follows from, its rows of tokens left out."""
    models = [*lms.values()]
    terms: list[object] = [[lm_digest(lm), contract.terms(lm, tokenizer, "")] for lm in models]
    terms += [asdict(args), limits]
    terms += [module.config.to_dict() for module in (*models, sae)]
    terms += [str(module.device) for module in (*models, sae)]
    digest = sha256(json.dumps(terms, sort_keys=True, default=str).encode())
    for weight in sae.state_dict().values():
        digest.update(weight.cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _encode_into(seen: LatentStatistics, sae: SAE, batch: TokenBatch, harvested: Harvested) -> None:
    x = sae.config.reads.joined(harvested.activations)
    n_rows, context = batch.input_ids.shape
    step = max(1, BLOCK_LATENTS // (context * sae.config.d_sae))
    for first in range(0, n_rows, step):
        inside = (harvested.row >= first) & (harvested.row < first + step)
        latents = sae.encode(x[inside.to(x.device)].to(sae.W_dec))
        row = (harvested.row[inside] - first).to(latents.device)
        position = harvested.position[inside].to(latents.device)
        seen.add_block_(
            latents, row, position, TokenBatch(*(b[first : first + step] for b in batch))
        )


def _build_store(
    sae: SAE,
    lm: PreTrainedModel,
    directions: Float[Tensor, "d_sae d_model"] | None,
    tokenizer: PreTrainedTokenizerBase,
    seen: LatentStatistics,
    args: CollectArguments,
) -> FeatureStore:
    import pyarrow.dataset

    n_vocab = len(tokenizer)
    lens = None if directions is None else lens_tokens(lm, directions, args.lens_tokens, n_vocab)
    context_size = seen.tokens[0].shape[1]
    sizes = {"n_tokens": seen.n_tokens, "n_rows": seen.n_rows, "context_size": context_size}
    why = FORMULA if lens else "none: the site does not write to the residual stream"
    meta = description(sae, args, sizes, logit_lens=why, columns=COLUMNS)
    latents = latents_table(sae, seen, args, lens, partial(token_text, tokenizer))
    examples = pyarrow.dataset.dataset(_examples_table(tokenizer, seen, args))
    return FeatureStore(latents=latents, examples=examples, meta=meta)


def description(
    sae: SAE,
    args: CollectArguments,
    sizes: Mapping[str, int],
    *,
    logit_lens: str,
    columns: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    """A store's meta.json: its origin, and the meaning of its columns."""
    places = ("model_name", "model_revision", "site", "target_site", "d_sae")
    lists = ("sites", "target_sites", "model_names")
    several = {name: of for name in lists if (of := getattr(sae.config, name, None))}
    return {
        **{name: getattr(sae.config, name) for name in places},
        **several,
        DECODER: decoder_hash(sae.W_dec),
        **sizes,
        "arguments": asdict(args),
        "histogram_edges": HISTOGRAM_EDGES.tolist(),
        "logit_lens": logit_lens,
        "columns": columns,
    }


def latents_table(
    sae: SAE,
    seen: LatentStatistics,
    args: CollectArguments,
    lens: LensTokens | None,
    text: Callable[[int], str],
) -> "pyarrow.Table":
    """The table of latents. `text` spells the tokens of the lens, if there is one."""
    import pyarrow as pa

    n_firings = seen.histogram.sum(1)  # [d_sae]
    rows, n_near = sae.W_dec.detach().float(), args.neighbours
    neighbours, cosines = nearest_rows(rows, max(n_near, NEAR))
    places = plane(rows, neighbours[:, :NEAR], cosines[:, :NEAR], seed=args.seed)
    lens = lens or LensTokens.none(len(n_firings))
    columns = {
        "latent": torch.arange(len(n_firings), dtype=torch.int32).numpy(),
        "density": (n_firings.double() / seen.n_tokens).cpu().numpy(),
        "n_firings": n_firings.cpu().numpy(),
        "max_activation": seen.top.peak[:, 0].cpu().numpy(),
        "mean_activation": (seen.sum / n_firings.clamp(min=1)).cpu().numpy(),
        "histogram": lists(seen.histogram.cpu().numpy()),
        "promoted_tokens": lists(lens.promoted.numpy(), text=text),
        "promoted_logits": lists(lens.promoted_logits.numpy()),
        "suppressed_tokens": lists(lens.suppressed.numpy(), text=text),
        "suppressed_logits": lists(lens.suppressed_logits.numpy()),
        "neighbours": lists(neighbours[:, :n_near].int().cpu().numpy()),
        "neighbour_cosines": lists(cosines[:, :n_near].cpu().numpy()),
        "map_x": places[:, 0].numpy(),
        "map_y": places[:, 1].numpy(),
    }
    return pa.table(columns)


def _examples_table(
    tokenizer: PreTrainedTokenizerBase, seen: LatentStatistics, args: CollectArguments
) -> "pyarrow.Table":
    import pyarrow as pa

    ranked, row, position, around = ranked_examples(seen, args)
    tokens, documents = torch.cat(seen.tokens).numpy(), torch.cat(seen.documents).numpy()
    context = tokens.shape[1]
    at = position[:, None] + np.arange(-args.window, args.window + 1)  # [examples, width]
    inside = (at >= 0) & (at < context)
    ids = tokens[row[:, None], at.clip(0, context - 1)]
    columns = {
        **{name: ranked[name] for name in ("latent", "kind", "rank")},
        "document": documents[row, position],
        "row": row,
        "position": position,
        "activation": ranked["activation"],
        "firing": np.minimum(position, args.window),
        "tokens": window_texts(tokenizer, ids, inside, position.clip(max=args.window)),
        "token_ids": lists(ids, inside),
        "activations": lists(around, inside),
    }
    return pa.table(columns)


class Ranked(NamedTuple):
    """Examples by latent and kind, largest activation first."""

    columns: dict[str, np.ndarray]
    """"latent", "kind", "rank" and "activation" of each"""
    row: np.ndarray
    position: np.ndarray
    around: np.ndarray
    """[examples, width] see Windows"""


def ranked_examples(seen: LatentStatistics, args: CollectArguments) -> Ranked:
    """The strongest rows of each latent, and some of each group of its sample."""
    latent, kind, _, peak, row, position, around = _examples(seen, args)
    kinds = np.array(["top", *(f"quantile_{q}" for q in range(args.quantiles, 0, -1))])
    _, first, size = np.unique(latent * len(kinds) + kind, return_index=True, return_counts=True)
    rank = (np.arange(len(latent)) - np.repeat(first, size)).astype(np.int32)
    columns = {"latent": latent.astype(np.int32), "kind": kinds[kind], "rank": rank}
    return Ranked({**columns, "activation": peak}, row, position, around)


def _examples(seen: LatentStatistics, args: CollectArguments) -> list[np.ndarray]:
    """Latent, kind and the fields of Windows of each example; kind 0: top, 1: strongest group."""
    groups = quantile_groups(seen.sample, seen.top, args.quantiles)
    selections = [(seen.top.key > -torch.inf, seen.top)]
    for quantile in reversed(range(args.quantiles)):
        members = groups == quantile
        # The sample stands in the order of its random keys: its first members are random ones.
        selections.append((members & (members.cumsum(1) <= args.per_quantile), seen.sample))
    parts = []
    for kind, (mask, windows) in enumerate(selections):
        latent, slot = mask.nonzero(as_tuple=True)
        fields = [field[latent, slot] for field in windows]
        parts.append([latent, torch.full_like(latent, kind), *fields])
    columns = [torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True)]
    latent, kind, _, peak = columns[:4]
    order = np.lexsort((-peak, kind, latent))
    return [column[order] for column in columns]


def quantile_groups(sample: Windows, top: Windows, n_groups: int) -> Int[Tensor, "d_sae k"]:
    """Group of each sampled row, 0 the weakest; -1 for no row and for top examples."""
    filled = sample.key > -torch.inf
    rank = sample.peak.masked_fill(~filled, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
    group = rank * n_groups // filled.sum(1, keepdim=True).clamp(min=1)
    in_top = (sample.row[:, :, None] == top.row[:, None, :]).any(2)
    return group.masked_fill(~filled | in_top, -1)


def lists(
    values: np.ndarray,
    keep: np.ndarray | None = None,
    *,
    text: Callable[[int], str] | None = None,
) -> "pyarrow.ListArray":
    """A list for each row of a matrix; with `text`, values become the texts that it gives."""
    import pyarrow as pa

    keep = np.ones(values.shape, dtype=bool) if keep is None else keep
    offsets = np.concatenate([[0], keep.sum(1).cumsum()]).astype(np.int32)
    flat = pa.array(values[keep])
    if text is not None:
        ids, inverse = np.unique(values[keep], return_inverse=True)
        texts = [text(int(i)) for i in ids]
        flat = pa.array(texts, pa.string()).take(pa.array(inverse))
    return pa.ListArray.from_arrays(offsets, flat)


def window_texts(
    tokenizer: PreTrainedTokenizerBase, ids: np.ndarray, inside: np.ndarray, firing: np.ndarray
) -> "pyarrow.ListArray":
    """The texts of windows of tokens, [windows, width], a list each, that join to readable text.

    A character that several tokens spell has its text at the firing token, if that is one of
    them, else at the first; the others get none.
    """
    import pyarrow as pa

    distinct, inverse = np.unique(ids, return_inverse=True)
    texts = np.array([token_text(tokenizer, int(i)) for i in distinct], dtype=object)[inverse]
    parts = np.array([is_part(tokenizer, int(i)) for i in distinct], dtype=bool)[inverse]
    texts, parts = texts.reshape(ids.shape), parts.reshape(ids.shape) & inside
    first = inside.argmax(1)  # firing tokens are counted from a window's first one
    for window in np.flatnonzero(parts.any(1)):
        at_firing = first[window] + firing[window]
        for start, stop, text in _characters(tokenizer, ids[window], parts[window]):
            texts[window, start:stop] = ""
            texts[window, at_firing if start <= at_firing < stop else start] = text
    offsets = np.concatenate([[0], inside.sum(1).cumsum()]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(texts[inside].tolist(), pa.string()))


def _characters(
    tokenizer: PreTrainedTokenizerBase, ids: np.ndarray, parts: np.ndarray
) -> Iterator[tuple[int, int, str]]:
    """(start, stop, text) of the shortest runs of parts that spell something whole."""
    start = 0
    while start < len(ids):
        run = range(start + 1, len(ids) + 1) if parts[start] else []
        spelt = ((stop, decoded(tokenizer, ids[start:stop].tolist())) for stop in run)
        stop, text = next(
            ((stop, t) for stop, t in spelt if parts[start:stop].all() and REPLACEMENT not in t),
            (start + 1, REPLACEMENT),  # the window begins or ends within the character
        )
        if parts[start]:
            yield start, stop, text
        start = stop
