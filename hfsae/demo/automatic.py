"""A latent's automatic name: its score beside the control's, and the windows that tested it."""

from pathlib import Path

from ..io.file_names import EVIDENCE, EXPLANATIONS, EXPLANATIONS_RECORD
from ..io.files import columns_of, read_json, read_table, reading
from .rows import Json
from .subject import Subject

_SCORE, _JUDGED = "pearson", "detection"
_KINDS = {
    "hard": "it is silent, at a token that it often fires on",
    "random": "it is silent, at random",
}
_FIRES = "it fires"
UNCLEAR = "unclear"
"""what a language model says in place of a name"""


def automatic_name(subject: Subject, latent: int) -> Json | None:
    """What `hfsae explain` wrote about a latent: the explanation, a note on how it was tested, and
    groups of windows; None without an explanation.

    Raises:
        ValueError: the files are damaged.
    """
    folder, explanation = subject.folder, subject.automatic.get(latent)
    if folder is None or not explanation:
        return None
    # the latent's row, with scores where there are any
    path, record = folder / EXPLANATIONS, read_json(folder / EXPLANATIONS_RECORD)
    scores = record.get("scores", {})
    columns = ["latent", "source", "n_shown"]
    if scores:
        columns += [f"{control}{_SCORE}" for control in ("", "shuffled_", "token_ceiling_")]
    if _JUDGED in scores:
        columns += [f"{control}{_JUDGED}_auc" for control in ("", "shuffled_")]
    with reading(path):
        columns += ["sure"] if "sure" in columns_of(path) else []
        row = read_table(path, columns, [("latent", "=", latent)]).to_pylist()[0]
        row = {_SCORE: None, "n_shown": None, "sure": None, **row}
        judge = record.get("judge", {}).get("model", "")
    score, by_model = "", row["source"] == "lm"
    if (judged := row.get(f"{_JUDGED}_auc")) is not None:  # a judge read its words
        score = f"AUC {judged:.2f}"
    elif not by_model and row[_SCORE] is not None:  # it is tokens, which were tested
        score = f"Pearson {row[_SCORE]:.2f}"
    return {
        "explanation": explanation,
        "source": row["source"],
        "doubtful": latent in subject.doubtful,
        "note": _note(row, judge, is_unclear=explanation == UNCLEAR),
        "score": score,
        "groups": _groups(folder, latent),
    }


def _note(row: Json, judge: str, is_unclear: bool) -> str:
    """Some sentences: who gave the name, how certain, and how it was tested."""
    by_model = row["source"] == "lm"
    by_program = "its tokens" if row["source"] == "template" else row["source"]
    giver = (judge or "a language model") if by_model else by_program
    certain = "" if row["sure"] is None else f", {row['sure']:.0%} certain"
    said = [f"Named by {giver}{certain}, from {row['n_shown']} windows"]
    if is_unclear:
        said.append("It found nothing that these windows have in common")
    if row[_SCORE] is None:
        return f"{said.pop()}; not tested" if len(said) == 1 else ". ".join(said)
    scores = (row[f"{c}{_SCORE}"] for c in ("", "shuffled_", "token_ceiling_"))
    own, other, most = (round(score, 2) + 0.0 for score in scores)  # not -0.00
    said.append(
        f"On other documents, the tokens of these windows predict its activations with a "
        f"correlation of {own:.2f}; those of another latent's windows, {other:.2f}; the most that "
        f"tokens alone can reach is {most:.2f}"
    )
    own, other = (row.get(f"{control}{_JUDGED}_auc") for control in ("", "shuffled_"))
    if own is not None and other is not None:
        said.append(
            f"Given this name, {giver} tells texts in which it fires from others with an AUC of "
            f"{own:.2f}; given another latent's name, {other:.2f} (guessing: 0.50)"
        )
    elif by_model and not is_unclear:
        said.append("The words of this name were not tested")
    return ". ".join(said)


def _groups(folder: Path, latent: int) -> list[Json]:
    """Windows of documents that the explanation does not come from, under headings."""
    if not (path := folder / EVIDENCE).is_file():
        return []
    columns = ["latent", "kind", "activation", "firing", "tokens", "activations"]
    groups: dict[str, list[Json]] = {}
    with reading(path):
        table = read_table(path, columns, [("latent", "=", latent)])
        rows = table.to_pylist()
        largest = max((max(row["activations"], default=0.0) for row in rows), default=0.0) or 1.0
        for row in rows:
            tokens = [
                {"text": text, "activation": a, "share": a / largest, "firing": i == row["firing"]}
                for i, (text, a) in enumerate(zip(row["tokens"], row["activations"], strict=True))
            ]
            window = {"activation": row["activation"], "tokens": tokens}
            groups.setdefault(_KINDS.get(row["kind"], _FIRES), []).append(window)
    return [{"title": title, "examples": windows} for title, windows in groups.items()]
