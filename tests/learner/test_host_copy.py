"""Copies of live tensors."""

from __future__ import annotations

import torch

from learner.host_copy import copied


def test_copies_stay_as_they_were_and_share_what_was_shared() -> None:
    tied = torch.ones(3, requires_grad=True)
    live = {
        "weights": {"head": tied, "embedding": tied.detach()},
        "list": [torch.zeros(2), (torch.ones(2), "text", 5)],
        "empty": [torch.empty(0), torch.empty(0, 4)],
    }
    copy = copied(live)
    with torch.no_grad():
        tied.add_(1)
        live["list"][0].add_(1)
    assert copy["weights"]["head"].tolist() == [1, 1, 1]
    assert not copy["weights"]["head"].requires_grad
    assert copy["weights"]["head"] is copy["weights"]["embedding"], "or a tied weight would be written twice"
    assert copy["list"][0].tolist() == [0, 0]
    assert copy["list"][1][1:] == ("text", 5)
    assert [tuple(t.shape) for t in copy["empty"]] == [(0,), (0, 4)]
