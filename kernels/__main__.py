"""`python -m kernels`: which backend runs each op here, and why; `--check`: whether it is right.

Exit code: 0 done, 1 what was checked is not within its error budget, 2 a mistake to correct.
"""

import argparse
import os
import sys
import time
from typing import NoReturn, TextIO

import torch

import kernels
from kernels import cuda, dispatch, native
from kernels.check import rows, verdict
from kernels.check.oracle import PARTS


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise dispatch.BackendError(f"{message}; see {self.prog} --help")

    def print_help(self, file: TextIO | None = None) -> None:
        _say(*self.format_help().splitlines())


def main(argv: list[str] | None = None) -> int:
    parser = _Parser(prog="python -m kernels", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--check",
        action="store_true",
        help="hold every backend, instruction set and precision that this machine grants against "
        "float64, at the shapes of the paper's networks; in less than a minute",
    )
    try:
        if parser.parse_args(argv).check:
            return _check()
        _print_table()
    except dispatch.BackendError as error:
        try:
            print(f"error: {_printable(str(error))}", file=sys.stderr, flush=True)
        except OSError:  # there is no other place to say it
            _discard(sys.stderr)
        return 2
    return 0


def _check() -> int:
    began, found = time.monotonic(), []
    _say(*_about())
    titles = "device", "backend", "set", "op", "products", "network", "value", "gradient", "tangent"
    _say("", "largest error, and what is allowed of it", _line(titles))
    for device in rows.devices():
        found += rows.rows(rows.subjects(device, every=True), rows.FULL)
    for row in found:
        errors = (row.parts[part].cell for part in PARTS)
        _say(_line((*row[:6], *errors)) + (f"  FAILED: {row.failed}" if row.failed else ""))
    failed = sum(row.failed is not None for row in found)
    result = (
        f"{failed} of {len(found)} rows FAILED: {verdict.REPORT}"
        if failed
        else (f"all {len(found)} rows are within their error budgets")
    )
    _say("", f"{result} ({time.monotonic() - began:.0f} s)")
    return 1 if failed else 0


def _line(cells: tuple[str, ...]) -> str:
    widths = 6, 7, 10, 8, 8, 8, 18, 18, 18
    return " ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()


def _about() -> list[str]:
    """The machine and what was built for it."""
    devices = [verdict.name(device) for device in rows.devices()]
    lines = [f"{', '.join(devices)}; torch {torch.__version__}, {kernels.threads()} threads"]
    if native.module is None:
        lines.append(f"native module: none ({native.reason})")
    else:
        granted = [name for name, present in native.module.cpu_features().items() if present]
        lines.append(
            f"native module: {native.module.version()}, CPU: {' '.join(granted) or 'portable'}"
        )
    if cuda.module is None:
        lines.append(f"cuda module: none ({cuda.reason})")
    else:
        lines.append(f"cuda module: {cuda.module.version()}, GPU: {cuda.module.architectures()}")
    return lines


def _print_table() -> None:
    """By what a check found before, where there was one."""
    lines, precisions = [f"{'op':<10} {'device':<7} {'dtype':<9} {'backend':<8} why"], []
    for device in rows.devices():
        with dispatch.following(verdict.known(device, verdict.default_folder())):
            for op in dispatch.OPS:
                for dtype in (torch.float32, torch.float64):
                    name, reason = dispatch.choose(op, device, dtype)
                    cells = f"{op:<10} {device.type:<7} {str(dtype)[6:]:<9} {name or 'none':<8}"
                    lines.append(f"{cells} {reason}")
            names = [p for p in dispatch.PRECISIONS if dispatch.refusal(p, device) is None]
            precisions.append(f"precision of passes on {device.type}: {', '.join(names) or 'none'}")
    order = {op: at for at, op in enumerate(dispatch.OPS)}
    lines[1:] = sorted(lines[1:], key=lambda line: order[line.split()[0]])
    _say(*lines, "", *_about()[1:], *precisions)


def _discard(stream: TextIO) -> None:
    """Has what is flushed there at exit, and all else, go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _say(*lines: str) -> None:
    """Prints each as one line. Raises BackendError when it cannot be written: a full disk, or a
    closed pipe.
    """
    try:
        print(*map(_printable, lines), sep="\n", flush=True)
    except OSError as error:
        _discard(sys.stdout)
        reason = f"cannot write to standard output: {error.strerror}"
        raise dispatch.BackendError(reason) from None


def _printable(line: str) -> str:
    """What would do something to a terminal, in a path or in a file that another program wrote, is
    shown as Python writes it.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


if __name__ == "__main__":
    sys.exit(main())
