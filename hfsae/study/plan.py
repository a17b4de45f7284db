"""The plan of a study: its items, which are settled, written and hashed before the first answer.

    latent      windows of a latent: do the marked tokens share one meaning? yes, maybe, no
    direction   the same of a random direction that fires as often: a control
    repeat      a latent's item once more
    intruder    four windows of a latent and one of another: which is the odd one?

Items are in blocks with as many of each SAE and kind; a rater has blocks, and the items of a block,
in an order of their own.
"""

import json
import random
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..machine.bounds import check_least
from ..machine.checksums import content_hash
from ..machine.files import damaged, read_json, reading, write_whole
from ..machine.names import STUDY_PLAN
from ..machine.refused import Damaged, Refused, closest_folders

Kind = Literal["latent", "direction", "repeat", "intruder"]
MEANING, INTRUDER = "meaning", "intruder"
WORDS = ("no", "maybe", "yes")
"""Answers to whether windows have one meaning; the index is the rating."""
N_ODD = 5
"""Windows of an intruder item."""
_IN_BLOCK = 5  # items of an SAE, about


@dataclass
class StudyArguments:
    """The items to rate for each SAE, and the text to draw them from."""

    n_latents: int = 30
    """number of latents of each SAE, drawn at random between min_density and max_density"""
    controls: float = 0.1
    """random directions, as a share of the latents"""
    repeats: float = 0.1
    """latents that are asked about twice, as a share of all"""
    intruders: float = 0.3
    """items with an intruder, as a share of the latents"""
    windows: int = 10
    """windows of text in an item: half of them those with the largest peaks, half over quantiles of
    the peak; a latent needs as many on each half of the documents"""
    window: int = 10
    """tokens on either side of a peak"""
    n_tokens: int = 100_000
    """held-out tokens to read"""
    min_density: float = 1e-4
    """least share of tokens that a latent fires on"""
    max_density: float = 0.1
    """largest share of tokens that a latent fires on"""
    explained: bool = False
    """draw among latents that `hfsae explain` scored"""
    seed: int = 0
    """seed of all that is drawn"""

    def __post_init__(self) -> None:
        check_least(self, n_latents=2, windows=N_ODD - 1, window=1, n_tokens=1, seed=0)
        for name in ("controls", "repeats", "intruders"):
            if not 0 <= getattr(self, name) <= 1:
                raise Refused(
                    f"{name} is {getattr(self, name)}; give a share of latents, from 0 to 1"
                )
        if not 0 <= self.min_density <= self.max_density <= 1:
            raise Refused(
                f"min_density is {self.min_density} and max_density {self.max_density}; give "
                "shares of tokens, the smaller first"
            )

    def n_of(self, part: Literal["controls", "repeats", "intruders"]) -> int:
        """Items of a kind, of each SAE: at least one, unless the share is 0."""
        share = getattr(self, part)
        return max(1, round(share * self.n_latents)) if share else 0


@dataclass
class Shown:
    """A window of an item."""

    tokens: list[str]
    marks: str
    """a digit a token: 0 silent, 1 to 3 weak to strong"""


@dataclass
class Item:
    """A page of the study, and what only its server may know of it."""

    kind: Kind
    sae: int
    """index in the plan's `saes`"""
    latent: int
    """-1, -2 and so on: a random direction"""
    density: float
    windows: list[Shown]
    odd: int | None = None
    """index of the intruder's window"""
    other: int | None = None
    """the latent that it is of"""
    repeats: str | None = None
    """id of the item that this one repeats"""
    id: str = ""
    block: int = 0

    @property
    def question(self) -> str:
        """What is asked: "meaning" or "intruder"."""
        return INTRUDER if self.kind == "intruder" else MEANING


