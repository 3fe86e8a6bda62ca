#!/usr/bin/env bash
# Registers and spills of every kernel, as ptxas reported them in the latest build with feature `cuda`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

report=$(find "${CARGO_TARGET_DIR:-target}" -path '*/tunesmith-kernels-*/out/kernels.txt' -printf '%T@ %p\n' |
    sort -n | tail -n 1 | cut -d ' ' -f 2-)
[[ -n $report ]] || { echo "kernel-resources: build with --features cuda first" >&2; exit 1; }

# One line a kernel, one column an architecture: registers, and what was spilled if anything was.
awk 'NR > 1 {
    if (!($1 in seen)) { seen[$1]; kernels[++count] = $1 }
    if (!($2 in column)) { column[$2]; architectures[++columns] = $2 }
    text[$1, $2] = $4 > 0 ? $3 " (spills " $4 " B)" : $3
    if ($4 > 0) spilling++
}
END {
    printf "%-40s", "registers"
    for (c = 1; c <= columns; c++) printf "%-20s", architectures[c]
    print ""
    for (k = 1; k <= count; k++) {
        printf "%-40s", kernels[k]
        for (c = 1; c <= columns; c++) printf "%-20s", text[kernels[k], architectures[c]]
        print ""
    }
    printf "%d kernels, %d spilling builds of one\n", count, spilling
}' "$report"
