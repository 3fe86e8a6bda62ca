#!/usr/bin/env python3
"""tunesmith, PEFT, PEFT with Liger, and Unsloth on one GPU: the same random model, token ids, first adapter and optimizer.

    python3 benches/peers/gpu/run.py --out results                     everything, on cuda:0
    python3 benches/peers/gpu/run.py --only hf --only 2048             one engine, one length
    python3 benches/peers/gpu/run.py --mode loss --model wide2         loss curves side by side (6.4 of the protocol)
    python3 benches/peers/gpu/run.py --device cpu --model tiny         the whole of it in small, on any machine

Records go to OUT/records.jsonl as they come; the same command again goes on where it was cut. OUT/gpu.md and OUT/gpu.json are written
from all records after every process. README.md beside this file says what is measured and how.
"""
import argparse
import datetime
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

# Never torch here: this process lives as long as all others, and wants no memory.
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import models  # noqa: E402
import plan  # noqa: E402
import tables  # noqa: E402

WORKERS = {"ours": "ours.py", "hf": "hf.py", "hf+liger": "hf.py", "unsloth": "unsloth_worker.py"}
# A worker that does not end by itself is ended this long after its time.
GRACE = 30
# The card's own products and attention take about a minute and a half.
FIRST = 240


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=["speed", "loss", "first", "all"], default="speed", help="`first`: torch's own products and attention on this card")
    parser.add_argument("--device", default="cuda:0", help="cuda:N or cpu")
    parser.add_argument("--model", action="append", choices=list(models.MODELS), help="default: mistral-7b and llama-3-8b; more than one is fine")
    parser.add_argument("--shape", action="append", help=f"rows x length of an equal batch, or mix (default: {' '.join(plan.SHAPES)})")
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="only sessions whose name holds every WORD")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/tunesmith-peers"), help="models and token ids; 15 GB for each large model")
    parser.add_argument("--ours", type=Path, help="the program `replay` (default: beside this folder, else built by cargo)")
    parser.add_argument("--wheels", type=Path, help="folder of wheels.sh's wheels (default: `wheels` beside this file)")
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--timed", type=int, default=20, help="timed steps of a measurement that is reported")
    parser.add_argument("--seconds", type=float, default=30, help="a measurement ends after so long, with 5 timed steps at the least")
    parser.add_argument("--limit", type=float, default=None, help="seconds for everything; what is left is not started")
    parser.add_argument("--engine-limit", action="append", default=[], metavar="ENGINE=SECONDS", help="for one session of an engine (default 300; unsloth 420)")
    parser.add_argument("--most-tokens", type=int, help="largest micro-batch of the search (default 65536; cpu 2048)")
    parser.add_argument("--start-rows", type=int, default=1, help="where the search for the best micro-batch begins")
    parser.add_argument("--threads", type=int, default=min(16, os.cpu_count() or 1))
    parser.add_argument("--again", action="store_true", help="forget earlier records")
    return parser.parse_args()


def without_paths(words: list) -> list:
    """A command line as others would type it: where files lie is this machine's own affair."""
    out, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in ("--out", "--work", "--ours", "--wheels"):
            skip = True
        elif not word.startswith(("--out=", "--work=", "--ours=", "--wheels=")):
            out.append(word)
    return out


def git(*words) -> str:
    done = subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def surroundings(args) -> dict:
    """Date, card, driver, commit and command of a run."""
    out = dict(date=datetime.date.today().isoformat(), host_cores=os.cpu_count(), load_before=round(os.getloadavg()[0], 2),
               python=platform.python_version(), command="run.py " + shlex.join(without_paths(sys.argv[1:])))
    commit = HERE.parents[1] / "commit"
    # A bundle has a file; a checkout has git.
    out["commit"] = commit.read_text().strip()[:12] if commit.exists() else git("rev-parse", "--short=12", "HEAD") or "unknown"
    out["changed_files"] = not commit.exists() and bool(git("status", "--porcelain", "--untracked-files=no"))
    if args.device.startswith("cuda"):
        fields = "name,driver_version,memory.total,power.limit,clocks.max.sm"
        seen = subprocess.run(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "-i", args.device.partition(":")[2] or "0"],
                              capture_output=True, text=True)
        out["gpu"] = seen.stdout.strip() or "nvidia-smi tells nothing"
    else:
        names = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8") if line.startswith("model name")]
        out["cpu"] = f"{names[0] if names else platform.machine()}, {args.threads} threads"
    return out


