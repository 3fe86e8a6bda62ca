"""Tests of what plans, counts and writes, without torch: python -m unittest discover benches/peers/gpu (from the repository's root)."""
import itertools
import os
import sys
import unittest
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent))
import loss  # noqa: E402
import models  # noqa: E402
import nvml  # noqa: E402
import plan  # noqa: E402
import run  # noqa: E402
import tables  # noqa: E402


def record(engine="hf", phase="equal", rows=16, length=2048, micro=4, rate=10_000.0, setting=None, model="mistral-7b", **more):
    setting = setting if setting is not None else plan.ENGINES[engine][0]
    session = plan.Session(model, engine, setting)
    return dict(session=session.name, model=model, engine=engine, setting=setting, phase=phase, rows=rows, length=length, micro=micro,
                ok=True, rate=rate, median=rows * (length or 0) / rate, seconds=1.0, tokens=int(rate), joules=500.0, peak=80e9, device_peak=90e9,
                losses=[10.4, 10.3]) | more


class Flops(unittest.TestCase):
    def test_parameters_are_the_models_own(self):
        self.assertEqual(models.parameters(models.MODELS["mistral-7b"]), 7_241_732_096)
        self.assertEqual(models.parameters(models.MODELS["llama-3-8b"]), 8_030_261_248)

    def test_flops_of_a_token_are_those_of_the_notes(self):
        # GFLOP per token, and tokens/s at 788 TFLOP/s, of a table that was computed apart from this code.
        table = [("mistral-7b", 512, 29.1, 27066, 21513, 19975, 18203), ("mistral-7b", 2048, 30.5, 25817, 20716, 19098, 17471),
                 ("mistral-7b", 8192, 36.2, 21792, 18042, 16245, 15052), ("llama-3-8b", 512, 30.7, 25676, 20625, 19207, 17563),
                 ("llama-3-8b", 2048, 32.1, 24548, 19891, 18395, 16881), ("llama-3-8b", 8192, 37.7, 20881, 17413, 15733, 14612)]
        for name, length, giga, *rates in table:
            f = models.flops(models.MODELS[name], length)
            self.assertAlmostEqual(f.step / 1e9, giga, delta=0.06, msg=f"{name} {length}")
            for mode, rate in zip(("none", "mlp", "min", "full"), rates):
                self.assertAlmostEqual(788e12 / (f.step + f.recomputed(mode)) / rate, 1, delta=0.002, msg=f"{name} {length} {mode}")

    def test_utilisation_in_the_field_s_convention(self):
        # NeMo's own line: 12,473 tokens/s of Llama-3-8B are 402 TFLOP/s, 41 % of the data sheet's.
        busy = models.utilisation(models.MODELS["llama-3-8b"], 4096, 12_473, "none")
        self.assertAlmostEqual(busy["mfu_4n"], 0.405, delta=0.002)
        self.assertEqual(busy["mfu"], busy["hfu"])
        again = models.utilisation(models.MODELS["llama-3-8b"], 4096, 12_473, "full")
        self.assertAlmostEqual(again["hfu"] / again["mfu"], 1.46, delta=0.02)
        half = models.utilisation(models.MODELS["llama-3-8b"], 4096, 12_473, "none", peak=2 * models.MEASURED_PEAK)
        self.assertAlmostEqual(half["mfu"] * 2, busy["mfu"])


