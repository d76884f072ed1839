"""Outcomes, one module each: its function ``outcome`` is found by the module's name, the value of ``reward.outcome``.

``outcome(question, trajectory)`` gives a number in [0, 1]; a trajectory without an answer is judged, too.
"""
