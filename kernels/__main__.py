"""`python -m kernels`: which backend runs each op here, and why."""

import sys

import torch

from kernels import cuda, dispatch, native


def main() -> int:
    try:
        _print_table()
    except dispatch.BackendError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _print_table() -> None:
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    lines = [f"{'op':<10} {'device':<7} {'dtype':<9} {'backend':<8} why"]
    for op in dispatch.OPS:
        for device in devices:
            for dtype in (torch.float32, torch.float64):
                name, reason = dispatch.choose(op, torch.device(device), dtype)
                lines.append(
                    f"{op:<10} {device:<7} {str(dtype)[6:]:<9} {name or 'none':<8} {reason}"
                )
    print("\n".join(lines))
    if native.module is None:
        print(f"\nnative module: none ({native.reason})")
    else:
        granted = [name for name, present in native.module.cpu_features().items() if present]
        print(f"\nnative module: {native.module.version()}, CPU: {' '.join(granted) or 'portable'}")
    if cuda.module is None:
        print(f"cuda module: none ({cuda.reason})")
    else:
        print(f"cuda module: {cuda.module.version()}, GPU: {cuda.module.architectures()}")
    for device in devices:
        names = [name for name in dispatch.PRECISIONS if dispatch.refusal(name, device) is None]
        print(f"precision of passes on {device}: {', '.join(names) or 'none'}")


if __name__ == "__main__":
    sys.exit(main())
