"""Times the encoder beside sentence-transformers on the same texts, in the same run, in turns.

    python embedding.py --speed target/release/examples/speed --model MODEL [--texts 3000] [--rounds 5] [--rest 5]

Needs sentence-transformers and torch, which the tests do not: `pip install sentence-transformers torch` in an environment of
your own. MODEL is what `make setup` installs (SLUICE_MODEL in the Makefile). The texts are paragraphs of the docstrings of
Python's own library. In each round every contender embeds all texts once, the order turned by one from round to round;
the figures are medians of the rounds. Prints texts and tokens a second, the ratio to sentence-transformers in the same
precision, and the worst cosine with its 32-bit vectors; JSON with --json.

Invariant: both count the same tokens, and a run whose vectors differ is no result.
"""

import argparse
import ast
import json
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time


def paragraphs(count):
    """Paragraphs of 20 to 1200 characters, each once, in an order that is the same in every run."""
    found = set()
    for path in sorted(pathlib.Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                for part in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                    text = " ".join(part.split())
                    if 20 <= len(text) <= 1200:
                        found.add(text)
    texts = sorted(found)
    random.Random(7).shuffle(texts)
    if len(texts) < count:
        sys.exit(f"only {len(texts)} paragraphs were found, {count} are wanted")
    return texts[:count]


class Theirs:
    def __init__(self, model, precision):
        import sentence_transformers
        import torch

        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.model = sentence_transformers.SentenceTransformer(str(model), device="cpu", model_kwargs={"dtype": dtype})
        self.name, self.precision = f"sentence-transformers {precision}", precision

    def round(self, texts):
        start = time.perf_counter()
        vectors = self.model.encode(texts, batch_size=32)
        return time.perf_counter() - start, vectors

    def tokens(self, texts):
        limit = self.model.max_seq_length
        return sum(map(len, self.model.tokenizer(texts, truncation=True, max_length=limit)["input_ids"]))


class Ours:
    def __init__(self, speed, model, precision, folder, texts):
        self.file = folder / "texts"
        self.file.write_text("\n".join(texts) + "\n", encoding="utf-8")
        self.command = [str(speed), str(model), str(self.file), precision, "1", str(folder / "vectors")]
        self.name, self.precision, self.folder = f"sluice-embed {precision}", precision, folder

    def round(self, texts):
        import numpy

        out = subprocess.run(self.command, check=True, capture_output=True, text=True).stdout.split()
        self.counted = int(out[1])
        return float(out[2]), numpy.fromfile(self.folder / "vectors", "<f4").reshape(len(texts), -1)


def worst_cosine(a, b):
    import numpy

    a, b = numpy.asarray(a, "f8"), numpy.asarray(b, "f8")
    return float(((a * b).sum(1) / numpy.linalg.norm(a, axis=1) / numpy.linalg.norm(b, axis=1)).min())


def measure(options, folder):
    texts = paragraphs(options.texts)
    contenders = []
    for precision in options.precisions.split(","):
        contenders += [Theirs(options.model, precision), Ours(options.speed, options.model, precision, folder, texts)]
    tokens = contenders[0].tokens(texts)
    seconds = {c.name: [] for c in contenders}
    vectors = {}
    for c in contenders:
        c.round(texts[:200]) if isinstance(c, Theirs) else None
    for at in range(options.rounds):
        for c in contenders[at % len(contenders) :] + contenders[: at % len(contenders)]:
            # What one leaves hot, or busy, is not measured on the next.
            time.sleep(options.rest)
            took, vectors[c.name] = c.round(texts)
            seconds[c.name].append(took)
            if isinstance(c, Ours) and c.counted != tokens:
                sys.exit(f"{c.name} counts {c.counted} tokens, sentence-transformers {tokens}")
    exact = vectors["sentence-transformers f32"] if "sentence-transformers f32" in vectors else None
    rows = []
    for c in contenders:
        median = statistics.median(seconds[c.name])
        rival = statistics.median(seconds[f"sentence-transformers {c.precision}"])
        rows.append(
            {
                "name": c.name,
                "seconds": seconds[c.name],
                "texts_per_second": len(texts) / median,
                "tokens_per_second": tokens / median,
                "ratio": rival / median,
                "worst_cosine": None if exact is None else worst_cosine(vectors[c.name], exact),
            }
        )
    return {"texts": len(texts), "tokens": tokens, "cores": os.cpu_count(), "contenders": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speed", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--texts", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rest", type=float, default=2.0, help="seconds between two measurements")
    parser.add_argument("--precisions", default="f32,bf16")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, pathlib.Path(folder))
    print(f"{result['texts']} texts, {result['tokens']} tokens, {result['cores']} cores")
    for row in result["contenders"]:
        cosine = "" if row["worst_cosine"] is None else f"  worst cosine {row['worst_cosine']:.6f}"
        rates = f"{row['texts_per_second']:8.0f} texts/s {row['tokens_per_second']:9.0f} tokens/s"
        print(f"{row['name']:28} {rates}  x {row['ratio']:.2f}{cosine}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
