"""Our side: crates/testbins' `replay`, one process for each measurement. Setting: `recompute`."""
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

import common
import nvml

# Of crates/testbins.
OUT_OF_MEMORY = 3


def replay(program: Path, arguments: dict, threads: int, limit: float) -> dict:
    """Runs `replay` and returns its result; a lack of memory is a MemoryError."""
    command = [str(program)]
    for name, value in arguments.items():
        command += [f"--{name}", str(value)]
    env = dict(os.environ, RAYON_NUM_THREADS=str(threads))
    done = subprocess.run(command, env=env, stderr=subprocess.PIPE, text=True, timeout=max(1.0, limit))
    if done.returncode == OUT_OF_MEMORY:
        raise MemoryError(f"out of memory: {done.stderr.strip()}")
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-400:] or f"replay ended with {done.returncode}")
    return json.loads(Path(arguments["out"]).read_text())


def work(session: common.Session):
    def run_one(rows, length, micro, steps):
        folder = common.run_folder(session.work, session.model, rows, length, session.warm_up + session.timed)
        with tempfile.TemporaryDirectory() as out:
            arguments = dict(model=session.model_dir, run=folder, out=f"{out}/result.json", device=session.device, threads=session.threads,
                             recompute=session.setting["recompute"])
            arguments |= {"micro-batch": micro, "warm-up": steps["warm_up"], "steps": steps["warm_up"] + steps["timed"],
                          "seconds": session.seconds}
            if session.setting["recompute"] == "auto":
                # The engine cuts its steps itself.
                del arguments["micro-batch"]
            watch = nvml.Watch(session.meters) if session.meters else None
            if watch:
                with watch:
                    result = replay(session.program, arguments, session.threads, session.left + session.seconds)
            else:
                result = replay(session.program, arguments, session.threads, session.left + session.seconds)
        return facts(session, result, steps["warm_up"], watch)

    common.measure_all(session, run_one)


def facts(session: common.Session, result: dict, warm_up: int, watch) -> dict:
    session.once = dict(load_seconds=result["load_seconds"], model_bytes=result["model_bytes"])
    timed, memory = result["timed"], result["memory"]
    out = dict(seconds=timed["seconds"], tokens=timed["tokens"], steps=timed["steps"], joules=timed["joules"],
               median=statistics.median(step["seconds"] for step in result["steps"][warm_up:]),
               losses=[step["loss"] for step in result["steps"]], norms=[step["grad_norm"] for step in result["steps"]],
               device=result["device"], plan=result["plan"], extra_compute=result["plan"]["extra_compute"])
    if memory:
        # What torch calls allocated and reserved.
        out |= dict(peak=memory["peak"], reserved=memory["held"])
    else:
        out["peak"] = result["peak_rss_mib"] * 2**20
    return out | (watch.facts() if watch else {})


if __name__ == "__main__":
    common.main(work)
