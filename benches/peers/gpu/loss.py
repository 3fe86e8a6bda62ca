"""Loss curves side by side (6.4 of the protocol): ours and PEFT over 50 steps on text that can be learned, from the same first adapter
with a B that is not zero, so that every gradient counts from the first step.

Yardsticks beside the difference: PEFT with another attention kernel, and PEFT from another first adapter. Judged by the model's type:
float32 within 1e-4 at every step; bfloat16 within 0.02, 0.005 in the mean; gradient norms within 1 %; adapters at the end with a
cosine above 0.999.
"""
import json
import subprocess
import sys
import time
from pathlib import Path

import tables

HERE = Path(__file__).resolve().parent
STEPS = 50
LIMITS = {"float32": dict(most=1e-4, mean=1e-4), "bfloat16": dict(most=0.02, mean=0.005)}
NORMS, COSINE = 0.01, 0.999
# Rows and length of a step.
SIZES = {"tiny": (4, 128)}
SIZE = (4, 512)
RUNS = {"PEFT": ("sdpa", 1), "PEFT, eager attention": ("eager", 1), "PEFT, another first adapter": ("sdpa", 2)}


def text(rows: int, length: int, step: int) -> list:
    """Sentences of a small made-up language: 64 words, each with three that may follow."""
    import random

    import common
    draw = random.Random(1000 + step)
    language = random.Random(7)
    follow = {word: [language.randrange(64) for _ in range(3)] for word in range(64)}
    out = []
    for _ in range(rows):
        word, row = draw.randrange(64), []
        for _ in range(length):
            row.append(word + common.FIRST_ID)
            word = draw.choices(follow[word], [0.7, 0.2, 0.1])[0]
        out.append((row, list(row)))
    return out


def prepare(work: Path, model: str, device: str):
    """The model, and a run folder for each first adapter."""
    import common
    import prepare as shared
    common.make_model(work, model, device)
    rows, length = SIZES.get(model, SIZE)
    for seed in (1, 2):
        folder = folder_of(work, model, seed)
        if not (folder / "complete").exists():
            hyper = common.HYPER | dict(lr=1e-3, warmup_steps=3, steps=STEPS)
            shared.save_run(folder, shared.pad([text(rows, length, step) for step in range(STEPS)], 0), hyper)
            common.link_adapter(folder, common.adapter(work, model, "random", seed))
            (folder / "complete").touch()


def folder_of(work: Path, model: str, seed: int) -> Path:
    return work / "data" / f"{model}-loss-{seed}"


def worker(path: Path):
    """PEFT on one run folder: losses, norms and the adapter at the end."""
    import common
    import hf
    import torch
    spec = json.loads(path.read_text())
    torch.set_num_threads(spec["threads"])
    session = common.Session(path)
    folder = Path(spec["folder"])
    model = hf.load(session, folder / "adapter_init", session.setting)
    params = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in params]
    facts = common.torch_loop(session, folder, session.rows, dict(warm_up=0, timed=STEPS), params, start, hf.forward_of(session, model, session.setting))
    model.save_pretrained(spec["adapter_out"])
    Path(spec["result"]).write_text(json.dumps(dict(losses=facts["losses"], norms=facts["norms"], versions=hf.versions())))


def peft_run(args, model: str, name: str, attention: str, seed: int, environment: dict) -> dict:
    at = args.work / "loss" / model / f"{attention}-{seed}"
    at.mkdir(parents=True, exist_ok=True)
    spec = dict(name=name, model=model, engine="hf", setting=dict(gc=False, adapter="fp32", attention=attention), lengths={}, rows=SIZES.get(model, SIZE)[0],
                work=str(args.work), out=str(at / "records.jsonl"), device=args.device, threads=args.threads, deadline=time.time() + 3600,
                seconds=3600, known=[], folder=str(folder_of(args.work, model, seed)), result=str(at / "result.json"), adapter_out=str(at / "adapter"))
    (at / "session.json").write_text(json.dumps(spec))
    subprocess.run([sys.executable, str(HERE / "loss.py"), str(at / "session.json")], env=environment, check=True, timeout=900)
    return json.loads((at / "result.json").read_text()) | dict(adapter=at / "adapter/adapter_model.safetensors")


