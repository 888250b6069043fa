"""What a site holds in memory and how many files it keeps open: a million files, and as many chunks as fit on a disk.

Ten million chunks are 640 GB of data. What a chunk costs is the difference between two lakes of large files, and the
ten million are that difference, carried on; it is said where it stands.
"""

import lakes
from lakes import MIB, gone
from measuring import say
from processes import cpu_of

CHUNK_BYTES = 64 << 10
CHUNKS_ASKED = 10_000_000


def million(bench):
    """Takes some 20 GB of disk; `--million-files` and `--chunk-mib` make it smaller."""
    files = steps(bench, bench.lake("tiny", lakes.tiny, bench.a.million_files))
    runs = []
    for mib in (bench.a.chunk_mib // 4, bench.a.chunk_mib):
        runs.append({"mib": mib, "chunks": mib * MIB // CHUNK_BYTES, "steps": steps(bench, bench.lake("large", lakes.large, mib))})
    return {"files": bench.a.million_files, "steps": files, "chunk_runs": runs, "chunks_asked": CHUNKS_ASKED}


def steps(bench, lake):
    """A first snapshot, a first copy, a snapshot of a change, its sync, and a sync of nothing; each in a fresh process, so
    that what one step left does not count for the next."""
    target = bench.work / "copy-sluice"
    gone(target)
    owner, replica = bench.site("giver"), bench.site("taker")
    found = []

    def step(name, of, *words):
        before = [cpu_of(site.running.pid) for site in (owner, replica)]
        cost, _ = of.measured(*words, also=(replica if of is owner else owner,))
        ends = {}
        for end, site, was in zip(("owner", "replica"), (owner, replica), before):
            ends[end] = {"peak_mib": site.peak_mib, "files": site.files, "cpu": cpu_of(site.running.pid) - was}
        found.append({"step": name, "wall": cost.wall, **ends})
        say(f"{name}: {cost.wall:.1f} s; {ends}")
        for site in (owner, replica):
            site.kill()
            site.start()

    step("first snapshot", owner, "space", "add", "acme", lake)
    step("first copy", replica, "join", owner.invite(), "--into", target)
    change(lake)
    step("snapshot of a change", owner, "snapshot", "acme")
    step("sync of it", replica, "sync", "acme")
    step("sync of nothing", replica, "sync", "acme")
    owner.kill()
    replica.kill()
    bench.same(lake, target)
    return found


def change(lake):
    """Every thousandth file, or each of a few large ones, in its middle."""
    paths = sorted(lakes.files_of(lake))
    for path in paths[:: max(1, min(1000, len(paths) // 10))]:
        with path.open("r+b") as out:
            out.seek(path.stat().st_size // 2)
            out.write(b"changed")
