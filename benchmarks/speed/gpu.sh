#!/usr/bin/env bash
# What a GPU does with this project, in at most eight minutes: gpu.py says what is measured.
#
#     benchmarks/speed/gpu.sh [FOLDER]        from the root of a checkout; nothing is installed and no network is used
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD:$PWD/runtime${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" benchmarks/speed/gpu.py --output "${1:-results/gpu}"
