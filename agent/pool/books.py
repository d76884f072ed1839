"""Double-entry books of the pool: what was handed out is accepted, returned with a reason, or in flight."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from agent.errors import Fault
from agent.tickets import Outcome

ACCOUNTS = ("groups", "trajectories", "tokens")


@dataclass
class Account:
    """One unit of account: groups, trajectories or generated tokens."""

    received: int = 0
    accepted: int = 0
    returned: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0

    def receive(self, amount: int = 1) -> None:
        self.received += amount
        self.in_flight += amount

    def accept(self, amount: int = 1) -> None:
        self.accepted += amount
        self.in_flight -= amount

    def give_back(self, reason: str, amount: int = 1) -> None:
        self.returned[reason] += amount
        self.in_flight -= amount

    @property
    def balanced(self) -> bool:
        return self.in_flight >= 0 and self.received == self.accepted + self.returned.total() + self.in_flight


@dataclass
class Books:
    """Accounts of groups (received when claimed), trajectories and tokens (received when submitted)."""

    groups: Account = field(default_factory=Account)
    trajectories: Account = field(default_factory=Account)
    tokens: Account = field(default_factory=Account)
    late_groups: int = 0
    """Submissions that came after their lease had expired: dropped, since the claim was already returned."""
    late_tokens: int = 0

    def receive(self, outcome: Outcome) -> None:
        """Enters what was played for a ticket, and takes what was set aside of it out again."""
        self.trajectories.receive(outcome.all_trajectories)
        self.tokens.receive(outcome.all_tokens)
        for reason, spent in outcome.set_aside.items():
            self.trajectories.give_back(reason, spent.trajectories)
            self.tokens.give_back(reason, spent.tokens)

    def accept(self, outcome: Outcome) -> None:
        """A group that was received is trained on."""
        self.groups.accept()
        self.trajectories.accept(outcome.size)
        self.tokens.accept(outcome.tokens)

    def give_back(self, outcome: Outcome, reason: str) -> None:
        """A group that was received goes back."""
        self.groups.give_back(reason)
        self.trajectories.give_back(reason, outcome.size)
        self.tokens.give_back(reason, outcome.tokens)

    def drop(self, outcome: Outcome) -> None:
        """A group came too late for its claim."""
        self.late_groups += 1
        self.late_tokens += outcome.all_tokens

    def state(self) -> dict[str, Any]:
        """What ``load_state`` needs; work in flight is left out, since it will be received again."""
        accounts = {name: getattr(self, name) for name in ACCOUNTS}
        saved = {name: {"accepted": a.accepted, "returned": dict(a.returned)} for name, a in accounts.items()}
        return {**saved, "late_groups": self.late_groups, "late_tokens": self.late_tokens}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from ``state()``."""
        for name in ACCOUNTS:
            accepted, returned = state[name]["accepted"], Counter(state[name]["returned"])
            received = accepted + returned.total()
            setattr(self, name, Account(received=received, accepted=accepted, returned=returned))
        self.late_groups, self.late_tokens = state["late_groups"], state["late_tokens"]

    def check(self) -> None:
        """Raises ``Fault`` with the account that does not balance."""
        for name in ACCOUNTS:
            account: Account = getattr(self, name)
            if not account.balanced:
                raise Fault(
                    f"the pool's books don't balance for {name}: {account.received} received, "
                    f"{account.accepted} accepted, {account.returned.total()} returned {dict(account.returned)}, "
                    f"{account.in_flight} in flight"
                )
