#!/bin/sh
# Every check and benchmark that needs a card, in a virtual environment with the test and bench extras.
# Not yet run on one.
set -eu
cd "$(dirname "$0")/../.."
python="${PYTHON:-.venv-bench/bin/python}"
"$python" -m pytest tests/train -k "card or cuda" -rs
"$python" bench/growth.py --device cuda
"$python" bench/run.py --device cuda --quick --only speed
