"""Runs programs and says what they cost: wall seconds, CPU seconds, peak memory.

Invariant: what is counted is what the kernel counts, for the program and all its children, at both ends of a copy.
"""

import json
import os
import resource
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
LONGEST_S = 1800


@dataclass
class Cost:
    """Seconds on the clock, seconds of CPU, and MiB of memory at most."""

    wall: float
    cpu: float
    peak_mib: float

    def __add__(self, other):
        """One after the other."""
        return Cost(self.wall + other.wall, self.cpu + other.cpu, max(self.peak_mib, other.peak_mib))

    def beside(self, other):
        """The other end of the same work: its time is in this wall time already."""
        return Cost(self.wall, self.cpu + other.cpu, max(self.peak_mib, other.peak_mib))


def run(command, ok=(0,), **more):
    """One program from start to end; its cost and what it printed."""
    begun = time.monotonic()
    child = subprocess.Popen([str(w) for w in command], stdout=subprocess.PIPE, **more)
    printed = child.stdout.read()
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in ok:
        raise SystemExit(f"bench: {command[0]} ended with {child.returncode}: {' '.join(map(str, command))}")
    cost = Cost(time.monotonic() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
    return cost, printed.decode(errors="replace")


def free_port(kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Site:
    """A Sluice site of its own: `sluice up`, and commands against it."""

    def __init__(self, binary, home):
        self.binary, self.home = binary, Path(home)
        self.environment = os.environ | {
            "SLUICE__P2P__PORT": str(free_port(socket.SOCK_DGRAM)),
            "SLUICE__P2P__LOOPBACK": "true",
            "SLUICE__API__ENABLED": "false",
            "SLUICE__FOLLOW__ENABLED": "false",
        }
        self.ask("init", "--name", self.home.name)
        self.start()

    def command(self, *words):
        return [str(self.binary), "--home", str(self.home), "--json", "--quiet", *map(str, words)]

    def ask(self, *words, ok=(0,)):
        _, printed = run(self.command(*words), ok=ok, env=self.environment)
        return json.loads(printed) if printed.strip() else None

    def start(self):
        log = open(f"{self.home}.log", "a")
        self.process = subprocess.Popen(self.command("up"), env=self.environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while subprocess.run(self.command("status"), env=self.environment, capture_output=True).returncode != 0:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"bench: the site {self.home} did not start; see {self.home}.log")
            time.sleep(0.05)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def cpu(self):
        """Seconds of CPU that the process has used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def peak_mib(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def measured(self, *words, ok=(0,), also=()):
        """One command: the wall time of whoever gave it, the CPU and memory of this site and of `also`."""
        sites = (self, *also)
        for site in sites:
            Path(f"/proc/{site.process.pid}/clear_refs").write_text("5")
        before = sum(s.cpu() for s in sites)
        asked, printed = run(self.command(*words), ok=ok, env=self.environment)
        cpu = asked.cpu + sum(s.cpu() for s in sites) - before
        return Cost(asked.wall, cpu, max(s.peak_mib() for s in sites)), json.loads(printed)


class Rsyncd:
    """A plaintext rsync daemon that serves one folder, read-only. Its cost is known when it has ended."""

    def __init__(self, folder, work):
        self.port = free_port()
        config = Path(work) / f"rsyncd-{self.port}.conf"
        user = "uid = root\ngid = root\n" if os.getuid() == 0 else ""
        config.write_text(f"use chroot = no\n{user}[lake]\npath = {folder}\nread only = yes\n")
        self.process = subprocess.Popen(
            ["rsync", "--daemon", "--no-detach", f"--config={config}", f"--port={self.port}", "--address=127.0.0.1"]
        )
        self.url = f"rsync://127.0.0.1:{self.port}/lake/"
        deadline = time.monotonic() + 10
        while subprocess.run(["rsync", self.url], capture_output=True).returncode != 0:
            if time.monotonic() > deadline:
                raise SystemExit("bench: the rsync daemon does not answer")
            time.sleep(0.05)

    def end(self):
        self.process.terminate()
        _, _, used = os.wait4(self.process.pid, 0)
        self.process.returncode = 0
        return Cost(0.0, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def settle():
    """Lets the disk finish what the last program left to it, so that the next one does not pay for it."""
    os.sync()
    time.sleep(0.5)


resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
