"""Networks that are measured: namespaces of the kernel, joined by a line of `line` or by plain cables and a switch.

Invariant: nothing outside the namespaces is changed; they go with the run, and those that a killed run left go with
the next one.
"""

import contextlib
import json
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from processes import AT_END, Running, cpu_of, run

# As in tests/src/net.rs, which sweeps them, too: the process id of the run follows.
PREFIX = "sluice-"


@dataclass
class Link:
    """One line. Milliseconds are of one direction; `tcp` is the congestion control of both ends."""

    name: str
    rate_mbit: int
    delay_ms: int
    loss_permille: int
    mib: int
    tcp: str = "cubic"

    def options(self):
        # Where each packet is lost by itself, each is carried by itself. Below, that costs little.
        offload = self.loss_permille == 0 and self.rate_mbit >= 500
        rest = {"rate_mbit": self.rate_mbit, "delay_ms": self.delay_ms, "loss_permille": self.loss_permille}
        return [f"{key}={value}" for key, value in {**rest, "offload": int(offload)}.items()]


TCP = Path("/proc/sys/net/ipv4")


def permitted(tcp):
    """Why a namespace cannot have this congestion control; none when it can. The system's own it can have always."""
    words = lambda name: (TCP / f"tcp_{name}_congestion_control").read_text().split()
    own = (TCP / "tcp_congestion_control").read_text().strip()
    if tcp == own or tcp in words("allowed"):
        return None
    if tcp not in words("available"):
        return f"this kernel has no {tcp}"
    allowed = " ".join([*words("allowed"), tcp])
    return f"{tcp} is not allowed in namespaces: `sysctl -w net.ipv4.tcp_allowed_congestion_control='{allowed}'` changes that"


def inside(space, command):
    """The command line of a program that runs in a namespace; it ends in `exec`, so the process is the program's."""
    return ["ip", "netns", "exec", space, *map(str, command)] if space else [str(word) for word in command]


def ip(*words):
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"bench: `ip {' '.join(words)}` failed: {done.stderr.strip()}")


def forbidden():
    """Why this machine permits no namespaces with lines; none when it does."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    return None if os.access("/dev/net/tun", os.W_OK) else "there is no /dev/net/tun"


def sweep():
    """Removes what a killed run left, with the programs in it."""
    names = os.listdir("/run/netns") if os.path.isdir("/run/netns") else []
    for name in names:
        process = name.removeprefix(PREFIX).split("-")[0]
        if name.startswith(PREFIX) and process.isdigit() and not Path(f"/proc/{process}").exists():
            forget(name)


def forget(name):
    pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)


class Net:
    """The namespaces of one part of the run. Use it with `with`."""

    def __init__(self):
        sweep()
        self.undo = contextlib.ExitStack()
        AT_END.callback(self.undo.close)
        self.count = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.undo.close()

    def space(self, tcp="cubic"):
        """One more namespace, with nothing but its loopback."""
        self.count += 1
        name = f"{PREFIX}{os.getpid()}-b{self.count}"
        ip("netns", "add", name)
        self.undo.callback(forget, name)
        ip("-n", name, "link", "set", "lo", "up")
        # Where it is refused the system's own stays, and `permitted` has said so.
        setting = f"echo {tcp} > {TCP}/tcp_congestion_control"
        subprocess.run(inside(name, ["sh", "-c", setting]), capture_output=True)
        return name

    def line(self, binary, link):
        """Two namespaces that reach each other by a line like this: their names, addresses, and the line."""
        ends = [self.space(link.tcp), self.space(link.tcp)]
        addresses = ["10.78.0.1", "10.78.0.2"]
        line = Line(binary, [word for end, at in zip(ends, addresses) for word in (end, f"{at}/24")], link.options())
        self.undo.callback(line.end)
        return ends, addresses, line

    def switched(self, count):
        """Namespaces that are all plugged into one switch; their names and addresses."""
        hub = self.space()
        ip("-n", hub, "link", "add", "hub", "type", "bridge")
        ip("-n", hub, "link", "set", "hub", "up")
        spaces = [self.space() for _ in range(count)]
        for n, space in enumerate(spaces):
            ip("link", "add", f"p{n}", "netns", hub, "type", "veth", "peer", "name", "eth", "netns", space)
            ip("-n", hub, "link", "set", f"p{n}", "master", "hub", "up")
            ip("-n", space, "addr", "add", f"10.79.0.{n + 1}/24", "dev", "eth")
            ip("-n", space, "link", "set", "eth", "up")
        return spaces, [f"10.79.0.{n + 1}" for n in range(count)]


def limit(space, mbit):
    """What leaves the namespace towards its switch is slowed to this rate."""
    rate = ["rate", f"{mbit}mbit", "burst", "128kb", "latency", "100ms"]
    run(inside(space, ["tc", "qdisc", "replace", "dev", "eth", "root", "tbf", *rate]))


class Line:
    """`tests/src/bin/line.rs`, which stands until its standard input ends."""

    def __init__(self, binary, ends, options):
        pipe = subprocess.PIPE
        self.running = Running([binary, "line", *ends, *options], stdin=pipe, stdout=pipe, text=True)
        if self.running.child.stdout.readline().strip() != "ready":
            raise SystemExit("bench: there is no line; it has said why above")
        self.told = None

    def cpu(self):
        return cpu_of(self.running.pid)

    def end(self):
        """Packets that passed and that were lost, there and back."""
        if self.told is None:
            self.running.child.stdin.close()
            self.told = json.loads(self.running.child.stdout.readline() or "null")
            self.running.wait()
        return self.told
