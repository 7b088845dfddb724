"""Parts of MAML++ for a training loop of your own: batch norm with a row a step, learned rates.

Ordinary modules of ordinary torch, differentiable to any order, for loops with `create_graph=True`:

    model = nn.Sequential(nn.Conv2d(1, 64, 3), PerStepBatchNorm2d(64, steps=5), nn.ReLU(), ...)
    lslr = LSLR(model, steps=5, rate=0.1)
    fast = dict(model.named_parameters())
    for k in range(5):
        with at_step(model, k):
            loss = F.cross_entropy(torch.func.functional_call(model, fast, (x,)), y)
        grads = torch.autograd.grad(loss, [fast[name] for name in lslr.names], create_graph=True)
        fast = lslr.update(fast, dict(zip(lslr.names, grads)), k)
"""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.batched import transformed

__all__ = ["LSLR", "PerStepBatchNorm1d", "PerStepBatchNorm2d", "at_step"]


class _PerStepBatchNorm(nn.Module):
    """`nn.BatchNorm` with gains, biases and running statistics of each inner step (BNWB and BNRS,
    Antoniou et al. 2018, §4): `weight`, `bias`, `running_mean`, `running_var` [steps, C] and
    `num_batches_tracked` [steps].

    Each step is what a `nn.BatchNorm` of its own would be, to the bit, with the same arguments and
    modes. `at_step` says which step it is; a step past the last one uses the last row, as when a
    network is adapted for longer than it was trained. A new module is at step 0.

    What looks for torch's own batch norms by their type, as `torch.optim.swa_utils.update_bn` and
    `nn.SyncBatchNorm.convert_sync_batchnorm` do, passes it over.

    Raises ValueError for a number of steps below 1 and for inputs of another number of axes.
    """

    _axes: tuple[int, ...]  # that an input may have

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,  # None: the mean over all batches
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        steps: int,
    ) -> None:
        super().__init__()
        _check_steps(type(self).__name__, steps)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats, self.steps = affine, track_running_stats, steps
        self.step = 0
        shape, kind = (steps, num_features), {"device": device, "dtype": dtype}
        for name, wanted in (("weight", affine), ("bias", affine and bias)):
            rows = nn.Parameter(torch.empty(shape, **kind)) if wanted else None
            self.register_parameter(name, rows)
        for name in ("running_mean", "running_var"):
            rows = torch.empty(shape, **kind) if track_running_stats else None
            self.register_buffer(name, rows)
        count = torch.empty(steps, dtype=torch.long, device=device) if track_running_stats else None
        self.register_buffer("num_batches_tracked", count)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        if self.track_running_stats:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        self.reset_running_stats()
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() not in self._axes:
            allowed = " or ".join(f"{n} axes" for n in self._axes)
            raise ValueError(f"{type(self).__name__}: the input must have {allowed}, got {x.dim()}")
        k, momentum = min(self.step, self.steps - 1), self.momentum
        tracking = self.training and self.track_running_stats
        if tracking and self.num_batches_tracked is not None:
            count = self.num_batches_tracked[k].add_(1)
            momentum = 1.0 / float(count) if momentum is None else momentum
        # In training buffers are for what tracks alone.
        given = self.track_running_stats or not self.training
        buffers = (self.running_mean, self.running_var) if given else (None, None)
        rows = [None if b is None else b[k] for b in (*buffers, self.weight, self.bias)]
        by_batch = self.training or rows[0] is rows[1] is None
        moments = rows[:2]
        # In memory of their own where a later step of training would write to what the gradient
        # reads, and under `vmap`, which copies what is written to, and then loses it.
        apart = tracking and transformed()
        if apart or not tracking:
            moments = [None if row is None else row.clone() for row in moments]
        y = F.batch_norm(x, *moments, *rows[2:], by_batch, momentum or 0.0, self.eps)
        if apart:
            for row, moment in zip(rows[:2], moments, strict=True):
                if row is not None:
                    row.copy_(moment)
        return y

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}, "
            f"steps={self.steps}"
        )


class PerStepBatchNorm1d(_PerStepBatchNorm):
    __doc__ = f"Of inputs [N, C] or [N, C, L]: {_PerStepBatchNorm.__doc__}"
    _axes = (2, 3)


class PerStepBatchNorm2d(_PerStepBatchNorm):
    __doc__ = f"Of images [N, C, H, W]: {_PerStepBatchNorm.__doc__}"
    _axes = (4,)


class at_step:
    """Puts all per-step batch norms of a module tree at an inner step, counted from 0.

    At once, as `torch.set_grad_enabled`; in a `with` each is back where it was at its end. The step
    is an attribute of the modules: copies have it too, and threads that run at different steps need
    a copy each, as `torch.func.functional_call` wants one anyway. What recomputes a forward pass
    later, as `torch.utils.checkpoint` does, does so at the step of then: take the derivative inside
    of the `with`.

    Raises ValueError for a step below 0, and where there is no per-step batch norm.
    """

    def __init__(self, module: nn.Module, step: int) -> None:
        self._norms = [m for m in module.modules() if isinstance(m, _PerStepBatchNorm)]
        if not self._norms:
            raise ValueError(
                f"at_step: {type(module).__name__} has no per-step batch norm; build it with "
                f"kernels.nn.PerStepBatchNorm1d or 2d"
            )
        _check_step("at_step", step)
        self._step, self._entered = step, False
        self._before = [self._steps()]  # of each entry, the first that of the call
        self._go()

    def _steps(self) -> list[int]:
        return [m.step for m in self._norms]

    def _go(self) -> None:
        for m in self._norms:
            m.step = self._step

    def __enter__(self) -> None:
        if self._entered:
            self._before.append(self._steps())
        self._entered = True
        self._go()

    def __exit__(self, *_) -> None:
        for m, step in zip(self._norms, self._before.pop(), strict=True):
            m.step = step


