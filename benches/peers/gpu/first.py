"""What torch alone reaches on this card (6.5 of the protocol): the yardstick for every share of a peak, and for our own kernels.

    python first.py OUT.json [cuda:0|cpu]       on a CPU in small, to see that it runs

A bf16 product for 30 s on end; the products of a layer with K and with K + 64 (the weight that carries its adapter); the thin products
of LoRA; attention with cuDNN's and with flash attention's kernel.
"""
import json
import sys
import time
from pathlib import Path

# Name -> (K, N): y [M, N] = x [M, K] w; forward, then the input's gradient.
PRODUCTS = {"qkv": (4096, 6144), "o": (4096, 4096), "gate_up": (4096, 28672), "down": (14336, 4096)}
LORA = 64
QUERY_HEADS, KEY_HEADS, HEAD = 32, 8, 128


class Clock:
    """Seconds of the device for what a function queues, the fastest of some runs and their median."""

    def __init__(self, torch, device: str):
        self.torch, self.cuda = torch, device.startswith("cuda")

    def wait(self):
        if self.cuda:
            self.torch.cuda.synchronize()

    def time(self, run, times: int = 10) -> float:
        for _ in range(2):
            run()
        self.wait()
        seen = []
        for _ in range(times):
            if self.cuda:
                begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                run()
                end.record()
                end.synchronize()
                seen.append(begin.elapsed_time(end) / 1e3)
            else:
                begin = time.perf_counter()
                run()
                seen.append(time.perf_counter() - begin)
        return sorted(seen)[len(seen) // 2]


def sustained(torch, clock: Clock, device: str, size: int, seconds: float) -> dict:
    """One large product over and over: the card warms up and meets its power limit."""
    import nvml
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)
    clock.wait()
    meters = nvml.Meters(int(device.partition(":")[2] or 0)) if clock.cuda else None
    done, rates, begin = 0, [], time.monotonic()
    with nvml.Watch(meters) if meters else open("/dev/null") as watch:
        while time.monotonic() - begin < seconds:
            at = time.monotonic()
            for _ in range(50 if clock.cuda else 1):
                torch.mm(a, b, out=out)
            clock.wait()
            done += 50 if clock.cuda else 1
            rates.append((50 if clock.cuda else 1) * 2 * size**3 / (time.monotonic() - at))
    total = time.monotonic() - begin
    facts = watch.facts() if meters else {}
    return dict(size=size, seconds=total, flops=done * 2 * size**3 / total, first=rates[0], last=rates[-1], **facts)


def products(torch, clock: Clock, device: str, rows: list, shrink: int) -> list:
    out = []
    for m in rows:
        for name, (k, n) in PRODUCTS.items():
            for direction, (inner, outer) in (("forward", (k, n)), ("input gradient", (n, k))):
                for more in (0, LORA):
                    inner_size = inner // shrink + more
                    x = torch.randn(m, inner_size, device=device, dtype=torch.bfloat16)
                    # As a linear's weight lies: [out, in] forward, [in, out] backward.
                    w = torch.randn(outer // shrink, inner_size, device=device, dtype=torch.bfloat16).t() if direction == "forward" else \
                        torch.randn(inner_size, outer // shrink, device=device, dtype=torch.bfloat16)
                    y = torch.empty(m, outer // shrink, device=device, dtype=torch.bfloat16)
                    seconds = clock.time(lambda: torch.mm(x, w, out=y))
                    out.append(dict(what=f"{name} {direction}", m=m, k=inner_size, n=outer // shrink, us=seconds * 1e6,
                                    tflops=2 * m * inner_size * (outer // shrink) / seconds / 1e12))
    return out


def thin(torch, clock: Clock, device: str, rows: list, shrink: int) -> list:
    """S = X At, dS = dY sB, dB = dYt S, dA = dSt X."""
    out = []
    for m in rows:
        for name, (k, n) in PRODUCTS.items():
            k, n = k // shrink, n // shrink
            x, dy, s = (torch.randn(m, size, device=device, dtype=torch.bfloat16) for size in (k, n, LORA))
            a, b = torch.randn(LORA, k, device=device, dtype=torch.bfloat16), torch.randn(n, LORA, device=device, dtype=torch.bfloat16)
            runs = {"S": (lambda: x @ a.t(), k), "dS": (lambda: dy @ b, n), "dB": (lambda: dy.t() @ s, n), "dA": (lambda: s.t() @ x, k)}
            for what, (run, size) in runs.items():
                seconds = clock.time(run)
                moved = 2 * (m * size + m * LORA + size * LORA)
                out.append(dict(what=f"{what} {name}", m=m, us=seconds * 1e6, gb_per_s=moved / seconds / 1e9))
    return out


def attention(torch, clock: Clock, device: str, tokens: int, lengths: list) -> list:
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
    out = []
    kernels = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION} if clock.cuda else {"flash": SDPBackend.FLASH_ATTENTION}
    for length in lengths:
        batch = max(1, tokens // length)
        for name, kernel in kernels.items():
            q, k, v = (torch.randn(batch, heads, length, HEAD, device=device, dtype=torch.bfloat16, requires_grad=True)
                       for heads in (QUERY_HEADS, KEY_HEADS, KEY_HEADS))
            grad = torch.randn(batch, QUERY_HEADS, length, HEAD, device=device, dtype=torch.bfloat16)
            flops = 2 * batch * length * (length + 1) * QUERY_HEADS * HEAD

            def forward():
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

            def both():
                q.grad = k.grad = v.grad = None
                forward().backward(grad)

            try:
                with sdpa_kernel(kernel):
                    ahead = clock.time(forward)
                    all_of_it = clock.time(both)
            except RuntimeError as error:
                out.append(dict(what=name, length=length, why=" ".join(str(error).split())[:200]))
                continue
            back = max(all_of_it - ahead, 1e-9)
            out.append(dict(what=name, length=length, batch=batch, forward_us=ahead * 1e6, backward_us=back * 1e6,
                            forward_tflops=flops / ahead / 1e12, backward_tflops=2.5 * flops / back / 1e12))
    return out


def main(path: Path, device: str):
    import torch
    cuda = device.startswith("cuda")
    clock, out = Clock(torch, device), {}
    shrink = 1 if cuda else 32
    parts = dict(
        products=lambda: products(torch, clock, device, [2048, 8192, 16384, 32768] if cuda else [64], shrink),
        thin=lambda: thin(torch, clock, device, [16384] if cuda else [64], shrink),
        attention=lambda: attention(torch, clock, device, 16384 if cuda else 256, [512, 2048, 8192] if cuda else [128]),
        # Last: it leaves the card hot.
        sustained=lambda: sustained(torch, clock, device, 8192 if cuda else 256, 30 if cuda else 0.5),
    )
    for name, part in parts.items():
        with torch.no_grad() if name != "attention" else torch.enable_grad():
            out[name] = part()
        # After each, so that a cut leaves something.
        path.write_text(json.dumps(dict(device=torch.cuda.get_device_name() if cuda else "cpu", torch=torch.__version__, **out), indent=1) + "\n")
    for rows in (out["products"], out["thin"], out["attention"]):
        for row in rows:
            print("  ".join(f"{k} {v:,.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    print(f"sustained: {out['sustained']['flops'] / 1e12:.1f} TFLOP/s over {out['sustained']['seconds']:.0f} s")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "cuda:0")
