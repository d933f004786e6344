"""A language model as a tree, and how text goes into it: the two things that `load` returns."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import struct

from nvcim_jax import checks
from nvcim_jax.models.config import Config
from nvcim_jax.models.soft_tokens import SoftTokens
from nvcim_jax.signature import checked
from nvcim_jax.types import PyTree

__all__ = ["LM", "Template", "Text", "is_block_matrix"]


@struct.dataclass
class LM:
    """Hold a language model: a tree, so that `jax.jit`, `jax.vmap` and `jax.grad` take it whole.

    `lm.replace(params=...)` gives the same model with other weights.

    Attributes:
        params: The parameters, see `Config.shapes`. A weight may be an `nvcim_jax.ops.Weight`, which multiplies in its
            own way: memory cells, codes of a few bits, a matrix with a low-rank change.
        config: The static description.
        soft_tokens: How it was taught to read soft tokens; by default any channel may hold anything.
    """

    params: PyTree
    config: Config = struct.field(pytree_node=False)
    soft_tokens: SoftTokens = struct.field(pytree_node=False, default=SoftTokens())

    def replace(self, **changes: Any) -> "LM":
        """Return a copy with other values."""
        return dataclasses.replace(self, **changes)


@checked
def is_block_matrix(path: str, leaf: Any) -> bool:
    """Return whether a parameter is one of the stacked matrices of the blocks: what memory cells can hold.

    Args:
        path: Where it lies, such as "layers/q".
        leaf: The parameter.

    Example:
        >>> import jax.numpy as jnp
        >>> is_block_matrix("layers/q", jnp.ones((2, 4, 4))), is_block_matrix("layers/q_bias", jnp.ones((2, 4)))
        (True, False)
    """
    return path.split("/")[-2:-1] == ["layers"] and leaf.ndim == 3


@checks.frozen_config
class Template:
    """The text form of a task: prefix, input, suffix, answer, and the token that ends a text.

    Attributes:
        prefix: Text before the input.
        suffix: Text between input and answer.
        answer: Text before the answer; a space, where the tokenizer wants one.
        max_input: Tokens of an input that are kept, from its beginning; None: all of them.
    """

    prefix: str = ""
    suffix: str = " ="
    answer: str = " "
    max_input: int | None = None

    def __post_init__(self) -> None:
        """Check the length."""
        if self.max_input is not None:
            checks.integer("max_input", self.max_input, fix="Use None to keep inputs whole.")


@dataclasses.dataclass(frozen=True)
class Text:
    """Say how text becomes tokens and back; it stays on the host, beside the model.

    Attributes:
        tokenizer: transformers' tokenizer, or None where the checkpoint has none.
        template: The text form of the task.
    """

    tokenizer: Any = None
    template: Template = Template()  # noqa: RUF009  # frozen

    def replace(self, **changes: Any) -> "Text":
        """Return a copy with other values."""
        return dataclasses.replace(self, **changes)

    def encode(self, words: str, *, special: bool = False) -> list[int]:
        """Return the tokens of a text.

        Args:
            words: The text.
            special: Whether the tokenizer adds what it puts around every text, such as a start token.

        Raises:
            ValueError: If there is no tokenizer.
        """
        if self.tokenizer is None:
            checks.fail(
                "text",
                "have a tokenizer",
                "has none",
                "Load a checkpoint folder that holds tokenizer.json, or embed the tokens yourself.",
            )
        if not words and not special:
            return []
        return list(self.tokenizer(words, add_special_tokens=special)["input_ids"])

    def begin(self) -> list[int]:
        """Return the tokens that the tokenizer puts before every text, such as a start token.

        Raises:
            ValueError: If there is no tokenizer.
        """
        bare, whole = self.encode("x"), self.encode("x", special=True)
        return next(whole[:i] for i in range(len(whole)) if whole[i : i + len(bare)] == bare)

    def chat(self, before: str = "", after: str = "") -> "Text":
        """Return a copy whose template is the model's own chat template, with the input as what a user says.

        Args:
            before: What the user says before the input.
            after: What the user says after it.

        Raises:
            ValueError: If the tokenizer has no chat template.
        """
        if getattr(self.tokenizer, "chat_template", None) is None:
            checks.fail("text", "have a chat template", "has none", "Give `Template` a prefix and a suffix instead.")
        mark = "\x00input\x00"
        said = [{"role": "user", "content": f"{before}{mark}{after}"}]
        whole = self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        prefix, suffix = whole.split(mark)
        start = self.tokenizer.bos_token
        if start is not None and self.begin():  # it would stand there twice
            prefix = prefix.removeprefix(start)
        return self.replace(template=dataclasses.replace(self.template, prefix=prefix, suffix=suffix, answer=""))

    def encode_input(self, words: str) -> list[int]:
        """Return the tokens of an input, of which the template may keep the first ones alone."""
        return self.encode(words)[: self.template.max_input]

    def kept(self, words: str) -> str:
        """Return as much of an input as the template keeps."""
        ids = self.encode(words)
        whole = self.template.max_input is None or len(ids) <= self.template.max_input
        return words if whole else self.decode(ids[: self.template.max_input])

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of some tokens, without the special ones."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)
