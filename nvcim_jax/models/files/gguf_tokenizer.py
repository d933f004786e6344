"""Build a tokenizer from the metadata of a GGUF file.

References:
    How a name in `tokenizer.ggml.pre` splits text: llama.cpp, `src/llama-vocab.cpp`. How merges follow from the tokens
    of a SentencePiece model, and what is an added token: transformers, `integrations/gguf/gguf_tokenizer_mapping.py`.
"""

from collections.abc import Mapping
from typing import Any

from nvcim_jax import checks
from nvcim_jax.models.files.quiet import import_transformers

__all__ = ["gguf_tokenizer"]

PLAIN = ""
"""The expression of GPT-2, which the byte level has built in."""

DIGITS = "digits"
"""Digits one by one, and then the expression of GPT-2."""

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SPLITS: Mapping[str, str] = {
    "gpt-2": PLAIN,
    "phi-2": PLAIN,
    "mpt": PLAIN,
    "olmo": PLAIN,
    "jais": PLAIN,
    "smollm": DIGITS,
    "refact": DIGITS,
    "starcoder": DIGITS,
    "command-r": DIGITS,
    "codeshell": DIGITS,
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "falcon3": LLAMA3,
    "dbrx": LLAMA3,
    "smaug-bpe": LLAMA3,
    "qwen2": QWEN2,
    "deepseek-r1-qwen": QWEN2,
    "megrez": QWEN2,
    "tekken": TEKKEN,
}
"""`tokenizer.ggml.pre` -> the expression that text is split by before it is merged."""

WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "tekken")
"""Those that take a word that is a token as it is, and that begin a text with the start token unless told otherwise."""

CONTROL, USER = 3, 4
"""Values of `tokenizer.ggml.token_type`."""

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What SentencePiece writes for a space."""

Meta = Mapping[str, Any]


def _token(meta: Meta, name: str) -> str | None:
    number = meta.get(f"tokenizer.ggml.{name}_token_id")
    return None if number is None else meta["tokenizer.ggml.tokens"][number]


def _byte_level(meta: Meta, name: str) -> Any:
    """Return the byte-level BPE of a file."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    pre = meta.get("tokenizer.ggml.pre", "gpt-2")
    checks.choice(f"{name}: tokenizer.ggml.pre", pre, SPLITS)
    merges = [tuple(pair.split(" ", 1)) for pair in meta["tokenizer.ggml.merges"]]
    vocab = {token: i for i, token in enumerate(meta["tokenizer.ggml.tokens"])}
    made = Tokenizer(models.BPE(vocab, merges, fuse_unk=False, ignore_merges=pre in WHOLE_WORDS))
    split = SPLITS[pre]
    if split == DIGITS:
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    elif split == PLAIN:
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        steps = [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    made.decoder = decoders.ByteLevel()
    return made


def _merges(vocab: Mapping[str, int], rank: Mapping[str, int] | Mapping[str, float]) -> list[tuple[str, str]]:
    """Return every split of a token into two tokens, the tokens of the lowest rank first."""
    found = [
        (rank[token], at, len(token), token[:at], token[at:])
        for token in vocab
        for at in range(1, len(token))
        if token[:at] in vocab and token[at:] in vocab
    ]
    found.sort(key=lambda item: item[:3])
    return [(left, right) for *_, left, right in found]


def _sentence_pieces(meta: Meta) -> Any:
    """Return the BPE of a SentencePiece model, which falls back to bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    arch = meta["general.architecture"]
    gemma = arch.startswith("gemma")
    # Runs of spaces are written with real spaces, and are tokens like any other.
    tokens = [t if t.strip(" ") else SPACE * len(t) for t in meta["tokenizer.ggml.tokens"]]
    vocab = {token: i for i, token in enumerate(tokens)}
    # Scores of Gemma do not follow the order of its merges; that of the tokens does.
    rank = vocab if gemma else {t: -s for t, s in zip(tokens, meta["tokenizer.ggml.scores"].tolist(), strict=True)}
    unknown = _token(meta, "unknown")
    merges = _merges(vocab, rank)
    made = Tokenizer(models.BPE(vocab, merges, fuse_unk=True, byte_fallback=True, unk_token=unknown))
    prefixed = bool(meta.get("tokenizer.ggml.add_space_prefix", not gemma))
    if gemma:
        made.normalizer = normalizers.Replace(" ", SPACE)
        made.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    elif arch == "phi3":
        made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    else:
        scheme = "first" if prefixed else "never"
        made.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=False)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)
    return made


def _add(made: Any, meta: Meta) -> None:
    """Add the tokens that are never split: special ones, and those a user defined."""
    from tokenizers import AddedToken

    named = list(zip(meta["tokenizer.ggml.tokens"], meta.get("tokenizer.ggml.token_type", ()), strict=False))
    made.add_special_tokens([AddedToken(t, normalized=False, special=True) for t, kind in named if kind == CONTROL])
    # Runs of spaces come about by merges.
    plain = [t for t, kind in named if kind == USER and t.strip(" ")]
    made.add_tokens([AddedToken(t, normalized=False, special=False) for t in plain])


def _begin(made: Any, meta: Meta) -> None:
    """Let texts begin and end with the tokens that the file asks for."""
    from tokenizers import processors

    modern = meta.get("tokenizer.ggml.pre") in WHOLE_WORDS
    pieces = meta["tokenizer.ggml.model"] == "llama"
    first = _token(meta, "bos") if meta.get("tokenizer.ggml.add_bos_token", pieces or modern) else None
    last = _token(meta, "eos") if meta.get("tokenizer.ggml.add_eos_token", False) else None
    ends = [(token, made.token_to_id(token)) for token in (first, last) if token is not None]
    if ends:
        parts = ([first] if first else []), ([last] if last else [])
        single = [*parts[0], "$A", *parts[1]]
        pair = [*single, *(f"{part}:1" for part in parts[0]), "$B:1", *(f"{part}:1" for part in parts[1])]
        made.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ends)


def gguf_tokenizer(meta: Meta, name: str) -> Any:
    """Return the tokenizer that a file describes, or None where it describes none.

    The start token is added where the file says so, and the chat template is that of the file.

    Args:
        meta: The file's metadata.
        name: The file, for messages.

    Raises:
        ValueError: If it is of a kind that is not supported.
    """
    if "tokenizer.ggml.model" not in meta:
        return None
    kind = meta["tokenizer.ggml.model"]
    checks.choice(f"{name}: tokenizer.ggml.model", kind, ("gpt2", "llama"))
    transformers = import_transformers()
    made = _byte_level(meta, name) if kind == "gpt2" else _sentence_pieces(meta)
    _add(made, meta)
    _begin(made, meta)
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    special = {f"{short}_token": _token(meta, long) for short, long in named.items()}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        chat_template=meta.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        model_max_length=int(meta.get(f"{meta['general.architecture']}.context_length", 10**30)),
        **{key: token for key, token in special.items() if token is not None},
    )
