#!/usr/bin/env bash
# Makes README.md's tables again, two commands at once with a thread each: the comparison with its
# probing, and a script for each claim.
#     bash scripts/citing/all.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
comparison() {
    local imports=()
    for file in scripts/citing/variants/*.py; do imports+=(--import "$file"); done
    hfsae compare scripts/citing/comparison.yaml "${imports[@]}"
    hfsae probe runs/compare/citing/*/seed_*/*_{32,50} "${imports[@]}" --uniformity_tokens 0
    PYTHONPATH=scripts python -m comparisons scripts/citing/comparison.yaml "${imports[@]}"
}
claim() { python "scripts/citing/$1.py" "scripts/citing/results/$1.json"; }
export -f comparison claim
{
    echo comparison
    printf 'claim %s\n' vision_clt recurrent_states coherence masked_tokens tool_switching \
        concept_start class_signal causal_dimensionality motifs echo constraint_violations \
        phase_rotation confounded_labels ;
} | xargs -P 2 -I{} bash -c '{}'
python scripts/pages/write.py
