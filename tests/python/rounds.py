"""A small lake that changes in rounds, and what is true of each of its versions.

One round changes a Delta table, a Lance dataset, a FAISS index with its metadata and a LoRA
adapter; together they walk through appends, deletions, compaction, vacuum, overwrites, checkpoints, indices, restored
versions, and a rewind of the whole lake to a copy made earlier.

Invariant: before anybody can see a version, the truth file (one JSON object a line, outside the lake) has a
line that says what a reader of it must find. A reader that finds anything else saw a torn version. One change may
make several versions of a table, and a replica publishes each of them, in order: those before the last are `passed`.
"""

import json
import os
import shutil
from datetime import timedelta
from pathlib import Path

import faiss
import lance
import numpy as np
import pyarrow as pa
from deltalake import DeltaTable, write_deltalake
from safetensors.numpy import save_file

EVENTS = "delta/events"
ITEMS = "vectors/items.lance"
INDEX = "faiss/items"
ADAPTER = "adapters/acme-lora"
ROUND = "metadata/round.json"
DIMENSIONS = 16
# The lake is copied in this round of each course, and put back in that one: the tables' versions go back too.
COURSE, KEPT_IN, REWOUND_IN = 25, 14, 19


def rows(number, count=40):
    first = number * 1000
    ids = list(range(first, first + count))
    return pa.table({"id": pa.array(ids, pa.int64()), "round": pa.array([number] * count, pa.int64())})


def items(number, count=60):
    flat = np.random.default_rng(number).standard_normal(count * DIMENSIONS, dtype=np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat), DIMENSIONS)
    return rows(number, count).append_column("vector", vectors)


def delta_append(path, number):
    write_deltalake(path, rows(number), mode="append")


def delta_delete(path, number):
    DeltaTable(path).delete(f"id % 7 = {number % 7}")
    delta_append(path, number)


def delta_overwrite(path, number):
    write_deltalake(path, rows(number, 90), mode="overwrite")


def delta_compact(path, number):
    DeltaTable(path).optimize.compact()


def delta_checkpoint(path, number):
    delta_append(path, number)
    DeltaTable(path).create_checkpoint()


def delta_restore(path, number):
    table = DeltaTable(path)
    table.restore(table.version() - 1)


def delta_vacuum(path, number):
    DeltaTable(path).vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False, full=True)
    delta_append(path, number)


def lance_append(path, number):
    lance.write_dataset(items(number), path, mode="append")


def lance_delete(path, number):
    lance.dataset(path).delete(f"id % 7 = {number % 7}")


def lance_compact(path, number):
    lance_append(path, number)
    lance.dataset(path).optimize.compact_files()


def lance_index(path, number):
    lance.dataset(path).create_scalar_index("id", "BTREE", replace=True)


def lance_overwrite(path, number):
    lance.write_dataset(items(number, 120), path, mode="overwrite")


def lance_restore(path, number):
    newest = lance.dataset(path).version
    lance.dataset(path, version=newest - 1).restore()


def lance_cleanup(path, number):
    lance.dataset(path).cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
    lance_append(path, number)


DELTA = [
    delta_append, delta_delete, delta_compact, delta_append, delta_checkpoint, delta_restore, delta_vacuum,
    delta_append, delta_overwrite, delta_append, delta_vacuum,
]
LANCE = [
    lance_append, lance_index, lance_delete, lance_compact, lance_append, lance_restore, lance_cleanup,
    lance_overwrite, lance_append, lance_cleanup,
]


def write_faiss(root, number):
    """An index and the metadata that only fits it: written aside, then both renamed."""
    folder = root / INDEX
    folder.mkdir(parents=True, exist_ok=True)
    count = 50 + number % 13
    index = faiss.IndexFlatL2(DIMENSIONS)
    index.add(np.full((count, DIMENSIONS), number, dtype=np.float32))
    faiss.write_index(index, str(root / ".index.new"))
    (root / ".meta.new").write_text(json.dumps({"round": number, "ntotal": count}))
    os.rename(root / ".index.new", folder / "index.faiss")
    os.rename(root / ".meta.new", folder / "meta.json")


def write_adapter(root, number):
    folder = root / ADAPTER
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"layer.{n}.lora_A.weight": np.full((8, 64), number, dtype=np.float32) for n in range(4)}
    save_file(tensors, root / ".adapter.new", metadata={"format": "pt"})
    (root / ".config.new").write_text(json.dumps({"peft_type": "LORA", "r": 8, "round": number}))
    os.rename(root / ".adapter.new", folder / "adapter_model.safetensors")
    os.rename(root / ".config.new", folder / "adapter_config.json")


def look_delta(path, version=None):
    table = DeltaTable(path, version=version)
    found = table.to_pyarrow_table(columns=["id", "round"])
    return [table.version(), found.num_rows, sum(found["id"].to_pylist())]


def look_lance(path, version=None):
    dataset = lance.dataset(str(path), version=version)
    found = dataset.to_table(columns=["id", "vector"])
    return [dataset.version, found.num_rows, sum(found["id"].to_pylist())]


def tell(truth, root, number):
    tables = {"delta": (look_delta, root / EVENTS), "lance": (look_lance, root / ITEMS)}
    line = {"round": number, **{kind: look(path) for kind, (look, path) in tables.items()}}
    told = json.loads(truth.read_text().splitlines()[-1]) if truth.exists() else line
    line["passed"] = {
        kind: [look(path, version) for version in range(told[kind][0] + 1, line[kind][0])]
        for kind, (look, path) in tables.items()
    }
    with open(truth, "a") as out:
        out.write(json.dumps(line) + "\n")


def begin(root: Path, truth: Path):
    """Round 0: a new lake."""
    (root / EVENTS).mkdir(parents=True)
    (root / ITEMS).parent.mkdir(parents=True)
    (root / ROUND).parent.mkdir(parents=True)
    write_deltalake(root / EVENTS, rows(0))
    lance.write_dataset(items(0), root / ITEMS)
    return finish(root, truth, 0)


def finish(root, truth, number):
    write_faiss(root, number)
    write_adapter(root, number)
    (root / ROUND).write_text(json.dumps({"round": number}))
    tell(truth, root, number)
    return {"round": number}


def change(root: Path, truth: Path, number):
    """One round: four sections change, or all of them go back."""
    kept = root.parent / f"{root.name}.kept"
    if number % COURSE == REWOUND_IN and kept.exists():
        rewind(root, kept)
    else:
        DELTA[number % len(DELTA)](root / EVENTS, number)
        LANCE[number % len(LANCE)](root / ITEMS, number)
    if number % COURSE == KEPT_IN:
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(root, kept, ignore=shutil.ignore_patterns(".sluice"), symlinks=True)
    return finish(root, truth, number)


def rewind(root, kept):
    """Everything but Sluice's own folder becomes what it was when the copy was made."""
    for name in os.listdir(root):
        if name != ".sluice":
            shutil.rmtree(root / name)
    shutil.copytree(kept, root, dirs_exist_ok=True, symlinks=True)
