"""The boxed sentence encoder in sentence-transformers with its ONNX backend, against the runtime.

optimum-onnx 0.1.0 needs Transformers below 4.58, so this runs in an environment of its own, without `minialbert`.
"""

from __future__ import annotations

import numpy as np
import pytest

from minialbert_runtime import Model

pytest.importorskip(
    "optimum.onnxruntime", reason="needs optimum-onnx and a Transformers that it takes", exc_type=ImportError
)
sentence_transformers = pytest.importorskip("sentence_transformers")
pytest.importorskip("minialbert_models", reason="needs the models in the box")


def test_vectors_are_the_runtimes():
    words = ["the", "king", "lives", "in", "a", "large", "city", "by", "the", "sea", "alone"]
    random = np.random.default_rng(0)
    lengths = np.geomspace(1, 240, 100).round().astype(int)  # the encoder reads 256 tokens at once
    texts = [" ".join(random.choice(words, length)) for length in lengths]
    runtime = Model("minilm-5mb")
    encoder = sentence_transformers.SentenceTransformer(str(runtime.folder.path), backend="onnx")
    vectors = encoder.encode(texts)  # side by side, with padding
    np.testing.assert_allclose(vectors, runtime.embed(texts), rtol=0, atol=1e-6)
    assert encoder.max_seq_length == 256
