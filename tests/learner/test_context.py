"""How long a text a model takes, by what its configuration says."""

from __future__ import annotations

from typing import Any

import pytest

from learner.context import context_of, could_be, window_of

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100}


@pytest.mark.parametrize(
    ("config", "context", "reach"),
    [
        ({}, None, None),
        ({"max_position_embeddings": None}, None, None),
        ({"max_position_embeddings": 100}, 100, None),
        ({"max_position_embeddings": 100, "rope_scaling": None}, 100, None),
        ({"max_position_embeddings": 100, "rope_scaling": {"type": "linear", "factor": 2.5}}, 250, None),
        ({"max_position_embeddings": 100, "rope_parameters": {"rope_type": "linear", "factor": 2}}, 200, None),
        ({"max_position_embeddings": 100, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 200, None),
        ({"max_position_embeddings": 100, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 100, None),
        ({"max_position_embeddings": 100, "rope_scaling": YARN}, 100, (400, 100)),
        ({"max_position_embeddings": 400, "rope_scaling": YARN}, 400, None),
        ({"max_position_embeddings": 100, "rope_scaling": {"type": "yarn", "factor": 2.0}}, 100, (200, 100)),
    ],
)
def test_scaled_positions(config: dict[str, Any], context: int | None, reach: tuple[int, int] | None) -> None:
    assert (context_of(config), could_be(config)) == (context, reach)


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({}, None),
        ({"sliding_window": None}, None),
        ({"sliding_window": 64}, 64),
        ({"sliding_window": 64, "layer_types": ["full_attention", "full_attention"]}, None),
        ({"sliding_window": 64, "layer_types": ["full_attention", "sliding_attention"]}, 64),
    ],
)
def test_a_window_counts_where_a_layer_has_it(config: dict[str, Any], window: int | None) -> None:
    assert window_of(config) == window
