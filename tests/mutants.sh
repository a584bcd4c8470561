#!/usr/bin/env bash
# Mutation testing: changes the code in one place at a time and lists the changes that no test notices.
#
#     tests/mutants.sh kernels|ops|gradcheck|model|regimes [arguments of cargo mutants, such as --shard 0/8 or --list]
#
# Needs cargo-mutants (cargo install cargo-mutants). Each mutant costs a build and a run of the tests that are about it, some ten seconds in
# all; what happened is in mutants.out: `missed.txt` lists the survivors. A mutant that only changes how work is cut, which of two equal paths
# is taken, which random numbers are drawn or how memory is reused computes the same numbers and survives rightly; so does one in instructions
# that this machine lacks. What stands in a macro (`vectorized!`, `with_float!`) is not changed: cargo mutants does not look into macros.
set -euo pipefail
cd "$(dirname "$0")/.."
area=${1:?kernels, ops, gradcheck, model or regimes}
shift
case $area in
    kernels)
        files=('tensor/src/cpu/*.rs' 'tensor/src/cpu/*/*.rs')
        packages=patchgpt-tensor,patchgpt-tests
        tests=(--lib --test every_primitive --test in_place --test several_blocks --test mistakes)
        tests+=(--test conformance --test primitives --test bf16)
        ;;
    ops)
        files=('autograd/src/ops/*.rs')
        packages=patchgpt-autograd,patchgpt-tests
        tests=(--lib --test autograd --test conformance --test gradients)
        ;;
    gradcheck)
        files=('autograd/src/gradcheck/*.rs')
        packages=patchgpt-autograd,patchgpt-tests
        tests=(--lib --test autograd --test gradients)
        ;;
    model)
        files=('models/src/gpt/*.rs' 'models/src/hub/*.rs' 'models/src/inspect.rs')
        packages=patchgpt-models,patchgpt-tests
        tests=(--lib --test gpt --test bf16 --test hub --test program --test parity --test oracle --test whole_model)
        ;;
    regimes)
        files=('models/src/regime.rs' 'models/src/data/batch.rs' 'models/src/data/window.rs')
        packages=patchgpt-models,patchgpt-tests
        tests=(--lib --test gpt --test parity)
        ;;
    *)
        echo "there is no area $area: kernels, ops, gradcheck, model or regimes" >&2
        exit 2
        ;;
esac
# Little optimisation and no debug information: most of the time goes to builds.
export CARGO_PROFILE_DEV_OPT_LEVEL=1 CARGO_PROFILE_DEV_DEBUG=0
selected=()
for file in "${files[@]}"; do selected+=(--file "$file"); done
# Tests, and what measures the machine.
for file in '**/tests.rs' '**/*_tests.rs' tensor/src/cpu/peak.rs; do selected+=(--exclude "$file"); done
exec cargo mutants --workspace "${selected[@]}" --test-package "$packages" "$@" -- "${tests[@]}"
