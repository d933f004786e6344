"""The fused loss against logits, finite differences, and PEFT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import models

CONFIG = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, num_kv_heads=2, mlp_width=48)
UNTIED = models.Config(
    vocab_size=64,
    width=32,
    num_layers=2,
    num_heads=4,
    mlp_width=48,
    tied=False,
    norm="layer",
    head_bias=True,
    logit_softcap=3.0,
    gated=False,
    activation="gelu",
    family="phi",
)


@pytest.fixture
def batch() -> tuple[jax.Array, jax.Array]:
    ids = np.random.default_rng(0).integers(0, 64, (3, 9)).astype(np.int32)
    labels = ids.copy()
    labels[0, :6] = models.IGNORE
    labels[2, 5:] = models.IGNORE
    return jnp.asarray(ids), jnp.asarray(labels)


def _plain(lm, x, labels):
    logits, _ = models.forward(lm, x)
    log_p = jax.nn.log_softmax(logits[:, :-1])
    target = labels[:, 1:]
    chosen = jnp.take_along_axis(log_p, jnp.maximum(target, 0)[..., None], axis=-1)[..., 0]
    real = (target >= 0).astype(jnp.float32)
    return -(chosen * real).sum() / real.sum()


@pytest.mark.slow
@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("chunk", [5, 256])
def test_value_and_gradients_are_those_of_the_logits(config, chunk, batch) -> None:
    ids, labels = batch
    lm = models.init(jax.random.key(0), config=config, scale=0.2)

    def fused(lm):
        x = models.embed(lm, ids)
        return models.loss(lm, x, labels, chunk=chunk)[0]

    def plain(lm):
        return _plain(lm, models.embed(lm, ids), labels)

    wanted, slopes = jax.jit(jax.value_and_grad(plain))(lm)
    found, gradient = jax.jit(jax.value_and_grad(fused))(lm)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), gradient, slopes)
    np.testing.assert_allclose(jax.jit(fused)(lm), wanted, rtol=1e-6)


def test_gradient_to_the_input_equals_a_finite_difference(batch) -> None:
    ids, labels = batch
    lm = models.init(jax.random.key(0), config=CONFIG, scale=0.2)
    x = models.embed(lm, ids)
    run = jax.jit(lambda x: models.loss(lm, x, labels, chunk=8)[0])
    towards = jax.random.normal(jax.random.key(5), x.shape)
    slope = (run(x + 1e-3 * towards) - run(x - 1e-3 * towards)) / 2e-3
    np.testing.assert_allclose((jax.grad(run)(x) * towards).sum(), slope, rtol=2e-2)


def test_vmap_equals_a_loop(batch) -> None:
    ids, labels = batch
    lm = models.init(jax.random.key(0), config=CONFIG, scale=0.2)
    x = models.embed(lm, ids)
    run = jax.value_and_grad(lambda x, labels: models.loss(lm, x, labels, chunk=4)[0])
    found, slopes = jax.jit(jax.vmap(run))(x, labels)
    for i in range(3):
        value, slope = jax.jit(run)(x[i], labels[i])
        np.testing.assert_allclose(found[i], value, rtol=1e-5)
        np.testing.assert_allclose(slopes[i], slope, atol=2e-6)


def test_without_labels_there_is_no_loss(batch) -> None:
    ids, _ = batch
    lm = models.init(jax.random.key(0), config=CONFIG)
    x = models.embed(lm, ids)
    value, info = models.loss(lm, x, jnp.full_like(ids, models.IGNORE))
    assert float(value) == 0.0
    assert int(info.num_labels) == 0


def test_the_batchs_logits_never_exist() -> None:
    config = models.Config(vocab_size=4096, width=32, num_layers=1, num_heads=2, mlp_width=32)
    lm = jax.eval_shape(lambda: models.init(jax.random.key(0), config=config))
    x, labels = jax.ShapeDtypeStruct((8, 256, 32), jnp.float32), jax.ShapeDtypeStruct((8, 256), jnp.int32)
    run = jax.jit(jax.grad(lambda x, lm, y: models.loss(lm, x, y, chunk=64)[0]))
    temporary = run.lower(x, lm, labels).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 4 * 8 * 256 * 4096 / 2


def test_labels_of_another_shape_are_named(batch) -> None:
    ids, labels = batch
    lm = models.init(jax.random.key(0), config=CONFIG)
    x = models.embed(lm, ids)
    with pytest.raises(ValueError, match="`labels` must have shape"):
        models.loss(lm, x, labels[:, 1:])


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning:transformers", "ignore::FutureWarning:peft")
def test_a_soft_prompts_loss_and_gradient_are_pefts(checkpoint, example) -> None:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    import transformers

    folder = checkpoint("llama")
    lm, _ = models.load(folder)
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    tuned = peft.get_peft_model(hf, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)).eval()
    weight = tuned.prompt_encoder["default"].embedding.weight
    prompt = 0.3 * np.random.default_rng(9).standard_normal((5, 32)).astype(np.float32)
    with torch.no_grad():
        weight.copy_(torch.from_numpy(prompt))
    ids = torch.from_numpy(example[0].astype(np.int64))
    wanted = tuned(input_ids=ids, labels=ids, attention_mask=torch.ones_like(ids)).loss
    wanted.backward()

    def objective(prompt):
        x = models.embed(lm, jnp.asarray(example[0]))
        whole = jnp.concatenate([jnp.broadcast_to(prompt, (3, 5, 32)), x], axis=1)
        labels = jnp.concatenate([jnp.full((3, 5), models.IGNORE), jnp.asarray(example[0])], axis=1)
        return models.loss(lm, whole, labels)[0]

    found, gradient = jax.value_and_grad(objective)(jnp.asarray(prompt))
    np.testing.assert_allclose(found, wanted.item(), rtol=2e-6)
    np.testing.assert_allclose(gradient, weight.grad.numpy(), atol=1e-6)
