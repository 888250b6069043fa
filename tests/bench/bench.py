#!/usr/bin/env python3
"""Measures Sluice beside its rivals, in one run on one machine, in alternating pairs.

    bench.py --sluice BIN --engine BIN --fsstore BIN --work DIR --out FILE [PART...]

PARTs: scan, rescan, copy, kill, changes; all of them when none is named. BIN of `--sluice` and `--fsstore` are release builds, that
of `--engine` knows tables (any profile: only bytes are counted with it). Writes one JSON file; report.py makes the table of it.
Invariant: a figure of Sluice stands beside the rival's of the same run; nothing is left out because it is bad.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

from processes import Cost, Rsyncd, Site, run, settle

PARTS = ["scan", "rescan", "copy", "kill", "changes"]
MIB = 1 << 20


def fresh(path):
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def write_random(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        for _ in range(size // MIB):
            out.write(os.urandom(MIB))
        out.write(os.urandom(size % MIB))


def mixed_lake(root, mib):
    """Half of it one file, a quarter files of 8 MiB, a quarter files of 64 KiB; random bytes."""
    write_random(root / "raw/large.bin", mib * MIB // 2)
    for n in range(mib // 4 // 8):
        write_random(root / f"raw/middle/{n:04}.bin", 8 * MIB)
    for n in range(mib // 4 * 16):
        write_random(root / f"raw/small/{n // 256:03}/{n:05}.bin", 64 << 10)
    return root


class Bench:
    def __init__(self, arguments):
        self.a = arguments
        self.work = arguments.work
        self.lake = None

    def source(self):
        if self.lake is None:
            print(f"bench: writing {self.a.mib} MiB of random bytes", file=sys.stderr)
            self.lake = mixed_lake(fresh(self.work / "lake"), self.a.mib)
            settle()
        return self.lake

    def pairs(self, what, runners):
        """Runs each of `runners` in turn, `pairs` times, every other time in reverse; lists of costs by name."""
        found = {name: [] for name in runners}
        for turn in range(self.a.pairs):
            order = list(runners) if turn % 2 == 0 else list(reversed(runners))
            for name in order:
                settle()
                cost = runners[name]()
                print(f"bench: {what}, {name}: {cost.wall:.2f} s, {cost.cpu:.2f} s of CPU, {cost.peak_mib:.0f} MiB", file=sys.stderr)
                found[name].append(vars(cost))
        return found

    def site(self, name):
        shutil.rmtree(self.work / name, ignore_errors=True)
        return Site(self.a.sluice, self.work / name)

    # -- reading

    def scan(self):
        lake = self.source()
        files = self.work / "files.list"
        files.write_bytes(b"\0".join(os.fsencode(p) for p in lake.rglob("*") if p.is_file() and ".sluice" not in p.parts))

        def sluice():
            shutil.rmtree(lake / ".sluice", ignore_errors=True)
            owner = self.site("scanner")
            try:
                return owner.measured("space", "add", "acme", lake)[0]
            finally:
                owner.kill()

        def b3sum():
            return run(["xargs", "-0", "-a", files, "b3sum", "--no-names"])[0]

        b3sum()
        size = self.a.mib * MIB
        return {"bytes": size, "costs": self.pairs("scan", {"sluice": sluice, "b3sum": b3sum})}

    def rescan(self):
        lake, copy = fresh(self.work / "many"), self.work / "many-copy"
        print(f"bench: writing {self.a.files} files", file=sys.stderr)
        for n in range(self.a.files):
            path = lake / f"raw/{n // 1000:03}/{n % 1000:03}.txt"
            if n % 1000 == 0:
                path.parent.mkdir(parents=True)
            path.write_bytes(b"%d\n" % n * 100)
        shutil.rmtree(copy, ignore_errors=True)
        run(["cp", "-a", lake, copy])
        owner = self.site("rescanner")
        first, _ = owner.measured("space", "add", "acme", lake)
        runners = {
            "sluice": lambda: owner.measured("snapshot", "acme")[0],
            "rsync -an": lambda: run(["rsync", "-an", "--exclude=.sluice", f"{lake}/", f"{copy}/"])[0],
        }
        costs = self.pairs("rescan", runners)
        owner.kill()
        return {"files": self.a.files, "first": vars(first), "costs": costs}

    # -- first copy

    def copy(self):
        lake = self.source()
        scans, imports = [], []

        def sluice():
            shutil.rmtree(lake / ".sluice", ignore_errors=True)
            target = self.work / "copy-sluice"
            shutil.rmtree(target, ignore_errors=True)
            owner, replica = self.site("giver"), self.site("taker")
            try:
                scans.append(vars(owner.measured("space", "add", "acme", lake)[0]))
                settle()
                ticket = owner.ask("invite", "acme", "--read")["ticket"]
                return replica.measured("join", ticket, "--into", target, also=(owner,))[0]
            finally:
                owner.kill()
                replica.kill()

        def rsync(*more):
            target = fresh(self.work / "copy-rsync")
            server = Rsyncd(lake, self.work)
            cost, _ = run(["rsync", "-aW", "--exclude=.sluice", *more, server.url, f"{target}/"])
            return cost.beside(server.end())

        def fsstore():
            shutil.rmtree(lake / ".sluice", ignore_errors=True)
            give, take = fresh(self.work / "fs-give"), fresh(self.work / "fs-take")
            giver = subprocess.Popen(
                [self.a.fsstore, "give", give, lake], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            door = json.loads(giver.stdout.readline())
            imports.append(door["seconds"])
            settle()
            fields = lambda: Path(f"/proc/{giver.pid}/stat").read_text().rpartition(")")[2].split()
            ticks = lambda: (int(fields()[11]) + int(fields()[12])) / os.sysconf("SC_CLK_TCK")
            before = ticks()
            cost, printed = run([self.a.fsstore, "take", take, door["hash"], door["id"], door["address"]])
            cpu = cost.cpu + ticks() - before
            giver.stdin.close()
            _, _, used = os.wait4(giver.pid, 0)
            giver.returncode = 0
            return Cost(json.loads(printed)["seconds"], cpu, max(cost.peak_mib, used.ru_maxrss / 1024))

        runners = {
            "sluice": sluice,
            "rsync -aW": rsync,
            "rsync -aW --fsync": lambda: rsync("--fsync"),
            "iroh-blobs FsStore": fsstore,
        }
        costs = self.pairs("first copy", runners)
        self.same(lake, self.work / "copy-sluice")
        return {"bytes": self.a.mib * MIB, "costs": costs, "scans": scans, "imports": imports}

    def same(self, lake, copy):
        """What was measured is a copy."""
        run(["diff", "-r", "--exclude=.sluice", lake, copy])

    # -- a kill half-way

    def kill(self):
        size = self.a.mib * MIB // 4
        lake = fresh(self.work / "one")
        write_random(lake / "raw/large.bin", size)
        return {"bytes": size, "sluice": self.kill_sluice(lake, size), "rsync --partial": self.kill_rsync(lake, size)}

    def kill_sluice(self, lake, size):
        moved = {}
        for name, cut in (("whole", False), ("cut", True)):
            shutil.rmtree(lake / ".sluice", ignore_errors=True)
            target = self.work / "copy-kill"
            shutil.rmtree(target, ignore_errors=True)
            owner, replica = self.site("giver"), self.site("taker")
            owner.ask("space", "add", "acme", lake)
            ticket = owner.ask("invite", "acme", "--read")["ticket"]
            join = replica.command("join", ticket, "--into", target)
            joining = subprocess.Popen(join, env=replica.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            at = None
            if cut:
                part = lambda: sum(j["bytes"] for j in replica.ask("status")["jobs"])
                while part() < size // 2 and joining.poll() is None:
                    time.sleep(0.005)
                at = part() if joining.poll() is None else None
                replica.kill()
                joining.wait()
                replica.start()
                replica.ask("join", ticket, "--into", target)
            joining.wait()
            # At the owner: what a killed replica had received and lost was sent all the same.
            moved[name] = owner.ask("status")["served_bytes_total"]
            owner.kill()
            replica.kill()
            self.same(lake, target)
        return {"moved_whole": moved["whole"], "moved_cut": moved["cut"], "twice": moved["cut"] - moved["whole"], "cut_at": at}

    def kill_rsync(self, lake, size):
        target = fresh(self.work / "copy-kill")
        server = Rsyncd(lake, self.work)
        command = ["rsync", "-a", "--partial", "--exclude=.sluice", "--stats", server.url, f"{target}/"]
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        part = lambda: sum(p.stat().st_size for p in target.rglob("*") if p.is_file())
        while part() < size // 2 and first.poll() is None:
            time.sleep(0.005)
        # As a person does it: Ctrl-C, which lets rsync keep the part. A kill -9 would leave it under another name.
        first.terminate()
        first.wait()
        kept = part()
        again = rsync_bytes(run(command)[1])
        server.end()
        self.same(lake, target)
        return {"moved_whole": size, "moved_cut": kept + again, "twice": kept + again - size, "cut_at": kept}

    # -- bytes of changes

    def changes(self):
        lake, copy = self.work / "tables", self.work / "tables-rsync"
        for path in (lake, copy, self.work / "tables-sluice"):
            shutil.rmtree(path, ignore_errors=True)
        script = Path(__file__).parent.parent / "python/lake.py"
        python = lambda *words: run([self.a.python, script, *words], env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})[1]
        python("make", lake)
        for name in ("table-giver", "table-taker"):
            shutil.rmtree(self.work / name, ignore_errors=True)
        owner, replica = (Site(self.a.engine, self.work / n) for n in ("table-giver", "table-taker"))
        server = Rsyncd(lake, self.work)
        pull = ["rsync", "-a", "--delete", "--exclude=.sluice", "--stats", server.url, f"{fresh(copy)}/"]
        owner.ask("space", "add", "acme", lake)
        ticket = owner.ask("invite", "acme", "--read")["ticket"]
        first = replica.ask("join", ticket, "--into", self.work / "tables-sluice")
        lines = [{"change": "first copy", "sluice": first["bytes_moved"], "rsync": rsync_bytes(run(pull)[1])}]
        for step in python("steps").split():
            python("change", lake, step)
            owner.ask("snapshot", "acme")
            moved = replica.ask("sync", "acme")["spaces"][0]["bytes_moved"]
            lines.append({"change": step, "sluice": moved, "rsync": rsync_bytes(run(pull)[1])})
            print(f"bench: {lines[-1]}", file=sys.stderr)
        owner.kill()
        replica.kill()
        server.end()
        # Not by `diff`: files that no commit names, as a writer's leftovers, are not carried.
        seen = [without_modes(json.loads(python("inspect", path))) for path in (lake, self.work / "tables-sluice")]
        if seen[0] != seen[1]:
            raise SystemExit("bench: a reader sees other things in the copy than in the lake")
        self.same(lake, copy)
        return {"lines": lines}


def without_modes(seen):
    """What a reader sees, less permission bits: published files are read-only."""
    if isinstance(seen, dict):
        return {k: without_modes(v) for k, v in seen.items() if k != "mode"}
    return [without_modes(v) for v in seen] if isinstance(seen, list) else seen


def rsync_bytes(stats):
    """Bytes both ways, as `--stats` says."""
    number = lambda line: int("".join(c for c in line.rpartition(":")[2] if c.isdigit()))
    return sum(number(line) for line in stats.splitlines() if line.startswith("Total bytes "))


def machine():
    model = next((l.partition(":")[2].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "unknown")
    memory = next(int(l.split()[1]) for l in open("/proc/meminfo") if l.startswith("MemTotal")) / MIB
    version = lambda *command: subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[0].strip()
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory),
        "kernel": platform.release(),
        "rsync": version("rsync", "--version"),
        "b3sum": version("b3sum", "--version"),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("sluice", "engine", "fsstore", "work", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable, help="an interpreter with deltalake and pylance")
    parser.add_argument("--mib", type=int, default=2048, help="size of the first copy")
    parser.add_argument("--files", type=int, default=100_000, help="files of the rescan")
    parser.add_argument("--pairs", type=int, default=3, help="how often each is measured")
    parser.add_argument("part", nargs="*", metavar="PART", help=", ".join(PARTS))
    arguments = parser.parse_args()
    if unknown := set(arguments.part) - set(PARTS):
        parser.error(f"there is no part {', '.join(unknown)}; the parts are {', '.join(PARTS)}")
    arguments.work.mkdir(parents=True, exist_ok=True)
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    bench = Bench(arguments)
    for part in arguments.part or PARTS:
        results[part] = getattr(bench, part)()
        results["machine"] = machine() | {"pairs": arguments.pairs}
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    shutil.rmtree(arguments.work, ignore_errors=True)


if __name__ == "__main__":
    main()