class Plan(unittest.TestCase):
    def test_shapes(self):
        self.assertEqual([plan.shape(s) for s in ("16x2048", "2x8192", "mix")], [(16, 2048), (2, 8192), (64, 0)])
        for wrong in ("2048", "0x5", "x", "4x1", "a x b", "-1x5"):
            with self.assertRaises(SystemExit):
                plan.shape(wrong)

    def test_every_engine_has_its_turn_before_any_second_setting(self):
        chosen = plan.sessions(["mistral-7b"], plan.SHAPES, "cuda:0", [])
        self.assertEqual([s.engine for s in chosen[:4]], list(plan.ENGINES))
        self.assertEqual(len(chosen), sum(map(len, plan.ENGINES.values())))
        self.assertEqual(chosen[0].lengths, {2048: [16, 8], 8192: [2], 512: [32], 4096: [4], 0: [64]})
        names = [s.name for s in chosen]
        self.assertEqual(len(set(names)), len(names))

    def test_only_takes_sessions_with_every_word(self):
        chosen = plan.sessions(["mistral-7b", "llama-3-8b"], plan.SHAPES, "cuda:0", ["llama", "unsloth", "4096"])
        self.assertEqual({(s.model, s.engine) for s in chosen}, {("llama-3-8b", "unsloth")})
        self.assertTrue(all(s.lengths == {4096: [4]} for s in chosen))
        self.assertEqual(plan.sessions(["tiny"], plan.SHAPES, "cpu", ["nothing"]), [])

    def test_what_is_done_is_not_done_again(self):
        session = plan.Session("mistral-7b", "hf", plan.ENGINES["hf"][0], {2048: [16, 8], 512: [32]})
        done = [record(rows=16), record(phase="best", rows=4)]
        self.assertEqual(plan.remaining(session, done), {2048: [16, 8], 512: [32]})
        done.append(record(rows=8, ok=False, memory=True))
        self.assertEqual(plan.remaining(session, done), {512: [32]})
        # A fault is tried again; what cannot run here is not.
        done.append(record(rows=32, length=512, ok=False, memory=False))
        self.assertEqual(plan.remaining(session, done), {512: [32]})
        done.append(record(phase="absent", length=None))
        self.assertEqual(plan.remaining(session, done), {})

    def test_doubling(self):
        self.assertEqual([list(plan.doubling(n)) for n in (1, 2, 6, 8)], [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]])

    def explore(self, rate, known=(), equal=(16, 8), most=64, length=2048, start=1):
        """Runs a search over a made-up engine: `rate(micro)` or None where it does not fit."""
        asked = []

        def run_one(phase, rows, micro):
            asked.append((phase, rows, micro))
            fits = rate(micro)
            return dict(length=length, phase=phase, rows=rows, micro=micro, ok=fits is not None, memory=fits is None, rate=fits)

        def copy(record, phase):
            asked.append((phase, "as", record["phase"]))

        best = plan.explore(length, list(equal), most, run_one, copy, list(known), start)
        return best, asked

    def test_the_best_batch_is_found_and_all_meet_at_the_same_ones(self):
        best, asked = self.explore(lambda micro: 1000.0 + micro if micro <= 4 else None)
        self.assertEqual(best["micro"], 4)
        self.assertEqual(asked, [("search", n, n) for n in (1, 2, 4, 8)] + [("best", 4, 4), ("equal", 16, 4), ("equal", 8, 4)])
        # A peak in the middle ends the search, and a step is cut into pieces that divide it.
        best, asked = self.explore(lambda micro: 1000.0 / abs(micro - 2.1), equal=(6,))
        self.assertEqual(best["micro"], 2)
        self.assertEqual(asked[-2:], [("best", 2, 2), ("equal", 6, 2)])
        self.assertLess(max(micro for _, _, micro in asked), 64)

    def test_a_best_batch_that_all_share_is_measured_once(self):
        _, asked = self.explore(lambda micro: 1000.0 + micro if micro <= 8 else None)
        self.assertEqual(asked[-3:], [("best", 8, 8), ("equal", 16, 8), ("equal", "as", "best")])

    def test_nothing_fits(self):
        best, asked = self.explore(lambda micro: None)
        self.assertIsNone(best)
        self.assertEqual(asked, [("search", 1, 1)])
        # From above: back to 1 before giving up.
        best, asked = self.explore(lambda micro: 5.0 if micro == 1 else None, start=4)
        self.assertEqual(best["micro"], 1)
        self.assertEqual(asked[:3], [("search", 4, 4), ("search", 1, 1), ("search", 2, 2)])

    def test_a_search_that_was_cut_goes_on(self):
        known = [dict(length=2048, phase="search", rows=n, micro=n, ok=True, rate=1000.0 + n) for n in (1, 2)]
        known.append(dict(length=2048, phase="search", rows=4, micro=4, ok=False, memory=True))
        _, asked = self.explore(lambda micro: 1.0, known)
        self.assertEqual(asked, [("best", 2, 2), ("equal", 16, 2), ("equal", 8, 2)])
        # Of a fault nothing is known.
        known[2] = known[2] | dict(memory=False)
        self.assertEqual(self.explore(lambda micro: None, known)[1][0], ("search", 4, 4))

    def test_a_mix_searches_the_micro_batch_alone(self):
        best, asked = self.explore(lambda micro: float(micro), equal=(64,), length=0)
        self.assertEqual({rows for _, rows, _ in asked}, {64})
        self.assertEqual(asked[-1], ("equal", 64, 64))
        self.assertNotIn("best", [phase for phase, _, _ in asked])


