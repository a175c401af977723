#!/usr/bin/env bash
# Writes the two locks: names, versions, markers, and the SHA-256 of each file of a release. `torch===` keeps a locally built torch of the same version from being picked.
set -euo pipefail
cd "$(dirname "$0")/.."
lock() {  # lock OUTPUT [uv's arguments]
    uv pip compile pyproject.toml --extra dev --extra s3 --extra convert --extra wandb --extra mlflow --universal --python-version 3.11 \
        --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet --output-file "$1" "${@:2}"
    sed -i 's/^torch==/torch===/' "$1"
}
lock requirements.lock
# --no-config: without our overrides, so Composer's and Streaming's own pins decide.
lock requirements-pins.lock --no-config --constraint <(printf '%s\n' torch==2.7.0 torchvision==0.22.0 transformers==4.53.3 numpy==2.1.3)
