"""Code of the user's own, by import path or as a file in a folder of ours: checked before anything starts."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conf_runs import Command
from hydra.core.config_store import ConfigStore

import launch
from agent.errors import UserError
from conf import of_files
from retrieval_service.config import RetrievalConfig
from retrieval_service.dialects import spoken

OWN = """
from dataclasses import dataclass, field

from agent.pool.rules.base import AT_ONCE, OversamplingRule, PoolRule


@dataclass
class Patient(OversamplingRule):
    patience: int = 3

    def wanted(self, *, room, drawn, zero):
        return self.candidates - drawn

    def rest(self, verdict, history, query):
        return self.patience or AT_ONCE

    def resets(self, *, available):
        return False


class Undressed(Patient):
    other: int = 1


@dataclass
class Unfinished(PoolRule):
    pass


@dataclass
class Positional(Patient):
    def wanted(self, room, drawn):
        return 0


@dataclass
class Called(Patient):
    def candidates(self):
        return 3


@dataclass
class Exploring(Patient):
    def explore(self):
        return 0.1


@dataclass
class Wandering(Patient):
    explore: float = 2.0


@dataclass
class Holding(Patient):
    seen: object = field(default_factory=object)


@dataclass
class Raising(Patient):
    def __post_init__(self):
        raise ZeroDivisionError("no patience")


@dataclass
class Picky(Patient):
    def __post_init__(self):
        super().__post_init__()
        if self.patience > 5:
            raise RuntimeError("too patient")


@dataclass
class Crowded(Patient):
    group_size: int = 1


def judge(question, trajectory):
    return 1.0
