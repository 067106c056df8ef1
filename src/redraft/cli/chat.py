"""``redraft chat``: a conversation in the terminal, with the engine of ``redraft serve``."""

from __future__ import annotations

import queue
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft import config
from redraft.cli._common import Device, Json, ModelName, Pace, WeightType, log, placement, read_line, screen
from redraft.cli._decoding import Decoding
from redraft.cli._verbs import verb
from redraft.errors import UserError
from redraft.options import declared
from redraft.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from redraft.data.chat import LeftOut
    from redraft.serve.engine import Engine
    from redraft.serve.incremental_text import GeneratedText

_HELP = "/again repeats the last turn with another seed, /clear starts over, /SETTING VALUE (such as /steps 8), /quit"


@verb(order=110)
def chat(
    *,
    model: ModelName,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    given: Decoding,
    pace: Pace = 0.05,
    as_json: Json = False,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the first answer; answer i uses seed + i.")] = 0,
    device: Device = "auto",
    dtype: WeightType = "auto",
) -> dict[str, Any]:
    """Chat with a model. A terminal shows every step of the answer; lines from a pipe are answered one by one.

    \b
    Examples:
      redraft chat --model translate-en-de-masked
      redraft chat --model runs/mine --steps 8 --temperature 0.7
      echo "Where is my hat?" | redraft chat --model translate-en-de-masked --json

    Messages are formatted with the model's chat template. docs/serving.md describes models without one; which messages
    such a model doesn't get is said. Options that you leave out take the values of the model's generation_config.json.
    """
    from redraft.loading import load
    from redraft.serve.engine import Engine, EngineLimits

    loaded = load(model, device, dtype)
    loaded.settings(**given)  # report a mistake before the first question
    talk = _Talk(Engine(loaded, EngineLimits(rows=16)), system, given, seed, pace)
    console = screen(as_json)
    interactive = sys.stdin.isatty() and not as_json
    if interactive:
        log(f"{model}, {loaded.family_name}, {loaded.network.parameter_count / 1e6:.1f}M parameters. {_HELP}.")
    try:
        while (line := _line(interactive)) is not None:
            if line.startswith("/"):
                if not talk.obey(line, console):
                    break
            elif line.strip():
                talk.say(line, console)
    finally:
        talk.engine.close()
    return {
        "model": model,
        "family": loaded.family_name,
        "turns": talk.turns,
        **placement(loaded),
    }


class _Talk:
    """The state of a conversation."""

    def __init__(
        self,
        engine: Engine,
        system: str | None,
        chosen: dict[str, Any],
        seed: int,
        pace: float,
    ) -> None:
        self.engine, self.chosen, self.seed, self.pace = engine, chosen, seed, pace
        self.template = engine.model.tokenizer.chat_template
        self.told: set[str] = set()  # what was said about messages that are left out
        self.begin = [{"role": "system", "content": system}] if system else []
        self.messages = list(self.begin)
        self.turns: list[dict[str, Any]] = []

    def obey(self, line: str, console: Console) -> bool:
        """Carry out a command that begins with a slash; False ends the conversation."""
        name, _, value = line[1:].strip().partition(" ")
        if name in ("quit", "exit", "q"):
            return False
        if name == "clear":
            self.messages = list(self.begin)
        elif name == "again" and len(self.messages) > len(self.begin):
            self.messages.pop()
            self.say(str(self.messages.pop()["content"]), console)
        elif name in declared(Settings, "cli") and value:
            self.change(name, value, console)
        else:
            console.print(_HELP, markup=False)
        return True

    def change(self, name: str, value: str, console: Console) -> None:
        """Set a generation setting for the following answers, if the value is valid."""
        chosen = {**self.chosen, **config.parse_options([f"{name}={value}"], f"/{name}")}
        try:
            self.engine.model.settings(**chosen)
        except UserError as error:
            console.print(f"{error}", style="red", markup=False)
        else:
            self.chosen = chosen

    def say(self, line: str, console: Console) -> None:
        """Send a message and show the answer.

        Raises:
            UserError: the message can't be answered, and no person is there to write another one.
        """
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

    def _tell(self, found: LeftOut) -> None:
        """Say once which kinds of messages the model doesn't get."""
        kinds = {kind.strip("0123456789 ").removesuffix("s") for kind in found.kinds}
        if not kinds <= self.told:
            self.told |= kinds
            log(str(found))

    def _answer(self, console: Console) -> tuple[GeneratedText, float]:
        from rich.live import Live

        from redraft.data import chat as conversations
        from redraft.serve.incremental_text import Span
        from redraft.serve.jobs import Event, Failed, Job, Progress

        model = self.engine.model
        head, stops = conversations.prompt(self.messages, model.tokenizer, model.paired, self.template)
        self._tell(conversations.left_out(self.messages, model.tokenizer, model.paired, self.template))
        room = model.network.config.max_length - len(head)
        if room < 1:
            raise UserError(f"The context is full: the conversation has {len(head)} tokens.", "Enter /clear.")
        most = min(room, self.chosen.get("max_new_tokens") or model.settings().max_new_tokens)
        settings = model.settings(**{**self.chosen, "max_new_tokens": most, "seed": self.seed})
        heard: queue.SimpleQueue[Event] = queue.SimpleQueue()
        live = console.is_terminal
        from redraft.generation.start import start_prompts

        drafting = start_prompts(model, [head], settings)
        span = Span(len(head), len(head) + most)
        job = Job(drafting, span, heard.put, stops, wants_frame=(lambda: True) if live else None)
        self.engine.submit("terminal", [job])
        with Live(console=console, auto_refresh=False, transient=True) as shown:
            while isinstance(event := heard.get(), Progress):
                if event.frame is not None:
                    shown.update(picture(event.frame, bool(model.spec.network.shift)), refresh=True)
                    time.sleep(self.pace)
        if isinstance(event, Failed):
            raise UserError(event.message)
        seconds = job.generation_seconds
        console.print(event.result.text, markup=False)
        if live:
            rate = len(event.result.ids) / seconds if seconds else 0.0
            passes, count = event.result.nfe, len(event.result.ids)
            figures = f"{passes} forward passes, {count} tokens, {seconds * 1000:.0f} ms, {rate:.0f} tokens/s"
            console.print(figures, style="dim")
        return event.result, seconds


def picture(frame: dict[str, Any], left_to_right: bool) -> Text:
    """A frame of the canvas as colored text: predictions are dim, final tokens are colored by their probability."""
    from rich.text import Text

    from redraft.cli._animation import style
    from redraft.types import FREE, SEALED

    shown = Text()
    for piece in frame["canvas"]:
        probability = float("nan") if piece["confidence"] is None else piece["confidence"]
        if piece["status"] != "free":
            shown.append(piece["text"], style=style(SEALED, probability))
        elif not left_to_right:
            shown.append(piece["text"] or "░░ ", style=style(FREE, probability))
    return shown


def _line(interactive: bool) -> str | None:
    """The next line of the input, or None at its end."""
    if interactive:
        try:
            return input("> ")
        except (EOFError, KeyboardInterrupt):
            return None
    return read_line()
