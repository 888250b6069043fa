"""Lakes to measure with. Invariant: no two of their files share bytes, and a lake of the same size and seed has the same shape."""

import math
import os
import random
import shutil

MIB = 1 << 20


def fresh(path):
    gone(path)
    path.mkdir(parents=True)
    return path


def gone(path):
    shutil.rmtree(path, ignore_errors=True)


def write_random(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        for _ in range(size // MIB):
            out.write(os.urandom(MIB))
        out.write(os.urandom(size % MIB))


def write_lines(path, size, seed):
    """Lines of a table, as CSV; they compress to about a third."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dice = random.Random(seed)
    names = [f"customer-{dice.randrange(10**6):06}" for _ in range(5000)]
    number, written = 0, 0
    with path.open("w") as out:
        while written < size:
            lines = []
            for _ in range(10_000):
                number += 1
                name, amount = names[int(dice.random() * 5000)], dice.random() * 10_000
                lines.append(f"{number},{name},2026-{number % 12 + 1:02}-{number % 28 + 1:02},{amount:.2f},open\n")
            written += out.write("".join(lines)[: size - written])


def mixed(root, mib):
    """Half of it one file, a quarter files of 8 MiB, a quarter files of 64 KiB; random bytes."""
    write_random(root / "raw/large.bin", mib * MIB // 2)
    for n in range(mib // 4 // 8):
        write_random(root / f"raw/middle/{n:04}.bin", 8 * MIB)
    for n in range(mib // 4 * 16):
        write_random(root / f"raw/small/{n // 256:03}/{n:05}.bin", 64 << 10)


def large(root, mib):
    """Four files of random bytes."""
    for n in range(4):
        write_random(root / f"raw/large-{n}.bin", mib * MIB // 4)


def small(root, files):
    """Files of 1 to 64 KiB, small ones as often as large ones on a scale of logarithms; random bytes."""
    dice, pool = random.Random(files), os.urandom(64 * MIB)
    for n in range(files):
        path = root / f"raw/{n // 1000:03}/{n % 1000:03}.bin"
        if n % 1000 == 0:
            path.parent.mkdir(parents=True)
        size = int(1024 * math.exp(dice.random() * math.log(64)))
        at = dice.randrange(len(pool) - size)
        # A number in front, so that no two are the same.
        path.write_bytes(n.to_bytes(8, "big") + pool[at : at + size - 8])


def tiny(root, files):
    """Files of some hundred bytes, a thousand in a folder."""
    for n in range(files):
        path = root / f"raw/{n // 1000:03}/{n % 1000:03}.txt"
        if n % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(b"%d\n" % n * 100)


def halves(root, mib):
    """Half of it random bytes, half lines that compress; in files of an eighth each."""
    for n in range(4):
        write_random(root / f"raw/random-{n}.bin", mib * MIB // 8)
        write_lines(root / f"raw/lines-{n}.csv", mib * MIB // 8, seed=n)


def files_of(root):
    return [path for path in root.rglob("*") if path.is_file() and ".sluice" not in path.parts]


def size_of(root):
    return sum(path.stat().st_size for path in files_of(root))
