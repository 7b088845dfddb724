"""The Triton backend in Triton's interpreter, on a CPU.

Triton asks for TRITON_INTERPRET=1 before it is imported, and keeps to it: `tests/test_triton.py`
runs this folder in a process of its own, and so does

    TRITON_INTERPRET=1 python -m pytest tests/interpreted
"""

import dataclasses
import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import kernels
from kernels.check.products import parts
from tests.slow import ALL

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def triton_backend() -> Iterator[None]:
    """Every op of a test runs on Triton, or raises; single convolutions do not round."""
    with kernels.use("triton"), torch.backends.cudnn.flags(allow_tf32=False):
        yield


@pytest.fixture
def unwritten(monkeypatch) -> list[torch.Tensor]:
    """Has new memory filled with NaN from now on; gets what was."""
    filled = []

    def poison(owner, name: str) -> None:
        allocate = getattr(owner, name)

        def poisoned(*args, **kwargs):
            memory = allocate(*args, **kwargs)
            filled.append(memory.fill_(float("nan") if memory.is_floating_point() else 77))
            return memory

        monkeypatch.setattr(owner, name, poisoned)

    for name in ("empty", "empty_strided", "empty_like"):
        poison(torch, name)
    poison(torch.Tensor, "new_empty")
    return filled


@pytest.fixture(autouse=True, scope="session")
def tensor_cores() -> Iterator[None]:
    """Has products in TF32 read 10 bits of the mantissa of what they are given, as a GPU's do; the
    interpreter reads all.
    """
    from triton.runtime import interpreter

    create = interpreter.InterpreterBuilder.create_dot

    def cut_off(handle):
        (read,) = parts(torch.from_numpy(np.ascontiguousarray(handle.data)), "tf32")
        return interpreter.TensorHandle(read.numpy(), handle.dtype)

    def create_dot(self, a, b, d, input_precision, *rest):
        if input_precision == interpreter._ir.INPUT_PRECISION.TF32 and a.data.dtype == np.float32:
            a, b = cut_off(a), cut_off(b)
        return create(self, a, b, d, input_precision, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
        yield


@pytest.fixture(autouse=True, scope="session")
def quick_interpreter() -> Iterator[None]:
    """Has the interpreter set up its language once a launch, instead of in every call of a helper
    as well, which takes a third of the time; look for sums and products beyond 32 bits, which takes
    another third, among the slow tests alone; and take the length of a loop as numpy 2.4 gives it,
    which Triton's does from 3.7 on.
    """
    from triton.runtime import interpreter

    languages, done = (interpreter.tl, interpreter.tl.core), set()
    set_up, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__

    def set_up_once(fn):
        used = {id(v) for v in fn.__globals__.values() if any(v is lang for lang in languages)}
        if used <= done:
            return interpreter._LangPatchScope()
        done.update(used)
        scope = set_up(fn)
        scope.set_attr(interpreter.tl.tensor, "__index__", lambda t: int(t.handle.data.item()))
        return scope

    def launch_afresh(self, *args, **kwargs):
        done.clear()
        return launch(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", set_up_once)
        patch.setattr(interpreter.GridExecutor, "__call__", launch_afresh)
        builder = interpreter.interpreter_builder
        options = dataclasses.replace(builder.options, sanitize_overflow=ALL)
        patch.setattr(builder, "options", options)
        yield
