"""The parts of the run by name."""

from importlib import import_module

from bench.gpu.progress import Items, Request

# Modules of this package, each with `items(request)`; some hold more than one part.
HOMES = {
    "environment": ("environment", "items"),
    "compile": ("compiling", "items"),
    "kernels": ("checks", "items"),
    "gradients": ("gradients", "items"),
    "graph": ("graph", "items"),
    "tune": ("tuning", "items"),
    "ops": ("rates", "items"),
    "iterations": ("iterations", "items"),
    "memory": ("iterations", "memory"),
    "training": ("training", "items"),
    "peers": ("iterations", "peers"),
}


def items(part: str, request: Request) -> Items:
    module, name = HOMES[part]
    return getattr(import_module(f"bench.gpu.{module}"), name)(request)
