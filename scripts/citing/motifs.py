"""Do graphs of the tokens near a latent's firings show families that its decoder row does not?
"From token lists to graph motifs" (arXiv:2605.06494) says so of an SAE of GPT-2, and that a
histogram of tokens is purer (.854, graphs .760). Its kernel and families are not known to us.

    python scripts/citing/motifs.py [--quick] OUT.json

A latent's graph: nodes are the 20 tokens most frequent within four of its ten strongest firings in
texts of six kinds, edges join those within two of each other. Graphs are as alike as the cosine of
their counts of labels over two rounds of Weisfeiler and Lehman's relabelling; a node's first label
is its frequency's power of two ("shape"), or that and its token ("graph"). Beside them cosines of
all tokens' counts ("histogram") and of decoder rows. Families, of latents of which six tenths of
firings agree, 15 to 60 a family: what the token is by its letters, and the kind of text. Purity:
the share of latents of the commonest family of their cluster, of 12 (spectral, three seeds).
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import permutations

import numpy as np
import pyarrow.compute as pc
from claim import Run, Subject, mean, subjects, to_file
from sklearn.cluster import SpectralClustering
from sklearn.feature_extraction import DictVectorizer
from sklearn.metrics.pairwise import cosine_similarity

import hfsae
from hfsae.features import CollectArguments

KINDS = ("wiki", "sotu", "python", "news", "medicine", "messages")
N_NODES, WINDOW, NEAR, ROUNDS, AGREE, LEAST, MOST = 20, 4, 2, 2, 0.6, 15, 60


def surface(token: str) -> str:
    """What kind of token it is, by its letters."""
    text = token.strip()
    if not any(c.isalnum() for c in text):
        return "punctuation" if text else "blank"
    kind = "capital" if text[0].isupper() else "word" if token[0] == " " else "piece"
    return "number" if any(c.isdigit() for c in text) else kind


def families(names: Sequence[Sequence[str]]) -> dict[int, str]:
    """Of latents by number, the name that most of their firings agree on."""
    of, sizes = dict[int, str](), Counter[str]()
    for i, ((name, n),) in enumerate(Counter(own).most_common(1) for own in names):
        if n >= AGREE * len(names[i]) and sizes[name] < MOST:
            of[i] = name
            sizes[name] += 1
    return {i: name for i, name in of.items() if sizes[name] >= LEAST}


def labels_of_graph(windows: Sequence[Sequence[str]], *, tokens: bool) -> Counter[int]:
    """How often nodes have each label, over all rounds."""
    counts = Counter(token for window in windows for token in window)
    near: dict[str, set[str]] = {token: set() for token, _ in counts.most_common(N_NODES)}
    for window in windows:
        for (i, a), (j, b) in permutations(enumerate(window), 2):
            if abs(i - j) <= NEAR and a != b and a in near and b in near:
                near[a].add(b)
    labels = {t: hash((t if tokens else "", counts[t].bit_length())) for t in near}
    found = Counter(labels.values())
    for _ in range(ROUNDS):
        labels = {t: hash((labels[t], *sorted(labels[o] for o in near[t]))) for t in near}
        found.update(labels.values())
    return found


def scores(similarity: np.ndarray, of: np.ndarray) -> tuple[np.ndarray, Run]:
    """Each latent's share of clusterings with its family the commonest; means, and by chance."""

    def hits(clusters: np.ndarray, of: np.ndarray) -> np.ndarray:
        return of == np.array([np.bincount(of[clusters == c]).argmax() for c in clusters])

    own, chance = [], []
    for seed in range(3):
        spectral = SpectralClustering(12, affinity="precomputed", random_state=seed)
        clusters = spectral.fit_predict(similarity.clip(min=1e-4))
        own.append(hits(clusters, of))
        chance.append(hits(clusters, np.random.default_rng(seed).permutation(of)).mean())
    shares = np.mean(own, axis=0)
    return shares, {"purity": mean(shares.tolist()), "chance": np.mean(chance)}


def of_subject(subject: Subject, n_texts: int) -> Run:
    name, lm, tokenizer, sae = subject
    kinds = {kind: hfsae.packaged.packaged_text(kind)[:n_texts] for kind in KINDS}
    texts = [(kind, text[:800]) for kind, own in kinds.items() for text in own]
    arguments = CollectArguments(window=WINDOW, quantiles=1, per_quantile=0, lens_tokens=1)
    store = hfsae.collect(lm, sae, [text for _, text in texts], arguments, tokenizer=tokenizer)
    rows = defaultdict(list)
    for row in store.examples.to_table(filter=pc.field("kind") == "top").to_pylist():
        rows[row["latent"]].append(row)
    chosen = [i for i in store.pick(len(store), max_density=1.0) if len(rows[i]) == arguments.top]
    windows = [[row["tokens"] for row in rows[i]] for i in chosen]
    names = {"token": [[surface(row["tokens"][row["firing"]]) for row in rows[i]] for i in chosen]}
    names["text"] = [[texts[row["document"]][0] for row in rows[i]] for i in chosen]
    counts = {"graph": [labels_of_graph(own, tokens=True) for own in windows]}
    counts["shape"] = [labels_of_graph(own, tokens=False) for own in windows]
    counts["histogram"] = [Counter(t for window in own for t in window) for own in windows]
    points = {kind: DictVectorizer().fit_transform(map(dict, c)) for kind, c in counts.items()}
    points["decoder rows"] = sae.W_dec.detach()[chosen].numpy()
    run: Run = {"model": name, "texts": len(texts), "tokens": store.meta["n_tokens"]}
    for about, own in names.items():
        kept = families(own)
        _, of, sizes = np.unique([*kept.values()], return_inverse=True, return_counts=True)
        every = {kind: scores(cosine_similarity(x[[*kept]]), of) for kind, x in points.items()}
        run[about] = {"sizes": sizes.tolist(), **{kind: row for kind, (_, row) in every.items()}}
        for other in ("histogram", "decoder rows"):
            run[about][f"graph - {other}"] = mean((every["graph"][0] - every[other][0]).tolist())
    return run


def measure(quick: bool) -> Iterator[Run]:
    for subject in subjects(quick):
        yield of_subject(subject, 20 if quick else 150)


if __name__ == "__main__":
    to_file(__doc__, measure)
