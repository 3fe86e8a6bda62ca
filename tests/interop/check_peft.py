#!/usr/bin/env python3
"""PEFT reads what tunesmith writes, and tunesmith reads what PEFT writes: the same logits either way.

    python tests/interop/check_peft.py                    every check, on the models of tests/fixtures
    python tests/interop/check_peft.py --base DIR --adapter DIR --logits FILE
                                                          one adapter of ours against logits that we wrote

Our side is reached through two programs of crates/testbins:

    logits --model DIR [--adapter DIR] --ids ids.safetensors --out logits.safetensors [--merge-out DIR]
        `input_ids` int64 [B, T] -> `input_ids` and `logits` f32 [B, T, V]; with --merge-out the adapter is merged
        into the weights first and the merged model is written there
    replay --model DIR --run DIR --out result.json --adapter-out DIR
        trains on the batches of a run folder and saves the adapter
"""
import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-3
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "all seven targets": dict(target_modules=SEVEN),
    "all-linear": dict(target_modules="all-linear", r=4, lora_alpha=4),
    "rsLoRA": dict(target_modules=SEVEN, use_rslora=True),
    "a subset of targets": dict(target_modules=["q_proj", "v_proj"], r=16, lora_alpha=8),
    "a regular expression": dict(target_modules=r".*\.layers\.[01]\.(self_attn\.(q|o)|mlp\.down)_proj"),
    "rank and alpha patterns": dict(target_modules=SEVEN, rank_pattern={"q_proj": 3, r"layers\.1\.mlp\.up_proj": 12},
                                    alpha_pattern={"v_proj": 32, r"layers\.0\.mlp\.down_proj": 2}),
    "patterns with rsLoRA": dict(target_modules=["k_proj", "gate_proj"], use_rslora=True, rank_pattern={"k_proj": 2},
                                 alpha_pattern={"gate_proj": 5}),
}


class Checks:
    """Counts what was compared and what failed."""

    def __init__(self):
        self.passed, self.failed = 0, []

    def close(self, what: str, got: torch.Tensor, want: torch.Tensor, tolerance=TOLERANCE):
        if got.shape != want.shape:
            return self.fail(what, f"shape {tuple(got.shape)}, expected {tuple(want.shape)}")
        difference = (got.float() - want.float()).abs().max().item()
        # A NaN compares as false and so fails.
        if difference <= tolerance:
            self.passed += 1
            print(f"ok    {what}: {difference:.1e}")
        else:
            self.fail(what, f"differs by {difference:.3e}, more than {tolerance:.0e}")

    def holds(self, what: str, condition: bool, detail=""):
        if condition:
            self.passed += 1
        else:
            self.fail(what, detail)

    def fail(self, what: str, detail: str):
        self.failed.append(what)
        print(f"FAIL  {what}: {detail}")


