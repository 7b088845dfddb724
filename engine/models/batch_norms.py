"""The batch norms of any `nn.Module`: whose statistics a pass takes, and which rows of a Learner
stand for their gains and biases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from engine.errors import UserError
from engine.models.interface import Moments

_LEAVES = ("weight", "bias")
_STATISTICS, _COUNT = ("running_mean", "running_var"), "num_batches_tracked"
_FORWARDS = _BatchNorm.forward, nn.SyncBatchNorm.forward
# Of a batch norm: where a Learner has its leaves, in the columns a … b of rows of its own.
_BY_ROWS = "_gains_by_rows"


class BatchNorms:
    """Of `module`. One that its owner has in evaluation mode while the module is trained is
    `still`: it keeps its statistics.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        norms = {n: m for n, m in module.named_modules() if isinstance(m, _BatchNorm)}
        self.widths = {n: m.num_features for n, m in norms.items()}
        self.leaves = {_at(n, leaf) for n in norms for leaf in _LEAVES}
        # those of which a Learner has rows already
        self.by_rows = {_at(n, leaf) for n, m in norms.items() for leaf in getattr(m, _BY_ROWS, ())}
        self.still = self._kept_still()

    def has(self, buffer: str) -> bool:
        """Whether it is one of theirs, by its name."""
        return buffer.rpartition(".")[0] in self.widths

    def follow(self) -> None:
        """Their modes now, if the module is being trained."""
        if self.module.training:
            self.still = self._in_evaluation()

    def gain(self, name: str) -> Tensor:
        """A gain or bias of the module, as another Learner has learned it, in its last row, if one
        has.
        """
        of, _, leaf = name.rpartition(".")
        if found := getattr(self.module.get_submodule(of), _BY_ROWS, {}).get(leaf):
            rows, a, b = found
            return rows.detach()[-1, a:b].clone()
        return self.module.get_parameter(name).detach().flatten()

    def stand_in(self, rows: Tensor, shapes: dict[str, torch.Size]) -> None:
        """From now on the columns of `rows`, in the order of `shapes`, are their gains and biases
        of these names, and not the module's own.
        """
        a = 0
        for name, shape in shapes.items():
            self.module.get_parameter(name).requires_grad_(False)
            of, _, leaf = name.rpartition(".")
            norm, b = self.module.get_submodule(of), a + shape.numel()
            setattr(norm, _BY_ROWS, getattr(norm, _BY_ROWS, {}) | {leaf: (rows, a, b)})
            a = b

    def require_rows(self, names: Iterable[str]) -> None:
        """Raises UserError of those that are not any more what rows stand for."""
        for name in names:
            of, _, leaf = name.rpartition(".")
            if leaf not in getattr(self.module.get_submodule(of), _BY_ROWS, {}):
                raise UserError(
                    f"{of or 'the module'} is another batch norm than when the Learner was made, "
                    "which has rows for the gains of that one: make another Learner"
                )

    def running(self, like: Tensor) -> Moments:  # [S]
        """As the module has them; 0 and 1 of those that have none."""
        norms = map(self.module.get_submodule, self.widths)
        zeros = like.new_zeros(sum(self.widths.values())).split([*self.widths.values()])
        pairs = [
            (zero, zero + 1) if norm.running_mean is None else (norm.running_mean, norm.running_var)
            for norm, zero in zip(norms, zeros, strict=True)
        ]
        nothing = [(like.new_zeros(0),) * 2]
        return Moments(*(torch.cat(each) for each in zip(*(pairs or nothing), strict=True)))

    def settle(self, made: nn.Module, statistics: Moments, shapes: dict[str, torch.Size]) -> None:
        """In a copy of the module: the statistics [S] are its own, and so are its gains and biases
        of these names again.
        """
        for name in shapes:
            made.get_parameter(name).requires_grad_(True)
            vars(made.get_submodule(name.rpartition(".")[0])).pop(_BY_ROWS, None)
        widths = [*self.widths.values()]
        for name, mean, var in zip(
            self.widths, *(m.flatten().split(widths) for m in statistics), strict=True
        ):
            norm = made.get_submodule(name)
            if norm.running_mean is not None:
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(var)
            else:  # these are the task's all the same
                norm.track_running_stats = True
                norm.running_mean, norm.running_var = mean.clone(), var.clone()

    @contextmanager
    def normalising(
        self,
        net: nn.Module,
        tensors: dict[str, Tensor],  # by name, of the pass
        given: Moments | None,  # [S] each; None: by the batch
        like: Tensor,
        unbiased: bool,
    ) -> Iterator[Callable[[], Moments]]:
        """Those of a pass of `net`. Gives what has, after the pass, the batch's mean and variance
        [S] of those that are not still, of several calls their mean, and the statistics of those
        that are; of those that were not called a variance of -1.
        """
        norms = {name: net.get_submodule(name) for name in self.widths if name not in self.still}
        before = [
            (n.momentum, n.training, n.track_running_stats, vars(n).get("forward"))
            for n in norms.values()
        ]
        widths = [*self.widths.values()]
        nothing = like.new_zeros(sum(widths))
        start = given or (nothing, nothing - 1)
        calls: dict[str, list] = {name: [] for name in norms}
        measured: set[str] = set()
        for name, *moments in zip(self.widths, *(s.split(widths) for s in start), strict=True):
            if name not in norms:
                continue
            norm = norms[name]
            averages = _averages(norm)
            if given or averages:
                for kind, value in zip(_STATISTICS, moments, strict=True):
                    tensors[_at(name, kind)] = value if given else value.clone()
                norm.track_running_stats = True
            else:  # it may read what it has, and writes to this task's
                for kind in _STATISTICS:
                    if (own := tensors.get(_at(name, kind))) is not None:
                        tensors[_at(name, kind)] = own + like.new_zeros(()).to(own.dtype)
            # counted by the host, which weighs the calls by it without waiting for a device
            tensors[_at(name, _COUNT)] = torch.zeros((), device="cpu")
            norm.momentum = None if averages else 1.0
            norm.training = given is None
            if given or not averages:
                norm.forward = _measuring(norm, calls[name], unbiased)
                measured.add(name)
            elif not unbiased:  # those that are tracked are the batch's, and unbiased
                var = tensors[_at(name, "running_var")]
                norm.forward = _counting(norm.forward, self.widths[name], var, calls[name])

        def of(name: str) -> tuple[Tensor, ...]:
            found = calls.get(name)
            if name not in measured:
                mean, var = (tensors[_at(name, kind)] for kind in _STATISTICS)
                return mean, _biased(found) if found else var
            if found:
                pairs = (torch.stack(each).mean(0) for each in zip(*found, strict=True))
                return tuple(moment.to(like.dtype) for moment in pairs)
            nothing = like.new_zeros(self.widths[name])
            return nothing, nothing - 1

        def found() -> Moments:
            if turned:
                raise UserError(
                    f"the module turns its batch norm {turned[0] or 'itself'} to another mode "
                    "within a pass: do so before, by its eval() or train()"
                )
            empty = like.new_empty(0)
            both = map(torch.cat, zip((empty, empty), *map(of, self.widths), strict=True))
            return Moments(*(m.detach() for m in both))

        try:
            yield found
        finally:
            turned = [n for n, norm in norms.items() if norm.training is not (given is None)]
            for norm, (*state, forward) in zip(norms.values(), before, strict=True):
                norm.momentum, norm.training, norm.track_running_stats = state
                vars(norm).pop("forward", None)
                if forward is not None:
                    norm.forward = forward

    def _in_evaluation(self) -> set[str]:
        """One that has no statistics goes by the batch in any mode."""
        parts = ((name, self.module.get_submodule(name)) for name in self.widths)
        return {name for name, norm in parts if norm.running_mean is not None and not norm.training}

    def _kept_still(self) -> set[str]:
        """Those in evaluation mode now, if the module is being trained, and those that it keeps so
        itself when that begins, by a `train` of its own.
        """
        module = self.module
        found = self._in_evaluation() if module.training else set()
        if all(type(part).train is nn.Module.train for part in module.modules()):
            return found
        modes = [(part, part.training) for part in module.modules()]
        learned = [(p, p.requires_grad) for p in module.parameters()]
        try:
            module.train(True)
            found |= self._in_evaluation()
        except TypeError:  # another function of that name
            pass
        finally:
            for part, training in modes:
                part.training = training
            for p, requires_grad in learned:
                p.requires_grad_(requires_grad)
        return found


