#!/usr/bin/env bash
# Runs the attention cases of the ONNX reference (package onnx 1.23) through `attend apply`; writes docs/onnx-cases.md.
set -euo pipefail
cd "$(dirname "$0")/.."
env=build/onnx-env
export PYTHONPATH=$env
if ! python3 -c 'import onnx, numpy' 2>/dev/null; then
  echo "Preparing $env (onnx 1.23.0 from PyPI)"
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target "$env" onnx==1.23.0 numpy
fi
exec python3 scripts/onnx_cases.py "${1:-build/release/attend}" docs/onnx-cases.md
