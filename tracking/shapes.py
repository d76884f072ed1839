"""What the rows of a run's logs are made of. A value that is something else, in a log that was damaged or that another
program wrote, is taken as missing."""

from __future__ import annotations

from typing import Any

MOST = 1e100
"""No number of a run is as large: squares of those below are still finite."""


def is_number(value: Any) -> bool:
    """Finite, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -MOST < value < MOST


def whole(value: Any) -> bool:
    """Of steps, tokens and the like; above it a chart's numbers lie too close together."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e12


def count(value: Any) -> bool:
    return whole(value) and value >= 0


def moment(value: Any) -> bool:
    """Seconds since 1970, as a clock has them."""
    return is_number(value) and 0 <= value < 1e11


def share(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def text(value: Any) -> bool:
    return isinstance(value, str)


def shaped(value: Any, shape: Any) -> Any:
    """``value`` with None for whatever in it isn't as ``shape`` has it; keys that ``shape`` lacks stay as they are.

    A shape is a condition, a list with the shape of each element, or a dict with the shapes of some keys.

    >>> shaped({"reward": "much", "titles": ["Emma", 3], "calls": 7, "more": 1},
    ...        {"reward": is_number, "titles": [text], "calls": [{}]})
    {'reward': None, 'titles': ['Emma', None], 'calls': None, 'more': 1}
    """
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return None
        return value | {name: shaped(value[name], inner) for name, inner in shape.items() if name in value}
    if isinstance(shape, list):
        return [shaped(each, shape[0]) for each in value] if isinstance(value, list) else None
    return value if shape(value) else None


Shape = dict[str, Any]

STEP: Shape = {"step": whole, "time_s": is_number, "time/step_s": is_number}
EVALUATION: Shape = {
    "step": whole, "time_s": is_number, "seconds": is_number, "em": share, "f1": share, "n": count, "faults": count,
    "samples": count,
}  # fmt: skip
EVENT: Shape = {"event": text, "step": whole, "batch": whole, "time_s": is_number}
SUMMARY: Shape = {
    "step": whole, "time_s": is_number, "rollouts": is_number, "generated_tokens": is_number, "restarts": is_number,
}  # fmt: skip
SPAN: Shape = {"actor": text, "what": text, "start": moment, "end": moment}
QUESTION: Shape = {
    "question_id": text, "question": text, "golden_answers": [text], "supporting": [text], "kind": text,
}  # fmt: skip
GROUP: Shape = QUESTION | {
    "batch": whole, "order": whole, "version": whole, "state": text, "before": text, "worker": text,
    "rewards": [is_number], "outcomes": [is_number], "evidence": [is_number], "advantages": [is_number],
    "searches": [is_number], "tokens": [is_number], "stops": [text], "faults": [text], "discarded": is_number,
    "seconds": is_number,
}  # fmt: skip
CALL: Shape = {"tool": text, "argument": text, "titles": [text], "ids": [text], "supporting": [whole], "repeat": text}
TURN: Shape = {
    "text": text, "observation": text, "found": [text], "calls": [CALL], "tokens": [text], "logprobs": [is_number],
    "versions": [[whole]],
}  # fmt: skip
HEAD: Shape = QUESTION | {
    "batch": whole, "step": whole, "order": whole, "member": whole, "sample": whole, "reward": is_number,
    "outcome": is_number, "em": share, "f1": share, "evidence": is_number, "searches": whole, "action_tokens": whole,
    "inherited_turns": whole, "stop_reason": text, "answer": text, "fault": text, "state": text, "worker": text,
    "gate": text, "cost": is_number,
}  # fmt: skip
"""An episode without its turns, which are most of it."""
EPISODE: Shape = HEAD | {"turns": [TURN]}
