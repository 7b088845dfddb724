"""The checks before a clock starts: all implementations of a row compute the same, and every
backend of an op what its definition says.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

import kernels
from bench import modules, ops
from bench.cases import PRECISIONS, Row, reduced
from bench.implementations import IMPLEMENTATIONS
from bench.ops import Op
from engine.config import Config
from kernels import cases, reference

EXACT = 1e-9  # float64, loss and every gradient, on a reduced size
SINGLE = 1e-3  # float32, loss, on the size that is timed
ROUNDED = 3e-2  # the same of products in bfloat16, which float64 has not


def check_row(row: Row | modules.ModuleRow, name: str) -> None:
    """Loss and gradients of the first iteration are ours, in float64 at a reduced size."""
    if isinstance(row, modules.ModuleRow):
        _check_module(replace(row, small=True), name)
    else:
        check_exact(row.config(), name)


@cache
def _check_module(row: modules.ModuleRow, name: str) -> None:
    (loss, expected), (their_loss, gradients) = (
        modules.IMPLEMENTATIONS[each](row, torch.float64).checked() for each in ("ours", name)
    )
    agree(f"{name}: loss", loss, their_loss, EXACT)
    for i, (a, b) in enumerate(zip(expected, gradients, strict=True)):
        if a.numel():
            agree(f"{name}: gradient {i}", a, b, EXACT)


def check_exact(cfg: Config, name: str, device: torch.device | str = "cpu") -> None:
    """Loss and gradients of the first iteration of an implementation are ours, in float64."""
    if name in PRECISIONS:
        return
    _check_exact(reduced(cfg), name, device)


@cache
def _check_exact(cfg: Config, name: str, device: torch.device | str) -> None:
    if name == "JAX":  # compiles for minutes otherwise, longer than it is timed
        cfg = replace(cfg, steps=min(cfg.steps, 2))
    (loss, expected), (their_loss, gradients) = (
        IMPLEMENTATIONS[each](cfg, torch.float64, device).checked() for each in ("ours", name)
    )
    agree(f"{name}: loss", loss, their_loss, EXACT)
    for group, tensors in gradients.items():
        for tensor_name, a in expected[group].items():
            b = tensors[tensor_name]
            if a.numel() != b.numel():  # a row that all steps share has the sum of their gradients
                a = a.sum(0)
            agree(f"{name}: gradient of {group} {tensor_name}", a, b, EXACT)


def check_single(ours: float, name: str, theirs: float, rounded: bool = False) -> None:
    """The first float32 losses on the size that is timed agree; `rounded` when either rounds the
    operands of its products."""
    rounded = rounded or name == "ours, bf16"
    agree(f"{name}: float32 loss", ours, theirs, ROUNDED if rounded else SINGLE)


@cache
def check_op(op: Op) -> None:
    """An op's value and both derivatives are its definition's, in float64 on a reduced size; whole
    passes agree with plain ones there. On the size that is timed, so does the float32 value.
    """
    if op.name == "passes":
        cfg = reduced(ops.config(op))
        parts = [ops.passes(cfg, each, torch.float64) for each in (op.backend, "plain")]
        pairs = [(parts[0][part](), parts[1][part]()) for part in parts[0]]
    else:
        function, inputs = public(op)
        with kernels.use(op.backend):
            results = derivatives(lambda *t: function(kernels, *t), inputs)
        expected = derivatives(lambda *t: function(reference, *t), inputs)
        pairs = list(zip(results, expected, strict=True))
    for i, pair in enumerate(pairs):
        agree(f"{op}: result {i}", *pair, EXACT)
    values = (ops.calls(each)["fwd"]() for each in (op._replace(backend="plain"), op))
    plain, value = (v[0] if isinstance(v, tuple) else v for v in values)
    agree(f"{op}: float32 value", value, plain, SINGLE)


def public(op: Op) -> tuple[Callable, list[Tensor]]:
    """function(ops, *inputs) of a public op, and its inputs, few."""
    if op.case in ops.STAGES:
        case = ops.STAGES[op.case]
        case = replace(case, tasks=2, images=2, side=min(case.side, 9))
        if op.name == "conv":
            return lambda o, x, w: o.task_conv2d(x, w), [*cases.conv_inputs(case)]
        options = dict(step=1, negative_slope=case.negative_slope, pool=case.pool)
        inputs = [*cases.norm_inputs(case)]
        return lambda o, *t: o.per_step_batch_norm(*t, **options)[0], inputs
    if op.name == "head":
        *inputs, labels = cases.head_inputs(cases.SMALL[0])
        return lambda o, *t: o.linear_cross_entropy(*t, labels)[0], inputs
    *inputs, sizes = cases.update_inputs(3, (4, 1, 6))
    return lambda o, *t: o.lslr_update(*t, sizes), inputs


def derivatives(function: Callable, inputs: list[Tensor]) -> list[Tensor]:
    """The value, its gradient, and that gradient's, each along fixed numbers."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    value = function(*inputs)
    first = torch.autograd.grad(value, inputs, _numbers(value), create_graph=True)
    linked = [g for g in first if g.requires_grad]
    along = [_numbers(g) for g in linked]
    second = torch.autograd.grad(linked, inputs, along, materialize_grads=True)
    return [value, *first, *second]


def _numbers(like: Tensor) -> Tensor:
    values = torch.linspace(-1, 1, like.numel(), dtype=like.dtype, device=like.device)
    return values.view(like.shape)


def agree(what: str, a: Tensor | float, b: Tensor | float, bound: float) -> None:
    a, b = (torch.as_tensor(v, dtype=torch.float64).detach().flatten().cpu() for v in (a, b))
    scale = torch.maximum(a.abs().max(), b.abs().max())
    error = ((a - b).abs().max() / scale).item() if scale != 0 else 0.0
    if not error <= bound:
        raise AssertionError(f"{what}: relative difference {error:.1e}, allowed {bound:.0e}")
