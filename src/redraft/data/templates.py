"""Chat templates: reading them from a model folder, and rendering them as transformers does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from redraft.data.gguf_tokenizer import read_part
from redraft.errors import UserError, suggest

CHAT_TEMPLATE = "chat_template.jinja"  # the file of a model folder


def template_of(folder: Path, name: str = "default") -> str | None:
    """The chat template of a model folder (``chat_template.jinja``, or in tokenizer_config.json) or of a GGUF file.

    None if it has none.

    Args:
        name: which template, if the folder has several.
    Raises:
        UserError: the file can't be read, or there is no template of that name.
    """
    config = folder / "tokenizer_config.json"
    try:
        template, described = read_part(folder, CHAT_TEMPLATE), read_part(folder, config.name)
        if template is not None:
            return template.decode("utf-8").replace("\r\n", "\n")
        if described is None:
            return None
        values = json.loads(described)
    except UnicodeDecodeError:
        raise UserError(f"The chat template in '{folder}' is not UTF-8 text.", "Copy the file again.") from None
    except ValueError as error:
        raise UserError(f"'{config}' is not valid JSON: {error}.", "Fix the file, or copy it again.") from None
    except OSError as error:
        raise UserError(f"Can't read '{error.filename}': {error.strerror}.", "Check its permissions.") from None
    found = values.get("chat_template") if isinstance(values, dict) else None
    if isinstance(found, list):  # several named templates
        known = {str(one.get("name")): one.get("template") for one in found}
        if name not in known and name != "default":
            raise UserError(f"'{config}' has no chat template '{name}'.", suggest(name, known))
        found = known.get(name)
    return found if isinstance(found, str) else None


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    names: Mapping[str, str],
    opened: bool,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Render a chat template in the same environment as transformers.

    Args:
        names: texts of the tokenizer's special tokens (``bos`` ...). The template knows them as ``bos_token`` ...
        opened: end where the answer begins (``add_generation_prompt``). tools: that the model may call.
    Raises:
        UserError: the template can't render these messages.
    """
    from jinja2 import TemplateError

    tokens = {f"{key}_token": name for key, name in names.items()}
    try:
        return _compiled(template).render(
            messages=messages, tools=list(tools) or None, documents=None, add_generation_prompt=opened, **tokens
        )
    except RecursionError:
        reason = "it calls itself too often"
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        reason = str(error)
    raise UserError(
        f"The model's chat template can't be rendered: {reason}.", "Check chat_template in the model's folder."
    )


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    """A template of Jinja, with the tags, filters and functions that transformers adds."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks the tokens of an answer for training. It adds nothing to the text."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_unchanged"), [], [], body).set_lineno(line)

        def _unchanged(self, caller: Any) -> Any:
            return caller()

    def refuse(why: str) -> None:
        raise UserError(f"The model's chat template rejects these messages: {why}.", "Change the messages.")

    def as_json(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def now(form: str) -> str:
        return datetime.now().strftime(form)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = as_json
    environment.globals |= {"raise_exception": refuse, "strftime_now": now}
    return environment.from_string(template)
