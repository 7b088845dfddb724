"""The inner update over a flat parameter buffer, batched over tasks, differentiable twice: rates of
segments (LSLR), or of each number (Meta-SGD).
"""

from torch import Tensor

from kernels import autocast, checks, dispatch, library
from kernels.autograd import Call, Value
from kernels.plain.layout import total
from kernels.tensors import check_alike


def lslr_update(
    theta: Tensor,  # [T, P]
    grad: Tensor,  # [T, P]
    rates: Tensor,  # [L], the row of this step
    sizes: tuple[int, ...],  # parameters a segment, L of them, P in all
) -> Tensor:  # [T, P]
    """θ' = θ − α_l·g on each segment l: per-layer, per-step learned rates (LSLR, paper §4).

    The same as `theta - rates.repeat_interleave(torch.tensor(sizes)) * grad`. Differentiable twice
    in theta, grad and rates; a third derivative raises.

    Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    try:
        found = tuple(map(checks.integer, sizes))
    except TypeError:
        found = (None,)
    if any(size is None or size < 0 for size in found):
        raise ValueError(f"lslr_update: sizes must be ints of 0 or more, got {sizes!r}")
    return _update("lslr_update", theta, grad, rates, found)


def elementwise_update(
    theta: Tensor,  # [T, P]
    grad: Tensor,  # [T, P]
    rates: Tensor,  # [P]
) -> Tensor:  # [T, P]
    """θ' = θ − α ∘ g: a rate for each number, the same in all tasks (Meta-SGD, Li et al. 2017).

    The same as `theta - rates * grad`. Differentiable twice in theta, grad and rates; a third
    derivative raises.

    Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    return _update("elementwise_update", theta, grad, rates, None)


def _update(
    name: str, theta: Tensor, grad: Tensor, rates: Tensor, sizes: tuple[int, ...] | None
) -> Tensor:
    checks.tensors(name, theta=theta, grad=grad, rates=rates)
    if autocast.anywhere():
        theta, grad, rates = autocast.promoted(theta, grad, rates)
    fits = theta.dim() == 2 and theta.shape == grad.shape
    if not fits or (sizes is not None and theta.shape[1] != sum(sizes)):
        wanted = "[T, P]" if sizes is None else f"[T, {sum(sizes)}], the sum of sizes"
        raise ValueError(
            f"{name}: theta and grad must both be {wanted}, got {list(theta.shape)} and "
            f"{list(grad.shape)}"
        )
    if not theta.numel():
        raise ValueError(
            f"{name}: theta is empty, {list(theta.shape)}; it needs a task and a parameter"
        )
    count, of = (theta.shape[1], "number") if sizes is None else (len(sizes), "segment")
    if rates.shape != (count,):
        raise ValueError(f"{name}: rates must be [{count}], one a {of}, got {list(rates.shape)}")
    check_alike(name, theta=theta, grad=grad, rates=rates)
    operands = theta, grad, rates
    if library.traced(*operands):
        return library.op(_Call.name)(*operands, sizes)
    return Value.start(_call(*operands, sizes), *operands)[0]


class _Call(Call):
    """Rates are [L], or each task's own, [T, L], under `vmap`: the segments of all tasks are then
    those of a single one. Without sizes the same of [P] and [T, P].
    """

    name, inputs, outputs, shared, identity = "lslr_update", 3, 1, (2,), True
    unread = {0: 1}

    def __init__(self, impl, sizes: tuple[int, ...] | None) -> None:
        self.impl, self.sizes, self.options = impl, sizes, (sizes,)

    @property
    def public(self) -> str:
        return self.name if self.sizes is not None else "elementwise_update"

    def fwd(self, theta, grad, rates):
        if rates.dim() == 1:
            return (self.impl.fwd(theta, grad, rates, self.sizes),), ()
        return (self.impl.fwd(*self._flat(rates, (theta, grad), (rates,))).view_as(theta),), ()

    def bwd(self, saved, tensors, d_theta):
        _, grad, rates = tensors
        gradients = self.impl.bwd(*self._flat(rates, (d_theta, grad), (rates,)))
        return None, *self._unflat(rates, d_theta, *gradients)

    def dot(self, saved, tensors, dots):
        (_, grad, rates), (theta_dot, grad_dot, rates_dot) = tensors, dots
        matrices, vectors = (grad, theta_dot, grad_dot), (rates, rates_dot)
        grad, theta_dot, grad_dot, rates, *rest = self._flat(rates, matrices, vectors)
        found = self.impl.tan_fwd(grad, rates, theta_dot, grad_dot, *rest)
        if tensors[2].dim() == 2:
            found = found.view_as(tensors[1])
        return found.clone() if dots[1] is dots[2] is None else found  # no direction itself

    def grad_dot(self, saved, tensors, dots, d_theta, d_theta_dot):
        rates, (_, grad_dot, rates_dot) = tensors[2], dots
        tangents = self.impl.tan_bwd(*self._flat(rates, (d_theta, grad_dot), (rates_dot,)))
        tangents = None, *self._unflat(rates, d_theta, *tangents)
        if d_theta_dot is not None:
            tangents = map(total, tangents, self.bwd(saved, tensors, d_theta_dot))
        y_dot = None if all(dot is None for dot in dots) else self.dot(saved, tensors, dots)
        return y_dot, *tangents

    def _flat(self, rates: Tensor, matrices: tuple, vectors: tuple) -> tuple:
        """Tensors and sizes for the backend."""
        if rates.dim() == 1:
            return *matrices, *vectors, self.sizes
        matrices = (None if m is None else m.reshape(1, -1) for m in matrices)
        vectors = (None if v is None else v.flatten() for v in vectors)
        return *matrices, *vectors, None if self.sizes is None else self.sizes * len(rates)

    def _unflat(
        self, rates: Tensor, like: Tensor, d_grad: Tensor | None, d_rates: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients from the backend, of which those of rates are [T, L], or their directions."""
        if rates.dim() == 1:
            return d_grad, None if d_rates is None else d_rates.sum(0)
        d_grad = None if d_grad is None else d_grad.view_as(like)
        return d_grad, None if d_rates is None else d_rates.view_as(rates)


def _call(theta, grad, rates, sizes) -> _Call:
    return _Call(dispatch.backend("update", theta), None if sizes is None else tuple(sizes))


library.define_twice_differentiable(
    _Call,
    "Tensor theta, Tensor grad, Tensor rates",
    "SymInt[]? sizes",
    _call,
    lambda theta, grad, rates, sizes: (library.unwritten(theta),),
)
