#!/usr/bin/env bash
# Packs what an offline GPU host lacks of Liger and Unsloth: pinned wheels for Python 3.12 on x86-64 Linux, without the parts that
# nothing here runs, as one tar. The host is taken to have torch (CUDA 13), triton, transformers, peft, accelerate, pyarrow, pandas.
#
#   benches/peers/gpu/wheels.sh [FILE]      writes FILE (default: target/peer-wheels.tar) and says its size
#   there: tar -xf FILE -C benches/peers/gpu        (makes `wheels`, which run.py installs from into a folder of its own)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

file=${1:-${CARGO_TARGET_DIR:-target}/peer-wheels.tar}
limit=$((64 * 1024 * 1024))
# Unsloth of this version takes transformers up to 5.17.0, trl up to 1.15.0 and datasets below 5.
pins=(
    liger-kernel==0.8.5
    unsloth==2026.10.9 unsloth_zoo==2026.10.9
    bitsandbytes==0.50.2 xformers==0.0.35 torchao==0.18.0 cut_cross_entropy==25.1.1
    trl==1.15.0 datasets==4.8.5 dill==0.4.1 multiprocess==0.70.19 diffusers==0.42.1 hf_transfer==0.1.9
    tyro==1.0.17 docstring_parser==0.18.0 typeguard==4.6.1 msgspec==0.22.0 structlog==26.1.0 nest-asyncio==1.6.0 json5==0.17.3
)

# Kept between calls, by what is asked for.
key=$(printf '%s\n' "${pins[@]}" | sha256sum | cut -c1-12)
cache=${TUNESMITH_CACHE:-$HOME/.cache/tunesmith}/peer-wheels-$key
mkdir -p "$cache"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    --dest "$cache" "${pins[@]}"

staging=$(mktemp -d)
trap 'rm -rf "$staging"' EXIT
mkdir "$staging/wheels"
python3 - "$cache" "$staging/wheels" <<'END'
import sys
import zipfile
from pathlib import Path

# Wheel -> which of its files stay. bitsandbytes has a library for every CUDA there was; Unsloth brings a web application along.
KEEP = {
    "bitsandbytes": lambda name: ".so" not in name or name.endswith(("libbitsandbytes_cuda130.so", "libbitsandbytes_cpu.so")),
    "unsloth": lambda name: not name.startswith("studio/"),
}
for wheel in sorted(Path(sys.argv[1]).glob("*.whl")):
    keep = KEEP.get(wheel.name.split("-")[0], lambda name: True)
    target = Path(sys.argv[2]) / wheel.name
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
        kept = [entry for entry in old.infolist() if keep(entry.filename)]
        for entry in kept:
            # The list of files names what is gone, too; pip goes by what is there.
            new.writestr(entry, old.read(entry), compress_type=zipfile.ZIP_DEFLATED, compresslevel=9)
    print(f"{target.stat().st_size:>10,} {wheel.name}")
    if wheel.name.startswith("bitsandbytes") and not any(e.filename.endswith("cuda130.so") for e in kept):
        sys.exit("wheels: this bitsandbytes has no library for CUDA 13.0")
END

mkdir -p "$(dirname "$file")"
tar -C "$staging" -cf "$file" wheels
size=$(stat -c %s "$file")
echo "$file: $size bytes"
[[ $size -le $limit ]] || { echo "wheels: more than $limit bytes" >&2; exit 1; }
