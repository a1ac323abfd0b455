#!/bin/bash
# setup.sh [aarch64]: installs the Debian packages that attend, or its cross build, needs and this machine lacks.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
  g++ cmake ninja-build pkg-config ccache mold
  libfmt-dev libhwy-dev libdlpack-dev libutf8proc-dev libssl-dev libcli11-dev nlohmann-json3-dev libgtest-dev
  clang libclang-rt-dev libomp-dev clang-format
  python3-pip python3-numpy unzip ca-certificates
)
what=${1:-native}
if [ "$what" = aarch64 ]; then
  packages=(
    g++-aarch64-linux-gnu qemu-user
    {libstdc++6,libgomp1,libfmt-dev,libhwy-dev,libutf8proc-dev,libssl-dev,libgtest-dev}:arm64
  )
fi

stamp=build/.setup-$what-$(md5sum "$0" | cut -c1-12)
[ -e "$stamp" ] && exit 0

if ! command -v dpkg-query >/dev/null; then
  echo "setup: this is no Debian system; attend needs what these Debian 12 packages hold: ${packages[*]}" >&2
  exit 1
fi
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' || missing+=("$package")
done

if [ ${#missing[@]} -gt 0 ]; then
  as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if ! sudo -n true 2>/dev/null; then
      first=
      [ "$what" = native ] || first="dpkg --add-architecture arm64 && apt-get update && "
      echo "setup: only root can install what is missing; run: ${first}apt-get install ${missing[*]}" >&2
      exit 1
    fi
    as_root=(sudo -n)
  fi
  echo "setup: installing ${missing[*]}"
  mkdir -p build
  [ "$what" = native ] || "${as_root[@]}" dpkg --add-architecture arm64
  install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "${missing[@]}")
  if ! { "${as_root[@]}" apt-get -q update && "${install[@]}"; } </dev/null >build/setup.log 2>&1; then
    echo "setup: apt-get failed: $(grep -m1 '^E: ' build/setup.log || tail -n1 build/setup.log) (all of it: build/setup.log)" >&2
    exit 1
  fi
fi
mkdir -p build
rm -f build/.setup-"$what"-*
touch "$stamp"
