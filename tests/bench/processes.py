"""Runs programs and says what they cost: wall seconds, CPU seconds, peak memory.

Invariant: what is counted is what the kernel counts, for the program and all its children, at both ends of a copy; and
no program that was started here outlives this one.
"""

import contextlib
import fcntl
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
# No program runs longer; a rival that hangs is a failed run, not an endless one.
LONGEST_S = 3600
# What is to be undone when the run ends, however it ends.
AT_END = contextlib.ExitStack()


@contextlib.contextmanager
def alone(work):
    """A work folder that no other run measures in. It goes at the end, also at Ctrl-C, and with it what was started."""
    work.parent.mkdir(parents=True, exist_ok=True)
    lock = open(f"{work}.lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(f"bench: another run measures in {work}")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit("bench: ended by a signal"))
    work.mkdir(exist_ok=True)
    with AT_END:
        AT_END.callback(shutil.rmtree, work, ignore_errors=True)
        yield


@dataclass
class Cost:
    """Seconds on the clock, seconds of CPU, and MiB of memory and descriptors that one process held at most."""

    wall: float
    cpu: float
    peak_mib: float
    files: int = 0

    def beside(self, other):
        """The other end of the same work: its time is in this wall time already."""
        return Cost(self.wall, self.cpu + other.cpu, max(self.peak_mib, other.peak_mib), max(self.files, other.files))


class Peaks(threading.Thread):
    """The most memory and descriptors of the largest process among one and its children.

    Not `ru_maxrss`: a child begins with that of whoever started it, and this interpreter is larger than rsync.
    """

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.peak_mib, self.files, self.over = pid, 0.0, 0, threading.Event()
        self.look([pid])
        self.start()

    def run(self):
        pause, since, family = 0.002, 0.0, [self.pid]
        while not self.over.wait(pause):
            # Who belongs to it costs more to know than how they are.
            since += pause
            if since > 0.2 or pause < 0.05:
                family, since = descendants(self.pid), 0.0
            self.look(family)
            pause = min(pause * 2, 0.05)

    def look(self, family):
        for pid in family:
            # It may have ended since.
            with contextlib.suppress(OSError, IndexError):
                status = Path(f"/proc/{pid}/status").read_text()
                self.peak_mib = max(self.peak_mib, int(status.split("VmHWM:")[1].split()[0]) / 1024)
                self.files = max(self.files, len(os.listdir(f"/proc/{pid}/fd")))

    def end(self):
        self.over.set()
        self.join()
        return self


def descendants(top):
    """The process and all that it and its children started."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parents.setdefault(int(stat(name)[1]), []).append(int(name))
    found = [top]
    for pid in found:
        found += parents.get(pid, [])
    return found


def stat(pid):
    """Fields of `/proc/PID/stat` from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_of(pid):
    """Seconds of CPU that a running process has used so far, without its children."""
    return sum(map(int, stat(pid)[11:13])) / TICKS


class Running:
    """A program that runs beside, until `end` or the end of all."""

    def __init__(self, command, **more):
        self.command = [str(word) for word in command]
        self.begun = time.monotonic()
        self.child = subprocess.Popen(self.command, **more)
        self.peaks = Peaks(self.child.pid)
        self.cost = None
        AT_END.callback(self.end)

    @property
    def pid(self):
        return self.child.pid

    def has_ended(self):
        """Looks without taking its cost away."""
        return self.cost is not None or os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self):
        """Waits for its end; what it and its children cost."""
        if self.cost is None:
            late = threading.Timer(LONGEST_S, self.child.kill)
            late.start()
            _, status, used = os.wait4(self.pid, 0)
            late.cancel()
            self.child.returncode = os.waitstatus_to_exitcode(status)
            peaks = self.peaks.end()
            wall = time.monotonic() - self.begun
            self.cost = Cost(wall, used.ru_utime + used.ru_stime, peaks.peak_mib, peaks.files)
        return self.cost

    def end(self, by=signal.SIGTERM):
        """Ends it, if it still runs; what it and its children cost."""
        if self.cost is None:
            os.kill(self.pid, by)
        return self.wait()


def run(command, ok=(0,), **more):
    """One program from start to end; its cost and what it printed."""
    running = Running(command, stdout=subprocess.PIPE, **more)
    printed = running.child.stdout.read()
    running.child.stdout.close()
    cost = running.wait()
    if running.child.returncode not in ok:
        raise SystemExit(f"bench: {command[0]} ended with {running.child.returncode}: {' '.join(running.command)}")
    return cost, printed.decode(errors="replace")


def until(what, look, limit_s=60, every_s=0.05):
    """Calls `look` until it says something true, and gives that."""
    deadline = time.monotonic() + limit_s
    while not (found := look()):
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: waited {limit_s} s in vain for {what}")
        time.sleep(every_s)
    return found


def free_port(kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def settle():
    """Lets the disk finish what the last program left to it, so that the next one does not pay for it."""
    os.sync()
    time.sleep(0.5)


resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