"""


@pytest.fixture(autouse=True)
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rule_module.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    known = ConfigStore.instance().repo
    monkeypatch.setattr(ConfigStore.instance(), "repo", {**known, "pool": {**known["pool"]}})  # for this test alone


def test_its_fields_are_settings_like_those_of_the_shipped_rules() -> None:
    (config,) = launch.check_overrides(["pool=own_rule_module:Patient", "pool.patience=5", "pool.oversample=2"]).configs
    assert type(config.pool).__name__ == "Patient"
    assert (config.pool.name, config.pool.candidates) == ("own_rule_module:Patient", 48)
    assert vars(config.pool)["patience"] == 5
    with pytest.raises(UserError, match=r"pool\.patients is not a setting; did you mean 'pool\.patience'\?"):
        launch.check_overrides(["pool=own_rule_module:Patient", "pool.patients=5"])
    with pytest.raises(UserError, match=r"pool\.oversample=0\.5 must be at least 1"):
        launch.check_overrides(["pool=own_rule_module:Patient", "pool.oversample=0.5"])


def test_what_it_raises_of_a_setting_that_is_given_is_one_line() -> None:
    launch.check_overrides(["pool=own_rule_module:Picky", "pool.patience=5"])
    with pytest.raises(
        UserError, match=r"^pool=own_rule_module:Picky: its settings can't be made \(RuntimeError: too p"
    ):
        launch.check_overrides(["pool=own_rule_module:Picky", "pool.patience=6"])


@pytest.mark.one_in(5)
@pytest.mark.parametrize(
    "values",
    [
        "epoch,own_rule_module:Patient",
        "epoch,'own_rule_module:Patient'",
        "choice(epoch,own_rule_module:Patient)",
        "choice(epoch, 'own_rule_module:Patient')",
        "sort(own_rule_module:Patient,epoch)",
    ],
)
def test_a_sweep_may_compare_it_with_a_shipped_one(values: str) -> None:
    request = launch.check_overrides(["-m", "mode=simulate", f"pool={values}", "seed=0,1"])
    assert request.sweep is not None
    assert [job.overrides["pool"].replace("\\", "").strip("'") for job in request.sweep.plan.jobs] == ["epoch"] * 2 + [
        "own_rule_module:Patient"
    ] * 2


@pytest.mark.parametrize(
    ("content", "chosen"),
    [
        ("defaults: [{override /pool: 'own_rule_module:Patient'}]\npool: {patience: 5}", {"own_rule_module:Patient"}),
        (
            "hydra: {mode: MULTIRUN, sweeper: {params: {pool: 'epoch,own_rule_module:Patient'}}}",
            {"epoch", "own_rule_module:Patient"},
        ),
    ],
)
def test_an_experiments_file_may_choose_it(tmp_path: Path, content: str, chosen: set[str]) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{content}\n")
    request = launch.check_overrides([f"--config-dir={tmp_path}", "mode=simulate", "experiment=mine"])
    assert {config.pool.name for config in request.configs} == chosen


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("pool=own_rule_module:Patiant", "own_rule_module has no Patiant; did you mean 'Patient'?"),
        ("pool=own_rule_modul:Patient", "there is no module own_rule_modul; set PYTHONPATH"),
        ("pool=own_rule_module:judge", "must be a class made from agent.pool.rules.base.PoolRule"),
        ("pool=own_rule_module:Undressed", "is no dataclass; write @dataclass above it"),
        ("pool=own_rule_module:Unfinished", "lacks candidates, resets, rest, select, wanted; see"),
        ("pool=own_rule_module:Positional", "wanted must take (self, *, room, drawn, zero), as PoolRule's does"),
        ("pool=own_rule_module:Called", "candidates must be a property or a value, as PoolRule's is"),
        ("pool=own_rule_module:Exploring", "explore must be a property or a value, as PoolRule's is"),
        ("pool=own_rule_module:Wandering", "with its own defaults, pool.explore=2.0 must lie in [0, 1]"),
        (
            "pool=own_rule_module:Holding",
            "its settings can't be made (ValidationError: Unexpected type annotation: object ",
        ),
        ("pool=own_rule_module:Raising", "its settings can't be made (ZeroDivisionError: no patience)"),
        ("pool=own_rule_module:Crowded", "with its own defaults, pool.group_size=1 must lie in [2, 255]"),
        ("reward=own_rule_module:judge", "is no choice of reward; did you mean reward.outcome=own_rule_module:judge?"),
        ("algorithm=own_rule_module:judge", "did you mean algorithm.loss=own_rule_module:judge?"),
        ("reward.outcome=own_rule_module.py:judge", "a module is named without .py; write own_rule_module:judge"),
        ("reward.outcome=own_rule_module:juge", "own_rule_module has no juge; did you mean 'judge'?"),
        (
            "reward.outcome=tasks.my_rewards:judge",
            "there is no module tasks.my_rewards; `tasks` is a package of Slingshot's own, in which there is none",
        ),
        ("reward.outcome=agent.rewards.outcomes.em:outcom", "em has no outcom; did you mean 'outcome'?"),
        ("algorithm.loss=own_rule_module:judge", "must be a class made from learner.losses.base.Loss"),
    ],
)
def test_a_path_that_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch, argument: str, message: str) -> None:
    monkeypatch.setattr(sys, "path", [place for place in sys.path if not Path(place, "tasks", "test_sets.py").exists()])
    with pytest.raises(UserError) as error:
        launch.check_overrides([argument])
    assert str(error.value).startswith(argument)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_package_of_ones_own_that_one_of_ours_hides_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "my_rewards.py").write_text("def judge(question, trajectory): return 1.0\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    with pytest.raises(UserError, match=r"; `tasks` is a package of Slingshot's own and hides yours; rename it$"):
        launch.check_overrides(["reward.outcome=tasks.my_rewards:judge"])


def test_a_reward_of_ones_own_is_a_valid_run() -> None:
    (config,) = launch.check_overrides(["reward.outcome=own_rule_module:judge", "algorithm.loss=gspo"]).configs
    assert (config.reward.outcome, config.algorithm.loss) == ("own_rule_module:judge", "gspo")


def test_it_is_a_condition_of_a_sweep_by_its_path() -> None:
    asked = launch.check_overrides(
        ["-m", "pool=own_rule_module:Patient,epoch", "report.baseline=pool=own_rule_module:Patient"]
    )
    assert asked.sweep is not None
    assert [job.name for job in asked.sweep.plan.jobs] == ["pool=own_rule_module:Patient", "pool=epoch"]


# --- as files in folders of ours ---------------------------------------------------------------------

Add = Callable[[str, str], None]
RULE = OWN.partition("class Undressed")[0].replace("class Patient", "class Rule")
BARE = RULE.replace("@dataclass\nclass", "class")
NARROW = RULE.replace("self, *, room, drawn, zero", "self, room")
LOSS = """
from learner.losses.base import Choices
from learner.losses.clipped import ClippedLoss


class Loss(ClippedLoss):
    defaults = Choices(advantage="std", aggregation="token_mean", clip_low=0.2, clip_high=0.2)
"""
FORMAT = """
from agent.formats.tags import TagFormat


class Mine(TagFormat):
    pass
"""
BACKEND = """
class Backend:
    def __init__(self, index, config): ...
    def search_batch(self, queries, k): ...
    def following_batch(self, document_ids, k): ...
    def document_batch(self, document_ids, k): ...
    def identity(self): ...
    def close(self): ...


