#!/usr/bin/env python3
"""Makes the tables of docs/benchmarks.md out of what bench.py measured.

    report.py RESULTS.json DOC.md

Replaces what stands between the two marker lines of DOC.md. Invariant: every ratio is of medians of the same run, and
above 1 always means that Sluice is better.
"""

import json
import statistics
import sys
from pathlib import Path

BEGIN, END = "<!-- figures: made by `make bench` -->", "<!-- end of figures -->"
OWN = "sluice"


def median(costs, what):
    return statistics.median(c[what] for c in costs)


def spread(costs):
    walls = [c["wall"] for c in costs]
    return f"{min(walls):.2f}–{max(walls):.2f}"


def speed(size, wall):
    """Bytes in seconds, in the unit that reads best."""
    rate = size / wall
    return f"{rate / 1e9:.2f} GB/s" if rate >= 1e9 else f"{rate / 1e6:.1f} MB/s"


def table(*rows):
    """The first row is the heading."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:], ""]


def timing_table(costs, size=None):
    heading = ["program", "wall, s (median, range)", "CPU, s, both ends", "peak MiB of a process", "Sluice is faster by"]
    rows = [heading if size is None else heading[:2] + ["speed"] + heading[2:]]
    own = median(costs[OWN], "wall")
    for name, found in costs.items():
        wall = median(found, "wall")
        row = [name, f"{wall:.2f} ({spread(found)})", f"{median(found, 'cpu'):.2f}", f"{median(found, 'peak_mib'):.0f}"]
        row.append("–" if name.startswith(OWN) else f"{wall / own:.2f} ×")
        if size is not None:
            # It lists, and reads nothing.
            row.insert(2, "–" if name == "rsync -an" else speed(size, wall))
        rows.append(row)
    return table(*rows)


def scan(r):
    return ["### Reading and hashing, warm cache", ""] + timing_table(r["costs"], r["bytes"])


def rescan(r):
    lines = []
    for one in r["runs"]:
        first = one["first"]
        lines += [f"### {one['files']:,} files, nothing changed", ""] + timing_table(one["costs"])
        lines += [f"The first snapshot of them took {first['wall']:.1f} s and {first['cpu']:.1f} s of CPU, {first['peak_mib']:.0f} MiB at most.", ""]
    return lines


def nochange(r):
    return [f"### Nothing new to bring, {r['files']:,} files", ""] + timing_table(r["costs"])


def copy(r):
    return first_copy(r, "a mixed lake")


def large(r):
    return first_copy(r, "large files")


def small(r):
    return first_copy(r, "small files")


def first_copy(r, what):
    title = f"### First copy over loopback: {what}, {r['bytes'] / 2**30:.2f} GiB in {r['files']:,} files, scanned before"
    lines = [title, ""] + timing_table(r["costs"], r["bytes"])
    scan = statistics.median(c["wall"] for c in r["scans"])
    imported = statistics.median(r["imports"])
    own = median(r["costs"][OWN], "wall") + scan
    rows = [["program", "scan or import, s", "with the copy, s", "Sluice is faster by"]]
    for name, found in r["costs"].items():
        before = {OWN: scan, "iroh-blobs FsStore": imported}.get(name, 0.0)
        whole = median(found, "wall") + before
        rows.append([name, f"{before:.2f}", f"{whole:.2f}", "–" if name == OWN else f"{whole / own:.2f} ×"])
    return lines + ["With what comes before the first byte can move:", ""] + table(*rows)


def links(r):
    lines = []
    for link in r["links"]:
        lines += [f"### First copy over {link['name']}, {link['bytes'] / 2**20:.0f} MiB; TCP has {link['tcp']}", ""]
        lines += timing_table(link["costs"], link["bytes"])
        share = lambda told: told["tls_bytes"] / max(told["tls_bytes"] + told["quic_bytes"], 1)
        said = [f"{name}: {100 * share(told):.0f} % of the file bytes by tls" for name, told in link["lanes"].items()]
        lost, passed = sum(link["line"]["lost"]), sum(link["line"]["passed"])
        lines += [f"{'; '.join(said)}. The line passed {passed:,} packets of all these copies, lost {lost:,}, and took {link['line_cpu']:.1f} s of CPU.", ""]
    return lines


def multi(r):
    title = f"### One space at three sites, each with {r['mbit']} Mbit/s of its own to the fourth, {r['bytes'] / 2**20:.0f} MiB"
    costs = {OWN if name == "sluice, from three" else name: found for name, found in r["costs"].items()}
    served = "; ".join(f"{name}: {', '.join(f'{n:,}' for n in bytes_)}" for name, bytes_ in r["served"].items())
    return [title, "", "`sluice` is from three sites here."] + [""] + timing_table(costs, r["bytes"]) + [f"Bytes that each site served in the last run; {served}.", ""]


def kill(r):
    rows = [["program", "moved in one go", "moved with the cut", "twice"]]
    for name in ("sluice", "rsync --partial"):
        k = r[name]
        rows.append([name, f"{k['moved_whole']:,}", f"{k['moved_cut']:,}", f"{100 * k['twice'] / r['bytes']:.2f} %"])
    return [f"### Ended half-way, {r['bytes'] >> 20} MiB in one file", ""] + table(*rows)


def changes(r):
    rows = [["change", "Sluice", "rsync -a", "rsync moves"]]
    own, other = (sum(line[k] for line in r["lines"][1:]) for k in ("sluice", "rsync"))
    for line in r["lines"] + [{"change": "all changes", "sluice": own, "rsync": other}]:
        ratio = line["rsync"] / max(line["sluice"], 1)
        rows.append([line["change"], f"{line['sluice']:,}", f"{line['rsync']:,}", f"{ratio:.2f} ×"])
    return ["### Bytes moved, by kind of change", ""] + table(*rows)


def million(r):
    lines = [f"### Memory and open files: {r['files']:,} files", ""] + steps_table(r["steps"])
    small, big = r["chunk_runs"]
    lines += [f"### The same with {big['mib'] / 1024:.2g} GiB of large files, {big['chunks']:,} chunks at the mean of 64 KiB", ""]
    lines += steps_table(big["steps"])
    rows = [["step", "end", "bytes of memory a chunk", f"at {r['chunks_asked']:,} chunks, MiB"]]
    for one, other in zip(small["steps"], big["steps"]):
        for end in ("owner", "replica"):
            more = (other[end]["peak_mib"] - one[end]["peak_mib"]) / (big["chunks"] - small["chunks"])
            whole = other[end]["peak_mib"] + max(more, 0) * (r["chunks_asked"] - big["chunks"])
            rows.append([one["step"], end, f"{more * 2**20:.0f}", f"{whole:,.0f}"])
    lines += [
        f"Carried on, not measured: {r['chunks_asked']:,} chunks are {r['chunks_asked'] * 64 // 2**20} GiB. A chunk's share is the difference to a lake of a quarter of the size;",
        "below some 50 bytes it is lost in what buffers happen to take.", "",
    ]
    return lines + table(*rows)


def steps_table(steps):
    rows = [["step, in fresh processes", "wall, s", "owner, MiB", "files open", "replica, MiB", "files open"]]
    for step in steps:
        ends = [cell for end in ("owner", "replica") for cell in (f"{step[end]['peak_mib']:.0f}", step[end]["files"])]
        rows.append([step["step"], f"{step['wall']:.1f}", *ends])
    return table(*rows)


PARTS = (scan, rescan, nochange, copy, large, small, links, multi, kill, changes, million)


def main():
    results, doc = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    m = results["machine"]
    # What `million` measures is measured once.
    paired = [part.__name__ for part in PARTS if part.__name__ in results and part is not million]
    pairs = sorted({results[name]["pairs"] for name in paired})
    minutes = [f"{part.__name__} {results[part.__name__]['minutes']:.0f}" for part in PARTS if part.__name__ in results]
    lines = [
        BEGIN, "",
        f"{m['date']}: {m['cores']} cores of {m['cpu']}, {m['memory_gib']} GiB, Linux {m['kernel']}; {'; '.join(m['versions'])}.",
        f"Each time is the median of {' or '.join(map(str, pairs))} runs in alternating order. TCP on loopback has {m['tcp']}.",
        f"Minutes that each part took, with making, comparing and removing what it copied: {', '.join(minutes)}.", "",
    ]
    for part in PARTS:
        if part.__name__ in results:
            lines += part(results[part.__name__])
    text = doc.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    doc.write_text(head + "\n".join(lines) + END + tail)


if __name__ == "__main__":
    main()
