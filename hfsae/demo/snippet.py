"""Python code that does what a page shows: the same model, tokens and strengths."""

from dataclasses import fields

from ..io.units import PATCH
from ..steering.pair import Sampling
from .address import Steer
from .rows import largest_of
from .subject import Subject

_N_TOKENS = 30
_OF_NORM = 20.0  # per cent, for a latent whose largest activation is unknown


def of_latent(subject: Subject, latent: int) -> str:
    """A text with a latent steered as strongly as it ever fires, the likeliest token each time; of
    an SAE that reads no text, or the text of several models, the latent's activations."""
    if subject.unit == PATCH:
        return _of_picture(subject, latent)
    if not subject.unit.is_text:
        return _of_file(subject, latent)
    if subject.sae.config.model_names:
        return _of_several_models(subject, latent)
    largest = largest_of(subject, latent)
    how = f"{{{latent}: {largest or _OF_NORM:.6g}}}"
    what = "its largest activation, raw units" if largest else "per cent of the norm"
    unit = "" if largest else ", unit='norm'"
    cached = ", use_cache=False" if subject.sae.config.needs_whole_text else ""
    return (
        f"{_loading(subject)}"
        f"text = {_bos(subject)}'Once upon a time'\n"
        "tokens = tokenizer(text, add_special_tokens=False, return_tensors='pt')\n"
        f"with hfsae.steer(lm, sae, {how}{unit}):  # {what}\n"
        f"    out = lm.generate(**tokens, max_new_tokens={_N_TOKENS}, do_sample=False{cached})\n"
        "print(tokenizer.decode(out[0]))\n"
    )


def _of_picture(subject: Subject, latent: int) -> str:
    """A latent's activations on the vectors of a picture."""
    config = subject.sae.config
    dtype = f", dtype={config.model_dtype!r}" if config.model_dtype else ""
    sites = list(config.reads.names) if config.where else ["SITE"]
    joined = f"acts[{sites[0]!r}][0]"
    if len(sites) > 1:
        joined = "sae.config.reads.joined({site: a[0] for site, a in acts.items()})"
    return (
        "import hfsae\n"
        "from hfsae.lm import forward, load_encoder\n"
        "from PIL import Image\n\n"
        f"sae = {subject.in_python}\n"
        f"model, processor, _ = load_encoder({subject.shown_lm_name or 'NAME'!r}{dtype})\n\n"
        "inputs = processor(images=[Image.open('picture.jpg')], return_tensors='pt')\n"
        f"with hfsae.capture(model, {sites}, stop_early=True) as acts:\n"
        "    forward(model, inputs)\n"
        f"x = {joined}\n"
        f"latents = sae.encode(x.to(sae.dtype))  # [vectors, {config.d_sae}], patches row by row\n"
        f"print(latents[:, {latent}])\n"
    )


def _of_several_models(subject: Subject, latent: int) -> str:
    """A latent's activations on a text that several models read."""
    config = subject.sae.config
    names = {name: f"FOLDER_OR_ID of {name}" for name in config.model_names or {}}
    return (
        "import hfsae, torch\n\n"
        f"sae = {subject.in_python}\n"
        f"loaded = {{name: hfsae.load_lm(of) for name, of in {names!r}.items()}}\n"
        f"text, acts = {_bos(subject, 'next(iter(loaded.values())).')}'Once upon a time', {{}}\n"
        "for name, (lm, tokenizer, _) in loaded.items():\n"
        "    tokens = tokenizer(text, add_special_tokens=False, return_tensors='pt')\n"
        "    sites = [s for s in sae.config.sites if s.startswith(f'{name}/')]\n"
        "    paths = [site.partition('/')[2] for site in sites]\n"
        "    with torch.no_grad(), hfsae.capture(lm, paths, stop_early=True) as own:\n"
        "        lm(**tokens)\n"
        "    acts |= {f'{name}/{path}': x for path, x in own.items()}\n"
        "latents = sae.encode(sae.join(acts).to(sae.dtype))  # [1, tokens, d_sae]\n"
        f"print(latents[0, :, {latent}])\n"
    )