class LSLR(nn.Module):
    """Learned inner learning rates, one a parameter tensor and step (LSLR, Antoniou et al. 2018,
    §4): `rates` [K, L], where column l belongs to `names[l]`.

    Of a module the L names are those of its parameters that require gradients; of names and
    tensors, as a dict or as `named_parameters` gives them, all. The rates have the dtype and device
    of the first tensor. `update` is θ' = θ − α·g by two ordinary ops a tensor: one call of
    `kernels.lslr_update` wants all of them in one buffer, and the copies take longer than it saves.

    Raises ValueError where there is no parameter, and for a number of steps below 1.
    """

    def __init__(
        self,
        parameters: nn.Module | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
        steps: int,
        rate: float,
    ) -> None:
        super().__init__()
        _check_steps("LSLR", steps)
        if isinstance(parameters, nn.Module):
            named = {n: p for n, p in parameters.named_parameters() if p.requires_grad}
        else:
            named = dict(parameters)
        if not named:
            raise ValueError("LSLR: no parameter to learn a rate of; one must require gradients")
        self.names = tuple(named)
        first = next(iter(named.values()))
        rates = torch.full((steps, len(named)), rate, dtype=first.dtype, device=first.device)
        self.rates = nn.Parameter(rates)

    def update(
        self, params: Mapping[str, Tensor], grads: Mapping[str, Tensor | None], step: int
    ) -> dict[str, Tensor]:
        """Each parameter after inner step `step`, in the order of `params`; a step past the last
        one uses the last row of rates. What is not in `grads`, or is None there, as of a parameter
        that the loss does not use, is handed on as it is.

        Raises ValueError for a gradient of another shape, or of something else than `names` and
        `params` hold, and for a step below 0.
        """
        _check_step("LSLR.update", step)
        for given, known in ((grads, params), (grads, self.names)):
            if strange := [name for name in given if name not in known]:
                where = "params" if known is params else "names, which have rates"
                raise ValueError(f"LSLR.update: grads has {strange[0]!r}, which is not in {where}")
        rates = self.rates[min(step, len(self.rates) - 1)].unbind()
        rates = dict(zip(self.names, rates, strict=True))

        def updated(name: str, value: Tensor) -> Tensor:
            if (gradient := grads.get(name)) is None:
                return value
            if gradient.shape != value.shape:
                raise ValueError(
                    f"LSLR.update: the gradient of {name} has shape {[*gradient.shape]}, and the "
                    f"parameter {[*value.shape]}; give one of its shape"
                )
            return value - rates[name].to(value.dtype) * gradient

        return {name: updated(name, value) for name, value in params.items()}

    def get_extra_state(self) -> Tensor:
        """The names, as bytes: what goes through a state dict takes tensors."""
        return torch.tensor([*"\n".join(self.names).encode()], dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Done with the rates, whose columns the names are of."""

    def _load_from_state_dict(
        self, state_dict, prefix, metadata, strict, missing, unexpected, errors
    ) -> None:
        """By name: a column of another tensor's rates would fit all the same. What was saved before
        the names were has the order that it had.
        """
        extra, rates = f"{prefix}_extra_state", f"{prefix}rates"
        names = theirs = own = [*self.names]
        if extra in state_dict:
            names = theirs = bytes(state_dict[extra].tolist()).decode().split("\n")
        if sorted(theirs) != sorted(own):
            theirs, own = [*map(_unwrapped, names)], [*map(_unwrapped, own)]
        if sorted(theirs) != sorted(own) or len({*own}) < len(own):
            errors.append(
                f"{prefix}LSLR: the rates are of {', '.join(names)}, here they are of "
                f"{', '.join(self.names)}"
            )
            return
        if rates in state_dict and theirs != own and state_dict[rates].shape == self.rates.shape:
            state_dict[rates] = state_dict[rates][:, [theirs.index(name) for name in own]]
        super()._load_from_state_dict(
            state_dict, prefix, metadata, strict, missing, unexpected, errors
        )
        if extra in missing:
            missing.remove(extra)

    def extra_repr(self) -> str:
        return f"steps={len(self.rates)}, parameters={len(self.names)}"


def _unwrapped(name: str) -> str:
    """Of a parameter, without what torch's wrappers of a module put before it."""
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))


def _check_steps(name: str, steps: int) -> None:
    if type(steps) is not int or steps < 1:
        raise ValueError(f"{name}: steps must be an int of at least 1, got {steps!r}")


def _check_step(name: str, step: int) -> None:
    if type(step) is not int or step < 0:
        raise ValueError(f"{name}: step must be an int of at least 0, got {step!r}")
