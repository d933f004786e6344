"""Generation: cached = uncached, batches, ends of text, prompts and prefixes, sampling, no second compilation."""

import json
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.params import mostly_slow
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from nvcim_jax import models
from nvcim_jax.models.sampling import keep_top, sample

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
NAMES = sorted(json.loads((GOLDEN / "configs.json").read_text(encoding="utf-8")))
CONFIG = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, num_kv_heads=2, mlp_width=48)

_run = jax.jit(models.generate_tokens, static_argnames="max_new_tokens")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "outputs.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def lm() -> models.LM:
    return models.init(jax.random.key(3), config=CONFIG, scale=0.3)


@pytest.fixture(scope="module")
def text() -> models.Text:
    import transformers

    words = {f"w{i}": i for i in range(64)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    return models.Text(transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def _ids(text: str) -> list[int]:
    return [int(word[1:]) for word in text.split()]


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_slow(NAMES, "llama", "gpt2", "gemma3", "qwen3", "phi2", "opt"))
def test_greedy_tokens_are_those_of_torch(name, checkpoint, example, golden, key) -> None:
    lm, _ = models.load(checkpoint(name))
    # The other two rows are padded on the left: what stands in the batch must not matter.
    ids, mask = example[0], np.ones((3, 12), bool)
    mask[1, :5] = mask[2, :11] = False
    x = models.embed(lm, jnp.asarray(ids))
    tokens, number = _run(key, lm, models.Inputs(x, jnp.asarray(mask)), max_new_tokens=8)
    np.testing.assert_array_equal(tokens[0], golden[f"{name}/greedy"])
    assert number.tolist() == [8, 8, 8]


def _uncached(lm: models.LM, x: jax.Array, count: int, prefix=None) -> list[int]:
    """Run everything again for every token, at one padded length."""
    size = x.shape[0] + count
    run = jax.jit(
        lambda lm, x, mask: models.forward(lm, models.Inputs(x, mask, prefix=prefix))[0],
        compiler_options={"xla_backend_optimization_level": 0},
    )
    found = []
    for i in range(count):
        now = x.shape[0]
        padded = jnp.concatenate([x, jnp.zeros((size - now, x.shape[1]))])
        logits = run(lm, padded, jnp.arange(size) < now)
        found.append(int(jnp.argmax(logits[now - 1])))
        x = jnp.concatenate([x, models.embed(lm, jnp.asarray(found[-1:], jnp.int32))])
        assert i < count
    return found


@pytest.mark.slow
def test_texts_of_a_batch_are_continued_as_if_alone(lm, text, key) -> None:
    texts = ["w3 w9 w1 w40 w22", "w7", "w5 w5 w8"]
    prompt = jax.random.normal(jax.random.key(1), (4, 32))
    out = models.generate(key, lm, texts, text=text, max_new_tokens=6, prompt=prompt)
    for text, tokens in zip(texts, out.tokens, strict=True):
        x = models.embed(lm, jnp.asarray(_ids(text), jnp.int32))
        assert tokens.tolist() == _uncached(lm, jnp.concatenate([prompt, x]), 6)
    assert out.texts[0] == " ".join(f"w{t}" for t in out.tokens[0].tolist())


@pytest.mark.slow
def test_a_prefix_is_seen_in_every_step(lm, text, key) -> None:
    size = (CONFIG.num_layers, CONFIG.kv_heads, 3, CONFIG.head_width)
    prefix = models.KeysValues(*jax.random.normal(jax.random.key(1), (2, *size)))
    out = models.generate(key, lm, ["w3 w9 w1"], text=text, max_new_tokens=6, prefix=prefix)
    x = models.embed(lm, jnp.asarray([3, 9, 1], jnp.int32))
    assert out.tokens[0].tolist() == _uncached(lm, x, 6, prefix)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_large_models_scan_says_the_same(name, checkpoint, example, golden, key, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules["nvcim_jax.models.generate"], "APART_BYTES", 0)
    lm, _ = models.load(checkpoint(name))
    x = models.embed(lm, jnp.asarray(example[0][:1]))
    run = jax.jit(partial(models.generate_tokens, max_new_tokens=8))
    tokens, _ = run(key, lm, x)
    np.testing.assert_array_equal(tokens[0], golden[f"{name}/greedy"])


def test_a_text_ends_at_its_end(lm, text, key) -> None:
    first = models.generate(key, lm, ["w3 w9 w1", "w7"], text=text, max_new_tokens=6)
    end = int(first.tokens[0, 2])
    kept = first.tokens[0].tolist().index(end) + 1
    config = models.Config(
        vocab_size=64, width=32, num_layers=2, num_heads=4, num_kv_heads=2, mlp_width=48, eos_ids=(end,), pad_id=63
    )
    out = models.generate(key, lm.replace(config=config), ["w3 w9 w1", "w7"], text=text, max_new_tokens=6)
    assert int(out.num_tokens[0]) == kept
    assert out.tokens[0].tolist() == first.tokens[0].tolist()[:kept] + [63] * (6 - kept)
    assert len(out.texts[0].split()) == kept


@pytest.mark.slow
def test_a_second_call_compiles_nothing(lm, text) -> None:
    from nvcim_jax.models.generate import _compiled

    prompt, run = jnp.ones((2, 32)), partial(models.generate, lm=lm, text=text, max_new_tokens=4)
    run(jax.random.key(0), texts=["w3 w9"], prompt=prompt, sampling=models.Sampling(temperature=0.5, top_p=0.9))
    before = _compiled._cache_size()
    run(jax.random.key(1), texts=["w7"], prompt=2 * prompt, sampling=models.Sampling(temperature=0.7, top_p=0.5))
    assert _compiled._cache_size() == before


@pytest.mark.slow
def test_the_key_decides_and_the_batch_does_not(lm, text) -> None:
    run = partial(models.generate, lm=lm, text=text, max_new_tokens=6, sampling=models.Sampling())
    one = run(jax.random.key(0), texts=["w3", "w4"]).tokens
    same = run(jax.random.key(0), texts=["w3", "w4"]).tokens
    other = run(jax.random.key(1), texts=["w3", "w4"]).tokens
    fewer = run(jax.random.key(0), texts=["w3"]).tokens
    np.testing.assert_array_equal(one, same)
    np.testing.assert_array_equal(one[:1], fewer)
    assert (one != other).any()


def test_prompts_stand_right_before_their_texts() -> None:
    x = jnp.arange(1.0, 7.0).reshape(2, 3, 1)
    mask = jnp.array([[True, True, True], [False, False, True]])
    prompt = jnp.array([[[10.0], [11.0]], [[20.0], [21.0]]])
    both, real, *_ = models.prepend(prompt, models.Inputs(x, mask))
    assert both[0, :, 0].tolist() == [10, 11, 1, 2, 3]
    assert both[1, 2:, 0].tolist() == [20, 21, 6]
    assert real.sum(-1).tolist() == [5, 3]


def test_top_k_and_top_p_keep_the_likeliest() -> None:
    p = np.array([0.1, 0.4, 0.05, 0.3, 0.15])
    logits = jnp.log(jnp.asarray(p, jnp.float32))
    assert np.isfinite(keep_top(logits, top_k=2)).tolist() == [False, True, False, True, False]
    for top_p, kept in ((0.39, 1), (0.41, 2), (0.71, 3), (0.86, 4), (1.0, 5), (1e-6, 1)):
        assert int(jnp.isfinite(keep_top(logits, top_p=top_p)).sum()) == kept


def test_draws_follow_the_softmax_of_the_filtered_logits() -> None:
    logits, count = jnp.array([0.0, 1.0, 2.0, -1.0, 0.5]), 20_000
    keys = jax.random.split(jax.random.key(0), count)
    draw = jax.vmap(lambda k: sample(k, logits, sampling=models.Sampling(top_k=3, temperature=0.7)))
    found = np.bincount(np.asarray(jax.jit(draw)(keys)), minlength=5) / count
    p = np.exp(np.array([0.0, 1.0, 2.0, -1.0, 0.5]) / 0.7)
    p[[0, 3]] = 0.0
    p /= p.sum()
    assert (np.abs(found - p) <= 5 * np.sqrt(p * (1 - p) / count)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"texts": "w3"}, "must be a sequence"),
        ({"texts": [""]}, "at least one token"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be an integer"),
        ({"sampling": models.Sampling(temperature=-1.0)}, "`temperature` must lie"),
        ({"sampling": models.Sampling(top_p=0.0)}, "`top_p` must lie"),
        ({"sampling": models.Sampling(top_k=0)}, "`top_k` must be an integer"),
    ],
)
def test_wrong_arguments_are_named(options, message, lm, text, key) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        models.generate(key, lm, text=text, **({"texts": ["w3"], "max_new_tokens": 2} | options))


def test_without_a_tokenizer_the_way_out_is_named(lm, text, key) -> None:
    with pytest.raises(ValueError, match="embed the tokens yourself"):
        models.generate(key, lm, ["w3"], text=models.Text(), max_new_tokens=2)


def test_learned_positions_cannot_be_outrun(lm, text, key) -> None:
    config = models.Config(
        vocab_size=64, width=32, num_layers=1, num_heads=4, mlp_width=48, positions="learned", max_tokens=8
    )
    small = models.init(key, config=config)
    with pytest.raises(ValueError, match="within the 8 learned positions"):
        models.generate(jax.random.key(0), small, ["w3 w4"], text=text, max_new_tokens=7)
