#!/bin/sh
# Checks and benchmarks that need a GPU: bench/gpu/run.sh [tests] [shapes] [streaming] [growth] [speed]; without words,
# tests and shapes, which together take less than ten minutes. Not yet run on a GPU.
#
# Nothing is downloaded. Wheels in bench/gpu/wheels are installed into bench/gpu/site, for these commands alone.
# PYTHON: the interpreter, else .venv-bench's, else python3. MINUTES: of shapes, 7 by default. RESULT: its file.
set -u
cd "$(dirname "$0")/../.."
here=bench/gpu status=0
python="${PYTHON:-.venv-bench/bin/python}"
command -v "$python" > /dev/null || python=python3
export PYTHONPATH="$PWD:$PWD/$here/site" HF_HUB_OFFLINE=1

if ls $here/wheels/*.whl > /dev/null 2>&1; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --find-links $here/wheels --upgrade \
        --target $here/site $here/wheels/*.whl || exit
fi
for part in ${*:-tests shapes}; do
    case $part in
    tests) timeout 150 "$python" -m pytest tests/training/test_packed_attention.py tests/training/test_layer_transforms.py \
        -k on_a_gpu -rs ;;
    shapes) "$python" bench/shapes.py --minutes "${MINUTES:-7}" ${RESULT:+--out "$RESULT"} ;;
    streaming) "$python" bench/streaming.py --tokens 4096 16384 ;;
    growth) "$python" bench/growth.py --device cuda ;;
    speed) "$python" bench/run.py --device cuda --quick --only speed ;;
    *) echo "$part is none of tests, shapes, streaming, growth, speed" >&2; exit 2 ;;
    esac || { status=$?; echo "$part: exit status $status" >&2; }
done
exit $status
