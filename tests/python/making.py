"""Writes a new lake: two Delta tables, a Lance dataset, adapters, metadata, text, CSV and oddities.

Invariant: for one seed the rows, tensors and plain files are always the same; file names of
tables are the writers' own and random.
"""

import json
import os
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
from deltalake import write_deltalake
from safetensors.numpy import save_file

EVENTS = "delta/events"
READINGS = "delta/readings"
VECTORS = "vectors/documents.lance"
ADAPTER = "adapters/triage-lora"
CSV = "raw/measurements.csv"

DIMENSIONS = 32
# Values that end up in directory names of the partitioned table, escaped once by the
# writer and once more in the log: the place where copies of Delta tables usually break.
PLACES = ["hall a", "10:30", "zürich", "50%", "plain", "a/b", "x=y"]


def events(first, count):
    """Rows `first..first+count` of the partitioned table."""
    ids = list(range(first, first + count))
    return pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "place": [PLACES[i % len(PLACES)] for i in ids],
            "kind": [["open", "close", "alarm"][i % 3] for i in ids],
            "value": pa.array([i * 0.25 for i in ids], pa.float64()),
            "at": pa.array([1_700_000_000_000_000 + i * 1_000_000 for i in ids], pa.timestamp("us", tz="UTC")),
        }
    )


def readings(first, count):
    """Rows `first..first+count` of the table that carries deletion vectors."""
    ids = list(range(first, first + count))
    return pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "sensor": [f"s-{i % 40:02}" for i in ids],
            "level": pa.array([None if i % 97 == 0 else (i * 7919) % 1000 for i in ids], pa.int64()),
        }
    )


def documents(first, count, seed):
    """Rows `first..first+count` of the vector dataset; float32 vectors of length DIMENSIONS."""
    random = np.random.default_rng([seed, first])
    flat = random.standard_normal(count * DIMENSIONS, dtype=np.float32)
    ids = list(range(first, first + count))
    return pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "title": [f"report {i} of acme, straße {i % 9}" for i in ids],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(flat), DIMENSIONS),
        }
    )


def write_adapter(directory, seed):
    """One LoRA adapter in the layout that peft writes."""
    directory.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng([seed, 4])
    tensors = {}
    for layer in range(2):
        for name, shape in (("lora_A", (8, 256)), ("lora_B", (256, 8))):
            key = f"base_model.model.layers.{layer}.self_attn.q_proj.{name}.weight"
            tensors[key] = random.standard_normal(shape).astype(np.float16)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "seed": seed}
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def csv_line(number):
    return f"{number},{(number * 48271) % 2147483647},s-{number % 40:02},{number * 0.125:.3f}\n"


def write_csv(path, size):
    """About `size` bytes of lines that all differ."""
    with path.open("w") as out:
        out.write("line,noise,sensor,value\n")
        number = 0
        while out.tell() < size:
            out.write("".join(csv_line(n) for n in range(number, number + 1000)))
            number += 1000


def write_tables(root, seed):
    # Two appends each, so that there is a version to travel back to from the start.
    for path, rows, options in (
        (EVENTS, events, {"partition_by": ["place"]}),
        (READINGS, readings, {"configuration": {"delta.enableDeletionVectors": "true"}}),
    ):
        target = root / path
        target.mkdir(parents=True)
        write_deltalake(target, rows(0, 2000), name=target.name, **options)
        write_deltalake(target, rows(2000, 500), mode="append")
    (root / VECTORS).parent.mkdir(parents=True)
    dataset = lance.write_dataset(documents(0, 1500, seed), root / VECTORS, max_rows_per_file=1000)
    dataset.create_index(
        "vector", "IVF_PQ", name="vector_idx", num_partitions=4, num_sub_vectors=8, num_bits=8
    )


def write_plain(root, seed, csv_mib, binary_mib):
    raw = root / "raw"
    (raw / "batch 7" / "inner").mkdir(parents=True)
    (raw / "batch 7" / "inner" / "page.txt").write_text("one page\n" * 500)
    (raw / "batch 7" / "list.txt").write_text("inner/page.txt\n")
    (raw / "scan 01.bin").write_bytes(np.random.default_rng([seed, 1]).bytes(binary_mib << 20))
    write_csv(root / CSV, csv_mib << 20)
    (raw / "größe – 測定.txt").write_text("names are UTF-8\n")
    (raw / "50% off: #1 [draft] & 'more'.txt").write_text("names are not URLs\n")
    (raw / "empty.dat").write_bytes(b"")
    (raw / "inbox").mkdir()
    os.symlink("measurements.csv", raw / "current")
    # The same bytes twice, with other times and other modes: one blob, two files.
    (raw / "batch 7" / "inner" / "page copy.txt").write_text("one page\n" * 500)
    for name, mode in (("convert.sh", 0o755), ("convert.txt", 0o644)):
        (raw / name).write_text("#!/bin/sh\nexit 0\n")
        (raw / name).chmod(mode)

    (root / "metadata").mkdir()
    schema = {"tenant": "acme", "tables": ["events", "readings"], "unit": {"level": "mm"}}
    (root / "metadata" / "catalog.json").write_text(json.dumps(schema, indent=2) + "\n")
    (root / "notes.txt").write_text("A file at the top of the lake.\n")

    # Data is older than its copy, and times have odd fractions.
    for number, path in enumerate(sorted(p for p in raw.rglob("*") if p.is_file() and not p.is_symlink())):
        when = 1_600_000_000_123_456_789 + number * 86_400_000_000_000
        os.utime(path, ns=(when, when))


def make(root: Path, seed, csv_mib, binary_mib):
    root.mkdir(parents=True, exist_ok=True)
    if any(root.iterdir()):
        raise SystemExit(f"{root} is not empty: a lake is made in a new directory")
    write_tables(root, seed)
    write_adapter(root / ADAPTER, seed)
    write_plain(root, seed, csv_mib, binary_mib)
