"""Unsloth: its model, its kernels, its checkpointing. Setting: `gc` is its `use_gradient_checkpointing` (False, True, "unsloth").

It patches torch and transformers as it is imported, so it comes first, in a process of its own. Its first step compiles for minutes.
Rows of real lengths go in packed, as its own trainer packs them.
"""
import os
import time

import common


def work(session: common.Session):
    if not session.device.startswith("cuda"):
        raise ImportError("it needs a GPU")
    # It writes what it compiles into the working directory.
    os.chdir(session.work)
    begin = time.monotonic()
    import unsloth  # noqa: F401: before everything else.
    import torch
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file
    from unsloth import FastLanguageModel

    import hf
    gc = session.setting["gc"]
    longest = max(list(session.lengths) + [2048])
    model, _ = FastLanguageModel.from_pretrained(str(session.model_dir), max_seq_length=longest, dtype=torch.bfloat16, load_in_4bit=False,
                                                 use_gradient_checkpointing=gc, local_files_only=True)
    import models
    import prepare
    model = FastLanguageModel.get_peft_model(model, r=models.LORA_RANK, target_modules=prepare.TARGETS, lora_alpha=models.LORA_ALPHA,
                                             lora_dropout=0.0, bias="none", use_gradient_checkpointing=gc, random_state=1,
                                             max_seq_length=longest)
    adapter = common.adapter(session.work, session.model)
    set_peft_model_state_dict(model, load_file(adapter / "adapter_model.safetensors"))
    FastLanguageModel.for_training(model, use_gradient_checkpointing=bool(gc))
    torch.cuda.synchronize()
    size = sum(file.stat().st_size for file in session.model_dir.glob("*.safetensors"))
    session.once = dict(load_seconds=time.monotonic() - begin, model_bytes=size, versions=hf.versions())
    params = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in params]

    def forward(ids, mask, labels, trained):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            if mask is None:
                return model(input_ids=ids, labels=labels, num_items_in_batch=trained).loss
            return model(**packed(torch, ids, mask, labels), num_items_in_batch=trained).loss

    def run_one(rows, length, micro, steps):
        common.free(session)
        folder = common.run_folder(session.work, session.model, rows, length, session.warm_up + session.timed)
        return common.torch_loop(session, folder, micro, steps, params, start, forward, by_length=False)

    common.measure_all(session, run_one)


def packed(torch, ids, mask, labels) -> dict:
    """Rows without their padding, one after another, with positions of their own; the first token of each is no target."""
    lengths = mask.sum(dim=1)
    on = mask.bool()
    labels = labels.clone()
    labels[:, 0] = -100
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return dict(input_ids=ids[on][None], labels=labels[on][None], position_ids=positions[on][None],
                packed_seq_lengths=lengths.to(torch.int32))


if __name__ == "__main__":
    common.main(work)
