"""Checkpoints as they are found: sharded, prefixed, tied, broken, too large, not there."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from nvcim_jax import models
from nvcim_jax.models.positions import frequencies

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
RAW = json.loads((GOLDEN / "configs.json").read_text(encoding="utf-8"))
SHAPES = json.loads((GOLDEN / "tensors.json").read_text(encoding="utf-8"))


def _equal(found, wanted) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def _rewrite(folder: Path, change) -> None:
    arrays = change(load_file(folder / "model.safetensors"))
    save_file(arrays, folder / "model.safetensors")


def _edit(folder: Path, **changes) -> None:
    raw = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3", "gpt2", "opt", "gpt_neox"])
def test_what_is_saved_is_what_is_loaded(name, checkpoint, tmp_path) -> None:
    lm, _ = models.load(checkpoint(name))
    models.save(tmp_path / "saved", lm)
    again, _ = models.load(tmp_path / "saved")
    assert again.config == lm.config
    _equal(again.params, lm.params)
    ours, theirs = (
        load_file(tmp_path / "saved" / "model.safetensors"),
        load_file(checkpoint(name) / "model.safetensors"),
    )
    assert set(ours) == set(theirs)
    _equal(ours, theirs)  # to the last bit what stood in the file


def test_weights_lie_inputs_first(checkpoint) -> None:
    folder = checkpoint("llama")
    file, layers = load_file(folder / "model.safetensors"), models.load(folder)[0].params["layers"]
    np.testing.assert_array_equal(layers["up"][1], file["model.layers.1.mlp.up_proj.weight"].T)


def test_a_sharded_checkpoint_is_read_through_its_index(checkpoint) -> None:
    folder = checkpoint("llama")
    wanted = models.load(folder)[0].params
    arrays = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {}
    for part in (0, 1):
        chosen = {name: a for i, (name, a) in enumerate(sorted(arrays.items())) if i % 2 == part}
        save_file(chosen, folder / f"model-{part}.safetensors")
        places |= dict.fromkeys(chosen, f"model-{part}.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    _equal(models.load(folder)[0].params, wanted)
    index.write_text(json.dumps({"weight_map": places | {"more": "model-0.safetensors"}}), encoding="utf-8")
    with pytest.raises(ValueError, match="also names more"):
        models.load(folder)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model-1\.safetensors"):
        models.load(folder)


@pytest.mark.parametrize(
    ("name", "rename"),
    [
        ("gpt2", lambda n: n.removeprefix("transformer.")),
        ("opt", lambda n: n.removeprefix("model.")),
        ("gpt_neox", lambda n: n.replace("embed_out", "lm_head")),
        ("gemma3", lambda n: "language_model." + n),
    ],
)
def test_other_prefixes_are_understood(name, rename, checkpoint) -> None:
    folder = checkpoint(name)
    wanted = models.load(folder)[0].params
    _rewrite(folder, lambda arrays: {rename(n): a for n, a in arrays.items()})
    _equal(models.load(folder)[0].params, wanted)


def test_buffers_and_the_head_of_a_tied_model_are_passed_over(checkpoint) -> None:
    folder = checkpoint("qwen2")
    lm, _ = models.load(folder)
    wanted, turns = lm.params, frequencies(lm.config.rope, lm.config.rotary)
    extra = {"lm_head.weight": np.asarray(wanted["embedding"])}
    extra["model.layers.0.self_attn.rotary_emb.inv_freq"] = turns.astype(np.float32)
    _rewrite(folder, lambda arrays: arrays | extra)
    found = models.load(folder)[0].params
    assert "head" not in found
    _equal(found, wanted)


def test_the_text_part_of_a_multimodal_gemma_is_loaded(checkpoint) -> None:
    folder = checkpoint("gemma3")
    wanted, _ = models.load(folder)
    raw = {"model_type": "gemma3", "text_config": RAW["gemma3"], "vision_config": {}}
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    vision = {"vision_tower.x": np.zeros(3, np.float32)}
    _rewrite(folder, lambda arrays: {"language_model." + n: a for n, a in arrays.items()} | vision)
    found, _ = models.load(folder)
    assert found.config == wanted.config
    _equal(found.params, wanted.params)


def test_a_dtype_can_be_asked_for(checkpoint) -> None:
    lm, _ = models.load(checkpoint("phi3"), dtype=jnp.bfloat16)
    wanted = models.load(checkpoint("phi3"))[0].params
    assert {a.dtype for a in jax.tree.leaves(lm.params)} == {jnp.dtype(jnp.bfloat16)}
    _equal(lm.params, jax.tree.map(lambda a: a.astype(jnp.bfloat16), wanted))


def test_bf16_and_float16_files_are_read(checkpoint, tmp_path) -> None:
    lm, _ = models.load(checkpoint("llama"))
    for dtype in (jnp.bfloat16, jnp.float16):
        models.save(tmp_path / "half", lm, dtype=dtype)
        rounded = jax.tree.map(lambda a, dtype=dtype: a.astype(dtype).astype(jnp.float32), lm.params)
        _equal(models.load(tmp_path / "half")[0].params, rounded)


def test_the_size_is_said_before_anything_is_read(checkpoint) -> None:
    said: list[str] = []
    models.load(checkpoint("llama"), report=said.append)
    assert len(said) == 1
    assert "MiB of parameters in float32" in said[0]


def test_ends_of_text_come_from_both_configs(checkpoint) -> None:
    folder = checkpoint("llama")
    _edit(folder, eos_token_id=3)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 3]}), encoding="utf-8")
    assert models.load_config(folder).eos_ids == (3, 5)


def test_a_missing_tensor_is_named(checkpoint) -> None:
    folder = checkpoint("llama")
    _rewrite(folder, lambda arrays: {n: a for n, a in arrays.items() if "layers.1.mlp.up" not in n})
    with pytest.raises(ValueError, match=r"lacks 1: model\.layers\.1\.mlp\.up_proj\.weight"):
        models.load(folder)


def test_an_untied_model_without_a_head_is_refused(checkpoint) -> None:
    folder = checkpoint("qwen2")
    _edit(folder, tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"lacks 1: lm_head\.weight"):
        models.load(folder)


def test_an_extra_tensor_is_named(checkpoint) -> None:
    folder = checkpoint("llama")
    _rewrite(folder, lambda arrays: arrays | {"model.layers.0.self_attn.q_proj.bias": np.zeros(32, np.float32)})
    with pytest.raises(ValueError, match=r"also has model\.layers\.0\.self_attn\.q_proj\.bias"):
        models.load(folder)


def test_a_misshaped_tensor_is_named(checkpoint) -> None:
    folder = checkpoint("llama")
    _edit(folder, intermediate_size=40)
    with pytest.raises(ValueError, match=r"mlp\.up_proj\.weight` must have shape \(40, 32\), but has shape \(48, 32\)"):
        models.load(folder)


def test_a_truncated_file_is_told_from_a_whole_one(checkpoint) -> None:
    folder = checkpoint("llama")
    whole = (folder / "model.safetensors").read_bytes()
    for length, message in ((len(whole) - 10, "before the end of"), (40, "no readable header"), (4, "no readable")):
        (folder / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=message):
            models.load(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize(
    "content", ["<!DOCTYPE html><html></html>", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"]
)
def test_a_page_or_a_pointer_in_place_of_a_file_is_named(file, content, checkpoint) -> None:
    folder = checkpoint("llama")
    (folder / file).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"HTML page|LFS pointer"):
        models.load(folder)


def test_json_that_breaks_off_is_named(checkpoint) -> None:
    folder = checkpoint("llama")
    (folder / "config.json").write_text('{"model_type": "llama", ', encoding="utf-8")
    with pytest.raises(ValueError, match=r"`config\.json` must be JSON, but breaks off"):
        models.load(folder)
    (folder / "config.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(ValueError, match="must be a JSON object"):
        models.load(folder)


def test_what_is_not_supported_is_refused_with_what_is(checkpoint) -> None:
    folder = checkpoint("llama")
    for changes, message in (
        ({"model_type": "mamba"}, "must be one of gemma, gemma2, gemma3_text, gpt2, gpt_neox, llama, mistral"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "must be one of default, linear, llama3, but is 'yarn'"),
        ({"hidden_act": "tanh"}, "must be one of gelu"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "must be one of awq, gptq"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 3}}, "but is 3"),
    ):
        (folder / "config.json").write_text(json.dumps(RAW["llama"] | changes), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            models.load(folder)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0] * 4}}),
        ("phi3", {"rope_scaling": {"type": "su", "short_factor": [1.0] * 4, "long_factor": [1.0] * 4}}),
        ("opt", {"do_layer_norm_before": False}),
        ("opt", {"word_embed_proj_dim": 16}),
        ("phi2", {"qk_layernorm": True}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gemma", {"use_bidirectional_attention": True}),
    ],
)
def test_variants_that_would_load_wrongly_are_refused(name, changes, checkpoint) -> None:
    folder = checkpoint(name)
    _edit(folder, **changes)
    with pytest.raises(ValueError, match=r"must (be|equal)"):
        models.load(folder)


def test_places_that_hold_no_model_are_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither|not a hub id"):
        models.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        models.load(tmp_path)
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="is a file"):
        models.load(tmp_path / "a.bin")
    (tmp_path / "config.json").write_text(json.dumps(RAW["llama"]), encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="pickled"):
        models.load(tmp_path)


def _offline(code: str, home: Path, *arguments: str) -> tuple[str, str]:
    """Run code in a fresh interpreter that may not use the network, and return what it printed and what it reported."""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "JAX_PLATFORMS": "cpu", "PATH": ""}
    command = [sys.executable, "-c", code, *arguments]
    root = GOLDEN.parents[2]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=root, check=False)
    return done.stdout, done.stderr


def test_a_hub_id_is_found_in_the_cache_and_its_absence_is_said(checkpoint, tmp_path) -> None:
    folder = checkpoint("llama")
    cached = tmp_path / "hub" / "models--someone--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots").mkdir()
    folder.rename(cached / "snapshots" / "abc")
    code = "from nvcim_jax import models as m\nprint(m.load('someone/tiny')[0].config.width)\nm.load('someone/else')\n"
    said, reported = _offline(code, tmp_path)
    assert said == "32\n"
    assert "'someone/else' is neither a folder here nor in the local Hugging Face cache" in reported


@pytest.mark.slow
def test_loading_takes_little_more_than_the_parameters(tmp_path) -> None:
    config = models.Config(
        vocab_size=20_000, width=768, num_layers=6, num_heads=12, num_kv_heads=4, mlp_width=3072, tied=False
    )
    code = """
