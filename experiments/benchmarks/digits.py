"""The networks that every tool puts on chips: a dense and a convolutional one, on scikit-learn's digits.

Cells are programmed with Gaussian noise of 5 % of g_max on both cells of a pair, cut at 0; inputs of every product
have 8 bits scaled by each vector's largest entry, and so have its outputs. The first layers are random, the last is
fitted by least squares, so that every tool finds the same weights without training.
"""

from typing import Any, NamedTuple

import numpy as np

__all__ = ["BITS", "SIGMA", "Networks", "networks", "patches"]

SIGMA = 0.05
BITS = 8
_NUM_TEST = 450  # a quarter of the 1,797 images


class Networks(NamedTuple):
    """Data and weights, float32.

    Attributes:
        images: Test images (450, 64) in [0, 1].
        labels: Their digits.
        dense: Weights of 64-128-10.
        convolutional: Kernels as matrices (window x inputs, outputs): 3 x 3 at stride 2 from 1 to 8 and from 8 to 16
            channels, then 64-10.
    """

    images: np.ndarray
    labels: np.ndarray
    dense: tuple[np.ndarray, ...]
    convolutional: tuple[np.ndarray, ...]


def patches(x: np.ndarray) -> np.ndarray:
    """Return what windows of 3 x 3 at stride 2 see: (images, size, size, channels) -> (images, size/2, size/2, 9, ...).

    One row and column of zeros are added at the end, which is padding "SAME" at this stride.
    """
    half = x.shape[1] // 2
    x = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    seen = [x[:, i : i + 2 * half : 2, j : j + 2 * half : 2] for i in range(3) for j in range(3)]
    return np.stack(seen, axis=3).reshape(len(x), half, half, -1)


def _features(x: np.ndarray, kernels: tuple[np.ndarray, ...]) -> np.ndarray:
    x = x.reshape(-1, 8, 8, 1)
    for kernel in kernels:
        x = np.maximum(patches(x) @ kernel, 0.0)
    return x.reshape(len(x), -1)


def networks() -> Networks:
    """Load the digits and make both networks; always the same."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    images, labels = (found.data / 16.0).astype(np.float32), found.target
    train, test = slice(_NUM_TEST, None), slice(_NUM_TEST)
    random = np.random.default_rng(0)
    first = (random.standard_normal((64, 128)) / 8.0).astype(np.float32)
    sizes = ((9, 8), (72, 16))
    kernels = tuple((random.standard_normal(size) / np.sqrt(size[0])).astype(np.float32) for size in sizes)
    heads = [
        np.linalg.lstsq(_with_ridge(features), _with_zeros(np.eye(10)[labels[train]], features.shape[1]), rcond=None)[0]
        for features in (np.maximum(images[train] @ first, 0.0), _features(images[train], kernels))
    ]
    dense, last = (head.astype(np.float32) for head in heads)
    return Networks(images[test], labels[test], (first, dense), (*kernels, last))


def _with_ridge(features: np.ndarray) -> np.ndarray:
    return np.concatenate([features, 5.0 * np.eye(features.shape[1])])


def _with_zeros(targets: np.ndarray, num_features: int) -> np.ndarray:
    return np.concatenate([targets, np.zeros((num_features, targets.shape[1]))])
