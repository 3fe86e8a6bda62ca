"""Makes what both engines read: model folder, token batches, first adapter, hyper-parameters.

Runs in a process of its own, so that the memory it uses counts for neither engine. A run folder holds

    batches.safetensors   input_ids, attention_mask, labels: int64 [N, B, T], right-padded, -100 where not trained
    adapter_init/         PEFT adapter before the first step
    run.json              lr, warmup_steps, schedule, betas, eps, weight_decay, max_grad_norm, accumulation, steps
"""
import json
import random
from pathlib import Path

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IGNORE = -100


def messages(row: dict) -> list:
    """A row of either shape as chat messages."""
    if "messages" in row:
        return row["messages"]
    answer = next((row[k] for k in ("completion", "response", "output") if k in row), None)
    if "prompt" not in row or answer is None:
        raise SystemExit(f"a row has neither `messages` nor `prompt` and `completion`: {sorted(row)}")
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": answer}]


def encode(path: Path, tokenizer, max_length: int) -> list:
    """Rows as (ids, labels); assistant tokens alone carry a label; cut at `max_length` tokens."""
    rows = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            out = tokenizer.apply_chat_template(messages(json.loads(line)), tokenize=True, return_dict=True,
                                                return_assistant_tokens_mask=True)
            ids, trained = out["input_ids"][:max_length], out["assistant_masks"][:max_length]
            rows.append((ids, [token if on else IGNORE for token, on in zip(ids, trained)]))
    return rows


def pad(batches: list, pad_id: int) -> dict:
    """Batches of (ids, labels) rows as three int64 tensors [N, B, T]."""
    import torch
    length = max(len(ids) for batch in batches for ids, _ in batch)
    shape = (len(batches), len(batches[0]), length)
    out = {"input_ids": torch.full(shape, pad_id), "attention_mask": torch.zeros(shape, dtype=torch.int64),
           "labels": torch.full(shape, IGNORE)}
    for n, batch in enumerate(batches):
        for b, (ids, labels) in enumerate(batch):
            out["input_ids"][n, b, :len(ids)] = torch.tensor(ids)
            out["attention_mask"][n, b, :len(ids)] = 1
            out["labels"][n, b, :len(ids)] = torch.tensor(labels)
    return out


def save_run(folder: Path, tensors: dict, hyper: dict):
    from safetensors.torch import save_file
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "batches.safetensors")
    (folder / "run.json").write_text(json.dumps(hyper, indent=1) + "\n")


def save_adapter(folder: Path, model_dir: Path, r: int, alpha: int, seed: int):
    """A fresh adapter as PEFT makes it (A Kaiming-uniform, B zero)."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    torch.manual_seed(seed)
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=0.0, target_modules=TARGETS, bias="none", task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(folder)


def support(spec: dict, work: Path):
    """The shipped base model on chat rows; `order` names the rows of every step, else they are shuffled."""
    from transformers import PreTrainedTokenizerFast
    model_dir = Path(spec["model"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_dir)
    rows = encode(Path(spec["data"]), tokenizer, spec["max_length"])
    batch, order = spec["batch"], spec.get("order")
    if order is None:
        shuffle, numbers, order = random.Random(0), list(range(len(rows))), []
        if len(rows) < batch:
            raise SystemExit(f"`{spec['data']}` has {len(rows)} rows and a batch takes {batch}")
        while len(order) < spec["steps"]:
            shuffle.shuffle(numbers)
            order += [numbers[i:i + batch] for i in range(0, len(rows) - batch + 1, batch)]
    order = order[:spec["steps"]]
    save_run(work, pad([[rows[i] for i in step] for step in order], tokenizer.pad_token_id), spec["hyper"])
    if spec.get("adapter_init"):
        import shutil
        shutil.copytree(spec["adapter_init"], work / "adapter_init")
    else:
        save_adapter(work / "adapter_init", model_dir, spec["r"], spec["alpha"], seed=1)


def large(spec: dict, work: Path):
    """A random Llama of about 100M parameters on random tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    model_dir = Path(spec["model"])
    if not (model_dir / "config.json").exists():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**spec["config"]))
        print(f"random model: {sum(p.numel() for p in model.parameters()):,} parameters")
        model.save_pretrained(model_dir)
    generator = torch.Generator().manual_seed(1)
    shape = (spec["steps"], spec["batch"], spec["length"])
    ids = torch.randint(3, spec["config"]["vocab_size"], shape, generator=generator)
    labels = ids.clone()
    labels[:, :, :spec["prompt"]] = IGNORE
    save_run(work, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}, spec["hyper"])
    save_adapter(work / "adapter_init", model_dir, spec["r"], spec["alpha"], seed=2)


def main(spec_path: Path, work: Path):
    spec = json.loads(spec_path.read_text())
    {"support": support, "large": large}[spec["kind"]](spec, work)
