"""Word vectors and sentence clusters from co-occurrence, in NumPy: a start for the embedding and for pseudo-classes.

Vectors are the leading singular vectors of the positive pointwise mutual information of tokens (Levy and Goldberg,
Neural word embedding as implicit matrix factorization, NIPS 2014); the factorisation is the randomised one of
Halko, Martinsson and Tropp (arXiv 0909.4061, algorithm 4.4).
"""

import numpy as np

__all__ = ["cluster", "document_frequency", "inverse_frequency", "sentence_vectors", "word_vectors"]


def document_frequency(sentences: list[np.ndarray], vocab_size: int) -> np.ndarray:
    """Return in how many sentences each token stands, shape (vocab_size,)."""
    once = np.concatenate([np.unique(ids) for ids in sentences])
    return np.bincount(once, minlength=vocab_size)


def inverse_frequency(sentences: list[np.ndarray], vocab_size: int) -> np.ndarray:
    """Return log((n + 1) / (df + 1)) of each token, shape (vocab_size,)."""
    frequency = document_frequency(sentences, vocab_size)
    return np.log((len(sentences) + 1) / (frequency + 1)).astype(np.float32)


def mutual_information(sentences: list[np.ndarray], vocab_size: int, window: int = 5) -> np.ndarray:
    """Return max(0, log p(a, b) / (p(a) p(b)^0.75)) of tokens at most `window` apart, weighted 1 / distance."""
    gap = np.full(window, -1)
    stream = np.concatenate([part for ids in sentences for part in (ids, gap)])
    counts = np.zeros(vocab_size * vocab_size, np.float64)
    for distance in range(1, window + 1):
        left, right = stream[:-distance], stream[distance:]
        inside = (left >= 0) & (right >= 0)
        pairs = left[inside] * vocab_size + right[inside]
        counts += np.bincount(pairs, minlength=counts.size) / distance
    joint = counts.reshape(vocab_size, vocab_size)
    joint = joint + joint.T
    rows = joint.sum(1) + 1.0
    context = rows**0.75 / (rows**0.75).sum()
    with np.errstate(divide="ignore"):
        information = np.log(joint / (rows[:, None] * context[None, :]))
    return np.maximum(information, 0.0).astype(np.float32)


def word_vectors(sentences: list[np.ndarray], vocab_size: int, width: int, *, seed: int) -> np.ndarray:
    """Return unit vectors of all tokens, shape (vocab_size, width); tokens never seen get random ones."""
    generator = np.random.default_rng(seed)
    matrix = mutual_information(sentences, vocab_size)
    basis = matrix @ generator.standard_normal((vocab_size, width + 16), np.float32)
    for _ in range(3):
        basis, _ = np.linalg.qr(basis)
        basis = matrix @ (matrix.T @ basis)
    basis, _ = np.linalg.qr(basis)
    left, values, _ = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    vectors = (basis @ left[:, :width]) * np.sqrt(values[:width])
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unseen = norms[:, 0] < 1e-6
    vectors[unseen] = generator.standard_normal((int(unseen.sum()), width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def sentence_vectors(sentences: list[np.ndarray], vectors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the unit weighted mean of the vectors of each sentence's tokens, shape (sentences, width)."""
    weighted = vectors * weights[:, None]
    means = np.stack([weighted[ids].sum(0) for ids in sentences])
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-6)


def cluster(points: np.ndarray, num_clusters: int, *, seed: int, num_rounds: int = 8) -> np.ndarray:
    """Return the cluster of each unit vector by spherical k-means, shape (points,)."""
    generator = np.random.default_rng(seed)
    centres = points[generator.choice(len(points), num_clusters, replace=False)]
    nearest = np.zeros(len(points), np.int64)
    for _ in range(num_rounds):
        nearest = np.argmax(points @ centres.T, axis=1)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, points)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(norms > 0, sums / np.maximum(norms, 1e-6), centres)
    return nearest
