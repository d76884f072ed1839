"""The files that a user gives, of each kind: intact ones to begin with, and how the product reads them.

    python tests/fuzz/files.py KIND[,KIND…] COUNT SEED

reads that many damaged ones of each in this process and prints a line of JSON: how many could be read, how many were
refused, and what broke: anything else than a result or a ``UserError`` of one line that names the file, a minute
without an end, more than 2 GiB.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]

from checkpoint_writing import write_checkpoint  # noqa: E402
from mutations import damaged  # noqa: E402

from agent.errors import UserError  # noqa: E402

HANG_S = 60
MOST_KIB = 2 << 20
Read = Callable[[Path], Any]


@dataclass(frozen=True)
class Kind:
    """Files of one kind in ``folder``; ``read`` is given the one that is damaged."""

    folder: Path
    files: tuple[Path, ...]
    read: Read
    names: Callable[[Path], str] = str
    """What a refusal of a file has to name."""


ROWS = [
    {
        "id": f"q{n}",
        "question": f"Who wrote book {n}?",
        "golden_answers": ["Jane Austen", "Austen"],
        "metadata": {"supporting_titles": ["Emma", f"Book {n}"], "type": "2-hop", "answer_aliases": ["J. Austen"]},
    }
    for n in range(4)
]
HOTPOT = [
    {
        "_id": f"h{n}",
        "question": "Which came first?",
        "answer": "yes",
        "type": "comparison",
        "level": "hard",
        "supporting_facts": [["Emma", 0], ["Persuasion", 1]],
        "context": [["Emma", ["It is a novel.", "By Austen."]]],
    }
    for n in range(3)
]
MUSIQUE = [
    {
        "id": f"2hop__{n}_1",
        "question": "Where was the author born?",
        "answer": "Steventon",
        "answer_aliases": [],
        "answerable": True,
        "paragraphs": [{"idx": 0, "title": "Emma", "paragraph_text": "By Austen.", "is_supporting": True}],
        "question_decomposition": [{"id": 1, "question": "a", "answer": "b", "paragraph_support_idx": 0}],
    }
    for n in range(3)
]
VERL = [
    {
        "data_source": "nq",
        "extra_info": {"question": "who?", "index": 0},
        "reward_model": {"ground_truth": {"target": ["x"]}, "style": "rule"},
        "id": n,
    }
    for n in range(3)
]
EMMA = (
    'I look it up.\n<search>Emma novel</search>\n\n<result> Result 1: "Emma (novel)"\nEmma is by Jane Austen.\n'
    'Result 2: "Emma (film)"\nEmma is a film.\n</result>\n\nThere it is. <search>Austen</search><result></result>'
    "\nSo <answer>Jane Austen</answer>\n"
)


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def written(folder: Path, **contents: bytes) -> tuple[Path, ...]:
    """Files of these names, with ``__`` for the dot."""
    paths = []
    for name, content in contents.items():
        paths.append(folder / name.replace("__", "."))
        paths[-1].write_bytes(content)
    return tuple(paths)


def questions(folder: Path) -> Kind:
    import pyarrow
    from pyarrow import parquet

    from tasks.files import read_questions

    table = io.StringIO()
    csv.writer(table).writerows([["Question", "Answer"], ["who?", "x"], ["what, then?", '["a", "b"]']])
    parquet.write_table(pyarrow.Table.from_pylist(VERL), folder / "verl.parquet")
    files = written(
        folder,
        own__jsonl=lines(ROWS),
        list__json=json.dumps(HOTPOT).encode(),
        musique__jsonl=lines(MUSIQUE),
        verl__jsonl=lines(VERL),
        table__csv=table.getvalue().encode(),
        packed__gz=gzip.compress(lines(ROWS)),
        popqa__tsv=b'id\tquestion\tpossible_answers\n1\twho?\t["a", "b"]\n2\twhat?\t["c"]\n',
        id_aliases__json=lines([{"Q_id": "Q1", "aliases": ["a"], "demonyms": []}]),
        wiki2__json=json.dumps([{**HOTPOT[0], "answer_id": "Q1"}]).encode(),
    )

    def read(path: Path) -> Any:
        asked = path.with_name("wiki2.json") if path.name == "id_aliases.json" else path
        return read_questions(asked, key="data.questions", notices=[])

    return Kind(folder, (*files, folder / "verl.parquet"), read)


def corpus(folder: Path) -> Kind:
    import pyarrow
    from pyarrow import parquet

    from retrieval_service.corpus import corpus_stamp, read_corpus
    from retrieval_service.names import corpus_names

    own = [{"id": f"d{n}", "contents": f'"Title {n}"\nA text, number {n}.'} for n in range(5)]
    titled = [{"id": f"t{n}", "title": f"Title {n}", "text": f"A text, number {n}."} for n in range(5)]
    files = written(folder, own__jsonl=lines(own), titled__jsonl=lines(titled), packed__gz=gzip.compress(lines(own)))

    def read(path: Path) -> Any:
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        found = list(read_corpus(path))
        corpus_stamp(path, out)
        corpus_names(path, out).known({"Title 1"}, "title")
        return found

    parquet.write_table(pyarrow.Table.from_pylist(titled), folder / "titled.parquet")
    return Kind(folder, (*files, folder / "titled.parquet"), read)


def experts(folder: Path) -> Kind:
    from agent.protocol import PROTOCOLS
    from tasks.experts import read_experts

    row = {**ROWS[0], "trajectory": EMMA}
    ids = {**row, "id": "q9", "document_ids": [["d1", "d2"], []]}
    files = written(folder, own__jsonl=lines([row, ids]), list__json=json.dumps([row]).encode())
    return Kind(folder, files, lambda path: read_experts(path, PROTOCOLS["search"], key="data.experts", notices=[]))


def configuration(folder: Path) -> Kind:
    from conf.command_line import check_overrides
    from conf.schema import register

    register()
    (folder / "experiment").mkdir()
    file = folder / "experiment" / "mine.yaml"
    file.write_text(
        "# @package _global_\ndefaults:\n  - override /pool: recycle\n  - override /cluster: local\n"
        "algorithm:\n  steps: 5\n  optimizer:\n    lr: 1.0e-6\n    betas: [0.9, 0.99]\npool:\n  group_size: 4\n"
        "seed: 3\nretrieval:\n  heap: 1g\n".replace("agent:\n  stop: []\n", "")
    )
    arguments = ["--config-dir", str(folder), "experiment=mine", f"output_dir={folder}/run"]
    # What a wrong value is refused with names its key, wherever that was set.
    return Kind(folder, (file,), lambda path: check_overrides(arguments), names=lambda path: "")


def calibration(folder: Path) -> Kind:
    from agent.config import AgentConfig, ExitConfig, SelectivityConfig
    from tracking.calibration import FORMAT, read_threshold, settings

    ending, every, agent = ExitConfig(risk=0.1), SelectivityConfig(), AgentConfig()
    content = {
        "format": FORMAT,
        "checkpoint": "runs/step-000030",
        "weights": "abc",
        "threshold": 0.5,
        "scale": {"0": [1.0, 0.0], "1": [0.5, 0.1]},
        "settings": settings(ending, every, agent),
        "texts": "00ff" * 8,
    }
    (file,) = written(folder, calibration__json=json.dumps(content, indent=1).encode())
    return Kind(folder, (file,), lambda path: read_threshold(path, ending, every, agent, "abc"))


def tokenizer(folder: Path) -> Kind:
    from agent.tokens import Tokenizer
    from tasks.tokenizer import train

    texts = [f"Question: Who wrote book {n} in 18{n}? Answer: Jane Austen." for n in range(60)]
    train(texts, tags=("<search>", "</search>"), folder=folder, vocab_size=300)

    def read(path: Path) -> Any:
        found = Tokenizer(folder)
        found.check(400)
        return found.special_ids, found.special_tokens, found.beginning, found.eos_ids, found.has_template

    return Kind(folder, tuple(p for p in folder.iterdir() if p.is_file()), read, names=lambda path: str(folder))


def checkpoint(folder: Path) -> Kind:
    import numpy as np
    import torch

    from actors import run_state
    from actors.provenance import Provenance
    from actors.resume import carry_metrics, find
    from agent.pool import saved
    from agent.pool.query_pool import QueryPool
    from agent.pool.rules.recycle import Rule
    from agent.readable import content_of
    from learner import manifest
    from learner.checkpoint import load_state, save_state
    from learner.config import AlgorithmConfig
    from learner.manifest import MANIFEST, Files, listed
    from learner.policy import Policy
    from learner.update import Updater
    from retrieval_service.names import digests
    from tracking.metrics import MetricsLog

    torch.set_num_threads(1)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    policy = Policy.build({**sizes, "intermediate_size": 8}, vocab_size=11, seed=0)
    ids = [f"q{n}" for n in range(5)]

    def pool() -> QueryPool[Any]:
        return QueryPool(ids, Rule(batch_questions=2, group_size=2), seed=1)

    def updater(policy: Policy) -> Updater:
        rng = np.random.default_rng(0)
        return Updater(policy, AlgorithmConfig(kl="none"), rng=rng, fault_folder=folder, temperature=1.0)

    state = run_state.RunState(
        step=3, rollouts=8, generated_tokens=9, first_eval={"step": 0, "em": 0.1}, last_eval=None
    )

    def write(at: Path) -> Files:
        policy.save(at)
        run_state.save(at, state, digests(()))
        saved.save(at / "training", pool().state())
        Provenance(settings={"seed": 0, "pool": {"rule": "recycle"}}, data={"corpus": "abc"}).save(at)
        save_state(
            at / "training" / "learner.pt",
            {"updater": updater(policy).state(), "adapters": {}, "version": 3, "step": 3},
        )
        return listed(at)

    log = MetricsLog(folder / "metrics.jsonl")
    for step in (1, 2, 3):
        log.write("step", {"step": step})
    path = write_checkpoint(folder / "checkpoints", 3, write)
    inside = [path / name for name in sorted(manifest.names(path))]

    def read(file: Path) -> Any:
        if file.name not in (MANIFEST, "metrics.jsonl") and len(file.read_bytes()) % 2:  # half of them go unnoticed
            sizes = listed(path, without=(MANIFEST,))
            (path / MANIFEST).unlink()
            manifest.write(path, manifest.Manifest(step=3, number=1, files=sizes))
        found = find(str(folder), folder, folder, {}).path
        assert found == path
        run = folder / "resumed"
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        carry_metrics(path, run)
        if (made := Provenance.load(path)) is not None:
            made.changes(Provenance(settings={"seed": 0}, data={}))
        saved.restore(pool(), path, "training")
        loaded = Policy.from_folder(path, seed=0, dtype="float32")
        with content_of(f"checkpoint {path}: training/learner.pt"):  # as ``LearnerActor.begin`` does
            learnt = load_state(path / "training" / "learner.pt")
            loaded.load_adapters(learnt["adapters"])
            updater(loaded).load_state(learnt["updater"])
            return int(learnt["version"]), int(learnt["step"])

    return Kind(folder, (*inside, folder / "metrics.jsonl"), read, names=lambda file: str(folder))


KINDS: dict[str, Callable[[Path], Kind]] = {
    maker.__name__: maker for maker in (questions, corpus, experts, configuration, calibration, tokenizer, checkpoint)
}


class Hang(BaseException):
    """A file that has taken too long."""


@contextmanager
def within(seconds: int) -> Iterator[None]:
    def end(number: int, frame: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def problem_of(kind: Kind, path: Path) -> tuple[str, str]:
    """``loaded`` or ``refused``, or ``broken`` and why."""
    try:
        with within(HANG_S):
            kind.read(path)
    except UserError as error:
        said = str(error)
        if "\n" in said or not said:
            return "broken", f"not one line: {said!r}"
        if len(said) > 2000:
            return "broken", f"a line of {len(said)} characters: {said[:200]!r}"
        if kind.names(path) not in said:
            return "broken", f"doesn't name the file: {said!r}"
        return "refused", ""
    except Hang:
        return "broken", f"no end within {HANG_S} s"
    except BaseException as error:  # Rust's panics are no Exceptions
        at = traceback.extract_tb(error.__traceback__)
        ours = [
            f"{Path(f.filename).name}:{f.lineno}" for f in at if str(ROOT) in f.filename and ".venv" not in f.filename
        ]
        return "broken", f"{type(error).__name__} at {ours[-1] if ours else at[-1]}: {str(error)[:200]}"
    return "loaded", ""


def fuzz(name: str, count: int, seed: str) -> dict[str, Any]:
    """Reads ``count`` damaged files of a kind."""
    with tempfile.TemporaryDirectory() as folder:
        kind = KINDS[name](Path(folder))
        intact = {p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
        for path in kind.files:
            found = problem_of(kind, path)
            assert found[0] == "loaded", (path, found)
        told: dict[str, Any] = {"loaded": 0, "refused": 0, "broken": {}}
        began = time.monotonic()
        for number in range(count):
            rng = random.Random(f"{name} {seed} {number}")
            path = rng.choice(kind.files)
            for other, content in intact.items():
                if not other.is_file() or other.read_bytes() != content:
                    other.write_bytes(content)
            path.write_bytes(damaged(intact[path], rng))
            outcome, why = problem_of(kind, path)
            if outcome == "broken":
                told["broken"].setdefault(why.split(": ")[0], []).append((number, path.name, why))
            else:
                told[outcome] += 1
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if peak > MOST_KIB:
            told["broken"]["memory"] = [(0, "", f"{peak} KiB")]
        return told | {"seconds": time.monotonic() - began, "peak_mib": peak >> 10}


def main() -> None:
    count, seed = int(sys.argv[2]), sys.argv[3]
    for name in sys.argv[1].split(","):
        told = fuzz(name, count, seed)
        told["broken"] = {why: [len(cases), *cases[:3]] for why, cases in told["broken"].items()}
        print(json.dumps({"kind": name, **told}), flush=True)


if __name__ == "__main__":
    main()
