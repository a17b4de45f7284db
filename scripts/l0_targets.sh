#!/usr/bin/env bash
# Three targets and three seeds at the quickstart's settings: does L0 land where it was asked to? About 25 minutes.
#   bash scripts/l0_targets.sh [FOLDER]
source "$(dirname "$0")/environment.sh" train
export HF_HUB_OFFLINE=1
root="${1:-runs/l0_targets}"

for seed in 0 1 2; do
    "$venv/bin/hfsae" train scripts/recipes/l0_targets.yaml --lm.source packaged --training.output_dir "$root/$seed" \
        --seed "$seed" --text.seed "$seed" --shuffle.seed "$seed" > /dev/null
done
"$venv/bin/python" - "$root" << 'PY'
import json, pathlib, sys
print("| target | seed | L0 (95 % interval) | off by | FVU | delta loss, nats/token | dead |")
print("| ---: | ---: | --- | ---: | ---: | ---: | ---: |")
for target in (20, 50, 100):
    for seed in range(3):
        path = pathlib.Path(sys.argv[1], str(seed), f"l0_{target}", "evaluation.json")
        m = json.loads(path.read_text())["metrics"]
        l0 = m["l0"]
        print(f"| {target} | {seed} | {l0['value']:.1f} ({l0['low']:.1f} to {l0['high']:.1f}) "
              f"| {l0['value'] / target - 1:+.1%} | {m['fvu']['value']:.3f} "
              f"| {m['delta_loss']['value']:.3f} | {m['dead_share']['value']:.1%} |")
PY