def our_run(args, model: str, program: Path) -> dict:
    import ours
    at = args.work / "loss" / model / "ours"
    at.mkdir(parents=True, exist_ok=True)
    arguments = {"model": args.work / "models" / model, "run": folder_of(args.work, model, 1), "out": at / "result.json", "device": args.device,
                 "threads": args.threads, "micro-batch": SIZES.get(model, SIZE)[0], "adapter-out": at / "adapter"}
    if (at / "adapter").exists():
        import shutil
        shutil.rmtree(at / "adapter")
    result = ours.replay(program, arguments, args.threads, 900)
    return dict(losses=[s["loss"] for s in result["steps"]], norms=[s["grad_norm"] for s in result["steps"]],
                adapter=at / "adapter/adapter_model.safetensors")


def cosine(a: Path, b: Path) -> float:
    """Of two adapters as vectors of all their values."""
    import numpy
    from safetensors.numpy import load_file
    x, y = load_file(a), load_file(b)
    if x.keys() != y.keys():
        raise SystemExit(f"the adapters name different tensors: {sorted(x.keys() ^ y.keys())[:3]}")
    dot = squares_x = squares_y = 0.0
    for name in x:
        u, v = x[name].astype(numpy.float64).ravel(), y[name].astype(numpy.float64).ravel()
        dot, squares_x, squares_y = dot + u @ v, squares_x + u @ u, squares_y + v @ v
    return float(dot / (squares_x * squares_y) ** 0.5)


def judge(dtype: str, loss: dict, norms: float, same: float) -> list:
    """What is not as it should be; empty when all is well."""
    limits, out = LIMITS[dtype], []
    for what in ("most", "mean"):
        # A NaN is larger than nothing, so ask what is within.
        if not loss[what] <= limits[what]:
            out.append(f"losses differ by {loss[what]:.1e} ({what}), more than {limits[what]:.0e}")
    if not norms <= NORMS:
        out.append(f"gradient norms differ by {norms:.2%}, more than {NORMS:.0%}")
    if not same > COSINE:
        out.append(f"the adapters' cosine is {same:.5f}, not above {COSINE}")
    return out


def compare(args, model: str, program: Path, environment: dict) -> tuple:
    import models
    code = f"import loss; from pathlib import Path; loss.prepare(Path({str(args.work)!r}), {model!r}, {args.device!r})"
    subprocess.run([sys.executable, "-c", code], cwd=HERE, env=environment, check=True)
    runs = {"tunesmith": our_run(args, model, program)}
    for name, (attention, seed) in RUNS.items():
        runs[name] = peft_run(args, model, name, attention, seed, environment)
    dtype, peft = models.MODELS[model]["dtype"], runs["PEFT"]
    lines = [f"Loss over {STEPS} steps, {model}, {dtype}, against PEFT (sdpa; {peft['losses'][0]:.4f} at the first step, {peft['losses'][-1]:.4f} at the last):"]
    bad = []
    for name in ["tunesmith", *list(RUNS)[1:]]:
        run = runs[name]
        loss, norms = tables.spread(run["losses"], peft["losses"]), tables.relative_spread(run["norms"], peft["norms"])
        same = cosine(run["adapter"], peft["adapter"])
        lines.append(f"- {name}: losses differ by at most {loss['most']:.1e}, {loss['mean']:.1e} in the mean; gradient norms by {norms:.2%}; cosine of the "
                     f"adapters at the end {same:.6f}")
        if name == "tunesmith":
            bad = judge(dtype, loss, norms, same)
    if not peft["losses"][-1] < 0.9 * peft["losses"][0]:
        bad.append("PEFT itself learned nothing: the comparison says little")
    lines += [f"- {model}: {what}" for what in bad] or [f"- {model}: within the limits"]
    return lines, {n: dict(losses=r["losses"], norms=r["norms"]) for n, r in runs.items()}, peft["versions"], bad


def main(args, names: list, program: Path) -> int:
    """All models; writes OUT/loss.json. 1 if a limit is passed."""
    import run
    lines, numbers, versions, status = [], {}, {}, 0
    for model in names:
        more, numbers[model], versions, bad = compare(args, model, program, run.environment(args, "hf"))
        lines, status = lines + more, 1 if bad else status
    (args.out / "loss.json").write_text(json.dumps(dict(lines=lines, versions=versions, runs=numbers), indent=1) + "\n", encoding="utf-8")
    return status


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
