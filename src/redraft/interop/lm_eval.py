"""redraft models in the lm-evaluation-harness.

    python -m redraft.interop.lm_eval --model redraft --model_args pretrained=base-masked,steps=16 --tasks TASK ...

This is the harness's own command with the class ``RedraftLM`` registered. In Python, ``import redraft.interop.lm_eval``
registers it.

``model_args``: pretrained, device, dtype, mask_id (``redraft.load``); max_gen_toks; samples (noise draws of a bound);
seed; check_greedy; sampler, steps, temperature ... (generation settings); and any further option of the sampler.

``--apply_chat_template`` renders the chat template of the model's folder; without one, prompts are built as in the
server (``data.chat``).
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import redraft
from redraft import likelihood
from redraft.data import chat
from redraft.errors import UserError
from redraft.generation.method import build_method
from redraft.generation.prompts import longest, prompt_ids
from redraft.generation.start import start_holes
from redraft.loading import resolve
from redraft.settings import Dtype, Settings
from redraft.types import Batch

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    _MISSING = f"The lm-evaluation-harness is not installed ({error}). Install it: pip install 'redraft[harness]'."
    if __name__ == "__main__":
        sys.stderr.write(f"error: {_MISSING}\n")
        sys.exit(2)
    raise ImportError(_MISSING, name=error.name) from None

_OWN = set(Settings.__dataclass_fields__) - {"options", "seed", "max_new_tokens"}


@register_model("redraft")
class RedraftLM(LM):
    """Log-likelihoods and generated texts of a redraft model.

    Log-likelihoods are exact for autoregressive models, and the negated bound for diffusion models. No result depends
    on the batch size: noise is keyed by request, and bounds are estimated one request at a time. ``is_greedy`` is exact
    for autoregressive models. For diffusion models it needs a forward pass for every token, so it is False unless
    ``check_greedy`` is set; then it tells whether the model's sampler at temperature 0 generates the continuation.
    """

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        dtype: Dtype = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        mask_id: int | None = None,
        max_gen_toks: int = 128,
        samples: int = 128,
        seed: int = 0,
        check_greedy: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__()
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            device = "cpu"  # the harness passes cuda:0 if no device is named
        self.model = redraft.load(pretrained, device, dtype, mask_id)
        self.template = self.model.tokenizer.chat_template
        self.templated = False  # are contexts rendered by the template?
        self.pretrained, self.rows = pretrained, int(batch_size) if str(batch_size).isdigit() else 8
        self.max_gen_toks, self.samples, self.seed, self.check_greedy = max_gen_toks, samples, seed, check_greedy
        own = {key: value for key, value in settings.items() if key in _OWN}
        options = {key: value for key, value in settings.items() if key not in _OWN}
        self.settings = {**own, **({"options": options} if options else {})}
        chosen = self.model.settings(**self.settings, max_new_tokens=max_gen_toks)
        self.sampler = build_method(self.model, chosen).sampler  # refuses a misspelt option now, not after an hour

    def get_model_info(self) -> dict[str, Any]:
        """The description of the model and its settings for the results file."""
        bound = self.model.spec.family.schedule is not None
        return {
            "pretrained": self.pretrained,
            "family": self.model.family_name,
            "model_num_parameters": self.model.network.parameter_count,
            "sampler": self.sampler.name,
            "sampler_settings": _recorded(vars(self.sampler)),
            "generation_settings": _recorded(self.settings),
            "likelihood": f"bound, {self.samples} noise draws" if bound else "exact",
            "seed": self.seed,
        }

    # ---- chat

    @property
    def tokenizer_name(self) -> str:
        """Hash of the vocabulary and the chat template, on which the harness's cached requests depend."""
        content = f"{self.model.tokenizer.fingerprint} {self.template}"
        return f"redraft-{hashlib.sha256(content.encode()).hexdigest()[:16]}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The chat template of the model's folder, or the one of that name; "" if it has none (``data.chat``)."""
        if chat_template is False:
            return None
        if isinstance(chat_template, str):
            self.template = chat.template_of(resolve(self.pretrained), chat_template)
        self.templated = True
        return self.template or ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as the text of a prompt. Without a generation prompt, the answer continues the last message.

        Raises:
            UserError: the model was trained on pairs, so its answers can't be continued.
        """
        self.templated = True
        model = self.model
        if self.template is not None:
            found = chat.fill(chat_history, model.tokenizer, self.template, add_generation_prompt)
            if add_generation_prompt:
                return found
            begun = chat_history[-1]["content"].strip()
            return found[: found.rindex(begun) + len(begun)]
        if model.paired and not add_generation_prompt:
            raise UserError(
                "This model was trained on prompt and target pairs, so it can't continue the beginning of an answer.",
                "Leave gen_prefix out.",
            )
        return chat.transcript(chat_history, model.paired, add_generation_prompt)

    def _ids(self, context: str) -> list[int]:
        """Ids of a context, as in training. Special tokens of a chat template are recognised."""
        if self.templated and self.template is not None:
            return self.model.tokenizer.encode_marked(context)
        return prompt_ids(self.model, context)

    # ---- requests

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation given its context, and whether it is greedy."""
        pairs = [self._split(*request.args) for request in requests]
        if self.model.spec.family.schedule is None:
            found = []
            for begin in range(0, len(pairs), self.rows):
                found += self._exact(pairs[begin : begin + self.rows])
        else:
            found = [self._bound(head, tail) for head, tail in pairs]
        for request, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, answer)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each whole text."""
        found = []
        for request in requests:
            (text,) = request.args
            found.append(-self.model.rolling(text, samples=max(2, self.samples // 16), seed=self.seed).nats)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Generate texts; requests with equal settings share batches. Request n of a group uses seed + n."""
        kinds: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            kinds.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        found = [""] * len(requests)
        for kind, numbers in kinds.items():
            settings, until = self._generation_settings(json.loads(kind))
            heads = [self._head(requests[number].args[0], settings["max_new_tokens"]) for number in numbers]
            texts = self.model.generate(heads, self.rows, seed=self.seed, **settings)
            for number, text in zip(numbers, texts, strict=True):
                ends = [text.text.find(stop) for stop in until if stop and stop in text.text]
                found[number] = text.text[: min(ends)] if ends else text.text
                self.cache_hook.add_partial("generate_until", requests[number].args, found[number])
        return found

    def _generation_settings(self, given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Settings from a task's generation_kwargs, overridden by those of ``model_args``; and the stop strings."""
        until = given.pop("until", [])
        settings: dict[str, Any] = {"max_new_tokens": int(given.pop("max_gen_toks", self.max_gen_toks))}
        sampling: dict[str, Any] = {key: given.pop(key) for key in ("temperature", "top_p", "top_k") if key in given}
        if given.pop("do_sample", bool(sampling.get("temperature"))):
            settings |= sampling
        if given:
            raise UserError(
                f"The task's generation_kwargs hold {', '.join(given)}, which redraft does not support.",
                "Remove them from the task, or pass redraft settings with --model_args.",
            )
        return {**settings, **self.settings}, [until] if isinstance(until, str) else list(until)

    def _head(self, context: str, count: int) -> list[int]:
        """Ids of a prompt, cut from the left so that ``count`` more fit."""
        most = longest(self.model) - count
        if most < 1:
            raise UserError(f"max_gen_toks = {count} fills the whole context of {most + count} tokens.", "Lower it.")
        return self._ids(context)[-most:]

    def _split(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of context and continuation, truncated on the left to the context length of the network.

        For a plain-text model both are tokenised as one text, so that a space at the end of the context does not split
        a word.
        """
        model = self.model
        if model.paired:
            head, tail = self._ids(context), model.tokenizer.encode_target(continuation.strip())
        else:
            spaces = len(context) - len(context.rstrip())
            context, continuation = context[: len(context) - spaces], context[len(context) - spaces :] + continuation
            head, whole = self._ids(context), self._ids(context + continuation)
            tail = whole[len(head) :] if whole[: len(head)] == head else model.tokenizer.encode(continuation)
        if not tail:
            raise UserError("a continuation to score is empty.")
        most = longest(model) - len(tail)
        if most < 1:
            raise UserError(
                f"A continuation of {len(tail)} tokens fills the whole context of the model.",
                "Use a task with shorter continuations, or a model with a longer context.",
            )
        return (head or [model.tokenizer.bos_id])[-most:], tail

    def _exact(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Exact log-likelihoods by the chain rule, several rows in each forward pass."""
        model = self.model
        width = max(len(head) + len(tail) for head, tail in pairs)
        start = torch.tensor([len(head) for head, _ in pairs])
        end = torch.tensor([len(head) + len(tail) for head, tail in pairs])
        columns = torch.arange(width)
        ids = torch.tensor(
            [[*head, *tail, *[model.spec.tokens.pad_id] * (width - len(head) - len(tail))] for head, tail in pairs]
        )
        target = (columns >= start[:, None]) & (columns < end[:, None])
        batch = Batch(ids, target, columns < end[:, None], start, end - start)
        prepared = model.family.objective().prepare(batch, model.spec, torch.Generator())
        with torch.inference_mode():
            logits = model.network(prepared.request).float().cpu()
        forbidden = torch.tensor(model.spec.tokens.forbidden, dtype=torch.long)
        log_p = logits.index_fill(1, forbidden, -torch.inf).log_softmax(-1)
        each = log_p.gather(1, prepared.target[:, None])[:, 0].double()
        best = log_p.argmax(-1) == prepared.target
        return [(float(each[prepared.row == n].sum()), bool(best[prepared.row == n].all())) for n in range(len(pairs))]

    def _bound(self, head: list[int], tail: list[int]) -> tuple[float, bool]:
        model = self.model
        objective = model.family.objective()
        found = likelihood.score(model.network, head, tail, objective, model.spec, self.samples, self.seed)
        return -found.nats, self.check_greedy and self._is_greedy(head, tail)

    def _is_greedy(self, head: list[int], tail: list[int]) -> bool:
        """Does the model's sampler generate exactly this continuation, with one token in each forward pass?"""
        given: Mapping[str, Any] = {**self.settings, "temperature": 0.0, "steps": len(tail)}
        settings = self.model.settings(**given, max_new_tokens=len(tail), ignore_eos=True)
        drafting = start_holes(self.model, [[*head, *[None] * len(tail)]], [len(head)], settings, len(tail))
        for _ in drafting:
            pass
        return bool(drafting.canvas.ids[0, len(head) :].tolist() == tail)


def _recorded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON values."""
    return {k: v if isinstance(v, bool | int | float | str | None) else str(v) for k, v in settings.items()}


def main() -> None:
    """The harness's command line, with ``--model redraft``."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
