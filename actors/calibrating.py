"""``mode=calibrate``: full episodes on development questions, and the threshold of early exit that they give.

As of an evaluation, the rows are written as they end, and one that broke off plays the questions that are missing.
"""

from __future__ import annotations

from pathlib import Path

from actors.evaluating import played, setting_of
from actors.inference import inference
from agent.config import CALIBRATING
from agent.errors import Fault
from agent.inference.calibration import calibrate as calibration
from agent.inference.calibration import check_enough
from agent.inference.evaluation import check_any_scored, refusal
from conf.schema import RunConfig
from tracking.calibration import texts_of, write
from tracking.console import Console
from tracking.evals.result import begin


def more_questions(config: RunConfig) -> str:
    """The settings by which there are more development questions."""
    played = "a larger evaluation.questions, or " if config.evaluation.questions else ""
    if config.data.source == "world":
        return f"{played}a larger data.dev_questions_per_hop"
    return f"{played}data.dev_questions=FILE with more, or a larger data.dev_share in training"


def calibrate(config: RunConfig, run_dir: Path, console: Console, namespace: str) -> None:
    """Plays, and writes ``calibration.json`` with its curve.

    Raises ``UserError`` for too few questions or rows of another setting in the folder, and ``Fault`` if more episodes
    than ``evaluation.max_fault_share`` ended in one.
    """
    wanted, faulty = {name: getattr(config.exit, name) for name in CALIBRATING}, config.evaluation.max_fault_share
    with inference(config, run_dir, namespace, console) as served:
        # Before they are played.
        check_enough(len(served.asked.questions), **wanted, max_fault_share=faulty, more=more_questions(config))
        begin(run_dir, setting_of(config, served))
        rows = played(run_dir, console, served, "calibration", step=None)
        check_any_scored(rows)
    if why := refusal(rows, faulty):
        raise Fault(
            f"{why}; what is left is a biased choice of the questions: resume=if_any output_dir={run_dir} plays these "
            "again"
        )
    about = {
        "checkpoint": config.checkpoint,
        "weights": served.weights,
        "data": served.task.name,
        "texts": texts_of(served.asked.questions),
    }
    write(run_dir, calibration(rows, **wanted), rows, about, config.exit, config.selectivity, config.agent, console)
