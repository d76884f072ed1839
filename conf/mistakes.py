"""What is wrong with a command line, in one line that names it and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from omegaconf import DictConfig
from yaml import YAMLError

from agent.errors import UserError, nearest
from agent.own import is_path
from agent.paths import at_home
from conf import of_files, peers
from conf.composing import FAILURES, SEVERAL, Composer, one_choice
from conf.help import choices as files_of
from conf.hints import LISTING, hint
from conf.tree import keys

OWN_CODE = {"reward": "reward.outcome", "algorithm": "algorithm.loss"}
"""Groups whose files say more than one thing, and the setting in them that takes code of one's own."""


@contextmanager
def one_line(composer: Composer, lines: Sequence[str], hydra_lines: Sequence[str] = ()) -> Iterator[None]:
    """Turns what Hydra says of ``lines`` into a ``UserError``."""
    try:
        yield
    except UserError:
        raise
    except FAILURES as error:
        raise UserError(_mistake(composer, lines, hydra_lines, error)) from error


def _mistake(composer: Composer, lines: Sequence[str], hydra_lines: Sequence[str], error: Exception) -> str:
    """The override at which composing failed, and the fix."""
    if isinstance(error, YAMLError):
        return _unreadable(error)
    if wrong_file := of_files.problem(error):
        return wrong_file
    choices = []
    for line in lines:
        key, _, value = line.partition("=")
        if value.startswith("{"):
            continue  # settings of the group, and no choice
        if options := composer.options(key.lstrip("+~")):
            wrong = next((one for one in _several(value) if one not in options), None)
            if not key.startswith("~") and wrong is not None:
                if is_path(wrong) and (own := OWN_CODE.get(key.lstrip("+"))):
                    return f"{line}: is no choice of {key.lstrip('+')}; did you mean {own}={wrong}?"
                return f"{line}: no such {key.lstrip('+')}; {nearest(wrong, options)}"
            if value.startswith("[") and key not in SEVERAL:
                return f"{line}: {one_choice(key)}"
            if key.startswith("+"):
                return f"{line}: there is a {key.lstrip('+')} already; write {line.lstrip('+')} to choose another"
            choices.append(line)
    try:
        composed = composer.compose(choices)
    except FAILURES as broken:
        return _clash(composer, choices, broken)
    if unknown := _unknown(composer, lines, composed):
        return unknown
    for line in hydra_lines:
        if wrong := _of_hydra(composer, line, composed):
            return wrong
    return _as_said(lines, error, _settings(composed))


def _several(value: str) -> list[str]:
    """The choices of a group: one, or those of a list, ``[wandb,tensorboard]``."""
    inner = value[1:-1] if value[:1] + value[-1:] == "[]" else ""
    return [choice.strip() for choice in inner.split(",")] if inner else [value]


