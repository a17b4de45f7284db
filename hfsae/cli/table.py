"""The verbs: what each does, and what is like an unknown one. A verb's function is in `verbs`,
which this does not import."""

from difflib import get_close_matches
from typing import NamedTuple

from ..io.errors import closest

HELP_ALL = "--help_all"


class Verb(NamedTuple):
    about: str
    """what `--help` prints; the list of all verbs shows its first sentence"""
    when_stopped: str = "the same command starts over"
    """what Ctrl-C says"""


_RESUMES = "run the same command to resume"


VERBS: dict[str, Verb] = {
    "train": Verb(
        "Train the SAE of a recipe, evaluate it, collect what its latents fire on, and "
        "write a folder with weights, card, metrics, figures, examples, names and presets. "
        "Run again, it resumes.",
        _RESUMES,
    ),
    "harvest": Verb(
        "Write the activations that a recipe trains on to files, and a recipe that trains the "
        "same SAEs on them: a run elsewhere then needs no model. Run again, it resumes.",
        _RESUMES,
    ),
    "recipes": Verb(
        "List the recipes that come with hfsae, for `hfsae train NAME`, or those of a folder.",
    ),
    "compare": Verb(
        "Train the arms of a comparison on the same activations, evaluate them on the same "
        "held-out text, report fidelity at equal L0 with intervals. It resumes.",
        _RESUMES,
    ),
    "tune": Verb(
        "Search the settings of a recipe: it draws settings at random from ranges, "
        "repeatedly trains the better half of them on twice the tokens, and scores them on "
        "validation documents. It writes a report and the best recipe. Run again, it "
        "resumes.",
        _RESUMES,
    ),
    "evaluate": Verb(
        "Evaluate a trained SAE again; fields that you change are saved in its "
        "recipe.yaml. Or evaluate any SAE, in a folder or repository, in any format, on a "
        "whole text; name the language model if its config does not.",
    ),
    "collect": Verb(
        "Collect examples of what a trained SAE's latents fire on again; fields that you "
        "change are saved in its recipe.yaml. Or do it for any SAE, in a folder or "
        "repository, in any format; name the language model if its config does not.",
        _RESUMES,
    ),
    "explain": Verb(
        "Explain what latents of an SAE mean, on half of the held-out documents, and test "
        "it on the other half, beside another latent's explanation and random directions. "
        "It reads the text once, and writes explanations and a report below features/; run "
        "again, it prints the report. --scores and --explainer lm need a language model "
        "(--judge); features/calls.jsonl keeps its answers.",
        _RESUMES,
    ),
    "probe": Verb(
        "Probe SAEs: how well 1, 2, 5, 16 or all latents tell two classes of texts apart, "
        "beside untrained latents that fire as often, the model's own dimensions, and a "
        "bag of tokens; then first-letter absorption, and the uniformity of latents' "
        "effects. SAEs of one model are probed side by side; results are probing.json and "
        "probing.md in each folder, and their means are also in evaluation.json and the "
        "card.",
        "nothing was written; the same command starts over",
    ),
    "diff": Verb(
        "Compare two language models by a crosscoder over sites of both, which a recipe with lms "
        "trains: how much of what changed each latent explains, on which tokens, and whether it is "
        "of one model or of both. It reads held-out text once, and writes diff.json and a figure.",
    ),
    "show": Verb(
        "Print an SAE's metrics, and what some of its latents fire on (those that you "
        "name, or a few at random), from the results in its folder.",
    ),
    "card": Verb(
        "Draw the figures and write the model card again, from the results in a folder. For "
        "an SAE from elsewhere, or in another format, a new folder is made.",
    ),
    "list": Verb(
        "List the SAEs in a folder or a repository on the Hub, without fetching their "
        "weights. Exit code 1 if there is no SAE in a known format.",
    ),
    "push": Verb(
        "Send an SAE, or a folder of several, to the Hub in one commit. One in another "
        "library's format, or chosen from several, is sent in hfsae's own, with its "
        "results. A new repository is private, unless --public. The token is the one from "
        "`hf auth login`, or HF_TOKEN.",
    ),
    "verify": Verb(
        "Check that an SAE's weights equal the saved ones, to the bit, and that this "
        "machine, dtype and version compute the latents that its fingerprint records. Exit "
        "code 1 if not, 3 if there is no fingerprint, as in other libraries' files: then "
        "the weights are only read and hashed.",
    ),
    "convert": Verb(
        "Write an SAE of any known format in another one, with the same latents and "
        "reconstructions. An SAE that the new format cannot represent is refused.",
    ),
    "export": Verb(
        "Write an SAE's examples, histograms, promoted tokens and names as the folder that "
        "Neuronpedia's importer takes. It needs the feature store that `hfsae collect` writes.",
    ),
    "demo": Verb(
        "Open an SAE in the browser: what its latents fire on, what they do, and why the "
        "model produced a token. Without SOURCE: the quickstart's SAE, or else a small "
        "packaged one.",
        "the app is closed",
    ),
    "graph": Verb(
        "Draw the attribution graph of a prompt: which features of transcoders, which errors and "
        "tokens made the next token, as a web page that opens offline, and as the JSON of "
        "circuit-tracer's and Neuronpedia's front ends. It needs transcoders of MLPs, at some "
        "blocks or all, or a cross-layer transcoder.",
    ),
    "presets": Verb(
        "Find latents, strengths and prompts with which steering visibly changes the text, "
        "with each of three seeds, and write them to presets.json beside the SAE: the app "
        "offers them. It needs the examples that `hfsae collect` writes, and takes minutes.",
    ),
    "space": Verb(
        "Write a folder for a Space on the Hub: the app for one SAE, from a repository "
        "there or a folder here; a folder's files are copied in hfsae's format. Nothing is "
        "pushed: it prints the commands for that.",
    ),
}
EXAMPLES = (
    "hfsae train quickstart --training.output_dir runs/mine",
    "hfsae train --activations acts.safetensors --site layer8 --training.output_dir runs/mine",
    "hfsae train recipe.yaml --sae.target_l0 80 --training.n_tokens 2000000 --dry_run",
    "hfsae harvest quickstart --out acts",
    "hfsae compare scripts/comparisons/small_budget.yaml",
    "hfsae tune quickstart --trials 8 --training.output_dir runs/tuned",
    "hfsae evaluate runs/mine --evaluation.n_tokens 200000",
    "hfsae evaluate someone/sae --lm.name google/gemma-2-2b --text.dataset my.jsonl",
    "hfsae collect runs/mine --collect_tokens 2000000",
    "hfsae show runs/mine 17 1234",
    "hfsae explain runs/mine",
    "hfsae probe runs/mine",
    "hfsae diff runs/diff",
    "hfsae card runs/mine",
    "hfsae push runs/mine me/my-sae",
    "hfsae list google/gemma-scope-2b-pt-res",
    "hfsae demo runs/mine",
    'hfsae graph runs/transcoders "The capital of France is"',
    "hfsae export runs/mine --to neuronpedia",
    "hfsae convert google/gemma-scope-2b-pt-res gs --to saelens --layer 12 --width 16k --l0 80",
)
ABOUT_FIELDS = """\
A field is set in the recipe's YAML file, or by its dotted name on the command line, which wins;
`hfsae train --help_all` explains all of them. Several processes:
`torchrun --standalone --nproc_per_node N -m hfsae train recipe.yaml`."""


def with_names(problem: str, name: str, names: list[str]) -> str:
    """The problem of an unknown name, with the nearest names or else all of them."""
    section, dot, field = name.rpartition(".")
    own = {n: n.removeprefix(section + dot) for n in names if n.startswith(section + dot)}
    # as people shorten it: "lr" of "learning_rate"
    if short := [
        n
        for n, own_field in own.items()
        if "".join(part[:1] for part in own_field.split("_")) == field
    ]:
        return f"{problem}; closest: {', '.join(map(repr, short))}"
    if dot and own and not get_close_matches(field, [*own.values()]):
        return f"{problem}; `{HELP_ALL}` lists all"  # the section alone is alike
    every = f"; known: {', '.join(n for n in names if '.' not in n)}"
    return f"{problem}{closest(name, names) or every}"
