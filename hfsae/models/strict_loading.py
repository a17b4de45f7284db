"""Loading that refuses what does not fit, where transformers would log a line and go on."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from safetensors import SafetensorError
from transformers import MODEL_MAPPING, AutoConfig, PreTrainedModel
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from ..io.errors import Refused, one_line
from ..io.file_names import FINGERPRINT, WEIGHTS, WEIGHTS_INDEX
from ..io.files import one_at_a_time, opened_tensors, read_json, reading
from .config import SAEConfig
from .fingerprint import Verification, verify

T = TypeVar("T", bound="StrictLoading")
_NO_FINGERPRINT = "there is no {}; `hfsae train` and `hfsae.write_fingerprint` make it"
_HUB_OPTIONS = {
    "cache_dir",
    "force_download",
    "local_files_only",
    "revision",
    "subfolder",
    "token",
    "_commit_hash",
}


class StrictLoading(PreTrainedModel):
    """A model that loads only weights that fit it, and can be verified against its fingerprint."""

    if TYPE_CHECKING:  # transformers' wrapper hides the type

        def to(self: T, *args: object, **kwargs: object) -> T: ...

    @classmethod
    def from_pretrained(
        cls: type[T], pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any
    ) -> T:
        """Load from a folder or the Hub, as transformers does, but refuse what does not fit. Called
        on `SAE`, it returns the variant that the config names.

        Raises:
            ValueError: a weight is missing, unexpected, of another shape, or not finite, where
                transformers would log a line and continue with fresh values; or other files than
                model.safetensors and its shards would be read.
        """
        if cls.config_class is SAEConfig:
            variant = cast(type[T], _variant_at(f"{pretrained_model_name_or_path}", kwargs))
            return variant.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        wants_info = kwargs.pop("output_loading_info", False)
        where = f"{pretrained_model_name_or_path}"
        place = {k: v for k, v in kwargs.items() if k in _HUB_OPTIONS and v is not None}
        # Options that make transformers read other weights than those which are checked here.
        for name in ("variant", "gguf_file"):
            if kwargs.get(name) is not None:
                raise Refused(
                    f"{name}={kwargs[name]!r}: an SAE is read from {WEIGHTS} alone; leave {name} "
                    "out"
                )
        if kwargs.get("use_safetensors") is False:
            raise Refused("use_safetensors=False: an SAE is read from safetensors files alone")
        if path := (kwargs.get("adapter_kwargs") or {}).get("_adapter_model_path"):  # by AutoModel
            raise Refused(_IS_ADAPTER.format(path))
        kwargs["use_safetensors"] = True  # no pickle, not even a restricted one
        if files := _weight_files(where, place):
            _refuse_other_weights(cls, files, where, place, kwargs.get("config"))
        kwargs["ignore_mismatched_sizes"] = True  # reported below, in one sentence
        kwargs["output_loading_info"] = True
        with one_at_a_time:
            loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model, info = loaded  # again, since options such as key_mapping change what is loaded
        if mismatched := info["mismatched_keys"]:
            name, *shapes = min(mismatched)
            raise Refused(_OTHER_SHAPE.format(where, name, *map(list, shapes)))
        _refuse_other_names(model, info["missing_keys"], info["unexpected_keys"], where)
        for key, tensor in model.state_dict().items():
            if not tensor.isfinite().all():
                bad = int((~tensor.isfinite()).sum())
                raise Refused(f"{where}: {key} holds {bad} values that are NaN or infinite")
        model.lay_out_by_latent()
        model._source = {"name": where, **place}
        return loaded if wants_info else model

    def verify(self, fingerprint: str | Path | None = None) -> Verification:
        """Compare this SAE with its fingerprint: are the weights those that were saved, and do they
        give the same latents on this machine?

        Args:
            fingerprint: a fingerprint.safetensors, or a folder that holds one; by default the one
                in the folder or repository that this SAE was loaded from.

        Raises:
            ValueError: there is no fingerprint, or it is damaged.
        """
        if fingerprint is None:
            source = dict(getattr(self, "_source", {}))
            name = source.pop("name", None)
            if name is None:
                raise Refused(
                    "this SAE was not loaded from a folder; name its fingerprint's folder"
                )
            try:
                fingerprint = cast(str, cached_file(name, FINGERPRINT, **source))
            except OSError as error:
                raise Refused(_NO_FINGERPRINT.format(f"{name}/{FINGERPRINT}")) from error
        path = Path(fingerprint)
        path = path / FINGERPRINT if path.is_dir() else path
        if not path.is_file():
            raise Refused(_NO_FINGERPRINT.format(path))
        return verify(self, path)


def _variant_at(name: str, options: dict[str, Any]) -> Any:
    """The class of the SAE in a folder or a repository.

    Raises:
        ValueError: it holds no SAE in hfsae's own format.
    """
    place = {key: value for key, value in options.items() if key in _HUB_OPTIONS}
    try:
        config = options.get("config") or AutoConfig.from_pretrained(name, **place)
    except ValueError as error:  # no model_type, or an unknown one
        raise Refused(f"{name} holds no SAE: {one_line(error)}") from error
    if not isinstance(config, SAEConfig):
        raise Refused(
            f"{name} holds a {config.model_type!r} model, not an SAE in hfsae's format; hfsae.load "
            "reads other formats"
        )
    return MODEL_MAPPING[type(config)]


_IS_ADAPTER = (
    f"{{}} holds {ADAPTER_CONFIG_NAME}, a PEFT adapter's file; remove it if this is an SAE"
)


def _weight_files(name: str, place: dict[str, Any]) -> list[str]:
    """The files that will be loaded; empty if unknown. Downloads those of a repository.

    Raises:
        ValueError: an index of shards names files that are not beside it, or transformers would
            read others: those of an adapter or of a distributed checkpoint.
    """
    lenient = ("gated_repo", "missing_entries", "connection_errors")
    quiet: dict[str, Any] = {f"_raise_exceptions_for_{kind}": False for kind in lenient}

    def find(file: str) -> str | None:
        return cast("str | None", cached_file(name, file, **place, **quiet))

    if find(ADAPTER_CONFIG_NAME):
        raise Refused(_IS_ADAPTER.format(name))
    folder = Path(name, place.get("subfolder", ""))
    if shards := sorted(path.name for path in folder.glob("shard-*-model-*.safetensors")):
        raise Refused(
            f"{folder} holds {shards[0]}, of a distributed checkpoint, which would be read in "
            f"place of {WEIGHTS}; move it elsewhere"
        )
    if file := find(WEIGHTS):
        return [file]
    index = find(WEIGHTS_INDEX)
    if index is None:
        return []
    with reading(Path(index)):
        names = sorted(set(read_json(Path(index))["weight_map"].values()))
        if foreign := [name for name in names if not _SHARD.fullmatch(name)]:
            raise Refused(
                f"{index} lists {foreign[0]!r}, which is not a shard beside it; use an intact copy"
            )
    return list(filter(None, map(find, names)))


def _refuse_other_weights(
    cls: type[PreTrainedModel], files: list[str], where: str, place: dict[str, Any], config: Any
) -> None:
    """Refuse weights that do not fit the config, before memory is allocated for the config's
    shapes and before an unsupported dtype is silently cast."""
    if config is None:
        config_class: Any = cls.config_class
        try:
            config = config_class.from_pretrained(where, **place)
        except ValueError as error:
            raise Refused(f"{where}: {error}") from error
    try:
        with torch.device("meta"):
            empty = cls(config)
    except (RuntimeError, OverflowError) as error:
        raise Refused(f"{where}: its config asks for widths beyond any memory") from error
    shapes, dtypes = {}, {}
    try:
        for file in files:
            with opened_tensors(file) as weights:
                for name in weights.keys():  # noqa: SIM118 - not a dict
                    piece = weights.get_slice(name)
                    shapes[name], dtypes[name] = piece.get_shape(), piece.get_dtype()
    except (SafetensorError, OSError) as error:
        raise Refused(f"{where}: {Path(file).name} is damaged: {error}") from error
    expected = {name: list(t.shape) for name, t in empty.state_dict().items()}
    missing, extra = set(expected) - set(shapes), set(shapes) - set(expected)
    _refuse_other_names(empty, missing, extra, where)
    for name in sorted(expected):
        if expected[name] != shapes[name]:
            raise Refused(_OTHER_SHAPE.format(where, name, shapes[name], expected[name]))
        if dtypes[name] not in _DTYPES:
            raise Refused(
                f"{where}: {name} is stored as {dtypes[name]}; weights of an SAE are "
                f"{', '.join(_DTYPES)}"
            )


_OTHER_SHAPE = (
    "{}: {} has shape {} in the file, but the config asks for {}; config.json and weights belong "
    "to different SAEs"
)
_DTYPES = ("F32", "BF16", "F16", "F64")  # as safetensors names them
_SHARD = re.compile(r"[\w-]+(\.[\w-]+)*\.safetensors")


def _refuse_other_names(
    model: PreTrainedModel, missing: Iterable[str], extra: Iterable[str], where: str
) -> None:
    if missing or extra:
        kind = type(model).__name__
        raise Refused(
            f"{where} is not a {kind}: missing weights {_listed(set(missing))}, unexpected "
            f"weights {_listed(set(extra))}; a {kind} has {sorted(model.state_dict())}"
        )


def _listed(names: set[str]) -> str:
    shown = sorted(names)[:10]
    return f"{shown}" + (f" and {len(names) - len(shown):,} more" if len(names) > 10 else "")
