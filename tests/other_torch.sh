#!/usr/bin/env bash
# Law 3: the native library as it stands in the tree must load and pass the op tests under another
# torch than the one that it was built with. The newest torch is a CUDA build; no GPU is needed.
#   tests/other_torch.sh [torch requirement] [folder for the virtual environment]
set -euo pipefail
cd "$(dirname "$0")/.."
requirement=${1:-torch}
venv=${2:-build/other-torch}
test -x "$venv/bin/python" || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --quiet "$requirement" numpy scipy pytest hypothesis diffusers
"$venv/bin/python" - <<'PY'
import torch
from fastdiff._build_info import build_info
from fastdiff.ops import _library

built, built_for = build_info()["torch_at_build"], build_info()["build"]
assert torch.__version__ != built, f"this torch {built} is the one of the build; name another"
assert torch.version.cuda, f"torch {torch.__version__} is no CUDA build"
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, {_library.native_path()}")
assert _library.native_path() is not None, "build the native library first: pip install -e ."
assert _library.native_error() is None, _library.native_error()
assert _library.native_kernel("group_norm_silu", "CPU")
if built_for == "cuda":
    assert _library._native.fastdiff_finds_cuda_streams(), "CUDA kernels would not know their stream"
PY
exec "$venv/bin/python" -m pytest -q -p no:cacheprovider tests/ops
