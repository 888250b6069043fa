#!/usr/bin/env python3
"""A reader of a replica that opens one thing again and again, while versions come and go.

    readers.py KIND LAKE TRUTH [COMMAND...]

KIND is delta, lance, faiss, lora, or all: `all` runs COMMAND (`sluice path SPACE --json`) and reads every section below
the folder that it names, tables at the versions that it names. Reads until standard input ends, then prints one JSON object: how often it read, which rounds or
versions it met, and what went wrong. Invariant: it retries nothing; the first failed open or torn version is reported.
"""

import json
import os
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import faiss
import lance as lance_library
import numpy as np
from deltalake import DeltaTable
from safetensors.numpy import load_file

import rounds

FAILURES_MAX = 5
# Quick reads for so long, then one that lets so much time pass between opening and reading: most versions are met, and
# now and then the version that was opened is replaced meanwhile. Seconds.
QUICK_S, SLOW_S = 2.0, 1.5


class Truth:
    """What the writer says of its versions; read again when something unknown turns up."""

    def __init__(self, path):
        self.path = path
        self.lines = []

    def holds(self, test):
        if not any(map(test, self.lines)):
            self.lines = [json.loads(line) for line in open(self.path)]
        return any(map(test, self.lines))


def see_delta(root, pause=0.0, version=None):
    """Opens the table, lets time pass, and reads what it opened: version, rows, sum of ids."""
    table = DeltaTable(root / rounds.EVENTS, version=version)
    time.sleep(pause)
    found = table.to_pyarrow_table(columns=["id", "round"])
    return [table.version(), found.num_rows, sum(found["id"].to_pylist())]


def see_lance(root, pause=0.0, version=None):
    """The same of the dataset; the vectors are read too.

    delta-rs resolves links when it opens a table; pylance asks for each file by the path it was given, so it gets
    the real one: a vacuum or a rollback gives the dataset a new folder, and the old one stays for its readers.
    """
    dataset = lance_library.dataset(os.path.realpath(root / rounds.ITEMS), version=version)
    time.sleep(pause)
    found = dataset.to_table(columns=["id", "vector"])
    return [dataset.version, found.num_rows, sum(found["id"].to_pylist())]


def table_of(kind, see):
    def read(root, truth, pause=0.0):
        seen = see(root, pause)
        if not truth.holds(lambda line: seen == line[kind] or seen in line["passed"][kind]):
            raise AssertionError(f"torn: no version of the {kind} table is {seen}")
        return seen[0]

    return read


def faiss_pair(root, truth, pause=0.0):
    folder = Path(os.path.realpath(root / rounds.INDEX))
    index = faiss.read_index(str(folder / "index.faiss"))
    time.sleep(pause)
    meta = json.loads((folder / "meta.json").read_text())
    value = int(index.reconstruct(0)[0])
    if (index.ntotal, value) != (meta["ntotal"], meta["round"]):
        raise AssertionError(f"torn: index of round {value} with {index.ntotal} rows, metadata {meta}")
    return value


def lora(root, truth, pause=0.0):
    folder = Path(os.path.realpath(root / rounds.ADAPTER))
    config = json.loads((folder / "adapter_config.json").read_text())
    time.sleep(pause)
    values = {int(v) for tensor in load_file(folder / "adapter_model.safetensors").values() for v in np.unique(tensor)}
    if values != {config["round"]}:
        raise AssertionError(f"torn: adapter of rounds {values}, its config of {config['round']}")
    return config["round"]


def everything(command, truth):
    """All sections of one version, by the path that the site names."""
    asked = subprocess.run(command, capture_output=True, text=True)
    if asked.returncode != 0:
        raise AssertionError(f"{command}: {asked.stderr}")
    answer = json.loads(asked.stdout)
    root, tables = Path(answer["path"]), answer["tables"]
    number = json.loads((root / rounds.ROUND).read_text())["round"]
    met = {number, faiss_pair(root, truth), lora(root, truth)}
    if len(met) != 1:
        raise AssertionError(f"sections of rounds {met} in one version")
    tables = {
        "delta": see_delta(root, version=tables[rounds.EVENTS]),
        "lance": see_lance(root, version=tables[rounds.ITEMS]),
    }
    if not truth.holds(lambda line: {**line, "round": number, **tables} == line):
        raise AssertionError(f"round {number} has no tables like {tables}")
    return number


KINDS = {
    "delta": table_of("delta", see_delta),
    "lance": table_of("lance", see_lance),
    "faiss": faiss_pair,
    "lora": lora,
}


def main():
    kind, root, truth, command = sys.argv[1], Path(sys.argv[2]), Truth(sys.argv[3]), sys.argv[4:]
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    reads, met, failures = 0, set(), []
    quick_until = time.monotonic() + QUICK_S
    print("ready", flush=True)
    while not over.is_set() and len(failures) < FAILURES_MAX:
        try:
            pause = SLOW_S if time.monotonic() > quick_until else 0.0
            met.add(everything(command, truth) if kind == "all" else KINDS[kind](root, truth, pause))
        except Exception:
            failures.append(traceback.format_exc(limit=4))
        reads += 1
        if pause:
            quick_until = time.monotonic() + QUICK_S
    print(json.dumps({"reads": reads, "met": sorted(met), "failures": failures}), flush=True)
    # What it has to say is said. Leaving by the door runs the destructors of two libraries with threads of their own,
    # and now and then one of them ends the process with an abort.
    os._exit(0)


if __name__ == "__main__":
    main()
