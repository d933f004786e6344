"""The mitigation baselines on a store of prompts: selective write-verify, column factors, learned compensation.

SWV, CxDNN and CorrectNet were made for the weights of neural networks. What is here is their idea carried over to
stored prompts and keys; how exactly the paper's authors carried it over is not known [I].
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from nvcim_jax import checks, crossbar, devices, pipeline, selection, tuning
from nvcim_jax.models import LM
from nvcim_jax.pipeline import Config, Memory, Store
from nvcim_jax.signature import checked
from nvcim_jax.tuning import Adapter
from nvcim_jax.types import Key

__all__ = ["calibrated", "code_importance", "corrected_memory", "curvature", "program_selected"]


@checks.frozen_config
class _Probing:
    """How many draws and examples a curvature is estimated from."""

    num_probes: int
    num_examples: int | None


@checked
def curvature(
    key: Key,
    prompts: Float[Array, "prompts virtual width"],
    lm: LM,
    batch: tuning.Examples,
    weights: Float[Array, "prompts examples"],
    *,
    num_probes: int = 4,
    num_examples: int | None = 8,
    adapter: Adapter | None = None,
) -> Float[Array, "prompts virtual width"]:
    """Return the diagonal of the second derivative of each prompt's loss, by which SWV ranks what to verify.

    diag(H) = E[z * (H z)] with z of random signs (Hutchinson's estimator), H z by one derivative of the gradient.

    Args:
        key: Key of the probes.
        prompts: Tuned prompts.
        lm: The language model.
        batch: Texts and answers.
        weights: How much each example counts for each prompt.
        num_probes: Draws of z.
        num_examples: Examples of the largest weight that are looked at for each prompt; None for all.
        adapter: What the rows belong to; None: prompts.

    Returns:
        The estimate, of the shape of the prompts, nats.

    Example:
        >>> from nvcim_jax import models
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64)
        >>> lm = models.init(jax.random.key(0), config=layout)
        >>> texts, weights = tuning.examples([[1, 5, 6], [1, 7]], [[8, 2], [9, 2]]), jnp.ones((3, 2))
        >>> look = lambda prompts: curvature(jax.random.key(1), prompts, lm, texts, weights)
        >>> jax.eval_shape(look, jnp.ones((3, 2, 32))).shape  # a number for each entry of 3 prompts
        (3, 2, 32)

    References:
        Z. Yan et al., "SWIM", arXiv:2202.08395 (ranking by second derivatives, there by a backward pass of its own);
        C. Bekas et al., "An estimator for the diagonal of a matrix", Applied Numerical Mathematics 57 (2007).
    """
    probing = _Probing(num_probes=num_probes, num_examples=num_examples)
    chosen = tuning.as_adapter(tuning.prompt(prompts.shape[1]) if adapter is None else adapter)
    return _curvature(key, prompts, lm, batch._replace(words=None), weights, probing, chosen)


@jax.jit
def _curvature(
    key: Key,
    prompts: jax.Array,
    lm: LM,
    batch: tuning.Examples,
    weights: jax.Array,
    probing: _Probing,
    adapter: Adapter,
) -> jax.Array:
    def one(key: Key, prompt: jax.Array, weights: jax.Array) -> jax.Array:
        chosen = jnp.argsort(-weights, stable=True)[: probing.num_examples]
        part = jax.tree.map(lambda a: jnp.take(a, chosen, axis=0), batch)
        counts = weights[chosen]
        grad = jax.grad(lambda p: tuning.answer_loss(adapter.from_rows(p), lm, part, counts, adapter=adapter))

        def probe(key: Key) -> jax.Array:
            z = jax.random.rademacher(key, prompt.shape, prompt.dtype)
            return z * jax.jvp(grad, (prompt,), (z,))[1]

        # Not over split keys: mapped twice, they count as used twice.
        probes = jnp.arange(probing.num_probes)
        return jax.lax.map(lambda i: probe(jax.random.fold_in(key, i)), probes).mean(axis=0)

    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(prompts)))
    return jax.vmap(one)(keys, prompts, weights)


@checked
def code_importance(store: Store, diagonal: Float[Array, "slots virtual width"]) -> Float[Array, "rows slots"]:
    """Return the importance of a prompt's entries, carried over to the values that are stored.

    |diag(J^T H J)| is taken as sum_i J_ic^2 |H_ii|, J the derivative of the decoder at zero: the off-diagonal part of H
    is left out.

    Args:
        store: The store, for its codec.
        diagonal: Second derivatives by the prompts' entries.

    Returns:
        Importance of each stored value, in the layout of `value_matrix`.

    Example:
        >>> from nvcim_jax import models
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64)
        >>> config = pipeline.Config(capacity=3, num_virtual=2, codec="identity")
        >>> store = pipeline.init(jax.random.key(1), models.init(jax.random.key(0), config=layout), config=config).store
        >>> found = code_importance(store, jnp.full((3, 2, 32), -2.0))
        >>> found.shape, float(found.min()), float(found.max())  # where a prompt is its own code: |H_ii|
        ((64, 3), 2.0, 2.0)
    """
    code = selection.encode(store.codec, store.prompts[0, 0])
    jacobian = jax.jacfwd(lambda z: selection.decode(store.codec, z))(jnp.zeros_like(code))
    found = jnp.einsum("svw,wc->svc", jnp.abs(diagonal), jnp.square(jacobian), precision="highest")
    return found.reshape(len(found), -1).T


@checked
def program_selected(
    key: Key,
    store: Store,
    importance: Float[Array, "rows slots"],
    device: devices.Device,
    *,
    config: Config,
    arrays: crossbar.Config,
    share: ArrayLike = 0.1,
    residual: ArrayLike = 0.3,
) -> Any:
    """Program the store with write-verify on the most important share of its values (SWV).

    Keys that are stored apart have no second derivative of a loss; of them the largest |values| are verified, the
    tie-break of the original.

    Args:
        key: Key of the chip.
        store: What is to be held.
        importance: Importance of the stored values, from `code_importance`.
        device: The memory cells.
        config: Options of the pipeline.
        arrays: Options of the crossbars.
        share: Share of the values that is verified.
        residual: sigma after write-verify as a part of the device's: 0.1 -> 0.03 is usual [I].

    Returns:
        The arrays, at t = 0, as `pipeline.crossbar_memory` holds them.

    Example:
        >>> from nvcim_jax import models
        >>> layout = models.Config(vocab_size=32, width=8, num_layers=1, num_heads=4, mlp_width=16)
        >>> config = pipeline.Config(capacity=1, num_virtual=1, codec="identity")
        >>> store = pipeline.init(jax.random.key(0), models.init(jax.random.key(1), config=layout), config=config).store
        >>> store = store._replace(prompts=jnp.ones((1, 1, 8)), filled=jnp.ones(1, bool))
        >>> place = {"config": config, "arrays": crossbar.Config(rows=8, cols=8, weight_bits=8, cell_bits=2)}
        >>> device = devices.get("RRAM4", sigma=0.1)
        >>> key, every = jax.random.key(2), {"share": 1.0, "residual": 0.0}
        >>> held = program_selected(key, store, jnp.ones((8, 1)), device, **place, **every)
        >>> print(f"{jnp.std(crossbar.read_back(jax.random.key(3), held.values)):.4f}")  # all verified: no noise
        0.0000
    """
    value_key, search_key = jax.random.split(key)
    exact = pipeline.matrices(store, config=config)

    def write(key: Key, matrix: jax.Array, importance: jax.Array) -> crossbar.Chip:
        chosen, left = crossbar.selected(importance, share), residual * device.sigma
        return crossbar.program_verified(key, matrix, chosen, device, left, config=arrays)

    values = write(value_key, exact.values, importance)
    keys = None if exact.keys is None else write(search_key, exact.keys, jnp.abs(exact.keys))
    return exact._replace(values=values, keys=keys)


class Corrected(NamedTuple):
    """Hold what a memory holds, with digital corrections of what it gives.

    Attributes:
        held: What the memory holds.
        gain: Factor on the products of each column (columns,).
        offset: Added to them afterwards (columns,).
        value_gain: Factor on the values read from each column (columns,).
    """

    held: Any
    gain: jax.Array
    offset: jax.Array
    value_gain: jax.Array


def _program(memory: Memory, key: Key, matrix: jax.Array) -> Corrected:
    ones = jnp.ones(matrix.shape[1])
    return Corrected(memory.program(key, matrix), ones, jnp.zeros_like(ones), ones)


def _multiply(memory: Memory, key: Key, x: jax.Array, held: Corrected) -> jax.Array:
    return memory.multiply(key, x, held.held) * held.gain[None, :] + held.offset[None, :]


def _read(memory: Memory, key: Key, held: Corrected) -> jax.Array:
    return memory.read(key, held.held) * held.value_gain[None, :]


@checked
def corrected_memory(memory: Memory) -> Memory:
    """Return a memory whose columns have digital corrections, none until `calibrated` sets them.

    Args:
        memory: The memory.

    Example:
        >>> memory = corrected_memory(pipeline.exact_memory())
        >>> held = memory.program(jax.random.key(0), jnp.array([[1.0, 2.0]]))
        >>> corrected = held._replace(gain=jnp.array([1.0, 1.5]))
        >>> print(*(memory.multiply(jax.random.key(1), jnp.array([[3.0]]), one) for one in (held, corrected)))
        [[3. 6.]] [[3. 9.]]
    """
    return Memory(Partial(_program, memory), Partial(_multiply, memory), Partial(_read, memory))


def _affine(found: jax.Array, exact: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return gain and offset of each column that bring `found` nearest to `exact`."""
    mean, aim = found.mean(axis=0), exact.mean(axis=0)
    gain = crossbar.column_factors(found - mean[None, :], exact - aim[None, :])
    return gain, aim - gain * mean


