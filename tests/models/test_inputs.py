"""What surrounds a text changes nothing: batches, padding, prefixes, windows; and what does not fit is named."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvcim_jax import models, tuning

SIZES = {"vocab_size": 64, "width": 16, "num_layers": 2, "num_heads": 2, "mlp_width": 16, "eos_ids": (2,)}
ROPE = models.Config(**SIZES)
WINDOW = models.Config(**SIZES, window=4, family="mistral")
MIXED = models.Config(**SIZES, window=3, sliding=(True, False), rope_local=models.Rope(theta=100.0))
LEARNED = models.Config(
    **SIZES, positions="learned", max_tokens=32, norm="layer", gated=False, activation="gelu_tanh", family="gpt2"
)
SHORT = dataclasses.replace(LEARNED, max_tokens=16)
KINDS = {"rope": ROPE, "window": WINDOW, "mixed": MIXED, "learned": LEARNED, "short": SHORT}
EVERY = pytest.mark.parametrize("kind", ["rope", "window", "mixed", "learned"])
ANSWERS = models.candidates([[7], [8, 9]], end=2)
PAST = 5


@functools.cache
def _lm(kind: str) -> models.LM:
    return models.init(jax.random.key(0), config=KINDS[kind], scale=0.4)


def _prefix(kind: str) -> models.KeysValues:
    """Return keys and values of five tokens."""
    config = KINDS[kind]
    shape = (2, config.num_layers, config.kv_heads, PAST, config.head_width)
    return models.KeysValues(*jax.random.normal(jax.random.key(9), shape))


@functools.cache
def _runs(kind: str):
    lm = _lm(kind)
    return tuple(
        jax.jit(run)
        for run in (
            lambda inputs: models.forward(lm, inputs)[0],
            lambda inputs: models.rank(lm, inputs, ANSWERS),
            lambda inputs: models.generate_tokens(jax.random.key(0), lm, inputs, max_new_tokens=3)[0],
        )
    )


def _batch(kind: str, rows: list[list[int]], pads: list[int], size: int, prefix: bool) -> models.Inputs:
    """Lay out texts, the i-th with `pads[i]` tokens of padding before it and the rest behind."""
    ids, mask = np.full((len(rows), size), 3, np.int32), np.zeros((len(rows), size), bool)
    for i, (row, pad) in enumerate(zip(rows, pads, strict=True)):
        ids[i, pad : pad + len(row)], mask[i, pad : pad + len(row)] = row, True
    given = _prefix(kind) if prefix else None
    return models.Inputs(models.embed(_lm(kind), jnp.asarray(ids)), jnp.asarray(mask), prefix=given)


@functools.cache
def _alone(kind: str, row: tuple[int, ...], prefix: bool) -> tuple[np.ndarray, ...]:
    inputs = _batch(kind, [list(row)], [0], len(row), prefix)._replace(mask=None)
    return tuple(np.asarray(run(inputs))[0] for run in _runs(kind))


ROWS = ((5, 6, 7), (20, 21, 22, 23, 24, 25, 26))


@pytest.mark.slow
@EVERY
@settings(max_examples=8, deadline=None, derandomize=True)
@given(pads=st.tuples(st.integers(0, 5), st.integers(0, 1)), prefix=st.booleans())
def test_a_text_is_what_it_is_alone(kind, pads, prefix) -> None:
    inputs = _batch(kind, [list(row) for row in ROWS], list(pads), 8, prefix)
    logits, ranks, tokens = (np.asarray(run(inputs)) for run in _runs(kind))
    for i, (row, pad) in enumerate(zip(ROWS, pads, strict=True)):
        wanted = _alone(kind, row, prefix)
        np.testing.assert_allclose(logits[i, pad : pad + len(row)], wanted[0], atol=2e-5)
        np.testing.assert_allclose(ranks[i], wanted[1], atol=2e-5)
        np.testing.assert_array_equal(tokens[i], wanted[2])


@pytest.mark.slow
@EVERY
def test_a_window_behind_a_prefix_reaches_as_far_as_positions_do(kind) -> None:
    # The keys of a text's first five tokens as a prefix: the rest is what it is in the whole text, padded or not.
    lm, row = _lm(kind), [5, 6, 7, 8, 9, 10, 11, 12, 13]
    x = models.embed(lm, jnp.asarray([row]))
    wanted, _ = models.forward(lm, x)
    _, info = models.forward(lm, x[:, :PAST], keep_keys_values=True)
    pad = jnp.zeros((1, 3, 16))
    mask = jnp.array([[False] * 3 + [True] * 4])
    given = models.Inputs(jnp.concatenate([pad, x[:, PAST:]], axis=1), mask, prefix=info.keys_values)
    found, _ = models.forward(lm, given)
    np.testing.assert_allclose(found[:, 3:], wanted[:, PAST:], atol=2e-5)
    ranked = models.rank(lm, given, ANSWERS)
    np.testing.assert_allclose(ranked, models.rank(lm, x, ANSWERS), atol=2e-5)
    tokens, _ = models.generate_tokens(jax.random.key(0), lm, given, max_new_tokens=3)
    np.testing.assert_array_equal(tokens, models.generate_tokens(jax.random.key(0), lm, x, max_new_tokens=3)[0])


def test_prompts_stand_before_texts_padded_on_either_side() -> None:
    x = jnp.arange(1.0, 9.0).reshape(2, 4, 1)
    mask = jnp.array([[True, True, False, False], [False, False, True, True]])
    both = models.prepend(jnp.array([[10.0], [11.0]]), models.Inputs(x, mask))
    assert both.x[0, :4, 0].tolist() == [10, 11, 1, 2]
    assert both.mask[0].tolist() == [True] * 4 + [False] * 2
    assert both.x[1, 2:, 0].tolist() == [10, 11, 7, 8]
    assert both.mask[1].tolist() == [False] * 2 + [True] * 4


def _embedded(kind: str, size: int) -> jax.Array:
    return models.embed(_lm(kind), jnp.full((1, size), 5))


@pytest.mark.slow
@pytest.mark.parametrize(
    "run",
    [
        lambda lm: models.forward(lm, _embedded("short", 20)),
        lambda lm: models.hidden(lm, _embedded("short", 20)),
        lambda lm: models.loss(lm, _embedded("short", 20), jnp.full((1, 20), 5)),
        lambda lm: models.rank(lm, _embedded("short", 15), ANSWERS),
        lambda lm: jax.jit(models.rank)(lm, _embedded("short", 16), ANSWERS),
        lambda lm: models.generate_tokens(jax.random.key(0), lm, _embedded("short", 12), max_new_tokens=10),
        jax.jit(lambda lm: models.forward(lm, models.Inputs(_embedded("short", 12), prefix=_prefix("short")))),
        lambda lm: tuning.answer_loss(
            jnp.zeros((8, 16)), lm, tuning.examples([[5] * 16], [[7]]), jnp.ones(1), adapter=tuning.prompt(8)
        ),
        lambda lm: tuning.tune(
            jax.random.key(0), jnp.zeros((8, 16)), lm, tuning.examples([[5] * 16], [[7]]), adapter=tuning.prompt(8)
        ),
    ],
)
def test_learned_positions_are_not_outrun(run) -> None:
    with pytest.raises(ValueError, match="stay within the 16 learned positions of the model"):
        run(_lm("short"))


@pytest.mark.slow
def test_what_fits_learned_positions_is_not_refused_for_its_padding() -> None:
    lm = _lm("short")
    x, mask = _embedded("short", 32), jnp.arange(32)[None, :] >= 20
    found, _ = models.forward(lm, models.Inputs(x, mask))
    np.testing.assert_allclose(found[:, 20:], models.forward(lm, x[:, 20:])[0], atol=2e-5)


@pytest.mark.parametrize("ids", [[[5, 64]], [[-1, 5]]])
def test_a_token_without_a_row_is_refused_and_traced_it_is_not_a_number(ids) -> None:
    lm, ids = _lm("rope"), jnp.asarray(ids)
    with pytest.raises(ValueError, match=r"`token_ids` must lie in \[0, 64\), the rows of the embedding"):
        models.embed(lm, ids)
    found = jax.jit(models.embed)(lm, ids)
    np.testing.assert_array_equal(jnp.isnan(found).any(-1), (ids < 0) | (ids > 63))


def test_other_indices_without_a_row_are_refused() -> None:
    lm, x = _lm("rope"), _embedded("rope", 4)
    with pytest.raises(ValueError, match="`labels` must lie"):
        models.loss(lm, x, jnp.array([[5, 5, 64, 5]]))
    assert bool(jnp.isnan(jax.jit(models.loss)(lm, x, jnp.array([[5, 5, 64, 5]]))[0]))
    with pytest.raises(ValueError, match="`at` must lie"):
        models.hidden(lm, x, at=jnp.array([[4]]))
    with pytest.raises(ValueError, match="`answers` must lie"):
        models.rank(lm, x, models.candidates([[64]], end=2))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda lm, x: models.prepend(jnp.zeros((2, 15)), x), r"`prompt` must have shape .* \(2, 16\)"),
        (lambda lm, x: models.prepend(jnp.zeros((3, 2, 16)), x), "`prompt` must have shape"),
        (
            lambda lm, x: tuning.answer_loss(
                jnp.zeros((2, 15)), lm, tuning.examples([[5]], [[7]]), jnp.ones(1), adapter=tuning.prompt(2)
            ),
            "`prompt` must have shape",
        ),
        (lambda lm, x: models.rank(lm, models.Inputs(x, jnp.zeros((1, 4), bool)), ANSWERS), "a real token in each row"),
        (
            lambda lm, x: models.generate_tokens(
                jax.random.key(0), lm, models.Inputs(x, jnp.zeros((1, 4), bool)), max_new_tokens=1
            ),
            "a real token in each row",
        ),
    ],
)
def test_what_does_not_fit_is_named(run, message) -> None:
    with pytest.raises(ValueError, match=message):
        run(_lm("rope"), _embedded("rope", 4))


@pytest.mark.slow
def test_old_keys_draw_as_new_ones() -> None:
    lm, x, sampling = _lm("rope"), _embedded("rope", 4), models.Sampling(temperature=2.0)
    old, new = (
        models.generate_tokens(key, lm, x, max_new_tokens=4, sampling=sampling)[0]
        for key in (jax.random.PRNGKey(3), jax.random.key(3))
    )
    np.testing.assert_array_equal(old, new)
    drawn = models.init(jax.random.PRNGKey(0), config=ROPE, scale=0.4)
    np.testing.assert_array_equal(drawn.params["embedding"], lm.params["embedding"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixed", "learned"])
def test_every_function_runs_in_64_bits(kind) -> None:
    examples = ([[5, 6], [7]], [[8, 2], [9, 2]])
    with jax.enable_x64(True):
        lm = models.init(jax.random.key(0), config=KINDS[kind], scale=0.4)
        for dtype in (jnp.float32, jnp.float64):
            ids = jnp.arange(3, 9).reshape(2, 3)
            x, mask = models.embed(lm, ids).astype(dtype), jnp.array([[False, True, True], [True, True, True]])
            inputs = models.prepend(jnp.zeros((2, 16), dtype), models.Inputs(x, mask, prefix=_prefix(kind)))
            found = [
                models.forward(lm, inputs)[0],
                models.loss(lm, x, ids)[0],
                jax.grad(lambda x, ids=ids: models.loss(lm, x, ids)[0])(x),
                models.rank(lm, inputs, models.candidates([[7], [8, 9]], end=2)),
                models.generate_tokens(jax.random.key(0), lm, inputs, max_new_tokens=2)[0],
                models.generate_tokens(
                    jax.random.key(0), lm, inputs, max_new_tokens=2, sampling=models.Sampling(top_k=5, top_p=0.9)
                )[0],
                tuning.tune(
                    jax.random.key(0),
                    jnp.ones((2, 16), dtype),
                    lm,
                    tuning.examples(*examples),
                    adapter=tuning.prompt(2),
                    options=tuning.Options(num_steps=2, batch=2),
                )[0],
                tuning.prompt(3, tuning.start_activations(1)).init(jax.random.key(0), lm, tuning.examples(*examples)),
            ]
            assert all(bool(jnp.isfinite(a).all()) for a in found)


def test_an_input_is_whole_unless_the_template_says_otherwise() -> None:
    class Words:
        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            assert not add_special_tokens
            return {"input_ids": [int(word) for word in text.split()]}

        def decode(self, ids, skip_special_tokens: bool) -> str:
            assert skip_special_tokens
            return " ".join(str(i) for i in ids)

    text = models.Text(Words())
    long = " ".join(map(str, range(100)))
    assert len(text.encode_input(long)) == 100
    assert text.kept(long) == long
    short = text.replace(template=models.Template(max_input=3))
    assert short.encode_input(long) == [0, 1, 2]
    assert short.kept(long) == "0 1 2"
    assert short.kept("5 6") == "5 6"
