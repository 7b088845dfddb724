"""The authors' own code, HowToTrainYourMAMLPytorch, from the checkout that HTYM_DIR names: none of
it is here.

Its classifier runs as it is: `run_train_iter` trains, `run_validation_iter` tests. What none of its
arguments says is set on it from outside: Adam's betas, which it leaves at torch's, and the sum over
the tasks in place of its mean; and in float64, the sets of images, which it would cast to float32.
"""

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from engine.config import Config
from engine.errors import UserError

NAME, VARIABLE = "HowToTrainYourMAMLPytorch", "HTYM_DIR"
MODULE = "few_shot_learning_system"
KINDS = "network", "norm", "rates"
# What it does not let one choose.
_FIXED = {"negative_slope": 0.01, "norm_eps": 1e-5, "norm_momentum": 0.1, "beta1": 0.9}
Groups = dict[str, dict[str, Tensor]]  # by kind, one of KINDS, and name


def missing() -> str | None:
    """Why it cannot run here, in one line; `None` if it can."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        return f"{VARIABLE} names no checkout of the authors' code"
    if not (Path(folder) / f"{MODULE}.py").is_file():
        return f"{VARIABLE} is {folder}, which has no {MODULE}.py"
    return None


def arguments(cfg: Config) -> SimpleNamespace:
    """A configuration under its names. Raises UserError on what it cannot do."""
    odd = [f"{n} {getattr(cfg, n)}" for n, v in _FIXED.items() if getattr(cfg, n) != v]
    if cfg.clamp not in (0.0, 10.0):
        odd.append(f"clamp {cfg.clamp}")
    if cfg.network != "conv4":
        odd.append(f"network {cfg.network}")
    if cfg.norm_weights != cfg.norm_stats:
        odd.append(f"norm_weights {cfg.norm_weights} with norm_stats {cfg.norm_stats}")
    if odd:
        raise UserError(f"the authors' code has no {', '.join(odd)}; compare another configuration")
    return SimpleNamespace(
        # by this name alone it decides to clamp gradients to ±10
        dataset_name="mini_imagenet_full_size" if cfg.clamp else "omniglot_dataset",
        use_cuda=False,
        seed=cfg.seed,
        batch_size=cfg.tasks,
        num_classes_per_set=cfg.ways,
        num_stages=cfg.stages,
        cnn_num_filters=cfg.filters,
        conv_padding=True,
        max_pooling=cfg.downsample == "pool",
        norm_layer="batch_norm",
        per_step_bn_statistics=cfg.norm_stats == "per-step",
        learnable_bn_gamma=True,
        learnable_bn_beta=True,
        enable_inner_loop_optimizable_bn_params=False,
        number_of_training_steps_per_iter=cfg.steps,
        number_of_evaluation_steps_per_iter=cfg.eval_steps or cfg.steps,
        task_learning_rate=cfg.inner_rate,
        learnable_per_layer_per_step_inner_loop_learning_rate=cfg.rates == "learned",
        second_order=True,
        first_order_to_second_order_epoch=cfg.first_order_epochs - 1,
        use_multi_step_loss_optimization=cfg.msl_epochs > 0,
        multi_step_loss_num_epochs=max(cfg.msl_epochs, 1),  # it divides by them
        meta_learning_rate=cfg.lr,
        min_learning_rate=cfg.min_lr,
        total_epochs=cfg.epochs,
    )


@cache
def _its(folder: str) -> type:
    """Its classifier, but that it computes on the sets that it is told of, where it is."""
    sys.path.insert(0, folder)
    try:
        from few_shot_learning_system import MAMLFewShotClassifier
    finally:
        sys.path.remove(folder)

    class Classifier(MAMLFewShotClassifier):
        told: tuple[Tensor, ...] | None = None

        def forward(self, data_batch, *arguments, **options):
            return super().forward(self.told or data_batch, *arguments, **options)

    return Classifier


class Htym:
    """From given parameters, as `bench.implementations.starting_point` names them; its convolution
    biases, which it has beside them and which batch norm cancels, begin at zero.
    """

    def __init__(self, cfg: Config, *given: dict[str, Tensor]):
        if reason := missing():
            raise UserError(f"{reason}; name one of github.com/AntreasAntoniou/{NAME}")
        self.cfg, self.dtype = cfg, given[0]["linear.bias"].dtype
        size = cfg.tasks, cfg.channels, cfg.image_size, cfg.image_size
        with self._its_way():
            make = _its(os.environ[VARIABLE])
            self.model = make(im_shape=size, device=torch.device("cpu"), args=arguments(cfg))
        self.optimiser = self.model.optimizer
        for group in self.optimiser.param_groups:
            group["betas"] = cfg.beta1, cfg.beta2
        self._gradients: Groups = {}
        self.optimiser.register_step_pre_hook(self._keep_gradients)
        self._sum = cfg.tasks if cfg.task_reduction == "sum" else 1
        self._mean = self.model.get_across_task_loss_metrics
        self.model.get_across_task_loss_metrics = self._over_tasks
        for kind, tensors in zip(KINDS, given, strict=True):
            for name, place in self.places()[kind].items():
                place.copy_(tensors[name])

    def places(self) -> Groups:
        """Its parameters under our names, those that we have: writing to them changes it."""
        return _by_our_names({n: p.detach() for n, p in self.model.named_parameters()}, self.cfg)

    def gradients(self) -> Groups:
        """Of the last iteration, clamped, as Adam took them; only of what is learned."""
        return self._gradients

    def step(self, *sets: Tensor) -> Tensor:
        """One outer iteration on sets [T, N, ...]; answers the mean loss."""
        return torch.tensor(self.train(*sets)["loss"], dtype=torch.float64)

    def evaluation(self, *sets: Tensor) -> float:
        return self.test(*sets)["loss"]

    def train(self, *sets: Tensor, epoch: int = 0) -> dict[str, float]:
        """One outer iteration; answers loss and accuracy, means over the tasks."""
        return self._run(sets, lambda batch: self.model.run_train_iter(batch, epoch))

    def test(self, *sets: Tensor) -> dict[str, float]:
        """The same after adapting to the support sets, without learning from it."""
        return self._run(sets, self.model.run_validation_iter)

    def _run(self, sets: tuple[Tensor, ...], iteration: Callable) -> dict[str, float]:
        support_x, support_y, target_x, target_y = (
            x.contiguous().unflatten(1, (self.cfg.ways, -1)) for x in sets
        )
        labels = support_y, target_y
        if self.dtype != torch.float32:  # to which it would cast them
            self.model.told = support_x, target_x, *labels
        with self._its_way():
            found, _ = iteration((support_x, target_x, *(y.to(self.dtype) for y in labels)))
        return {"loss": found["loss"].item() / self._sum, "accuracy": float(found["accuracy"])}

    def _over_tasks(self, *losses, **named) -> dict:
        found = self._mean(*losses, **named)
        return found | {"loss": self._sum * found["loss"]}

    def _keep_gradients(self, *_) -> None:
        seen = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        groups = _by_our_names(seen, self.cfg)
        self._gradients = {
            k: {n: g.clone() for n, g in named.items()} for k, named in groups.items() if named
        }

    @contextlib.contextmanager
    def _its_way(self) -> Iterator[None]:
        """It makes its tensors in torch's default type, prints its parameters, and calls the
        scheduler in a way that torch warns of.
        """
        usual = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                yield
        finally:
            torch.set_default_dtype(usual)


def _by_our_names(tensors: dict[str, Tensor], cfg: Config) -> Groups:
    network, norm, rates = {}, {}, {}
    layers = "classifier.layer_dict."
    its_rates = "inner_loop_optimizer.names_learning_rates_dict.layer_dict-"
    pairs = [(f"conv{i}.weight", f"conv{i}.conv.weight") for i in range(cfg.stages)]
    pairs += [("linear.weight", "linear.weights"), ("linear.bias", "linear.bias")]
    for ours, its in pairs:
        network[ours] = tensors[layers + its]
        if (rate := its_rates + its.replace(".", "-")) in tensors:
            rates[ours] = tensors[rate][: cfg.steps]  # its last one is of no step
    for i in range(cfg.stages):
        for name in ("weight", "bias"):
            norm[f"norm{i}.{name}"] = tensors[f"{layers}conv{i}.norm_layer.{name}"]
    return dict(zip(KINDS, (network, norm, rates), strict=True))