@checked
def calibrated(
    key: Key,
    features: Float[Array, "queries tokens width"],
    store: Store,
    arrays: Any,
    memory: Memory,
    *,
    config: Config,
    affine: bool,
) -> Any:
    """Measure a chip with known queries and correct it digitally: CxDNN, or CorrectNet with `affine`.

    CxDNN: one factor a column, for scores from the calibration queries and for stored values from one read of them.
    CorrectNet: factor and offset of the scores, and the factor of the values.

    Args:
        key: Key of the calibration's reads.
        features: Features of the calibration queries.
        store: What was to be held.
        arrays: What `memory` holds of it.
        memory: The memory.
        config: Options of the pipeline.
        affine: Whether scores get an offset, too.

    Returns:
        The arrays with their corrections, for `corrected_memory(memory)`.

    Example:
        >>> from nvcim_jax import models
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64)
        >>> config = pipeline.Config(capacity=1, num_virtual=1, codec="identity", keys="prompt", key_unit=False)
        >>> config = config.changed(search={"measure": "mips"})
        >>> store = pipeline.init(jax.random.key(1), models.init(jax.random.key(0), config=layout), config=config).store
        >>> store = store._replace(prompts=jnp.ones((1, 1, 32)), filled=jnp.ones(1, bool))
        >>> arrays, exact = pipeline.matrices(store, config=config), pipeline.exact_memory()
        >>> faded, known = arrays._replace(values=0.8 * arrays.values), jnp.ones((2, 1, 32))  # a chip that lost a fifth
        >>> found = calibrated(jax.random.key(2), known, store, faded, exact, config=config, affine=False).values
        >>> print(f"{found.gain[0]:.3f} {found.value_gain[0]:.3f}")
        1.250 1.250
    """
    search_key, read_key, _, unread = jax.random.split(key, 4)
    found = pipeline.search(search_key, features, store, arrays, memory, config=config, every=True)
    # The exact scores come from exact matrices of what was to be held: chip and reference see the same empty slots.
    aim = pipeline.matrices(store, config=config)
    exact = pipeline.search(unread, features, store, aim, pipeline.exact_memory(), config=config, every=True)
    value_gain = crossbar.column_factors(memory.read(read_key, arrays.values), aim.values)
    factors = crossbar.column_factors(found, exact)
    gain, offset = _affine(found, exact) if affine else (factors, jnp.zeros_like(factors))
    keys = None if arrays.keys is None else Corrected(arrays.keys, gain, offset, jnp.ones_like(gain))
    return arrays._replace(values=Corrected(arrays.values, gain, offset, value_gain), keys=keys)
