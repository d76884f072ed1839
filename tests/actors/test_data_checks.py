"""The data before a start: supporting documents, prompts that are too long, what a checkpoint was trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors import prompts
from actors.calibrating import more_questions
from actors.prepare import look, prepare
from actors.prompts import short_enough, too_long
from actors.questions import asked
from agent.answers import normalise_question
from agent.config import AgentConfig, GroupConfig, RewardConfig
from agent.dialogue import Dialogue
from agent.errors import UserError
from agent.pool.rules.epoch import Rule as Epoch
from agent.records import Question
from agent.tokens import Tokenizer
from conf.evaluation import EvalConfig
from conf.schema import RunConfig
from learner.config import AlgorithmConfig, ModelConfig, WarmStartConfig
from retrieval_service.names import Digests, digests
from tasks.config import DataConfig
from tasks.load import load
from tasks.notices import FILE
from tasks.trained import trained_on, trained_texts, write_trained

AGENT = AgentConfig(prompt="plain", chat=False, top_k=2, max_prompt_tokens=64, max_response_tokens=320)
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
ROWS = [{"id": f"q{i}", "question": f"who wrote book {i}?", "answer": f"writer {i}"} for i in range(10)]
CORPUS = [{"id": f"d{i}", "title": f"Book {i}", "text": f"It is by writer {i}."} for i in range(10)]
Make = Callable[..., RunConfig]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A run on files with these rows."""

    def write(name: str, rows: Sequence[dict[str, Any]]) -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    def make(rows: Any = ROWS, corpus: Any = CORPUS, data: dict[str, Any] | None = None, **changed: Any) -> RunConfig:
        files: dict[str, Any] = {"questions": write("ask.jsonl", rows), "corpus": write("corpus.jsonl", corpus)}
        for key, value in (data or {}).items():
            files[key] = write(f"{key}.jsonl", value) if isinstance(value, list) else value
        settings: dict[str, Any] = {
            "cache_dir": str(tmp_path / "cache"),
            "agent": AGENT,
            "model": ModelConfig(architecture=SIZES, vocab_size=300),
            "algorithm": AlgorithmConfig(),
            "data": DataConfig(source="jsonl", **files),
            "pool": Epoch(),
            **changed,
        }
        return RunConfig(**settings)

    return make


def named(*titles: Sequence[str], key: str = "supporting_titles") -> list[dict[str, Any]]:
    """Rows with these supporting documents, one list for each of the first ones."""
    return [row | ({key: list(titles[i])} if i < len(titles) else {}) for i, row in enumerate(ROWS)]


ALL = [[f"book_{i}"] for i in range(10)]
DAVID = RewardConfig(evidence_weight=0.5)
CONTINUED = GroupConfig(strategy="continuation")


def told(config: RunConfig) -> list[str]:
    return [notice.text for notice in look(config).notices]


# --- supporting documents --------------------------------------------------------------------------


