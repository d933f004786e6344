"""GPTQ and AWQ checkpoints, packed here bit by bit, against the same weights as floats."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nvcim_jax import models
from nvcim_jax.models.files.quantised import unpack_awq, unpack_gptq

AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)


def _pack(values: np.ndarray, bits: int) -> np.ndarray:
    """Pack the last axis into 32-bit words, the first value lowest, one bit field after another."""
    per = 32 // bits
    out = np.zeros((*values.shape[:-1], values.shape[-1] // per), np.uint32)
    for i in range(per):
        out |= values[..., i::per].astype(np.uint32) << np.uint32(bits * i)
    return out.view(np.int32)


def _pack_gptq(values: np.ndarray, zeros: np.ndarray, bits: int, version: int) -> tuple[np.ndarray, np.ndarray]:
    stored = zeros - 1 if version == 1 else zeros
    return _pack(values.T, bits).T.copy(), _pack(stored, bits)


def _pack_awq(values: np.ndarray) -> np.ndarray:
    return _pack(values.reshape(values.shape[0], -1, 8)[:, :, AWQ_COLUMNS].reshape(values.shape), 4)


def _draw(inputs: int, outputs: int, bits: int, seed: int):
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.arange(inputs) // 8).astype(np.int32)  # act-order: no order at all
    values = rng.integers(0, 2**bits, (inputs, outputs))
    zeros = rng.integers(1, 2**bits, (inputs // 8, outputs)) if bits < 8 else np.full((inputs // 8, outputs), 128)
    scales = rng.uniform(0.01, 0.03, (inputs // 8, outputs)).astype(np.float16)
    return values, zeros, scales, groups


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("version", [1, 2])
def test_gptq_codes_are_values_less_zero_points(bits, version) -> None:
    values, zeros, _, groups = _draw(32, 16, bits, bits)
    packed = _pack_gptq(values, zeros, bits, version)
    found = unpack_gptq(*packed, groups, bits=bits, version=version)
    np.testing.assert_array_equal(found, values - zeros[groups])
    assert found.dtype == np.int8


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_stored_zero_point_of_all_ones_is_zero(bits) -> None:
    values = np.random.default_rng(0).integers(0, min(2**bits, 128), (32, 16))
    packed = _pack(values.T, bits).T.copy(), np.full((4, 16 * bits // 32), -1, np.int32)
    found = unpack_gptq(*packed, np.arange(32, dtype=np.int32) // 8, bits=bits, version=1)
    np.testing.assert_array_equal(found, values)


def test_awq_codes_are_values_less_zero_points() -> None:
    values, zeros, _, groups = _draw(32, 16, 4, 1)
    found = unpack_awq(_pack_awq(values), _pack_awq(zeros), groups)
    np.testing.assert_array_equal(found, values - zeros[groups])


def test_codes_that_do_not_fit_are_refused() -> None:
    values, zeros, _, groups = _draw(32, 16, 8, 0)
    packed = _pack_gptq(values, np.ones_like(zeros), 8, 2)
    with pytest.raises(ValueError, match="must fit into int8"):
        unpack_gptq(*packed, groups, bits=8, version=2, name="layer")


def _linears(name: str) -> bool:
    return name.endswith("_proj.weight")


def _quantise(folder, method: str, version: int, order: bool) -> dict[str, np.ndarray]:
    """Replace every linear weight of a checkpoint by a packed one; return the weights it stands for."""
    packed, floats = {}, {}
    for i, (name, weight) in enumerate(sorted(load_file(folder / "model.safetensors").items())):
        if not _linears(name):
            packed[name] = floats[name] = weight
            continue
        outputs, inputs = weight.shape
        values, zeros, scales, groups = _draw(inputs, outputs, 4, i)
        if not order:
            groups = np.sort(groups)
        stem = name.removesuffix(".weight")
        awq = method == "awq"
        pair = (_pack_awq(values), _pack_awq(zeros)) if awq else _pack_gptq(values, zeros, 4, version)
        packed |= {f"{stem}.qweight": pair[0], f"{stem}.qzeros": pair[1], f"{stem}.scales": scales}
        if order:
            packed[f"{stem}.g_idx"] = groups
        if method == "gptq":  # GPTQ layers carry a bias of zeros even where the model has none
            packed[f"{stem}.bias"] = np.zeros(outputs, np.float16)
        weight = (values - zeros[groups]) * scales.astype(np.float32)[groups]
        floats[name] = np.ascontiguousarray(weight.T, np.float32)
    save_file(packed, folder / "model.safetensors")
    return floats


@pytest.mark.parametrize(
    ("name", "method", "version", "order"),
    [
        ("mistral", "gptq", 1, True),
        ("mistral", "gptq", 2, False),
        ("mistral", "awq", 1, False),
        ("phi3", "gptq", 1, True),
    ],
)
def test_a_packed_checkpoint_gives_the_logits_of_its_floats(
    name, method, version, order, checkpoint, write, tmp_path, example
) -> None:
    folder = checkpoint(name)
    floats = _quantise(folder, method, version, order)
    raw = json.loads((folder / "config.json").read_text())
    wanted, _ = models.load(write(tmp_path / "floats", raw, floats))
    settings = {"quant_method": method, "bits": 4, "group_size": 8}
    if version == 2:
        settings["checkpoint_format"] = "gptq_v2"
    (folder / "config.json").write_text(json.dumps(raw | {"quantization_config": settings}), encoding="utf-8")
    lm, _ = models.load(folder)
    weight = lm.params["layers"]["up"]
    assert isinstance(weight, models.Packed)
    assert weight.codes.dtype == jnp.int8
    np.testing.assert_array_equal(jax.tree.map(lambda a: a[1], weight).dense(), wanted.params["layers"]["up"][1])
    x = models.embed(lm, jnp.asarray(example[0]))
    found, _ = jax.jit(models.forward)(lm, x)
    logits, _ = jax.jit(models.forward)(wanted, x)
    np.testing.assert_allclose(found, logits, atol=2e-5)
    models.save(tmp_path / "saved", lm)
    again, _ = models.load(tmp_path / "saved")
    np.testing.assert_array_equal(again.params["layers"]["q"], wanted.params["layers"]["q"])


def test_packed_weights_take_a_quarter_of_float32(checkpoint) -> None:
    folder = checkpoint("mistral")
    _quantise(folder, "awq", 1, False)
    raw = json.loads((folder / "config.json").read_text())
    settings = {"quant_method": "awq", "bits": 4, "group_size": 8, "version": "gemm"}
    (folder / "config.json").write_text(json.dumps(raw | {"quantization_config": settings}), encoding="utf-8")
    weight = models.load(folder)[0].params["layers"]["up"]
    assert weight.codes.nbytes == 3 * 32 * 48  # a byte a weight, not four
    assert weight.scales.dtype == jnp.float16


def _temporary(lowered) -> int:
    found = lowered.compile().memory_analysis()
    assert found is not None
    return found.temp_size_in_bytes


def test_layers_are_unpacked_one_at_a_time() -> None:
    config = models.Config(vocab_size=64, width=128, num_layers=8, num_heads=4, mlp_width=512)

    def packed(size):
        inputs = size[1]
        return models.Packed(
            jax.ShapeDtypeStruct(size, jnp.int8),
            jax.ShapeDtypeStruct((size[0], inputs // 64, size[2]), jnp.float16),
            jax.ShapeDtypeStruct((size[0], inputs), jnp.int32),
        )

    lm = jax.eval_shape(lambda: models.init(jax.random.key(0), config=config))
    lm.params["layers"] = {n: packed(a.shape) if a.ndim == 3 else a for n, a in lm.params["layers"].items()}
    x = jax.ShapeDtypeStruct((1, 4, 128), jnp.float32)
    lowered = jax.jit(lambda lm, x: models.forward(lm, x)[0]).lower(lm, x)
    assert _temporary(lowered) < 4 * config.num_params / 2  # a layer or two as floats, not all eight
    slope = jax.jit(jax.grad(lambda x, lm: models.forward(lm, x)[0].sum()))
    assert _temporary(slope.lower(x, lm)) < 4 * config.num_params / 2  # nor does the backward pass keep them


@pytest.mark.slow
def test_int8_codes_multiply_as_their_floats_in_every_function() -> None:
    config = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, mlp_width=48)
    lm = models.init(jax.random.key(0), config=config, scale=0.2)
    rng = np.random.default_rng(0)

    def packed(a: jax.Array) -> models.Packed:
        layers, inputs, _ = a.shape
        groups = np.stack([rng.permutation(np.arange(inputs) // 8) for _ in range(layers)]).astype(np.int32)
        scales = rng.uniform(0.01, 0.02, (layers, inputs // 8, a.shape[2])).astype(np.float16)
        return models.Packed(jnp.round(a * 60).astype(jnp.int8), jnp.asarray(scales), jnp.asarray(groups))

    codes = {n: packed(a) if a.ndim == 3 else a for n, a in lm.params["layers"].items()}
    floats = {n: jax.vmap(lambda w: w.dense())(a) if isinstance(a, models.Packed) else a for n, a in codes.items()}
    own, dense = (lm.replace(params={**lm.params, "layers": layers}) for layers in (codes, floats))
    ids = jnp.arange(10).reshape(2, 5)
    x = models.embed(lm, ids)
    for run in (
        lambda lm: models.forward(lm, x)[0],
        lambda lm: models.loss(lm, x, ids)[0],
        lambda lm: models.rank(lm, x, models.candidates([[7], [8, 9]], end=2)),
        lambda lm: models.generate_tokens(jax.random.key(0), lm, x, max_new_tokens=4)[0],
    ):
        np.testing.assert_array_equal(jax.jit(run)(own), jax.jit(run)(dense))


def _coded(lm: models.LM, most: int) -> models.LM:
    """Return a model whose matrices are random codes with one scale an output."""
    rng, layers = np.random.default_rng(most), dict(lm.params["layers"])
    for name, leaf in layers.items():
        if leaf.ndim == 3:
            scales = rng.uniform(0.01, 0.02, (len(leaf), 1, leaf.shape[2])).astype(np.float32)
            codes = rng.integers(-most, most + 1, leaf.shape).astype(np.int8)
            groups = np.zeros(leaf.shape[:2], np.int32)
            layers[name] = models.Packed(jnp.asarray(codes), jnp.asarray(scales), jnp.asarray(groups))
    return lm.replace(params={**lm.params, "layers": layers})


@pytest.mark.parametrize(("name", "most", "bits"), [("llama", 7, 4), ("phi3", 15, 8), ("gpt2", 127, 8)])
def test_codes_are_saved_and_loaded_as_they_are(name, most, bits, checkpoint, tmp_path) -> None:
    lm = _coded(models.load(checkpoint(name))[0], most)
    models.save(tmp_path / "packed", lm, keep_codes=True)
    models.save(tmp_path / "floats", lm)
    about = json.loads((tmp_path / "packed" / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    assert about["bits"] == bits
    again, _ = models.load(tmp_path / "packed")
    for path, leaf in lm.params["layers"].items():
        for a, b in zip(jax.tree.leaves(leaf), jax.tree.leaves(again.params["layers"][path]), strict=True):
            np.testing.assert_array_equal(a, b)
    floats, one = models.load(tmp_path / "floats")[0], lm.params["layers"]["o"]
    np.testing.assert_array_equal(floats.params["layers"]["o"][1], np.float32(one.codes[1]) * one.scales[1])
    sizes = [(tmp_path / kind / "model.safetensors").stat().st_size for kind in ("packed", "floats")]
    assert sizes[0] < 0.7 * sizes[1]


@pytest.mark.parametrize(("width", "bits"), [(16, 4), (12, 8)])
def test_small_codes_take_eight_bits_where_sides_do_not_fill_words_of_four(width, bits, tmp_path) -> None:
    config = models.Config(vocab_size=16, width=width, num_layers=1, num_heads=1, mlp_width=width)
    lm = _coded(models.init(jax.random.key(0), config=config), 7)
    models.save(tmp_path, lm, keep_codes=True)
    about = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    assert about["bits"] == bits
    np.testing.assert_array_equal(models.load(tmp_path)[0].params["layers"]["o"].codes, lm.params["layers"]["o"].codes)


def test_codes_that_fill_no_words_are_refused(tmp_path) -> None:
    config = models.Config(vocab_size=16, width=10, num_layers=1, num_heads=1, mlp_width=10)
    lm = _coded(models.init(jax.random.key(0), config=config), 7)
    with pytest.raises(ValueError, match=r"must have sides that 4 divides, but is \(10, 10\)\. Save floats\."):
        models.save(tmp_path, lm, keep_codes=True)
    models.save(tmp_path, lm)
