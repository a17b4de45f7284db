#!/usr/bin/env bash
# Install what tests need, then run them all: style, types, import floors, and pytest.
# Arguments go to pytest:  bash scripts/test.sh -k jumprelu
#
#   bash scripts/test.sh quick
#
# runs what a change to a variant of SAE needs, in less than a minute on two cores: style, floors,
# types where variants live, and the tests of operations, of every variant, and of what goes wrong in
# short runs. Left out is what starts a process, a browser or a real model, or trains for seconds.
#
#   bash scripts/test.sh pages
#
# holds the pages to the results that are kept, and builds the site: for changes to either, or to
# docstrings. Without it these tests are left out.
source "$(dirname "$0")/environment.sh" dev
export PATH="$(cd "$bin" && pwd):$PATH" HF_HUB_OFFLINE=1
unset PYTHONDONTWRITEBYTECODE # each process would compile hfsae anew

if [ "${1:-}" = quick ]; then
    shift
    ruff check .
    ruff format --check .
    lint-imports
    pyright hfsae/{models,ops,training} & # beside the tests: it takes one processor
    tests=(tests/ops tests/models tests/training/test_{checkpoint,health,schedules}.py)
    python -m pytest -n 2 -m "not slow and not browser and not learns" "${tests[@]}" "$@"
    wait $!
    exit
fi

if [ "${1:-}" = pages ]; then
    shift
    exec python -m pytest -m pages "$@"
fi

# The app's tests drive a browser; where there is none and none can be installed, they skip.
browsers="chromium-headless-shell chromium chromium-browser google-chrome"
if [ -z "$(type -P $browsers)" ] && [ "$(id -u)" = 0 ] && [ -n "$(type -P apt-get)" ]; then
    echo "installing a headless browser" >&2
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
        --no-install-recommends chromium-headless-shell; } > /dev/null 2>&1 ||
        echo "no browser could be installed: tests of the app's pages will skip" >&2
fi

ruff check .
ruff format --check .
pyright
lint-imports
# Two processes: many tests wait for a model, a server or a browser. A file's tests share fixtures.
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not pages" "$@"
