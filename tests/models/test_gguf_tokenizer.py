"""Tokenizers that are built from the metadata of GGUF files, against those the metadata were taken from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from nvcim_jax.models.files.gguf_tokenizer import gguf_tokenizer

ROOT = Path(__file__).parents[2]
LINES = [line for name in ("README.md", "CHANGELOG.md") for line in (ROOT / name).read_text("utf-8").split("\n")]
HARD = [
    "", " ", "  two  spaces ", "\ttab\tand\n\nlines\r\n", "1234567 and 12.5%, 1,000", "don't we'LL THEY'RE",
    "naïve Zürich", "日本語のテキスト", "🙂👍🏽 emoji", "a<s>b", "x <|im_start|>user\nhi<|im_end|>", "ⅷ ² ½ ٣",
    "    indented = {\n        1: 2}", "\N{LOWER ONE EIGHTH BLOCK} kept", "\0\x7f\ufffd",
]  # fmt: skip
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3, QWEN2 = rf"{WORDS}|\p{{N}}{{1,3}}|{REST}", rf"{WORDS}|\p{{N}}|{REST}"


def _split(expression: str) -> Any:
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(expression), "isolated"), plain])


PRE: dict[str, Callable[[], Any]] = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "qwen2": lambda: _split(QWEN2),
    "llama-bpe": lambda: _split(LLAMA3),
}
"""`tokenizer.ggml.pre` -> what tokenizer.json of such a model has (GPT-2, SmolLM2, Qwen2, Llama 3)."""


def _merges(made: Tokenizer) -> list[str]:
    import json

    return [" ".join(pair) for pair in json.loads(made.to_str())["model"]["merges"]]


def _metadata(made: Tokenizer, model: str, special: list[str], **more: Any) -> dict[str, Any]:
    """Return what a file says of a tokenizer."""
    vocab = sorted(made.get_vocab().items(), key=lambda item: item[1])
    tokens = [token for token, _ in vocab]
    assert [i for _, i in vocab] == list(range(len(tokens)))
    kinds = [3 if token in special else 1 for token in tokens]
    more = {f"tokenizer.ggml.{key}": value for key, value in more.items()}
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.bos_token_id": tokens.index(special[0]),
        "tokenizer.ggml.eos_token_id": tokens.index(special[1]),
    } | more


def _same(found: Any, wanted: Tokenizer) -> None:
    for line in [*LINES, *HARD]:
        ids = found(line, add_special_tokens=False)["input_ids"]
        assert ids == wanted.encode(line, add_special_tokens=False).ids, line
        assert found.decode(ids) == wanted.decode(ids, skip_special_tokens=False), line


SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


@pytest.mark.parametrize("pre", PRE)
def test_byte_levels_split_as_the_tokenizers_they_are_named_for(pre) -> None:
    made = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    made.pre_tokenizer, made.decoder = PRE[pre](), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(LINES, trainer)
    meta = _metadata(made, "gpt2", SPECIAL, pre=pre, merges=_merges(made))
    found = gguf_tokenizer(meta, "a.gguf")
    _same(found, made)
    begins = pre == "llama-bpe"  # which llama.cpp lets begin with the start token
    assert (found("hi")["input_ids"][0] == 0) == begins
    assert (found.bos_token, found.eos_token) == ("<s>", "</s>")


def _pieces(prefixed: bool) -> Tokenizer:
    """Return a BPE as SentencePiece makes them: a sign for spaces, every byte a token to fall back to."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    scheme = "first" if prefixed else "never"
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tail = [decoders.Strip(" ", 1, 0)] if prefixed else []
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *tail])
    special = ["<unk>", *SPECIAL, *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, limit_alphabet=60, show_progress=False)
    made.train_from_iterator([f" {word}" for line in LINES for word in line.split()], trainer)
    return made


