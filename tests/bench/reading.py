"""Parts that read and copy nothing: scan, rescan, nochange."""

import os
import shutil
import time

import lakes
from lakes import MIB, fresh, gone
from measuring import say
from processes import run
from rivals import Restic, Rsyncd


def scan(bench):
    """A first snapshot. Warm cache."""
    lake = bench.lake("mixed", lakes.mixed, bench.a.mib)
    names = bench.work / "files.list"
    names.write_bytes(b"\0".join(os.fsencode(path) for path in lakes.files_of(lake)))
    empty = fresh(bench.work / "empty")

    def sluice():
        gone(lake / ".sluice")
        owner = bench.site("scanner")
        try:
            return owner.share(lake)
        finally:
            owner.kill()

    def b3sum():
        return run(["xargs", "-0", "-a", names, "b3sum", "--no-names"])[0]

    runners = {
        "sluice": sluice,
        "b3sum": b3sum,
        "rsync -an": lambda: run(["rsync", "-an", "--exclude=.sluice", f"{lake}/", f"{empty}/"])[0],
    }
    if shutil.which("restic"):
        runners["restic backup"] = lambda: Restic(bench.work / "restic").backup(lake)
    else:
        say("restic is left out: it is not installed (tools/setup.sh bench)")
    b3sum()
    costs = bench.pairs("scan", runners)
    gone(bench.work / "restic")
    return {"bytes": bench.a.mib * MIB, "costs": costs}


def rescan(bench):
    """A snapshot of files that did not change, all of them older than a clock can be wrong."""
    counts = [bench.a.files] + [1_000_000] * bench.a.million
    return {"runs": [rescan_of(bench, files) for files in counts]}


def rescan_of(bench, files):
    lake, copy = bench.lake("tiny", lakes.tiny, files), bench.work / "tiny-copy"
    gone(copy)
    run(["cp", "-a", lake, copy])
    # A file that is younger than two seconds when it is read is read again by the next scan, on purpose.
    time.sleep(3)
    owner = bench.site("rescanner")
    first = owner.share(lake)
    runners = {
        "sluice": lambda: owner.measured("snapshot", "acme")[0],
        "rsync -an": lambda: run(["rsync", "-an", "--exclude=.sluice", f"{lake}/", f"{copy}/"])[0],
    }
    costs = bench.pairs(f"rescan of {files:,}", runners)
    owner.kill()
    gone(copy)
    return {"files": files, "first": vars(first), "costs": costs}


def nochange(bench):
    """A sync with nothing new to bring, both sites up."""
    lake = bench.lake("tiny", lakes.tiny, bench.a.files)
    target, rsynced = bench.work / "nochange-sluice", fresh(bench.work / "nochange-rsync")
    gone(target)
    time.sleep(3)
    owner, replica = bench.site("giver"), bench.site("taker")
    owner.share(lake)
    replica.join(owner, target)
    run(["cp", "-a", f"{lake}/.", rsynced])
    gone(rsynced / ".sluice")

    def sluice():
        cost, told = replica.measured("sync", "acme", also=(owner,))
        if told["spaces"][0]["changed"]:
            raise SystemExit("bench: something was new in a sync without news")
        return cost

    def whole():
        """What a person does to carry a change: the snapshot finds that there is none, the sync that it is here."""
        cost = owner.measured("snapshot", "acme", also=(replica,))[0]
        more = sluice()
        return type(cost)(cost.wall + more.wall, cost.cpu + more.cpu, max(cost.peak_mib, more.peak_mib), max(cost.files, more.files))

    def rsync():
        server = Rsyncd(lake, bench.work)
        cost, _ = run(["rsync", "-a", "--delete", "--exclude=.sluice", server.url, f"{rsynced}/"])
        return cost.beside(server.end())

    costs = bench.pairs("no change", {"sluice": sluice, "sluice snapshot, sync": whole, "rsync -a": rsync})
    owner.kill()
    replica.kill()
    bench.same(lake, target)
    bench.same(lake, rsynced)
    return {"files": bench.a.files, "costs": costs}
