"""Rewards: one file is one judge of generated texts, for ``redraft finetune --objective reward``."""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from redraft import config
from redraft.errors import UserError, suggest
from redraft.registry import find
from redraft.rewards.base import Answer, Reward

__all__ = ["Answer", "Reward", "build_reward", "scores"]

_PARAMETERS = ("prompt", "text", "reference", "row")
_SHOWN = 200  # characters of a text in an error


def build_reward(name: str, options: Mapping[str, Any]) -> Reward:
    """``"countdown"`` -> the reward of ``rewards/countdown.py``; ``"judge.py:score"`` -> a function of a file.

    Such a function is called with keyword arguments::

        def score(prompt: str, text: str, reference: str, row: dict) -> float: ...

    It may leave out those that it doesn't need.

    Raises:
        UserError: no such reward, option, file or function, or a function with other parameters.
    """
    if ".py:" in name:
        path, _, function = name.rpartition(":")
        if options:
            raise UserError(f"The reward '{name}' is a function and has no options.", "Remove reward_options.")
        return Function(name, _function(Path(path), function))
    built: Reward = config.build(find("rewards", name), options, f"reward '{name}'")
    return built


def scores(reward: Reward, answers: Sequence[Answer]) -> list[float]:
    """The rewards of some answers.

    Raises:
        UserError: a function of the user raised an exception, or a reward is not a finite number.
    """
    found = reward.scores(answers)
    for answer, value in zip(answers, found, strict=True):
        if not isinstance(value, int | float) or not math.isfinite(value):
            what = f"The reward of an answer to {answer.where} is {value!r}, not a finite number."
            raise UserError(what, f"The answer: {_short(answer.text)}")
    return [float(value) for value in found]


@dataclass(frozen=True)
class Function(Reward):
    """A function of the user's."""

    named: str
    function: Callable[..., Any]

    def score(self, answer: Answer) -> float:
        """What the function returns.

        Raises:
            UserError: it raised an exception.
        """
        takes = inspect.signature(self.function).parameters
        given = {"prompt": answer.prompt, "text": answer.text, "reference": answer.reference, "row": dict(answer.row)}
        every = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in takes.values())
        try:
            value: float = self.function(**{key: given[key] for key in given if every or key in takes})
        except Exception as error:
            line = error.__traceback__.tb_next.tb_lineno if error.__traceback__ and error.__traceback__.tb_next else 0
            at = f", line {line}" if line else ""
            what = (
                f"The reward {self.named} raised {type(error).__name__}: {error}{at}, for an answer to {answer.where}."
            )
            raise UserError(what, f"The prompt: {_short(answer.prompt)} The answer: {_short(answer.text)}") from error
        return value


def _function(path: Path, name: str) -> Callable[..., Any]:
    module = _module(path)
    function = vars(module).get(name)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise UserError(f"{path} has no function '{name}'.", suggest(name, known))
    takes = inspect.signature(function).parameters.values()
    named = [one for one in takes if one.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)]
    unknown = [one.name for one in named if one.name not in _PARAMETERS and one.default is inspect.Parameter.empty]
    if unknown:
        what = f"The reward {path}:{name} has a parameter '{unknown[0]}'."
        raise UserError(what, f"It is called with the keyword arguments {', '.join(_PARAMETERS)}.")
    return function


def _module(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"There is no file '{path}'.", "Give --reward FILE.py:FUNCTION, or the name of a reward.")
    spec = importlib.util.spec_from_file_location(f"redraft_reward_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path} can't be imported: {type(error).__name__}: {error}.", "Correct the file.") from error
    return module


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
