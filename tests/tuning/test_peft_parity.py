"""Every adapter beside PEFT and torch: the same start, 25 steps of AdamW, files carried both ways."""

import json
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from nvcim_jax import io, models, tuning
from nvcim_jax.tuning.dept import DeptState

pytestmark = pytest.mark.parity

STEPS, RATE, DECAY, GAP = 25, 1e-3, 1e-2, 1e-5
TEXTS, ANSWERS = [[1, 5, 6, 9], [1, 7], [1, 9, 10]], [[8, 2], [9, 11, 2], [12, 2]]
SIZES = {"vocab_size": 64, "max_position_embeddings": 64}
LLAMA = SIZES | {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "n_positions": 64},
}
ADAPTERS = {
    "prompt": tuning.prompt(3),
    "prefix": tuning.prefix(3),
    "lora": tuning.lora(2, 6.0),
    "rslora": tuning.lora(4, 2.0, rs=True),
    "dora": tuning.lora(2, dora=True),
    "ia3": tuning.ia3(),
}


@pytest.fixture(autouse=True)
def _others_may_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory) -> tuple[Any, models.LM]:
    """Return a function that makes torch's model, and ours with the same weights."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(request.param, initializer_range=0.2, **FAMILIES[request.param])
        folder = tmp_path_factory.mktemp(request.param)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(weight, std=0.1)
        model.save_pretrained(folder)
        lm, _ = models.load(folder)
    return lambda: transformers.AutoModelForCausalLM.from_pretrained(folder).eval(), lm


def batch() -> tuple[tuning.Examples, dict[str, Any]]:
    import torch

    rows = [[*t, *a] for t, a in zip(TEXTS, ANSWERS, strict=True)]
    width = max(map(len, rows))
    ids, mask, labels = (np.zeros((len(rows), width), np.int64) for _ in range(3))
    labels -= 100
    for i, (text, row) in enumerate(zip(TEXTS, rows, strict=True)):
        ids[i, : len(row)], mask[i, : len(row)], labels[i, len(text) : len(row)] = row, 1, row[len(text) :]
    given = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return tuning.examples(TEXTS, ANSWERS), {name: torch.tensor(a) for name, a in given.items()}


def _adamw(rate: jax.Array, num_steps: int) -> optax.GradientTransformation:
    del num_steps
    return optax.adamw(rate, weight_decay=DECAY)


def ours(state: Any, lm: models.LM, adapter: tuning.Adapter, optimiser: Any = None) -> tuple[Any, np.ndarray]:
    with jax.numpy_dtype_promotion("standard"):
        tuned, info = tuning.tune(
            jax.random.key(0),
            state,
            lm,
            batch()[0],
            adapter=adapter,
            options=tuning.Options(num_steps=STEPS),
            optimiser=Partial(_adamw, jnp.float32(RATE)) if optimiser is None else optimiser,
        )
    return tuned, np.asarray(info.losses)


def theirs(loss: Any, groups: list[dict[str, Any]]) -> np.ndarray:
    import torch

    optimiser, found = torch.optim.AdamW(groups, lr=RATE, weight_decay=DECAY), []
    for _ in range(STEPS):
        value = loss()
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        found.append(float(value.detach()))
    return np.asarray(found)


def moved(adapter: tuning.Adapter, lm: models.LM) -> Any:
    """Return a start a little off the usual one; B and what fills the last row up stay zero."""
    state = adapter.init(jax.random.key(1), lm, batch()[0], None)
    return jnp.where(state != 0, state + 0.05 * jax.random.normal(jax.random.key(2), state.shape), 0.0)


def trainable(model: Any) -> list[dict[str, Any]]:
    return [{"params": [p for p in model.parameters() if p.requires_grad]}]


def opened(make: Any, folder: Path) -> Any:
    """Return PEFT's model with an adapter to be trained; prompts and prefixes it loads to be used alone."""
    import peft
    import torch

    kind = json.loads((folder / "adapter_config.json").read_text())["peft_type"]
    if kind in ("LORA", "IA3"):
        return peft.PeftModel.from_pretrained(make(), folder, is_trainable=True)
    loaded = peft.PeftModel.from_pretrained(make(), folder).prompt_encoder["default"].embedding.weight
    configs = {"PROMPT_TUNING": peft.PromptTuningConfig, "PREFIX_TUNING": peft.PrefixTuningConfig}
    model = peft.get_peft_model(make(), configs[kind](task_type="CAUSAL_LM", num_virtual_tokens=len(loaded)))
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.copy_(loaded)
    return model


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_losses_of_25_steps_are_those_of_peft(pair, tmp_path: Path, name: str) -> None:
    make, lm = pair
    adapter = ADAPTERS[name]
    if lm.config.family == "gpt2" and name == "ia3":
        adapter = tuning.ia3(("q", "k", "v", "down"))  # PEFT trains queries with keys and values there
    state = moved(adapter, lm)
    model = opened(make, io.save_peft(tmp_path / "ours", state, adapter, lm)).eval()
    examples, given = batch()
    tuned, found = ours(state, lm, adapter)
    wanted = theirs(lambda: model(**given).loss, trainable(model))
    gap = np.abs(found - wanted).max()
    print(f"{lm.config.family} {name}: largest gap {gap:.1e}, losses {found[0]:.3f} -> {found[-1]:.3f}")
    assert gap <= GAP
    assert found[-1] < found[0]
    model.save_pretrained(tmp_path / "theirs")
    again, loaded = io.load_peft(tmp_path / "theirs", lm)
    np.testing.assert_allclose(again, tuned, atol=2e-4)
    loss = tuning.answer_loss(again, lm, examples, jnp.ones(3), adapter=loaded)
    assert abs(float(loss) - float(model(**given).loss.detach())) <= GAP


