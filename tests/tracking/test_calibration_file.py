"""What mode=calibrate leaves behind, and what reading it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.config import AgentConfig, ExitConfig, SelectivityConfig
from agent.errors import UserError
from agent.inference.calibration import Calibration, calibrate
from agent.inference.early_exit import Probe
from agent.inference.evaluation import EvalRow, ScoredProbe
from agent.records import Question
from tasks.trained import ids_among
from tracking import exit_curve
from tracking.calibration import read_threshold, texts_of, write
from tracking.console import Console
from tracking.exit_curve import figure

ENDING, ALL, AGENT = ExitConfig(risk=0.1), SelectivityConfig(), AgentConfig()
ABOUT = {"checkpoint": "runs/step-000030", "weights": "abc", "data": "world"}


def row(confidence: float, em: float) -> EvalRow:
    probe = Probe(searches=1, action_tokens=5, answer="größer", confidence=confidence, tokens=3)
    return EvalRow(
        question_id="q",
        kind="2-hop",
        answer="x",
        em=1.0,
        f1=1.0,
        evidence=1.0,
        searches=2,
        action_tokens=20,
        stop_reason="answered",
        fault=False,
        probes=(ScoredProbe(probe=probe, em=em),),
    )


ROWS = [row(0.8, 1.0)] * 90 + [row(0.1, 0.0)] * 10


@pytest.fixture(scope="module")
def found() -> Calibration:
    return calibrate(ROWS, risk=ENDING.risk, delta=ENDING.delta, fit_share=0)


@pytest.fixture(scope="module")
def written(found: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with file and picture, for all: to draw one takes half a second."""
    folder = tmp_path_factory.mktemp("calibration")
    write(folder, found, ROWS, ABOUT, ENDING, ALL, AGENT, Console(quiet=True))
    return folder


