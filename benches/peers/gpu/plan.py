"""What is measured: models, shapes, engines, settings, and what of it is still to do. Needs nothing beyond Python."""
from dataclasses import asdict, dataclass, field

# Rows and length of the equal batches; `mix` is rows of real lengths.
SHAPES = ["16x2048", "8x2048", "2x8192", "32x512", "4x4096", "mix"]
MIX = dict(rows=64, mean=200, longest=2048)
# Enough of them for a CPU.
CPU_MIX_ROWS = 4

# The first of each engine is the one that matters most: time may run out.
ENGINES = {
    "ours": [dict(recompute="auto"), dict(recompute="none"), dict(recompute="min"), dict(recompute="mlp"), dict(recompute="min2")],
    "hf": [
        dict(gc=False, adapter="bf16", attention="cudnn"),
        dict(gc=True, adapter="bf16", attention="cudnn"),
        dict(gc=False, adapter="fp32", attention="cudnn"),
        dict(gc=True, adapter="fp32", attention="cudnn"),
        dict(gc=False, adapter="bf16", attention="flash"),
        dict(gc=False, adapter="bf16", attention="cudnn", compile=True),
    ],
    "hf+liger": [dict(gc=False, adapter="bf16", attention="cudnn", liger=True), dict(gc=True, adapter="bf16", attention="cudnn", liger=True)],
    "unsloth": [dict(gc=False), dict(gc=True), dict(gc="unsloth")],
}
# Without a GPU: what the workers can do there.
CPU_ENGINES = {
    "ours": [dict(recompute="auto"), dict(recompute="none"), dict(recompute="min")],
    "hf": [dict(gc=False, adapter="fp32", attention="sdpa"), dict(gc=True, adapter="fp32", attention="sdpa")],
    "hf+liger": [dict(gc=False, adapter="fp32", attention="sdpa", liger=True)],
    "unsloth": [dict(gc=False)],
}


def shape(text: str) -> tuple:
    """`16x2048` -> (16, 2048); `mix` -> (64, 0): rows of many lengths."""
    if text == "mix":
        return MIX["rows"], 0
    rows, _, length = text.partition("x")
    if not (rows.isdigit() and length.isdigit() and int(rows) and int(length) > 1):
        raise SystemExit(f"`{text}` is no shape: write rows x length, as in 16x2048, or mix")
    return int(rows), int(length)


def setting_words(setting: dict) -> str:
    """`gc=False adapter=bf16` and so on, as tables and keys have it."""
    words = []
    for name, value in setting.items():
        if name == "gc":
            words.append({False: "no checkpointing", True: "checkpointing"}.get(value, f"checkpointing {value}"))
        elif name == "recompute":
            words.append({"none": "keeps all", "auto": "planned"}.get(value, f"recompute {value}"))
        elif name == "adapter":
            words.append(f"{value} adapter")
        elif value is True:
            words.append(name)
        else:
            words.append(str(value))
    return ", ".join(words)


def recompute_mode(engine: str, setting: dict) -> str:
    """The mode whose FLOPs a setting adds (models.Flops.recomputed). What a plan recomputes is in its record."""
    if engine == "ours":
        return setting["recompute"].replace("auto", "none")
    return "full" if setting["gc"] else "none"


@dataclass
class Session:
    """One process of one engine with one setting, and the lengths that it measures in turn."""
    model: str
    engine: str
    setting: dict
    # Length -> rows of the equal batches; length 0 is the mix.
    lengths: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.model} / {self.engine} / {setting_words(self.setting)}"

    def key(self, length: int) -> str:
        return f"{self.name} / {length or 'mix'}"

    def spec(self) -> dict:
        return asdict(self) | dict(name=self.name)


def sessions(models: list, shapes: list, device: str, only: list) -> list:
    """Every session there is to run, the most telling first: each engine's first setting before any second one."""
    lengths = {}
    for text in shapes:
        rows, length = shape(text)
        if length == 0 and not device.startswith("cuda"):
            rows = CPU_MIX_ROWS
        lengths.setdefault(length, []).append(rows)
    engines, out = ENGINES if device.startswith("cuda") else CPU_ENGINES, []
    for model in models:
        for turn in range(max(map(len, engines.values()))):
            for engine, settings in engines.items():
                if turn < len(settings):
                    session = Session(model, engine, settings[turn], dict(lengths))
                    # Every word has to be there: --only hf --only mix is PEFT on the mix.
                    session.lengths = {n: r for n, r in lengths.items() if all(word in session.key(n) for word in only)}
                    if session.lengths:
                        out.append(session)
    return out


def remaining(session: Session, records: list) -> dict:
    """The lengths of a session that records do not finish yet. What failed or ran out of time is tried again; what an engine
    cannot do here is not."""
    mine = [r for r in records if r["session"] == session.name]
    if any(r["phase"] == "absent" for r in mine):
        return {}
    finished = {r["length"]: set() for r in mine}
    for r in mine:
        if r["phase"] == "equal" and (r.get("ok") or r.get("memory")):
            finished[r["length"]].add(r["rows"])
    return {n: rows for n, rows in session.lengths.items() if set(rows) - finished.get(n, set())}


def doubling(most: int):
    """1, 2, 4, ... up to `most`, with `most` itself at the end."""
    n = 1
    while n < most:
        yield n
        n *= 2
    yield most


def explore(length: int, equal: list, most_rows: int, run_one, copy, known: list, start: int = 1):
    """Searches an engine's best micro-batch at one length and then measures it, alone and at the batches that all share.

    `run_one(phase, rows, micro)` measures a step of `rows` rows in micro-batches of `micro` and returns a record with `ok` and
    `rate`, or with `memory` where they do not fit; `copy(record, phase)` says that a measurement is also that of another phase. Rows double until they do not fit any more; the best is the fastest that did.
    `known` are records of an earlier run that was cut: what they hold is not measured again. The mix (length 0) has one batch:
    there the micro-batch alone is searched, `rows` stay.
    """
    def find(phase, rows, micro):
        for r in known:
            if r["length"] == length and (r["phase"], r["rows"], r["micro"]) == (phase, rows, micro) and (r.get("ok") or r.get("memory")):
                return r
        return run_one(phase, rows, micro)

    fits = []
    for micro in doubling(equal[0] if length == 0 else most_rows):
        if micro < start:
            continue
        record = find("search", equal[0] if length == 0 else micro, micro)
        if not record.get("ok"):
            break
        fits.append(record)
        # Twice as many rows that bring less than a hundredth are as good as it gets, and then some memory is saved.
        if len(fits) > 2 and max(r["rate"] for r in fits[-2:]) < 0.97 * max(r["rate"] for r in fits):
            break
    if not fits:
        # A search that begins above 1 row has not said that 1 row does not fit.
        return explore(length, equal, most_rows, run_one, copy, known) if start > 1 else None
    best = max(fits, key=lambda r: r["rate"])
    alone = find("best", best["rows"], best["micro"]) if length else None
    for rows in equal:
        # The fastest micro-batch that divides the step.
        choices = [r for r in fits if r["micro"] <= rows and rows % r["micro"] == 0]
        micro = max(choices or fits[:1], key=lambda r: r["rate"])["micro"]
        if alone and alone.get("ok") and (rows, micro) == (alone["rows"], alone["micro"]):
            copy(alone, "equal")
        else:
            find("equal", rows, micro)
    return best
