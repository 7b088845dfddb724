"""Where it is measured, and what that machine does at best."""

import platform
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import torch

from bench import peaks, results
from bench.gpu.clock import elapsed
from bench.gpu.progress import Items, Request

ASKED = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
LOADED = "clocks.sm,power.draw,temperature.gpu"
SETTLING = 1.0  # seconds under load: nvidia-smi's power is a mean over about one
ROUNDS = 10
# Names of the rates, with what the products of float32 may be rounded to.
PRODUCTS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
SIDE, FLOATS = 8192, 1 << 30  # the copy is 4 GiB: far more than a GPU's cache
SMALL_SIDE, SMALL_FLOATS = 512, 1 << 22


def items(request: Request) -> Items:
    yield "machine", lambda: machine(request.device)
    small = request.quick or not request.cuda
    for name in PRODUCTS:
        if request.cuda or name == "fp32":
            yield name, lambda name=name: _product(name, SMALL_SIDE if small else SIDE, request)
    yield "copy", lambda: _copy(SMALL_FLOATS if small else FLOATS, request)


def machine(device: torch.device) -> dict:
    about = results.describe(full=False)
    found = {name: about[name] for name in ("processor", "cores", "python", "torch", "kernels")}
    found |= {"system": platform.platform(), "triton": _version("triton"), "jax": _version("jax")}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nvidia-smi": _nvidia_smi(ASKED),
        }
    where = found.get("gpu", found["processor"])
    return found | {"said": f"{where}, torch {found['torch']}, triton {found['triton']}"}


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def under_load(work: Callable[[], object]) -> dict[str, str]:
    """Clock, power and temperature while the GPU does `work` again and again."""
    until = monotonic() + SETTLING
    while monotonic() < until:
        work()
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(_nvidia_smi, LOADED)
        while not found.done():
            work()
    return found.result()


def _nvidia_smi(asked: str) -> dict[str, str]:
    """What can be read without special rights; empty where there is no such program."""
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader", "--id=0"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return {}
    values = answer.strip().split(", ")
    return dict(zip(asked.split(","), values, strict=False)) if answer.strip() else {}


def _product(name: str, side: int, request: Request) -> dict:
    call, amount = peaks.matrix_product(side, PRODUCTS[name], request.device)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    try:
        return _rate(call, amount, request.device, "TFLOP/s")
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _copy(floats: int, request: Request) -> dict:
    return _rate(*peaks.copy(floats, request.device), request.device, "TB/s")


def _rate(call: Callable, amount: int, device: torch.device, unit: str) -> dict:
    call()
    rate = amount / min(elapsed(call, device) for _ in range(ROUNDS))
    return {"per_second": rate, "said": f"{rate / 1e12:,.3f} {unit}"}
