#!/usr/bin/env python3
"""Measures Sluice beside its rivals, in one run on one machine, in alternating pairs.

    bench.py --sluice BIN --engine BIN --fsstore BIN --line BIN --work DIR --out FILE [PART...]

All of the parts when none is named. BIN of `--engine` knows tables (any profile: only bytes are counted with it), the
others are release builds. Writes one JSON file, part by part; report.py makes the tables of it.
Invariant: a figure of Sluice stands beside the rival's of the same run; nothing is left out because it is bad; and
what the run made, processes, namespaces and files, goes with it, also on Ctrl-C.
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

from copying import copy, large, small
from linking import links, multi
from measuring import Bench, say
from million import million
from networks import forbidden
from processes import alone
from reading import nochange, rescan, scan
from resuming import changes, kill
from rivals import SSHD

MIB = 1 << 20
PARTS = {part.__name__: part for part in (scan, rescan, nochange, copy, large, small, links, multi, kill, changes, million)}


def machine():
    """What the figures are of."""
    model = next((l.partition(":")[2].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "unknown")
    memory = next(int(l.split()[1]) for l in open("/proc/meminfo") if l.startswith("MemTotal")) / MIB
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory),
        "kernel": platform.release(),
        "tcp": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
        "versions": [version(*words) for words in VERSIONS if shutil.which(words[0])],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


VERSIONS = [("rsync", "--version"), ("b3sum", "--version"), ("restic", "version"), (SSHD, "-V")]


def version(*command):
    """Its first line, wherever it is printed."""
    done = subprocess.run(command, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()
    line = next((line for line in lines if any(c.isdigit() for c in line)), command[0])
    return " ".join(line.split("  protocol")[0].split(",")[0].split())


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("sluice", "engine", "fsstore", "line", "work", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable, help="an interpreter with deltalake and pylance")
    parser.add_argument("--mib", type=int, default=2048, help="size of the mixed lake")
    parser.add_argument("--large-mib", type=int, default=4096, help="size of the lake of large files")
    parser.add_argument("--files", type=int, default=100_000, help="files of rescan, nochange and small")
    parser.add_argument("--million", action="store_true", help="rescan a million files, too")
    parser.add_argument("--million-files", type=int, default=1_000_000, help="files of the part `million`")
    parser.add_argument("--chunk-mib", type=int, default=8192, help="the larger lake of large files of the part `million`")
    parser.add_argument("--link-scale", type=float, default=1.0, help="what is copied over lines, as a part of the usual")
    parser.add_argument("--pairs", type=int, default=3, help="how often each is measured")
    parser.add_argument("part", nargs="*", metavar="PART", help=", ".join(PARTS))
    found = parser.parse_args()
    if unknown := set(found.part) - set(PARTS):
        parser.error(f"there is no part {', '.join(unknown)}; the parts are {', '.join(PARTS)}")
    return found


def main():
    a = arguments()
    earlier = json.loads(a.out.read_text()) if a.out.exists() else {}
    # What an older version of this measured had another form.
    results = {name: found for name, found in earlier.items() if "minutes" in found}
    bench = Bench(a)
    with alone(a.work):
        for name in a.part or PARTS:
            if name in ("links", "multi") and (why := forbidden()):
                say(f"{name} is left out: {why}")
                continue
            begun = time.monotonic()
            results[name] = PARTS[name](bench) | {"pairs": a.pairs, "minutes": (time.monotonic() - begun) / 60}
            results["machine"] = machine()
            a.out.write_text(json.dumps(results, indent=1) + "\n")
            say(f"{name} took {results[name]['minutes']:.1f} minutes")


if __name__ == "__main__":
    main()