def test_questions_and_corpus_that_go_together_need_no_word(make: Make, tmp_path: Path) -> None:
    assert told(make(named(*ALL), reward=DAVID, group=CONTINUED)) == []
    assert told(make()) == [], "nothing is asked of questions that name none"
    assert [p.suffix for p in (tmp_path / "cache" / "corpora").iterdir()] == [".npz"], "nor is the corpus read for them"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward": DAVID}, r"^reward\.evidence_weight=0\.5 pays for .*, and no training question names any by title"),
        ({"group": CONTINUED}, "^group=continuation cuts where .*, and no training question names any by title; add"),
        (
            {"reward": RewardConfig(evidence_weight=0.5), "data": {"evidence_match": "id"}},
            r"no training question names any by id; add metadata\.supporting_ids to data\.questions",
        ),
    ],
)  # fmt: skip
def test_evidence_that_nobody_names_can_not_be_used(make: Make, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        look(make(**settings))


def test_names_of_the_other_kind_are_pointed_out(make: Make) -> None:
    with pytest.raises(UserError, match=r"names any by id; .*'supporting_titles' names no supporting document by id\)"):
        look(make(named(*ALL), reward=DAVID, data={"evidence_match": "id"}))
    with pytest.raises(UserError, match=r"has none of .* by title, but has them by id; set data\.evidence_match=id"):
        look(make(named(*[[f"d{i}"] for i in range(10)]), reward=DAVID))


def test_training_questions_without_supporting_documents_are_counted(make: Make) -> None:
    held_out = {"eval_questions": [{"question": "else?", "answer": "x"}]}
    (text,) = told(make(named(*ALL[:7]), reward=DAVID, data=held_out))
    assert text == "3 of 10 training questions name no supporting documents and have the answer alone as their reward"
    (text,) = told(make(named(*ALL[:7]), group=CONTINUED, data=held_out))
    assert text == "3 of 10 training questions name no supporting documents and are never continued"
    assert told(make(named(*ALL[:7]), data=held_out)) == [], "which is no matter where nobody uses them"


def test_documents_that_the_corpus_lacks_are_counted_and_named(make: Make) -> None:
    held_out = {"eval_questions": [{"id": "e", "question": "else?", "answer": "x", "supporting_titles": ["Nowhere"]}]}
    config = make(named(["Book 0", "Gone"], ["Lost"], *ALL[2:]), data=held_out)
    trained, evaluated = look(config).notices
    assert trained.text.startswith(
        "2 of 10 training questions name supporting documents that the corpus lacks, such as"
    )
    assert "such as 'Gone' (q0)" in trained.text
    assert trained.items == (("q0", "the corpus lacks: Gone"), ("q1", "the corpus lacks: Lost"))
    assert evaluated.text.startswith("1 of 1 held-out questions name supporting documents that the corpus lacks")


@pytest.mark.parametrize("settings", [{"reward": DAVID}, {"group": CONTINUED}])
def test_a_corpus_without_any_of_them_is_refused_where_they_are_needed(make: Make, settings: dict[str, Any]) -> None:
    gone = named(*[[f"Elsewhere {i}"] for i in range(10)])
    message = r"^data\.corpus=.*: has none of .* by title, such as 'Elsewhere \d'; its own titles are like 'Book 0'"
    with pytest.raises(UserError, match=message):
        look(make(gone, **settings))
    with pytest.raises(UserError, match="its passages have no titles; give them some"):
        look(make(gone, corpus=[{"id": "d", "contents": "x"}], **settings))
    assert "8 of 8 training questions name" in told(make(gone))[0], "elsewhere it is said"


def test_documents_of_experts_are_looked_up_too(make: Make) -> None:
    row = {
        "id": "e",
        "question": "else?",
        "answer": "x",
        "trajectory": "<answer>x</answer>",
        "supporting_titles": ["Y"],
    }
    config = make(data={"experts": [row]}, algorithm=AlgorithmConfig(warm_start=WarmStartConfig(steps=1)))
    assert told(config)[0].startswith(
        "1 of 1 expert questions name supporting documents that the corpus lacks, such as"
    )


@pytest.mark.parametrize("place", [{"index": "elsewhere"}, {"url": "http://127.0.0.1:1", "backend": "http"}])
def test_that_nobody_knows_what_another_index_or_a_server_holds_is_said(make: Make, place: dict[str, str]) -> None:
    from retrieval_service.config import RetrievalConfig

    (key, value), *_ = place.items()
    (text,) = told(make(named(["Gone"]), retrieval=RetrievalConfig(**place)))
    assert text == f"1 questions name supporting documents; whether retrieval.{key}={value} has them isn't known here"
    assert told(make(retrieval=RetrievalConfig(**place))) == []


def test_questions_whose_documents_the_corpus_lacks_can_be_left_out(make: Make) -> None:
    held_out = [{"id": "e", "question": "else?", "answer": "x", "supporting_titles": ["Nowhere"]}, {"question": "f?"}]
    held_out[1] |= {"id": "f", "answer": "x"}
    data = {"eval_questions": held_out, "require_evidence": True}
    task = look(make(named(["Book 0", "Gone"], ["Lost"], *ALL[2:8]), data=data))
    assert [q.id for q in task.train] == [f"q{i}" for i in range(2, 10)], "one that names none stays"
    assert [q.id for q in task.eval] == ["f"]
    trained, evaluated = task.notices
    assert (trained.kind, evaluated.kind) == ("left_out", "left_out")
    assert trained.text == (
        "2 of 10 training questions name supporting documents that the corpus lacks, such as 'Gone' (q0), and left out"
    )
    with pytest.raises(
        UserError, match=r"^data\.require_evidence=true: the corpus lacks .* of all 10 training questions"
    ):
        look(make(named(*[["Gone"]] * 10), data=data))


def test_evidence_that_is_required_and_named_nowhere_leaves_nothing_out_and_that_is_said(make: Make) -> None:
    held_out = {"eval_questions": [{"question": "else?", "answer": "x"}], "require_evidence": True}
    (text,) = told(make(data=held_out))
    assert text == (
        "data.require_evidence=true leaves nothing out: none of 11 questions names supporting documents by title"
    )


def test_shares_that_no_longer_hold_are_told(make: Make, tmp_path: Path) -> None:
    """What the corpus lacks is known when the sets have been mixed."""
    other = tmp_path / "other.jsonl"
    rows = [
        {"id": f"o{i}", "question": f"other {i}?", "answer": "x", "supporting_titles": ["Book 1" if i else "Gone"]}
        for i in range(9)
    ]
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make(named(*ALL), data={"require_evidence": True})
    config.data.questions, config.data.shares = f"[{config.data.questions},{other}]", [0.5, 0.5]
    task = look(config)
    (notice,) = [notice for notice in task.notices if "data.shares" in notice.text and "lack" in notice.text]
    assert notice.text.endswith("and left out; of data.shares=[0.5, 0.5] there are now 7 of ask, 6 of other")


def test_what_another_index_holds_can_not_be_required(make: Make) -> None:
    from retrieval_service.config import RetrievalConfig

    elsewhere = RetrievalConfig(index="elsewhere")
    with pytest.raises(UserError, match=r"^data\.require_evidence=true needs an index that was built here"):
        look(make(named(["Gone"]), retrieval=elsewhere, data={"require_evidence": True}))


# --- prompts ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder, with a tokenizer."""
    place = tmp_path_factory.mktemp("model")
    data = DataConfig(evidence_match="id", train_questions=10, eval_questions_per_hop=1, demonstrations=4)
    config = RunConfig(
        cache_dir=str(place / "cache"),
        agent=AGENT,
        data=data,
        pool=Epoch(),
        model=ModelConfig(architecture=SIZES),
    )
    return Path(prepare(config, place).model_path)


@pytest.mark.slow
def test_long_prompts_are_found_exactly(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "CHUNK", 7)
    tokenizer = Tokenizer(folder)
    texts = [f"who {'said it ' * n}?" for n in range(40)] + ["é" * n for n in range(1, 40)] + ["a <search> b" * 9]
    questions = [Question(id=str(i), text=text, golden_answers=("x",)) for i, text in enumerate(texts)]
    for prompt in ("plain", "instruct"):
        dialogue = Dialogue.of(
            tokenizer, AgentConfig(protocol="search", prompt=prompt, chat=False, max_passage_chars=9)
        )
        lengths = {q: len(dialogue.prompt_ids(q.text)) for q in questions}
        for limit in (min(lengths.values()) - 1, *sorted(lengths.values())[::9], max(lengths.values())):
            assert dict(too_long(questions, dialogue, tokenizer, limit)) == {
                q: length for q, length in lengths.items() if length > limit
            }


def test_short_questions_are_not_encoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(folder)
    dialogue = Dialogue.of(tokenizer, replace(AGENT, prompt="instruct"))
    questions = [Question(id=str(i), text=f"who is {i}?", golden_answers=("x",)) for i in range(10_000)]
    encoded: list[str] = []
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text: encoded.append(text) or encode(text))
    monkeypatch.setattr(tokenizer, "lengths", lambda texts: pytest.fail("encoded"))
    assert too_long(questions, dialogue, tokenizer, 1024) == []
    assert len(encoded) < 10


