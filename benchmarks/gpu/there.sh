#!/bin/bash
# On a bare machine: benchmarks/gpu/there.sh PACK table|throughput|profile ARGUMENTS, from the root of
# the checkout. The pack's wheels go beside the packages of python3 (PYTHON), once.
set -eu
pack=$1 command=$2
shift 2
site=${TMPDIR:-/tmp}/lt_pipeline_site python=${PYTHON:-python3}
[ -d "$site" ] || "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
	--target "$site" "$pack"/wheels/*.whl
export PYTHONPATH="$site:src" PYTHONUNBUFFERED=1
exec "$python" -m benchmarks.gpu "$command" --pack "$pack" "$@"
