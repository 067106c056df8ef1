"""The keyword arguments of ``Model.generate`` are the declared settings, so that editors can complete them.

``python -m tests.docs.test_settings_types`` writes them.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import get_type_hints

from redraft.options import declared
from redraft.settings import DecisionSettings, Settings

FILE = Path(__file__).parents[2] / "src" / "redraft" / "keyword_settings.py"
_HEAD = '''"""Keyword arguments of ``Model.generate``, ``Model.decide`` and others: declared settings, for checkers.

Made from ``settings.py`` by ``python -m tests.docs.test_settings_types``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from redraft.settings import Weights


'''


_DOC_LINE = 106  # characters of a docstring that fits one line


def typed_dict(cls: type, name: str, doc: str) -> str:
    """Source text of a ``TypedDict`` of the settings, all optional, for ``**settings: Unpack[...]``.

    Editors and type checkers then know the keyword arguments. None stands for "not given".
    """
    hints = cls.__annotations__
    lines = [f"class {name}(TypedDict, total=False):", f'    """{doc}"""', ""]
    for key, one in declared(cls).items():
        hint = str(hints[key]).replace("'", '"')
        lines += [f"    {key}: {hint if hint.endswith('None') else f'{hint} | None'}"]
        lines += [f'    """{one.help}"""'] if len(one.help) <= _DOC_LINE else [_wrapped(one.help)]
    return "\n".join(lines) + "\n"


def _wrapped(text: str) -> str:
    return textwrap.fill(f'"""{text}"""', _DOC_LINE + 10, initial_indent="    ", subsequent_indent="    ")


def source() -> str:
    """The file as it should be."""
    doc = "Settings of a generation, as keyword arguments; None: not given."
    deciding = "Settings of decisions, as keyword arguments; None: not given."
    found = typed_dict(Settings, "KeywordSettings", doc), typed_dict(DecisionSettings, "DecisionKeywords", deciding)
    return _HEAD + "\n\n".join(found)


def test_the_keyword_arguments_are_the_declared_settings() -> None:
    from redraft.keyword_settings import DecisionKeywords, KeywordSettings

    assert FILE.read_text(encoding="utf-8") == source(), "run: python -m tests.docs.test_settings_types"
    assert set(get_type_hints(KeywordSettings)) == set(declared(Settings))
    assert set(get_type_hints(DecisionKeywords)) == set(declared(DecisionSettings))


if __name__ == "__main__":
    FILE.write_text(source(), encoding="utf-8")
