#!/bin/sh
# The same comparison on a machine with a card. Not yet run on one.
set -eu
cd "$(dirname "$0")/../.."
exec "${PYTHON:-.venv-bench/bin/python}" bench/run.py --device cuda "$@"
