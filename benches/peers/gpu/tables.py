"""Records -> the table, and the lines that answer what was asked. Needs nothing beyond Python."""
import models
import plan

HEAD = ["model", "batch", "engine", "setting", "micro", "tokens/s", "ms/step", "MFU", "4N/sheet", "HFU", "peak GB", "device GB", "J/1k tokens", "last loss"]
NAMES = {"ours": "tunesmith", "hf": "PEFT", "hf+liger": "PEFT + Liger", "unsloth": "Unsloth"}


def batch_words(record: dict) -> str:
    if record["length"] == 0:
        return f"mix, {record['rows']} rows"
    return f"{record['rows']}x{record['length']}" + (" (best)" if record["phase"] == "best" else "")


def order(record: dict):
    names = list(models.MODELS)
    return (names.index(record["model"]), record["length"] or 10**9, record["phase"] != "best", -record["rows"] if record["phase"] == "equal" else 0,
            list(NAMES).index(record["engine"]), plan.setting_words(record["setting"]))


def newest(records: list) -> list:
    """The last word on each measurement: later records of the same one replace earlier ones."""
    out = {}
    for r in records:
        if r["phase"] in ("best", "equal"):
            # There is one best batch, whichever it was.
            rows = r["rows"] if r["phase"] == "equal" else 0
            out[r["session"], r["length"], r["phase"], rows] = r
    return sorted(out.values(), key=order)


def gigabytes(n) -> str:
    return "" if n is None else f"{n / 1e9:.1f}" if n >= 1e10 else f"{n / 1e9:.2f}"


def row(record: dict, device: str, peak: float = models.MEASURED_PEAK) -> str:
    cells = [record["model"], batch_words(record), NAMES[record["engine"]], plan.setting_words(record["setting"])]
    planned = record["setting"].get("recompute") == "auto" and record.get("plan")
    cells.append(f"{record['plan']['micro_batch_tokens']:,} tokens" if planned else str(record["micro"]))
    if not record.get("ok"):
        cells += ["does not fit" if record.get("memory") else f"failed: {record.get('why', 'unknown')}"] + [""] * (len(HEAD) - len(cells) - 1)
        return "| " + " | ".join(cells) + " |"
    busy = ["", "", ""]
    # Of a mix of lengths attention is another sum for every row; on a CPU the peaks are others.
    if record["length"] and device.startswith("cuda"):
        mode = plan.recompute_mode(record["engine"], record["setting"])
        shares = models.utilisation(models.MODELS[record["model"]], record["length"], record["rate"], mode, peak)
        if record["setting"].get("recompute") == "auto":
            shares["hfu"] = shares["mfu"] * (1 + record.get("extra_compute", 0.0))
        busy = [f"{share:.1%}" for share in shares.values()]
    joules = "" if record.get("joules") is None else f"{1e3 * record['joules'] / record['tokens']:.1f}"
    cells += [f"{record['rate']:,.0f}", f"{1e3 * record['median']:.1f}", *busy, gigabytes(record.get("peak")), gigabytes(record.get("device_peak")),
              joules, f"{record['losses'][-1]:.4f}"]
    return "| " + " | ".join(cells) + " |"


def table(records: list, device: str, peak: float = models.MEASURED_PEAK) -> list:
    head = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * 5 + "---:|" * (len(HEAD) - 5)]
    return head + [row(r, device, peak) for r in newest(records)]


def absent(records: list) -> list:
    """Engines that cannot run here, and why; what of a session was not measured."""
    out = {}
    for r in records:
        if r["phase"] == "absent":
            out[f"{NAMES[r['engine']]} ({plan.setting_words(r['setting'])}): not here: {r['why']}"] = None
        elif r["phase"] == "cut":
            out[f"{r['session']}: cut: {r['why']}"] = None
    return list(out)


def fastest(records: list, **want):
    found = [r for r in records if r.get("ok") and all(r[k] == v for k, v in want.items())]
    return max(found, key=lambda r: r["rate"], default=None)


def ratios(records: list) -> list:
    """Ours against the best of each opponent: each at its best batch, and at the same batch."""
    out, last = [], newest(records)
    batches = {(r["model"], r["length"], r["phase"], r["rows"] if r["phase"] == "equal" else 0): r for r in last}
    for (model, length, phase, rows), example in batches.items():
        want = dict(model=model, length=length, phase=phase) | (dict(rows=rows) if rows else {})
        ours = fastest(last, engine="ours", **want)
        if ours is None:
            continue
        for engine in list(NAMES)[1:]:
            peer = fastest(last, engine=engine, **want)
            if peer:
                where = f"{model}, {length or 'mix'}, each at its best batch" if phase == "best" else f"{model}, {batch_words(example)}, equal batch"
                line = (f"{where}: {ours['rate']:,.0f} tokens/s ({plan.setting_words(ours['setting'])}) = {ours['rate'] / peer['rate']:.2f} x "
                        f"{NAMES[engine]}'s best ({peer['rate']:,.0f}; {plan.setting_words(peer['setting'])}, micro-batch {peer['micro']})")
                if ours.get("peak") and peer.get("peak"):
                    line += f"; peak memory {ours['peak'] / peer['peak']:.2f} of it"
                out.append(line)
    return out


def agreement(records: list) -> list:
    """How far the losses of an equal batch lie apart: all engines train the same adapter on the same ids, so this is the check that
    they did the same work."""
    batches = {}
    for r in newest(records):
        if r["phase"] == "equal" and r.get("ok"):
            batches.setdefault((r["model"], batch_words(r)), []).append(r)
    out = []
    for (model, batch), found in batches.items():
        steps = min(len(r["losses"]) for r in found)
        gaps = [(spread(a["losses"][:steps], b["losses"][:steps])["most"], a, b) for i, a in enumerate(found) for b in found[:i]]
        if gaps:
            gap, a, b = max(gaps, key=lambda entry: entry[0])
            who = " and ".join(f"{NAMES[r['engine']]} ({plan.setting_words(r['setting'])})" for r in (b, a))
            out.append(f"{model}, {batch}: losses of the same step differ by at most {gap:.1e} over {steps} steps, between {who}")
    return out


def loading(records: list) -> list:
    """The fastest load of each model by each engine."""
    best = {}
    for r in records:
        if r.get("load_seconds") and r.get("model_bytes"):
            key = r["model"], r["engine"]
            best[key] = min(best.get(key, (float("inf"), 0)), (r["load_seconds"], r["model_bytes"]))
    return [f"loading {model}, {gigabytes(size)} GB: {NAMES[engine]} {seconds:.2f} s ({size / 1e9 / seconds:.2f} GB/s)"
            for (model, engine), (seconds, size) in best.items()]


def spread(a: list, b: list) -> dict:
    """How far two curves lie apart: most and mean of the absolute differences. A NaN counts as infinitely far."""
    if len(a) != len(b) or not a:
        raise SystemExit(f"{len(a)} steps on one side and {len(b)} on the other")
    gaps = [abs(x - y) for x, y in zip(a, b)]
    gaps = [g if g == g else float("inf") for g in gaps]
    return dict(most=max(gaps), mean=sum(gaps) / len(gaps))


def relative_spread(a: list, b: list) -> float:
    """The largest difference of two positive curves as a share of the second."""
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        gap = abs(x - y) / abs(y) if y else float("inf")
        worst = max(worst, gap if gap == gap else float("inf"))
    return worst
