"""Every static choice of the pipeline, and which of them go together."""

import dataclasses
from typing import Any

from nvcim_jax import checks, selection
from nvcim_jax.tuning import STARTS, Adapter, Options, ia3, lora, prefix, prompt, start_activations

__all__ = ["ADAPTERS", "SEPARATE_KEYS", "Config", "changed"]

ADAPTERS = ("prompt", "prefix", "lora", "ia3")
CODECS = ("autoencoder", "identity")
FEATURES = ("embedding", "hidden", "last")
KEYS = ("prompt", "anchored", "contrastive", "representative", "centroid")
SEPARATE_KEYS = ("representative", "centroid")
POLICIES = ("refuse", "oldest", "least_used")
CLUSTER_BY = ("input", "record")
TRAIN_ON = ("cluster", "buffer")

MOST_VIRTUAL, MOST_PROMPTS = 4096, 100_000
"""Largest prompt and largest store: more is a slip of the finger, and would fill the memory before it is noticed."""


OF_KEYS = ("num_keys", "key_centre", "key_spread", "key_clip", "key_unit", "search", "pick")
OF_MEMORY = ("codec", "code", "codec_fit", "capacity", "when_full")
"""Options that rows do not depend on while they are tuned: how they are found, and what holds them."""


@checks.frozen_config
class Config:
    """Static options of NVCiM-PT. Only `search` and the noise on virtual tokens are the paper's own words [S].

    Numbers that are swept, and the memory cells, are no part of it: see `Preset`.

    Attributes:
        tunes: What is tuned and stored: a `prompt`, a `prefix` of keys and values, low-rank changes (`lora`) or factors
            (`ia3`). Only a prompt can be its own key.
        num_virtual: Virtual tokens of a prompt or prefix.
        rank: Rank of low-rank changes.
        start: Where a prompt starts: the `text` of its representative with its answer, rows of the `vocabulary`,
            `activations` of that text, or all `examples` that it is tuned on, several in each virtual token, in the
            way the model was taught to read them (see `tuning.STARTS`).
        num_prompts: Prompts a buffer; None is max(1, round(sqrt(buffer))).
        cluster_by: What the records of a buffer are clustered by: the features of the `input`, or of the whole
            `record`, input and answer side by side, each at unit length, which gathers records with alike answers.
        train_on: Examples that a prompt is tuned on: those of its `cluster`, or the whole `buffer`.
        tuning: Options of prompt tuning.
        features: How a text is looked at: token `embedding`s, `hidden` states after `feature_layers` blocks, or the
            hidden state of the `last` token alone.
        feature_layers: Blocks below the hidden states; None is all of them, and so is more than the model has.
        keys: What is stored to be searched: the `prompt` itself (the paper's), a prompt held near its representative
            while it is tuned (`anchored`), the prompt through a codec trained so that queries meet it (`contrastive`),
            or, apart from the prompt, the features of the `representative`, or the mean features of its cluster (its
            `centroid`).
        num_keys: Keys of a prompt, for separately stored keys and one prompt a buffer (`num_prompts=1`): its records
            are clustered into as many, each with a key, and the best of them finds the prompt. Of fewer records some
            keys stand twice.
        key_tokens: Tokens that a query or key is averaged into; None: `num_virtual` for the prompt as key, else 1.
        key_centre: Whether keys and queries are taken relative to the mean of what is stored: what all texts have in
            common tells none apart, and takes room that the cells need for the rest.
        key_spread: Whether each dimension of a separately stored key, and of a query, is divided by its spread over all
            texts observed so far. A few dimensions of a large model's states carry most of their length, and drown the
            others without it.
        key_clip: Largest entry of a stored key, in units of the root mean square of its entries: the noise of a cell
            grows with the largest entry of its column, so a few large ones drown all others. None clips nothing.
        key_unit: Whether a separately stored key, and a query, is brought to unit length first.
        search: Options of the search.
        pick: How scores become a choice: `hard`, `soft`, `straight_through`.
        codec: What stands between prompt and memory: a per-token `autoencoder`, or nothing (`identity`).
        code: Values of a token's code.
        codec_fit: Options of the codec's training.
        capacity: Prompts that fit the store.
        when_full: `refuse`, or replace the `oldest` or the `least_used` prompts.

    Raises:
        ValueError: If an option has no such value, or does not go together with another.
    """

    tunes: str = "prompt"
    num_virtual: int = 8
    rank: int = 2
    start: str = "text"
    num_prompts: int | None = None
    cluster_by: str = "input"
    train_on: str = "cluster"
    tuning: Options = Options()
    features: str = "embedding"
    feature_layers: int | None = None
    keys: str = "representative"
    num_keys: int = 1
    key_tokens: int | None = None
    key_centre: bool = False
    key_spread: bool = False
    key_clip: float | None = None
    key_unit: bool = True
    search: selection.SearchConfig = selection.SearchConfig()
    pick: str = "hard"
    codec: str = "autoencoder"
    code: int = 48
    codec_fit: selection.FitConfig = selection.FitConfig()
    capacity: int = 128
    when_full: str = "refuse"

    def __post_init__(self) -> None:
        """Check every option, then those that may not go together."""
        choices = {
            "tunes": ADAPTERS,
            "start": STARTS,
            "cluster_by": CLUSTER_BY,
            "train_on": TRAIN_ON,
            "features": FEATURES,
            "keys": KEYS,
            "pick": selection.PICKS,
            "codec": CODECS,
            "when_full": POLICIES,
        }
        for name, known in choices.items():
            checks.choice(name, getattr(self, name), known)
        for name, most in (
            ("num_virtual", MOST_VIRTUAL),
            ("rank", MOST_VIRTUAL),
            ("code", None),
            ("capacity", MOST_PROMPTS),
            ("num_keys", MOST_PROMPTS),
        ):
            checks.integer(name, getattr(self, name), high=most)
        for name in ("num_prompts", "key_tokens"):
            if getattr(self, name) is not None:
                checks.integer(name, getattr(self, name))
        if self.feature_layers is not None:
            checks.integer("feature_layers", self.feature_layers, low=0)
        if self.key_clip is not None:
            checks.number("key_clip", self.key_clip, low=0.0, low_open=True)
        if self.num_keys > 1 and (self.num_prompts != 1 or self.keys not in SEPARATE_KEYS):
            found = f"is {self.num_keys} with num_prompts={self.num_prompts} and keys={self.keys!r}"
            fix = f"Use num_keys=1, or num_prompts=1 and keys={' or '.join(map(repr, SEPARATE_KEYS))}."
            checks.fail("num_keys", "be 1 (more only for one prompt a buffer whose keys are stored apart)", found, fix)
        if self.key_spread and self.keys not in SEPARATE_KEYS:
            known = " or ".join(map(repr, SEPARATE_KEYS))
            checks.fail(
                "key_spread", f"be False with keys={self.keys!r}", "is True", f"Store keys apart: keys={known}."
            )
        if self.keys == "contrastive" and self.codec == "identity":
            checks.fail("codec", "be 'autoencoder' with keys='contrastive'", "is 'identity', which learns nothing")
        if self.tunes != "prompt" and self.keys not in SEPARATE_KEYS:
            fix = f"Search by keys apart: {', '.join(SEPARATE_KEYS)}."
            checks.fail("keys", f"be apart from the values with tunes={self.tunes!r}", f"are {self.keys!r}", fix)

    def changed(self, **fields: Any) -> "Config":
        """Return a copy with some fields replaced; a dictionary replaces fields of a part.

        Example:
            >>> Config().changed(capacity=3, search={"axis": "tokens"}).search.axis
            'tokens'
        """
        return changed(self, **fields)

    def for_tuning(self) -> "Config":
        """Return a copy in which everything that tuned rows do not depend on is as by default.

        Example:
            >>> Config(num_virtual=4, capacity=3, keys="centroid").for_tuning() == Config(num_virtual=4)
            True
        """
        held = OF_KEYS if self.keys == "anchored" else (*OF_KEYS, "keys", "key_tokens")
        return dataclasses.replace(self, **{name: getattr(_DEFAULT, name) for name in (*held, *OF_MEMORY)})

    def adapter(self) -> Adapter:
        """Return what is tuned by default: a prompt of this size and start, or what `tunes` names."""
        if self.tunes != "prompt":
            start = self.start if self.start in ("text", "vocabulary") else "text"
            return {"prefix": prefix(self.num_virtual, start), "lora": lora(self.rank), "ia3": ia3()}[self.tunes]
        start: Any = self.start
        return prompt(self.num_virtual, start_activations(self.feature_layers) if start == "activations" else start)

    @property
    def search_tokens(self) -> int:
        """Tokens of a query and of a key."""
        if self.key_tokens is not None:
            return self.key_tokens
        return 1 if self.keys in SEPARATE_KEYS else self.num_virtual

    @property
    def shares_arrays(self) -> bool:
        """Whether the search runs on the very cells that hold the prompts."""
        pooled_apart = self.search.measure == "ssa" and self.search.storage == "apart"
        altered = self.key_unit or self.key_centre or self.key_clip is not None
        plain = self.search.measure != "cosine" and not altered and not pooled_apart
        return plain and self.keys not in SEPARATE_KEYS and self.search_tokens == self.num_virtual


_DEFAULT = Config()


def changed(config: Any, /, **fields: Any) -> Any:
    """Return a configuration with some fields replaced; a dictionary replaces fields of a part.

    Example:
        >>> changed(Config(), capacity=3, search={"axis": "tokens"}).search.axis
        'tokens'
    """
    parts = {
        name: changed(getattr(config, name), **value) if isinstance(value, dict) else value
        for name, value in fields.items()
    }
    return dataclasses.replace(config, **parts)
