#!/usr/bin/env bash
# Kill a real training run (SmolLM2, the quickstart's settings, smaller) with SIGKILL at ten random moments, resume it
# each time, and compare its weights with those of a run that was left alone.
#   bash scripts/kill_test.sh [FOLDER]
source "$(dirname "$0")/environment.sh" train
export HF_HUB_OFFLINE=1
root="${1:-runs/kill_test}"
if [ -e "$root" ]; then
    echo "$root is there already; name another folder, or remove it" >&2
    exit 2
fi
mkdir -p "$root"

train() {
    "$venv/bin/hfsae" train scripts/recipes/quickstart.yaml --lm.source packaged --training.output_dir "$root/$1" \
        --training.n_tokens 81920 --sae.d_sae 1024 --shuffle.bucket_tokens 16384 --training.save_steps 8 \
        --evaluation.n_tokens 0 --collect_tokens 0 >> "$root/$1.log" 2>&1
}

train whole
kills=0
while [ "$kills" -lt 10 ]; do
    train killed &
    sleep "$((8 + RANDOM % 8)).$((RANDOM % 10))"
    if ! pkill -9 -P $! 2> /dev/null; then
        echo "the run ended after $kills kills, before the tenth: raise training.n_tokens" >&2
        exit 1
    fi
    wait $! 2> /dev/null || true
    kills=$((kills + 1))
    echo "kill $kills: $(ls "$root/killed/checkpoints" 2> /dev/null | tail -n 1)"
done
train killed
cmp "$root/whole/model.safetensors" "$root/killed/model.safetensors"
cmp "$root/whole/log.jsonl" "$root/killed/log.jsonl"
echo "ten kills later: the same bits"
