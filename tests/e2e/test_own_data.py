"""A run on files of one's own: questions and a corpus, here the real ones where they are at hand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

HOTPOT = Path(__file__).parents[2].parent / "shared" / "data" / "hotpotqa_mini"


@pytest.mark.slow
@pytest.mark.skipif(not HOTPOT.is_dir(), reason="the HotpotQA sample is not here")
def test_hotpotqa_trains_two_steps(whole, launch, gap_elsewhere):
    """Real questions and 7,117 real passages, played by a policy that knows the tags and no English.

    It earns next to nothing, so a KL term over zero-variance groups makes sure that there is a gradient.
    """
    run = launch(
        "hotpotqa",
        "data=jsonl",
        "model=tiny",
        f"model.path={whole.checkpoint}",
        f"data.questions={HOTPOT / 'questions.jsonl'}",
        f"data.corpus={HOTPOT / 'corpus.jsonl'}",
        "tracker=wandb",
        "cluster.dashboard=false",
        "algorithm.steps=2",
        "algorithm.warm_start.steps=0",
        "pool=epoch",
        "pool.batch_questions=12",
        "pool.group_size=8",
        "reward=david",
        "reward.gates=[no_answer]",
        "algorithm.kl=k1",
        "algorithm.kl_zero_variance=true",
        "agent.max_prompt_tokens=512",
        "agent.max_response_tokens=2048",
        "agent.max_passage_chars=300",
        "agent.max_new_tokens_first=32",
        "agent.max_new_tokens=32",
        "evaluation.every=0",
    )
    assert run.code == 0, run.output
    assert [row["step"] for row in run.rows("step")] == [1, 2]
    assert run.rows("eval")[-1]["n"] == 12
    assert all(row["evidence/recall"] is not None for row in run.rows("step"))  # the titles are known
    assert run.rows("step")[-1]["version"] >= 1  # updated and published
    assert all(row["rollout/mismatch"] <= 1e-5 for row in run.rows("step") if row["learner/updates"])
    assert any((run.folder / "wandb").glob("offline-run-*/*.wandb"))
    assert gap_elsewhere(run.checkpoint) < 1e-5


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Questions in HotpotQA's own layout, four held out too and one very long, and settings for their corpus."""
    folder = tmp_path_factory.mktemp("own")
    rows = [
        {
            "_id": f"h{i}",
            "question": f"who wrote book number {i}?",
            "answer": f"writer {i}",
            "type": "bridge",
            "supporting_facts": [[f"Book {i}", 0], ["Nowhere" if i == 3 else "Writers", 1]],
        }
        for i in range(24)
    ]
    rows.append({**rows[0], "_id": "long", "question": "who, " * 300 + "wrote it?"})
    questions, held_out = folder / "hotpot.json", folder / "held-out.jsonl"
    questions.write_text(json.dumps(rows))
    held_out.write_text("".join(json.dumps(row | {"_id": f"e{i}"}) + "\n" for i, row in enumerate(rows[:4])))
    passages = [{"_id": f"d{i}", "title": f"Book {i}", "text": f"It is by writer {i}."} for i in range(24)]
    passages.append({"_id": "w", "title": "Writers", "text": "All who write a book or a number of them."})
    corpus = folder / "corpus.jsonl.gz"
    corpus.write_bytes(gzip.compress("".join(json.dumps(p) + "\n" for p in passages).encode()))
    common = ["data=jsonl", f"data.corpus={corpus}", "tracker=none", "cluster.dashboard=false"]
    common.append("agent.max_prompt_tokens=100")
    return questions, held_out, common


@pytest.fixture(scope="module")
def trained(whole, launch, files):
    questions, held_out, common = files
    return launch(
        "own-files",
        *common,
        "model=tiny",
        f"model.path={whole.checkpoint}",
        f"data.questions={questions}",
        f"data.eval_questions={held_out}",
        "data.experts=auto",
        "experts.count=6",
        "agent.max_new_tokens_first=48",  # these words are many of the world's tokens
        "agent.max_new_tokens=48",
        "algorithm.steps=1",
        "algorithm.warm_start.steps=1",
        "algorithm.warm_start.cache=false",
        "pool=epoch",
        "pool.batch_questions=4",
        "pool.group_size=2",
        "reward.evidence_weight=0.5",
    )


@pytest.mark.slow
def test_ones_own_files_are_trained_on_as_they_come(trained):
    """A long question stops no run; one that the held-out file has, too, is not trained on."""
    run = trained
    assert run.code == 0, run.output
    assert run.rows("eval")[-1]["n"] == 4
    assert "4 of 25 questions are also in data.eval_questions=" in run.output
    assert "1 of 21 training questions have a prompt of more than agent.max_prompt_tokens=100 tokens" in run.output
    assert "1 of 4 held-out questions name supporting documents that the corpus lacks, such as 'Nowhere'" in run.output
    listed = [json.loads(line) for line in (run.folder / "data_notices.jsonl").read_text().splitlines()]
    left_out = {row["id"] for row in listed if row["kind"] == "left_out"}
    assert left_out == {"h0", "h1", "h2", "h3", "long"}
    made = [json.loads(line) for line in (run.folder / "experts.jsonl").read_text().splitlines()]
    assert len({row["id"] for row in made} - left_out) == 6, "the run's own experts, of what it trains on"
    assert "6 expert trajectories of" in run.output
    assert "warm start by imitation: 1 steps" in run.output


@pytest.mark.slow
def test_an_evaluation_of_the_same_file_leaves_out_what_was_trained_on(trained, files, launch):
    questions, _, common = files
    evaluation = launch(
        "own-eval", *common, "mode=eval", f"checkpoint={trained.checkpoint}", f"data.questions={questions}"
    )
    assert evaluation.code == 0, evaluation.output
    assert evaluation.rows("eval")[-1]["n"] == 4, "those that it wasn't trained on, less the long one"
    assert "has trained on 20 of the 25 questions" in evaluation.output
    assert "evaluating 4 of the 25 questions of data.questions=" in evaluation.output
