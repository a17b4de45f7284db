"""Where an SAE belongs, for its card: its sites, in words and in code, and its language models."""

from typing import Any

from ..models.site_fields import where_of
from .merge import python_string

Json = dict[str, Any]


def models(config: Json, record: Json) -> dict[str, Json]:
    """Several language models by the names that sites have; empty of a single one."""
    names, told = config.get("model_names") or {}, record.get("lms") or {}
    return {name: {"name": lm, **told.get(name, {})} for name, lm in names.items()}


def places(config: Json) -> Json:
    """The sites in words and in code."""
    sites = config.get("sites") or [config.get("site")]
    one = f"acts[{python_string(sites[0] or '')}]"
    scales = zip(sites, config.get("site_scales") or (), strict=False)
    return {
        "where": where_of(config),
        "sites": sites,
        "joined": one if len(sites) == 1 else "sae.join(acts)",
        "site_scales": ", ".join(f"{scale:.4g} at {site}" for site, scale in scales),
    }


def kind_of(config: Json, is_transcoder: bool) -> str:
    """What people call such an SAE: a crosscoder, a (cross-layer) transcoder, an SAE."""
    has_several = len(config.get("sites") or ()) > 1
    if has_several and config.get("model_type", "").endswith("_clt"):
        return "cross-layer transcoder"
    if has_several:
        return "crosscoder"
    return "transcoder" if is_transcoder else "SAE"


def python_list(texts: list[str]) -> str:
    return f"[{', '.join(map(python_string, texts))}]"