def _of_file(subject: Subject, latent: int) -> str:
    """The rows of a file of activations on which a latent fires most."""
    config, many = subject.sae.config, subject.unit.many
    return (
        "import hfsae\n"
        "from safetensors.torch import load_file\n\n"
        f"sae = {subject.in_python}\n"
        f"x = load_file('activations.safetensors')[{config.where or 'SITE'!r}]"
        f"  # [{many}, {config.d_in}], raw units\n"
        f"latents = sae.encode(x.to(sae.dtype))  # [{many}, {config.d_sae}]\n"
        f"values, places = latents[:, {latent}].topk(10)\n"
        "print(values, places)\n"
    )


def of_texts(subject: Subject, how: Steer) -> str:
    """Both texts of the steer page, token for token."""
    options, in_maxima = f", mode={how.mode!r}", False
    if how.mode not in ("scale", "ablate"):
        in_maxima = how.unit == "max"
        options += ", unit='norm'" if how.unit == "norm" else ""
    options += "" if how.error_term else ", error_term=False"
    scales = {i: (largest_of(subject, i) or 0.0) if in_maxima else 1.0 for i in how.latents}
    strengths = ", ".join(f"{i}: {s * scales[i]:.9g}" for i, s in how.latents.items())
    steered = f"{{{strengths}}}{options}"  # in raw units, per cent of the norm, or factors
    text = f"{_bos(subject)}{how.prompt!r}"
    if how.chat:
        message = f"[{{'role': 'user', 'content': {how.prompt!r}}}]"
        flags = "add_generation_prompt=True, tokenize=False"
        text = f"tokenizer.apply_chat_template({message}, {flags})"
    sampling = ", ".join(f"{f.name}={getattr(how, f.name)!r}" for f in fields(Sampling))
    cached = ", cached=False" if subject.sae.config.needs_whole_text else ""
    where = "" if how.scope == "all" else f" if phase == {how.scope!r} else nullcontext()"
    return (
        f"{'from contextlib import nullcontext' + chr(10) * 2 if where else ''}"
        f"{_loading(subject, 'from hfsae.activations.tokens import special_ids', _PAIR)}"
        f"prompt = {text}\n"
        "ids = tokenizer(prompt, add_special_tokens=False)['input_ids']\n"
        "spare = special_ids(tokenizer)  # BOS and the like are left as they are\n\n\n"
        "def steered(phase):  # of each forward pass: 'prompt', then 'generated'\n"
        f"    return hfsae.steer(lm, sae, {steered}, spare_tokens=spare){where}\n\n\n"
        f"how = Sampling({sampling})\n"
        f"*_, pair = generate_pair(lm, tokenizer, ids, steered, how{cached})\n"
        "print(pair.plain, pair.steered, sep='\\n\\n')\n"
    )


_PAIR = "from hfsae.steering.pair import Sampling, generate_pair"


def _loading(subject: Subject, *imports: str) -> str:
    lines = ["import hfsae", *imports, "", f"sae = {subject.in_python}"]
    # as the language model was loaded: another dtype gives other activations
    config, loaded = subject.sae.config, subject.loaded
    dtype = config.model_dtype if loaded is None else str(loaded.lm.dtype).removeprefix("torch.")
    options = {"dtype": dtype}
    if subject.lm_name == config.model_name:
        options |= {"revision": config.model_revision}
        options |= {"attn_implementation": config.model_attention}
    given = "".join(f", {name}={value!r}" for name, value in options.items() if value is not None)
    lines.append(f"lm, tokenizer, _ = hfsae.load_lm({subject.shown_lm_name or 'NAME'!r}{given})")
    return "\n".join(lines) + "\n\n"


def _bos(subject: Subject, of: str = "") -> str:
    has_bos = subject.loaded is None or subject.tokenizer.bos_token_id is not None
    return f"{of}tokenizer.bos_token + " if subject.sae.config.bos != "none" and has_bos else ""
