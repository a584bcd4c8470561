#!/usr/bin/env bash
# Runs unsafe code under Miri, which notices undefined behaviour: every primitive of the CPU backend on its portable path, also in place
# and in bf16, the allocator and the thread pool: tests/miri.sh [arguments of the test program, such as a name]
#
# Needs a nightly compiler with the components miri and rust-src. Miri interprets, so only small tests are run, some at smaller sizes: a quarter of an hour. The vector paths
# (AVX2, AVX-512) and memory maps are beyond it.
set -euo pipefail
cd "$(dirname "$0")/.."
# Threads of the pool outlive the tests, on purpose. Exponentials are to be the same each time, as they are on a machine.
export MIRIFLAGS="${MIRIFLAGS:--Zmiri-disable-isolation -Zmiri-ignore-leaks -Zmiri-deterministic-floats}" PATCHGPT_CPU=portable
miri() { cargo +nightly miri test "$@"; }
miri -p patchgpt-tensor --test every_primitive --test in_place -- "$@"
miri -p patchgpt-tensor --lib -- --skip threads --skip formula --skip stated_error --skip closely --skip precision \
    --skip reductions_agree --skip large_scores --skip block_of_queries --skip ceilings --skip batches_views --skip every_task "$@"
