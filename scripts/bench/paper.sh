#!/usr/bin/env bash
# The paper's own method at short budgets, and the quickstart's settings beside it: results/paper.json.
#   bash scripts/bench/paper.sh FOLDER/activations-2097152.safetensors
# The file is what `quality.py FOLDER --tokens 2097152` harvested.
set -euo pipefail

settings() {
    python scripts/bench/settings.py "$activations" --output scripts/bench/results/paper.json "$@"
}
activations="$1"
rm -f scripts/bench/results/paper.json
for tokens in 524288 2097152; do
    for rate in 7e-5 1e-3; do settings --paper --tokens "$tokens" --rate "$rate"; done
done
settings --paper --rate 7e-5 --passes 4
settings --variants JumpReLU --set --tokens 524288 --rate 2e-3
settings --variants JumpReLU --set --rate 1e-3
