"""The single ops as the check runs them: a backend's pure functions, and the same by autograd."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import cases, reference
from kernels.check.oracle import (
    PARTS,
    Parts,
    Problem,
    derivatives,
    in_a_gap,
    randn,
    segments,
    single,
    stage,
    weights,
)
from kernels.check.products import convolution
from kernels.net import Net

EPS, SLOPE = 1e-5, 0.01
GRID = 2.0**-12  # values on it are apart enough to keep their order when they are normalised
COORDINATES, STEPS = 4001, 3  # of the meta-learner LSTM
ADAM = 0.9, 0.99, 0.5, 1e-8  # decays, bound on the gradient, added to the root

Results = tuple[list[Tensor], list[Tensor], list[Tensor]]  # fwd, bwd, tan


class Op(NamedTuple):
    """Two functions of the tensors, whose values float32 holds."""

    tensors: list[Tensor]
    ours: Callable[..., Results]  # of a backend's functions, then the tensors
    truth: Callable[..., Results]
    names: tuple[str, str, str]  # of the results
    geometry: tuple = ()  # what the `refusal` of a backend's functions takes

    def named(self, results: Results) -> Parts:
        return {
            part: dict(zip(names.split(), tensors, strict=True))
            for part, names, tensors in zip(PARTS, self.names, results, strict=True)
        }


def of_stage(case: cases.Case) -> Iterator[tuple[str, Op]]:
    yield "conv", conv(case)
    yield "norm_act", norm_act(case)


def of_net(p: Problem) -> Iterator[tuple[str, Op]]:
    tasks, images = p.labels.shape
    yield "stem", stem(p)
    yield "head", head(p.net, tasks, images)
    yield "update", update(p.net, tasks)
    yield "lstm", lstm(min(sum(segments(p.net)), COORDINATES), tasks)
    yield "gather", gather(p.net, tasks)


def _like(seed: int, *tensors: Tensor) -> list[Tensor]:
    """Directions of the size of some tensors."""
    return [single(randn(seed + i, *t.shape) * t.std()) for i, t in enumerate(tensors)]


def conv(case: cases.Case) -> Op:
    x, w = map(single, cases.conv_inputs(case))
    shape, padding = (*x.shape[:2], case.filters, *x.shape[3:]), case.kernel // 2

    def ours(of, x, w, x_dot, w_dot, dz, dz_dot) -> Results:
        z_dot = of.tan_fwd(x, w, x_dot, w_dot, 1, padding)
        second = of.tan_bwd(dz, dz_dot, x, w, x_dot, w_dot, 1, padding)
        return [of.fwd(x, w, 1, padding)], [*of.bwd(dz, x, w, 1, padding)], [z_dot, *second]

    def truth(x, w, x_dot, w_dot, dz, dz_dot) -> Results:
        return derivatives(_conv2d, [x, w], [x_dot, w_dot], dz, dz_dot)

    tensors = [x, w, *_like(20, x, w), randn(22, *shape), randn(23, *shape)]
    return Op(tensors, ours, truth, ("z", "dx dw", "z' dx' dw'"), (x.shape, w.shape, 1, padding))


def _conv2d(x: Tensor, w: Tensor) -> Tensor:
    return torch.stack([convolution(a, b, 1) for a, b in zip(x, w, strict=True)])


def norm_act(case: cases.Case) -> Op:
    z, gain, _ = cases.norm_inputs(case, case.tasks)
    z, gain = (z / GRID).round() * GRID, single(gain)
    options = EPS, case.negative_slope, case.pool, None
    flat = stage(z, gain, torch.zeros_like(gain), EPS, 1.0, case.pool, None, None)[0]
    bias = in_a_gap(flat).expand(case.tasks, -1)

    def ours(of, z, gain, bias, z_dot, gain_dot, bias_dot, dy, dy_dot) -> Results:
        y, saved = of.fwd(z, gain, bias, *options)
        y_dot, tangent = of.tan_fwd(saved, gain, z_dot, gain_dot, bias_dot)
        second = of.tan_bwd(saved, tangent, gain, dy, dy_dot, gain_dot)
        return [y, saved.mean, saved.var], [*of.bwd(saved, gain, dy)], [y_dot, *second]

    def truth(z, gain, bias, *others) -> Results:
        *dots, dy, dy_dot = others

        def value(*inputs: Tensor) -> Tensor:
            return stage(*inputs, *options, None)[0]

        first, *rest = derivatives(value, [z, gain, bias], dots, dy, dy_dot)
        return first + [*stage(z, gain, bias, *options, None)[1:]], *rest

    dots = [*_like(30, z, gain), randn(32, *gain.shape)]
    tensors = [z, gain, bias, *dots, randn(33, *flat.shape), randn(34, *flat.shape)]
    names = "y mean variance", "dz dgain dbias", "y' dz' dgain' dbias'"
    return Op(tensors, ours, truth, names)


def stem(p: Problem) -> Op:
    net, tasks = p.net, len(p.x)
    gain, bias = (v.expand(tasks, -1) for v in p.row.view(net.stages, 2, -1)[0])
    w, chosen = weights(net, p.theta)[0], p.chosen[0]
    options = net.eps, net.negative_slope

    def ours(of, x, w, gain, bias, w_dot, dy, dy_dot) -> Results:
        y, saved = of.fwd(x, of.patches(x), w, gain, bias, *options, None)
        y_dot, tangent = of.tan_fwd(saved, gain, w_dot)
        second = of.tan_bwd(saved, tangent, gain, dy, dy_dot)
        return [y, saved.mean, saved.var], [*of.bwd(saved, gain, dy)], [y_dot, *second]

    def truth(x, w, gain, bias, w_dot, dy, dy_dot) -> Results:
        def whole(w, gain, bias) -> tuple[Tensor, ...]:
            return stage(_conv2d(x, w), gain, bias, *options, True, None, chosen)

        dots = [w_dot, torch.zeros_like(gain), torch.zeros_like(bias)]
        first, *rest = derivatives(lambda *t: whole(*t)[0], [w, gain, bias], dots, dy, dy_dot)
        return first + [*whole(w, gain, bias)[1:]], *rest

    shape = chosen.positive.shape
    tensors = [p.x, w, gain, bias, *_like(40, w), randn(41, *shape), randn(42, *shape)]
    names = "y mean variance", "dw dgain dbias", "y' dw' dgain' dbias'"
    return Op(tensors, ours, truth, names)


def head(net: Net, tasks: int, images: int) -> Op:
    width = net.filters * (net.side >> net.stages) ** 2
    h, c = randn(50, tasks, images, width), randn(51, tasks, net.ways)
    w = single(randn(52, tasks, net.ways, width) / width**0.5)
    labels = torch.arange(images).remainder(net.ways).expand(tasks, -1)

    def ours(of, h, w, c, h_dot, w_dot, c_dot, d_loss) -> Results:
        loss, logits, saved = of.fwd(h, w, c, labels.to(h.device))
        loss_dot, logits_dot = of.tan_fwd(saved, h, w, h_dot, w_dot, c_dot)
        second = of.tan_bwd(saved, logits_dot, h, w, h_dot, w_dot, d_loss)
        return [loss, logits], [*of.bwd(saved, h, w, d_loss)], [loss_dot, *second]

    def truth(h, w, c, h_dot, w_dot, c_dot, d_loss) -> Results:
        def loss(*inputs: Tensor) -> Tensor:
            return reference.linear_cross_entropy(*inputs, labels)[0]

        dots = [h_dot, w_dot, c_dot]
        first, *rest = derivatives(loss, [h, w, c], dots, d_loss, None)
        return first + [reference.linear_cross_entropy(h, w, c, labels)[1]], *rest

    tensors = [h, w, c, *_like(53, h, w, c), randn(56, tasks)]
    return Op(tensors, ours, truth, ("loss logits", "dh dw dc", "loss' dh' dw' dc'"))


def update(net: Net, tasks: int) -> Op:
    """By rates of segments and of each number; and Adam, through which nothing is derived."""
    sizes = segments(net)
    theta, grad, *others = (randn(60 + i, tasks, sum(sizes)) for i in range(6))
    rates, rates_dot = (single(0.1 * randn(66 + i, len(sizes))) for i in range(2))
    each, each_dot = (single(0.1 * randn(68 + i, sum(sizes))) for i in range(2))

    def ours(of, theta, grad, rates, theta_dot, grad_dot, rates_dot, d_theta, second, *own):
        beta1, beta2, clamp, eps = ADAM
        moved = of.adam(theta, theta_dot, second**2, grad, 0.1, 1.5, beta1, beta2, clamp, eps)
        results = [*moved], [], []
        for alpha, dot, of_sizes in ((rates, rates_dot, sizes), (*own, None)):
            value_dot = of.tan_fwd(grad, alpha, theta_dot, grad_dot, dot, of_sizes)
            tangents = of.tan_bwd(d_theta, grad_dot, dot, of_sizes)
            terms = d_theta.clone(), theta_dot.clone(), (second[0, 0], grad_dot)
            *reversed, parts = of.reverse(*terms, grad, alpha, of_sizes)
            gradients = *of.bwd(d_theta, grad, alpha, of_sizes), *reversed
            found = (
                [of.fwd(theta, grad, alpha, of_sizes)],
                [*gradients, of.of_rates(parts, of_sizes)],
                [value_dot, *tangents],
            )
            for to, values in zip(results, found, strict=True):
                to += values
        return results

    def truth(theta, grad, rates, theta_dot, grad_dot, rates_dot, d_theta, second, *own):
        results = [*_adam(theta, theta_dot, second**2, grad)], [], []
        for alpha, dot, of_sizes in ((rates, rates_dot, sizes), (*own, (1,) * theta.shape[1])):

            def value(theta, grad, alpha, of_sizes=of_sizes):  # of which each task has a row
                rows = zip(theta, grad, alpha, strict=True)
                return torch.stack([reference.lslr_update(a, g, r, of_sizes) for a, g, r in rows])

            inputs = [theta, grad, alpha.expand(tasks, -1)]
            dots = [theta_dot, grad_dot, dot.expand(tasks, -1)]
            first, bwd, tan = derivatives(value, inputs, dots, d_theta, None)
            total = d_theta + theta_dot + second[0, 0] * grad_dot
            _, reversed, _ = derivatives(value, inputs, dots, total, None)
            # of θ both are known
            found = first, [*bwd[1:], total, *reversed[1:]], [tan[0], *tan[2:]]
            for to, values in zip(results, found, strict=True):
                to += values
        return results

    tensors = [theta, grad, rates, *others[:2], rates_dot, *others[2:], each, each_dot]
    names = (
        "adam first second theta theta_each",
        "dg drates d reversed_dg reversed_drates "
        "dg_each drates_each d_each reversed_dg_each reversed_drates_each",
        "theta' dg' drates' theta_each' dg_each' drates_each'",
    )
    return Op(tensors, ours, truth, names)


def gather(net: Net, tasks: int) -> Op:
    """Of bytes, and through which nothing is derived."""
    side, channels, ways, shots, samples = net.side, net.channels, net.ways, 1, 3
    generator = torch.Generator().manual_seed(90)

    def drawn(most: int, *shape: int) -> Tensor:
        return torch.randint(most, shape, generator=generator).double()

    bank = drawn(256, 7, side, side, channels)
    index = torch.cat([drawn(7, tasks, ways, samples) * side**2, drawn(4, tasks, ways, 1)], -1)
    places = torch.stack([torch.randperm(side**2, generator=generator) for _ in range(4)])
    scale, shift = randn(91, side * channels), randn(92, side * channels)

    def ours(of, bank, index, places, scale, shift) -> Results:
        return [*of.fwd(bank.byte(), index.long(), places.long(), scale, shift, shots)], [], []

    def truth(bank, index, places, scale, shift) -> Results:
        first, turn = index.long()[..., :-1, None], index.long()[..., -1:]
        pixels = bank.reshape(-1, channels)[first + places.long()[turn]]
        images = pixels.reshape(*first.shape[:3], side, side * channels) * scale + shift
        images = images.unflatten(-1, (side, channels)).permute(0, 1, 2, 5, 3, 4)
        return [part.flatten(1, 2) for part in images.split([shots, samples - shots], 2)], [], []

    return Op([bank, index, places.double(), scale, shift], ours, truth, ("support target", "", ""))


def lstm(count: int, tasks: int) -> Op:
    """Of which there is no tangent: nothing is derived twice."""
    own, start, carry = 0.3 * randn(80, 2046), randn(81, count), randn(82, tasks, count)
    losses = randn(83, STEPS, tasks).abs()
    gradients = randn(84, STEPS, tasks, count) * (randn(85, STEPS, tasks, count) - 4).exp()

    def ours(of, own, losses, gradients, start, carry) -> Results:
        c, memory = start.expand(tasks, -1), None
        for loss, gradient in zip(losses, gradients, strict=True):
            c, memory = of.fwd(own, loss, gradient, c, memory)
        return [c], [*of.bwd(own, [*losses], [*gradients], start, carry)], []

    def truth(own, losses, gradients, start, carry) -> Results:
        leaves = [v.expand(tasks, -1).clone().requires_grad_() for v in (own, start)]
        with torch.enable_grad():
            c = torch.stack(
                [
                    reference.lstm(leaves[0][t], losses[:, t], gradients[:, t], leaves[1][t])
                    for t in range(tasks)
                ]
            )
            of_own, of_start = torch.autograd.grad(c, leaves, carry)
        return [c.detach()], [of_start, of_own], []

    tensors = [*map(single, (own, losses, gradients, start, carry))]
    return Op(tensors, ours, truth, ("c", "dc down", ""))


def _adam(param: Tensor, first: Tensor, second: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Kingma & Ba 2015, algorithm 1, with a rate of 0.1 and a correction of 1.5."""
    beta1, beta2, clamp, eps = ADAM
    grad = grad.clamp(-clamp, clamp)
    first = beta1 * first + (1 - beta1) * grad
    second = beta2 * second + (1 - beta2) * grad**2
    return param - 0.1 * first / (1.5 * second.sqrt() + eps), first, second
