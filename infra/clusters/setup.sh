#!/usr/bin/env bash
# Make ~/venv from a lock file of this folder's parent:  setup.sh constraints.txt | constraints-cuda.txt
# Does nothing where it is there already.  TORCH_INDEX may name PyTorch's index of CPU builds.
set -euo pipefail
python=3.11.14 # To the last digit the same on all machines, or Ray refuses to join them.
root=$(cd "$(dirname "$0")/../.." && pwd)
lock=$root/infra/$1
made=$HOME/venv/made-from
wanted=$(cat "$root/pyproject.toml" "$root"/infra/constraints*.txt | sha256sum)
[ "$(cat "$made" 2>/dev/null)" = "$1 $wanted" ] && exit 0

sudo apt-get update -q && sudo apt-get install -qy gcc libc6-dev python3-venv
[ -x ~/.uv/bin/uv ] || { python3 -m venv ~/.uv && ~/.uv/bin/pip install -q uv==0.13.9; }
~/.uv/bin/uv venv --quiet --clear --seed --python "$python" ~/venv
pip="$HOME/venv/bin/pip install --quiet -c $lock"
[ -z "${TORCH_INDEX:-}" ] || $pip --no-deps --index-url "$TORCH_INDEX" torch
$pip torch setuptools
$pip --no-build-isolation "$root[cluster,evaluation,export,serve]" && rm -rf "$root/build"
grep -q venv/bin ~/.bashrc || echo 'export PATH="$HOME/venv/bin:$PATH" RAY_AUTH_MODE=token' >> ~/.bashrc
echo "$1 $wanted" > "$made"
