"""Sluice sites that are measured: `sluice up`, and commands against it.

Invariant: a site shares nothing with another but the network, and follows nothing by itself, so that all its work is
somebody's command.
"""

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

from networks import inside
from processes import Cost, Peaks, Running, cpu_of, free_port, run, until


class Site:
    """`space` is the network namespace that it lives in; without one it is reached over loopback. `settings` are more of
    its environment."""

    def __init__(self, binary, home, space=None, settings=()):
        self.binary, self.home, self.space = binary, Path(home), space
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("SLUICE")} | {
            # A site of this machine: no other may have the port. A namespace is the site's own.
            "SLUICE__P2P__PORT": "7711" if space else str(free_port(socket.SOCK_DGRAM)),
            "SLUICE__P2P__LOOPBACK": "false" if space else "true",
            "SLUICE__API__ENABLED": "false",
            "SLUICE__FOLLOW__ENABLED": "false",
            **dict(settings),
        }
        self.ask("init", "--name", self.home.name)
        self.start()

    def command(self, *words):
        return [str(self.binary), "--home", str(self.home), "--json", "--quiet", *map(str, words)]

    def ask(self, *words, ok=(0,)):
        _, printed = run(self.command(*words), ok=ok, env=self.environment)
        return json.loads(printed) if printed.strip() else None

    def start(self):
        with open(f"{self.home}.log", "a") as log:
            self.running = Running(inside(self.space, self.command("up")), env=self.environment, stdout=log, stderr=log)
        until(f"the site {self.home} (see {self.home}.log)", self.answers)

    def answers(self):
        if self.running.has_ended():
            raise SystemExit(f"bench: the site {self.home} did not start; see {self.home}.log")
        done = Running(self.command("status"), env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        done.wait()
        return done.child.returncode == 0

    def kill(self):
        self.running.end(signal.SIGKILL)

    def share(self, lake):
        """The first snapshot; its cost."""
        return self.measured("space", "add", "acme", lake)[0]

    def invite(self):
        return self.ask("invite", "acme", "--read")["ticket"]

    def join(self, owner, target, also=()):
        """Joins the space of `owner`; the cost of both, and of `also`, and what was told."""
        return self.measured("join", owner.invite(), "--into", target, also=(owner, *also))

    def measured(self, *words, ok=(0,), also=()):
        """One command: the wall time of whoever gave it, the CPU and memory of this site and of `also`. What each of them
        held at most is in its `peak_mib` and `files` afterwards."""
        sites = (self, *also)
        for site in sites:
            Path(f"/proc/{site.running.pid}/clear_refs").write_text("5")
        peaks = [Peaks(site.running.pid) for site in sites]
        before = sum(cpu_of(s.running.pid) for s in sites)
        asked, printed = run(self.command(*words), ok=ok, env=self.environment)
        cpu = asked.cpu + sum(cpu_of(s.running.pid) for s in sites) - before
        for peak in peaks:
            peak.look([peak.pid])
            peak.end()
        for site, peak in zip(sites, peaks):
            site.peak_mib, site.files = peak.peak_mib, peak.files
        cost = Cost(asked.wall, cpu, max(p.peak_mib for p in peaks), max(p.files for p in peaks))
        return cost, json.loads(printed)
