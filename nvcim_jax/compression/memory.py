"""What the matrices of the blocks take: as they lie in memory now, and as a policy would have them."""

from typing import Any, NamedTuple

import jax
import numpy as np

from nvcim_jax.compression.blocks import matrices
from nvcim_jax.compression.policy import Policy, check_policy
from nvcim_jax.models import LM
from nvcim_jax.signature import checked

__all__ = ["Memory", "memory"]


class Memory(NamedTuple):
    """Count the bytes of the matrices of each block (blocks,).

    Attributes:
        float32: As floats.
        held: As they are held: each code in a byte, or after `pack` in the bits of the block that has most; codes of
            pruned weights as well.
        policy: As the policy says: b bits for a weight that is left, one that tells which are (where any went), and 16
            for the scale of each output.
    """

    float32: Any
    held: Any
    policy: Any


@checked
def memory(lm: LM, policy: Policy) -> Memory:
    """Return what the matrices of each block take in bytes, in three ways of counting.

    Args:
        lm: The model, compressed or not.
        policy: The policy.

    Example:
        >>> import jax
        >>> from nvcim_jax import compression, models
        >>> config = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, mlp_width=48)
        >>> lm, policy = models.init(jax.random.key(0), config=config), compression.uniform(2, bits=4, sparsity=0.5)
        >>> small = compression.apply(lm, policy, method="magnitude")
        >>> found = compression.memory(small, policy)  # 8,704 weights a block, 256 outputs, 240 inputs
        >>> int(found.float32[0]), int(found.held[0]), int(found.policy[0])
        (34816, 10688, 3776)
    """
    own = check_policy(policy, lm.config.num_layers)
    names = matrices(lm)
    shapes = [lm.params["layers"][name].shape[1:] for name in names]
    weights, outputs = sum(inputs * out for inputs, out in shapes), sum(out for _, out in shapes)
    held = sum(leaf.nbytes for name in names for leaf in jax.tree.leaves(lm.params["layers"][name]))
    each = np.full(lm.config.num_layers, 1.0)
    bits = weights * ((1.0 - own.sparsity) * own.bits + (own.sparsity > 0)) + 16.0 * outputs
    return Memory(each * 4 * weights, each * held / lm.config.num_layers, bits / 8)
