"""The rivals that need more than a command line: a daemon, a server, a key.

Invariant: each runs as its own people would run it, with files of its own in the work folder, and ends with the run.
"""

import getpass
import json
import os
import pwd
import shutil
import subprocess
from pathlib import Path

from networks import inside
from processes import Cost, Running, cpu_of, free_port, run, until

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


class Rsyncd:
    """A plaintext rsync daemon that serves one folder, read-only. Its cost is known when it has ended."""

    def __init__(self, folder, work, space=None, address="127.0.0.1"):
        self.port = free_port()
        config = Path(work) / f"rsyncd-{self.port}.conf"
        user = "uid = root\ngid = root\n" if os.getuid() == 0 else ""
        config.write_text(f"use chroot = no\n{user}[lake]\npath = {folder}\nread only = yes\n")
        words = ["rsync", "--daemon", "--no-detach", f"--config={config}", f"--port={self.port}", f"--address={address}"]
        self.running = Running(inside(space, words))
        self.url = f"rsync://{address}:{self.port}/lake/"
        look = inside(space, ["rsync", self.url])
        until("the rsync daemon", lambda: subprocess.run(look, capture_output=True).returncode == 0)

    def end(self):
        return self.running.end()


class Sshd:
    """An ssh server on loopback with a throwaway key, for this user alone. Its cost is known when it has ended."""

    def __init__(self, work):
        self.at = Path(work) / "ssh"
        shutil.rmtree(self.at, ignore_errors=True)
        self.at.mkdir(mode=0o700)
        for name in ("host", "user"):
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.at / name])
        self.port = free_port()
        settings = {
            "Port": self.port,
            "ListenAddress": "127.0.0.1",
            "HostKey": self.at / "host",
            "AuthorizedKeysFile": self.at / "user.pub",
            "AllowUsers": getpass.getuser(),
            "PermitRootLogin": "prohibit-password",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            # The work folder lies below others' folders.
            "StrictModes": "no",
            "UsePAM": "no",
            "PidFile": "none",
        }
        config = self.at / "sshd_config"
        config.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
        if os.getuid() == 0:
            # Where sshd lets its unprivileged half live; a service would have made it.
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
        with open(self.at / "log", "w") as log:
            self.running = Running([SSHD, "-D", "-e", "-f", config], stderr=log)
        line = f"127.0.0.1 {(self.at / 'host.pub').read_text()}"
        (self.at / "known").write_text(line.replace("127.0.0.1", f"[127.0.0.1]:{self.port}"))
        options = ["-F", "none", "-i", self.at / "user", "-p", self.port, "-o", f"UserKnownHostsFile={self.at / 'known'}"]
        self.ssh = ["ssh", *map(str, options), "-o", "BatchMode=yes", "127.0.0.1"]
        until(f"sshd (see {self.at}/log)", lambda: subprocess.run([*self.ssh, "true"], capture_output=True).returncode == 0)

    def copy(self, lake, target):
        """`rsync -aW` over it; the cost of the client."""
        shell = " ".join(self.ssh[:-1])
        return run(["rsync", "-aW", "--exclude=.sluice", "-e", shell, f"{self.ssh[-1]}:{lake}/", f"{target}/"])[0]

    def end(self):
        return self.running.end()

    @staticmethod
    def forbidden():
        """Why there can be none here; none when there can."""
        if not os.access(SSHD, os.X_OK):
            return "there is no sshd (tools/setup.sh bench installs it)"
        if " " in pwd.getpwuid(os.getuid()).pw_name:
            return "the user's name has a space in it"
        return None


class FsStore:
    """iroh-blobs as it comes: one store that has imported the lake by reference, and serves it."""

    def __init__(self, binary, store, lake):
        self.binary = binary
        pipe = subprocess.PIPE
        self.running = Running([binary, "give", store, lake], stdin=pipe, stdout=pipe, text=True)
        self.door = json.loads(self.running.child.stdout.readline())
        self.import_s = self.door["seconds"]

    def take(self, store):
        """A copy into another store; the cost of both."""
        before = cpu_of(self.running.pid)
        words = [self.door[key] for key in ("hash", "id", "address")]
        cost, printed = run([self.binary, "take", store, *words])
        cpu = cost.cpu + cpu_of(self.running.pid) - before
        self.running.child.stdin.close()
        there = self.running.wait()
        wall = json.loads(printed)["seconds"]
        return Cost(wall, cpu, max(cost.peak_mib, there.peak_mib), max(cost.files, there.files))

    def unpack(self, store, target):
        """The files of a copy under their names, so that they can be compared."""
        run([self.binary, "unpack", store, self.door["hash"], target])


class Restic:
    """A fresh repository for each backup."""

    def __init__(self, at):
        self.at = Path(at)
        self.environment = os.environ | {"RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": str(self.at.parent / "restic-cache")}

    def backup(self, lake):
        shutil.rmtree(self.at, ignore_errors=True)
        self.command("init")
        return self.command("backup", "--exclude", ".sluice", lake)[0]

    def command(self, *words):
        return run(["restic", "--quiet", "--repo", self.at, *words], env=self.environment)
