#!/usr/bin/env bash
# Fuzzes the readers of files from outside, guided by coverage: tests/fuzz.sh [seconds per target] [target ...]
#
# Needs a nightly compiler and cargo-fuzz (cargo install cargo-fuzz). Inputs that fail are left in tests/fuzz/artifacts. Without either,
# PATCHGPT_FUZZ_SECONDS=600 cargo test -p patchgpt-tests --test untrusted mutates the same files blindly on any compiler.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-60}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(checkpoint counters weights index token_file tokenizer config)

(cd .. && cargo run -q -p patchgpt-tests --example fuzz_seeds -- tests/fuzz/corpus)
for target in "${targets[@]}"; do
    printf '\n== %s\n' "$target"
    # A file of a few kilobytes justifies no gigabyte; -O without a sanitizer runs several times as fast, and the readers have no unsafe code
    # of their own but a memory map.
    cargo +nightly fuzz run --fuzz-dir fuzz --sanitizer none "$target" -- \
        -max_total_time="$seconds" -rss_limit_mb=2048 -malloc_limit_mb=1024 -timeout=20 -print_final_stats=1
done
