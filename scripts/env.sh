#!/usr/bin/env bash
# Builds the environment in a folder from a lock, unless the one there is current. Usage: scripts/env.sh .venv requirements.lock
# --no-deps, since Composer's and Streaming's own pins contradict the lock (docs/decisions.md). Each file must have a hash of the lock, and
# nothing is built: what builds a package would be fetched without one. Needs Python 3.11-3.13, pip and 6 GB of disk.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 lock=$2
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || {
    echo "rewarm needs Python 3.11 to 3.13, and '$python' is $("$python" --version 2>&1). Write: make env PYTHON=/path/to/python3.11" >&2
    exit 2
}
current=$({ cat "$lock" pyproject.toml scripts/env.sh; "$python" --version; pwd; } | sha256sum | cut -c1-64)
[ "$(cat "$venv/.installed" 2>/dev/null)" != "$current" ] || exit 0

echo "Installing $(grep -c '^[^ #]' "$lock") packages of $lock into $venv (about 5 GB, 2 to 4 minutes; done once) ..."
rm -rf "$venv"
"$python" -m venv "$venv"
"$venv/bin/pip" install --disable-pip-version-check --quiet --no-deps --require-hashes --only-binary :all: -r "$lock"
"$venv/bin/pip" install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
"$venv/bin/python" -m compileall -q rewarm kernels/rewarm_kernels || true
echo "$current" > "$venv/.installed"
echo "Installed $("$venv/bin/python" --version), torch $("$venv/bin/python" -c 'from importlib.metadata import version; print(version("torch"))') in $venv"