def test_p_tuning_is_that_of_peft(pair, tmp_path: Path) -> None:
    import peft
    import torch

    make, lm = pair
    adapter = tuning.p_tuning(3, 24)
    state = adapter.init(jax.random.key(1), lm, batch()[0], None)
    config = peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=24)
    model = peft.get_peft_model(make(), config).eval()
    encoder = model.prompt_encoder["default"]
    with torch.no_grad():
        encoder.embedding.weight.copy_(torch.tensor(np.asarray(state.embedding)))
        for layer, weight, bias in zip(encoder.mlp_head[::2], state.weights, state.biases, strict=True):
            layer.weight.copy_(torch.tensor(np.asarray(weight).T))
            layer.bias.copy_(torch.tensor(np.asarray(bias)))
    given = batch()[1]
    tuned, found = ours(state, lm, adapter)
    wanted = theirs(lambda: model(**given).loss, trainable(model))
    gap = np.abs(found - wanted).max()
    print(f"{lm.config.family} p-tuning: largest gap {gap:.1e}, losses {found[0]:.3f} -> {found[-1]:.3f}")
    assert gap <= GAP
    model.save_pretrained(tmp_path / "theirs")
    rows, loaded = io.load_peft(tmp_path / "theirs", lm)
    np.testing.assert_allclose(rows, adapter.rows(tuned), atol=2e-4)
    assert loaded.details == adapter.details
    again = peft.PeftModel.from_pretrained(make(), io.save_peft(tmp_path / "ours", rows, loaded, lm)).eval()
    value = tuning.answer_loss(rows, lm, batch()[0], jnp.ones(3), adapter=loaded)
    assert abs(float(value) - float(again(**given).loss)) <= GAP


def _two_rates(rates: jax.Array, num_steps: int) -> Any:
    del num_steps
    each = {name: optax.adamw(rate, weight_decay=DECAY) for name, rate in zip(("prompt", "low"), rates, strict=True)}
    return optax.multi_transform(each, DeptState("prompt", "low", "low"))  # type: ignore[arg-type]  # labels


def test_dept_is_its_published_form(pair) -> None:
    import torch

    make, lm = pair
    adapter = tuning.dept(2, 3, 8, alpha=2.0)
    state = adapter.init(jax.random.key(1), lm, batch()[0], None)
    tuned, found = ours(state, lm, adapter, Partial(_two_rates, jnp.asarray([RATE, RATE / 5])))
    model, given = make(), batch()[1]
    prompt, a, b = (torch.tensor(np.asarray(part), requires_grad=True) for part in state)

    def loss() -> Any:
        x = model.get_input_embeddings()(given["input_ids"])
        text = ((given["labels"] != -100).cumsum(1) == 0)[..., None]
        x = x + text * (a @ b)[None, : x.shape[1]] * (2.0 / 3**0.5)
        x = torch.cat([prompt[None].expand(len(x), -1, -1), x], dim=1)
        ones, ignored = torch.ones((len(x), 2), dtype=torch.int64), torch.full((len(x), 2), -100)
        mask = torch.cat([ones, given["attention_mask"]], dim=1)
        return model(inputs_embeds=x, attention_mask=mask, labels=torch.cat([ignored, given["labels"]], dim=1)).loss

    wanted = theirs(loss, [{"params": [prompt]}, {"params": [a, b], "lr": RATE / 5}])
    gap = np.abs(found - wanted).max()
    print(f"{lm.config.family} dept: largest gap {gap:.1e}, losses {found[0]:.3f} -> {found[-1]:.3f}")
    assert gap <= GAP
    np.testing.assert_allclose(tuned.b, b.detach().numpy(), atol=2e-4)


def test_what_peft_makes_from_its_own_defaults_is_read(pair, tmp_path: Path) -> None:
    import peft

    make, lm = pair
    made = {
        "lora": peft.LoraConfig(task_type="CAUSAL_LM"),
        "ia3": peft.IA3Config(task_type="CAUSAL_LM"),
        "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "prefix": peft.PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=8
        ),
    }
    for name, config in made.items():
        model = peft.get_peft_model(make(), config).eval()
        model.save_pretrained(tmp_path / name)
        state, adapter = io.load_peft(tmp_path / name, lm)
        value = tuning.answer_loss(state, lm, batch()[0], jnp.ones(3), adapter=adapter)
        assert abs(float(value) - float(model(**batch()[1]).loss)) <= GAP, name
        assert json.loads((tmp_path / name / "adapter_config.json").read_text())["peft_version"]
