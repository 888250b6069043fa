"""Makes minilm.f32: the vectors of texts.json by sentence-transformers, as rows of 384 little-endian floats.

    python make.py MODEL

Was run once, with sentence-transformers 6.2.0, transformers 5.23.0 and torch 2.15.0 on a CPU, in 32 bits and one text at a
time, so that no padding has a part in it. MODEL is the folder of all-MiniLM-L6-v2 from tests/python/model.txt.
"""

import json
import pathlib
import sys

import numpy
import sentence_transformers

here = pathlib.Path(__file__).parent
texts = json.loads((here / "texts.json").read_text(encoding="utf-8"))
model = sentence_transformers.SentenceTransformer(sys.argv[1], device="cpu")
rows = [model.encode([text], batch_size=1)[0] for text in texts]
numpy.asarray(rows, dtype="<f4").tofile(here / "minilm.f32")
lengths = [len(model.tokenizer(text)["input_ids"]) for text in texts]
print(len(texts), "texts of", min(lengths), "to", max(lengths), "tokens")
