"""Hugging Face PEFT, eager, as its users run it; with Liger's kernels where the setting says so.

Settings: `gc` gradient checkpointing (the non-reentrant kind); `adapter` the LoRA parameters' type, fp32 under autocast (what PEFT
and the Trainer's `bf16` do unless told otherwise) or bf16; `attention` SDPA with cuDNN's kernel first (`cudnn`), with flash attention
first (`flash`), as torch chooses (`sdpa`), or no SDPA at all (`eager`); `liger`; `compile`.
"""
import contextlib
import time

import common


def liger(config: dict):
    """Patches transformers, before the model is made."""
    from liger_kernel import transformers as kernels
    patch = getattr(kernels, f"apply_liger_kernel_to_{config['model_type']}")
    patch(rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=True)


def backends(attention: str):
    """The kernels that SDPA may take, the first that can do it."""
    from torch.nn.attention import SDPBackend as B, sdpa_kernel
    order = {"cudnn": [B.CUDNN_ATTENTION, B.FLASH_ATTENTION, B.EFFICIENT_ATTENTION, B.MATH],
             "flash": [B.FLASH_ATTENTION, B.CUDNN_ATTENTION, B.EFFICIENT_ATTENTION, B.MATH]}.get(attention)
    return contextlib.nullcontext() if order is None else sdpa_kernel(order, set_priority=True)


def load(session: common.Session, adapter, setting: dict):
    """The model with the adapter, ready to train."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging
    logging.disable_progress_bar()
    if setting.get("liger"):
        if not session.device.startswith("cuda"):
            raise ImportError("its kernels are Triton's and need a GPU")
        liger(session.config)
    dtype = getattr(torch, session.config["dtype"])
    attention = "eager" if setting["attention"] == "eager" else "sdpa"
    base = AutoModelForCausalLM.from_pretrained(session.model_dir, dtype=dtype, attn_implementation=attention,
                                                device_map={"": session.device})
    model = PeftModel.from_pretrained(base, adapter, is_trainable=True, autocast_adapter_dtype=setting["adapter"] == "fp32")
    if setting["adapter"] == "bf16":
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    model.config.use_cache = False
    model.train()
    if setting["gc"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
    if setting.get("compile"):
        model.compile(dynamic=False)
    return model


def forward_of(session: common.Session, model, setting: dict):
    """`forward` of common.torch_loop: the model's own loss, as the Trainer asks for it."""
    import torch
    mixed = setting["adapter"] == "fp32" and session.config["dtype"] == "bfloat16"

    def forward(ids, mask, labels, trained):
        cast = torch.autocast("cuda", dtype=torch.bfloat16) if mixed else contextlib.nullcontext()
        with cast, backends(setting["attention"]):
            return model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False, num_items_in_batch=trained).loss

    return forward


def versions() -> dict:
    from importlib.metadata import PackageNotFoundError, version
    out = {}
    for package in ("torch", "transformers", "peft", "triton", "liger_kernel", "unsloth", "unsloth_zoo", "trl", "xformers"):
        with contextlib.suppress(PackageNotFoundError):
            out[package] = version(package)
    return out


def work(session: common.Session):
    import torch
    torch.set_num_threads(session.threads)
    torch.backends.cuda.matmul.allow_tf32 = True
    begin = time.monotonic()
    adapter = common.adapter(session.work, session.model)
    model = load(session, adapter, session.setting)
    if session.device.startswith("cuda"):
        torch.cuda.synchronize()
    size = sum(file.stat().st_size for file in session.model_dir.glob("*.safetensors"))
    session.once = dict(load_seconds=time.monotonic() - begin, model_bytes=size, versions=versions())
    params = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in params]
    forward = forward_of(session, model, session.setting)

    def run_one(rows, length, micro, steps):
        common.free(session)
        folder = common.run_folder(session.work, session.model, rows, length, session.warm_up + session.timed)
        return common.torch_loop(session, folder, micro, steps, params, start, forward)

    common.measure_all(session, run_one)


if __name__ == "__main__":
    common.main(work)
