"""The mitigation baselines on a store of prompts: selective write-verify, column factors, learned compensation.

SWV, CxDNN and CorrectNet were made for the weights of neural networks. What is here is their idea carried over to
stored prompts and keys; how exactly the paper's authors carried it over is not known [I].
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from nvcim_jax import crossbar, devices, models, selection, tuning
from nvcim_jax.pipeline.config import Config
from nvcim_jax.pipeline.memory import Arrays, Correction, key_matrix, program_store, search, value_matrix
from nvcim_jax.pipeline.store import Store
from nvcim_jax.types import Key

__all__ = ["MITIGATIONS", "calibrated", "code_importance", "curvature", "program_selected"]

MITIGATIONS = ("none", "swv", "cxdnn", "correctnet")
"""No mitigation; selective write-verify; column factors; affine compensation of the scores."""


@partial(jax.jit, static_argnames=("num_probes", "num_examples"))
def curvature(
    key: Key,
    prompts: Float[Array, "prompts virtual width"],
    lm: models.LM,
    batch: tuning.Examples,
    weights: Float[Array, "prompts examples"],
    *,
    num_probes: int = 4,
    num_examples: int | None = 8,
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

    Returns:
        The estimate, of the shape of the prompts, nats.

    References:
        Z. Yan et al., "SWIM", arXiv:2202.08395 (ranking by second derivatives, there by a backward pass of its own);
        C. Bekas et al., "An estimator for the diagonal of a matrix", Applied Numerical Mathematics 57 (2007).
    """

    def one(key: Key, prompt: jax.Array, weights: jax.Array) -> jax.Array:
        chosen = jnp.argsort(-weights, stable=True)[:num_examples]
        part = jax.tree.map(lambda a: jnp.take(a, chosen, axis=0), batch)
        grad = jax.grad(lambda p: tuning.prompt_loss(p, lm, part, weights[chosen]))

        def probe(key: Key) -> jax.Array:
            z = jax.random.rademacher(key, prompt.shape, prompt.dtype)
            return z * jax.jvp(grad, (prompt,), (z,))[1]

        # Not over split keys: mapped twice, they count as used twice.
        return jax.lax.map(lambda i: probe(jax.random.fold_in(key, i)), jnp.arange(num_probes)).mean(axis=0)

    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(prompts)))
    return jax.vmap(one)(keys, prompts, weights)


def code_importance(store: Store, diagonal: Float[Array, "slots virtual width"]) -> Float[Array, "rows slots"]:
    """Carry the importance of a prompt's entries over to the values that are stored.

    |diag(J^T H J)| is taken as sum_i J_ic^2 |H_ii|, J the derivative of the decoder at zero: the off-diagonal part of H
    is left out.

    Args:
        store: The store, for its codec.
        diagonal: Second derivatives by the prompts' entries.

    Returns:
        Importance of each stored value, in the layout of `value_matrix`.
    """
    code = selection.encode(store.codec, store.prompts[0, 0])
    jacobian = jax.jacfwd(lambda z: selection.decode(store.codec, z))(jnp.zeros_like(code))
    found = jnp.einsum("svw,wc->svc", jnp.abs(diagonal), jnp.square(jacobian), precision="highest")
    return found.reshape(len(found), -1).T


def program_selected(
    key: Key,
    store: Store,
    importance: Float[Array, "rows slots"],
    device: devices.Device,
    *,
    config: Config,
    share: ArrayLike = 0.1,
    residual: ArrayLike = 0.3,
) -> Arrays:
    """Program the store with write-verify on the most important share of its values (SWV).

    Keys that are stored apart have no second derivative of a loss; of them the largest |values| are verified, the
    tie-break of the original.

    Args:
        key: Key of the chip.
        store: What is to be held.
        importance: Importance of the stored values, from `code_importance`.
        device: The memory cells.
        config: Options of the pipeline.
        share: Share of the values that is verified.
        residual: sigma after write-verify as a part of the device's: 0.1 -> 0.03 is usual [I].

    Returns:
        The arrays, at t = 0.
    """
    value_key, search_key = jax.random.split(key)
    write = partial(
        crossbar.program_verified, device=device, residual_sigma=residual * device.sigma, config=config.arrays
    )
    values = write(value_key, value_matrix(store), crossbar.selected(importance, share))
    if config.shares_arrays:
        return Arrays(values, None)
    keys = key_matrix(store, config=config)
    return Arrays(values, write(search_key, keys, crossbar.selected(jnp.abs(keys), share)))


def _affine(found: jax.Array, exact: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return gain and offset of each column that bring `found` nearest to `exact`."""
    mean, aim = found.mean(axis=0), exact.mean(axis=0)
    gain = crossbar.column_factors(found - mean[None, :], exact - aim[None, :])
    return gain, aim - gain * mean


def calibrated(
    key: Key,
    features: Float[Array, "queries tokens width"],
    store: Store,
    arrays: Arrays,
    device: devices.Device,
    *,
    config: Config,
    kind: str,
) -> Arrays:
    """Measure a chip with known queries and correct it digitally.

    `cxdnn`: one factor a column, for scores from the calibration queries and for stored values from one read of them.
    `correctnet`: factor and offset of the scores, and the factor of the values.

    Args:
        key: Key of the calibration's reads.
        features: Features of the calibration queries.
        store: What was to be held.
        arrays: The programmed chip.
        device: The memory cells.
        config: Options of the pipeline.
        kind: "cxdnn" or "correctnet".

    Returns:
        The arrays with their correction.
    """
    search_key, read_key, unused, unread = jax.random.split(key, 4)
    found = search(search_key, features, store, arrays, device, config=config, every=True)
    # The exact scores come from exact matrices of what was to be held: chip and reference see the same empty slots.
    exact_arrays = program_store(unused, store, None, config=config)
    exact = search(unread, features, store, exact_arrays, None, config=config, every=True)
    stored = crossbar.read_back(read_key, arrays.values)
    value_gain = crossbar.column_factors(stored, value_matrix(store))
    if kind == "cxdnn":
        gain = crossbar.column_factors(found, exact)
        return arrays._replace(correction=Correction(gain, jnp.zeros_like(gain), value_gain))
    return arrays._replace(correction=Correction(*_affine(found, exact), value_gain))
