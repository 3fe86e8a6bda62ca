#!/usr/bin/env python3
"""tunesmith and Hugging Face PEFT side by side on the CPU.

    python -m venv venv && venv/bin/pip install -r benches/peers/requirements.txt
    venv/bin/python benches/peers/peft_cpu.py --out benches/results/peft_cpu.md

Both engines get the same model, token ids, labels, first adapter, optimizer and schedule, in float32, on the same number of threads.
Each runs in its own process, in both orders (ours first, then PEFT; PEFT first, then ours). Peak memory is what the kernel accounts
to the finished process. Speed leaves the first step out: it pays for warming up in both.

Exits with 1 where the losses of any step differ by more than 1e-3.
"""
import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

# The driver never imports torch: a child's peak memory starts at that of the process it was forked from.
ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests/fixtures/support-base-4m"
BASELINE = ROOT.parent / "shared/reference/baseline"
TOLERANCE = 1e-3
ADAMW = dict(schedule="cosine", betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0, max_grad_norm=1.0, accumulation=1)
LARGE = dict(vocab_size=32000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=6, num_attention_heads=16,
             num_key_value_heads=8, max_position_embeddings=2048, rms_norm_eps=1e-5, tie_word_embeddings=True,
             bos_token_id=1, eos_token_id=2, pad_token_id=0)


def sizes(args, work: Path) -> dict:
    """What is measured: name -> specification for prepare.py."""
    out = {}
    if (data := args.data or tickets()) is not None:
        steps = args.steps or 60
        hyper = dict(lr=2e-3, warmup_steps=max(1, round(steps * 0.05)), steps=steps, **ADAMW)
        out["support-base-4m, tickets"] = dict(kind="support", model=str(MODEL), data=str(data), max_length=256, batch=8,
                                               r=8, alpha=16, steps=steps, hyper=hyper)
    if (BASELINE / "steps.jsonl").exists():
        recorded = [json.loads(line) for line in open(BASELINE / "steps.jsonl", encoding="utf-8")]
        run = json.loads((BASELINE / "result.json").read_text())["hyper_parameters"]
        steps = len(recorded)
        hyper = {k: run[k] for k in ("lr", "warmup_steps", "betas", "eps", "weight_decay", "max_grad_norm")}
        hyper |= dict(schedule="cosine", accumulation=1, steps=steps)
        out["support-base-4m, baseline"] = dict(
            kind="support", model=str(MODEL), data=str(BASELINE.parent.parent / run["train"]), max_length=run["max_length"],
            batch=run["batch"], steps=steps, hyper=hyper, order=[s["rows"] for s in recorded],
            adapter_init=str(BASELINE / "adapter_init"), recorded=[s["loss"] for s in recorded])
    steps = args.steps or 10
    hyper = dict(lr=1e-3, warmup_steps=2, steps=steps, **ADAMW)
    for name, prompt in (("llama-100m, half masked", 256), ("llama-100m, all trained", 0)):
        out[name] = dict(kind="large", model=str(work / "llama-100m"), config=LARGE, batch=2, length=512, prompt=prompt, r=16,
                         alpha=32, steps=steps, hyper=hyper)
    return {name: spec for name, spec in out.items() if not args.only or any(word in name for word in args.only)}


def tickets():
    found = sorted((ROOT / "tests/fixtures").glob("**/*ticket*.jsonl"))
    return found[0] if found else None


def replay_binary() -> Path:
    """Builds our side and returns the program."""
    command = ["cargo", "build", "--release", "-p", "tunesmith-testbins", "--bin", "replay", "--message-format", "json-render-diagnostics"]
    build = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if build.returncode:
        raise SystemExit("the build of `replay` failed")
    for line in build.stdout.splitlines():
        message = json.loads(line)
        if message.get("target", {}).get("name") == "replay" and message.get("executable"):
            return Path(message["executable"])
    raise SystemExit("cargo named no executable for `replay`")


def measure(command: list, out: Path, threads: int) -> dict:
    """Runs one engine in its own process; adds the peak memory that the kernel accounted to it."""
    env = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads), RAYON_NUM_THREADS=str(threads),
               TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    process = subprocess.Popen([str(c) for c in command], cwd=ROOT, env=env, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"`{' '.join(map(str, command))}` ended with {process.returncode}")
    result = json.loads(out.read_text())
    unit = 1 if platform.system() == "Darwin" else 1024
    return result | dict(peak_rss_mib=usage.ru_maxrss * unit / 2**20)


def summary(result: dict) -> dict:
    steps = result["steps"][1:] or result["steps"]
    seconds = [s["seconds"] for s in steps]
    return dict(tokens=sum(s["tokens"] for s in steps), seconds=sum(seconds), median=statistics.median(seconds),
                rate=sum(s["tokens"] for s in steps) / sum(seconds), rss=result["peak_rss_mib"],
                first=result["seconds_to_first_step"], loss=result["steps"][-1]["loss"])


def worst_difference(ours: dict, theirs: list) -> float:
    mine = [s["loss"] for s in ours["steps"]]
    if len(mine) != len(theirs):
        raise SystemExit(f"{len(mine)} steps on one side and {len(theirs)} on the other")
    # max() would pass over a NaN.
    differences = [abs(a - b) for a, b in zip(mine, theirs)]
    return max(d if d == d else float("inf") for d in differences)


