"""The models that are measured, as their config.json, and the FLOPs of a token in each. Needs nothing beyond Python."""
from dataclasses import dataclass

# What large bf16 products and the data sheet give on an H200 SXM, in FLOP/s: a burst of ten 8192^3 products, and NVIDIA's dense figure.
MEASURED_PEAK = 788e12
SHEET_PEAK = 989e12

LORA_RANK = 16
LORA_ALPHA = 32

_LLAMA = dict(hidden_act="silu", rms_norm_eps=1e-5, attention_bias=False, attention_dropout=0.0, bos_token_id=1, eos_token_id=2,
              tie_word_embeddings=False, use_cache=True)
# Without a sliding window, as from v0.2 on: all engines then compute the same attention at every length.
_MISTRAL_7B = dict(_LLAMA, architectures=["MistralForCausalLM"], model_type="mistral", vocab_size=32000, hidden_size=4096,
                   intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
                   max_position_embeddings=32768, rope_theta=1e6, sliding_window=None, dtype="bfloat16")
MODELS = {
    # 6.4 (a): small enough for any CPU, in float32.
    "tiny": dict(_LLAMA, architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=1024, hidden_size=256,
                 intermediate_size=688, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=2, head_dim=32,
                 max_position_embeddings=8192, rope_theta=10000.0, dtype="float32"),
    # 6.4 (b): two layers of Mistral's width.
    "wide2": dict(_MISTRAL_7B, num_hidden_layers=2),
    "mistral-7b": _MISTRAL_7B,
    "llama-3-8b": dict(_LLAMA, architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=128256, hidden_size=4096,
                       intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
                       max_position_embeddings=8192, rope_theta=500000.0, dtype="bfloat16"),
}


def linears(config: dict) -> dict:
    """Name -> (inputs, outputs) of the seven linears of a layer."""
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    return dict(q_proj=(hidden, queries), k_proj=(hidden, keys), v_proj=(hidden, keys), o_proj=(queries, hidden),
                gate_proj=(hidden, inner), up_proj=(hidden, inner), down_proj=(inner, hidden))


def tensor_shapes(config: dict) -> dict:
    """Name -> shape of every tensor of the checkpoint, in the order of the layers."""
    hidden = config["hidden_size"]
    out = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        out[at + "input_layernorm.weight"] = out[at + "post_attention_layernorm.weight"] = (hidden,)
        for name, (inputs, outputs) in linears(config).items():
            block = "self_attn" if name[0] in "qkvo" else "mlp"
            out[f"{at}{block}.{name}.weight"] = (outputs, inputs)
    out["model.norm.weight"] = (hidden,)
    out["lm_head.weight"] = (config["vocab_size"], hidden)
    return out


def parameters(config: dict) -> int:
    """All of them, embedding and head among them."""
    total = 0
    for shape in tensor_shapes(config).values():
        size = 1
        for n in shape:
            size *= n
        total += size
    return total


@dataclass(frozen=True)
class Flops:
    """FLOPs of a token in a training step, causal, all positions trained."""
    linear_forward: float
    linear_backward: float
    head: float
    lora_forward: float
    lora_backward: float
    attention_forward: float
    attention_backward: float
    queries_keys_values: float
    gate_up: float
    down: float

    @property
    def step(self) -> float:
        """Nothing computed twice."""
        return (self.linear_forward + self.linear_backward + self.head + self.lora_forward + self.lora_backward
                + self.attention_forward + self.attention_backward)

    def recomputed(self, mode: str) -> float:
        """What a mode of recomputation adds. `full` runs every layer's forward again, as Hugging Face and Unsloth do."""
        attention = self.attention_forward
        return {
            "none": 0.0,
            "mlp": self.gate_up,
            "min2": self.queries_keys_values + attention + self.gate_up,
            "min": self.linear_forward - self.down + attention,
            "full": self.linear_forward + self.lora_forward + attention,
        }[mode]


def flops(config: dict, length: int, rank: int = LORA_RANK) -> Flops:
    """For documents of `length` tokens: linears 2 N forward and 2 N for the input's gradient (no weight gradient: they are
    frozen; the first layer's q, k, v need no input gradient), head likewise, LoRA 2 r (in + out) and twice that,
    attention 2 (S + 1) d forward and 2.5 times that backward."""
    layers, sizes = config["num_hidden_layers"], linears(config)
    weights = {name: inputs * outputs for name, (inputs, outputs) in sizes.items()}
    layer, first = sum(weights.values()), sum(weights[n] for n in ("q_proj", "k_proj", "v_proj"))
    lora = 2 * rank * sum(inputs + outputs for inputs, outputs in sizes.values()) * layers
    attention = 2 * (length + 1) * config["num_attention_heads"] * config["head_dim"] * layers
    return Flops(linear_forward=2 * layer * layers, linear_backward=2 * (layer * layers - first),
                 head=4 * config["hidden_size"] * config["vocab_size"], lora_forward=lora, lora_backward=2 * lora,
                 attention_forward=attention, attention_backward=2.5 * attention, queries_keys_values=2 * first * layers,
                 gate_up=2 * (weights["gate_proj"] + weights["up_proj"]) * layers, down=2 * weights["down_proj"] * layers)


def utilisation(config: dict, length: int, rate: float, mode: str, peak: float = MEASURED_PEAK) -> dict:
    """Three ways to say how busy the card is at `rate` tokens/s: exact FLOPs of the step over the measured peak; 4 N over the
    data sheet's (NeMo's convention); with what is computed twice over the measured peak."""
    f = flops(config, length)
    return dict(mfu=rate * f.step / peak, mfu_4n=rate * 4 * parameters(config) / SHEET_PEAK,
                hfu=rate * (f.step + f.recomputed(mode)) / peak)
