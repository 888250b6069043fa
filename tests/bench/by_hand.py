#!/usr/bin/env python3
"""First copies beside rclone and syncthing from Debian. Not part of `make bench`: run by hand, once in a while.

    by_hand.py --sluice BIN --work DIR [--mib N] [--large-mib N] [--files N] [mixed|large|small]...

Prints tables for docs/benchmarks.md. Invariant: as in bench.py; and what syncthing does is measured from the moment that
its folder is shared, with the lake scanned before, as a join is.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import urllib.request
import xml.etree.ElementTree as xml
from pathlib import Path

import lakes
from bench import machine, version
from copying import sluice
from lakes import fresh, gone
from measuring import Bench, say
from processes import Cost, Running, alone, cpu_of, descendants, free_port, run, settle, until
from report import timing_table

KINDS = {"mixed": (lakes.mixed, "mib"), "large": (lakes.large, "large_mib"), "small": (lakes.small, "files")}
KEY = "bench"


class Syncthing:
    """One instance on loopback that looks for nobody; spoken to by its REST interface."""

    def __init__(self, home):
        self.home = fresh(Path(home))
        run(["syncthing", "generate", f"--home={home}", "--no-default-folder", "--skip-port-probing"], stderr=subprocess.DEVNULL)
        self.gui, self.port = free_port(), free_port()
        config = xml.parse(self.home / "config.xml")
        root = config.getroot()
        root.find("gui/address").text, root.find("gui/apikey").text = f"127.0.0.1:{self.gui}", KEY
        options = root.find("options")
        for name in ("globalAnnounceEnabled", "localAnnounceEnabled", "relaysEnabled", "natEnabled", "crashReportingEnabled"):
            options.find(name).text = "false"
        options.find("listenAddress").text = f"tcp://127.0.0.1:{self.port}"
        options.find("urAccepted").text = "-1"
        config.write(self.home / "config.xml")
        with open(self.home / "log", "w") as log:
            words = ["syncthing", "serve", f"--home={home}", "--no-browser", "--no-restart", "--no-upgrade"]
            self.running = Running(words, stdout=log, stderr=log)
        self.id = until(f"syncthing (see {home}/log)", lambda: self.call("/rest/system/status", fails=True))["myID"]

    def call(self, path, body=None, fails=False):
        method = "GET" if body is None else "POST"
        data = None if body is None else json.dumps(body).encode()
        ask = urllib.request.Request(f"http://127.0.0.1:{self.gui}{path}", data, {"X-API-Key": KEY}, method=method)
        try:
            with urllib.request.urlopen(ask) as answer:
                return json.loads(answer.read() or "null")
        except OSError:
            if not fails:
                raise

    def knows(self, other):
        self.call("/rest/config/devices", {"deviceID": other.id, "addresses": [f"tcp://127.0.0.1:{other.port}"]})

    def folder(self, path, kind, *others):
        devices = [{"deviceID": site.id} for site in (self, *others)]
        self.call("/rest/config/folders", {"id": "lake", "path": str(path), "type": kind, "devices": devices, "rescanIntervalS": 0, "fsWatcherEnabled": False})

    def has(self, files):
        """Whether it is at rest with this many files. Its bytes count folders, too."""
        found = self.call("/rest/db/status?folder=lake", fails=True) or {}
        return found.get("state") == "idle" and found.get("needTotalItems") == 0 and found.get("localFiles") == files

    def cpu(self):
        return sum(cpu_of(pid) for pid in descendants(self.running.pid))

    def end(self):
        return self.running.end()


def syncthing(bench, lake):
    target, files = fresh(bench.work / "copy-syncthing"), len(lakes.files_of(lake))
    giver, taker = Syncthing(bench.work / "st-give"), Syncthing(bench.work / "st-take")
    giver.knows(taker)
    taker.knows(giver)
    giver.folder(lake, "sendonly", taker)
    until("syncthing's scan", lambda: giver.has(files), limit_s=1800, every_s=0.2)
    settle()
    before = giver.cpu() + taker.cpu()
    clock = Running(["sleep", "3600"])
    taker.folder(target, "receiveonly", giver)
    until("syncthing's copy", lambda: taker.has(files), limit_s=1800)
    wall = clock.end().wall
    cpu = giver.cpu() + taker.cpu() - before
    ends = [giver.end(), taker.end()]
    gone(target / ".stfolder")
    gone(lake / ".stfolder")
    bench.same(lake, target)
    return Cost(wall, cpu, max(e.peak_mib for e in ends), max(e.files for e in ends))


def rclone(bench, lake, kind):
    target, port = fresh(bench.work / "copy-rclone"), free_port()
    environment = os.environ | {"RCLONE_CONFIG": str(bench.work / "rclone.conf")}
    login = ["--user", "bench", "--pass", "bench"]
    server = Running(["rclone", "serve", kind, lake, "--addr", f"127.0.0.1:{port}", "--read-only", *login], stderr=subprocess.DEVNULL, env=environment)
    obscured = run(["rclone", "obscure", "bench"])[1].strip()
    to = f'url="http://127.0.0.1:{port}"' if kind == "webdav" else f'host=127.0.0.1,port={port},key_use_agent=false'
    source = f":{kind},{to},user=bench,pass={obscured}:"
    look = ["rclone", "lsf", "--max-depth", "1", source]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}

    def answers():
        probe = Running(look, **quiet)
        probe.wait()
        return probe.child.returncode == 0

    until("the rclone server", answers)
    cost, _ = run(["rclone", "copy", "--exclude", ".sluice/**", source, target], env=environment)
    cost = cost.beside(server.end())
    bench.same(lake, target)
    return cost


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sluice", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--mib", type=int, default=2048)
    parser.add_argument("--large-mib", type=int, default=4096)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("lake", nargs="*", choices=[[], *KINDS])
    a = parser.parse_args()
    missing = [name for name in ("rclone", "syncthing") if not shutil.which(name)]
    if missing:
        sys.exit(f"by_hand: install these first: apt-get install {' '.join(missing)}")
    a.pairs = 1
    bench = Bench(a)
    with alone(a.work):
        m = machine()
        versions = [version("rclone", "version"), " ".join(version("syncthing", "--version").split()[:2])]
        print(f"{m['date']}: {m['cores']} cores of {m['cpu']}, Linux {m['kernel']}; {'; '.join(versions)}. Each once.\n")
        for name in a.lake or KINDS:
            make, option = KINDS[name]
            lake, scans = bench.lake(name, make, getattr(a, option)), []
            costs = bench.pairs(
                name,
                {
                    "sluice": lambda: sluice(bench, lake, scans),
                    "rclone, webdav": lambda: rclone(bench, lake, "webdav"),
                    "rclone, sftp": lambda: rclone(bench, lake, "sftp"),
                    "syncthing": lambda: syncthing(bench, lake),
                },
            )
            size = lakes.size_of(lake)
            print(f"{name}, {size / 2**30:.2f} GiB:\n", *timing_table(costs, size), sep="\n", flush=True)
            say(f"{name} is done")


if __name__ == "__main__":
    main()
