"""How a text begins, and the chat template as the form of a task."""

import pytest

from nvcim_jax import models


class Spaces:
    """A tokenizer of single letters; 1 starts a text and 2 ends it."""

    bos_token = "<s>"
    chat_template = "any"

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        ids = [ord(letter) for letter in text]
        return {"input_ids": [1, *ids, 2] if add_special_tokens else ids}

    def apply_chat_template(self, said, tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize
        assert add_generation_prompt
        return "<s>" + "".join(f"[{m['role']}] {m['content']}\n" for m in said) + "[model] "


class Plain(Spaces):
    """The same, which puts nothing around a text."""

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        return super().__call__(text)


def test_a_text_begins_as_the_tokenizer_has_it() -> None:
    assert models.Text(Spaces()).begin() == [1]
    assert models.Text(Plain()).begin() == []


def test_the_chat_template_becomes_the_form_of_a_task() -> None:
    text = models.Text(Spaces(), models.Template(max_input=3)).chat("Intent of: ", "?")
    # the start token stands there once
    found = models.Template(prefix="[user] Intent of: ", suffix="?\n[model] ", answer="", max_input=3)
    assert text.template == found


def test_a_tokenizer_without_a_chat_template_is_refused() -> None:
    bare = Spaces()
    bare.chat_template = None
    with pytest.raises(ValueError, match="`text` must have a chat template"):
        models.Text(bare).chat()
