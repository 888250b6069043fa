"""First copies over loopback, beside everything that copies: large, small, and copy, which is the mixture of both."""

import lakes
from lakes import MIB, fresh, gone
from measuring import say
from processes import settle
from rivals import FsStore, Sshd


def copy(bench):
    """A mixed lake for 2 GiB."""
    return first_copies(bench, "mixed", lakes.mixed, bench.a.mib)


def large(bench):
    """Large files for 4 GiB."""
    return first_copies(bench, "large", lakes.large, bench.a.large_mib)


def small(bench):
    """Files of 1 to 64 KiB for 100,000."""
    return first_copies(bench, "small", lakes.small, bench.a.files)


def first_copies(bench, name, make, size):
    lake = bench.lake(name, make, size)
    found = {"files": len(lakes.files_of(lake)), "bytes": lakes.size_of(lake), "scans": [], "imports": []}

    def ssh():
        target, server = fresh(bench.work / "copy-ssh"), Sshd(bench.work)
        cost = server.copy(lake, target)
        cost = cost.beside(server.end())
        bench.same(lake, target)
        return cost

    def fsstore():
        give, take, target = (bench.work / f"fs-{name}" for name in ("give", "take", "files"))
        store = FsStore(bench.a.fsstore, fresh(give), lake)
        found["imports"].append(store.import_s)
        settle()
        cost = store.take(fresh(take))
        store.unpack(take, fresh(target))
        bench.same(lake, target)
        gone(give)
        gone(take)
        return cost

    runners = {
        "sluice": lambda: sluice(bench, lake, found["scans"]),
        "rsync -aW": lambda: bench.rsync(lake, "-aW"),
        "rsync -aW --fsync": lambda: bench.rsync(lake, "-aW", "--fsync"),
        "rsync -aW over ssh": ssh,
        "iroh-blobs FsStore": fsstore,
    }
    if why := Sshd.forbidden():
        say(f"rsync over ssh is left out: {why}")
        del runners["rsync -aW over ssh"]
    found["costs"] = bench.pairs(f"first copy, {name}", runners)
    return found


def sluice(bench, lake, scans):
    """A first copy between new sites; what the scan before it cost goes to `scans`."""
    gone(lake / ".sluice")
    owner = bench.site("giver")
    try:
        scans.append(vars(owner.share(lake)))
        settle()
        return bench.join(lake, owner)[0]
    finally:
        owner.kill()
        gone(lake / ".sluice")