def ensure(corpus, config, cache, watch): ...
"""
PARTED = BACKEND.replace(
    "    def close", "    def begin_batch(self, some, k): ...\n    def end_reading(self): ...\n    def close"
)
REMOTE = BACKEND.partition("def ensure")[0] + "REMOTE = True\n"
SETTINGS = """
from dataclasses import dataclass

from retrieval_service.config import RetrievalConfig


@dataclass
class Settings(RetrievalConfig):
    depth: int = 3
    probes: int = 8
"""
UNDRESSED = SETTINGS.replace("@dataclass\n", "")
DIALECT = "from retrieval_service.dialects.search_r1 import Dialect as Theirs\n\n\nclass Dialect(Theirs):\n    pass\n"
HTTP = ("retrieval=http", "retrieval.url=http://127.0.0.1:1", "retrieval.dialect=mine")
BROKEN = {
    "def": "importing {file} raised SyntaxError: ",
    "import nobody_has_this": "{file} imports nobody_has_this, which isn't installed",
    "raise RuntimeError('no card')": "importing {file} raised RuntimeError: no card",
}
PLACES = {
    "agent.pool.rules": ["pool=mine"],
    "retrieval_service.backends": ["retrieval=mine"],
    "retrieval_service.dialects": [*HTTP],
    "learner.losses": ["algorithm.loss=mine"],
    "agent.formats": ["agent.format=mine"],
    "agent.tools": ["agent.tools=[search,mine]"],
    "agent.rewards.outcomes": ["reward.outcome=mine"],
}
"""Each folder whose files are found by their names, and what chooses the file ``mine.py``."""


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Add:
    """Puts ``mine.py`` into a folder of ours, as far as Python can tell, and tells Hydra, as ``launch.py`` does."""
    monkeypatch.setattr(ConfigStore.instance(), "repo", {**ConfigStore.instance().repo})
    for group in of_files.BROUGHT:
        monkeypatch.setitem(ConfigStore.instance().repo, group, {**ConfigStore.instance().repo[group]})

    def put(package: str, text: str) -> None:
        folder = tmp_path / package
        folder.mkdir()
        (folder / "mine.py").write_text(text)
        parent = importlib.import_module(package)
        monkeypatch.setattr(parent, "__path__", [*parent.__path__, str(folder)])
        monkeypatch.delitem(sys.modules, f"{package}.mine", raising=False)
        of_files.store()

    for group, text in {"pool": "defaults: [mine_rule]\n", "retrieval": "backend: mine\n"}.items():
        (tmp_path / "conf" / group).mkdir(parents=True)
        (tmp_path / "conf" / group / "mine.yaml").write_text(text)
    yield put
    for package in PLACES:
        sys.modules.pop(f"{package}.mine", None)


def refusal(tmp_path: Path, *settings: str) -> str:
    with pytest.raises(UserError) as error:
        launch.check_overrides([f"hydra.searchpath=[{tmp_path / 'conf'}]", *settings])
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.one_in(11)
@pytest.mark.parametrize("text", BROKEN)
@pytest.mark.parametrize("package", PLACES)
def test_a_file_that_cannot_be_imported_is_no_matter_of_the_other_choices(
    add: Add, tmp_path: Path, package: str, text: str
) -> None:
    add(package, text)
    launch.check_overrides(["mode=plan"])
    file = f"{package.replace('.', '/')}/mine.py"
    assert BROKEN[text].format(file=file) in refusal(tmp_path, *PLACES[package])


def test_it_exits_with_2_and_one_line(add: Add, tmp_path: Path, command: Command) -> None:
    add("agent.pool.rules", "def")
    code, _, err = command(f"hydra.searchpath=[{tmp_path / 'conf'}]", "pool=mine")
    assert (code, err.count("\n")) == (2, 1)
    assert "pool=mine: importing agent/pool/rules/mine.py raised SyntaxError: " in err


@pytest.mark.one_in(8)
@pytest.mark.parametrize(
    ("package", "text", "message"),
    [
        ("agent.pool.rules", "", "agent/pool/rules/mine.py needs a dataclass `Rule`, made from agent.pool.rules"),
        ("agent.pool.rules", BARE, "Rule of agent/pool/rules/mine.py is no dataclass; write @dataclass above it"),
        ("agent.pool.rules", NARROW, "mine.py: wanted must take (self, *, room, drawn, zero), as PoolRule's does"),
        ("agent.pool.rules", RULE.replace("int = 3", "object = object()"), "its settings can't be made"),
        (
            "agent.pool.rules",
            f"from pathlib import Path\n{RULE.replace('int = 3', 'Path = Path()')}",
            "its settings can't be made (TypeError: Object of type PosixPath is not JSON serializable); a field is",
        ),
        ("learner.losses", "from learner.losses.base import Loss", "learner/losses/mine.py needs a class `Loss`"),
        ("learner.losses", LOSS.replace("defaults", "default"), "Loss of learner/losses/mine.py lacks defaults; see"),
        ("learner.losses", LOSS.replace("Choices(", "dict("), "its defaults must be a learner.losses.base.Choices(…)"),
        ("learner.losses", LOSS.replace("ClippedLoss)", "base.Loss)"), "NameError: name 'base' is not defined"),
        (
            "learner.losses",
            LOSS.replace("clipped import ClippedLoss", "base import Loss as ClippedLoss"),
            "Loss of learner/losses/mine.py lacks surrogate; see learner/losses/base.py",
        ),
        (
            "learner.losses",
            f"{LOSS}    def surrogate(self): ...",
            "Loss of learner/losses/mine.py: surrogate must take (self, row), as Loss's does",
        ),
        (
            "learner.losses",
            f"{LOSS}    def __init__(self, choices): raise KeyError('no key')",
            "algorithm.loss=mine: __init__() raised KeyError: 'no key'",
        ),
        (
            "learner.losses",
            f"{LOSS}    @classmethod\n    def check(cls, choices): raise RuntimeError('no card')",
            "algorithm.loss=mine: check() raised RuntimeError: no card",
        ),
        ("agent.formats", "", "mine.py has to have one subclass of Format, and has none"),
        ("agent.formats", f"{FORMAT}class Other(Mine): ...", "one subclass of Format, and has Mine, Other"),
        (
            "agent.formats",
            "from agent.formats.base import Format\nclass Mine(Format): ...",
            "agent.format=mine: Mine lacks __init__, observation, parse, prompt, written; see agent/formats/base.py",
        ),
        ("agent.formats", f"{FORMAT}    def prompt(self): ...", "prompt must take (self, question), as Format's does"),
        (
            "agent.formats",
            f"{FORMAT}    def __init__(self): ...",
            "must take (self, codec, config, tools), as Format's",
        ),
        (
            "agent.rewards.outcomes",
            "def judge(question, trajectory): ...",
            "agent/rewards/outcomes/mine.py needs a function `outcome(question, trajectory)`",
        ),
        (
            "agent.rewards.outcomes",
            "def outcome(*, question, trajectory): ...",
            "outcome of agent/rewards/outcomes/mine.py takes (*, question, trajectory); it must take (question, "
            "trajectory) or (question, trajectories) by position",
        ),
        ("retrieval_service.backends", "", "retrieval_service/backends/mine.py needs a class `Backend`; see"),
        ("retrieval_service.backends", "def Backend(index, config): ...", "backends/mine.py must be a class"),
        ("retrieval_service.backends", BACKEND.replace("close", "shut"), "backends/mine.py lacks close; see"),
        ("retrieval_service.backends", PARTED.replace("end_", ""), "backends/mine.py lacks end_reading; see"),
        (
            "retrieval_service.backends",
            PARTED.replace("some", "some, more"),
            "begin_batch must take (self, queries, k)",
        ),
        ("retrieval_service.backends", BACKEND.replace("queries, k", "queries"), "must take (self, queries, k), as"),
        (
            "retrieval_service.backends",
            BACKEND.replace("index, config", "index"),
            "must take (self, index, config), as",
        ),
        ("retrieval_service.backends", BACKEND.replace("__init__", "init"), "must take (self, index, config), as"),
        ("retrieval_service.backends", BACKEND.replace("ensure", "build"), "mine.py needs a function `ensure(corpus, "),
        (
            "retrieval_service.backends",
            BACKEND.replace("cache, watch", "cache"),
            "it must take (corpus, config, cache, ",
        ),
        (
            "retrieval_service.backends",
            BACKEND + UNDRESSED,
            "Settings of retrieval_service/backends/mine.py is no datac",
        ),
        ("retrieval_service.backends", BACKEND + "class Settings: ...", "must be a class made from retrieval_service."),
        (
            "retrieval_service.backends",
            BACKEND + SETTINGS,
            "write retrieval=mine, whose file has `defaults: [mine_sett",
        ),
        ("retrieval_service.backends", REMOTE, "retrieval=mine needs retrieval.url=http://HOST:PORT, where a search"),
        ("retrieval_service.dialects", "", "retrieval_service/dialects/mine.py needs a class `Dialect`, made from"),
        (
            "retrieval_service.dialects",
            "from retrieval_service.dialects import base\nclass Dialect(base.Dialect): ...",
            "lacks about, asked, body, example, hits, path, reply, request, speaks; see retrieval_service/dialects",
        ),
    ],
)
def test_a_file_is_checked_like_a_path(add: Add, tmp_path: Path, package: str, text: str, message: str) -> None:
    add(package, text)
    assert message in refusal(tmp_path, *PLACES[package])


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("package", "text"),
    [
        ("agent.pool.rules", RULE),
        ("learner.losses", LOSS),
        ("agent.formats", FORMAT),
        ("agent.rewards.outcomes", "def outcome(question, trajectory): ..."),
        ("retrieval_service.backends", BACKEND),
        ("retrieval_service.backends", PARTED),
        ("retrieval_service.dialects", DIALECT),
    ],
)
def test_a_file_that_is_right_is_chosen_by_its_name(add: Add, tmp_path: Path, package: str, text: str) -> None:
    add(package, text)
    (config,) = launch.check_overrides([f"hydra.searchpath=[{tmp_path / 'conf'}]", *PLACES[package]]).configs
    assert config.pool.name == ("mine" if package == "agent.pool.rules" else "recycle")


def test_a_rankers_settings_are_those_of_its_group(add: Add, tmp_path: Path) -> None:
    add("retrieval_service.backends", BACKEND + SETTINGS)
    (tmp_path / "conf" / "retrieval" / "mine.yaml").write_text("defaults: [mine_settings]\nbackend: mine\n")
    where = f"hydra.searchpath=[{tmp_path / 'conf'}]"
    given = ("retrieval.depth=5", "retrieval.probes=9")  # dense retrieval has such a one, too
    (config,) = launch.check_overrides([where, "retrieval=mine", *given]).configs
    assert (vars(config.retrieval)["depth"], vars(config.retrieval)["probes"]) == (5, 9)


def test_a_rankers_setting_of_a_type_that_no_checkpoint_holds_is_named(add: Add, tmp_path: Path) -> None:
    add(
        "retrieval_service.backends",
        f"from pathlib import Path\n{BACKEND}{SETTINGS.replace('int = 3', 'Path = Path()')}",
    )
    (tmp_path / "conf" / "retrieval" / "mine.yaml").write_text("defaults: [mine_settings]\nbackend: mine\n")
    assert "retrieval.backend=mine: its Settings can't be made (TypeError: Obj" in refusal(tmp_path, "retrieval=mine")


@pytest.mark.parametrize(
    ("group", "text", "message"),
    [
        (
            "pool",
            "name: mine",
            "pool: its file in conf/pool/ lacks `defaults: [NAME_rule]`, which stands for agent/pool/",
        ),
        (
            "pool",
            "patience: 3",
            "pool/mine.yaml: patience isn't a setting that all choices have; those of one need `def",
        ),
        (
            "pool",
            "defaults: [nope_rule]",
            "pool/mine.yaml: nope_rule in its `defaults` stands for agent/pool/rules/nope.py, which isn't there",
        ),
        (
            "retrieval",
            "depth: 3",
            "retrieval/mine.yaml: depth isn't a setting that all choices have; those of one need",
        ),
        (
            "retrieval",
            "defaults: [nope_settings]",
            "retrieval/mine.yaml: nope_settings in its `defaults` stands for retrieval_service/backends/nope.py, which",
        ),
        ("retrieval", "defaults: [bm25_settings]", "backends/bm25.py has no class `Settings`, which bm25_settings in"),
    ],
)
@pytest.mark.usefixtures("add")
def test_a_file_of_settings_says_which_code_it_is_for(tmp_path: Path, group: str, text: str, message: str) -> None:
    (tmp_path / "conf" / group / "mine.yaml").write_text(text)
    assert message in refusal(tmp_path, f"{group}=mine")


def test_a_ranker_that_asks_a_service_says_so(add: Add) -> None:
    add("retrieval_service.backends", REMOTE)
    config = RetrievalConfig(backend="mine", url="http://127.0.0.1:1")
    assert config.elsewhere


def test_the_server_speaks_the_dialects_that_it_can(add: Add) -> None:
    before, none = spoken()
    assert not none
    add("retrieval_service.dialects", "def")
    after, (wrong,) = spoken()
    assert [type(each) for each in after] == [type(each) for each in before]
    assert str(wrong).startswith("retrieval.dialect=mine: importing retrieval_service/dialects/mine.py raised Syntax")
