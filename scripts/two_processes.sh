#!/usr/bin/env bash
# Train on two CPU processes, N times over (default 20), and hold each run's losses to those of one process.
#   bash scripts/two_processes.sh [N] [FOLDER]
source "$(dirname "$0")/environment.sh" train
export HF_HUB_OFFLINE=1 ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1
n="${1:-20}" root="${2:-runs/two_processes}"
if [ -e "$root" ]; then
    echo "$root already exists; name another folder, or remove it" >&2
    exit 2
fi
mkdir -p "$root"

options=(scripts/recipes/quickstart.yaml --lm.source packaged --training.n_tokens 12288 --sae.d_sae 512
    --shuffle.bucket_tokens 6144 --training.logging_steps 4 --evaluation.n_tokens 0 --collect_tokens 0)
"$bin/hfsae" train "${options[@]}" --training.output_dir "$root/one" > "$root/one.log" 2>&1
good=0
for i in $(seq "$n"); do
    "$bin/torchrun" --standalone --nproc_per_node 2 -m hfsae train "${options[@]}" \
        --training.num_processes 2 --training.output_dir "$root/two-$i" > "$root/two-$i.log" 2>&1 && rc=0 || rc=$?
    difference=$("$bin/python" - "$root/one/log.jsonl" "$root/two-$i/log.jsonl" << 'PY'
import json, sys
one, two = ([json.loads(line)["loss"] for line in open(path)] for path in sys.argv[1:])
assert len(one) == len(two) > 0
difference = max(abs(a - b) / a for a, b in zip(one, two))
print(f"{difference:.1e}")
sys.exit(difference > 1e-3)
PY
) || rc="$rc, and losses that differ"
    echo "run $i: exit code $rc, largest relative difference of a loss $difference"
    [ "$rc" = 0 ] && good=$((good + 1))
done
echo "$good of $n ended with exit code 0"
[ "$good" = "$n" ]
