#!/usr/bin/env bash
# Runs the attention cases of the ONNX reference (package onnx 1.23) through `attend apply`; writes docs/onnx-cases.md.
set -euo pipefail
cd "$(dirname "$0")/.."
env=build/onnx-env
if ! "$env/bin/python" -c 'import onnx, numpy' 2>/dev/null; then
  echo "Preparing $env (onnx 1.23.0 from PyPI)"
  python3 -m venv "$env"
  "$env/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.0 numpy
fi
exec "$env/bin/python" scripts/onnx_cases.py "${1:-build/release/attend}" docs/onnx-cases.md
