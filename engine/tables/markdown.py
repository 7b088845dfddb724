"""Tables in Markdown that read well in a terminal, too."""

from __future__ import annotations


def grid(head: list[str], rows: list[list[str]]) -> str:
    """Columns aligned, the first and those of words left, numbers right; without a last line's
    end."""
    head, *rows = ([cell.replace("|", r"\|") for cell in cells] for cells in [head, *rows])
    widths = [max(len(cells[i]) for cells in [head, *rows]) for i in range(len(head))]
    left = [i == 0 or any(_words(cells[i]) for cells in rows) for i in range(len(head))]
    rule = ["-" * w if of else "-" * (w - 1) + ":" for w, of in zip(widths, left, strict=True)]
    return "\n".join("| " + " | ".join(_line(c, widths, left)) + " |" for c in [head, rule, *rows])


def _words(cell: str) -> bool:
    return ";" in cell or cell[:1].isalpha()


def _line(cells: list[str], widths: list[int], left: list[bool]) -> list[str]:
    return [
        f"{cell:{'<' if of else '>'}{width}}"
        for cell, width, of in zip(cells, widths, left, strict=True)
    ]
