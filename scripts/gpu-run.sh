#!/usr/bin/env bash
# Runs what scripts/gpu-bundle.sh packed, on a GPU host: the selftest, tests, the quickstart on the GPU, benches, then
# compute-sanitizer where it is there. With PEERS the side-by-side runs against PEFT, Liger and Unsloth come first, and are all
# that is run unless TESTS=1 or BENCH=1 say otherwise.
# Writes results.md (a table), results.json, selftest.json, kernels.json and logs into $OUT (default: results), of the peers
# gpu.md, gpu.json and records.jsonl. Exits with 1 if a test failed, with 69 if there is no GPU to run on.
#
#   SANITIZE=0 leaves out compute-sanitizer, TESTS=0 the tests, BENCH=0 the benches.
#   PEERS="--model mistral-7b --shape 8x2048 --limit 500" are arguments of benches/peers/gpu/run.py; called again with the
#   same OUT it goes on where it was cut.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
OUT=${OUT:-results}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
export TUNESMITH_TEST_ON=gpu
export TUNESMITH_REFERENCE=$here/golden/reference

# cuBLASLt, where the loader alone would not find it: beside a toolkit or in a Python environment's wheels.
folders() {
    printf '%s\n' "${CUDA_HOME:-/usr/local/cuda}/lib64" /usr/local/cuda/lib64
    command -v python3 >/dev/null && python3 - <<'END'
import glob, site, sys
for root in dict.fromkeys(sys.path + site.getsitepackages() + [site.getusersitepackages()]):
    for found in sorted(glob.glob(root + "/nvidia/*/lib/libcublasLt.so.1[23]")):
        print(found.rsplit("/", 1)[0])
END
}
if ! ldconfig -p 2>/dev/null | grep -q 'libcublasLt\.so\.1[23]'; then
    while read -r folder; do
        if compgen -G "$folder/libcublasLt.so*" >/dev/null; then
            export LD_LIBRARY_PATH=$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
            break
        fi
    done < <(folders)
fi

device=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1)
if [[ -z $device ]]; then
    echo "run: nvidia-smi lists no GPU here" >&2
    exit 69
fi
echo "$device, commit $(cat "$here/commit")"

failed=0
rows=()    # lines of the table
entries=() # objects of the JSON file

# Runs one program under a time limit; appends its output to a log and its outcome to the results.
outcome() {
    local kind=$1 name=$2 log=$3 limit=$4
    shift 4
    local start output status seconds passed
    start=$(date +%s.%N)
    output=$(timeout "$limit" "$@" 2>&1)
    status=$?
    seconds=$(awk -v a="$start" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }')
    printf '== %s %s\n%s\n' "$kind" "$name" "$output" >>"$log"
    passed=$(sed -n 's/^test result: .* \([0-9]*\) passed.*/\1/p' <<<"$output" | tail -n 1)
    [[ $status -eq 0 ]] || failed=1
    rows+=("| $kind | $name | $([[ $status -eq 0 ]] && echo ok || echo "exit $status") | ${passed:-} | $seconds |")
    entries+=("{\"kind\": \"$kind\", \"name\": \"$name\", \"status\": $status, \"passed\": ${passed:-0}, \"seconds\": $seconds}")
    echo "${rows[-1]}"
    if [[ $status -ne 0 ]]; then tail -n 30 <<<"$output"; fi
}

if [[ -n ${PEERS:-} ]]; then
    TESTS=${TESTS:-0} BENCH=${BENCH:-0} SANITIZE=${SANITIZE:-0}
    read -ra arguments <<<"$PEERS"
    # It watches its own time; this is for a run.py that hangs.
    outcome peers "run.py $PEERS" "$OUT/peers.log" "${PEERS_LIMIT:-3600}" \
        python3 "$here/peers/gpu/run.py" --out "$OUT" "${arguments[@]}"
    if [[ -f $OUT/gpu.md ]]; then cat "$OUT/gpu.md"; fi
fi

if [[ ${TESTS:-1} != 0 ]]; then
    outcome start "tunesmith --version" "$OUT/tests.log" 60 "$here/tunesmith" --version
    # First what a user would run: where this fails, so does everything below.
    for where in cuda:0 cpu; do
        outcome selftest "$where" "$OUT/selftest.log" 300 env TUNESMITH_HOME="$OUT/home" \
            "$here/tunesmith" selftest --device "$where"
    done
    cat "$OUT/selftest.log"
    # Again for programs to read.
    timeout 300 env TUNESMITH_HOME="$OUT/home" "$here/tunesmith" selftest --device cuda:0 --json >"$OUT/selftest.json"
    for program in "$here"/tests/*; do
        outcome test "$(basename "$program")" "$OUT/tests.log" 300 "$program"
    done
    # On the CPU too: both should end near the same held-out loss.
    for where in cuda:0 cpu; do
        outcome train "quickstart on $where" "$OUT/train.log" 300 env -C "$here/quickstart" TUNESMITH_HOME="$OUT/home" \
            "$here/tunesmith" train configs/quickstart.toml --device "$where" --quiet
    done
    grep -E '^== |validation loss' "$OUT/train.log"
fi

if [[ ${BENCH:-1} != 0 && -x $here/bench/kernels ]]; then
    outcome bench kernels "$OUT/bench.log" 300 "$here/bench/kernels" --json "$OUT/kernels.json"
    cat "$OUT/bench.log"
fi

sanitizer=$(command -v compute-sanitizer || compgen -G '/usr/local/cuda/bin/compute-sanitizer' || true)
if [[ ${SANITIZE:-1} != 0 && -n $sanitizer ]]; then
    for tool in memcheck racecheck; do
        for program in "$here"/tests/*; do
            # Thousands of launches of what the others launch: it would outlast the limit.
            [[ $(basename "$program") != device_golden ]] || continue
            # One test at a time: the tool's own messages name no test.
            outcome "$tool" "$(basename "$program")" "$OUT/sanitizer.log" 300 \
                "$sanitizer" --tool "$tool" --error-exitcode 99 "$program" --test-threads 1
        done
    done
fi

{
    printf '%s, commit %s\n\n' "$device" "$(cat "$here/commit")"
    printf '| what | program | outcome | tests passed | seconds |\n|---|---|---|---:|---:|\n'
    printf '%s\n' "${rows[@]}"
} >"$OUT/results.md"
{
    printf '{"device": "%s", "commit": "%s", "runs": [\n' "$device" "$(cat "$here/commit")"
    for i in "${!entries[@]}"; do
        printf '  %s%s\n' "${entries[$i]}" "$([[ $i -lt $((${#entries[@]} - 1)) ]] && echo ,)"
    done
    printf ']}\n'
} >"$OUT/results.json"
exit $failed
