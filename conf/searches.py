"""What counts searches, and so needs a tool of that name."""

from __future__ import annotations

from agent.config import AgentConfig, RewardConfig, SearchLimitConfig, SelectivityConfig
from agent.errors import UserError
from agent.records import SEARCH
from agent.tools.catalogue import tool_classes

_GATES = ("no_search", "duplicate_query")


def check_searches(
    agent: AgentConfig, reward: RewardConfig, limit: SearchLimitConfig, selectivity: SelectivityConfig
) -> None:
    """Raises ``UserError`` for a setting that counts searches where no tool of the agent is called so.

    ``no_search`` would close for each episode, and leave no reward; the others would do nothing.
    """
    if any(tool.name == SEARCH for tool in tool_classes(agent.tools)):
        return
    gates = [f"the gate {gate} of reward.gates" for gate in reward.gates if gate in _GATES]
    costs = [f"reward.{name}" for name in ("search_cost", "redundant_cost") if getattr(reward, name)]
    limits = [f"search_limit.rule={limit.rule}"] if limit.rule != "fixed" else []
    repeats = ["selectivity"] if selectivity.on else []
    for setting in (*gates, *costs, *limits, *repeats):
        raise UserError(
            f"agent.tools={list(agent.tools)} has no tool called '{SEARCH}', and {setting} counts searches; give the "
            "tool that retrieves this name (Tool.name), or leave it out"
        )