def modes(module: nn.Module) -> tuple[bool, ...]:
    """But of batch norms, which passes turn."""
    return tuple(m.training for m in module.modules() if not isinstance(m, _BatchNorm))


def _averages(norm: _BatchNorm) -> bool:
    """Whether it surely takes a batch's statistics into its own as torch's norms do."""
    return "forward" not in vars(norm) and type(norm).forward in _FORWARDS


def _measuring(norm: _BatchNorm, found: list, unbiased: bool) -> Callable:
    """Its forward, and the mean and variance of what it is called with, or of what it has counted
    as a batch, of which it then keeps them. (Not a hook: copies for threads share those of the
    module.)
    """
    forward = norm.forward

    def measured(*args: Any, **kwargs: Any) -> Tensor:
        x = _input(args, kwargs).detach()
        x, channels = x.float() if x.dtype.itemsize < 4 else x, norm.num_features
        before = None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
        result = forward(*args, **kwargs)
        count = x.numel() // channels
        if before is not None and norm.num_batches_tracked > before:
            mean, var = norm.running_mean.clone(), norm.running_var.clone()
            found.append((mean, var if unbiased else var * (count - 1) / max(1, count)))
        else:
            var, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0)
            found.append((mean, var * (count / max(1, count - 1)) if unbiased else var))
        return result

    return measured


def _counting(
    forward: Callable[..., Tensor], channels: int, var: Tensor, found: list
) -> Callable[..., Tensor]:
    """A batch norm's, and after each call how many values a channel had, and the mean of the
    unbiased variances so far, which the norm keeps in `var`.
    """

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        result = forward(*args, **kwargs)
        found.append((_input(args, kwargs).numel() // channels, var.clone()))
        return result

    return counted


def _input(args: tuple, kwargs: dict) -> Tensor:
    return args[0] if args else next(iter(kwargs.values()))


def _biased(calls: list[tuple[int, Tensor]]) -> Tensor:
    """The mean of the biased variances of the calls."""
    total, before = 0.0, 0.0
    for i, (count, so_far) in enumerate(calls, 1):
        own = i * so_far - (i - 1) * before
        total, before = total + own * ((count - 1) / count if count > 1 else 1.0), so_far
    return total / len(calls)


def _at(module: str, leaf: str) -> str:
    return f"{module}.{leaf}" if module else leaf
