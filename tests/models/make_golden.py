"""Write the golden outputs of transformers + torch: `python tests/models/make_golden.py` (half a minute)."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from conftest import CONFIGS, GOLDEN, direction, inputs, write_checkpoint
from safetensors import safe_open


def tensor_shapes(raw: dict[str, Any]) -> dict[str, list[int]]:
    """Return names and shapes of the file that transformers writes for a config.json."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(raw), encoding="utf-8")
        config = transformers.AutoConfig.from_pretrained(folder)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        with safe_open(Path(folder) / "model.safetensors", "numpy") as file:
            return {name: list(file.get_slice(name).get_shape()) for name in sorted(file.keys())}


def torch_model(raw: dict[str, Any], tensors: dict[str, list[int]]) -> Any:
    """Return transformers' model of the checkpoint that `write_checkpoint` writes."""
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), raw, tensors)
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        ).eval()


def torch_outputs(model: Any) -> dict[str, np.ndarray]:
    """Return logits, gradient to the input embeddings, hidden states and greedy tokens of the fixed input."""
    ids, mask, positions = (torch.from_numpy(a) for a in inputs())
    x = model.get_input_embeddings()(ids).detach().requires_grad_(True)
    options = {} if model.config.model_type == "opt" else {"position_ids": positions}
    out = model(inputs_embeds=x, attention_mask=mask, output_hidden_states=True, **options)
    (out.logits * torch.from_numpy(direction())).sum().backward()
    tokens = ids[:1]
    with torch.no_grad():
        for _ in range(8):
            tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
    return {
        "logits": out.logits.detach().numpy(),
        "gradient": x.grad.numpy(),
        "hidden": out.hidden_states[1].detach().numpy(),
        "greedy": tokens[0, ids.shape[1] :].numpy().astype(np.int32),
    }


def main() -> None:
    """Write tensors.json and outputs.npz."""
    tensors, arrays = {}, {}
    for name, raw in CONFIGS.items():
        tensors[name] = tensor_shapes(raw)
        model = torch_model(raw, tensors[name])
        arrays |= {f"{name}/{key}": value for key, value in torch_outputs(model).items()}
        print(name, float(np.abs(arrays[f"{name}/logits"]).max()))
    (GOLDEN / "tensors.json").write_text(json.dumps(tensors, separators=(",", ":")) + "\n", encoding="utf-8")
    np.savez_compressed(GOLDEN / "outputs.npz", **arrays)


if __name__ == "__main__":
    main()
