"""The pool and the pipeline without a model: simulated policies, simulated time."""
