"""What happens to a lake in its life, one small step after another.

Each step works on the lake that the steps before it left. Invariant: a step either changes
something that `inspect` shows, or it is `vacuum`-like and removes what no version needs.
"""

from datetime import timedelta

import lance
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Field, write_deltalake
from deltalake.schema import PrimitiveType

import deletion_vectors
import making


def append(root):
    """New rows in every table."""
    write_deltalake(root / making.EVENTS, making.events(10_000, 300), mode="append")
    write_deltalake(root / making.READINGS, making.readings(10_000, 300), mode="append")
    lance.write_dataset(making.documents(10_000, 200, 1), root / making.VECTORS, mode="append")


def update(root):
    """Scattered rows of two partitions get other values: Delta rewrites files, Lance moves rows."""
    DeltaTable(root / making.EVENTS).update(
        {"value": "value + 1000"}, predicate="place in ('50%', 'zürich') and id % 5 = 3"
    )
    DeltaTable(root / making.READINGS).update({"level": "-1"}, predicate="id = 17")
    lance.dataset(root / making.VECTORS).update({"title": "'withdrawn'"}, where="id % 100 = 5")


def delete(root):
    """Rows go: a Delta partition gone whole, some by rewriting, Lance by a deletion file."""
    DeltaTable(root / making.EVENTS).delete("place = 'x=y' or (place = '10:30' and id % 4 = 3)")
    lance.dataset(root / making.VECTORS).delete("id % 60 = 11")


def delete_vectors(root):
    """Rows go from a Delta table by a deletion vector."""
    deletion_vectors.delete_rows(root / making.READINGS, list(range(5, 1000, 13)))


def tag(root):
    """The Lance version of this moment gets a name."""
    dataset = lance.dataset(root / making.VECTORS)
    dataset.tags.create("reviewed", dataset.version)


def compact(root):
    """Small files become large ones; rows stay."""
    DeltaTable(root / making.EVENTS).optimize.compact()
    DeltaTable(root / making.READINGS).optimize.compact()
    lance.dataset(root / making.VECTORS).optimize.compact_files()


def schema(root):
    """A column more in every table, and rows that use it."""
    for path, rows in ((making.EVENTS, making.events), (making.READINGS, making.readings)):
        table = DeltaTable(root / path)
        table.alter.add_columns([Field("note", PrimitiveType("string"), nullable=True)])
        more = rows(20_000, 50)
        more = more.append_column("note", pa.array([f"seen {i}" for i in range(50)]))
        write_deltalake(root / path, more, mode="append")
    lance.dataset(root / making.VECTORS).add_columns({"score": "cast(id as double) / 3.0"})


def reindex(root):
    """The vector index takes in the rows that came after it."""
    lance.dataset(root / making.VECTORS).optimize.optimize_indices()


def checkpoint(root):
    """Delta checkpoints, `_last_checkpoint`, and a commit after them."""
    for path in (making.EVENTS, making.READINGS):
        table = DeltaTable(root / path)
        table.create_checkpoint()
        table.delete("id = 42", commit_properties=CommitProperties(custom_metadata={"reason": "recall"}))


def vacuum(root):
    """Files that only old versions need go; the tagged Lance version stays."""
    for path in (making.EVENTS, making.READINGS):
        DeltaTable(root / path).vacuum(
            retention_hours=0, dry_run=False, enforce_retention_duration=False, full=True
        )
    lance.dataset(root / making.VECTORS).cleanup_old_versions(
        older_than=timedelta(0), delete_unverified=True, error_if_tagged_old_versions=False
    )


def rename(root):
    """Raw files and a whole directory move; their bytes stay."""
    raw = root / "raw"
    (raw / "scan 01.bin").rename(raw / "scan 01 (final).bin")
    (raw / "batch 7").rename(raw / "batch seven")


def csv_edit(root):
    """One line in the middle of a large CSV becomes three: everything after it shifts."""
    path = root / making.CSV
    data = path.read_bytes()
    start = data.index(b"\n", len(data) // 2) + 1
    end = data.index(b"\n", start) + 1
    path.write_bytes(data[:start] + b"corrected,0,s-00,0.0\n" * 3 + data[end:])


def overwrite_lora(root):
    """The adapter is trained again: both of its files change together."""
    making.write_adapter(root / making.ADAPTER, seed=8)


def restore(root):
    """A wrong load is taken back: an older content becomes the newest version."""
    table = DeltaTable(root / making.EVENTS)
    good = table.version()
    write_deltalake(root / making.EVENTS, making.events(90_000, 40), mode="append", schema_mode="merge")
    table.update_incremental()
    table.restore(good)
    dataset = lance.dataset(root / making.VECTORS)
    dataset.checkout_version("reviewed").restore()


STEPS = {
    step.__name__: step
    for step in (
        append,
        update,
        delete,
        delete_vectors,
        tag,
        compact,
        schema,
        reindex,
        checkpoint,
        vacuum,
        rename,
        csv_edit,
        overwrite_lora,
        restore,
    )
}