def program(args) -> Path:
    """`replay`: given, packed beside this folder, or built."""
    beside = HERE.parents[1] / "replay"
    if args.ours or beside.exists():
        found = args.ours or beside
        if not found.exists():
            raise SystemExit(f"`{found}` is not there")
        return found.resolve()
    command = ["cargo", "build", "--release", "-p", "tunesmith-testbins", "--bin", "replay", "--message-format", "json-render-diagnostics"]
    command += ["--features", "cuda"] if args.device.startswith("cuda") else []
    build = subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, text=True)
    for line in build.stdout.splitlines():
        message = json.loads(line)
        if message.get("target", {}).get("name") == "replay" and message.get("executable"):
            return Path(message["executable"])
    raise SystemExit("the build of `replay` failed")


def site(args, engine: str) -> Path | None:
    """The folder that an engine's wheels are installed into, once; None where there are none. Liger gets its own wheel and nothing
    else: PEFT takes up some of the others where it finds them."""
    wheels = args.wheels or HERE / "wheels"
    found = sorted(wheels.glob("liger_kernel-*.whl" if engine == "hf+liger" else "*.whl"))
    if not found:
        return None
    target = args.work / f"site-{engine}"
    stamp = target / "complete"
    names = "\n".join(wheel.name for wheel in found)
    if not stamp.exists() or stamp.read_text() != names:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-warn-script-location", "--upgrade",
                        "--target", str(target), *map(str, found)], check=True)
        stamp.write_text(names)
    return target


def environment(args, engine: str) -> dict:
    env = dict(os.environ, OMP_NUM_THREADS=str(args.threads), MKL_NUM_THREADS=str(args.threads), PYTHONUNBUFFERED="1",
               PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True")
    # Only for those that need them: nothing there may stand in for a package of the host.
    if engine in ("hf+liger", "unsloth") and (folder := site(args, engine)):
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), env.get("PYTHONPATH")]))
    return env


def make_models(args, names: list, env: dict):
    for name in names:
        if not (args.work / "models" / name / "complete").exists():
            begin = time.time()
            code = f"import common; from pathlib import Path; common.make_model(Path({str(args.work)!r}), {name!r}, {args.device!r})"
            subprocess.run([sys.executable, "-c", code], cwd=HERE, env=env, check=True)
            print(f"made {name} in {time.time() - begin:.0f} s", file=sys.stderr, flush=True)


def records_of(path: Path) -> list:
    if not path.exists():
        return []
    out = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            out.append(json.loads(line))
        except ValueError:
            # The last line of a process that was killed while it wrote.
            continue
    return out


def run_worker(args, session: plan.Session, file: Path, limit: float, ours: Path):
    """Runs one session in a process of its own, and ends it when its time is up."""
    spec = session.spec() | dict(
        work=str(args.work), out=str(file), device=args.device, threads=args.threads, deadline=time.time() + limit, seconds=args.seconds,
        warm_up=args.warm_up, timed=args.timed, start_rows=args.start_rows, program=str(ours),
        most_tokens=args.most_tokens or (65536 if args.device.startswith("cuda") else 2048),
        lengths=session.lengths, known=[r for r in records_of(file) if r["session"] == session.name])
    path = args.work / "session.json"
    path.write_text(json.dumps(spec))
    with open(args.out / "workers.log", "ab") as log:
        log.write(f"\n== {session.name}\n".encode())
        log.flush()
        process = subprocess.Popen([sys.executable, str(HERE / WORKERS[session.engine]), str(path)], env=environment(args, session.engine),
                                   stdout=log, stderr=log, start_new_session=True)
        why = None
        try:
            if process.wait(limit + GRACE):
                why = f"its process ended with {process.returncode}; see workers.log"
        except subprocess.TimeoutExpired:
            # The whole session that was started here: a worker may have processes of its own.
            os.killpg(process.pid, 9)
            process.wait()
            why = f"it did not end within {limit:.0f} s"
        except BaseException:
            os.killpg(process.pid, 9)
            raise
    if why:
        record = dict(session=session.name, model=session.model, engine=session.engine, setting=session.setting, phase="cut", length=None,
                      rows=0, micro=0, ok=False, why=why)
        with open(file, "a", encoding="utf-8") as out:
            out.write(json.dumps(record) + "\n")


