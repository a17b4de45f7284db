"""Fill a FeatureStore from one pass over token batches."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..activations import HarvestArguments, Harvested, Harvester, TokenBatch
from ..activations.harvest import lm_digest
from ..activations.token_text import REPLACEMENT, decoded, is_part, token_text
from ..activations.tokens import TextInput, token_rows
from ..io.errors import Damaged, Refused
from ..io.files import read_tensors, write_tensors
from ..lm import check_arguments, contract, model_and_path, tokenizer_of
from ..models import SAE
from ..models.fingerprint import DECODER, decoder_hash
from .arguments import CollectArguments
from .layout import NEAR, nearest_rows, plane
from .logit_lens import FORMULA, LensTokens, last_written, lens_tokens, residual_directions
from .store import COLUMNS, FeatureStore
from .summary import BLOCK_LATENTS, HISTOGRAM_EDGES, LatentStatistics

if TYPE_CHECKING:
    import pyarrow

logger = logging.getLogger(__name__)
_EVERY_SECONDS = 60.0  # the file of an unfinished collection is renewed
_KEY, _ROWS = "key", "rows_sha256"


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
    import pyarrow.dataset

    lms = dict(lm) if isinstance(lm, Mapping) else {"": lm}
    first = next(iter(lms.values()))
    check_arguments("collect", first, sae)
    tokenizer = tokenizer or tokenizer_of(first)
    if isinstance(lm, Mapping):
        contract.check_models(lm, sae, tokenizer)
    else:
        contract.check_model(lm, sae, tokenizer)
    args, harvest = args or CollectArguments(), harvest or HarvestArguments()
    harvester = Harvester(lm, sae.config.reads.names, harvest, norm_limits=norm_limits)
    sizes = {name: getattr(args, name) for name in ("top", "reservoir", "window", "seed")}
    seen = LatentStatistics(sae.config.d_sae, **sizes, device=sae.W_dec.device)
    limits = harvester.norm_limits
    kept = Checkpoint(resume, "" if resume is None else _key(lms, sae, tokenizer, args, limits))
    batches = kept.rest(token_rows(text, first, sae.config, tokenizer), seen)
    if progress is not None and seen.n_rows:
        progress(sum(part.numel() for part in seen.tokens))
    for batch in batches:
        contract.check_rows(first, sae, batch.input_ids, batch.document)
        _add_latents(seen, sae, batch, harvester(batch))
        kept.save(batch, seen)
        if progress is not None:
            progress(batch.input_ids.numel())
    if not seen.n_tokens:
        raise Refused(
            f"no token is left to collect from: {harvester.dropped_special} are special or "
            f"padding, {harvester.dropped_outliers} above norm_limits; give more or other text"
        )
    warn_of_silence(seen, "tokens")
    site, rows = last_written(sae)  # its model, and the rows as they reach the residual stream
    name, place = model_and_path(site, lm) if isinstance(lm, Mapping) else ("", site)
    lens, directions = None, residual_directions(lms[name], rows, place)
    if directions is not None:
        lens = lens_tokens(lms[name], directions, args.lens_tokens, len(tokenizer))
    why = FORMULA if lens else "none: the site does not write to the residual stream"
    context_size = seen.tokens[0].shape[1]
    sizes = {"n_tokens": seen.n_tokens, "n_rows": seen.n_rows, "context_size": context_size}
    store = FeatureStore(
        latents=latents_table(sae, seen, args, lens, partial(token_text, tokenizer)),
        examples=pyarrow.dataset.dataset(_examples_table(tokenizer, seen, args)),
        meta=description(sae, args, sizes, logit_lens=why, columns=COLUMNS),
    )
    kept.end()
    return store


def _add_latents(seen: LatentStatistics, sae: SAE, batch: TokenBatch, harvested: Harvested) -> None:
    """Encode a batch block by block; a function, so that its activations are free afterwards."""
    x = sae.config.reads.joined(harvested.activations)
    n_rows, context = batch.input_ids.shape
    step = max(1, BLOCK_LATENTS // (context * sae.config.d_sae))
    for first in range(0, n_rows, step):
        # indices and not the mask itself, whose length a GPU would be asked for three times
        inside = ((harvested.row >= first) & (harvested.row < first + step)).nonzero()[:, 0]
        latents = sae.encode(x[inside.to(x.device)].to(sae.W_dec))
        row = (harvested.row[inside] - first).to(latents.device)
        position = harvested.position[inside].to(latents.device)
        block = TokenBatch(*(field[first : first + step] for field in batch))
        seen.add_block_(latents, row, position, block)


def warn_of_silence(seen: LatentStatistics, units: str) -> None:
    """Log a summary without firings; `units`: the plural of what was read."""
    if not seen.histogram.any():
        logger.warning(
            "no latent fired on any of the %s %s: the feature store has no examples; lower "
            "the thresholds or the sparsity, or train longer",
            f"{seen.n_tokens:,}",
            units,
        )


class Checkpoint:
    """The summary of an unfinished collection in a file: written every minute, and read back for
    the same rows and settings.

    Args:
        path: None: nothing is written or read.
        key: identifies what the summary follows from beside the rows.
    """

    def __init__(self, path: Path | None, key: str):
        self._path, self._key = path, key
        self._digest = sha256()
        self._saved_at = time.monotonic()

    def rest(self, rows: Iterable[TokenBatch], seen: LatentStatistics) -> Iterable[TokenBatch]:
        """The rows that an empty summary still has to see, after it got the file's.

        The file serves if it has this key, and the rows begin with those that it was made from.
        """
        tensors, about = {}, {}
        if self._path is not None and self._path.is_file():
            with suppress(Damaged):  # it saves time, and is made again
                tensors, about = read_tensors(self._path)
        n_rows = len(tensors["tokens"]) if about.get(_KEY) == self._key else 0
        batches, first = iter(rows), list[TokenBatch]()
        while sum(len(batch.input_ids) for batch in first) < n_rows:
            if (batch := next(batches, None)) is None:
                break
            first.append(batch)
            self._note(batch)
        if n_rows and self._digest.hexdigest() == about[_ROWS]:
            seen.load_state_(tensors)
            logger.info("collecting goes on after %d rows of text", n_rows)
            return batches
        self._digest = sha256()
        return chain(first, batches)

    def save(self, batch: TokenBatch, seen: LatentStatistics) -> None:
        """Note the batch that was added last, and write the file if it is a minute old."""
        if self._path is None:
            return
        self._note(batch)
        if time.monotonic() - self._saved_at < _EVERY_SECONDS:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        about = {_KEY: self._key, _ROWS: self._digest.hexdigest()}
        write_tensors(self._path, seen.state(), about)
        self._saved_at = time.monotonic()

    def end(self) -> None:
        """Remove the file."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _note(self, batch: TokenBatch) -> None:
        for part in batch:
            self._digest.update(part.cpu().numpy().tobytes())


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
    no_ids, no_logits = torch.zeros(len(rows), 0, dtype=torch.long), torch.zeros(len(rows), 0)
    promoted, most, suppressed, least = lens or (no_ids, no_logits, no_ids, no_logits)
    columns = {
        "latent": torch.arange(len(n_firings), dtype=torch.int32).numpy(),
        "density": (n_firings.double() / seen.n_tokens).cpu().numpy(),
        "n_firings": n_firings.cpu().numpy(),
        "max_activation": seen.top.peak[:, 0].cpu().numpy(),
        "mean_activation": (seen.sum / n_firings.clamp(min=1)).cpu().numpy(),
        "histogram": lists(seen.histogram.cpu().numpy()),
        "promoted_tokens": lists(promoted.numpy(), text=text),
        "promoted_logits": lists(most.numpy()),
        "suppressed_tokens": lists(suppressed.numpy(), text=text),
        "suppressed_logits": lists(least.numpy()),
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


def ranked_examples(
    seen: LatentStatistics, args: CollectArguments
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """The strongest rows of each latent, and some of each group of its sample, by latent and kind,
    largest activation first: their columns "latent", "kind", "rank" and "activation"; their rows;
    positions; and activations around these, [examples, width], see `Windows`."""
    sample, top = seen.sample, seen.top
    filled = sample.key > -torch.inf
    weaker = sample.peak.masked_fill(~filled, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
    in_top = (sample.row[:, :, None] == top.row[:, None, :]).any(2)
    groups = weaker * args.quantiles // filled.sum(1, keepdim=True).clamp(min=1)  # 0: the weakest
    groups = groups.masked_fill(~filled | in_top, -1)
    selections = [(top.key > -torch.inf, top)]  # by kind: the top examples, the strongest group ...
    for group in reversed(range(args.quantiles)):
        members = groups == group
        # The sample stands in the order of its random keys: its first members are random ones.
        selections.append((members & (members.cumsum(1) <= args.per_quantile), sample))
    parts = []
    for number, (mask, windows) in enumerate(selections):
        latent, slot = mask.nonzero(as_tuple=True)
        fields = [field[latent, slot] for field in windows]
        parts.append([latent, torch.full_like(latent, number), *fields])
    columns = [torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True)]
    latent, kind, _, peak = columns[:4]
    order = np.lexsort((-peak, kind, latent))
    latent, kind, _, peak, row, position, around = (column[order] for column in columns)
    kinds = np.array(["top", *(f"quantile_{q}" for q in range(args.quantiles, 0, -1))])
    _, first, size = np.unique(latent * len(kinds) + kind, return_index=True, return_counts=True)
    rank = (np.arange(len(latent)) - np.repeat(first, size)).astype(np.int32)
    ranked = {"latent": latent.astype(np.int32), "kind": kinds[kind], "rank": rank}
    return {**ranked, "activation": peak}, row, position, around


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
        at_firing, start = first[window] + firing[window], 0
        while start < ids.shape[1]:
            stop, text = start + 1, REPLACEMENT  # where a window cuts a character
            for end in range(stop, ids.shape[1] + 1):
                if not parts[window, end - 1]:
                    break
                spelling = decoded(tokenizer, ids[window, start:end].tolist())
                if REPLACEMENT not in spelling:
                    stop, text = end, spelling
                    break
            if parts[window, start]:
                texts[window, start:stop] = ""
                texts[window, at_firing if start <= at_firing < stop else start] = text
            start = stop
    offsets = np.concatenate([[0], inside.sum(1).cumsum()]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(texts[inside].tolist(), pa.string()))
