"""The codec: principal components against scikit-learn, training through noise, contracts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import selection

WIDTH, CODE = 12, 3


def _tokens(num: int = 200, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    spectrum = 2.0 ** -np.arange(WIDTH)
    rotation = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    return (rng.normal(size=(num, WIDTH)) * spectrum @ rotation + rng.normal(size=WIDTH)).astype(np.float32)


def _pca_error(x: np.ndarray, code: int) -> float:
    decomposition = pytest.importorskip("sklearn.decomposition")
    return 1 - float(decomposition.PCA(code).fit(x).explained_variance_ratio_.sum())


def _error(codec: selection.Codec, x: np.ndarray) -> float:
    back = np.asarray(selection.decode(codec, selection.encode(codec, jnp.asarray(x))))
    return float(((x - back) ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum())


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [(), (8, 7)])
def test_principal_components_have_scikit_learns_error_whatever_the_layers(
    hidden: tuple[int, ...], key: jax.Array
) -> None:
    x = _tokens()
    key_init, key_start = jax.random.split(key)
    codec = selection.codec_init(key_init, WIDTH, code=CODE, hidden=hidden)
    codec = jax.jit(selection.codec_pca)(key_start, codec, jnp.asarray(x))
    assert [w.shape for w, _ in codec.encoder] == [w.shape[::-1] for w, _ in codec.decoder][::-1]
    assert _error(codec, x) == pytest.approx(_pca_error(x, CODE), rel=1e-3)


@pytest.mark.parametrize("start", ["pca", "random"])
def test_linear_codec_is_trained_to_the_error_of_principal_components(start: str, key: jax.Array) -> None:
    x = _tokens()
    key_init, key_fit = jax.random.split(key)
    config = selection.FitConfig(num_steps=1500, learning_rate=1e-2, batch=None, start=start)
    codec = selection.codec_init(key_init, WIDTH, code=CODE)
    trained, info = selection.fit(key_fit, codec, jnp.asarray(x), config=config)
    reference = _pca_error(x, CODE)
    assert float(info.relative_error) == pytest.approx(_error(trained, x), rel=1e-3)
    # nothing linear is better; both starts come within two per cent
    assert reference * 0.999 <= float(info.relative_error) <= reference * 1.02
    assert info.losses.shape == (1500,)


@pytest.mark.slow
def test_hidden_layers_do_no_worse_than_principal_components(key: jax.Array) -> None:
    # a curve that bends out of its best line: one component leaves what a non-linear code of one can bring back
    t = jax.random.normal(jax.random.fold_in(key, 0), (400, 1))
    x = np.asarray(jnp.concatenate([t, jnp.abs(t)], axis=1))
    codec = selection.codec_init(jax.random.fold_in(key, 1), 2, code=1, hidden=(16,))
    config = selection.FitConfig(num_steps=800, learning_rate=1e-2, batch=None)
    _, info = selection.fit(jax.random.fold_in(key, 2), codec, jnp.asarray(x), config=config)
    assert float(info.losses[0]) == pytest.approx(_pca_error(x, 1), rel=1e-3)
    assert float(info.relative_error) < 0.2 * _pca_error(x, 1)


def _noise(sigma: jax.Array, key: jax.Array, z: jax.Array) -> jax.Array:
    return z + sigma * jax.random.normal(key, z.shape)


def test_training_through_noise_reaches_the_best_linear_code_for_it(key: jax.Array) -> None:
    # noise of a fixed size on a code: the encoder can grow until it does not matter
    x = _tokens()
    key_init, key_plain, key_noisy = jax.random.split(key, 3)
    codec = selection.codec_init(key_init, WIDTH, code=CODE)
    perturb = jax.tree_util.Partial(_noise, jnp.array(0.5))
    still = selection.FitConfig(num_steps=0)
    _, before = selection.fit(key_plain, codec, jnp.asarray(x), config=still, perturb=perturb)
    config = selection.FitConfig(num_steps=400, learning_rate=2e-2, batch=None)
    _, after = selection.fit(key_noisy, codec, jnp.asarray(x), config=config, perturb=perturb)
    # orthonormal decoder at the start: the noise adds CODE sigma^2 / WIDTH to a mean square of 1
    expected = float(before.relative_error) + CODE * 0.25 / WIDTH
    error = expected * 5 * np.sqrt(2 / (200 * CODE))
    assert float(before.noisy_relative_error) == pytest.approx(expected, abs=error)
    assert float(after.noisy_relative_error) < 0.5 * float(before.noisy_relative_error)


def test_noise_that_holds_arrays_is_swept_without_a_second_trace(key: jax.Array) -> None:
    traces = []

    def noise(sigma: jax.Array, key: jax.Array, z: jax.Array) -> jax.Array:
        traces.append(1)
        return _noise(sigma, key, z)

    x = jnp.asarray(_tokens(20))
    codec = selection.codec_init(jax.random.fold_in(key, 0), WIDTH, code=CODE)
    config = selection.FitConfig(num_steps=2, batch=8)
    count = []
    for i, sigma in enumerate((0.0, 0.1, 0.2)):
        perturb = jax.tree_util.Partial(noise, jnp.array(sigma))
        selection.fit(jax.random.fold_in(key, i + 1), codec, x, config=config, perturb=perturb)
        count.append(len(traces))
    assert count[0] == count[1] == count[2] > 0


def test_identity_changes_nothing_and_can_be_fitted(key: jax.Array) -> None:
    x = jnp.asarray(_tokens(20))
    codec = selection.codec_identity()
    assert selection.encode(codec, x) is x
    assert selection.decode(codec, x) is x
    fitted, info = selection.fit(key, codec, x, config=selection.FitConfig(num_steps=3))
    assert fitted.encoder == ()
    assert float(info.relative_error) == 0.0


def test_a_start_at_the_given_codec_keeps_it(key: jax.Array) -> None:
    x = jnp.asarray(_tokens(20))
    codec = selection.codec_init(jax.random.fold_in(key, 0), WIDTH, code=CODE, hidden=(4,))
    config = selection.FitConfig(num_steps=0, start="codec")
    fitted, info = selection.fit(jax.random.fold_in(key, 1), codec, x, config=config)
    for left, right in zip(jax.tree.leaves(fitted), jax.tree.leaves(codec), strict=True):
        np.testing.assert_array_equal(left, right)
    assert info.losses.shape == (0,)


def test_equal_tokens_are_harmless(key: jax.Array) -> None:
    codec = selection.codec_init(jax.random.fold_in(key, 0), 4, code=2)
    fitted, info = selection.fit(
        jax.random.fold_in(key, 1), codec, jnp.ones((5, 4)), config=selection.FitConfig(num_steps=2)
    )
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(fitted))
    assert float(info.relative_error) < 1e-6


@pytest.mark.slow
def test_contracts_of_the_codec(key: jax.Array) -> None:
    codecs = [selection.codec_init(jax.random.fold_in(key, i), WIDTH, code=CODE, hidden=(7,)) for i in range(2)]
    x = jnp.asarray(_tokens(8)).reshape(2, 4, WIDTH)

    def there_and_back(codec: selection.Codec, x: jax.Array) -> jax.Array:
        return selection.decode(codec, selection.encode(codec, x))

    eager = there_and_back(codecs[0], x)
    np.testing.assert_allclose(jax.jit(there_and_back)(codecs[0], x), eager, rtol=1e-5, atol=1e-5)
    rows = jax.vmap(there_and_back, in_axes=(None, 0))(codecs[0], x)
    np.testing.assert_allclose(rows, eager, rtol=1e-5, atol=1e-5)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *codecs)
    both = jax.vmap(there_and_back, in_axes=(0, None))(stacked, x)
    expected = jnp.stack([there_and_back(codec, x) for codec in codecs])
    np.testing.assert_allclose(both, expected, rtol=1e-5, atol=1e-5)
    slope = jax.grad(lambda codec: jnp.square(there_and_back(codec, x)).sum())(codecs[0])
    for leaf in jax.tree.leaves(slope):
        assert bool(jnp.isfinite(leaf).all())
        assert float(jnp.abs(leaf).max()) > 0
    assert selection.encode(codecs[0], x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_bad_input_is_named(key: jax.Array) -> None:
    keys = jax.random.split(key, 8)
    codec = selection.codec_init(keys[0], 6, code=2)
    with pytest.raises(ValueError, match=r"`code` must be an integer of at least 1 and at most 6, but is 48"):
        selection.codec_init(keys[1], 6)
    with pytest.raises(ValueError, match=r"`x` must have shape \(..., width\) = \(..., 6\), but has shape \(3,\)"):
        selection.encode(codec, jnp.ones(3))
    with pytest.raises(ValueError, match=r"`z` must have shape \(..., code\) = \(..., 2\)"):
        selection.decode(codec, jnp.ones((4, 3)))
    with pytest.raises(ValueError, match=r"`start` must be one of .* Did you mean 'random'"):
        selection.FitConfig(start="randon")
    with pytest.raises(ValueError, match=r"`tokens` must be finite"):
        selection.fit(keys[2], codec, jnp.full((3, 6), jnp.inf), config=selection.FitConfig())
    narrow = selection.codec_init(keys[3], 6, code=2, hidden=(3,))
    with pytest.raises(ValueError, match=r"`hidden` must be at least twice the code \(4\)"):
        selection.fit(keys[4], narrow, jnp.ones((3, 6)), config=selection.FitConfig())