@pytest.fixture
def file(written: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return tmp_path / "calibration.json"


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the picture."""
    monkeypatch.setattr(exit_curve, "draw", lambda *_: None)


def read(file: Path, **changed: Any) -> float:
    given = {"ending": ENDING, "selectivity": ALL, "agent": AGENT, "weights": "abc", **changed}
    threshold, scale, texts = read_threshold(file, **given)
    assert scale is None
    assert texts is None
    return threshold


@pytest.mark.usefixtures("undrawn")
def test_the_scale_comes_back_as_it_was(tmp_path: Path) -> None:
    found = calibrate(ROWS, risk=0.2, delta=0.05, fit_share=0.5)
    write(tmp_path, found, ROWS, ABOUT, ENDING, ALL, AGENT, Console(quiet=True))
    threshold, scale, _ = read_threshold(tmp_path / "calibration.json", ENDING, ALL, AGENT, "abc")
    assert found.chosen is not None
    assert (threshold, scale) == (found.chosen.threshold, found.scale)


@pytest.mark.usefixtures("undrawn")
def test_the_questions_that_it_was_made_on_come_back(tmp_path: Path, found: Calibration) -> None:
    asked = [Question(id=f"q{n}", text=f"Who wrote book {n}?", golden_answers=("x",)) for n in range(5)]
    about = ABOUT | {"texts": texts_of(asked[:3])}
    write(tmp_path, found, ROWS, about, ENDING, ALL, AGENT, Console(quiet=True))
    texts = read_threshold(tmp_path / "calibration.json", ENDING, ALL, AGENT, "abc")[2]
    assert texts is not None
    assert ids_among(asked, texts) == {"q0", "q1", "q2"}


@pytest.mark.parametrize("texts", [None, 7, "00", "no hex", ["00ff"]])
def test_texts_that_are_none(file: Path, texts: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"texts": texts}))
    with pytest.raises(UserError, match="can't be read"):
        read(file)


@pytest.mark.parametrize("scale", [[1, 2], {"1": 0.5}, {"one": [1.0, 2.0]}, {"1": ["a", 2.0]}])
def test_a_scale_that_is_none(file: Path, scale: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"scale": scale}))
    with pytest.raises(UserError, match="can't be read"):
        read(file)


def test_a_file_of_another_version(file: Path) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 1}))
    with pytest.raises(UserError, match="written by another version; calibrate again"):
        read(file)


def test_the_threshold_comes_back_as_it_was(file: Path, found: Calibration) -> None:
    assert found.chosen is not None
    assert 0.1 < found.chosen.threshold < 0.2
    assert read(file) == found.chosen.threshold
    content = json.loads(file.read_text())
    assert (content["threshold"], content["risk"], content["delta"]) == (found.chosen.threshold, 0.1, 0.05)
    assert (content["risk_bound"], content["questions"]) == (found.chosen.risk_bound, 100)
    assert content["full"] == {"em": 1.0, "searches": 2.0, "tokens": 20.0}
    assert len(content["points"]) == len(found.points)
    assert content["points"][0]["em"] == 1.0


def test_the_pictures_lines_are_the_points(file: Path, found: Calibration) -> None:
    assert (file.parent / "curve.png").read_bytes().startswith(b"\x89PNG")
    left, right = figure(found).axes
    for axes, x in ((left, "searches"), (right, "tokens")):
        curve, full, chosen = axes.lines
        assert list(curve.get_xdata()) == [getattr(p, x) for p in found.points]
        assert list(curve.get_ydata()) == [p.em for p in found.points]
        assert (list(full.get_xdata()), list(full.get_ydata())) == ([getattr(found, x)], [1.0])
        assert list(chosen.get_xdata()) == [getattr(found.chosen, x)]
    assert len(figure(replace(found, chosen=None)).axes[0].lines) == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weights": "other"}, r"was made for runs/step-000030, whose weights are others"),
        ({"ending": ExitConfig(max_tokens=8)}, r"was made with exit\.max_tokens=32, not 8; set it back"),
        ({"ending": ExitConfig(confidence="mean")}, r"exit\.confidence=product, not mean"),
        ({"selectivity": SelectivityConfig(queries=True)}, r"selectivity\.queries=False, not True"),
        ({"agent": AgentConfig(top_k=5)}, r"agent\.top_k=3, not 5"),
    ],
)
def test_it_holds_for_what_it_was_made_with(file: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read(file, **changed)
    assert str(error.value).startswith(f"exit.calibration={file}: ")


def test_sampling_and_the_wanted_risk_change_nothing(file: Path, found: Calibration) -> None:
    assert found.chosen is not None
    assert read(file, agent=AgentConfig(temperature=0.1), ending=ExitConfig(risk=0.3)) == found.chosen.threshold


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("confidence", "saves"), [(0.8, True), (0.01, False)])
def test_it_says_when_nothing_is_saved(tmp_path: Path, capsys: Any, confidence: float, saves: bool) -> None:
    rows = [row(confidence, 1.0)] * 100
    write(tmp_path, calibrate(rows, risk=0.1, delta=0.05, fit_share=0), rows, ABOUT, ENDING, ALL, AGENT, Console())
    assert ("nothing is saved at this threshold" in capsys.readouterr().out) != saves


@pytest.mark.usefixtures("undrawn")
def test_faults_are_told(tmp_path: Path, capsys: Any) -> None:
    rows = [*ROWS, replace(row(0.8, 1.0), fault=True)]
    found = calibrate(rows, risk=0.1, delta=0.05, fit_share=0)
    write(tmp_path, found, rows, ABOUT, ENDING, ALL, AGENT, Console())
    content = json.loads((tmp_path / "calibration.json").read_text())
    assert (content["questions"], content["faults"]) == (100, 1)
    assert "faults, which count in nothing: 1 of 101 questions" in capsys.readouterr().out


def test_a_file_that_is_none(file: Path) -> None:
    with pytest.raises(UserError, match=r"can't be read .*; mode=calibrate writes such a file"):
        read(file.parent / "missing.json")
    file.write_text("{}")
    with pytest.raises(UserError, match="can't be read"):
        read(file)


@pytest.mark.usefixtures("undrawn")
def test_a_calibration_that_found_nothing(tmp_path: Path) -> None:
    rows = [row(1.0, 0.0)] * 100
    nothing = calibrate(rows, risk=0.1, delta=0.05, fit_share=0)
    write(tmp_path, nothing, rows, ABOUT, ENDING, ALL, AGENT, Console(quiet=True))
    with pytest.raises(UserError, match="no threshold kept the risk; calibrate with a larger"):
        read(tmp_path / "calibration.json")
