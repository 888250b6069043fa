"""Says everything that a reader can see in a lake, so that two lakes can be compared.

Tables are opened with their own libraries, version by version. Bytes of table files are not
compared: what counts is that the same versions open and hold the same rows at the same times.
Everything outside tables is compared byte by byte. Invariant: nothing below the lake is written.
"""

import hashlib
import os
import re
import stat
from datetime import datetime, timezone
from pathlib import Path

import lance
import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder
from safetensors import safe_open

STATE = ".sluice"
COMMIT = re.compile(r"^(\d{20})\.json$")


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def rows_hash(table: pa.Table):
    """One hash for a set of rows, whatever their order."""
    names = sorted(table.column_names)
    columns = [table[name].to_pylist() for name in names]
    rows = sorted(map(repr, zip(*columns)))
    return sha256("\n".join([*names, *rows]).encode())


def content(table: pa.Table):
    fields = [f"{field.name}: {field.type}" for field in table.schema]
    return {"rows": table.num_rows, "hash": rows_hash(table), "schema": sorted(fields)}


# Delta


def delta_rows(table):
    # The row count in the log's statistics forgets deletion vectors: always scan.
    return pa.table(QueryBuilder().register("t", table).execute("select * from t").read_all())


def delta_version(path, version, commit_file):
    """One version, or None when its files are gone."""
    try:
        table = DeltaTable(path, version=version)
        found = content(delta_rows(table))
    except Exception:
        return None
    when_ms = commit_file.stat().st_mtime_ns // 1_000_000
    found["time_ms"] = when_ms
    travelled = DeltaTable(path)
    travelled.load_as_version(datetime.fromtimestamp(when_ms / 1000 + 0.001, timezone.utc))
    found["version_at_that_time"] = travelled.version()
    return found


def delta(path):
    log = path / "_delta_log"
    commits = {int(m[1]): log / m[0] for m in map(COMMIT.match, sorted(os.listdir(log))) if m}
    versions = {n: delta_version(path, n, commit) for n, commit in commits.items()}
    latest = DeltaTable(path)
    return {
        "latest": latest.version(),
        "versions": {str(n): found for n, found in versions.items() if found},
        "partitions": latest.metadata().partition_columns,
        "operations": [entry["operation"] for entry in latest.history()],
    }


# Lance


def lance_version(path, version):
    """One version, or None when its files are gone."""
    try:
        dataset = lance.dataset(path, version=version["version"])
        found = content(dataset.to_table())
    except Exception:
        return None
    found["time"] = version["timestamp"].isoformat()
    return found


def lance_indices(dataset):
    found = []
    for index in dataset.list_indices():
        found.append({key: str(index[key]) for key in ("name", "type", "uuid", "fields", "version")})
    return sorted(found, key=lambda index: index["uuid"])


def lance_answers(dataset):
    """What the index itself answers to fixed questions: ids in their order, distances as text."""
    answers = []
    width = dataset.schema.field("vector").type.list_size
    for turn in range(3):
        query = [((i * 37 + turn * 11) % 64) / 32 - 1 for i in range(width)]
        nearest = {"column": "vector", "q": query, "k": 10, "nprobes": 2, "refine_factor": 2}
        table = dataset.to_table(columns=["id", "_distance"], nearest=nearest)
        answers.append([table["id"].to_pylist(), [f"{d:.5f}" for d in table["_distance"].to_pylist()]])
    return answers


def lance_dataset(path):
    latest = lance.dataset(path)
    versions = {str(v["version"]): lance_version(path, v) for v in latest.versions()}
    return {
        "latest": latest.version,
        "versions": {number: found for number, found in versions.items() if found},
        "tags": {name: entry["version"] for name, entry in latest.tags.list().items()},
        "indices": lance_indices(latest),
        "answers": lance_answers(latest),
    }


# Everything else


def plain_file(path):
    about = path.stat()
    mode = stat.S_IMODE(about.st_mode)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "sha256": digest,
        "size": about.st_size,
        "mode": f"{mode:04o}",
        "executable": bool(mode & 0o100),
        "mtime_ns": about.st_mtime_ns,
    }


def tensors(path):
    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}
        metadata = file.metadata()
    listed = {
        name: {"dtype": str(a.dtype), "shape": list(a.shape), "sha256": sha256(a.tobytes())}
        for name, a in arrays.items()
    }
    return {"metadata": metadata, "tensors": listed}


def room(path):
    """The part of a replica's own state that `path` lies in: ("generations", "4"), or () in the open."""
    names = Path(os.path.normpath(path)).parts
    if STATE not in names:
        return ()
    inside = names.index(STATE) + 1
    return names[inside : inside + 2]


def is_structural(link):
    """Whether a link is the replica's own, leading from the open into its state or from one room of it to another."""
    parent = Path(os.path.realpath(link.parent))
    return room(parent) != room(parent / os.readlink(link))


def walk(root, directory, found):
    entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    entries = [entry for entry in entries if not (directory == root and entry.name == STATE)]
    name = directory.relative_to(root).as_posix()
    names = {entry.name for entry in entries}
    if "_delta_log" in names:
        found["delta"][name] = delta(directory)
        return
    if "_versions" in names:
        found["lance"][name] = lance_dataset(directory)
        return
    if not entries and directory != root:
        found["empty_dirs"].append(name)
    for entry in entries:
        path = directory / entry.name
        key = path.relative_to(root).as_posix()
        if entry.is_symlink() and not is_structural(path):
            found["links"][key] = os.readlink(path)
        elif entry.is_dir():
            walk(root, path, found)
        else:
            found["files"][key] = plain_file(path)
            if path.suffix == ".safetensors":
                found["safetensors"][key] = tensors(path)


def inspect(root: Path):
    """The whole lake as plain data; keys are paths below `root`."""
    root = Path(os.path.realpath(root))
    found = {"delta": {}, "lance": {}, "safetensors": {}, "files": {}, "links": {}, "empty_dirs": []}
    walk(root, root, found)
    return found