def limits(args) -> dict:
    out = dict(dict.fromkeys(WORKERS, 300.0), unsloth=420.0)
    for text in args.engine_limit:
        engine, _, seconds = text.partition("=")
        if engine not in out:
            raise SystemExit(f"`{engine}` is none of {', '.join(out)}")
        out[engine] = float(seconds)
    return out


def speed(args, names: list, file: Path, facts: dict, started: float):
    ours, each = program(args), limits(args)
    chosen = plan.sessions(names, args.shape or plan.SHAPES, args.device, args.only)
    if not chosen:
        raise SystemExit("nothing is left to measure: no session's name holds every word of --only")
    make_models(args, sorted({s.model for s in chosen}), environment(args, "ours"))
    for session in chosen:
        session.lengths = plan.remaining(session, records_of(file))
        if not session.lengths:
            continue
        left = (args.limit or float("inf")) - (time.time() - started)
        if left < GRACE:
            print(f"no time is left for {session.name}", file=sys.stderr)
            continue
        run_worker(args, session, file, min(each[session.engine], left - GRACE / 2), ours)
        write(args, facts, file)


def write(args, facts: dict, file: Path):
    """Table and numbers from everything that is recorded so far."""
    records = records_of(file)
    first, loss = args.out / "first.json", args.out / "loss.json"
    peak, lines = models.MEASURED_PEAK, []
    if first.exists():
        seen = json.loads(first.read_text())
        if seen.get("sustained"):
            peak = seen["sustained"]["flops"]
            lines.append(f"Sustained bf16 product on this card: {peak / 1e12:.0f} TFLOP/s over {seen['sustained']['seconds']:.0f} s; MFU and HFU are shares of that.")
    versions = {}
    for r in records + ([json.loads(loss.read_text())] if loss.exists() else []):
        versions |= r.get("versions") or {}
    where = facts.get("gpu") or facts.get("cpu")
    text = [f"{facts['date']}, {where}; Python {facts['python']}" + "".join(f", {k} {v}" for k, v in versions.items())
            + f"; commit {facts['commit']}{' and uncommitted changes' if facts['changed_files'] else ''}; load {facts['load_before']} before the run.",
            f"`{facts['command']}`", ""]
    if args.device.startswith("cuda"):
        text += [*lines, "Tokens/s: all tokens of the timed steps, padding not counted, end to end. MFU: FLOPs of the step over the peak; 4N/sheet: 4 x parameters over "
                 "the data sheet's 989 TFLOP/s; HFU: with what is computed twice. Peak: the engine's own allocations; device: everything on the card.", ""]
    elif records:
        text += ["On the CPU, in small: whether the harness works, not who is faster. Peak: resident memory of the process.", ""]
    if records:
        text += tables.table(records, args.device, peak) + [""]
    text += [*tables.ratios(records), *tables.agreement(records), *tables.loading(records), *tables.absent(records)]
    if loss.exists():
        text += [*([""] if records else []), *json.loads(loss.read_text())["lines"]]
    text = "\n".join(text)
    (args.out / "gpu.md").write_text(f"# tunesmith, PEFT, Liger and Unsloth on one device\n\n{text}\n", encoding="utf-8")
    numbers = dict(facts=facts, versions=versions, records=records)
    (args.out / "gpu.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return text


def main():
    args, started = arguments(), time.time()
    # So that a worker does not outlive this process when `timeout` ends it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args.out.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    args.out, args.work = args.out.resolve(), args.work.resolve()
    file = args.out / "records.jsonl"
    if args.again:
        file.unlink(missing_ok=True)
    names = args.model or (["mistral-7b", "llama-3-8b"] if args.device.startswith("cuda") else ["tiny"])
    facts, status = surroundings(args), 0
    if args.mode in ("first", "all") and args.device.startswith("cuda"):
        command = [sys.executable, str(HERE / "first.py"), str(args.out / "first.json"), args.device]
        try:
            subprocess.run(command, env=environment(args, "hf"), check=False, timeout=FIRST)
        except subprocess.TimeoutExpired:
            print(f"first.py: cut after {FIRST} s; {args.out / 'first.json'} holds what it had", file=sys.stderr)
    if args.mode in ("loss", "all"):
        import loss
        status = loss.main(args, args.model or (["wide2"] if args.device.startswith("cuda") else ["tiny"]), program(args))
    if args.mode in ("speed", "all"):
        speed(args, names, file, facts, started)
    print(write(args, facts, file))
    sys.exit(status)


if __name__ == "__main__":
    main()