@dataclass
class Plan:
    """Everything that is fixed before the first answer."""

    arguments: dict[str, Any]
    lm: str
    """the language model's name"""
    saes: list[dict[str, Any]]
    """name, l0 and weights_sha256 of each"""
    items: list[Item] = field(default_factory=list)

    @property
    def hash(self) -> str:
        """SHA-256 of the plan's content as canonical JSON."""
        return content_hash(self._plain())

    def _plain(self) -> dict[str, Any]:
        items = [{k: v for k, v in asdict(i).items() if v is not None} for i in self.items]
        return {"arguments": self.arguments, "lm": self.lm, "saes": self.saes, "items": items}

    def save(self, folder: Path) -> None:
        """Write plan.json, an item a line."""
        plain = self._plain()
        lines = ",\n".join(json.dumps(item) for item in plain.pop("items"))
        head = json.dumps({"plan_sha256": self.hash} | plain, indent=1).removesuffix("\n}")
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / STUDY_PLAN, f'{head},\n "items": [\n{lines}\n ]\n}}\n')

    @classmethod
    def load(cls, folder: Path) -> "Plan":
        """The plan in a study's folder.

        Raises:
            ValueError: there is no plan, it is damaged, or it was changed since it was made.
        """
        refuse_no_study(folder)
        path = folder / STUDY_PLAN
        content = read_json(path)
        with reading(path):
            content["items"] = [_item(plain) for plain in content["items"]]
            given = content.pop("plan_sha256")
            plan = cls(**content)
            if plan.hash != given:
                raise Damaged(damaged(path, "it was changed after it was made: its hash differs"))
            if len({item.id for item in plan.items}) < len(plan.items):
                raise Damaged(damaged(path, "two items have one id"))
        return plan

    def order(self, rater: str) -> list[Item]:
        """The items in a rater's order: of the blocks, and within each."""
        rng = random.Random(f"{self.hash} {rater}")
        blocks = [[i for i in self.items if i.block == b] for b in range(self.n_blocks)]
        rng.shuffle(blocks)
        for block in blocks:
            rng.shuffle(block)
        return [item for block in blocks for item in block]

    @property
    def n_blocks(self) -> int:
        """Blocks of items."""
        return 1 + max((item.block for item in self.items), default=0)


def _item(plain: dict[str, Any]) -> Item:
    windows = [Shown(**window) for window in plain["windows"]]
    item = Item(**{**plain, "windows": windows})
    if any(len(w.tokens) != len(w.marks) or not {*w.marks} <= {*"0123"} for w in item.windows):
        raise Refused(f"a window of item {item.id!r} has marks that do not fit its tokens")
    if item.question == INTRUDER and not 0 <= (item.odd or 0) < len(item.windows):
        raise Refused(f"item {item.id!r} has no window {item.odd}")
    return item


def arranged(items: Sequence[Sequence[Item]], args: StudyArguments) -> list[Item]:
    """The items of each SAE in blocks, with repeats in other blocks than what they repeat, and ids.

    Args:
        items: of each SAE: latents, directions, intruders; as many of a kind of each SAE.
    """
    n_blocks = max(1, round((len(items[0]) + args.n_of("repeats")) / _IN_BLOCK))
    placed = []
    for sae, own in enumerate(items):
        for number, item in enumerate(own):
            item.block = number % n_blocks
            item.id = _id()
        placed += [*own, *_repeats(own, n_blocks, args, sae)]
    return placed


def _repeats(own: Sequence[Item], n_blocks: int, args: StudyArguments, sae: int) -> Iterator[Item]:
    """Some latents' items once more."""
    latents = [item for item in own if item.kind == "latent"]
    random.Random(f"{args.seed} repeats {sae}").shuffle(latents)
    for number in range(len(own), len(own) + args.n_of("repeats")):
        block = number % n_blocks
        elsewhere = [item for item in latents if item.block != block or n_blocks == 1]
        first = (elsewhere or latents)[0]
        latents.remove(first)
        again = Item("repeat", first.sae, first.latent, first.density, first.windows)
        again.repeats, again.block, again.id = first.id, block, _id()
        yield again


def _id() -> str:
    """Drawn anew for each plan: a rater sees ids, and no seed can tell what they stand for."""
    return secrets.token_hex(6)


def refuse_no_study(folder: str | Path) -> None:
    """Refuse a folder without a plan.

    Raises:
        ValueError: there is none.
    """
    if not Path(folder, STUDY_PLAN).is_file():
        near = closest_folders(str(folder))
        raise Refused(f"no study in {str(folder)!r}: `hfsae study make` makes one{near}")
