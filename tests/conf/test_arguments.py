"""Paths, names and sentences on the command line: taken as they are typed."""

from __future__ import annotations

import random
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from conf_runs import Command, Training
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import launch
from agent.errors import UserError
from conf.arguments import NEVER_NULL, as_typed, quoted, read
from conf.schema import RunConfig, taken_as
from retrieval_service.rankers import own_settings

CHOICES = {
    "mode",
    "cluster.device",
    "cluster.card",
    "cluster.weight_channel",
    "model.family",
    "model.dtype",
    "algorithm.loss",
    "algorithm.advantage",
    "algorithm.old_logprobs",
    "algorithm.kl",
    "algorithm.reference",
    "algorithm.gradient_checkpointing",
    "algorithm.aggregation",
    "algorithm.dry_run",
    "algorithm.optimizer.kind",
    "algorithm.optimizer.schedule",
    "algorithm.seeding.kl",
    "group.strategy",
    "search_limit.rule",
    "exit.confidence",
    "reward.outcome",
    "data.evidence_match",
    "agent.format",
    "agent.protocol",
    "agent.malformed",
    "retrieval.analyser",
    "retrieval.backend",
    "retrieval.dialect",
    "retrieval.prebuilt",
    "retrieval.heap",
    "retrieval.pooling",
    "retrieval.vectors",
    "data.source",
    "tracker.wandb_mode",
    "simulation.name",
    "view",
}
"""Strings that are one of a few words, some of them also an import path."""
NAMES = [
    "with space.jsonl",
    " leading and trailing ",
    "größer 世界.jsonl",
    "a,b.jsonl",
    "a=b.jsonl",
    "a#b!c;d&e.jsonl",
    "(one) [two] {three}.jsonl",
    'it\'s "quoted".jsonl',
    "'half quoted.jsonl",
    "back\\slash\\",
    "100%+~@$?*|<>.jsonl",
    "range(0,3)",
    "[a,b]",
    "{a:1}",
    "true",
    "007",
    "1e5",
    "-",
]


def strings(kind: Any = RunConfig, prefix: str = "") -> set[str]:
    """The dotted keys of all settings that are strings."""
    found: set[str] = set()
    hints = get_type_hints(kind)
    for f in fields(kind):
        if is_dataclass(hints[f.name]) and f.name != "pool":
            found |= strings(hints[f.name], f"{prefix}{f.name}.")
        elif hints[f.name] in (str, str | None):
            found.add(f"{prefix}{f.name}")
    if kind is RunConfig:
        found |= {key for settings in own_settings().values() for key in strings(settings, "retrieval.")}
    return found


def value_of(line: str) -> Any:
    """What Hydra reads of an override."""
    return OverridesParser.create().parse_override(line).value()


def config_of(*arguments: str) -> RunConfig:
    (config,) = launch.check_overrides(list(arguments)).configs
    return config


def at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def test_a_string_is_one_of_a_few_words_or_taken_as_it_is_typed() -> None:
    """A new setting has to be put into one of the two: mark it with PATH, TEXT or SENTENCE of agent/settings.py."""
    assert strings() == CHOICES | set(taken_as())
    assert not CHOICES & set(taken_as())


@pytest.mark.one_in(20)
@pytest.mark.parametrize("name", NAMES)
def test_any_character_may_be_in_a_path_a_name_or_a_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("{tools} {question}")  # agent.prompt is read at once
    endpoint = {f"evaluation.endpoint.{key}" for key in ("url", "model")}
    checked = {"cluster.address", "exit.calibration", "retrieval.url", *endpoint}
    elsewhere = {"data.revision", "retrieval.token_file"}  # of sets by name, and of a server that is asked
    served = {"serve.host", "serve.token_file"}
    for instead in ("data.corpus", "retrieval.index"):  # one of them says where passages are
        keys = sorted(set(taken_as()) - checked - elsewhere - served - {instead, "resume", "run", "compare"})
        config = config_of("mode=fetch", "data=jsonl", "retrieval=hybrid", *(f"{key}={name}" for key in keys))
        assert {key: at(config, key) for key in keys} == dict.fromkeys(keys, name)
    asking = ("mode=experts", "data=hotpotqa", "retrieval=http", "retrieval.url=http://localhost:1")
    fetched = config_of(*asking, *(f"{key}={name}" for key in elsewhere))
    assert {key: at(fetched, key) for key in elsewhere} == dict.fromkeys(elsewhere, name)
    serving = config_of("mode=serve", *(f"{key}={name}" for key in served))
    assert {key: at(serving, key) for key in served} == dict.fromkeys(served, name)
    viewed = config_of("mode=view", f"run={name}", f"compare={name}")
    assert (viewed.run, viewed.compare, config_of(f"resume={name}").resume) == (name, name, name)


