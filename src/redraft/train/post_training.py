"""What post-training needs besides an objective: its data, and texts that the model generates during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from redraft.data.examples import Example, Examples
from redraft.data.loader import Tokenised
from redraft.data.post_training import Comparisons, Prompts
from redraft.errors import UserError
from redraft.families.base import Family
from redraft.generation.method import build_method as build_sampling
from redraft.generation.start import check_settings, start_prompts
from redraft.model import Model
from redraft.objectives.base import SamplePass, Samples, TrainingPhase
from redraft.posttraining import build_method, build_objective
from redraft.posttraining.base import Weighted
from redraft.posttraining.reward import Reward
from redraft.rewards import Answer, build_reward, scores
from redraft.rewards.base import Reward as Judge
from redraft.rollouts import evaluating
from redraft.settings import Settings
from redraft.train.conversions import own_generation, wrapped_phases
from redraft.train.recipe import Recipe
from redraft.types import Batch, Generation

_TEXTS_AT_ONCE = 256  # texts that are generated together
# Texts are drawn from the model's own distribution, unless a recipe says otherwise.
_SAMPLING: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "candidates": 1}


def check_recipe(recipe: Recipe) -> None:
    """Check what a recipe combines with an objective of post-training, before data or models are read.

    Raises:
        UserError: an unknown objective or reward, a wrong option, or a combination that makes no sense.
    """
    method, train = build_method(recipe.objective), recipe.train
    if method is None:
        return
    if isinstance(method, Reward):
        _judge(recipe, method)
    name = f"[objective] {method.name}"
    if not recipe.model.from_:
        raise UserError(f"{name} trains a model further.", "Name a trained checkpoint: --from.")
    if recipe.data.streaming:
        raise UserError(f"{name} needs its rows in memory.", "Leave out data.streaming.")
    if train.parallel == "fsdp":
        raise UserError(f"{name} can't be trained with parallel = 'fsdp'.", "Use --set train.parallel=ddp.")
    if train.dropout or (recipe.lora is not None and recipe.lora.dropout):
        raise UserError(f"{name} compares likelihoods, and dropout changes them.", "Set dropout to 0.")
    if train.drop_prompt:
        raise UserError(f"{name} needs the prompts.", "Set drop_prompt to 0.")
    if train.keep_best:
        what = f"{name} doesn't minimise the validation's likelihood, by which keep_best would choose."
        raise UserError(what, "Set keep_best to false.")


def _judge(recipe: Recipe, method: Reward) -> Judge:
    """The reward of a method. A file of the user's is found as data are."""
    file, colon, function = method.reward.rpartition(":")
    name = f"{recipe.path(file)}:{function}" if colon and file.endswith(".py") else method.reward
    return build_reward(name, method.reward_options)


def phases_of(recipe: Recipe, family: Family, model: Model) -> Sequence[TrainingPhase]:
    """The parts of a run: those of the family, perhaps with a conversion's, or the one objective that replaces them.

    Raises:
        UserError: the objective doesn't fit the model.
    """
    method = build_method(recipe.objective)
    if method is None:
        return wrapped_phases(recipe, family.phases())
    return (TrainingPhase(1.0, build_objective(method, family.objective(), model.spec), ("",)),)


