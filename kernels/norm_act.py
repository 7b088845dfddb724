"""Per-step batch norm with optional fused leaky ReLU and 2×2 max pool, differentiable twice."""

import math

import torch
from torch import Tensor

from kernels import checks, dispatch, library
from kernels.autograd import Call, Value
from kernels.tensors import check_alike

HALVES = (torch.float16, torch.bfloat16)


def per_step_batch_norm(
    z: Tensor,  # [T, N, C, H, W]
    gain: Tensor,  # [K, C]
    bias: Tensor,  # [K, C]
    step: int | Tensor = 0,  # the row of gain and bias, or one row a task, int64 [T]
    *,
    eps: float = 1e-5,
    negative_slope: float = 1.0,
    pool: bool = False,
    statistics: tuple[Tensor, Tensor] | None = None,  # mean and biased variance, [C] or [T, C]
) -> tuple[Tensor, Tensor, Tensor]:  # y [T, N, C, h, w], batch mean [T, C], batch variance [T, C]
    """Normalise each task and channel, scale with the step's own gain and bias (BNWB, paper §4),
    then leaky ReLU (`negative_slope` 1 is none) and 2×2 max pooling (`pool`, rows and columns left
    over by an odd size are dropped after they have counted in the statistics).

    With μ, σ² the mean and biased variance over the N·H·W values of a task's channel, or
    `statistics` if given (constants then): y = maxpool(leaky_relu(gain·(z − μ)/√(σ² + eps) +
    bias)). In plain torch, for one task: `F.max_pool2d(F.leaky_relu(F.batch_norm(z, None, None,
    gain[step], bias[step], True), slope), 2)`. A gain of 0 pools the first of each window, as a
    maximum over equal values does. A channel of one value, which `F.batch_norm` refuses, is its own
    mean: y is of the bias alone. With a slope of 0 and pooling an infinite z below the bend, NaN in
    torch (−∞·0), is one more value that does not win.

    Returns y and the batch's own mean and biased variance, which carry no gradient: they are what a
    running statistic (BNRS, paper §4) accumulates. y is differentiable twice in z, gain and bias; a
    third derivative raises. z may be float16 or bfloat16 with gain and bias in float32, as under
    autocast: y has the dtype of z, the statistics are float32.

    Raises ValueError for shapes, dtypes or devices that do not fit or a step outside the rows.
    """
    checks.tensors("per_step_batch_norm", z=z, gain=gain, bias=bias)
    dtype = z.dtype
    if dtype in HALVES:
        # Sums over N·H·W values overflow or drown in half precision.
        z, gain, bias = (t.float() if t.dtype == dtype else t for t in (z, gain, bias))
    _check(z, gain, bias, step, pool, negative_slope, eps)
    tasks = z.shape[0]
    if isinstance(step, Tensor):
        # a gather, which compiled code refuses to index from the end
        gain, bias = (row.gather(0, step[:, None].expand(-1, row.shape[1])) for row in (gain, bias))
    else:
        gain, bias = (row[step].expand(tasks, -1) for row in (gain, bias))
    mean = var = None
    if statistics is not None:
        mean, var = (s.to(z) for s in _checked_statistics(statistics, z))
    operands = z, gain, bias, mean, var
    options = eps, negative_slope, pool
    if library.traced(*operands):
        y, mean, var = library.op(_Call.name)(*operands, *options)
    else:
        y, mean, var, *_ = Value.start(_call(*operands, *options), *operands)
    return y.to(dtype), mean, var


def _checked_statistics(statistics: tuple, z: Tensor) -> tuple[Tensor, Tensor]:
    tasks, channels = z.shape[0], z.shape[2]
    try:
        given = [*statistics]
    except TypeError:
        given = [statistics]
    shapes = [list(s.shape) if isinstance(s, Tensor) else type(s).__name__ for s in given]
    if len(shapes) != 2 or any(s not in ([channels], [tasks, channels]) for s in shapes):
        raise ValueError(
            f"per_step_batch_norm: statistics must be a mean and a variance, [{channels}] or "
            f"[{tasks}, {channels}] each, got {shapes}"
        )
    for s in given:
        checks.dense("per_step_batch_norm", "statistics", s)
        if s.device.type == "meta" != z.device.type:
            raise ValueError(
                f"per_step_batch_norm: statistics are on meta, without values, z on {z.device}; "
                f"make them there"
            )
    return tuple(s.detach().expand(tasks, -1) for s in given)


