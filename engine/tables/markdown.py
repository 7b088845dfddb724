"""Tables in Markdown that read well in a terminal, too."""

from __future__ import annotations

from collections.abc import Collection


def grid(head: list[str], rows: list[list[str]], left: Collection[int]) -> str:
    """Columns aligned, those of ``left`` so, the others right; without the last line's end."""
    head, *rows = ([cell.replace("|", r"\|") for cell in cells] for cells in [head, *rows])
    widths = [max(len(cells[i]) for cells in [head, *rows]) for i in range(len(head))]
    rule = ["-" * w if i in left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    aligned = [
        [f"{cell:{'<' if i in left else '>'}{widths[i]}}" for i, cell in enumerate(cells)]
        for cells in [head, rule, *rows]
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in aligned)
