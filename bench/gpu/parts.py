"""The parts of the run by name."""

from importlib import import_module

from bench.gpu.progress import Items, Request

# Modules of this package, each with `items(request)`; some hold more than one part.
HOMES = {
    "environment": ("environment", "items"),
    "compile": ("compiling", "items"),
    "passes": ("checks", "first_passes"),
    "bits": ("graph", "items"),
    "alone": ("iterations", "alone"),
    "profile": ("graph", "profiles"),
    "kernels": ("checks", "items"),
    "gradients": ("gradients", "items"),
    "ops": ("rates", "items"),
    "tune": ("tuning", "items"),
    "iterations": ("iterations", "items"),
    "networks": ("networks", "items"),
    "peers": ("iterations", "peers"),
    "memory": ("iterations", "memory"),
    "training": ("training", "items"),
}


def items(part: str, request: Request) -> Items:
    module, name = HOMES[part]
    return getattr(import_module(f"bench.gpu.{module}"), name)(request)
