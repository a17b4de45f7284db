#!/usr/bin/env bash
# Kill a real training run (SmolLM2, the quickstart's settings, smaller) with SIGKILL at ten random moments, resume it
# each time, and compare its weights and log with those of a run that was left alone.
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
    exec "$venv/bin/hfsae" train scripts/recipes/quickstart.yaml --lm.source packaged --training.output_dir "$root/$1" \
        --training.n_tokens 163840 --sae.d_sae 1024 --shuffle.bucket_tokens 16384 --training.save_steps 8 \
        --evaluation.n_tokens 0 --collect_tokens 0 >> "$root/$1.log" 2>&1
}

# The first kill may hit before there is any checkpoint; later ones wait for one more, so that ten of
# them do not all hit the loading of the language model.
state() {
    if [ "$kills" = 0 ]; then ls "$root/killed/log.jsonl"; else ls "$root/killed/checkpoints"; fi 2> /dev/null || true
}

(train whole)
for kills in 0 1 2 3 4 5 6 7 8 9; do
    before="$(state)"
    train killed &
    pid=$!
    while [ "$(state)" = "$before" ] && kill -0 $pid 2> /dev/null; do sleep 0.02; done
    sleep "0.$((RANDOM % 10))$((RANDOM % 10))"
    if ! kill -9 $pid 2> /dev/null; then
        echo "the run ended after $kills kills, before the tenth: raise training.n_tokens" >&2
        exit 1
    fi
    wait $pid 2> /dev/null || true
    echo "kill $((kills + 1)): $(cd "$root/killed" && ls checkpoints 2> /dev/null | tr '\n' ' ')"
done
(train killed)
cmp "$root/whole/model.safetensors" "$root/killed/model.safetensors"
cmp "$root/whole/log.jsonl" "$root/killed/log.jsonl"
echo "ten kills later: the same bits"
