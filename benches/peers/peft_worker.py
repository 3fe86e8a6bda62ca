"""The PEFT side: float32, sdpa attention, a plain loop over the batches of a run folder."""
import json
import math
import time
import warnings
from pathlib import Path


def schedule(step: int, hyper: dict) -> float:
    """Factor of the learning rate at `step` (from 0): linear warm-up, then a half cosine to 0."""
    if hyper["schedule"] != "cosine":
        raise SystemExit(f"schedule `{hyper['schedule']}` is not known here")
    warmup, total = hyper["warmup_steps"], hyper["steps"]
    if step < warmup:
        return step / max(1, warmup)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))))


def main(model_dir: Path, run: Path, out: Path, threads: int):
    started = time.monotonic()
    import torch
    import torch.nn.functional as F
    from peft import PeftModel
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging
    logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(threads)
    hyper = json.loads((run / "run.json").read_text())
    with safe_open(run / "batches.safetensors", "pt") as file:
        ids, mask, labels = (file.get_tensor(name) for name in ("input_ids", "attention_mask", "labels"))
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="sdpa")
    model = PeftModel.from_pretrained(base, run / "adapter_init", is_trainable=True)
    model.train()
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=hyper["lr"], betas=tuple(hyper["betas"]), eps=hyper["eps"],
                                  weight_decay=hyper["weight_decay"])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, hyper))
    steps, first, per_step = [], None, hyper["accumulation"]
    for step in range(hyper["steps"]):
        micro = range(step * per_step, (step + 1) * per_step)
        trained = int(sum((labels[n][:, 1:] != -100).sum() for n in micro))
        begin, total, tokens = time.monotonic(), 0.0, 0
        for n in micro:
            # Padding beyond the longest row of the batch is work that nobody would do.
            length = int(mask[n].sum(dim=1).max())
            logits = model(input_ids=ids[n, :, :length], attention_mask=mask[n, :, :length], use_cache=False).logits
            loss = F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), labels[n, :, 1:length].reshape(-1),
                                   ignore_index=-100, reduction="sum") / trained
            loss.backward()
            total, tokens = total + loss.item(), tokens + int(mask[n].sum())
            del logits, loss
        norm = torch.nn.utils.clip_grad_norm_(params, hyper["max_grad_norm"])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        end = time.monotonic()
        first = first if first is not None else end - started
        steps.append(dict(loss=total, grad_norm=float(norm), seconds=end - begin, tokens=tokens, trained_tokens=trained))
    out.write_text(json.dumps(dict(steps=steps, seconds_to_first_step=first)) + "\n")
