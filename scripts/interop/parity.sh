#!/usr/bin/env bash
# Whether hfsae and the libraries whose SAE files it reads and writes compute the same, both ways.
# Usage: scripts/interop/parity.sh FOLDER [PEERS]
# Environments are made in PEERS (FOLDER/environments) unless they are there; then each peer writes
# its files to FOLDER/theirs, hfsae its own to FOLDER/ours, each reads the other's, and the table of
# differences is printed and written to scripts/interop/PARITY.md. Run it with hfsae's environment
# active, or name its python in PYTHON. Exit status 1 if anything differs by 1e-5 or more.
set -euo pipefail

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: $0 FOLDER [PEERS]" >&2
    exit 2
fi
here="$(cd "$(dirname "$0")" && pwd)"
mkdir -p "$1" "${2:-$1/environments}"
folder="$(cd "$1" && pwd)"
peers="$(cd "${2:-$1/environments}" && pwd)"
python="${PYTHON:-python}"
"$here/environments.sh" "$peers" saelens sparsify dictionary_learning >&2

# Sets are written in the order of their hashes; everything is local.
export PYTHONHASHSEED=0 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" HF_HUB_OFFLINE=1
export PYTHONPATH="$here/../.."

peer() { "$peers/$1/bin/python" "$here/$2.py" "$3"; }

rm -rf "$folder/theirs" "$folder/read"
mkdir -p "$folder/theirs" "$folder/read"
for format in saelens gemma_scope openai; do
    peer saelens "write_fixtures_$format" "$folder/theirs" >&2
done
for format in sparsify dictionary_learning; do
    peer "$format" "write_fixtures_$format" "$folder/theirs" >&2
done

"$python" "$here/parity.py" export "$folder" >&2

ours="$folder/ours" read="$folder/read"
peer saelens read_saelens "$ours/saelens" > "$read/saelens.jsonl"
peer saelens read_gemma_scope "$ours/gemma_scope" > "$read/gemma_scope.jsonl"
peer saelens read_gemma_scope "$ours/gemma_scope_2" > "$read/gemma_scope_2.jsonl"
peer saelens read_openai "$ours/openai" > "$read/openai.jsonl"
peer sparsify read_sparsify "$ours/sparsify" > "$read/sparsify.jsonl"
peer dictionary_learning read_dictionary_learning "$ours/dictionary_learning" \
    > "$read/dictionary_learning.jsonl"
peer saelens check_to_saelens "$ours/hfsae" > "$read/to_saelens.jsonl"

"$python" "$here/parity.py" table "$folder" "$peers"