import sys
import jax, jax.numpy as jnp, numpy as np
from pathlib import Path
from nvcim_jax import models
import transformers; transformers.AutoConfig
folder, dtype = Path(sys.argv[1]), sys.argv[2]
models.load_config(folder)
jnp.zeros(8).block_until_ready()

def peak():  # not getrusage: its peak is at least the size of the process that started this one
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

before = peak()
lm, _ = models.load(folder, dtype=dtype)
after = peak()
print((after - before) / sum(a.nbytes for a in jax.tree.leaves(lm.params)))
"""
    params = jax.tree.map(
        lambda shape: np.zeros(shape, np.float32), config.shapes, is_leaf=lambda a: isinstance(a, tuple)
    )
    models.save(tmp_path / "one", models.LM(params, config))
    for dtype in ("float32", "bfloat16"):
        said, reported = _offline(code, tmp_path, str(tmp_path / "one"), dtype)
        assert float(said) <= 1.2, said + reported


def test_a_peft_adapter_alone_is_named_with_its_base(tmp_path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"holds a PEFT adapter alone.*Load owner/base, or merge"):
        models.load(tmp_path)


@pytest.mark.parametrize("folder", [False, True])
def test_a_cut_gguf_file_is_named(folder, tmp_path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="must be a whole GGUF file, but has 4 bytes"):
        models.load(tmp_path if folder else file)


def _with(folder, **tensors) -> None:
    save_file(load_file(folder / "model.safetensors") | tensors, folder / "model.safetensors")


def test_a_head_that_differs_from_the_embedding_it_is_tied_to_is_refused(checkpoint) -> None:
    folder = checkpoint("gemma")
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    _with(folder, **{"lm_head.weight": table})
    models.load(folder)
    _with(folder, **{"lm_head.weight": np.ascontiguousarray(table[::-1])})
    with pytest.raises(ValueError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        models.load(folder)


def test_rotary_frequencies_of_another_base_are_refused(checkpoint) -> None:
    folder = checkpoint("llama")
    lm, _ = models.load(folder)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    _with(folder, **{name: frequencies(lm.config.rope, lm.config.rotary).astype(np.float32)})
    models.load(folder)
    other = dataclasses.replace(lm.config.rope, theta=2 * lm.config.rope.theta)
    _with(folder, **{name: frequencies(other, lm.config.rotary).astype(np.float32)})
    with pytest.raises(ValueError, match="turn by the frequencies"):
        models.load(folder)


def test_a_bias_that_no_parameter_takes_is_refused(checkpoint) -> None:
    folder = checkpoint("llama")
    _with(folder, **{"model.layers.0.attn.bias": np.ones(32, np.float32)})
    with pytest.raises(ValueError, match=r"also has model.layers.0.attn.bias"):
        models.load(folder)


def test_a_tokenizer_larger_than_the_embedding_is_told(checkpoint) -> None:
    folder = checkpoint("llama")
    words = {f"w{i}": i for i in range(65)}
    Tokenizer(WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))
    with pytest.warns(UserWarning, match="knows 65 tokens, but the embedding has 64 rows.*'w64'"):
        lm, text = models.load(folder)
    with pytest.raises(ValueError, match=r"holds 64. Is the tokenizer that of the model"):
        models.generate(jax.random.key(0), lm, ["w64"], text=text, max_new_tokens=1)


def test_no_advice_about_torch_is_printed(checkpoint) -> None:
    code = f"from nvcim_jax import models\nmodels.load({str(checkpoint('llama'))!r})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stderr == ""
