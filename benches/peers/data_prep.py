"""Rows to packed tokens: tunesmith beside `datasets.map` + `tokenizers`, in one run on this machine.

    python -m pip install -r benches/peers/data-requirements.txt
    python benches/peers/data_prep.py ROWS.jsonl --tokenizer FOLDER [--tokenizer FOLDER ...] [--peer-rows N]
    python benches/peers/data_prep.py ROWS.jsonl --tokenizers FOLDER_OF_FOLDERS

ROWS has `prompt` and `response` (or `completion`). The peer does what TRL does for prompt and completion rows:
tokenise the prompt and the whole text with its EOS, make a completion mask, turn it into labels; batched, two
processes, without its cache. Both must count the same tokens. The peer may be given fewer rows (its rate does not
depend on their number); both orders are run and the better rate of each counts.

Each run is a program of its own. The memory of the peer is the most that all of its processes held at one time, as
Linux counts it (RSS), looked at every 20 ms: memory that they share counts in each of them. Ours is one process, and
the system itself tells its peak.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # two processes, as asked; threads inside them are slower

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


def ours(folder, rows):
    command = ["cargo", "run", "--release", "--quiet", "--package", "tunesmith-data", "--example", "prepare_speed"]
    done = subprocess.run([*command, "--", folder, rows], cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def processes(root):
    """A process and everything that descends from it."""
    children = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    # The name of the program, in brackets, may have anything in it.
                    parent = int(file.read().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue  # gone already
            children.setdefault(parent, []).append(int(name))
    found, open_ = [], [root]
    while open_:
        found.append(open_.pop())
        open_.extend(children.get(found[-1], []))
    return found


def resident_kb(pid):
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    except (OSError, IndexError):
        return 0


def peer(folder, rows):
    """Runs the peer in processes of its own, and looks at their memory meanwhile."""
    child = subprocess.Popen([sys.executable, os.path.abspath(__file__), rows, "--as-peer", folder],
                             stdout=subprocess.PIPE, text=True)
    peak, most, done = 0, 0, threading.Event()

    def watch():
        nonlocal peak, most
        while not done.wait(0.02):
            pids = processes(child.pid)
            peak, most = max(peak, sum(map(resident_kb, pids))), max(most, len(pids))

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, _ = child.communicate()
    done.set()
    watcher.join()
    if child.returncode != 0:
        sys.exit(f"the peer ended with {child.returncode}")
    return {**json.loads(out), "peak_kb": peak, "processes": most}


def as_peer(folder, rows):
    import datasets
    from tokenizers import Tokenizer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    with open(os.path.join(folder, "tokenizer_config.json")) as file:
        eos = json.load(file)["eos_token"]
    eos_id = tokenizer.token_to_id(eos["content"] if isinstance(eos, dict) else eos)

    def labelled(batch):
        prompts = batch["prompt"]
        answers = batch["response"] if "response" in batch else batch["completion"]
        heads = tokenizer.encode_batch(prompts)
        wholes = tokenizer.encode_batch([p + a for p, a in zip(prompts, answers)])
        ids = [w.ids + [eos_id] for w in wholes]
        labels = [[-100] * len(h.ids) + i[len(h.ids):] for h, i in zip(heads, ids)]
        return {"input_ids": ids, "labels": labels}

    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as cache:
        data = datasets.load_dataset("json", data_files=rows, split="train", cache_dir=cache)
        read = time.perf_counter() - begun
        data = data.map(labelled, batched=True, num_proc=2, remove_columns=data.column_names)
        seconds = time.perf_counter() - begun
        tokens = sum(len(ids) for batch in data.iter(10_000) for ids in batch["input_ids"])
        return {"rows": len(data), "tokens": tokens, "seconds": seconds, "read_seconds": read,
                "rows_per_second": len(data) / seconds}


def compare(folder, rows, short):
    """Both sides with one tokenizer."""
    # The first call builds.
    same = ours(folder, short)
    runs = {"ours": [], "peer": []}
    for name in ["ours", "peer", "peer", "ours"]:
        runs[name].append(ours(folder, rows) if name == "ours" else peer(folder, short))
    if same["tokens"] != runs["peer"][0]["tokens"]:
        sys.exit(f"{folder}: the token counts differ: {same['tokens']} and {runs['peer'][0]['tokens']}")
    best = {name: max(r["rows_per_second"] for r in list_) for name, list_ in runs.items()}
    peak = {name: max(r["peak_kb"] for r in list_) for name, list_ in runs.items()}
    return {"runs": runs, "ratio": best["ours"] / best["peer"], "peak_kb": peak}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows")
    parser.add_argument("--tokenizer", action="append", default=[], metavar="FOLDER",
                        help="folder of tokenizer.json and tokenizer_config.json; may be repeated")
    parser.add_argument("--tokenizers", metavar="FOLDER", help="folder of such folders: all of them")
    parser.add_argument("--peer-rows", type=int, default=100_000)
    parser.add_argument("--as-peer", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.as_peer:
        print(json.dumps(as_peer(args.as_peer, args.rows)))
        return
    folders = list(args.tokenizer)
    if args.tokenizers:
        inside = sorted(os.scandir(args.tokenizers), key=lambda entry: entry.name)
        folders += [e.path for e in inside if os.path.isfile(os.path.join(e.path, "tokenizer.json"))]
    if not folders:
        parser.error("give a --tokenizer or --tokenizers")
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", delete=False) as short, open(args.rows) as rows:
        for _, line in zip(range(args.peer_rows), rows):
            short.write(line)
    try:
        found = {os.path.basename(os.path.normpath(f)): compare(f, args.rows, short.name) for f in folders}
    finally:
        os.unlink(short.name)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
