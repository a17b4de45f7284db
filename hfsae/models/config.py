"""The config that all sparse autoencoders share: its places, its other fields, its checks."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, ClassVar, Literal

from transformers import PreTrainedConfig

from ..io.bounds import check_n_latents, check_type
from ..io.errors import Refused, closest
from ..lm.contract import parse_sketch
from ..lm.hooks import Sites

Number = int | float
_OF_EACH_MODEL = ("model_revision", "model_dtype", "model_attention", "model_weights")
_OF_SEVERAL = ("sites", "widths", "site_scales", "scales_folded", "row_norm", "site_dropout")
_OF_SEVERAL += ("dedicated",)
_SHOWN = 3  # places that are named one by one


class SAEConfig(PreTrainedConfig):
    """Architecture, loss coefficients, and the site in a language model where the SAE belongs.

    An SAE has one `site`, or reads one and reconstructs another (`target_site`, a transcoder), or
    has several `sites` that it reads and reconstructs side by side (a crosscoder,
    models/site_layout.py). Keyword arguments only; unknown ones are an error, with the nearest
    field named.
    """

    # jaxtyping's import hook would type-check the dataclass __init__, which transformers replaces.
    __no_type_check__ = True
    has_no_defaults_at_init = True
    model_type = "sae"
    is_causal: ClassVar[bool] = False
    """Each of several sites is read by latents of its own, which write at it and later ones."""
    scale_names: ClassVar = ("activation_scale", "target_scale", "site_scales")
    """fields that are estimated from activations"""
    has_thresholds: ClassVar[bool] = False
    """Each latent has a threshold that training moves: the parameter `threshold` [d_sae], in units
    of x/c, with the fields l0_coefficient, bandwidth and log_threshold. The warm start sets it.
    A variant with other thresholds leaves it False."""
    options_on_card: ClassVar[Mapping[str, Mapping[Any, str]]] = {}
    """Fields that change what is learned. The card lists those that differ from the default, and
    cites a value's source, if it has one, by its key in cards/citations.bib."""
    dense_copies: ClassVar[float] = 4.3
    """[batch, d_sae] tensors alive at the peak of a dense training step (scripts/bench/plan.py)"""

    d_in: int
    d_out: int = 0
    """width of the reconstruction; 0: the same as d_in"""
    site: str | None = None
    """place in the model: 'layers.12', 'layers.12.mlp:in', ... (`hfsae.lm.hooks`)"""
    target_site: str | None = None
    """site that is reconstructed; the same as `site` unless this is a transcoder"""
    sites: list | None = None
    """several places, in the place of `site`: the SAE reads and reconstructs them side by side"""
    widths: list | None = None
    """width of the activations at each of `sites`; None: all equal"""
    activation_scale: Number | None = None
    """c, raw units: root of the mean squared norm at `site`, or of the mean squared distance from
    the mean (training.unit); of several sites, of their activations side by side. None: not
    estimated, taken as 1"""
    target_scale: Number | None = None
    """the same at `target_site`; activation_scale unless this is a transcoder"""
    site_scales: list | None = None
    """the same at each of `sites`"""
    scales_folded: bool = False
    """whether site_scales are in the weights already, by `folded()`"""
    row_norm: Literal["sum_of_sites", "l2"] = "sum_of_sites"
    """norm of a decoder row over several sites: "sum_of_sites", sum_s |row^s|, under which a latent
    of one site alone costs less than one of all; "l2": as of one site, for ablation, and where
    latents of one site are `dedicated`"""
    site_dropout: Number = 0.0
    """probability that a token's activation at one of `sites` is hidden from the encoder in
    training, so that latents are found from any of them; ours, after fmxcoders (2605.09438)"""
    dedicated: int = 0
    """the last so many latents write at the last of `sites` alone, and each other one the same at
    every site, to find what the last has beyond the others (models/dedicated.py)"""
    d_sae: int
    subtract_b_dec: bool = False
    """encode x - b_dec instead of x (Gemma Scope trains so); `folded()` moves it into b_enc"""
    skip_connection: bool = False
    """also predict linearly from the input: + x W_skip. For transcoders: an SAE could copy x"""
    token_norm: Literal["none", "layer_norm", "unit_rms"] = "none"
    """normalises each token first: "layer_norm" ((x - mean) / std), "unit_rms" (to norm
    sqrt(d_in)); undone after decoding. For SAEs from other libraries; hfsae trains without it"""
    target_l0: Number | None = None
    """L0 to which the trainer leads by sparsity coefficients, or the loss itself (JumpReLU's
    l0_loss="quadratic"); None: they are fixed"""
    model_name: str | None = None
    """Hub id of the language model"""
    model_names: dict | None = None
    """of several language models that it reads at once, the Hub id or folder of each, by the name
    that stands before the slash of its sites (`hfsae.lm.places`)"""
    model_revision: str | dict | None = None
    """commit on the Hub; this and the next three, where several models differ, by their names"""
    model_dtype: str | dict | None = None
    """dtype of the language model in training, such as 'bfloat16'"""
    model_attention: str | dict | None = None
    """its attention implementation: 'eager', 'sdpa', ..."""
    model_weights: str | dict | None = None
    """sketch of its weights, by which another copy is compared: see `hfsae.lm.contract`"""
    tokenizer_hash: str | None = None
    """hash of its tokenizer's vocabulary"""
    bos: str | None = None
    """where BOS stood in training: at the start of each "row" or "document", or "none" """

    def to_dict(self) -> dict[str, Any]:
        """Fields as in config.json: without those of several sites or models, where it has one."""
        left_out = {*(() if self.sites is not None else _OF_SEVERAL)}
        left_out |= {"model_names"} if self.model_names is None else set()
        return {k: v for k, v in super().to_dict().items() if k not in left_out}

    def __post_init__(self, **kwargs: Any) -> None:
        self.d_out = self.d_out or self.d_in
        own = own_fields(type(self))
        for key in sorted(set(kwargs) - _TRANSFORMERS_KEYS):  # which transformers would just store
            near = closest(key, [field.name for field in fields(self)])
            every = f"; its fields: {', '.join(sorted(own))}"
            raise Refused(f"{type(self).__name__} has no field {key!r}{near or every}")
        for name, hint in sorted((f.name, f.type) for f in fields(self) if f.name in own):
            check_type(name, getattr(self, name), hint)
        for dtype in (self.dtype, kwargs.get("torch_dtype")):
            name = str(dtype).removeprefix("torch.")
            if dtype is not None and name not in _FLOATS:  # transformers would cast weights to it
                raise Refused(f"dtype must be one of {', '.join(_FLOATS)}, got {name!r}")
        self.check()
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The config from a dict, as in transformers, but the config of another kind of model is
        refused.

        Raises:
            ValueError: the model_type is another, or a field is missing, mistyped or out of range.
        """
        kind = config_dict.get("model_type", cls.model_type)
        if kind != cls.model_type and cls is not SAEConfig:
            raise Refused(
                f"its config.json describes a {kind!r} model, but {cls.__name__} loads "
                f"{cls.model_type!r}; transformers.AutoModel chooses the right class"
            )
        required = [f.name for f in fields(cls) if f.default is f.default_factory is MISSING]
        if lacks := [name for name in required if name not in {**config_dict, **kwargs}]:
            raise Refused(f"its config.json lacks {' and '.join(lacks)}")
        return super().from_dict(config_dict, **kwargs)

    def check(self) -> None:
        """Raise ValueError for invalid values; variants extend it."""
        for name, value in vars(self).items():
            if isinstance(value, int | float) and not abs(value) <= _LARGEST:
                raise Refused(
                    f"{name} must be a finite number, at most {_LARGEST:.0e} as in float32, got "
                    f"{str(value)[:20]}"
                )
        self.require_positive("d_in", "d_sae", "d_out", "activation_scale", "target_scale")
        self.check_sites()
        if self.is_transcoder and self.subtract_b_dec:
            raise Refused(
                "subtract_b_dec=True: a transcoder's b_dec lies in another space than x; give False"
            )
        has_scale = self.sites is not None or self.activation_scale not in (None, 1)
        if self.token_norm != "none" and (self.is_transcoder or self.skip_connection or has_scale):
            raise Refused(
                f"token_norm={self.token_norm!r} already sets each token's norm: it needs an "
                "activation_scale of 1 or none, a single site, no target_site and no "
                "skip_connection"
            )
        for name in ("model_names", *_OF_EACH_MODEL):
            terms = getattr(self, name)
            if not isinstance(terms, dict):
                continue
            if not all(isinstance(term, str | None) for term in terms.values()):
                raise Refused(f"{name} must hold a text for each model, got {str(terms)[:80]}")
            if name != "model_names" and not self.model_names:
                raise Refused(f"{name} is given by models' names, so it needs model_names")
        sketches = self.model_weights
        for sketch in sketches.values() if isinstance(sketches, dict) else [sketches]:
            if sketch is not None:
                parse_sketch(sketch)
        check_n_latents(self.d_sae, self.target_l0)
        if self.d_out != self.d_in and not self.is_transcoder:
            raise Refused(
                f"d_out ({self.d_out}) differs from d_in ({self.d_in}), so this is a transcoder: "
                "name the target_site that it reconstructs"
            )

    def check_sites(self) -> None:
        """Raise ValueError for places, widths or scales that do not go together."""
        if self.sites is None:
            for name in ("widths", "site_scales", "site_dropout", "scales_folded", "dedicated"):
                if getattr(self, name):
                    raise Refused(f"{name} needs sites, the list of places that the SAE reads")
            return
        n = len(self.sites)
        if not n or not all(isinstance(site, str) for site in self.sites):
            raise Refused(f"sites must be a list of places such as 'layers.12', got {self.sites}")
        if self.site is not None:
            raise Refused(
                f"site ({self.site!r}) and sites are both given; leave out one of them (a recipe's "
                "own by --sae.site null)"
            )
        if twice := [site for site in self.sites if self.sites.count(site) > 1]:
            raise Refused(f"sites names {twice[0]!r} twice; name each place once")
        if self.target_site is not None:
            raise Refused(
                f"target_site ({self.target_site!r}) does not go with sites: an SAE of several "
                "sites reconstructs what it reads; leave one of them out"
            )
        if not 0 <= self.site_dropout < 1:
            raise Refused(f"site_dropout must lie in [0, 1), got {self.site_dropout}")
        for name in ("widths", "site_scales"):
            values = getattr(self, name)
            if values is None:
                continue
            are_numbers = all(isinstance(v, Number) and v > 0 for v in values)
            if len(values) != n or not are_numbers:
                raise Refused(
                    f"{name} must hold a positive number for each of the {n} sites, got {values}"
                )
        if self.widths is None and self.d_in % n:
            raise Refused(
                f"d_in ({self.d_in}) is not a multiple of {n} sites, so that their widths differ: "
                "give widths, one for each site"
            )
        if self.widths is not None and sum(self.widths) != self.d_in:
            total = sum(self.widths)
            raise Refused(f"widths {self.widths} sum to {total}, and d_in is {self.d_in}")
        if self.dedicated:
            if n < 2 or self.is_causal or (self.widths is not None and len({*self.widths}) > 1):
                raise Refused(
                    "dedicated needs two sites or more of one width, and a variant whose latents "
                    "read all of them; set it to 0"
                )
            if not 0 < self.dedicated < self.d_sae:
                raise Refused(
                    f"dedicated must be 0 or more, and fewer than all {self.d_sae} latents, got "
                    f"{self.dedicated}"
                )

    def require_positive(self, *names: str) -> None:
        """Raise ValueError for a field that is 0 or less; None passes."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise Refused(f"{name} must be positive, got {value}")

    def require_not_negative(self, *names: str) -> None:
        """Raise ValueError for a field below 0."""
        for name in names:
            if getattr(self, name) < 0:
                raise Refused(f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def unit_norm_decoder(self) -> bool:
        """Whether training keeps W_dec's rows at norm 1."""
        return True

    @property
    def last_model(self) -> str:
        """Of several language models the last site's, whose next token latents act on; else ""."""
        return self.writes.names[-1].partition("/")[0] if self.model_names else ""

    @property
    def l0_goal(self) -> Number | None:
        """The L0 that the config sets, by a target or a number of latents to choose."""
        return l0_goal(vars(self))

    @property
    def steers_itself(self) -> bool:
        """Whether the loss itself leads to target_l0, so that the trainer's controller rests."""
        return False

    def sparsity_at(self, threshold: float) -> float | None:
        """Factor on the sparsity coefficient for which this common threshold is the right one.

        None (the base): unknown. The L0 controller starts from it when the warm start ends.
        """
        return None

    @property
    def decodes_with_input(self) -> bool:
        """Whether decoding needs the input as well as the latents."""
        return self.skip_connection or self.token_norm != "none"

    @property
    def is_transcoder(self) -> bool:
        """Whether the SAE reconstructs another site than it reads."""
        return self.target_site is not None and self.target_site != self.site

    @property
    def where_in_short(self) -> str | None:
        """`where`; of more than three places the first, the last and their number."""
        return where_in_short_of(vars(self))

    @property
    def where_to(self) -> str | None:
        """The place, or the places, that it reconstructs, where it is a transcoder; else None."""
        return where_to_of(vars(self))

    @property
    def has_several_sites(self) -> bool:
        """Whether the SAE has two sites or more, side by side."""
        return len(self.sites or ()) > 1

    @property
    def needs_whole_text(self) -> bool:
        """Whether it reads further sites than it writes at next, so that a language model runs on
        it in two passes, without a KV cache."""
        return self.has_several_sites and not self.is_causal

    @property
    def latent_scale(self) -> float:
        """The unit of latents and thresholds, raw units: c of the site that is reconstructed."""
        target = self.target_scale if self.is_transcoder else None
        return float(target or self.activation_scale or 1.0)

    @property
    def has_column_scales(self) -> bool:
        """Whether columns have scales of their own, that of their site, not yet in the weights."""
        return self.has_several_sites and bool(self.site_scales) and not self.scales_folded

    @property
    def column_scales(self) -> list[float]:
        """Of each site that is written c_s sqrt(S), raw units: over it, a mean squared norm is
        1/S."""
        scales = self.written_scales
        return [float(scale) * len(scales) ** 0.5 for scale in scales]

    @property
    def read_column_scales(self) -> list[float]:
        """The same of each site that is read."""
        return self.column_scales

    @property
    def written_scales(self) -> list[float]:
        """c of each site that is written, raw units."""
        return self.site_scales or [1.0]

    @property
    def relative_scales(self) -> list[float]:
        """`column_scales` over the scale of all sites side by side: what `folded()` multiplies the
        decoder by."""
        scales = self.written_scales
        whole = sum(scale**2 for scale in scales) ** 0.5
        return [scale / whole for scale in self.column_scales]

    @property
    def sums_norms(self) -> bool:
        """Whether the norm of a decoder row is the sum of its sites' norms."""
        return self.has_several_sites and self.row_norm == "sum_of_sites"

    @property
    def written_widths(self) -> list[int]:
        """Widths of the sites that are reconstructed."""
        n = len(self.sites or (None,))
        return list(self.widths or [self.d_out // n] * n)

    def fill_scales(self, read: Sequence[float], written: Sequence[float]) -> None:
        """Set the scales that are None to sizes of activations, one for each site of `reads` and of
        `writes`, raw units; with dedicated latents, the same for all sites."""
        if self.dedicated:
            whole = (sum(size**2 for size in read) / len(read)) ** 0.5
            read = [whole] * len(read)
        if self.has_several_sites and self.site_scales is None:
            self.site_scales = list(read)
        if self.activation_scale is None:
            whole = sum(size**2 for size in read) ** 0.5
            self.activation_scale = read[0] if len(read) == 1 else whole
        if self.is_transcoder and self.target_scale is None:
            (self.target_scale,) = written

    @property
    def reads(self) -> Sites:
        """The sites that the SAE reads, with their widths, in the order of its input's columns.

        Raises:
            ValueError: the config names no site.
        """
        if self.sites is not None:
            return Sites(zip(self.sites, self.written_widths, strict=True))
        return Sites.one(self.site, self.d_in)

    @property
    def writes(self) -> Sites:
        """The sites that the SAE reconstructs, in the same way; the same as `reads` unless it is a
        transcoder."""
        if self.sites is not None:
            return self.reads
        return Sites.one(self.site and (self.target_site or self.site), self.d_out)

    @property
    def where(self) -> str | None:
        """The place, or the places, that it reads: 'layers.12', or 'a, b'; None: it names none."""
        return where_of(vars(self))


def l0_goal(fields: Mapping[str, Any]) -> Number | None:
    """The L0 that the fields of an SAE's config set; None where sparsity coefficients decide it."""
    return fields.get("target_l0") or fields.get("k")


def where_in_short_of(config: Mapping[str, Any]) -> str | None:
    """`SAEConfig.where_in_short` from the fields of an SAE's config."""
    sites = config.get("sites") or []
    many = len(sites) > _SHOWN
    return f"{sites[0]} to {sites[-1]} ({len(sites)} sites)" if many else where_of(config)


def where_to_of(config: Mapping[str, Any]) -> str | None:
    """`SAEConfig.where_to` from the fields of an SAE's config."""
    if targets := config.get("target_sites"):
        return ", ".join(targets) if targets != config.get("sites") else None
    target = config.get("target_site")
    return target if target != config.get("site") else None


def where_of(config: Mapping[str, Any]) -> str | None:
    """`SAEConfig.where` from the fields of an SAE's config."""
    return ", ".join(config.get("sites") or ()) or config.get("site")


_LARGEST = 3e38
_FLOATS = ("float32", "bfloat16", "float16", "float64")
INITIAL_FREE_NORM = 0.1
EPSILON = {"layer_norm": 1e-5, "unit_rms": 0.0}  # added to the spread that x is divided by
# Keys that transformers itself writes to a config.json or passes while loading one.
_TRANSFORMERS_KEYS = {
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation_internal",
    "_name_or_path",
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "output_attentions",
    "tags",
    "torch_dtype",
}


def check_latent(latent: int, d_sae: int) -> None:
    """Refuse an index that is not a latent's.

    Raises:
        ValueError: there is no such latent.
    """
    if not 0 <= latent < d_sae:
        raise Refused(f"there is no latent {latent}; this SAE has {d_sae:,}, 0 to {d_sae - 1:,}")


def variants(base: type[SAEConfig] = SAEConfig) -> list[type[SAEConfig]]:
    """Config classes with a model_type of their own: `base`, if it is one, and its subclasses."""
    derived = {v: None for config in base.__subclasses__() for v in variants(config)}
    is_variant = base is not SAEConfig and "model_type" in vars(base)
    return [base] * is_variant + list(derived)


def own_fields(config_class: type[SAEConfig]) -> set[str]:
    """Fields that SAE configs add to those of transformers."""
    of_transformers = {field.name for field in fields(PreTrainedConfig)} | _TRANSFORMERS_KEYS
    return {field.name for field in fields(config_class)} - (of_transformers - {"model_type"})
