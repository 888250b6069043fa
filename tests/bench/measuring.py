"""What all parts of the benchmark share: the work folder, alternating runs, comparing what was copied.

Invariant: rivals run in turns, in changing order, each after the disk has come to rest; and every copy is compared
with its lake, byte by byte, after it was measured.
"""

import sys

from lakes import fresh, gone
from networks import inside
from processes import run, settle
from rivals import Rsyncd
from sites import Site


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Bench:
    def __init__(self, arguments):
        self.a = arguments
        self.work = arguments.work
        self.present = None

    def lake(self, name, make, size):
        """The lake `name` of this size; it stays until another one is asked for."""
        at = self.work / name
        if self.present != (name, size):
            if self.present:
                gone(self.work / self.present[0])
            say(f"writing the lake `{name}`, size {size:,}")
            make(fresh(at), size)
            self.present = (name, size)
            settle()
        gone(at / ".sluice")
        return at

    def pairs(self, what, runners):
        """Runs each of `runners` in turn, `pairs` times, every other time in reverse; lists of costs by name."""
        found = {name: [] for name in runners}
        for turn in range(self.a.pairs):
            order = list(runners) if turn % 2 == 0 else list(reversed(runners))
            for name in order:
                settle()
                cost = runners[name]()
                say(f"{what}, {name}: {cost.wall:.2f} s, {cost.cpu:.2f} s of CPU, {cost.peak_mib:.0f} MiB, {cost.files} descriptors")
                found[name].append(vars(cost))
        return found

    def site(self, name, **more):
        """A new site of that name; what one of that name left is removed."""
        gone(self.work / name)
        return Site(self.a.sluice, self.work / name, **more)

    def same(self, lake, copy):
        """What was measured is a copy."""
        run(["diff", "-r", "--exclude=.sluice", lake, copy])
        gone(copy)

    # -- one copy each, which leaves nothing behind but its cost

    def rsync(self, lake, *words, space=None, to=None, address="127.0.0.1"):
        """One `rsync` from a daemon; `to` is the namespace of the client."""
        target = fresh(self.work / "copy-rsync")
        server = Rsyncd(lake, self.work, space, address)
        cost, _ = run(inside(to, ["rsync", *words, "--exclude=.sluice", server.url, f"{target}/"]))
        cost = cost.beside(server.end())
        self.same(lake, target)
        return cost

    def join(self, lake, owner, name="taker", **more):
        """One first copy to a new site."""
        target = self.work / "copy-sluice"
        gone(target)
        replica = self.site(name, **more)
        try:
            cost, told = replica.join(owner, target)
            bulk = replica.ask("peer", "show", owner.home.name).get("bulk", {})
        finally:
            replica.kill()
        self.same(lake, target)
        return cost, told | {"bulk": bulk}
