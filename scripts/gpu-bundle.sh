#!/usr/bin/env bash
# Builds what a GPU host needs to test and time the kernels and to run us beside PEFT, Liger and Unsloth, and packs it into
# one file: no Rust, no compiler and no network are needed there.
#
#   scripts/gpu-bundle.sh [FILE]        writes FILE (default: target/gpu-bundle.tar.zst)
#   there: tar --zstd -xf FILE && OUT=results tunesmith-gpu/run.sh
#
#   TESTS=0 leaves out tests, benches and the quickstart, PEERS=0 the side-by-side runs, WHEELS=0 the wheels of Liger and
#   Unsloth (28 MB; benches/peers/gpu/wheels.sh).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() { printf 'gpu-bundle: %s\n' "$*" >&2; exit 1; }
command -v zstd >/dev/null || die "zstd is not installed."

target=${CARGO_TARGET_DIR:-target}
file=${1:-$target/gpu-bundle.tar.zst}
limit=$((60 * 1024 * 1024))
eval "$(scripts/cuda-toolkit.sh)"
# So that compute-sanitizer and profilers name the line.
export TUNESMITH_NVCC_FLAGS=${TUNESMITH_NVCC_FLAGS--lineinfo}

staging=$(mktemp -d)
trap 'rm -rf "$staging"' EXIT
root=$staging/tunesmith-gpu
mkdir -p "$root/tests" "$root/bench"
mib() { echo "$(($1 / 1024 / 1024)) MiB"; }

# Copies the programs of one kind that a cargo command builds.
programs() {
    local kind=$1 folder=$2
    shift 2
    cargo "$@" --profile bundle --features cuda --message-format json-render-diagnostics |
        sed -n "s/.*\"kind\":\[\"$kind\"\].*\"executable\":\"\([^\"]*\)\".*/\1/p" |
        while read -r program; do
            # Without the hash that cargo appends.
            cp "$program" "$folder/$(basename "$program" | sed -E 's/-[0-9a-f]{16}$//')"
        done
}

programs bin "$root" build --package tunesmith --bin tunesmith
if [[ ${TESTS:-1} != 0 ]]; then
    programs test "$root/tests" test --package tunesmith-emulator --no-run
    programs test "$root/tests" test --package tunesmith-ops --no-run
    programs test "$root/tests" test --package tunesmith-selftest --test kernels --test finetune --no-run
    programs test "$root/tests" test --package tunesmith --test device_step --test device_golden --no-run
    programs bench "$root/bench" build --package tunesmith-emulator --bench kernels
    # Broken kernels on purpose, for the emulator's eyes only.
    rm -f "$root/tests/self_test"
    # What the quickstart reads, at the paths it names.
    mkdir -p "$root/quickstart/tests/fixtures"
    cp -r configs "$root/quickstart/"
    cp -r tests/fixtures/support-base-4m tests/fixtures/tickets.jsonl "$root/quickstart/tests/fixtures/"
    # The golden cases, at the paths they name each other by: the reference's where it is, else the committed ones. What
    # device_golden does not read stays behind.
    reference=${TUNESMITH_REFERENCE:-../shared/reference}
    mkdir -p "$root/golden/reference" "$root/golden/models"
    if [[ -d $reference/cases ]]; then
        cp -r "$reference/cases" "$reference/spec.json" "$root/golden/reference/"
        cp -rL "$reference/../models/stories260k" tests/fixtures/support-base-4m "$root/golden/models/"
    else
        cp -r tests/fixtures/golden "$root/golden/reference/cases"
    fi
    chmod -R u+w "$root/golden"
    rm -rf "$root"/golden/reference/cases/*/{dora,rslora,qlora_*,merged_model.safetensors,train_micro_mean.json,adapter_final_micro_mean}
fi
if [[ ${PEERS:-1} != 0 ]]; then
    programs bin "$root" build --package tunesmith-testbins --bin replay
    mkdir -p "$root/peers/gpu"
    cp benches/peers/*.py "$root/peers/"
    cp benches/peers/gpu/*.py "$root/peers/gpu/"
    if [[ ${WHEELS:-1} != 0 ]]; then
        benches/peers/gpu/wheels.sh "$staging/wheels.tar"
        tar -C "$root/peers/gpu" -xf "$staging/wheels.tar"
        rm "$staging/wheels.tar"
    fi
fi

cp scripts/gpu-run.sh "$root/run.sh"
git rev-parse HEAD >"$root/commit" 2>/dev/null || echo unknown >"$root/commit"

# The programs share most of their bytes (the kernels): a long window finds them again.
mkdir -p "$(dirname "$file")"
tar -C "$staging" -c tunesmith-gpu | zstd -q -f -19 --long=27 -T0 -o "$file"
size=$(stat -c %s "$file")
ls -l "$root" "$root/tests" "$root/bench" | awk 'NF > 8 { print $5, $9 }'
echo "$file: $size bytes ($(mib "$size") of $(mib "$limit"))"
[[ $size -le $limit ]] || die "the bundle is larger than $limit bytes."
