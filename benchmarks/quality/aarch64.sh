#!/usr/bin/env bash
# A folder with Python for aarch64 and what the runtime needs, for emulated.py. Nothing is installed; Debian 12 on x86.
#
#     benchmarks/quality/aarch64.sh ROOT
set -euo pipefail
mkdir -p "$1"
root=$(realpath "$1")
mkdir -p "$root/apt/lists/partial" "$root/apt/archives/partial"
touch "$root/apt/status"
apt() {
  apt-get -q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State="$root/apt" -o Dir::Cache="$root/apt" \
    -o Dir::State::status="$root/apt/status" "$@"
}
apt update
apt install --yes --download-only --no-install-recommends python3.11 libstdc++6
for package in "$root"/apt/archives/*.deb; do dpkg -x "$package" "$root"; done
rm -r "$root/apt"
pip install --target "$root/site" --no-deps --only-binary :all: --python-version 3.11 \
  --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 \
  $(python -c "from importlib.metadata import version as v; print(*(f'{n}=={v(n)}' for n in ('numpy', 'onnxruntime', 'tokenizers')))")

# ONNX Runtime reads the kind of processor here, and crashes on what is no Arm. QEMU (7) shows the file of the folder, and
# tells which instructions there are.
mkdir -p "$root/proc"
for ((number = 0; number < $(nproc --all); number++)); do
  printf 'processor\t: %s\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n' $number
done >"$root/proc/cpuinfo"
