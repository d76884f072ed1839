"""How long a text a model takes, by what its configuration says."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from agent.errors import UserError
from learner.context import check_positions, configuration, context_of, could_be, window_of

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
    ("changed", "said"),
    [
        *(
            ({"rope_parameters": {"rope_type": kind, "factor": factor}}, f"by factor={said}, which is no number above")
            for kind in ("linear", "yarn")
            for factor, said in ((math.inf, "inf"), (math.nan, "nan"), (0, "0"), (-2.0, "-2.0"), ("2", "'2'"))
        ),
        ({"rope_scaling": {"type": "linear", "factor": math.inf}}, "by factor=inf, which is no number above"),
        ({"max_position_embeddings": -4}, "max_position_embeddings=-4, a context of no token"),
        ({"max_position_embeddings": 0}, "max_position_embeddings=0, a context of no token"),
    ],
)
def test_positions_that_no_model_has(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=rf"^model\.path=it: config\.json .*{re.escape(said)}"):
        check_positions(changed, "model.path=it")


def test_what_a_model_has_is_taken() -> None:
    for positions in (None, {}, {"rope_type": "default"}, YARN, {"full_attention": {"rope_type": "default"}}):
        check_positions({"max_position_embeddings": 1, "rope_parameters": positions}, "model.path=it")


@pytest.mark.parametrize(
    "changed",
    [
        {"layer_types": 5},
        {"layer_types": ["full_attention"]},
        {"num_attention_heads": "four"},
        {"model_type": ["llama"]},
    ],
)
def test_a_wrong_field_is_one_line_whatever_its_family_raises(tmp_path: Path, changed: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "sliding_window": 64, **changed}))
    with pytest.raises(UserError, match=r"^model\.path=it: no model's configuration can be loaded from it \("):
        configuration(str(tmp_path), "model.path=it")


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