def test_a_chat_template_that_repeats_the_question_is_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(folder)
    monkeypatch.setattr(tokenizer, "render", lambda messages, **how: messages[0]["content"] * 3)
    dialogue = Dialogue.of(tokenizer, replace(AGENT, chat=True))
    question = Question(id="q", text="who said it? " * 5, golden_answers=("x",))
    length = len(dialogue.prompt_ids(question.text))
    assert too_long([question], dialogue, tokenizer, length - 1) == [(question, length)]
    assert too_long([question], dialogue, tokenizer, length) == []


LONG = {"id": "long", "question": "who, " + "who, " * 60 + "wrote it?", "answer": "x"}


def test_a_long_question_is_left_out_counted_and_listed(make: Make, tmp_path: Path) -> None:
    held_out = {"eval_questions": [LONG | {"id": "other", "question": LONG["question"] + " indeed"}, *ROWS[:2]]}
    config = make([LONG, *ROWS[2:]], data=held_out)
    prepared = prepare(config, tmp_path)
    assert [q.id for q in prepared.task.train] == [row["id"] for row in ROWS[2:]]
    assert [q.id for q in prepared.task.eval] == ["q0", "q1"]
    trained, evaluated = prepared.task.notices
    assert trained.text.startswith("1 of 9 training questions have a prompt of more than agent.max_prompt_tokens=64 ")
    assert trained.text.endswith(" (long), and left out")
    assert evaluated.text.startswith("1 of 3 held-out questions have a prompt of more than")
    rows = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert [(row["kind"], row["id"]) for row in rows] == [("left_out", "long"), ("left_out", "other")]
    assert rows[0]["why"].startswith("its prompt has ")
    config.data.strict = True
    with pytest.raises(UserError, match=r"^1 of 9 training questions have .*; data\.strict=true allows none"):
        prepare(config, tmp_path)


