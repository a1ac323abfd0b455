#!/bin/bash
# build.sh PRESET [TARGET..]: configures once and builds; quiet unless it takes work.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=$1
shift
export CCACHE_SLOPPINESS=${CCACHE_SLOPPINESS:-pch_defines,time_macros}
# Clones and worktrees share what they compile.
export CCACHE_BASEDIR=${CCACHE_BASEDIR:-$PWD} CCACHE_NOHASHDIR=${CCACHE_NOHASHDIR:-1}

if [ ! -e "build/$preset/build.ninja" ]; then
  echo "build: configuring build/$preset"
  mkdir -p build
  if ! cmake --preset "$preset" >"build/configure-$preset.log" 2>&1; then
    cat "build/configure-$preset.log" >&2
    exit 1
  fi
fi
# On a terminal ninja shows one moving line, elsewhere only what goes wrong.
quiet=()
[ -t 1 ] || quiet=(--quiet)
if [[ $(ninja -n -C "build/$preset" "$@") == *"no work to do"* ]]; then exit 0; fi
NINJA_STATUS='[%f/%t %es] ' ninja "${quiet[@]}" -C "build/$preset" "$@"
