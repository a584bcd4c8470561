#!/usr/bin/env bash
# Runs the unit tests of the tensor crate and the graph tests of autograd under Miri, which notices undefined behaviour in unsafe code:
# tests/miri.sh [filter]. Needs a nightly compiler with the components miri and rust-src.
#
# Miri interprets: it takes the portable instruction path, and what computes millions of elements is left out.
set -euo pipefail
cd "$(dirname "$0")/.."
export MIRIFLAGS="${MIRIFLAGS:--Zmiri-disable-isolation -Zmiri-ignore-leaks}" PATCHGPT_CPU=portable
cargo +nightly miri test -p patchgpt-tensor --lib -- "${@:-cpu::memory}" 
