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


def median(costs, what):
    return statistics.median(c[what] for c in costs)


def spread(costs):
    walls = [c["wall"] for c in costs]
    return f"{min(walls):.2f}–{max(walls):.2f}"


def timing_table(costs, size_gb, extra=None):
    lines = [
        "| program | wall, s (median, range) | GB/s | CPU, s, both ends | peak MiB of an end | Sluice is faster by |",
        "|---|---|---|---|---|---|",
    ]
    own = median(costs["sluice"], "wall")
    for name, found in costs.items():
        wall = median(found, "wall")
        rate = f"{size_gb / wall:.2f}" if size_gb else "–"
        ratio = "–" if name == "sluice" else f"{wall / own:.2f} ×"
        lines.append(
            f"| {name} | {wall:.2f} ({spread(found)}) | {rate} | {median(found, 'cpu'):.2f} |"
            f" {median(found, 'peak_mib'):.0f} | {ratio} |"
        )
    return lines + [""]


def scan(r):
    return ["### Reading and hashing, warm cache", ""] + timing_table(r["costs"], r["bytes"] / 1e9)


def rescan(r):
    first = r["first"]
    text = f"### {r['files']:,} files, nothing changed"
    note = f"The first snapshot of them took {first['wall']:.1f} s and {first['cpu']:.1f} s of CPU, {first['peak_mib']:.0f} MiB at most."
    return [text, ""] + timing_table(r["costs"], None) + [note, ""]


def copy(r):
    text = f"### First copy of {r['bytes'] / 2**30:.2g} GiB over loopback, scanned before"
    lines = [text, ""] + timing_table(r["costs"], r["bytes"] / 1e9)
    scan = statistics.median(c["wall"] for c in r["scans"])
    imported = statistics.median(r["imports"])
    own = median(r["costs"]["sluice"], "wall") + scan
    lines += ["With what comes before the first byte can move:", "", "| program | scan or import, s | with the copy, s | Sluice is faster by |", "|---|---|---|---|"]
    for name, found in r["costs"].items():
        before = {"sluice": scan, "iroh-blobs FsStore": imported}.get(name, 0.0)
        whole = median(found, "wall") + before
        ratio = "–" if name == "sluice" else f"{whole / own:.2f} ×"
        lines.append(f"| {name} | {before:.2f} | {whole:.2f} | {ratio} |")
    return lines + [""]


def kill(r):
    lines = [f"### Ended half-way, {r['bytes'] >> 20} MiB in one file", "", "| program | moved in one go | moved with the cut | twice |", "|---|---|---|---|"]
    for name in ("sluice", "rsync --partial"):
        k = r[name]
        part = 100 * k["twice"] / r["bytes"]
        lines.append(f"| {name} | {k['moved_whole']:,} | {k['moved_cut']:,} | {part:.2f} % |")
    return lines + [""]


def changes(r):
    lines = ["### Bytes moved, by kind of change", "", "| change | Sluice | rsync -a | rsync moves |", "|---|---|---|---|"]
    for line in r["lines"]:
        lines.append(f"| {line['change']} | {line['sluice']:,} | {line['rsync']:,} | {line['rsync'] / max(line['sluice'], 1):.2f} × |")
    own, other = (sum(line[k] for line in r["lines"][1:]) for k in ("sluice", "rsync"))
    lines.append(f"| all changes | {own:,} | {other:,} | {other / max(own, 1):.2f} × |")
    return lines + [""]


def main():
    results, doc = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    m = results["machine"]
    lines = [
        BEGIN, "",
        f"{m['date']}: {m['cores']} cores of {m['cpu']}, {m['memory_gib']} GiB, Linux {m['kernel']}; {m['rsync']}; {m['b3sum']}.",
        f"Each figure is the median of {m['pairs']} runs in alternating order.", "",
    ]
    for part in (scan, rescan, copy, kill, changes):
        if part.__name__ in results:
            lines += part(results[part.__name__])
    text = doc.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    doc.write_text(head + "\n".join(lines) + END + tail)


if __name__ == "__main__":
    main()
