"""Text of others, as a terminal and a file of lines may show it."""

from __future__ import annotations

import json

from agent.visible import json_line, visible


def test_control_characters_become_escapes_and_letters_stay() -> None:
    assert visible("Łódź 北京 é 👩\u200d🚀\ttab\nline") == "Łódź 北京 é 👩\u200d🚀\ttab\nline"
    assert visible("\x1b[2J\x00\r\x7f\x9b\u202e\u2066\ud800") == r"\x1b[2J\x00\r\x7f\x9b\u202e\u2066\ud800"


def test_a_line_of_json_reads_back_and_hides_nothing() -> None:
    row = {"text": "\x1b[31m \x9b \u2028 \u202e 北京\n", "broken": "\ud800"}
    line = json_line(row)
    assert line.count("\n") == 1
    assert not {"\x1b", "\x9b", "\u2028", "\u202e"} & {*line}
    assert "北京" in line
    assert line.encode()  # also what is no letter at all
    assert json.loads(line) == row
