"""The fields of an SAE's config that say where it belongs: its sites, their widths and scales."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from transformers import PreTrainedConfig

from ..io.errors import Refused
from ..lm.sites import Sites

Number = int | float
_OF_SEVERAL = ("sites", "widths", "site_scales", "scales_folded", "row_norm", "site_dropout")
_OF_SEVERAL += ("dedicated",)
_SHOWN = 3  # places that are named one by one


class SiteFields(PreTrainedConfig):
    """Places, widths and scales: the base of `SAEConfig`.

    An SAE has one `site`, or reads one and reconstructs another (`target_site`, a transcoder), or
    has several `sites` that it reads and reconstructs side by side (a crosscoder, models/places).
    """

    __no_type_check__ = True
    has_no_defaults_at_init = True
    is_causal: ClassVar[bool] = False
    """Each of several sites is read by latents of its own, which write at it and later ones."""
    scale_names: ClassVar = ("activation_scale", "target_scale", "site_scales")
    """fields that are estimated from activations"""

    d_in: int
    d_out: int = 0
    """width of the reconstruction; 0: the same as d_in"""
    site: str | None = None
    """place in the model: 'layers.12', 'layers.12.mlp:in', ... (`hfsae.lm.sites`)"""
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

    def check_sites(self) -> None:
        """Raise ValueError for places, widths or scales that do not go together."""
        if self.sites is None:
            self._refuse_without_sites()
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
        self._check_numbers_of_sites(n)
        self._check_dedicated(n)

    def _refuse_without_sites(self) -> None:
        for name in ("widths", "site_scales", "site_dropout", "scales_folded", "dedicated"):
            if getattr(self, name):
                raise Refused(f"{name} needs sites, the list of places that the SAE reads")

    def _check_numbers_of_sites(self, n: int) -> None:
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

    def _check_dedicated(self, n: int) -> None:
        if not self.dedicated:
            return
        if n < 2 or self.is_causal or (self.widths is not None and len({*self.widths}) > 1):
            raise Refused(
                "dedicated needs two sites or more of one width, and a variant whose latents read "
                "all of them; set it to 0"
            )
        if not 0 < self.dedicated < self.d_sae:
            raise Refused(
                f"dedicated must be 0 or more, and fewer than all {self.d_sae} latents, got "
                f"{self.dedicated}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Fields as in config.json: of an SAE of one site without those of several."""
        whole = super().to_dict()
        return {k: v for k, v in whole.items() if self.sites is not None or k not in _OF_SEVERAL}

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


def where_in_short_of(config: Mapping[str, Any]) -> str | None:
    """`SiteFields.where_in_short` from the fields of an SAE's config."""
    sites = config.get("sites") or []
    many = len(sites) > _SHOWN
    return f"{sites[0]} to {sites[-1]} ({len(sites)} sites)" if many else where_of(config)


def where_to_of(config: Mapping[str, Any]) -> str | None:
    """`SiteFields.where_to` from the fields of an SAE's config."""
    if targets := config.get("target_sites"):
        return ", ".join(targets) if targets != config.get("sites") else None
    target = config.get("target_site")
    return target if target != config.get("site") else None


def where_of(config: Mapping[str, Any]) -> str | None:
    """`SiteFields.where` from the fields of an SAE's config."""
    return ", ".join(config.get("sites") or ()) or config.get("site")
