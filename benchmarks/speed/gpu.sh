#!/usr/bin/env bash
# What a GPU does with this project, in at most eight minutes: gpu.py says what is measured.
#
#     benchmarks/speed/gpu.sh [FOLDER [--small]]        from the root of a checkout; no network is used
#
# Packages that the machine lacks are taken from wheels/, where that is; nothing is installed but into a folder that goes.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
export PYTHONPATH="$PWD:$PWD/runtime${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
if [ -d wheels ]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --no-index --no-deps --target "$site" wheels/*.whl
  PYTHONPATH="$PYTHONPATH:$site"
fi
"$python" benchmarks/speed/gpu.py --output "${1:-results/gpu}" "${@:2}"
