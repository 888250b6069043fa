"""What is moved twice after a kill, and what a change moves: kill, changes. Bytes are counted here, not seconds."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

from lakes import MIB, fresh, gone, write_random
from measuring import say
from processes import Running, run
from rivals import Rsyncd
from sites import Site


def kill(bench):
    """A copy that is ended half-way."""
    size = bench.a.mib * MIB // 4
    lake = fresh(bench.work / "one")
    write_random(lake / "raw/large.bin", size)
    found = {"bytes": size, "sluice": kill_sluice(bench, lake, size), "rsync --partial": kill_rsync(bench, lake, size)}
    gone(lake)
    return found


def kill_sluice(bench, lake, size):
    moved = {}
    for name, cut in (("whole", False), ("cut", True)):
        gone(lake / ".sluice")
        target = bench.work / "copy-kill"
        gone(target)
        owner, replica = bench.site("giver"), bench.site("taker")
        owner.share(lake)
        ticket = owner.invite()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        joining = Running(replica.command("join", ticket, "--into", target), env=replica.environment, **quiet)
        at = None
        if cut:
            part = lambda: sum(j["bytes"] for j in replica.ask("status")["jobs"])
            while part() < size // 2 and not joining.has_ended():
                time.sleep(0.005)
            at = None if joining.has_ended() else part()
            replica.kill()
            joining.wait()
            replica.start()
            replica.ask("join", ticket, "--into", target)
        joining.wait()
        # At the owner: what a killed replica had received and lost was sent all the same.
        moved[name] = owner.ask("status")["served_bytes_total"]
        owner.kill()
        replica.kill()
        bench.same(lake, target)
    return {"moved_whole": moved["whole"], "moved_cut": moved["cut"], "twice": moved["cut"] - moved["whole"], "cut_at": at}


def kill_rsync(bench, lake, size):
    target = fresh(bench.work / "copy-kill")
    server = Rsyncd(lake, bench.work)
    command = ["rsync", "-a", "--partial", "--exclude=.sluice", "--stats", server.url, f"{target}/"]
    first = Running(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part = lambda: sum(p.stat().st_size for p in target.rglob("*") if p.is_file())
    while part() < size // 2 and not first.has_ended():
        time.sleep(0.005)
    # As a person does it: Ctrl-C, which lets rsync keep the part. A kill -9 would leave it under another name.
    first.end(signal.SIGTERM)
    kept = part()
    again = rsync_bytes(run(command)[1])
    server.end()
    bench.same(lake, target)
    return {"moved_whole": size, "moved_cut": kept + again, "twice": kept + again - size, "cut_at": kept}


def changes(bench):
    """Tables that change, with the engine."""
    lake, copy, taken = (bench.work / name for name in ("tables", "tables-rsync", "tables-sluice"))
    for path in (lake, copy, taken):
        gone(path)
    script = Path(__file__).parent.parent / "python/lake.py"
    python = lambda *words: run([bench.a.python, script, *words], env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})[1]
    python("make", lake)
    for name in ("table-giver", "table-taker"):
        gone(bench.work / name)
    owner, replica = (Site(bench.a.engine, bench.work / n) for n in ("table-giver", "table-taker"))
    server = Rsyncd(lake, bench.work)
    pull = ["rsync", "-a", "--delete", "--exclude=.sluice", "--stats", server.url, f"{fresh(copy)}/"]
    owner.share(lake)
    first = replica.ask("join", owner.invite(), "--into", taken)
    lines = [{"change": "first copy", "sluice": first["bytes_moved"], "rsync": rsync_bytes(run(pull)[1])}]
    for step in python("steps").split():
        python("change", lake, step)
        owner.ask("snapshot", "acme")
        moved = replica.ask("sync", "acme")["spaces"][0]["bytes_moved"]
        lines.append({"change": step, "sluice": moved, "rsync": rsync_bytes(run(pull)[1])})
        say(lines[-1])
    owner.kill()
    replica.kill()
    server.end()
    # Not by `diff`: files that no commit names, as a writer's leftovers, are not carried.
    seen = [without_modes(json.loads(python("inspect", path))) for path in (lake, taken)]
    if seen[0] != seen[1]:
        raise SystemExit("bench: a reader sees other things in the copy than in the lake")
    bench.same(lake, copy)
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
