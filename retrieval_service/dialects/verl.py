"""verl's: ``query_list`` in the place of Search-R1's ``queries``.

That is the argument of verl's search tool; the tool itself (``verl/tools/utils/search_r1_like_utils.py``) sends
``queries``, which is Search-R1's dialect. Both are answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from retrieval_service.dialects import base, search_r1


class Request(base.Request):
    query_list: list[str]
    topk: base.TopK | None = None
    return_scores: bool = True


class Dialect(search_r1.Dialect):
    about = "verl, with its tool's argument"
    request = Request
    example: ClassVar[Mapping[str, Any]] = {"query_list": ["who wrote Emma?"], "topk": 3, "return_scores": True}
    key = "query_list"