@dataclass
class TextSampler:
    """Generates texts with the network in training, and has them judged."""

    model: Model
    judge: Judge | None  # None: rewards are 0
    examples: Sequence[Example]  # of the training data, by number
    settings: Settings

    def __call__(self, asked: SamplePass) -> tuple[Samples, int]:
        """Texts for every prompt of a batch with their rewards, and the operations of generating them.

        Raises:
            UserError: the reward can't be computed.
        """
        assert asked.batch.prompt is not None
        rows = [
            (ids[:prompt], ids[end - 1])
            for ids, prompt, end in zip(
                asked.batch.ids.tolist(), asked.batch.prompt.tolist(), asked.batch.valid.sum(1).tolist(), strict=True
            )
            for _ in range(asked.copies)
        ]
        texts, orders, flops = self._generate([head for head, _ in rows], asked.seed)
        truncated = [text.finish == "length" for text in texts]
        ends = [[] if cut else [end] for (_, end), cut in zip(rows, truncated, strict=True)]
        targets = [text.ids + end for text, end in zip(texts, ends, strict=True)]
        batch = _batch([head for head, _ in rows], targets, self.model.tokenizer.pad_id)
        if asked.batch.number is not None:
            batch = replace(batch, number=asked.batch.number.repeat_interleave(asked.copies))
        width = batch.ids.shape[1]
        order = torch.stack([F.pad(one[:width], (0, max(0, width - len(one))), value=-1) for one in orders])
        return Samples(batch, self._judged(batch, texts, truncated), torch.tensor(truncated), order), flops

    def _judged(self, batch: Batch, texts: Sequence[Generation], truncated: Sequence[bool]) -> Tensor:
        """The reward of each text [R]."""
        if self.judge is None:
            return torch.zeros(len(texts), dtype=torch.float64)
        assert batch.number is not None
        answers = [
            Answer(example.prompt or "", text.text, example.target, example.values or {}, example.where, cut)
            for example, text, cut in zip(
                [self.examples[number] for number in batch.number.tolist()], texts, truncated, strict=True
            )
        ]
        return torch.tensor(scores(self.judge, answers), dtype=torch.float64)

    def _generate(self, heads: Sequence[list[int]], seed: int) -> tuple[list[Generation], list[Tensor], int]:
        """Texts, the order [L] in which each was written (``Samples.order``), and the operations."""
        found, orders, flops = list[Generation](), list[Tensor](), 0
        cost = self.model.network.forward_cost()
        with evaluating(self.model.network, nullcontext()):
            for begin in range(0, len(heads), _TEXTS_AT_ONCE):
                settings = replace(self.settings, seed=seed + begin)
                run = start_prompts(self.model, heads[begin : begin + _TEXTS_AT_ONCE], settings).begin()
                order = torch.full(run.canvas.ids.shape, -1)
                for number, step in enumerate(run):
                    if order.shape != run.canvas.ids.shape:  # a text that grows has no order by position
                        order = torch.full(run.canvas.ids.shape, -1)
                    order[step.row, step.pos] = number
                found += run.results()
                orders += [*order]
                work = run.loop.counter
                flops += int(
                    cost.of_counts(
                        work.queries,
                        work.pairs,
                        work.targets,
                        encoded=work.encoded,
                        encoded_pairs=work.encoded_pairs,
                    )
                )
        return found, orders, flops


def _batch(heads: Sequence[list[int]], targets: Sequence[list[int]], pad_id: int) -> Batch:
    """A batch of prompts and answers, padded on the right."""
    start = torch.tensor([len(head) for head in heads])
    end = start + torch.tensor([len(target) for target in targets])
    column = torch.arange(int(end.max()))
    padded = [[*h, *t, *[pad_id] * (len(column) - len(h) - len(t))] for h, t in zip(heads, targets, strict=True)]
    valid = column < end[:, None]
    return Batch(torch.tensor(padded), valid & (column >= start[:, None]), valid, start, torch.zeros_like(start))


def text_sampler(recipe: Recipe, model: Model, examples: Examples, longest: int) -> TextSampler | None:
    """The sampler of a run; None if its objective needs no texts.

    Args:
        longest: tokens of the longest answer of the data; 0 for plain text.
    Raises:
        UserError: the model doesn't support the settings of generation, or a row can't be scored.
    """
    method = build_method(recipe.objective)
    if (generation := own_generation(recipe)) is not None:
        if not longest:
            raise UserError(
                "[objective] on_policy answers prompts, and these data are plain text.", "Use soft_targets."
            )
        if recipe.data.streaming:
            raise UserError("[objective] on_policy needs its rows in memory.", "Leave out data.streaming.")
        return TextSampler(model, None, (), _sampling(model, {"max_new_tokens": longest, **generation}))
    if not isinstance(method, Reward):
        return None
    judge = _judge(recipe, method)
    judge.ready()
    for example in examples:
        if problem := judge.problem(example.target, example.values or {}):
            raise UserError(
                f"{example.where}: the reward '{method.reward}' can't score answers to this row: {problem}.",
                "Correct or remove the row.",
            )
    return TextSampler(model, judge, examples.rows, _sampling(model, method.generation))


def _sampling(model: Model, generation: Mapping[str, Any]) -> Settings:
    """The settings with which texts are generated in training."""
    settings = model.settings(**{**_SAMPLING, **generation})
    check_settings(model, settings)
    if settings.candidates > 1 or build_sampling(model, settings).sampler.width > 1:
        what = "Beams and candidates give one text of several, and training learns from each text."
        raise UserError(what, "Leave beams and candidates at 1.")
    return settings


def fit_data(data: Tokenised, objective: Weighted, model: Model, length: int, sampler: TextSampler | None) -> int:
    """Tell the data what a row takes in training. Returns the longest row of the data.

    Raises:
        UserError: prompts and answers can't fit the model's context.
    """
    if isinstance(data, Comparisons):
        data.copies = objective.estimator.rows(length)
        return length
    assert isinstance(data, Prompts) and sampler is not None
    answer = sampler.settings.max_new_tokens
    room = int(model.network.config.max_length) - model.spec.network.attention.block - answer
    if room < 2:
        raise UserError(
            f"Answers of {answer} tokens leave no room for a prompt in the model's context.",
            "Lower it: --set objective.generation.max_new_tokens=N.",
        )
    data.answer, data.copies = answer, objective.units_of_row() * objective.estimator.rows(answer)
    return min(length, room)
