#!/usr/bin/env bash
# Tests each claim of README.md's last table, one after another, and writes the table.
#     bash scripts/citing/all.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
for name in constraint_violations causal_dimensionality class_signal confounded_labels \
    tool_switching echo phase_rotation masked_tokens coherence vision_clt concept_start \
    recurrent_states; do
    python "scripts/citing/$name.py" "scripts/citing/results/$name.json"
done
python scripts/pages/write.py