def base_model(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def logits_of(model, ids: torch.Tensor) -> torch.Tensor:
    return model.eval()(input_ids=ids, use_cache=False).logits


def build() -> dict:
    """Builds our programs; name -> path."""
    command = ["cargo", "build", "-p", "tunesmith-testbins", "--bin", "logits", "--bin", "replay", "--message-format", "json-render-diagnostics"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit("the build of `logits` and `replay` failed")
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    return {m["target"]["name"]: m["executable"] for m in messages if m.get("executable")}


def call(program: str, **options):
    command = [program]
    for name, value in options.items():
        command += ["--" + name.replace("_", "-"), str(value)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"`{Path(program).name}` ended with {done.returncode}: {done.stderr.strip()}")


def our_logits(programs: dict, work: Path, ids: torch.Tensor, **options) -> torch.Tensor:
    save_file({"input_ids": ids}, work / "ids.safetensors")
    out = work / "logits.safetensors"
    out.unlink(missing_ok=True)
    call(programs["logits"], ids=work / "ids.safetensors", out=out, **options)
    return load_file(out)["logits"]


def peft_adapter(folder: Path, model_dir: Path, seed: int, fresh: bool, **config):
    """Saves an adapter made by PEFT; its B is random instead of zero unless `fresh`."""
    torch.manual_seed(seed)
    model = get_peft_model(base_model(model_dir), LoraConfig(**(dict(r=8, lora_alpha=16, task_type="CAUSAL_LM") | config)))
    if not fresh:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)


def loaded_by_peft(checks: Checks, what: str, model_dir: Path, adapter: Path):
    """The adapter on the base as PEFT loads it; every tensor of the file has to find its place, and no place may stay empty."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base_model(model_dir), adapter)
    lost = [str(w.message) for w in caught if "missing" in str(w.message) or "unexpected" in str(w.message).lower()]
    file, used = load_file(adapter / "adapter_model.safetensors"), get_peft_model_state_dict(model)
    checks.holds(f"{what}: tensor names", set(file) == set(used) and not lost, f"{sorted(set(file) ^ set(used))} {lost}")
    same = all(torch.equal(file[k].float(), used[k]) for k in set(file) & set(used))
    checks.holds(f"{what}: tensor values", same, "PEFT holds other values than the file")
    return model


def reads_peft(checks: Checks, programs: dict, name: str, model_dir: Path, ids: torch.Tensor, work: Path):
    """PEFT writes, we read: plain and merged."""
    plain = logits_of(base_model(model_dir), ids)
    checks.close(f"{name}: base model", our_logits(programs, work, ids, model=model_dir), plain)
    for seed, (kind, config) in enumerate(ADAPTERS.items()):
        what, folder = f"{name}: PEFT's adapter, {kind}", work / f"peft-{seed}"
        peft_adapter(folder, model_dir, seed, fresh=False, **config)
        model = PeftModel.from_pretrained(base_model(model_dir), folder)
        want = logits_of(model, ids)
        # Without this, a side that ignores the adapter could pass.
        moved = (want - plain).abs().max().item()
        checks.holds(f"{what}: is not idle", moved > 20 * TOLERANCE, f"moves the logits by {moved:.1e} alone")
        checks.close(what, our_logits(programs, work, ids, model=model_dir, adapter=folder), want)
        merged_dir = work / f"merged-{seed}"
        ours = our_logits(programs, work, ids, model=model_dir, adapter=folder, merge_out=merged_dir)
        checks.close(f"{what}, merged: logits", ours, logits_of(model.merge_and_unload(), ids))
        if base_model_is_f32(model_dir):
            checks.close(f"{what}, merged: loaded by transformers", logits_of(base_model(merged_dir), ids), want)


def base_model_is_f32(model_dir: Path) -> bool:
    """A merged model is stored in the base's type; below f32 the stored weights are rounded and so are its logits."""
    config = json.loads((model_dir / "config.json").read_text())
    return config.get("torch_dtype", config.get("dtype")) == "float32"


def writes_peft(checks: Checks, programs: dict, name: str, model_dir: Path, ids: torch.Tensor, work: Path):
    """We train and save, PEFT reads."""
    labels = ids.clone()
    labels[:, :3] = -100
    for seed, (kind, config) in enumerate(ADAPTERS.items()):
        what, run, trained = f"{name}: our adapter, {kind}", work / f"run-{seed}", work / f"ours-{seed}"
        peft_adapter(run / "adapter_init", model_dir, 100 + seed, fresh=True, **config)
        steps = 4
        save_file({"input_ids": ids.expand(steps, -1, -1).contiguous(), "labels": labels.expand(steps, -1, -1).contiguous(),
                   "attention_mask": torch.ones_like(ids).expand(steps, -1, -1).contiguous()}, run / "batches.safetensors")
        (run / "run.json").write_text(json.dumps(dict(
            lr=2e-2, warmup_steps=1, schedule="cosine", betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0, max_grad_norm=1.0,
            accumulation=1, steps=steps)))
        call(programs["replay"], model=model_dir, run=run, out=work / "result.json", adapter_out=trained)
        ours = our_logits(programs, work, ids, model=model_dir, adapter=trained)
        model = loaded_by_peft(checks, what, model_dir, trained)
        moved = (ours - logits_of(base_model(model_dir), ids)).abs().max().item()
        checks.holds(f"{what}: is not idle", moved > 20 * TOLERANCE, f"moves the logits by {moved:.1e} alone")
        checks.close(what, ours, logits_of(model, ids))


def models() -> dict:
    """Every Hugging Face folder of tests/fixtures."""
    found = sorted(p.parent for p in (ROOT / "tests/fixtures").glob("**/config.json"))
    return {str(p.relative_to(ROOT / "tests/fixtures")): p for p in found}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--base", "--adapter", "--logits"):
        parser.add_argument(flag, type=Path)
    args = parser.parse_args()
    logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)
    logging.disable_progress_bar()
    torch.set_num_threads(2)
    checks = Checks()
    if args.adapter:
        if not (args.base and args.logits):
            parser.error("--adapter goes with --base and --logits")
        file = load_file(args.logits)
        model = loaded_by_peft(checks, str(args.adapter), args.base, args.adapter)
        checks.close(str(args.adapter), file["logits"], logits_of(model, file["input_ids"]))
    else:
        found, programs = models(), build()
        if not found:
            raise SystemExit("tests/fixtures holds no model")
        for name, model_dir in found.items():
            vocabulary = json.loads((model_dir / "config.json").read_text())["vocab_size"]
            ids = torch.randint(3, vocabulary, (2, 23), generator=torch.Generator().manual_seed(7))
            for check in (reads_peft, writes_peft):
                with tempfile.TemporaryDirectory() as work:
                    try:
                        check(checks, programs, name, model_dir, ids, Path(work))
                    except RuntimeError as error:
                        checks.fail(f"{name}: {check.__name__}", str(error))
    print(f"{checks.passed} passed, {len(checks.failed)} failed")
    sys.exit(1 if checks.failed else 0)


if __name__ == "__main__":
    main()
