"""Deletes rows of a Delta table by a deletion vector, which deltalake reads but does not write.

Follows the Delta protocol ("Deletion Vector Format"): a file that starts with a version byte
and holds size, roaring bitmap and CRC-32; the log names it by a z85-encoded UUID.
Invariant: data files are never touched, only one `.bin` and one commit are added.
"""

import json
import struct
import time
import uuid
import zlib

from deltalake import DeltaTable

MAGIC = 1681511377
Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"


def z85(data):
    text = ""
    for start in range(0, len(data), 4):
        number = int.from_bytes(data[start : start + 4], "big")
        text += "".join(Z85[number // 85**power % 85] for power in (4, 3, 2, 1, 0))
    return text


def bitmap(rows):
    """The 64-bit portable roaring form of row numbers below 65536: one array container."""
    rows = sorted(rows)
    assert rows and rows[-1] < 65536 and len(rows) <= 4096, "one array container"
    container = struct.pack(f"<{len(rows)}H", *rows)
    roaring = struct.pack("<II", 12346, 1) + struct.pack("<HHI", 0, len(rows) - 1, 16) + container
    return struct.pack("<iQI", MAGIC, 1, 0) + roaring


def actions_since_start(log):
    """Every action of the JSON commits, oldest first."""
    for commit in sorted(log.glob("*.json")):
        for line in commit.read_text().splitlines():
            yield json.loads(line)


def largest_live_file(log):
    """The `add` action of the live file with the most rows that has no deletion vector yet."""
    live = {}
    for action in actions_since_start(log):
        if "add" in action:
            live[action["add"]["path"]] = action["add"]
        elif "remove" in action:
            live.pop(action["remove"]["path"], None)
    candidates = [add for add in live.values() if not add.get("deletionVector")]
    return max(candidates, key=lambda add: json.loads(add["stats"])["numRecords"])


def delete_rows(table, rows):
    """Marks `rows` (positions in the largest live file) as deleted, in one new version."""
    log = table / "_delta_log"
    version = DeltaTable(table).version() + 1
    add = largest_live_file(log)
    data, name = bitmap(rows), uuid.uuid4()
    framed = b"\x01" + struct.pack(">i", len(data)) + data + struct.pack(">I", zlib.crc32(data))
    (table / f"deletion_vector_{name}.bin").write_bytes(framed)

    now = int(time.time() * 1000)
    remove = {
        "path": add["path"],
        "deletionTimestamp": now,
        "dataChange": True,
        "extendedFileMetadata": True,
        "partitionValues": add["partitionValues"],
        "size": add["size"],
    }
    vector = {
        "storageType": "u",
        "pathOrInlineDv": z85(name.bytes),
        "offset": 1,
        "sizeInBytes": len(data),
        "cardinality": len(rows),
    }
    info = {"timestamp": now, "operation": "DELETE", "operationParameters": {}}
    actions = [{"commitInfo": info}, {"remove": remove}, {"add": {**add, "dataChange": True, "deletionVector": vector}}]
    with (log / f"{version:020}.json").open("x") as commit:
        commit.write("\n".join(json.dumps(action) for action in actions) + "\n")