class Command(unittest.TestCase):
    def test_a_command_is_shown_without_this_machine_s_paths(self):
        words = ["--mode", "loss", "--out", "/somewhere", "--ours=/there", "--only", "hf", "--work", "/tmp/x", "--device", "cpu"]
        self.assertEqual(run.without_paths(words), ["--mode", "loss", "--only", "hf", "--device", "cpu"])


class Meters(unittest.TestCase):
    class Library:
        """Answers as NVML does: memory goes up, energy too, power is not supported."""
        used, joules = 1000, 5000

        def nvmlInit_v2(self):
            return 0

        def nvmlDeviceGetHandleByIndex_v2(self, index, handle):
            return 0 if index.value == 1 else 2

        def nvmlDeviceGetMemoryInfo(self, handle, memory):
            self.used += 1000
            memory._obj.used = self.used
            return 0

        def nvmlDeviceGetTotalEnergyConsumption(self, handle, value):
            self.joules += 1500
            value._obj.value = self.joules
            return 0

        def nvmlDeviceGetPowerUsage(self, handle, value):
            return 3

        def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle, value):
            value._obj.value = 0x24
            return 0

    def meters(self, ordinal, visible=None, library=None):
        library = library or self.Library()
        with mock.patch.object(nvml.ctypes, "CDLL", lambda name: library), mock.patch.dict("os.environ"):
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            if visible is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = visible
            return nvml.Meters(ordinal)

    def test_meters_are_read_as_the_work_goes_on(self):
        meters = self.meters(1)
        energy = nvml.Energy(meters)
        with nvml.Watch(meters, every=60) as watch:
            pass
        self.assertEqual(energy.spent(), 1.5)
        self.assertEqual(watch.facts(), dict(device_peak=4000, watts=None, slowed=["heat (driver)", "power limit"]))

    def test_devices_are_counted_as_cuda_counts_them(self):
        self.assertIsNone(self.meters(0, visible="1,0").why)
        self.assertEqual(self.meters(0).why, "nvmlDeviceGetHandleByIndex_v2 answers 2")
        # By its UUID, which this library has no call for.
        self.assertEqual(self.meters(0, visible="GPU-1234").why, "nvmlDeviceGetHandleByUUID answers -1")

    def test_without_a_library_nothing_is_known_and_that_is_said(self):
        def missing(name):
            raise OSError(name)

        with mock.patch.object(nvml.ctypes, "CDLL", missing):
            meters = nvml.Meters()
        self.assertEqual(meters.why, nvml.NOT_FOUND)
        with nvml.Watch(meters, every=60) as watch:
            pass
        self.assertEqual((watch.facts(), nvml.Energy(meters).spent()), (dict(device_peak=None, watts=None, slowed=[]), None))