@pytest.mark.parametrize("prefixed", [True, False])
def test_scores_are_merges(prefixed) -> None:
    trained = _pieces(prefixed)
    vocab = trained.get_vocab()
    # A trained one has a single way to make each token; a file's scores stand for all of them.
    tokens = sorted(vocab, key=vocab.get)
    ways = [(tokens.index(t), at, t) for t in tokens for at in range(1, len(t)) if {t[:at], t[at:]} <= vocab.keys()]
    merges = [(t[:at], t[at:]) for _, at, t in sorted(ways)]
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.pre_tokenizer, made.decoder = trained.pre_tokenizer, trained.decoder
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    scores = -np.arange(len(tokens), dtype=np.float32)
    meta = _metadata(made, "llama", SPECIAL, scores=scores, unknown_token_id=0, add_space_prefix=prefixed)
    kinds = meta["tokenizer.ggml.token_type"]
    kinds[0], kinds[5:261] = 2, 6
    found = gguf_tokenizer(meta, "a.gguf")
    _same(found, made)
    assert found("hi")["input_ids"][0] == tokens.index("<s>")  # what SentencePiece models do unless told otherwise
    assert found.decode(found("日本 hi", add_special_tokens=False)["input_ids"]).strip() == "日本 hi"


def test_gemma_keeps_spaces_and_ranks_by_the_order_of_the_tokens() -> None:
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    plain = ["\n\n", "  ", "▁", "a", "b", "c", "ab", "bc", "▁a", "▁▁a"]
    tokens = [*special, *(f"<0x{i:02X}>" for i in range(256)), *plain]
    kinds = np.array([3] * 3 + [2] + [6] * 256 + [4] * 2 + [1] * 8, np.int32)
    meta = {
        "general.architecture": "gemma3",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": np.linspace(-1, 0, len(tokens), dtype=np.float32),  # "bc" before "ab"
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
    } | {f"tokenizer.ggml.{name}_token_id": i for i, name in enumerate(("padding", "eos", "bos", "unknown"))}
    found = gguf_tokenizer(meta, "a.gguf")
    assert found.tokenize("abc  a\n\né") == ["ab", "c", "▁▁a", "\n\n", "<0xC3>", "<0xA9>"]
    ids = found("a")["input_ids"]
    assert found.convert_ids_to_tokens(ids) == ["<bos>", "a", "<eos>"]
    assert found.convert_ids_to_tokens(found("a", "b")["input_ids"]) == ["<bos>", "a", "<eos>", "<bos>", "b", "<eos>"]
    assert found.decode(found("abc  a\n\né")["input_ids"], skip_special_tokens=True) == "abc  a\n\né"
    assert (found.pad_token, found.unk_token) == ("<pad>", "<unk>")


def test_phi_3_prepends_a_space_to_every_piece_between_special_tokens() -> None:
    trained = _pieces(True)
    tokens = sorted(trained.get_vocab(), key=trained.get_vocab().get)
    scores = -np.arange(len(tokens), dtype=np.float32)
    meta = _metadata(trained, "llama", SPECIAL, scores=scores, unknown_token_id=0)
    found = gguf_tokenizer(meta | {"general.architecture": "phi3"}, "a.gguf")
    wanted = gguf_tokenizer(meta, "a.gguf")
    assert found("the way")["input_ids"] == wanted("the way")["input_ids"]
    assert isinstance(found.backend_tokenizer.normalizer, normalizers.Sequence)


def test_the_chat_template_is_kept_with_the_tokens_it_names() -> None:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([], trainers.BpeTrainer(special_tokens=SPECIAL, initial_alphabet=alphabet))
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    meta = _metadata(made, "gpt2", SPECIAL, pre="smollm", merges=[], add_bos_token=True)
    found = gguf_tokenizer(meta | {"tokenizer.chat_template": template, "llama.context_length": 128}, "a.gguf")
    said = [{"role": "user", "content": "hi"}]
    assert found.apply_chat_template(said, tokenize=False) == "<|im_start|>user\nhi<|im_end|>"
    ids = found("<|im_start|>a")["input_ids"]
    assert ids[:2] == [0, 2]  # the start token, and a special token in one piece
    assert found.model_max_length == 128
    assert gguf_tokenizer({"general.architecture": "llama"}, "a.gguf") is None