def _check(
    z: Tensor,
    gain: Tensor,
    bias: Tensor,
    step: int | Tensor,
    pool: bool,
    negative_slope: float,
    eps: float,
) -> None:
    if z.dim() != 5 or 0 in z.shape:
        raise ValueError(
            f"per_step_batch_norm: z must be a non-empty [T, N, C, H, W], got {list(z.shape)}"
        )
    if gain.dim() != 2 or gain.shape != bias.shape or gain.shape[1] != z.shape[2]:
        raise ValueError(
            f"per_step_batch_norm: gain and bias must both be [K, {z.shape[2]}] for z "
            f"{list(z.shape)}, got {list(gain.shape)} and {list(bias.shape)}"
        )
    _check_step(step, z, gain.shape[0])
    for name, number in (("negative_slope", negative_slope), ("eps", eps)):
        if not checks.is_number(number):
            raise ValueError(f"per_step_batch_norm: {name} must be a number, got {number!r}")
    if not 0 <= negative_slope < math.inf:
        raise ValueError(
            f"per_step_batch_norm: negative_slope {negative_slope} is below 0, where the activation"
            " does not commute with pooling, or not finite; give 0 or more, 1 for no activation"
        )
    if not 0 <= eps < math.inf:
        raise ValueError(f"per_step_batch_norm: eps must be 0 or more, got {eps}")
    check_alike("per_step_batch_norm", z=z, gain=gain, bias=bias)
    if not isinstance(pool, bool):
        raise ValueError(f"per_step_batch_norm: pool must be True or False, got {pool!r}")
    if pool and min(z.shape[3:]) < 2:
        raise ValueError(
            f"per_step_batch_norm: pool needs images of at least 2×2, got "
            f"{z.shape[3]}×{z.shape[4]}; use fewer stages or larger images"
        )


def _check_step(step: int | Tensor, z: Tensor, rows: int) -> None:
    tasks = z.shape[0]
    if isinstance(step, Tensor):
        if step.device != z.device:
            raise ValueError(
                f"per_step_batch_norm: step is on {step.device} and z on {z.device}; move one"
            )
        if step.shape != (tasks,) or step.dtype != torch.int64:
            raise ValueError(
                f"per_step_batch_norm: step must be an int or int64 [{tasks}], one row a "
                f"task, got {step.dtype} {list(step.shape)}"
            )
        checks.dense("per_step_batch_norm", "step", step)
        # On a GPU the look would stall the stream, in a trace or a transform there is nothing to
        # see: there the indexing itself is the error.
        seen = library.readable(step)
        if seen and not 0 <= int(step.min()) <= int(step.max()) < rows:
            raise ValueError(
                f"per_step_batch_norm: steps {step.tolist()} reach outside 0…{rows - 1}, the "
                f"rows of gain"
            )
    elif (found := checks.integer(step)) is None:
        raise ValueError(
            f"per_step_batch_norm: step must be an int or int64 [{tasks}], got {step!r}"
        )
    elif not 0 <= found < rows:
        raise ValueError(
            f"per_step_batch_norm: step {step} is outside 0…{rows - 1}, the rows of gain"
        )


class _Call(Call):
    name, inputs, outputs = "per_step_batch_norm", 3, 3

    def __init__(self, impl, options: tuple) -> None:
        self.impl, self.options = impl, options

    def fwd(self, z, gain, bias, mean, var):
        statistics = None if mean is None else (mean, var)
        y, saved = self.impl.fwd(z, gain, bias, *self.options, statistics)
        # The caller's: no derivative reads them but where the mean is the centre.
        return (y, saved.mean, saved.var), saved._replace(mean=None, var=None)

    def bwd(self, saved, tensors, dy):
        return self.impl.bwd(saved, tensors[1], dy)

    def dot(self, saved, tensors, dots):
        return self.impl.tan_fwd(saved, tensors[1], *dots)[0]

    def grad_dot(self, saved, tensors, dots, dy, dy_dot):
        y_dot, tangent = self.impl.tan_fwd(saved, tensors[1], *dots)
        return y_dot, *self.impl.tan_bwd(saved, tangent, tensors[1], dy, dy_dot, dots[1])


def _call(z, gain, bias, mean, var, eps, negative_slope, pool) -> _Call:
    return _Call(dispatch.backend("norm_act", z, z.shape), (eps, negative_slope, pool))


def _shapes(z, gain, bias, mean, var, eps, negative_slope, pool) -> tuple[Tensor, ...]:
    t, n, c, h, w = z.shape
    y = library.unwritten(z, (t, n, c, h // 2, w // 2) if pool else z.shape)
    return y, z.new_empty((t, c)), z.new_empty((t, c))


library.define_twice_differentiable(
    _Call,
    "Tensor z, Tensor gain, Tensor bias, Tensor? mean, Tensor? var",
    "float eps, float negative_slope, bool pool",
    _call,
    _shapes,
)