class Tables(unittest.TestCase):
    def test_a_row_holds_what_was_measured(self):
        text = tables.row(record(setting=plan.ENGINES["hf"][3]), "cuda:0")
        self.assertEqual(text.count("|"), len(tables.HEAD) + 1)
        for part in ("PEFT", "checkpointing, fp32 adapter, cudnn", "16x2048", "10,000", "80.0", "90.0", "50.0", "10.3000", "38.7%", "29.3%", "57.2%"):
            self.assertIn(part, text)
        self.assertIn("4x2048 (best)", tables.row(record(phase="best", rows=4), "cuda:0"))
        self.assertNotIn("%", tables.row(record(length=0, rows=64), "cuda:0"))
        self.assertNotIn("%", tables.row(record(), "cpu"))
        text = tables.row(record(engine="ours", extra_compute=0.5, plan=dict(micro_batch_tokens=16384)), "cuda:0")
        for part in ("tunesmith", "planned", "16,384 tokens", "38.7%", "58.1%"):
            self.assertIn(part, text)
        for failed, words in ((dict(memory=True), "does not fit"), (dict(memory=False, why="it broke"), "failed: it broke")):
            text = tables.row(record(ok=False, **failed), "cuda:0")
            self.assertIn(words, text)
            self.assertEqual(text.count("|"), len(tables.HEAD) + 1)

    def test_the_last_word_counts_and_order_does_not(self):
        records = [record(rate=1.0), record(engine="ours", rate=3.0), record(phase="search", rate=9.0), record(rate=2.0), record(rows=8)]
        for mixed in itertools.permutations(records[1:]):
            last = tables.newest([records[0], *mixed])
            self.assertEqual([(r["engine"], r["rows"]) for r in last], [("ours", 16), ("hf", 16), ("hf", 8)])
            self.assertEqual(last[1]["rate"], 2.0)

    def test_ratios_are_against_the_best_of_each(self):
        records = [record(engine="ours", rate=18_000.0, peak=40e9), record(rate=9_000.0), record(rate=12_000.0, setting=plan.ENGINES["hf"][2]),
                   record(engine="unsloth", rate=15_000.0), record(engine="hf+liger", ok=False, memory=False, why="no")]
        lines = tables.ratios(records)
        self.assertEqual(len(lines), 2)
        self.assertIn("18,000 tokens/s (planned) = 1.50 x PEFT's best (12,000; no checkpointing, fp32 adapter, cudnn, micro-batch 4); peak memory 0.50", lines[0])
        self.assertIn("= 1.20 x Unsloth's best", lines[1])
        # Never across batches.
        self.assertEqual(tables.ratios([record(engine="ours"), record(rows=8)]), [])

    def test_engines_did_the_same_work(self):
        records = [record(losses=[5.0, 4.0, 3.0]), record(engine="ours", losses=[5.0, 4.5]), record(engine="unsloth", losses=[5.0, 4.1]),
                   record(rows=8, losses=[9.0]), record(engine="ours", phase="best", losses=[1.0, 1.0]), record(engine="hf+liger", ok=False, memory=True)]
        self.assertEqual(tables.agreement(records), ["mistral-7b, 16x2048: losses of the same step differ by at most 5.0e-01 over 2 steps, between "
                                                     "tunesmith (planned) and PEFT (no checkpointing, bf16 adapter, cudnn)"])
        self.assertIn("inf", tables.agreement([record(losses=[float("nan")]), record(engine="ours", losses=[1.0])])[0])

    def test_loading_and_absent(self):
        records = [record(load_seconds=10.0, model_bytes=14_500_000_000), record(load_seconds=8.0, model_bytes=14_500_000_000)]
        self.assertEqual(tables.loading(records), ["loading mistral-7b, 14.5 GB: PEFT 8.00 s (1.81 GB/s)"])
        gone = [record(engine="unsloth", phase="absent", why="no GPU")] * 2
        self.assertEqual(tables.absent(gone), ["Unsloth (no checkpointing): not here: no GPU"])

    def test_curves(self):
        self.assertEqual(tables.spread([1.0, 2.0], [1.0, 1.5]), dict(most=0.5, mean=0.25))
        self.assertEqual(tables.spread([float("nan")], [1.0])["most"], float("inf"))
        self.assertAlmostEqual(tables.relative_spread([1.01, 2.0], [1.0, 2.0]), 0.01)
        with self.assertRaises(SystemExit):
            tables.spread([1.0], [1.0, 2.0])

    def test_limits_of_the_curves(self):
        fine = dict(most=0.01, mean=0.004)
        self.assertEqual(loss.judge("bfloat16", fine, 0.005, 0.9999), [])
        self.assertEqual(len(loss.judge("float32", fine, 0.005, 0.9999)), 2)
        self.assertEqual(len(loss.judge("bfloat16", dict(most=float("nan"), mean=float("inf")), float("nan"), 0.5)), 4)


if __name__ == "__main__":
    unittest.main()
