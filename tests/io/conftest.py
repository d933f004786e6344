"""A small language model, a device, two buffers, and a memory made of them."""

from support.small import buffers, config, device, learnt, lm, make_learnt, text

__all__ = ["buffers", "config", "device", "learnt", "lm", "make_learnt", "text"]
