"""``mode=plan``: what a configuration puts on each GPU, how fast that may be, and what would make it fit.

    cards, architecture ──► learner, engine (bytes) ──► fit (what is too much, the smallest change)
                                          └───────────► roofline (seconds) ──► table

Arithmetic over the configuration alone: no Ray, no torch, no GPU, milliseconds. What is static (weights,
gradients, optimizer states, reference, KV cache per token) is exact to the byte, and tests pin it against real
tensors; what lives for moments is counted from the code that makes it; what neither can tell (CUDA context,
fragmentation, how far from its peak a card computes) is a named constant.
"""
