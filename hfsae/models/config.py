"""The config that all sparse autoencoders share, and its checks; `site_fields` has its places."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, ClassVar, Literal

from transformers import PreTrainedConfig

from ..io.bounds import check_type
from ..io.errors import Refused, closest
from ..lm import weights_sketch
from .site_fields import Number, SiteFields

_OF_EACH_MODEL = ("model_revision", "model_dtype", "model_attention", "model_weights")


class SAEConfig(SiteFields):
    """Architecture, loss coefficients, and the site in a language model where the SAE belongs.

    Keyword arguments only; unknown ones are an error, with the nearest field named.
    """

    # jaxtyping's import hook would type-check the dataclass __init__, which transformers replaces.
    __no_type_check__ = True
    has_no_defaults_at_init = True
    model_type = "sae"
    has_thresholds: ClassVar[bool] = False
    """Each latent has a threshold that training moves: the parameter `threshold` [d_sae], in units
    of x/c, with the fields l0_coefficient, bandwidth and log_threshold. The warm start sets it."""
    options_on_card: ClassVar[Mapping[str, Mapping[Any, str]]] = {}
    """Fields that change what is learned. The card lists those that differ from the default, and
    cites a value's source, if it has one, by its key in cards/citations.bib."""
    dense_copies: ClassVar[float] = 4.3
    """[batch, d_sae] tensors alive at the peak of a dense training step (scripts/bench/plan.py)"""

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
        """Fields as in config.json: of an SAE of one model without names of several."""
        whole = super().to_dict()
        return {k: v for k, v in whole.items() if k != "model_names" or v is not None}

    def __post_init__(self, **kwargs: Any) -> None:
        self.d_out = self.d_out or self.d_in
        self._reject_unknown_keys(kwargs)
        self._reject_wrong_types()
        for dtype in (self.dtype, kwargs.get("torch_dtype")):
            self._reject_dtype(dtype)
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

    def _reject_unknown_keys(self, kwargs: dict[str, Any]) -> None:
        """Refuse typos: transformers would store an unknown key silently and train the default."""
        for key in sorted(set(kwargs) - _TRANSFORMERS_KEYS):
            near = closest(key, [field.name for field in fields(self)])
            every = f"; its fields: {', '.join(sorted(own_fields(type(self))))}"
            raise Refused(f"{type(self).__name__} has no field {key!r}{near or every}")

    def _reject_wrong_types(self) -> None:
        own = own_fields(type(self))
        for name, hint in sorted((f.name, f.type) for f in fields(self) if f.name in own):
            check_type(name, getattr(self, name), hint)

    def _reject_dtype(self, dtype: object) -> None:
        """Refuse a dtype that is not a float: transformers would cast weights to it silently."""
        name = str(dtype).removeprefix("torch.")
        if dtype is not None and name not in _FLOATS:
            raise Refused(f"dtype must be one of {', '.join(_FLOATS)}, got {name!r}")

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
        self._check_token_norm()
        self._check_terms_of_several()
        sketches = self.model_weights
        for sketch in sketches.values() if isinstance(sketches, dict) else [sketches]:
            if sketch is not None:
                weights_sketch.parse(sketch)
        if self.target_l0 is not None and not 0 < self.target_l0 < self.d_sae:
            raise Refused(
                f"target_l0 must lie between 0 and d_sae ({self.d_sae}), got {self.target_l0}"
            )
        if self.d_out != self.d_in and not self.is_transcoder:
            raise Refused(
                f"d_out ({self.d_out}) differs from d_in ({self.d_in}), so this is a transcoder: "
                "name the target_site that it reconstructs"
            )

    def _check_terms_of_several(self) -> None:
        """Refuse names and terms of several models that are no texts, or of an SAE of one."""
        for name in ("model_names", *_OF_EACH_MODEL):
            terms = getattr(self, name)
            if not isinstance(terms, dict):
                continue
            if not all(isinstance(term, str | None) for term in terms.values()):
                raise Refused(f"{name} must hold a text for each model, got {str(terms)[:80]}")
            if name != "model_names" and not self.model_names:
                raise Refused(f"{name} is given by models' names, so it needs model_names")

    def _check_token_norm(self) -> None:
        if self.token_norm == "none":
            return
        has_scale = self.sites is not None or self.activation_scale not in (None, 1)
        if self.is_transcoder or self.skip_connection or has_scale:
            raise Refused(
                f"token_norm={self.token_norm!r} already sets each token's norm: it needs an "
                "activation_scale of 1 or none, a single site, no target_site and no "
                "skip_connection"
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


def l0_goal(fields: Mapping[str, Any]) -> Number | None:
    """The L0 that the fields of an SAE's config set; None where sparsity coefficients decide it."""
    return fields.get("target_l0") or fields.get("k")


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


FIELDS_OF_TRANSFORMERS = {field.name for field in fields(PreTrainedConfig)} | {
    key for key in _TRANSFORMERS_KEYS if key != "model_type"
}


def own_fields(config_class: type[SAEConfig]) -> set[str]:
    """Fields that SAE configs add to those of transformers."""
    return {field.name for field in fields(config_class)} - FIELDS_OF_TRANSFORMERS
