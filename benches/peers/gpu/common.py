"""What the workers share: their assignment, the files that all engines read, records, the timed loop of those that run on torch.

A worker is a process of its own. It is given a session (plan.Session) as a JSON file, measures its lengths in turn, and appends
one JSON line for each measurement, so that nothing is lost when its time is up.
"""
import contextlib
import json
import math
import os
import statistics
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent
for folder in (HERE, PEERS):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import models  # noqa: E402
import nvml  # noqa: E402
import plan  # noqa: E402

# 6.1 of the protocol. The warm-up of the learning rate is one step: speed does not depend on it.
HYPER = dict(lr=2e-4, warmup_steps=1, schedule="cosine", betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0, max_grad_norm=1.0, accumulation=1)
# A search takes fewer steps than a measurement that is reported.
SEARCH = dict(warm_up=2, timed=4)
LEAST_TIMED = 5
FIRST_ID = 4


class Session:
    """A worker's assignment, and where its records go."""

    def __init__(self, path: Path):
        spec = json.loads(Path(path).read_text())
        self.__dict__.update(spec)
        self.lengths = {int(length): rows for length, rows in spec["lengths"].items()}
        self.config = models.MODELS[self.model]
        self.work, self.out = Path(spec["work"]), Path(spec["out"])
        self.model_dir = self.work / "models" / self.model
        self.meters = nvml.Meters(int(self.device.partition(":")[2] or 0)) if self.device.startswith("cuda") else None
        self.once = {}

    @property
    def left(self) -> float:
        return self.deadline - time.time()

    def write(self, phase: str, **facts):
        record = dict(session=self.name, model=self.model, engine=self.engine, setting=self.setting, phase=phase) | facts | self.once
        with open(self.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        return record

    def absent(self, why: str):
        """This engine cannot run here."""
        self.write("absent", length=None, rows=0, micro=0, ok=False, why=" ".join(why.split()))

    def cut(self, length: int, why: str):
        self.write("cut", length=length, rows=0, micro=0, ok=False, why=why)


def folder_of(work: Path, model: str, rows: int, length: int, steps: int) -> Path:
    return work / "data" / f"{model}-{rows}x{length or 'mix'}-{steps}"


def run_folder(work: Path, model: str, rows: int, length: int, steps: int, b: str = "zero") -> Path:
    """Batches, first adapter and hyper-parameters that every engine reads (the run folder of peers/prepare.py). Made once. Ids are
    the same for any number of steps, so a search sees the first of what is measured after it."""
    import torch

    import prepare
    folder = folder_of(work, model, rows, length, steps)
    if (folder / "complete").exists():
        return folder
    vocabulary = models.MODELS[model]["vocab_size"]
    if length:
        generator = torch.Generator().manual_seed(length * 1000 + rows)
        ids = torch.randint(FIRST_ID, vocabulary, (steps, rows, length), generator=generator)
        tensors = dict(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids.clone())
    else:
        batches = [mix(vocabulary, rows, step) for step in range(steps)]
        tensors = prepare.pad(batches, 0)
    prepare.save_run(folder, tensors, HYPER | dict(steps=steps))
    link_adapter(folder, adapter(work, model, b))
    (folder / "complete").touch()
    return folder


def link_adapter(folder: Path, target: Path):
    link = folder / "adapter_init"
    if not link.exists():
        link.symlink_to(target, target_is_directory=True)


def mix(vocabulary: int, rows: int, step: int) -> list:
    """Rows of real lengths: log-normal with the mean of plan.MIX, the first 60 % of each a prompt that is not trained."""
    import random
    draw = random.Random(step)
    spread, out = 0.9, []
    for _ in range(rows):
        length = round(draw.lognormvariate(math.log(plan.MIX["mean"]) - spread**2 / 2, spread))
        length = min(max(length, 8), plan.MIX["longest"])
        ids = [draw.randrange(FIRST_ID, vocabulary) for _ in range(length)]
        prompt = int(0.6 * length)
        out.append((ids, [-100] * prompt + ids[prompt:]))
    return out


def adapter(work: Path, model: str, b: str = "zero", seed: int = 1) -> Path:
    """A first adapter of all seven linears in float32, as PEFT makes it (A Kaiming-uniform) with B zero, or small and random so that
    no gradient is zero. Made from the shapes alone: no model is loaded."""
    import torch
    from safetensors.torch import save_file

    import prepare
    folder = work / "adapters" / f"{model}-{b}-{seed}"
    if (folder / "adapter_config.json").exists():
        return folder
    config, rank = models.MODELS[model], models.LORA_RANK
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, shape in models.tensor_shapes(config).items():
        linear = name.removesuffix(".weight")
        if linear.rsplit(".", 1)[-1] not in prepare.TARGETS:
            continue
        bound = 1 / math.sqrt(shape[1])
        tensors[f"base_model.model.{linear}.lora_A.weight"] = (torch.rand(rank, shape[1], generator=generator) * 2 - 1) * bound
        zeros = torch.zeros(shape[0], rank)
        tensors[f"base_model.model.{linear}.lora_B.weight"] = zeros if b == "zero" else zeros.normal_(0, 0.01, generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata=dict(format="pt"))
    settings = dict(peft_type="LORA", task_type="CAUSAL_LM", r=rank, lora_alpha=models.LORA_ALPHA, lora_dropout=0.0, bias="none",
                    target_modules=prepare.TARGETS, base_model_name_or_path=str(work / "models" / model))
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    return folder


def make_model(work: Path, model: str, device: str):
    """The model folder with random weights (standard deviation 0.02, a fixed seed), made on the device and written in shards of about
    4 GB, with a small tokenizer. Made once."""
    import torch
    from safetensors.torch import save_file
    folder, config = work / "models" / model, models.MODELS[model]
    if (folder / "complete").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    dtype = getattr(torch, config["dtype"])
    generator = torch.Generator(device=device).manual_seed(0)
    index, shard = {}, {}

    def flush():
        name = f"model-{len(set(index.values())) + 1:05d}.safetensors"
        save_file(shard, folder / name, metadata=dict(format="pt"))
        index.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, shape in models.tensor_shapes(config).items():
        if len(shape) == 1:
            shard[name] = torch.ones(shape, dtype=dtype)
        else:
            shard[name] = torch.empty(shape, dtype=torch.float32, device=device).normal_(0, 0.02, generator=generator).to(dtype).cpu()
        if sum(tensor.nbytes for tensor in shard.values()) > 4e9:
            flush()
    flush()
    total = sum((folder / name).stat().st_size for name in set(index.values()))
    (folder / "model.safetensors.index.json").write_text(json.dumps(dict(metadata=dict(total_size=total), weight_map=index)))
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    make_tokenizer(folder, config)
    (folder / "complete").touch()


def make_tokenizer(folder: Path, config: dict):
    """A word-level tokenizer of a few words: nothing here reads text, but loaders ask for one."""
    from tokenizers import Tokenizer, models as kinds, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    words = ["<unk>", "<s>", "</s>", "<pad>"] + [f"w{n}" for n in range(min(252, config["vocab_size"] - 4))]
    tokenizer = Tokenizer(kinds.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
                            model_max_length=config["max_position_embeddings"]).save_pretrained(folder)


def batches_of(folder: Path):
    """input_ids, attention_mask, labels of a run folder, on the host."""
    from safetensors.torch import load_file
    tensors = load_file(folder / "batches.safetensors")
    return tensors["input_ids"], tensors["attention_mask"], tensors["labels"]


def out_of_memory(error: BaseException) -> bool:
    return type(error).__name__ == "OutOfMemoryError" or "out of memory" in str(error).lower()


def last_words(error: BaseException) -> str:
    """One line for the table; the whole of it goes to the log."""
    traceback.print_exception(error)
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."


def most_rows(session: Session, length: int) -> int:
    return max(1, session.most_tokens // length)


def measure_all(session: Session, run_one):
    """Runs every length of a session. `run_one(rows, length, micro, steps=dict(warm_up, timed))` returns the facts of one
    measurement; what it raises becomes a record too."""
    for length, equal in session.lengths.items():
        known = [r for r in session.known if r["session"] == session.name]

        def measured(phase, rows, micro, length=length):
            if session.left <= 0:
                raise TimeoutError
            if phase != "search" and session.left < session.seconds / 2:
                raise TimeoutError
            steps = SEARCH if phase == "search" else dict(warm_up=session.warm_up, timed=session.timed)
            begin = time.time()
            try:
                facts = run_one(rows, length, micro, steps)
                facts["rate"] = facts["tokens"] / facts["seconds"]
                facts["ok"] = True
            except Exception as error:  # noqa: BLE001: whatever an opponent throws is its record.
                facts = dict(ok=False, memory=out_of_memory(error), why=last_words(error))
            record = session.write(phase, length=length, rows=rows, micro=micro, took=round(time.time() - begin, 1), **facts)
            shown = f"{record['rate']:,.0f} tokens/s" if record["ok"] else record["why"]
            print(f"{session.name}: {phase} {rows}x{length or 'mix'} in {micro}: {shown}", file=sys.stderr, flush=True)
            return record

        def copied(record, phase):
            session.write(phase, **{k: v for k, v in record.items() if k not in ("session", "model", "engine", "setting", "phase")})

        try:
            plan.explore(length, equal, most_rows(session, length or plan.MIX["mean"]), measured, copied, known, start=session.start_rows)
        except TimeoutError:
            session.cut(length, f"its time was up at {length or 'the mix'}")


def splits(rows: int, micro: int, mask, by_length: bool):
    """Row numbers of each micro-batch; by length where rows differ, so that less is padded."""
    order = list(range(rows))
    if by_length:
        order.sort(key=lambda row: -int(mask[row].sum()))
    return [order[at:at + micro] for at in range(0, rows, micro)]


def torch_loop(session: Session, folder: Path, micro: int, steps: dict, params: list, start: list, forward, by_length: bool = True) -> dict:
    """The timed loop: gradient over micro-batches, clip, AdamW, schedule. `forward(ids, mask or None, labels, trained)` returns the
    micro-batch's loss, already divided by the step's trained tokens; `start` are the parameters' first values.

    Time: events around each step, and all timed steps end to end on the wall clock. No number is read back inside a step; the host
    waits for the step before the last, as it would for its own log."""
    import torch

    from peft_worker import schedule
    hyper = json.loads((folder / "run.json").read_text())
    cuda = session.device.startswith("cuda")
    ids, mask, labels = batches_of(folder)
    with torch.no_grad():
        for parameter, value in zip(params, start, strict=True):
            parameter.copy_(value)
    count = min(len(ids), steps["warm_up"] + steps["timed"])
    optimizer = torch.optim.AdamW(params, lr=hyper["lr"], betas=tuple(hyper["betas"]), eps=hyper["eps"], weight_decay=hyper["weight_decay"],
                                  fused=cuda)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, hyper))
    wait = torch.cuda.synchronize if cuda else lambda: None
    mark = (lambda: recorded(torch)) if cuda else time.monotonic
    losses, norms, marks, tokens, energy, clock, done = [], [], [], [], None, None, 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    watch = nvml.Watch(session.meters) if session.meters else contextlib.nullcontext()
    with watch:
        for step in range(count):
            if step == steps["warm_up"]:
                wait()
                energy, clock = nvml.Energy(session.meters) if session.meters else None, time.monotonic()
            begin = mark()
            trained, total = int((labels[step][:, 1:] != -100).sum()), 0.0
            for rows in splits(len(ids[step]), micro, mask[step], by_length and bool((mask[step] == 0).any())):
                longest = int(mask[step, rows].sum(dim=1).max())
                part = [t[step, rows, :longest].to(session.device, non_blocking=True) for t in (ids, mask, labels)]
                padded = not bool(mask[step, rows, :longest].all())
                loss = forward(part[0], part[1] if padded else None, part[2], trained)
                loss.backward()
                total = total + loss.detach()
                del loss
            norm = torch.nn.utils.clip_grad_norm_(params, hyper["max_grad_norm"])
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            marks.append((begin, mark()))
            losses.append(total)
            norms.append(norm)
            tokens.append(int(mask[step].sum()))
            done += 1
            if cuda and step > 0:
                marks[step - 1][1].synchronize()
            if step + 1 - steps["warm_up"] >= LEAST_TIMED and time.monotonic() - clock > session.seconds:
                break
        wait()
        seconds, joules = time.monotonic() - clock, energy.spent() if energy else None
    first = steps["warm_up"]
    each = [b.elapsed_time(e) / 1e3 if cuda else e - b for b, e in marks]
    facts = dict(seconds=seconds, median=statistics.median(each[first:]), tokens=sum(tokens[first:]), steps=done - first, joules=joules,
                 losses=[float(loss) for loss in losses], norms=[float(norm) for norm in norms])
    if session.meters:
        facts |= watch.facts()
    if cuda:
        facts |= dict(peak=torch.cuda.max_memory_allocated(), reserved=torch.cuda.max_memory_reserved())
    else:
        import resource
        facts["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return facts


def recorded(torch):
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def free(session: Session):
    """Gives back what the last measurement left, so that the next starts from the model alone."""
    import gc

    import torch
    gc.collect()
    if session.device.startswith("cuda"):
        torch.cuda.empty_cache()


def offline():
    """Nothing here may ask the network, or tell it anything."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false",
                      UNSLOTH_DISABLE_STATISTICS="1", UNSLOTH_DISABLE_AUTO_UPDATES="1", WANDB_DISABLED="true")


def main(work):
    """Runs a worker module's `work(session)` on the session file that it is given."""
    offline()
    session = Session(Path(sys.argv[1]))
    try:
        work(session)
    except ImportError as error:
        session.absent(last_words(error))
    except Exception as error:  # noqa: BLE001: of a process of its own.
        session.write("failed", length=None, rows=0, micro=0, ok=False, why=last_words(error))
        sys.exit(1)
