"""How to steer and how to draw tokens: the settings of the steer page and of its endpoint."""

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_type_hints

from ..steering import MODES, SCOPES, UNITS
from ..steering.pair import Sampling
from .validate import SEED, Range

TEMPERATURE, N_NEW, PENALTY = Range(0, 5), Range(1, 256), Range(1, 5)


@dataclass(frozen=True)
class Steering:
    """How to steer, in a caller's words; `steer_actions.check` refuses what is invalid."""

    mode: Annotated[
        str,
        "add: add the strength to the latent's activation; clamp: set it to the strength; scale: "
        "multiply it by the strength; ablate: set it to 0, whatever the strength; orthogonal: "
        "replace the component along its direction; cap: lower it to the strength at most",
        MODES,
    ] = "add"
    unit: Annotated[
        str,
        "of the strengths: max (multiples of a latent's largest activation: 1 to 2 shows in the "
        "text, more breaks it), norm (per cent of the activation's norm) or raw (activation units)",
        UNITS,
    ] = "max"
    scope: Annotated[
        str, "which tokens to steer: all, those of the prompt, or those generated", SCOPES
    ] = "all"
    error_term: Annotated[bool, "keep what the SAE does not explain"] = True
    chat: Annotated[bool, "the prompt is a user's message in the model's chat template"] = False


@dataclass(frozen=True)
class Settings(Steering):
    """How to steer, and how to draw the tokens of both texts."""

    temperature: Annotated[float, "0 takes the likeliest token", TEMPERATURE] = Sampling.temperature
    max_new_tokens: Annotated[int, "length of the continuations", N_NEW] = Sampling.max_new_tokens
    repetition_penalty: Annotated[
        float, "above 1, tokens that were there become less likely", PENALTY
    ] = Sampling.repetition_penalty
    seed: Annotated[int, "of the random numbers", SEED] = Sampling.seed


NAMES = tuple(f.name for f in fields(Settings))


def flat(action: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """The action with an argument for each setting instead of its last one, `settings`.

    Gradio reads signature, types and docstring for the API's page and for agents: all three follow
    from the fields of `Settings`.
    """
    signature = _signature(action)

    @functools.wraps(action)
    def called(*args: object, **kwargs: object) -> Iterator[Any]:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        settings = Settings(**{name: given.arguments.pop(name) for name in NAMES})
        yield from action(**given.arguments, settings=settings)

    kinds = get_type_hints(Settings, include_extras=True)
    words = "".join(f"\n    {name}: {kinds[name].__metadata__[0]}." for name in NAMES)
    own, returns, keys = (inspect.getdoc(action) or "").partition("\n\nReturns:")
    called.__doc__ = f"{own}{words}{returns}{keys}\n"
    called.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    called.__annotations__["return"] = signature.return_annotation
    vars(called)["__signature__"] = signature
    return called


def _signature(action: Callable[..., Any]) -> inspect.Signature:
    """The action's own parameters, then one for each setting."""
    whole = inspect.signature(action)
    kinds = get_type_hints(Settings, include_extras=True)
    *own, _ = whole.parameters.values()
    each = [
        inspect.Parameter(
            f.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=f.default,
            annotation=kinds[f.name],
        )
        for f in fields(Settings)
    ]
    return whole.replace(parameters=[*own, *each])
