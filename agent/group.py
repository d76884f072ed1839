"""How the K trajectories of one question come about. The plain strategy: K independent episodes.

``agent/strategies.py`` lists all strategies.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from agent.config import AgentConfig, SelectivityConfig
from agent.dialogue import Dialogue
from agent.environment import Environment
from agent.episode import Generator, Prefix, Watcher, play
from agent.groups import Group
from agent.records import Question, Trajectory
from agent.rewards.scorer import Scored, Scorer
from agent.seeds import derive_seed
from agent.tickets import QueryState, Ticket


@dataclass(frozen=True, kw_only=True, slots=True)
class Player:
    """Everything that episodes need, so that a group strategy is one function of a ticket."""

    dialogue: Dialogue
    config: AgentConfig
    generator: Generator
    environment: Environment
    scorer: Scorer

    async def episode(
        self,
        question: Question,
        *,
        temperature: float,
        seed: int,
        start: Prefix | None = None,
        max_searches: int | None = None,
        selectivity: SelectivityConfig | None = None,
        watcher: Watcher | None = None,
    ) -> Trajectory:
        """One episode, from the prompt or from a prefix; see ``agent.episode.play``."""
        return await play(
            question,
            dialogue=self.dialogue,
            config=self.config,
            generator=self.generator,
            environment=self.environment,
            temperature=temperature,
            seed=seed,
            start=start,
            max_searches=max_searches,
            selectivity=selectivity,
            watcher=watcher,
        )


async def play_group(player: Player, question: Question, ticket: Ticket, *, size: int, worker: str) -> Group:
    """K = ``size`` episodes at the training temperature, scored; faulted ones are set apart.

    A ticket with a pilot has as many played first, and the others only if these don't decide the group as the ticket
    says, and no failed search, tool or reward is among them. An episode's seed is that of its place in the group,
    whichever way it is played.
    """
    started = time.monotonic()

    async def played(places: range) -> list[Trajectory]:
        return await asyncio.gather(
            *(
                player.episode(
                    question,
                    temperature=player.config.temperature,
                    seed=derive_seed(ticket.seed, k),
                    max_searches=ticket.max_searches,
                )
                for k in places
            )
        )

    def group(scored: Scored, *, cut_short: bool = False, pilot: tuple[int, int] | None = None) -> Group:
        return Group(
            question=question,
            ticket=ticket,
            members=scored.members,
            excluded=scored.excluded,
            worker=worker,
            started_s=started,
            finished_s=time.monotonic(),
            cut_short=cut_short,
            pilot=pilot,
        )

    pilot: tuple[int, int] | None = None
    scorer = player.scorer
    first = await played(range(ticket.pilot or size))
    scored = await scorer.score(question, first)
    if ticket.pilot:
        piloted = group(scored)
        if any(t.stop_reason.is_selective for t in piloted.excluded):
            return piloted  # the pool takes it back whole
        if not piloted.excluded:
            pilot = (piloted.successes, len(piloted.members))
            if (ticket.cut_hard and piloted.state is QueryState.TOO_HARD) or (
                ticket.cut_easy and piloted.state is QueryState.TOO_EASY
            ):
                return group(scored, cut_short=True, pilot=pilot)
        others = await played(range(ticket.pilot, size))
        if scorer.groupwise:
            scored = await scorer.score(question, [*first, *others])
        else:
            scored += await scorer.score(question, others)
    return group(scored, pilot=pilot)