def compare(name: str, spec: dict, args, work: Path, ours: Path | None) -> tuple:
    """All runs of one size: table rows, result lines and the raw numbers."""
    folder = work / name.replace(", ", "-").replace(" ", "-")
    folder.mkdir()
    spec_path = folder / "spec.json"
    spec_path.write_text(json.dumps(spec))
    run = folder / "run"
    subprocess.run([sys.executable, __file__, "--prepare", spec_path, run], check=True, stdout=sys.stderr)
    commands = {"PEFT": [sys.executable, __file__, "--worker"]}
    if ours:
        commands["tunesmith"] = [ours]
    orders = [["tunesmith", "PEFT"], ["PEFT", "tunesmith"]] if len(commands) == 2 else [list(commands)]
    rows, raw, total, worst = [], [], {e: [0, 0.0, 0.0] for e in commands}, 0.0
    for number, order in enumerate(orders):
        results = {}
        for engine in order:
            out = folder / f"{number}-{engine}.json"
            print(f"{name}: {engine} ({' then '.join(order)})", file=sys.stderr, flush=True)
            command = commands[engine] + ["--model", spec["model"], "--run", run, "--out", out, "--threads", args.threads]
            results[engine] = measure(command, out, args.threads)
        difference = None
        if len(results) == 2:
            difference = worst_difference(results["tunesmith"], [s["loss"] for s in results["PEFT"]["steps"]])
            worst = max(worst, difference)
        for engine in order:
            s = summary(results[engine])
            total[engine] = [total[engine][0] + s["tokens"], total[engine][1] + s["seconds"], max(total[engine][2], s["rss"])]
            shown = "" if difference is None else f"{difference:.1e}"
            rows.append(f"| {name} | {' then '.join(order)} | {engine} | {s['rate']:,.0f} | {s['median']:.3f} | {s['rss']:,.0f} "
                        f"| {s['loss']:.4f} | {shown} | {s['first']:.2f} |")
        raw.append(dict(order=order, max_loss_difference=difference, results=results))
    lines = []
    if ours:
        (tokens, seconds, rss), (peer_tokens, peer_seconds, peer_rss) = total["tunesmith"], total["PEFT"]
        lines.append(f"ratio tokens/s {(tokens / seconds) / (peer_tokens / peer_seconds):.2f} ({name}; peak RSS "
                     f"{rss / peer_rss:.2f} of PEFT's; losses differ by at most {worst:.1e})")
    if "recorded" in spec:
        for engine in commands:
            result = raw[0]["results"][engine]
            gap = worst_difference(result, spec["recorded"])
            worst = max(worst, gap)
            lines.append(f"{name}: {engine} differs from the recorded run by at most {gap:.1e} in the loss of a step")
    return rows, lines, dict(size=name, hyper=spec["hyper"], batch=spec["batch"], runs=raw), worst


def surroundings(threads: int) -> dict:
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        cpu = names[0] if names else cpu

    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return dict(date=datetime.date.today().isoformat(), cpu=cpu, cores=os.cpu_count(), threads=threads,
                load_before=round(os.getloadavg()[0], 2), python=platform.python_version(),
                versions={p: version(p) for p in ("torch", "transformers", "peft")},
                commit=git("rev-parse", "--short=12", "HEAD"), changed_files=bool(git("status", "--porcelain", "--untracked-files=no")))


def main():
    if sys.argv[1:2] == ["--prepare"]:
        import prepare
        return prepare.main(Path(sys.argv[2]), Path(sys.argv[3]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    if sys.argv[1:2] == ["--worker"]:
        import peft_worker
        for flag in ("--model", "--run", "--out"):
            parser.add_argument(flag, type=Path, required=True)
        parser.add_argument("--threads", type=int, required=True)
        a = parser.parse_args(sys.argv[2:])
        return peft_worker.main(a.model, a.run, a.out, a.threads)
    parser.add_argument("--data", type=Path, help="JSONL rows for the shipped model (default: the tickets of tests/fixtures)")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: 60 on tickets, 10 on the large model; the baseline keeps its own)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", action="append", metavar="WORD", help="run only the sizes whose name holds WORD")
    parser.add_argument("--peer-only", action="store_true", help="leave our side out")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table to FILE and the raw numbers beside it (.json)")
    args = parser.parse_args()
    facts = surroundings(args.threads)
    if facts["load_before"] > 0.5:
        print(f"caution: the load is {facts['load_before']}; the speeds below are of a busy machine", file=sys.stderr)
    ours = None if args.peer_only else replay_binary()
    head = ["| size | order | engine | tokens/s | median step s | peak RSS MiB | final loss | max loss difference | first step after s |",
            "|---|---|---|---|---|---|---|---|---|"]
    table, lines, raw, worst = [], [], [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        chosen = sizes(args, work)
        if not chosen:
            raise SystemExit("no size is left to run")
        for name, spec in chosen.items():
            rows, more, numbers, difference = compare(name, spec, args, work, ours)
            table, lines, raw, worst = table + rows, lines + more, raw + [numbers], max(worst, difference)
    versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items())
    text = "\n".join([
        f"{facts['date']}, {facts['cpu']}, {facts['cores']} cores, {args.threads} threads, load {facts['load_before']} before the run; "
        f"Python {facts['python']}, {versions}; commit {facts['commit']}{' and uncommitted changes' if facts['changed_files'] else ''}.",
        "Tokens are counted without padding; the first step is left out of the speeds.", "", *head, *table, "", *lines])
    print(text)
    if args.out:
        args.out.write_text(f"# tunesmith and PEFT on the CPU\n\n{text}\n", encoding="utf-8")
        args.out.with_suffix(".json").write_text(json.dumps(dict(facts=facts, sizes=raw), indent=1) + "\n", encoding="utf-8")
    if worst > TOLERANCE:
        raise SystemExit(f"losses differ by {worst:.1e}, more than {TOLERANCE:.0e}")


if __name__ == "__main__":
    main()
