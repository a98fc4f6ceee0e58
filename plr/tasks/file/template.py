"""Templates of a task file: text with named fields, filled with a row. Nothing in them is ever run.

`{name}` stands for the field `name` of a row, `{{` and `}}` for braces. There is nothing else: no attributes, no indices,
no conversions and no formats, so a template reads what a row holds and cannot reach anything behind it. What is filled in is
text: braces inside a row's value stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter

from plr.tasks.types import Fields

__all__ = ["Template"]


@dataclass(frozen=True)
class Template:
    """A parsed template: pieces of text, each followed by a field or by nothing.

    >>> Template.parse("Q: {question}\\nA:").fill({"question": "1 {+} 1"})
    'Q: 1 {+} 1\\nA:'
    """

    pieces: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Read `text`.

        Raises:
            ValueError: braces that do not pair, or anything but a plain name between them; the message is for people.
        """
        pieces: list[tuple[str, str | None]] = []
        try:
            parsed = list(Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"{text!r} is no template ({error}): write {{{{ and }}}} for braces") from error
        for literal, name, form, conversion in parsed:
            if name is None:
                pieces.append((literal, None))
                continue
            if form or conversion or not name.strip() or name != name.strip() or set(name) & set(".[]{}"):
                raise ValueError(f"{text!r} holds {{{name}...}}: a template takes plain {{field}} names and no code")
            pieces.append((literal, name))
        return cls(tuple(pieces))

    @property
    def fields(self) -> tuple[str, ...]:
        """The names it reads, each once, in order."""
        return tuple(dict.fromkeys(name for _, name in self.pieces if name is not None))

    def fill(self, values: Fields) -> str:
        """Write the text for one row. Every field must be there."""
        return "".join(literal + ("" if name is None else str(values[name])) for literal, name in self.pieces)
