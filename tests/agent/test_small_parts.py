"""Settings, seeds, error messages, books."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent.config import AgentConfig
from agent.errors import Fault, UserError, nearest, one_of, refused
from agent.pool.books import Account, Books
from agent.seeds import derive_seed
from agent.writing import write_text

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "name",
    [
        "top_k",
        "max_searches",
        "max_parallel",
        "max_new_tokens_first",
        "max_new_tokens",
        "max_prompt_tokens",
        "max_passage_chars",
        "temperature",
    ],
)
def test_agent_settings_are_checked(name):
    AgentConfig(**{name: 1})
    with pytest.raises(UserError, match=rf"agent\.{name}=0"):
        AgentConfig(**{name: 0})


def test_seeds_depend_on_every_part_and_its_type():
    parts = [(0,), (1,), ("0",), (0, 0), (0, "rollout"), ("rollout", 0), ("ab", "c"), ("a", "bc"), ()]
    seeds = [derive_seed(*p) for p in parts]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in seeds)


def test_seeds_are_the_same_in_every_process():
    code = "from agent.seeds import derive_seed; print(derive_seed(3, 'rollout', 7))"
    printed = {subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).strip() for _ in range(2)}
    assert printed == {str(derive_seed(3, "rollout", 7))}


def test_nearest_names():
    assert nearest("rul", ["rule", "lease_s"]) == "did you mean 'rule'?"
    assert nearest("xyz", ["b", "a"]) == "valid names: a, b"
    one_of("a", ["a"], "key")
    with pytest.raises(UserError, match=r"pool\.rule=epoc is not known; did you mean 'epoch'"):
        one_of("epoc", ["epoch", "recycle"], "pool.rule")


def test_a_file_that_a_full_disk_does_not_take_is_named(tmp_path):
    file = tmp_path / "table.md"
    file.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as error:
        write_text(file, "| EM |\n")
    assert refused(error.value) == f"{file}: No space left on device"


def test_books_balance():
    books = Books()
    books.groups.receive(3)
    books.check()
    books.groups.accept()
    books.groups.give_back("too_stale", 2)
    books.check()
    assert books.groups == Account(received=3, accepted=1, returned={"too_stale": 2}, in_flight=0)


@pytest.mark.parametrize("name", ["groups", "trajectories", "tokens"])
def test_books_that_do_not_balance_name_the_account(name):
    for wrong in ({"received": 1}, {"in_flight": -1, "accepted": 1}, {"accepted": 1}):
        books = Books(**{name: Account(**wrong)})
        with pytest.raises(Fault, match=rf"books don't balance for {name}"):
            books.check()