@pytest.mark.slow
def test_any_string_of_printable_characters_arrives() -> None:
    rng = random.Random(0)
    alphabet = [chr(c) for c in range(32, 127)] * 2 + list("äéñ世界🙂\t")
    for _ in range(400):
        text = "".join(rng.choices(alphabet, k=rng.randint(1, 12))).replace("${", "$")
        if text.lower() == "null" or text[0] in "~'\"":
            continue
        (line,) = as_typed([f"data.questions={text}"], several=False)
        assert value_of(line) == text, line


@pytest.mark.parametrize("key", ["hydra.run.dir", "output_dir"])
def test_a_runs_folder_is_taken_as_it_is_typed(key: str, command: Command, training: Training) -> None:
    name = "é (1)/it's, [a] = 'b' #3"
    assert command(f"{key}={name}", "seed=3") == (0, "", "")
    assert (Path(name) / "metrics.jsonl").is_file()
    assert (Path(name) / ".hydra" / "config.yaml").is_file()
    assert [path.name for path in Path().iterdir()] == ["é (1)"], "no other folder is made beside it"


def test_home_is_expanded_where_a_path_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "mé"))
    config = config_of("mode=plan", "model.path=~/a,b", "cache_dir=~", "tracker.project=~/a", 'resume="~/x y"')
    assert (config.model.path, config.cache_dir) == (f"{tmp_path}/mé/a,b", f"{tmp_path}/mé")
    assert (config.tracker.project, config.resume) == ("~/a", f"{tmp_path}/mé/x y")
    assert config_of("model.path=a~b").model.path == "a~b"
    assert launch.check_overrides(["hydra.run.dir=~/r"]).folder == tmp_path / "mé" / "r"


def test_nobodys_home_is_a_name_and_an_unknown_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    assert value_of(as_typed(["model.path=~no-such-user/m"], several=False)[0]) == "~no-such-user/m"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", nobody)
    with pytest.raises(UserError, match=r"^model\.path=~/m: the home folder is unknown here; set HOME, or "):
        as_typed(["model.path=~/m"], several=False)
    with pytest.raises(
        UserError, match=r"^cache_dir=~/\.cache/slingshot: the home folder is unknown here; set cache_dir="
    ):
        _ = config_of("mode=plan").cache


@pytest.mark.parametrize("written", ["null", "NULL", "Null"])
def test_null_is_nothing(written: str) -> None:
    assert config_of(f"model.path={written}", "mode=plan").model.path is None
    assert value_of(as_typed(["question='null'"], several=False)[0]) == "null"


@pytest.mark.parametrize("key", ["data.questions", "output_dir", "hydra.run.dir", "resume", "checkpoint"])
def test_an_empty_path_is_refused(key: str) -> None:
    null = "" if key in NEVER_NULL else ", or write null"
    with pytest.raises(UserError, match=rf"^{key}=: has no value; leave it out{null} \(is a shell's variable unset"):
        launch.check_overrides([f"{key}="])


def test_a_path_that_cannot_be_null_is_not_told_to_be() -> None:
    paths = {key for key, kind in taken_as().items() if kind == "path"}
    with initialize_config_module("conf", version_base=None):
        composed = compose("config", overrides=["output_dir=here"])
    assert paths & {*NEVER_NULL} == {key for key in paths if OmegaConf.select(composed, key) is not None}


@pytest.mark.parametrize("key", ["output_dir", "data.questions", "model.path", "retrieval.index", "hydra.run.dir"])
def test_a_path_that_no_file_can_have_is_told_with_its_key(key: str) -> None:
    for path, length in (("x" * 256, 256), (f"a/{'é' * 128}/b", 256), ("x/" * 2048 + "y", 1)):
        with pytest.raises(
            UserError, match=rf"^{key}=.{{40}}…: is too long for a path: a name in it has {length} bytes"
        ):
            as_typed([f"{key}={path}"], several=False)
    for path in ("x" * 255, f"[{','.join(['x' * 200] * 30)}]"):
        assert as_typed([f"{key}={path}"], several=False)


def test_what_is_quoted_for_hydra_stays() -> None:
    assert as_typed(["question='it\\'s'", 'model.path="a b"'], several=False) == [
        "question='it\\'s'",
        'model.path="a b"',
    ]
    assert config_of("mode=plan", "question='it\\'s'").question == "it's"


def test_something_stands_for_something_else_in_a_path_but_not_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "here")
    config = config_of(
        "mode=plan", "model.path=${oc.env:PLACE}/é", "question=What is ${x} or \\${y}?", "report.title=${z}"
    )
    assert (config.model.path, config.question) == ("here/é", "What is ${x} or \\${y}?")
    assert config.report.title == "${z}"
    with pytest.raises(UserError, match=r"^model\.path: .*NO_SUCH_PLACE.* not found"):
        launch.check_overrides(["mode=plan", "model.path=${oc.env:NO_SUCH_PLACE}"])