def test_where_most_are_too_long_the_limit_is_wrong(make: Make, tmp_path: Path) -> None:
    config = make([LONG | {"id": f"l{i}", "question": f"{i}{LONG['question']}"} for i in range(9)])
    with pytest.raises(
        UserError, match=r"training questions have .*agent\.max_prompt_tokens=64 tokens; the longest has"
    ) as e:
        prepare(config, tmp_path)
    limit = int(str(e.value).rpartition("set agent.max_prompt_tokens=")[2])
    config.agent = replace(AGENT, max_prompt_tokens=limit)
    assert prepare(config, tmp_path).task.notices == ()


def test_half_may_be_too_long(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    dialogue = Dialogue.of(tokenizer, AGENT)
    two = tuple(Question(id=t[:1], text=t, golden_answers=("x",)) for t in ("short?", "l" * 400))
    kept, (notice,) = short_enough(two, "training", dialogue, tokenizer, 64, strict=False)
    assert ([q.id for q in kept], notice.items[0][0]) == (["s"], "l")


# --- what is played --------------------------------------------------------------------------------


def playing(make: Make, mode: str, **data: Any) -> RunConfig:
    config = make(data=data, mode=mode, checkpoint="given", question="who?")
    for key in [key for key, value in data.items() if value is None]:
        setattr(config.data, key, None)
    return config


@pytest.fixture
def checkpoint(tmp_path: Path, folder: Path) -> Callable[[Sequence[int]], Path]:
    """A run's checkpoint, of a run that has trained on the questions with these numbers."""

    def make(numbers: Sequence[int]) -> Path:
        place = tmp_path / "copied out of its run's folder"
        shutil.copytree(folder, place)
        trained = [Question(id=f"t{i}", text=ROWS[i]["question"].upper(), golden_answers=("x",)) for i in numbers]
        write_trained(place, trained_texts(trained, folder))
        return place

    return make


def chosen(config: RunConfig, place: Path) -> Any:
    task = load(config.data, config.seed, config.cache, mode=config.mode)
    return asked(config, task, place)


def test_what_a_run_trains_on_is_recorded(make: Make, tmp_path: Path) -> None:
    config = make(data={"eval_share": 0.3})
    prepared = prepare(config, tmp_path)
    both = (*prepared.task.train, *prepared.task.eval)
    assert trained_on(tmp_path, both) is None, "not a checkpoint of a run"
    write_trained(tmp_path, prepared.trained_on)
    assert trained_on(tmp_path, both) == {q.id for q in prepared.task.train}
    assert len(prepared.task.train) == 7


def test_what_a_run_went_on_from_was_trained_on_too(make: Make, folder: Path, tmp_path: Path) -> None:
    before = [Question(id="b", text="What came before?", golden_answers=("x",))]
    earlier = tmp_path / "earlier"
    shutil.copytree(folder, earlier)
    write_trained(earlier, trained_texts(before, folder))
    config = make()
    config.model.path = str(earlier)
    write_trained(earlier, prepare(config, tmp_path).trained_on)
    assert trained_on(earlier, before) == {"b"}


def test_a_damaged_record_of_what_was_trained_on_is_refused(tmp_path: Path) -> None:
    write_trained(tmp_path, trained_texts([], tmp_path))
    for content in (b"", b"rubbish", (tmp_path / "training" / "trained_on.npy").read_bytes()[:-40]):
        (tmp_path / "training" / "trained_on.npy").write_bytes(content)
        with pytest.raises(UserError, match=r"trained_on\.npy: is damaged"):
            trained_on(tmp_path, [])


def test_an_evaluation_leaves_out_what_the_checkpoint_was_trained_on(make: Make, checkpoint: Any) -> None:
    place = checkpoint([0, 3, 4])
    found = chosen(playing(make, "eval"), place)
    assert [q.id for q in found.questions] == ["q1", "q2", "q5", "q6", "q7", "q8", "q9"]
    assert found.about.startswith("evaluating 7 of the 10 questions of data.questions=")
    (notice,) = found.notices
    assert notice.text.startswith(
        "the checkpoint's run has trained on 3 of the 10 questions (q0, q3, q4), which are left out"
    )
    assert len(notice.items) == 3


def test_an_evaluation_leaves_out_what_its_early_exit_was_calibrated_on(make: Make, checkpoint: Any) -> None:
    place, calibrated = checkpoint([0]), digests(normalise_question(ROWS[n]["question"]) for n in (0, 1, 3))

    def played(which: Digests, **data: Any) -> Any:
        config = playing(make, "eval", **data)
        config.exit.calibration = "calibration.json"
        task = load(config.data, config.seed, config.cache, mode=config.mode)
        return asked(config, task, place, calibrated=which)

    found = played(calibrated)
    assert [q.id for q in found.questions] == ["q2", "q4", "q5", "q6", "q7", "q8", "q9"]
    assert found.about.startswith("evaluating 7 of the 10 questions of data.questions=")
    assert found.notices[1].text.startswith(
        "exit.calibration=calibration.json: was made on 2 of the 9 questions (q1, q3), which are left out; data.eval_q"
    )
    given = played(calibrated, eval_questions=ROWS, questions=None)
    assert len(given.questions) == 10
    assert "was made on 3 of the 10 questions (q0, q1, q3), on which early exit looks too good" in given.notices[1].text
    with pytest.raises(UserError, match=r"was made on 9 of the 9 questions .*; name others, or play these all"):
        played(digests(normalise_question(row["question"]) for row in ROWS))


def test_a_file_for_evaluation_is_played_whole_all_the_same(make: Make, checkpoint: Any) -> None:
    found = chosen(playing(make, "eval", eval_questions=ROWS, questions=None), checkpoint([0, 3]))
    assert len(found.questions) == 10
    assert found.about.startswith("evaluating 10 of the 10 questions of data.eval_questions=")
    assert "has trained on 2 of the 10 questions (q0, q3)" in found.notices[0].text


def test_a_checkpoint_of_other_data_is_played_on_all(make: Make, checkpoint: Any, folder: Path) -> None:
    config = playing(make, "eval")
    config.evaluation.questions = 4
    found = chosen(config, checkpoint([]))
    assert (len(found.questions), found.notices) == (4, ())
    assert "evaluating 4 of the 10 questions" in found.about
    assert "has trained on none of them" in found.about
    unknown = chosen(config, folder)
    assert "what the checkpoint was trained on is not recorded beside it" in unknown.about


def test_nothing_but_training_questions_is_no_evaluation(make: Make, checkpoint: Any) -> None:
    place = checkpoint(range(10))
    with pytest.raises(UserError, match=r"run has trained on every question; .*data\.eval_questions=.*ask\.jsonl"):
        chosen(playing(make, "eval"), place)


def test_a_calibration_on_training_questions_is_refused(make: Make, checkpoint: Any) -> None:
    place = checkpoint([0])
    config = playing(make, "calibrate", dev_questions=ROWS[:4], questions=None)
    with pytest.raises(
        UserError, match=r"^mode=calibrate: the checkpoint's run has trained on 1 of the 4 questions \(q0\)"
    ):
        chosen(config, place)
    fine = playing(make, "calibrate", dev_questions=[*ROWS[1:5], ROWS[5] | {"answerable": False}], questions=None)
    found = chosen(fine, place)
    assert found.about == "calibrating on 4 development questions"
    assert "1 rows are marked answerable=false (q5), and left out" in found.notices[0].text


@pytest.mark.parametrize(("questions", "played"), [(None, 10), (0, 10), (3, 3)])
@pytest.mark.parametrize(("mode", "data"), [("eval", {}), ("calibrate", {"dev_questions": ROWS, "questions": None})])
def test_as_many_questions_are_played_as_are_asked_for(
    make: Make, checkpoint: Any, mode: str, data: dict[str, Any], questions: int | None, played: int
) -> None:
    config = playing(make, mode, **data)
    config.evaluation = EvalConfig(questions=questions)
    assert len(chosen(config, checkpoint([])).questions) == played


def test_a_long_question_does_not_stop_an_evaluation(make: Make, checkpoint: Any) -> None:
    found = chosen(playing(make, "eval", eval_questions=[LONG, *ROWS]), checkpoint([]))
    assert len(found.questions) == 10
    assert found.notices[-1].text.startswith("1 of 11 held-out questions have a prompt of more than")


def test_documents_that_an_evaluation_can_not_find_are_counted(make: Make, checkpoint: Any) -> None:
    found = chosen(playing(make, "eval", eval_questions=named(["Gone"], ["Book 1"])), checkpoint([]))
    assert found.notices[-1].text.startswith(
        "1 of 10 held-out questions name supporting documents that the corpus lacks"
    )


def test_an_evaluation_takes_others_for_those_it_leaves_out(make: Make, checkpoint: Any) -> None:
    rows = named(["Gone"], *ALL[1:])
    config = playing(make, "eval", eval_questions=rows, require_evidence=True)
    config.evaluation.questions = 9
    found = chosen(config, checkpoint([]))
    assert [q.id for q in found.questions] == [f"q{i}" for i in range(1, 10)]
    assert found.notices[-1].kind == "left_out"


def test_asking_plays_no_file(make: Make, checkpoint: Any) -> None:
    assert chosen(playing(make, "ask", questions=None), checkpoint([])).questions == ()


def test_a_question_that_is_too_long_to_be_asked_is_refused_before_anything_starts(make: Make, checkpoint: Any) -> None:
    config = playing(make, "ask", questions=None)
    config.question = LONG["question"]
    with pytest.raises(
        UserError, match=r"^question=…: its prompt has \d+ tokens, more than agent\.max_prompt_tokens=64"
    ):
        chosen(config, checkpoint([]))


def test_the_console_says_each_notice_and_where_the_questions_are_listed(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tracking.console import Console

    Console().notices(prepare(make([LONG, *ROWS]), tmp_path).task.notices, tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("data: 1 of ")
    assert said[-1] == f"data: all of these questions are listed in {tmp_path / FILE}"
    Console().notices((), tmp_path)
    assert capsys.readouterr().out == ""


def test_more_development_questions_come_by_the_settings_of_the_data(make: Make) -> None:
    assert more_questions(make()) == "data.dev_questions=FILE with more, or a larger data.dev_share in training"
    world = RunConfig(pool=Epoch(), evaluation=EvalConfig(questions=5))
    assert more_questions(world) == "a larger evaluation.questions, or a larger data.dev_questions_per_hop"
