"""Rows to packed tokens: tunesmith beside `datasets.map` + `tokenizers`, in one run on this machine.

    python -m pip install -r benches/peers/data-requirements.txt
    python benches/peers/data_prep.py TOKENIZER_FOLDER ROWS.jsonl [--peer-rows N]

ROWS has `prompt` and `response` (or `completion`). The peer does what TRL does for prompt and completion rows:
tokenise the prompt and the whole text with its EOS, make a completion mask, turn it into labels; batched, two
processes, without its cache. Both must count the same tokens. The peer may be given fewer rows (its rate does not
depend on their number); both orders are run and the better rate of each counts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # two processes, as asked; threads inside them are slower

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


def ours(folder, rows):
    command = ["cargo", "run", "--release", "--quiet", "--package", "tunesmith-data", "--example", "prepare_speed"]
    done = subprocess.run([*command, "--", folder, rows], cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def peer(folder, rows):
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("rows")
    parser.add_argument("--peer-rows", type=int, default=100_000)
    args = parser.parse_args()
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", delete=False) as short, open(args.rows) as rows:
        for _, line in zip(range(args.peer_rows), rows):
            short.write(line)
    try:
        # The first call builds.
        same = ours(args.folder, short.name)
        runs = {"ours": [], "peer": []}
        for name in ["ours", "peer", "peer", "ours"]:
            runs[name].append(ours(args.folder, args.rows) if name == "ours" else peer(args.folder, short.name))
    finally:
        os.unlink(short.name)
    if same["tokens"] != runs["peer"][0]["tokens"]:
        sys.exit(f"the token counts differ: {same['tokens']} and {runs['peer'][0]['tokens']}")
    best = {name: max(r["rows_per_second"] for r in list_) for name, list_ in runs.items()}
    print(json.dumps({"runs": runs, "ratio": best["ours"] / best["peer"]}, indent=1))


if __name__ == "__main__":
    main()
