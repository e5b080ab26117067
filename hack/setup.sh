#!/usr/bin/env bash
# Makes .venv at the root with everything that the tests and the demo need; safe to run again.
#
#   TORCH=default   the registry's build of torch (CUDA libraries included; also runs on a CPU)
#   TORCH=cpu       the small CPU build; needs the download site of PyTorch
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH="${TORCH:-default}"
PYTHON="${PYTHON:-python3}"
STAMP=.venv/.kubebooth-setup

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
fail() { printf '\033[31merror:\033[0m %s\n' "$*" >&2; exit 1; }

wanted="$(cat pyproject.toml constraints.txt hack/setup.sh | cksum) $TORCH"
if [ -x .venv/bin/python ] && [ "$(cat "$STAMP" 2>/dev/null)" = "$wanted" ]; then
  exit 0
fi

case "$TORCH" in
  default) torch_options=() ;;
  cpu) torch_options=(--torch-backend=cpu) ;;
  *) fail "TORCH=$TORCH is unknown; use TORCH=default or TORCH=cpu" ;;
esac

command -v "$PYTHON" >/dev/null || fail "$PYTHON was not found; install Python 3.11 or newer, or set PYTHON=/path/to/python"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$("$PYTHON" --version) is too old; install Python 3.11 or newer, or set PYTHON=/path/to/python"

uv="$(command -v uv || true)"
if [ -z "$uv" ] || ! "$uv" --version >/dev/null 2>&1; then
  uv=.uv/bin/uv
  if [ ! -x "$uv" ]; then
    say "uv was not found: installing it into .uv"
    "$PYTHON" -m venv .uv || fail "cannot make a virtual environment: install python3-venv, or install uv yourself"
    .uv/bin/pip install --quiet uv
  fi
fi

say "installing Python packages into .venv (about 6 GB with the default torch; 1 to 5 minutes the first time)"
[ -x .venv/bin/python ] || "$uv" venv --quiet --python "$PYTHON" .venv
"$uv" pip install --quiet --python .venv/bin/python --constraint constraints.txt \
  "${torch_options[@]}" --compile-bytecode --editable '.[dev]' ||
  fail "the packages could not be installed: see the message above; TORCH=cpu needs the internet, TORCH=default only the package registry"
# Judges of the converter's tests. Their own requirements would pull in another torch, and they need
# none of them for what they judge.
"$uv" pip install --quiet --python .venv/bin/python --compile-bytecode --no-deps \
  stable-diffusion-sdkit==2.1.5 open_clip_torch==3.3.0 ||
  fail "the converter's judges could not be installed: see the message above"
printf '%s' "$wanted" >"$STAMP"

if ! command -v bwrap >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  say "installing bubblewrap, which isolates the pods of the one-machine cluster"
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq bubblewrap >/dev/null 2>&1 ||
    { apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq bubblewrap >/dev/null; }
fi
command -v bwrap >/dev/null ||
  fail "bubblewrap (bwrap) was not found; install it, for example with: sudo apt-get install bubblewrap"
say "set-up is complete"
