#!/usr/bin/env python3
"""Makes a lake, changes it one named step at a time, and says what is in it.

    lake.py make DIR                  a new lake, the same rows for the same --seed
    lake.py steps                     the names of the steps, in their order
    lake.py change DIR STEP           one step on an existing lake
    lake.py inspect DIR               everything a reader can see, as JSON on stdout
    lake.py begin DIR TRUTH           a small lake that changes in rounds; what is true goes to TRUTH
    lake.py round DIR TRUTH NUMBER    its next round
    lake.py serve                     the same verbs, one JSON list a line on stdin, one JSON answer
                                      a line on stdout: the libraries take seconds to load

The tables are written and read by deltalake, pylance and safetensors, never by Sluice:
`inspect` of a source and of its replica must be equal, and this file knows nothing of how
they came to be. Invariant: `inspect` writes nothing below DIR.
"""

import argparse
import json
import sys
import traceback
from pathlib import Path

import changing
import inspecting
import making


def parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)

    make = verbs.add_parser("make", help="write a new lake")
    make.add_argument("dir", type=Path)
    make.add_argument("--seed", type=int, default=7)
    make.add_argument("--csv-mib", type=int, default=20, help="size of raw/measurements.csv")
    make.add_argument("--binary-mib", type=int, default=22, help="size of raw/scan 01.bin")

    verbs.add_parser("steps", help="list the steps in their order")

    change = verbs.add_parser("change", help="do one step")
    change.add_argument("dir", type=Path)
    change.add_argument("step", choices=list(changing.STEPS))

    inspect = verbs.add_parser("inspect", help="print what a reader sees")
    inspect.add_argument("dir", type=Path)

    begin = verbs.add_parser("begin", help="write a small lake that changes in rounds")
    begin.add_argument("dir", type=Path)
    begin.add_argument("truth", type=Path)

    turn = verbs.add_parser("round", help="do one round")
    turn.add_argument("dir", type=Path)
    turn.add_argument("truth", type=Path)
    turn.add_argument("number", type=int)

    verbs.add_parser("serve", help="do what stdin says, line by line")
    return parser


def do(arguments):
    """One verb; its answer as plain data."""
    if arguments.verb == "make":
        return making.make(arguments.dir, arguments.seed, arguments.csv_mib, arguments.binary_mib)
    if arguments.verb == "steps":
        return list(changing.STEPS)
    if arguments.verb == "change":
        return changing.STEPS[arguments.step](arguments.dir)
    if arguments.verb in ("begin", "round"):
        # Brings FAISS, which only these lakes need.
        import rounds

        if arguments.verb == "begin":
            return rounds.begin(arguments.dir, arguments.truth)
        return rounds.change(arguments.dir, arguments.truth, arguments.number)
    return inspecting.inspect(arguments.dir)


def serve():
    for line in sys.stdin:
        try:
            answer = {"answer": do(parser().parse_args(json.loads(line)))}
        except (Exception, SystemExit):
            answer = {"failure": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


def main():
    arguments = parser().parse_args()
    if arguments.verb == "serve":
        serve()
        return
    answer = do(arguments)
    if arguments.verb == "steps":
        print("\n".join(answer))
    elif answer is not None:
        json.dump(answer, sys.stdout, indent=1, sort_keys=True)
        print()


if __name__ == "__main__":
    main()
