#!/usr/bin/env bash
# Install what tests need, then run them all: style, types, import floors, and pytest.
# Arguments go to pytest:  bash scripts/test.sh -k jumprelu
source "$(dirname "$0")/environment.sh" dev
export PATH="$PWD/$venv/bin:$PATH" HF_HUB_OFFLINE=1

ruff check .
ruff format --check .
pyright
lint-imports
python -m pytest "$@"