def _unreadable(error: YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    name = getattr(error, "name", None) or "a file of settings"  # of a character that YAML doesn't have
    where = f"{mark.name}: line {mark.line + 1}" if mark is not None else name
    return f"{where}: is not YAML ({problem or str(error).splitlines()[0]})"


def _clash(composer: Composer, choices: list[str], broken: Exception) -> str:
    """Choices that don't compose: the last without which the others do, or a file that is wrong in itself."""
    if isinstance(broken, YAMLError):
        return _unreadable(broken)
    message = " ".join(str(broken).strip().splitlines()[:2])
    guilty = next((c for c in choices[::-1] if composer.composes([other for other in choices if other is not c])), None)
    return f"{guilty}: does not go with the other choices: {message}" if guilty else message


def check_peers(lines: Sequence[str]) -> None:
    """Raises ``UserError`` that translates the keys of other programs, all at once: whole commands are pasted."""
    names = [_key(line) for line in lines]
    if answers := [answer for key in names if (answer := peers.answer(key))]:
        raise UserError("; ".join(answers))
    for key in names:
        if program := peers.family(key):
            raise UserError(f"{key} is a name of {program}'s, and nothing here corresponds to it; {LISTING}")


def check_model(lines: Sequence[str]) -> None:
    """Raises ``UserError`` for a path or a hub name in the place of a choice of model, or the other way round."""
    for line in lines:
        key, _, value = line.partition("=")
        if key == "model" and (set(value) & set("/~") or value.endswith(".gguf")):
            raise UserError(f"{line}: is no choice of model; did you mean model.path={value}?")
        if key == "model.path" and value in {*files_of("model")} - {"folder"} and not at_home(value).exists():
            raise UserError(f"{line}: there is no such folder; did you mean model={value}?")


def _unknown(composer: Composer, lines: Sequence[str], composed: DictConfig) -> str | None:
    """The first key that is no setting."""
    valid = _settings(composed)
    for line in lines:
        key, value = _key(line), line.partition("=")[2]
        if key in valid or composer.options(key):
            continue
        groups = difflib.get_close_matches(key, valid, n=3, cutoff=0.6)
        if meant := next((group for group in groups if value in composer.options(group)), None):
            return f"{key} is not a setting; did you mean {meant}={value}?"
        if choices := of_files.with_setting(key):
            named = " and ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))
            which = "one of them" if choices[1:] else "that"
            return f"{key} is a setting of {named} alone; choose {which}, too, or leave it out"
        return f"{key} is not a setting; {hint(key, valid)}"
    return None


def _of_hydra(composer: Composer, line: str, composed: DictConfig) -> str | None:
    """What is wrong with one of Hydra's own settings; None if nothing is."""
    try:
        composer.compose([], [line])
    except FAILURES as error:
        key, value = _key(line), line.partition("=")[2]
        if options := composer.options(key):
            return f"{line}: no such {key}; {nearest(value, options)}"
        valid = [name for name in keys(composed) if name.startswith("hydra.")]
        if key not in valid:
            return f"{key} is not a setting of Hydra's; {hint(key, valid, 'see https://hydra.cc')}"
        return f"{line}: {_first_line(error)}"
    return None


def _as_said(lines: Sequence[str], error: Exception, valid: Sequence[str]) -> str:
    """Hydra's own words, with the override that they are about; of a key in braces, which is no setting, ours."""
    culprit = getattr(error.__cause__ or error, "full_key", None)
    about = [line for line in lines if f"{culprit}.".startswith(f"{_key(line)}.")]
    line = about[-1] if about else " ".join(lines)
    message = _first_line(error)
    if about and culprit not in valid and _key(line) != culprit:
        return f"{line}: {culprit} is not a setting; {hint(str(culprit), valid)}"
    if "is not Optional" in message or "NoneType is not a subclass" in message:
        return f"{line if about else culprit}: null is no value for it; leave it out, or give one"
    if about and "is not a subclass of" in message:
        inner = sorted({name.removeprefix(f"{culprit}.").partition(".")[0] for name in valid if _is_in(culprit, name)})
        same = [name for name in valid if name != culprit and name.rpartition(".")[2] == culprit]
        or_that = "".join(f"; or did you mean {name}={line.partition('=')[2]}?" for name in sorted(same, key=len)[:1])
        names = ", ".join(inner)
        return f"{line}: stands for several settings; write {culprit}.NAME=VALUE, NAME one of {names}{or_that}"
    if "is not a ListConfig" in message and culprit:
        return f"{line}: is one value and not a list, which is written {culprit}=[a,b]"
    return f"{line}: {message}" if line else message


def _is_in(part: str | None, name: str) -> bool:
    return name.startswith(f"{part}.")


def _first_line(error: Exception) -> str:
    text = str(error.__cause__ or error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _settings(composed: DictConfig) -> list[str]:
    return [key for key in keys(composed) if key.partition(".")[0] != "hydra"]


def _key(line: str) -> str:
    return line.partition("=")[0].lstrip("+~")


def strange_flag(composer: Composer, flag: str, value: str, known: Sequence[str]) -> str:
    """What to say of a flag that doesn't exist; ``value`` is the argument after it."""
    name, equals, inline = flag.lstrip("-").partition("=")
    value = inline if equals else value
    valid = _settings(composer.compose([]))
    for key in (name, name.replace("-", "_")):
        if answer := peers.answer(key, value):
            return f"--{answer}"
        if key in valid or composer.options(key):
            return f"{flag}: no such flag; a setting has no dashes: {key}={value or '…'}"
    if close := difflib.get_close_matches(f"--{name}", known, n=1, cutoff=0.8):
        return f"{flag}: no such flag; did you mean {close[0]}?"
    return f"{flag}: no such flag, and no setting either; {hint(name.replace('-', '_'), valid)}"
