#!/usr/bin/env bash
# A CUDA toolkit to build the kernels with. Where an nvcc is installed it is that one; elsewhere one is put together
# from PyPI wheels, under the cache folder and never in the clone: about 100 MB to fetch, 300 MB on disk, no root.
#
#   eval "$(scripts/cuda-toolkit.sh)"                 sets CUDA_HOME and NVCC
#   cargo build --release --features cuda             finds the cached toolkit without them too
#
# Only nvcc and headers: cuBLASLt and the driver are loaded when the program runs, so that building needs neither.
set -euo pipefail

: "${NVCC:=}"
die() { printf 'cuda-toolkit: %s\n' "$*" >&2; exit 1; }
say() { printf 'cuda-toolkit: %s\n' "$*" >&2; }
emit() { printf 'export CUDA_HOME=%q NVCC=%q\n' "$1" "$1/bin/nvcc"; exit 0; }

release=13.0
wheels=(
    nvidia-cuda-nvcc==13.0.88
    nvidia-cuda-crt==13.0.88
    nvidia-nvvm==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85
)

# The oldest nvcc that knows sm_90a.
usable() {
    local version
    version=$("$1" --version 2>/dev/null | sed -n 's/.*release \([0-9]*\)\..*/\1/p')
    [[ -n $version && $version -ge 12 ]]
}

for home in "${NVCC%/bin/nvcc}" "${CUDA_HOME:-}" "${CUDA_PATH:-}" "$(dirname "$(dirname "$(command -v nvcc || echo /none/bin/nvcc)")")" \
    /usr/local/cuda; do
    if [[ -n $home && -x $home/bin/nvcc ]] && usable "$home/bin/nvcc"; then emit "$home"; fi
done

command -v g++ >/dev/null || die "nvcc needs a C++ compiler: install g++ and run this again."
[[ $(uname -s) == Linux ]] || die "the wheels are for Linux: install the CUDA toolkit $release and set CUDA_HOME."

cache=${TUNESMITH_CACHE:-$HOME/.cache/tunesmith}/cuda
# The pins are part of the folder's name, so that a change of one makes a new toolkit.
key=$(printf '%s\n' "${wheels[@]}" "$(uname -m)" | sha256sum | cut -c1-12)
tree=$cache/$release-$key
home=$tree/nvidia/cu13

if [[ ! -f $tree/complete ]]; then
    python3 -m pip --version >/dev/null 2>&1 || die "no nvcc is installed, and no python3 with pip to fetch one:" \
        "install either, or set CUDA_HOME to a CUDA toolkit of version 12 or newer."
    mkdir -p "$cache"
    # Two builds at once would fill the same folder.
    exec 9>"$cache/lock"
    flock 9
    if [[ ! -f $tree/complete ]]; then
        say "making a CUDA $release toolkit under $tree"
        rm -rf "$tree"
        log=$tree.log
        python3 -m pip install --disable-pip-version-check --no-deps --only-binary :all: --no-warn-conflicts \
            --target "$tree" "${wheels[@]}" >"$log" 2>&1 ||
            die "the toolkit's wheels could not be installed with pip (see $log): with no network," \
                "install the CUDA toolkit and set CUDA_HOME."
        # The wheels lack what a toolkit's own installer adds.
        ln -sfn lib "$home/lib64"
        for library in "$home"/lib/lib*.so.*; do ln -sfn "$(basename "$library")" "${library%%.so.*}.so"; done
        chmod +x "$home"/bin/* "$home/nvvm/bin/cicc"
        usable "$home/bin/nvcc" || die "the nvcc under $home does not run: remove $tree and run this again."
        # Written last: a toolkit left half-made by a killed run is made again.
        touch "$tree/complete"
    fi
fi
# Where build.rs looks when nothing is set.
ln -sfn "$release-$key/nvidia/cu13" "$cache/current"
emit "$home"