def test_what_is_no_utf_8_is_refused() -> None:
    with pytest.raises(UserError, match=r"^'data\.questions=\\udce9\.jsonl': is not UTF-8; rename the file"):
        read(["data.questions=\udce9.jsonl"])


# --- in a sweep ------------------------------------------------------------------------------------


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("value", "values"),
    [
        ("a.jsonl,b.jsonl", ["a.jsonl", "b.jsonl"]),
        ("é.jsonl, b c.jsonl", ["é.jsonl", "b c.jsonl"]),
        ("'a,b.jsonl',c.jsonl", ["a,b.jsonl", "c.jsonl"]),
        ("(a),b=c", ["(a)", "b=c"]),
        ("choice(a,b)", ["a", "b"]),
        ("null,a", [None, "a"]),
    ],
)
def test_a_comma_separates_the_values_of_a_sweep(value: str, values: list[str | None]) -> None:
    asked = launch.check_overrides(["-m", "mode=plan", f"model.path={value}", "report.sweep=here"])
    assert [config.model.path for config in asked.configs] == values


def test_a_value_with_a_comma_needs_quotes_in_a_sweep() -> None:
    asked = launch.check_overrides(["-m", "mode=plan", "model.path='a,b'", "seed=1,2"])
    assert [config.model.path for config in asked.configs] == ["a,b", "a,b"]
    assert [config.model.path for config in launch.check_overrides(["mode=plan", "model.path=a,b"]).configs] == ["a,b"]


def test_an_experiment_that_is_a_sweep_separates_at_commas_too() -> None:
    one = ["experiment=recycling", "condition=epoch", "seed=0"]
    asked = launch.check_overrides([*one, "data.world_seed=1", "tracker.project=é,b"])
    assert asked.sweep is not None
    assert [job.name for job in asked.sweep.plan.jobs] == [
        f"condition=epoch,seed=0,tracker.project={name}" for name in ("'é'", "b")
    ]
    assert config_of(*one, "hydra.mode=RUN", "tracker.project=é,b").tracker.project == "é,b"


@pytest.mark.slow
def test_the_jobs_of_odd_values_have_the_folders_of_their_names(command: Command, training: Training) -> None:
    values = ["'a,b'", "é x", "b(1)", "c\\d"]
    code, _, err = command("-m", f"tracker.project={','.join(values)}", "report.sweep=here/é")
    assert (code, err) == (0, "")
    asked = launch.check_overrides(["-m", f"tracker.project={','.join(values)}", "report.sweep=here/é"])
    assert asked.sweep is not None
    names = {job.name for job in asked.sweep.plan.jobs}
    assert names == {path.parent.name for path in Path("here/é").glob("*/metrics.jsonl")}
    assert len(training.played) == len(names) == 4


# --- flags -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cfg"], "--cfg/-c: expected one argument"),
        (["--cfg", "jobs"], "--cfg/-c: invalid choice: 'jobs' (choose from "),
        (["--info", "x"], "--info/-i: invalid choice: 'x' (choose from "),
        (["-m", "--cfg", "job"], "--multirun and --cfg don't go together; "),
        (["--resolve"], "--resolve goes with --cfg: "),
        (["--package", "model"], "--package goes with --cfg: "),
        (["--cfg", "job", "--package", "modle"], "--package=modle: there is no such part of the settings; "),
        (["--config-path", "elsewhere"], "--config-path=elsewhere: the files of conf/ are always needed; "),
        (["--experimental-rerun", "x"], "--experimental-rerun: is not supported; "),
        (["--config-name", "nosuch"], "--config-name=nosuch: no file of this name "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_flag_gets_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        launch.check_overrides(arguments)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_settings_may_stand_on_both_sides_of_flags(command: Command) -> None:
    assert command("--cfg", "job", "--resolve")[0] == 0, "without a folder, too"
    code, out, err = command("seed=1", "--cfg", "job", "pool=epoch", "--resolve", "output_dir=x", "agent.top_k=7")
    assert (code, err) == (0, "")
    assert {"seed: 1", "  name: epoch", "  top_k: 7"} <= set(out.splitlines())
    assert not Path("x").exists(), "nothing is run"


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("[a.jsonl,b.jsonl]", ["[a.jsonl,b.jsonl]"]),
        ("[a.jsonl,b.jsonl],c.jsonl", ["[a.jsonl,b.jsonl]", "c.jsonl"]),
    ],
)
def test_a_list_of_files_is_one_value_of_a_sweep(typed: str, values: list[str]) -> None:
    (line,) = as_typed([f"data.questions={typed}"], several=True)
    assert line == "data.questions=" + ",".join(quoted(value) if "," in value else value for value in values)
