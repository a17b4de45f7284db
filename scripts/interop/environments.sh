#!/usr/bin/env bash
# One virtual environment for each library whose SAE files hfsae reads and writes.
# Usage: scripts/interop/environments.sh FOLDER [PEER...]
# Makes FOLDER/PEER for saelens, sparsify, dictionary_learning and saebench, or for those named.
# sae_probes is made only where it is named, without the heavy packages that it declares.
set -euo pipefail

if [ $# -lt 1 ]; then
    echo "usage: $0 FOLDER [saelens|sparsify|dictionary_learning|saebench|sae_probes ...]" >&2
    exit 2
fi
folder="$1"
shift
if [ $# -eq 0 ]; then set -- saelens sparsify dictionary_learning saebench; fi
python="${PYTHON:-python3}"
mkdir -p "$folder"

requirements() {
    case "$1" in
        saelens) echo "sae-lens==6.54.12 torch==2.13.0 transformers==5.24.0 lazy_loader" ;;  # hfsae runs in it
        sparsify) echo "eai-sparsify==1.3.3 torch==2.13.0 transformers==5.24.0" ;;
        dictionary_learning)
            echo "dictionary-learning==0.1.0 nnsight==0.3.7 torch==2.13.0 transformers==5.24.0" ;;
        saebench)
            echo "sae-bench==0.6.0 sae-lens==6.54.12 transformer-lens==3.9.0 datasets==3.6.0" \
                "torch==2.13.0 transformers==5.24.0" ;;
        sae_probes) echo "torch==2.13.0 numpy pandas scikit-learn==1.9.1 tqdm joblib zstandard" ;;
        *)
            echo "unknown peer $1: saelens, sparsify, dictionary_learning, saebench, sae_probes" >&2
            return 2 ;;
    esac
}

for peer in "$@"; do
    wanted="$(requirements "$peer")"
    if [ "$(cat "$folder/$peer/wanted" 2>/dev/null)" = "$wanted" ]; then continue; fi
    echo "making $folder/$peer: $wanted" >&2
    "$python" -m venv "$folder/$peer"
    # shellcheck disable=SC2086 # the requirements are words
    "$folder/$peer/bin/python" -m pip install --quiet --disable-pip-version-check $wanted
    if [ "$peer" = sae_probes ]; then
        "$folder/$peer/bin/python" -m pip install --quiet --no-deps sae-probes==0.4.2
    fi
    echo "$wanted" > "$folder/$peer/wanted"
done
