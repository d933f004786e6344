"""A small language model, a device, two buffers, and a memory made of them."""

from support.small import arrays, buffers, config, device, learnt, lm, make_learnt, memory, text

__all__ = ["arrays", "buffers", "config", "device", "learnt", "lm", "make_learnt", "memory", "text"]
