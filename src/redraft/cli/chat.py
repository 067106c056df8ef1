"""``redraft chat``: a conversation in the terminal, over the engine that serves."""

from __future__ import annotations

import queue
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft.cli._common import Device, Json, log, screen
from redraft.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from redraft.serve.engine import Engine
    from redraft.serve.reading import Text as Answer

_HELP = "/again writes the last answer anew, /clear forgets the conversation, /steps N, /temperature T, /quit"


def chat(
    model: Annotated[str, typer.Option(help="A model folder, or a shipped checkpoint (see: redraft models).")],
    system: Annotated[str | None, typer.Option(help="What the model is told before the conversation.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of an answer.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps, for samplers that take them.")] = None,
    sampler: Annotated[str | None, typer.Option(help="See: redraft models. Unset: the model's own.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A field of the sampler; repeat for more.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 takes the likeliest token.")] = None,
    pace: Annotated[float, typer.Option(min=0, help="Seconds each step stays on a terminal; not counted.")] = 0.05,
    as_json: Json = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the first answer; the next has one more.")] = 0,
    device: Device = "auto",
) -> dict[str, Any]:
    """Talk to a model. In a terminal its answers come into focus; lines from a pipe are answered one by one.

    \b
    Examples:
      redraft chat --model translate-en-de-masked
      redraft chat --model runs/mine --steps 8 --temperature 0.7
      echo "Where is my hat?" | redraft chat --model translate-en-de-masked --json

    A model with a chat template is spoken to as it says. Others: docs/serving.md.
    """
    from redraft.config import parse_options
    from redraft.data.chat import template_of
    from redraft.loading import load, resolve
    from redraft.serve.engine import Engine, Limits

    chosen = {
        "max_new_tokens": max_new_tokens,
        "steps": steps,
        "sampler": sampler,
        "options": parse_options(option or [], "--option") or None,
        "temperature": temperature,
    }
    folder = resolve(model)
    loaded = load(folder, device)
    loaded.settings(**chosen)  # a mistake is told before the first question
    talk = _Talk(Engine(loaded, Limits(rows=16)), template_of(folder), system, chosen, seed, pace)
    console = screen(as_json)
    spoken = sys.stdin.isatty() and not as_json
    if spoken:
        log(f"{model}, {loaded.family_name}, {loaded.parameters / 1e6:.1f}M parameters. {_HELP}.")
    try:
        while (line := _line(spoken)) is not None:
            if line.startswith("/"):
                if not talk.obey(line, console):
                    break
            elif line.strip():
                talk.say(line, console)
    finally:
        talk.engine.close()
    return {"model": model, "family": loaded.family_name, "turns": talk.turns, "device": str(loaded.network.device)}


class _Talk:
    """A conversation under way."""

    def __init__(
        self,
        engine: Engine,
        template: str | None,
        system: str | None,
        chosen: dict[str, Any],
        seed: int,
        pace: float,
    ) -> None:
        self.engine, self.template, self.chosen, self.seed, self.pace = engine, template, chosen, seed, pace
        self.begin = [{"role": "system", "content": system}] if system else []
        self.messages = list(self.begin)
        self.turns: list[dict[str, Any]] = []

    def obey(self, line: str, console: Console) -> bool:
        """A command; False ends the conversation."""
        name, _, value = line[1:].strip().partition(" ")
        if name in ("quit", "exit", "q"):
            return False
        if name == "clear":
            self.messages = list(self.begin)
        elif name == "again" and len(self.messages) > len(self.begin):
            self.messages.pop()
            self.say(str(self.messages.pop()["content"]), console)
        elif name in ("steps", "temperature") and value:
            try:
                self.chosen = {**self.chosen, name: int(value) if name == "steps" else float(value)}
            except ValueError:
                console.print(f"{name} takes a number.")
        else:
            console.print(_HELP, markup=False)
        return True

    def say(self, line: str, console: Console) -> None:
        """Put a message, show the answer."""
        self.messages.append({"role": "user", "content": line})
        try:
            answer, seconds = self._answer(console)
        except UserError as error:
            self.messages.pop()
            if not sys.stdin.isatty():
                raise
            console.print(f"{error}", style="red", markup=False)
            return
        self.messages.append({"role": "assistant", "content": answer.text})
        self.turns.append(
            {
                "prompt": line,
                "text": answer.text,
                "new_tokens": len(answer.ids),
                "nfe": answer.nfe,
                "finish": answer.finish,
                "seconds": seconds,
                "seed": self.seed,
            }
        )
        self.seed += 1

    def _answer(self, console: Console) -> tuple[Answer, float]:
        from rich.live import Live

        from redraft.data import chat as conversations
        from redraft.serve.engine import Event, Failed, Job, Progress
        from redraft.serve.reading import Span

        model = self.engine.model
        head, stops = conversations.prompt(self.messages, model.tokenizer, model.conditional, self.template)
        room = model.network.config.max_length - len(head)
        if room < 1:
            raise UserError(f"the conversation has {len(head)} tokens, the context is full.", "Say /clear.")
        most = min(room, self.chosen["max_new_tokens"] or model.settings().max_new_tokens)
        settings = model.settings(**{**self.chosen, "max_new_tokens": most, "seed": self.seed})
        heard: queue.SimpleQueue[Event] = queue.SimpleQueue()
        live = console.is_terminal
        drafting = model.compose([head], settings)
        span = Span(len(head), len(head) + most)
        job = Job(drafting, span, heard.put, stops, frames=(lambda: True) if live else None)
        self.engine.submit("terminal", [job])
        with Live(console=console, auto_refresh=False, transient=True) as shown:
            while isinstance(event := heard.get(), Progress):
                if event.frame is not None:
                    shown.update(picture(event.frame, bool(model.spec.shift)), refresh=True)
                    time.sleep(self.pace)
        if isinstance(event, Failed):
            raise UserError(f"{event.why}.")
        seconds = job.ended - job.begun - job.pictured
        console.print(event.result.text, markup=False)
        if live:
            rate = len(event.result.ids) / seconds if seconds else 0.0
            passes, count = event.result.nfe, len(event.result.ids)
            console.print(f"{passes} passes, {count} tokens, {seconds * 1000:.0f} ms, {rate:.0f} tokens/s", style="dim")
        return event.result, seconds


def picture(frame: dict[str, Any], left_to_right: bool) -> Text:
    """A frame of the canvas as coloured text: guesses dim, final words by their confidence."""
    from rich.text import Text

    from redraft.cli._animation import style
    from redraft.types import FREE, SEALED

    shown = Text()
    for piece in frame["canvas"]:
        sure = float("nan") if piece["confidence"] is None else piece["confidence"]
        if piece["status"] != "free":
            shown.append(piece["text"], style=style(SEALED, sure))
        elif not left_to_right:
            shown.append(piece["text"] or "░░ ", style=style(FREE, sure))
    return shown


def _line(spoken: bool) -> str | None:
    """The next line of whoever talks, or None at the end."""
    if spoken:
        try:
            return input("> ")
        except (EOFError, KeyboardInterrupt):
            return None
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None
