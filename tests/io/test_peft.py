"""Adapters in PEFT's files: names and shapes of every family, the way back, and what is refused by name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nvcim_jax import io, models, tuning

SIZES: dict[str, Any] = {"vocab_size": 64, "width": 32, "num_layers": 2, "num_heads": 4, "mlp_width": 48}
NORMED = {"norm": "layer", "gated": False}
FAMILIES = {
    "llama": models.Config(**SIZES, num_kv_heads=2),
    "gpt2": models.Config(**SIZES, **NORMED, family="gpt2", positions="learned", max_tokens=32),
    "gpt_neox": models.Config(**SIZES, **NORMED, family="gpt_neox"),
    "phi3": models.Config(**SIZES, num_kv_heads=2, family="phi3"),
}
ADAPTERS = {
    "prompt": tuning.prompt(3),
    "p_tuning": tuning.p_tuning(3, 8),
    "prefix": tuning.prefix(3),
    "lora": tuning.lora(2, 6.0),
    "rslora": tuning.lora(4, 2.0, rs=True),
    "dora": tuning.lora(2, dora=True),
    "ia3": tuning.ia3(),
}
BATCH = tuning.examples([[1, 5, 6]], [[8, 2]])


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request) -> models.LM:
    return models.init(jax.random.key(0), config=FAMILIES[request.param], scale=0.3)


def llama() -> models.LM:
    return models.init(jax.random.key(0), config=FAMILIES["llama"], scale=0.3)


def moved(adapter: tuning.Adapter, lm: models.LM) -> Any:
    state = adapter.init(jax.random.key(1), lm, BATCH, None)
    if adapter.details[0].kind == "p_tuning":
        return state
    if adapter.details[0].kind == "prompt":
        return jax.random.normal(jax.random.key(2), state.shape)
    options = adapter.details[0]
    keys = dict(zip(options.shapes(lm.config), jax.random.split(jax.random.key(2), 9), strict=False))
    return options.pack({n: jax.random.normal(keys[n], s) for n, s in options.shapes(lm.config).items()}, lm.config)


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_comes_back_and_does_the_same(lm, tmp_path: Path, name: str) -> None:
    adapter = ADAPTERS[name]
    state = moved(adapter, lm)
    again, loaded = io.load_peft(io.save_peft(tmp_path / "a" / "b", state, adapter, lm), lm)
    x = models.Inputs(jax.random.normal(jax.random.key(3), (1, 4, 32)))
    own, other = (jax.tree.leaves(one.apply(s, lm, x)) for one, s in ((adapter, state), (loaded, again)))
    if name == "ia3" and lm.config.family != "llama":  # the others of a tensor come back with factors of one
        merged = [tuning.merge(lm, s, one).params for one, s in ((adapter, state), (loaded, again))]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *merged)
    elif name in ("lora", "rslora", "dora"):
        merged = [tuning.merge(lm, s, one).params for one, s in ((adapter, state), (loaded, again))]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *merged)
    else:
        for a, b in zip(own, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.parametrize("name", ADAPTERS)
def test_rows_of_a_memory_come_back_as_the_state_that_they_are_of(tmp_path: Path, name: str) -> None:
    adapter, lm = ADAPTERS[name], llama()
    state = moved(adapter, lm)
    rows = adapter.rows(state)
    found, loaded = io.load_peft(io.save_peft(tmp_path, adapter.from_rows(rows), adapter, lm), lm)
    np.testing.assert_allclose(found, rows if name == "p_tuning" else state, atol=1e-6)
    np.testing.assert_allclose(loaded.rows(found), rows, atol=1e-6)


def test_tensors_have_the_names_and_shapes_of_peft(tmp_path: Path) -> None:
    wanted = {
        "llama": ("model.layers.1.self_attn.v_proj", (16, 2), ["q_proj", "v_proj"]),
        "gpt2": ("transformer.h.1.attn.c_attn", (96, 2), ["c_attn"]),
        "gpt_neox": ("gpt_neox.layers.1.attention.query_key_value", (96, 2), ["query_key_value"]),
        "phi3": ("model.layers.1.self_attn.qkv_proj", (64, 2), ["qkv_proj"]),
    }
    for family, (module, shape, targets) in wanted.items():
        lm = models.init(jax.random.key(0), config=FAMILIES[family])
        state = moved(ADAPTERS["lora"], lm)
        folder = io.save_peft(tmp_path / family, state, ADAPTERS["lora"], lm, base="owner/name")
        tensors = load_file(folder / "adapter_model.safetensors")
        assert tensors[f"base_model.model.{module}.lora_B.weight"].shape == shape
        assert tensors[f"base_model.model.{module}.lora_A.weight"].shape == (2, 32)
        about = json.loads((folder / "adapter_config.json").read_text())
        assert about["target_modules"] == targets
        assert (about["r"], about["lora_alpha"], about["base_model_name_or_path"]) == (2, 6.0, "owner/name")
    folder = io.save_peft(tmp_path / "ia3", moved(ADAPTERS["ia3"], llama()), ADAPTERS["ia3"], llama())
    shapes = {name: a.shape for name, a in load_file(folder / "adapter_model.safetensors").items()}
    assert shapes["base_model.model.model.layers.0.mlp.down_proj.ia3_l"] == (1, 48)
    assert shapes["base_model.model.model.layers.0.self_attn.k_proj.ia3_l"] == (16, 1)
    assert json.loads((folder / "adapter_config.json").read_text())["feedforward_modules"] == ["down_proj"]
    gpt2 = models.init(jax.random.key(0), config=FAMILIES["gpt2"])
    folder = io.save_peft(tmp_path / "gpt2 ia3", moved(ADAPTERS["ia3"], gpt2), ADAPTERS["ia3"], gpt2)
    # c_proj alone would also be that of the attention
    assert json.loads((folder / "adapter_config.json").read_text())["target_modules"] == ["c_attn", "mlp.c_proj"]


def test_an_interleaved_tensor_holds_the_parts_of_each_head(tmp_path: Path) -> None:
    """GPT-NeoX keeps queries, keys and values head by head: 8 of each for head 0, then head 1."""
    lm = models.init(jax.random.key(0), config=FAMILIES["gpt_neox"])
    adapter = tuning.lora(1)
    parts = {
        "q+k+v.a": jnp.ones((2, 32, 1)),
        "q+k+v.b": jnp.broadcast_to(jnp.repeat(jnp.asarray([1.0, 2.0, 3.0]), 32), (2, 1, 96)),
    }
    folder = io.save_peft(tmp_path, adapter.details[0].pack(parts, lm.config), adapter, lm)
    name = "base_model.model.gpt_neox.layers.0.attention.query_key_value.lora_B.weight"
    b = load_file(folder / "adapter_model.safetensors")[name][:, 0]
    np.testing.assert_array_equal(b, np.tile(np.repeat([1.0, 2.0, 3.0], 8), 4))


def test_what_peft_cannot_keep_is_named(tmp_path: Path) -> None:
    lm = models.init(jax.random.key(0), config=FAMILIES["gpt2"])
    for adapter, said in {
        tuning.lora(
            2, targets=("q", "v")
        ): r"change q\+k\+v together, as gpt2 keeps them, but changes q. Tune 'q\+k\+v'",
        tuning.dept(2, 2, 8): "be one that PEFT keeps: prompt, .*, but is dept",
        tuning.full(): "but is full",
        tuning.frozen(): "but is one of your own",
        tuning.ia3(("q",), inputs=("q",)): r"scale no inputs of q\+k\+v, which are one tensor",
    }.items():
        with pytest.raises(ValueError, match=said):
            io.save_peft(tmp_path, adapter.init(jax.random.key(1), lm, BATCH, None), adapter, lm)
    adapter = tuning.lora(2, targets=("q+k",))
    state = adapter.init(jax.random.key(1), llama(), BATCH, None)
    with pytest.raises(ValueError, match="change q together, as llama keeps them"):
        io.save_peft(tmp_path, state, adapter, llama())


def test_a_killed_save_leaves_the_older_adapter_or_what_is_refused(folder: Path, monkeypatch) -> None:
    lm, adapter = llama(), tuning.lora(2, 32.0)
    state = moved(adapter, lm) + 1.0

    def die(*given: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("nvcim_jax.io.peft.save_file", die)
        with pytest.raises(KeyboardInterrupt):
            io.save_peft(folder, state, adapter, lm)
    older, loaded = io.load_peft(folder, lm)
    np.testing.assert_allclose(older, moved(ADAPTERS["lora"], lm), atol=1e-6)
    assert float(loaded.details[1]) == 6.0
    with monkeypatch.context() as patched:
        patched.setattr("nvcim_jax.files.write", die)
        with pytest.raises(KeyboardInterrupt):
            io.save_peft(folder, state, adapter, lm)
    with pytest.raises(ValueError, match=r"must hold an adapter of PEFT, with adapter_config\.json, but .* has none"):
        io.load_peft(folder, lm)
    newer, loaded = io.load_peft(io.save_peft(folder, state, adapter, lm), lm)
    np.testing.assert_allclose(newer, state, atol=1e-6)
    assert float(loaded.details[1]) == 32.0


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_state_of_another_shape_is_not_written(tmp_path: Path, name: str) -> None:
    adapter, lm = ADAPTERS[name], llama()
    num, width = adapter.rows_shape(lm)
    for shape in ((num, width // 2), (num + 1, width), (2, num, width), (width,), ()):
        with pytest.raises(ValueError, match=r"^Argument `state` must have shape [^\n]* another model\.$"):
            io.save_peft(tmp_path, jnp.ones(shape), adapter, lm)
    for other in ({"a": jnp.ones(2)}, moved(ADAPTERS["p_tuning"], lm)):
        if name != "p_tuning":
            with pytest.raises(ValueError, match=r"^Argument `state` must [^\n]*$"):
                io.save_peft(tmp_path, other, adapter, lm)
    assert not list(tmp_path.iterdir())


def test_an_alpha_of_each_layer_is_refused_and_goes_into_b(tmp_path: Path) -> None:
    lm, alphas = llama(), jnp.asarray([1.0, 2.0])
    adapter, one = tuning.lora(4, alphas), tuning.lora(4, 1.0)
    state = moved(one, lm)
    with pytest.raises(ValueError, match=r"must have one alpha, as PEFT keeps it, but has an alpha of shape \(2,\)"):
        io.save_peft(tmp_path, state, adapter, lm)
    with pytest.raises(ValueError, match="alpha` must be finite"):
        io.save_peft(tmp_path, state, tuning.lora(4, jnp.inf), lm)
    parts = {n: a * alphas[:, None, None] if n.endswith(".b") else a for n, a in adapter.parts(state, lm).items()}
    again, loaded = io.load_peft(io.save_peft(tmp_path, one.details[0].pack(parts, lm.config), one, lm), lm)
    merged = [tuning.merge(lm, s, a).params for s, a in ((state, adapter), (again, loaded))]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *merged)


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_state_that_is_not_finite_is_not_written(tmp_path: Path, name: str) -> None:
    adapter, lm = ADAPTERS[name], llama()
    for bad in (jnp.nan, jnp.inf):
        state = jax.tree.map(lambda a, bad=bad: a.at[..., 0].set(bad), moved(adapter, lm))
        with pytest.raises(ValueError, match=r"^Argument `state` must be finite, but has [0-9]+ NaN or infinite"):
            io.save_peft(tmp_path, state, adapter, lm)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return io.save_peft(tmp_path / "lora", moved(ADAPTERS["lora"], llama()), ADAPTERS["lora"], llama())


def edit(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


FIELDS = {
    "rank_pattern": {"q_proj": 4},
    "alpha_pattern": {"q_proj": 4},
    "layers_to_transform": [0],
    "modules_to_save": ["lm_head"],
    "bias": "all",
    "lora_bias": True,
    "layer_replication": [[0, 2]],
    "trainable_token_indices": [3],
    "target_parameters": ["x"],
    "alora_invocation_tokens": [1],
    "task_type": "SEQ_CLS",
    "init_lora_weights": "pissa",
    "a_field_of_2030": 1,
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_is_not_supported_is_named(folder: Path, name: str) -> None:
    edit(folder, **{name: FIELDS[name]})
    with pytest.raises(ValueError, match=f"^Argument `adapter_config.json: {name}` must "):
        io.load_peft(folder, llama())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("use_rslora", value) for value in ("false", 0, [])),
        ("use_dora", "true"),
        *(("lora_alpha", value) for value in (None, "32", True, [1.0, 2.0], -1, float("nan"), float("inf"))),
        *(("r", value) for value in (None, 2.0, "2", True)),
    ],
)
def test_a_field_of_another_type_is_named(folder: Path, name: str, value: Any) -> None:
    edit(folder, **{name: value})
    with pytest.raises(ValueError, match=f"^Argument `adapter_config.json: {name}` must [^\n]*$"):
        io.load_peft(folder, llama())


def test_hidden_units_of_another_type_are_named(tmp_path: Path) -> None:
    lm, adapter = llama(), ADAPTERS["p_tuning"]
    edit(io.save_peft(tmp_path, moved(adapter, lm), adapter, lm), encoder_hidden_size="8")
    with pytest.raises(ValueError, match=r"^Argument `adapter_config.json: encoder_hidden_size` must be an integer"):
        io.load_peft(tmp_path, lm)


# The fields that the two releases write, with their defaults; older ones lack the later ones.
RELEASES = {
    "0.4": "auto_mapping bias fan_in_fan_out inference_mode init_lora_weights layers_pattern layers_to_transform "
    "modules_to_save revision",
    "0.21": "alora_invocation_tokens alpha_pattern arrow_config auto_mapping bias corda_config ensure_weight_tying "
    "eva_config exclude_modules fan_in_fan_out inference_mode init_lora_weights kasa_config layer_replication "
    "layers_pattern layers_to_transform loftq_config lora_bias lora_ga_config megatron_config megatron_core "
    "modules_to_save monteclora_config peft_version qalora_group_size rank_pattern revision target_parameters "
    "trainable_token_indices use_bdlora use_qalora velora_config",
}
VALUES = {
    "bias": "none",
    "inference_mode": True,
    "init_lora_weights": True,
    "peft_version": "0.21.2",
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
    **{name: {} for name in ("alpha_pattern", "rank_pattern", "loftq_config")},
    **dict.fromkeys(("fan_in_fan_out", "lora_bias", "use_qalora", "ensure_weight_tying"), False),
}


@pytest.mark.parametrize("release", RELEASES)
def test_the_fields_of_an_older_and_of_the_newest_release_are_read(folder: Path, release: str) -> None:
    path = folder / "adapter_config.json"
    own = json.loads(path.read_text())
    if release == "0.4":  # before rsLoRA and DoRA
        own = {name: value for name, value in own.items() if name not in ("use_rslora", "use_dora")}
    path.write_text(json.dumps({name: VALUES.get(name) for name in RELEASES[release].split()} | own))
    state, adapter = io.load_peft(folder, llama())
    np.testing.assert_allclose(state, moved(ADAPTERS["lora"], llama()), atol=1e-6)
    assert adapter.details[0] == tuning.lora(2, targets=("q", "v")).details[0]


def test_a_prefix_of_another_model_with_as_many_numbers_is_named(tmp_path: Path) -> None:
    """Layers x heads x channels are alike: the tensor alone cannot tell."""
    config, adapter = FAMILIES["llama"], tuning.prefix(3)
    lm = llama()
    folder = io.save_peft(tmp_path, moved(adapter, lm), adapter, lm)
    for changes, said in {
        ("num_layers", 4, "num_kv_heads", 1): "num_layers` must be 4, but is 2",
        ("num_kv_heads", 4, "head_dim", 4, "rotary_dim", 4): "num_attention_heads` must be 4, but is 2",
        ("num_layers", 1, "num_kv_heads", 4): "num_layers` must be 1, but is 2",
    }.items():
        other = dataclasses.replace(config, **dict(zip(changes[::2], changes[1::2], strict=True)))
        with pytest.raises(ValueError, match=f"^Argument `adapter_config.json: {said}. It belongs to another model"):
            io.load_peft(folder, lm.replace(config=other))


@pytest.mark.parametrize("name", ["prompt", "p_tuning", "prefix"])
def test_what_a_prompt_says_of_its_model_is_held_against_it(tmp_path: Path, name: str) -> None:
    lm, adapter = llama(), ADAPTERS[name]
    folder = io.save_peft(tmp_path, moved(adapter, lm), adapter, lm)
    own = json.loads((folder / "adapter_config.json").read_text())
    wanted = {"token_dim": 16, "num_attention_heads": 2} if name == "prefix" else {}
    for field, value in ({"token_dim": 32, "num_attention_heads": 4, "num_layers": 2} | wanted).items():
        assert own[field] == value
        for wrong in (value + 1, str(value), [value]):
            edit(folder, **own | {field: wrong})
            with pytest.raises(ValueError, match=f"^Argument `adapter_config.json: {field}` must be {value}, but is"):
                io.load_peft(folder, lm)
        edit(folder, **own | {field: None})
        io.load_peft(folder, lm)
    edit(folder, **own | {"num_virtual_tokens": 7})
    with pytest.raises(ValueError, match="num_virtual_tokens` must be 3, but is 7"):
        io.load_peft(folder, lm)


def _other_tensors(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    for name, change in changes.items():
        key = next(key for key in tensors if name in key)
        if change is None:
            del tensors[key]
        else:
            tensors[key] = change(tensors[key])
    save_file(tensors, path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_tensor_that_is_not_finite_is_named(folder: Path, bad: float) -> None:
    _other_tensors(folder, lora_B=lambda b: np.where(np.arange(2) == 0, np.float32(bad), b))
    with pytest.raises(ValueError, match=r"^Argument `base_model.*lora_B.weight` must be finite, but has [0-9]+ NaN"):
        io.load_peft(folder, llama())


def test_a_damaged_or_foreign_folder_is_named_in_one_line(folder: Path, tmp_path: Path) -> None:
    lm, weights = llama(), folder / "adapter_model.safetensors"
    whole = weights.read_bytes()

    def said(where: Path, expected: str, kind: type[Exception] = ValueError, model: models.LM = lm) -> None:
        with pytest.raises(kind, match=expected) as caught:
            io.load_peft(where, model)
        assert "\n" not in str(caught.value)

    said(tmp_path / "none", "has no 'none'", FileNotFoundError)
    said(tmp_path, "must hold an adapter of PEFT, with adapter_config.json, but .* has none")
    for content in (b"", whole[:40], whole[:-8], b"<html>" + whole):
        weights.write_bytes(content)
        said(folder, "must hold a whole adapter_model.safetensors")
    weights.write_bytes(whole)
    _other_tensors(folder, lora_B=None)
    said(folder, r"must change every layer, but lacks base_model.*lora_B.weight|hold lora_B.weight of every target")
    weights.write_bytes(whole)
    _other_tensors(folder, lora_A=lambda a: a[:, :-1])
    said(folder, "must change every layer alike")
    weights.write_bytes(whole)
    save_file(load_file(weights) | {"base_model.model.lm_head.lora_A.weight": np.zeros((2, 32), np.float32)}, weights)
    said(folder, "must hold tensors of a llama model, but also holds base_model.model.lm_head.lora_A.weight")
    weights.write_bytes(whole)
    said(folder, "also holds base_model", model=models.init(jax.random.key(0), config=FAMILIES["gpt2"]))
    wide = models.init(jax.random.key(0), config=models.Config(**(SIZES | {"width": 64})))
    said(
        folder,
        r"q_proj.lora_A.weight` must have shape \(2, 64\), but has \(2, 32\). It belongs to another model",
        model=wide,
    )
    edit(folder, r=3)
    said(folder, r"must have shape \(3, 32\), but has \(2, 32\)")
    edit(folder, r=2, peft_type="LOHA")
    said(folder, "must hold an adapter of peft_type .*LORA.*, but .* holds LOHA")
    (folder / "adapter_config.json").write_text("{")
    said(folder, "must be JSON")
    (folder / "adapter_config.json").write_text("[]")
    said(folder, "says nothing of it")
    edit_to = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(edit_to))
    said(folder, "must hold the tensor prompt_embeddings alone, but lacks it")
    save_file({"prompt_embeddings": np.zeros((3, 16), np.float32)}, weights)
    said(folder, r"`prompt_embeddings` must have shape \(tokens, 32\), but has \(3, 16\)")
    weights.unlink()
    (folder / "adapter_model.bin").write_bytes(b"x")
    said(folder, "must hold adapter_model.safetensors, but .* has adapter_model.bin alone. Convert it by PEFT")
