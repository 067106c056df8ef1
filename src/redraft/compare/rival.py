"""A rival that is paid for: any service with OpenAI's interface, put beside the models of a study.

It is asked the same test items. Quality is compared on the items that it answered; what it failed to answer is counted
and reported, never scored as a bad answer. Its latency is that of single requests and contains the network; its price
is that of its tokens.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from redraft.compare import stats
from redraft.errors import UserError

if TYPE_CHECKING:
    from redraft.compare.results import Record

KEY = "REDRAFT_RIVAL_KEY"  # environment variable of the API key; never an option, never in a report
_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # worth another try
# Fields that some services refuse -> under which name they take them; None: not at all.
_OTHERWISE = {"max_tokens": "max_completion_tokens", "temperature": None}
_REFUSES = re.compile("unsupported|not support|unrecogni|unknown|not permitted|not allowed", re.IGNORECASE)
_FEWEST = 0.9  # share of items that must be answered for a verdict


@dataclass(frozen=True)
class Rival:
    """A service to compare with. Without an instruction it is shown a few training pairs as earlier turns."""

    endpoint: str  # up to /v1
    model: str
    instruction: str = ""  # system message
    shots: int = 4  # training pairs shown
    price_in: float = 0.0  # for a million prompt tokens, in any currency
    price_out: float = 0.0  # for a million completion tokens
    concurrency: int = 8  # requests at once, for throughput
    tries: int = 6  # of one request
    timeout: float = 60.0  # seconds of one try

    def __post_init__(self) -> None:
        if not self.endpoint.startswith(("http://", "https://")):
            raise UserError(f"rival endpoint '{self.endpoint}' is no address.", "For example https://host/v1.")
        if not self.model:
            raise UserError("a rival needs the name of its model.", "Give --rival-model.")
        for name, least in (("shots", 0), ("concurrency", 1), ("tries", 1), ("price_in", 0), ("price_out", 0)):
            if getattr(self, name) < least:
                raise UserError(f"rival: {name} = {getattr(self, name)} must be at least {least}.")


@dataclass
class Reply:
    """What came of one question."""

    text: str | None  # None: it was not answered
    seconds: float  # of the try that succeeded, or of all
    tokens_in: int = 0
    tokens_out: int = 0
    tries: int = 1
    failure: str = ""


class Client:
    """Asks, and asks again where that may help: rate limits and passing errors, as long as the service says to wait."""

    def __init__(self, rival: Rival, key: str | None = None, patience: float = 1.0) -> None:
        """``patience`` scales the waiting between tries (tests take 0)."""
        import httpx2

        self.rival, self.patience = rival, patience
        key = os.environ.get(KEY, "") if key is None else key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx2.Client(headers=headers, timeout=rival.timeout, follow_redirects=False)
        self._dice = random.Random(0)
        self.names: dict[str, str | None] = {}  # fields that this service takes otherwise, as it has said

    def close(self) -> None:
        self._http.close()

    def ask(self, messages: Sequence[Mapping[str, str]], new_tokens: int) -> Reply:
        """One question.

        Raises:
            UserError: the service refuses us altogether (key, model, address), which no further question would mend.
        """
        import httpx2

        asked = {"model": self.rival.model, "messages": list(messages), "max_tokens": new_tokens, "temperature": 0}
        url = f"{self.rival.endpoint.rstrip('/')}/chat/completions"
        begun, why = time.perf_counter(), ""
        for number in range(1, self.rival.tries + 1):
            body = {name: value for key, value in asked.items() if (name := self.names.get(key, key)) is not None}
            at = time.perf_counter()
            wait = 0.5 * 2 ** (number - 1) * self._dice.uniform(0.75, 1.25)
            try:
                answer = self._http.post(url, json=body)
            except httpx2.HTTPError as error:
                why = f"no connection ({type(error).__name__})"
            else:
                if answer.status_code == 200:
                    return _read(answer, time.perf_counter() - at, number)
                why = f"{answer.status_code} {_message(answer)}"
                if answer.status_code in (401, 403, 404):
                    raise UserError(f"the rival refuses: {why}.", f"Check --rival-model, the address and ${KEY}.")
                if answer.status_code == 400 and self._learn(why, body):
                    continue
                if answer.status_code not in _AGAIN:
                    return Reply(None, time.perf_counter() - begun, tries=number, failure=why)
                wait = max(wait, _seconds(answer.headers.get("retry-after", "")))
            if number < self.rival.tries:
                time.sleep(min(wait, 60.0) * self.patience)
        return Reply(None, time.perf_counter() - begun, tries=self.rival.tries, failure=why)

    def _learn(self, why: str, body: Mapping[str, Any]) -> bool:
        """Whether a refusal was about a field that can be sent otherwise; from now on it is."""
        named = [key for key in _OTHERWISE if key in body and re.search(rf"\b{key}\b", why)]
        found = named if _REFUSES.search(why) else []  # a limit that is too large for one text is refused for that text
        self.names.update({key: _OTHERWISE[key] for key in found})
        return bool(found)


def measure(
    rival: Rival, prompts: Sequence[str], shots: Sequence[tuple[str, str]], new_tokens: int, alone: int
) -> dict[str, Any]:
    """Ask everything: first ``alone`` questions one after the other, for latency, then the rest, several at a time.

    Args:
        shots: (prompt, answer) pairs to show as earlier turns.
    Raises:
        UserError: the service can't be used, or answers nothing at all.
    """
    client = Client(rival)
    asked = [_messages(rival, prompt, shots) for prompt in prompts]
    try:
        first = client.ask(asked[0], new_tokens)  # opens the connection, and shows whether to go on
        if first.text is None:
            raise UserError(f"the rival does not answer: {first.failure}.", "Check --rival-endpoint.")
        replies = [client.ask(messages, new_tokens) for messages in asked[:alone]]
        begin = time.perf_counter()
        with ThreadPoolExecutor(rival.concurrency) as pool:
            rest = list(pool.map(lambda messages: client.ask(messages, new_tokens), asked[alone:]))
        wall = time.perf_counter() - begin
    finally:
        client.close()
    answered = sum(reply.text is not None for reply in rest)
    return {
        "rival": asdict(rival),
        "fields": client.names,
        "replies": [asdict(reply) for reply in [*replies, *rest]],
        "alone": [reply.seconds for reply in replies if reply.text is not None and reply.tries == 1],
        "requests_per_second": answered / wall if answered else None,
    }


def summary(record: Record, chosen: Mapping[str, tuple[str, str]]) -> dict[str, Any] | None:
    """The rival's part of ``results.json``: its quality, speed and price, and our chosen settings against it."""
    from redraft.compare.material import score

    cells = record.of("rival")
    if not cells:
        return None
    cell, rival = cells[0], Rival(**cells[0]["rival"])
    replies = [Reply(**reply) for reply in cell["replies"]]
    kept = [number for number, reply in enumerate(replies) if reply.text is not None]
    failures = Counter(reply.failure for reply in replies if reply.text is None)
    texts = [replies[number].text or "" for number in kept]
    items = [record.test[number] for number in kept]
    seconds = cell["alone"]
    priced = [(reply.tokens_in * rival.price_in + reply.tokens_out * rival.price_out) / 1e6 for reply in replies]
    quality, against = {}, []
    for metric in record.metrics if kept else []:
        measured = score(metric, texts, items).stats[None]
        quality[metric.name] = asdict(stats.interval(measured, metric.combine))
        if metric is not record.primary:
            continue
        for name in dict.fromkeys(name for pair in chosen.values() for name in pair):
            ours = record.statistics("test", name, metric)
            if ours is None:
                continue
            found = stats.compare(ours[:, kept], measured, metric.combine, record.margin, metric.better)
            enough = len(kept) >= _FEWEST * len(replies)
            against.append(
                {
                    "setting": name,
                    "label": record.settings[name].label,
                    "difference": found.difference.value,
                    "low": found.difference.low,
                    "high": found.difference.high,
                    "verdict": found.verdict if enough else "undecided",
                }
            )
    return {
        "endpoint": rival.endpoint,
        "model": rival.model,
        "shots": rival.shots,
        "asked": len(replies),
        "answered": len(kept),
        "tries": sum(reply.tries for reply in replies),
        "failures": [{"why": why, "count": count} for why, count in failures.most_common()],
        "quality": quality,
        "p50": float(np.percentile(seconds, 50)) if seconds else None,
        "p95": float(np.percentile(seconds, 95)) if seconds else None,
        "calls": len(seconds),
        "concurrency": rival.concurrency,
        "requests_per_second": cell["requests_per_second"],
        "tokens_in": float(np.mean([replies[n].tokens_in for n in kept])) if kept else None,
        "tokens_out": float(np.mean([replies[n].tokens_out for n in kept])) if kept else None,
        "cost_per_thousand": 1000 * sum(priced) / len(kept) if kept and (rival.price_in or rival.price_out) else None,
        "against": against,
    }


def _messages(rival: Rival, prompt: str, shots: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    found = [{"role": "system", "content": rival.instruction}] if rival.instruction else []
    for question, answer in shots:
        found += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [*found, {"role": "user", "content": prompt}]


def _read(answer: Any, seconds: float, tries: int) -> Reply:
    """An answer of status 200; one that is not what it should be is a failure."""
    try:
        body = answer.json()
        choice, usage = body["choices"][0], body.get("usage") or {}
        text = choice["message"]["content"]
        if choice.get("finish_reason") == "content_filter" or not isinstance(text, str):
            return Reply(None, seconds, tries=tries, failure="the service withheld its answer")
        counts = int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0))
        return Reply(text.strip(), seconds, *counts, tries=tries)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return Reply(None, seconds, tries=tries, failure="the answer is not in OpenAI's shape")


def _message(answer: Any) -> str:
    """What an error says, shortened; the address and the key are not in it."""
    try:
        error = answer.json()["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        text = str(answer.reason_phrase)
    return " ".join(text.split())[:160]


def _seconds(text: str) -> float:
    """A Retry-After of seconds; a date is left to our own waiting."""
    try:
        return max(0.0, float(text))
    except ValueError:
        return 0.0
