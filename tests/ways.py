"""The table of ways in which other people's code uses an op."""

from tests import derivatives, surroundings

WAYS = {
    "autograd": derivatives.to_first_order,
    "create_graph": derivatives.to_second_order,
    "func.grad": derivatives.func_grad,
    "func.grad of grad": derivatives.func_grad_of_grad,
    "func.vjp": derivatives.func_vjp,
    "func.vjp outside": derivatives.func_vjp_outside,
    "func.jvp": derivatives.func_jvp,
    "func.jvp of one": derivatives.func_jvp_of_one,
    "func.jvp of grad": derivatives.func_jvp_of_grad,
    "func.grad of jvp": derivatives.func_grad_of_jvp,
    "func.grad of directions": derivatives.func_grad_of_directions,
    "func.grad of jvp of first": derivatives.func_grad_of_jvp_of_first,
    "func.jvp of vjp": derivatives.func_jvp_of_vjp,
    "func.jacrev": derivatives.func_jacrev,
    "func.jacfwd": derivatives.func_jacfwd,
    "func.hessian": derivatives.func_hessian,
    "func.hessian in reverse": derivatives.func_hessian_in_reverse,
    "vmap": derivatives.mapped(derivatives.value_of, lambda n: (0,) * n),
    "vmap of first": derivatives.mapped(derivatives.value_of, derivatives.first_alone),
    "vmap of last": derivatives.mapped(derivatives.value_of, derivatives.last_alone),
    "vmap along the last axis": derivatives.mapped(
        derivatives.value_of, derivatives.along_the_last
    ),
    "vmap of grad": derivatives.mapped(derivatives.grad_of, lambda n: (0,) * n),
    "vmap of grad, first": derivatives.mapped(derivatives.grad_of, derivatives.first_alone),
    "vmap of grad, last": derivatives.mapped(derivatives.grad_of, derivatives.last_alone),
    "vmap of jvp": derivatives.mapped(derivatives.jvp_of, lambda n: (0,) * n),
    "vmap of jvp, first": derivatives.mapped(derivatives.jvp_of, derivatives.first_alone),
    "vmap of hessian": derivatives.mapped(derivatives.hessian_of_last, lambda n: (0,) * n),
    "vmap of vmap of grad": derivatives.twice_mapped,
    "autograd of vmap": derivatives.mapped_then_differentiated,
    "autograd of vmap, shared": derivatives.shared_then_differentiated,
    "batched gradients": derivatives.batched_gradients,
    "batched second derivatives": derivatives.batched_second_derivatives,
    "dual numbers": derivatives.dual_numbers,
    "functional.hessian": derivatives.functional_hessian,
    "functional.vhp": derivatives.functional_vhp,
    "functional.hvp": derivatives.functional_hvp,
    "functional.jvp": derivatives.functional_jvp,
    "functional.jacobian": derivatives.functional_jacobian,
    "functional.jacobian forward": derivatives.functional_jacobian_forward,
    "checkpoint": surroundings.checkpoint(False),
    "checkpoint, reentrant": surroundings.checkpoint(True),
    "checkpoint to second order": surroundings.checkpoint_to_second_order,
    "hooks that make dense": surroundings.kept_by(surroundings.dense, lambda t: t),
    "hooks that lay out anew": surroundings.kept_by(surroundings.backwards, lambda t: t),
    "save_on_cpu": surroundings.kept_on_cpu,
    "negative bit": surroundings.negated,
    "gradient with a negative bit": surroundings.negated_gradient,
    "gradient of zeros nowhere": surroundings.zeros_nowhere,
    "input of zeros nowhere": surroundings.input_of_zeros,
    "expanded": surroundings.expanded,
    "another layout": surroundings.in_another_layout,
    "in a larger tensor": surroundings.in_a_larger_tensor,
    "accumulated gradients": surroundings.accumulated,
    "wrapped cotangent": surroundings.wrapped_cotangent,
    "result written to": surroundings.written_to,
    "thread": surroundings.in_a_thread,
    "data loader's worker": surroundings.in_a_worker,
    "fork": surroundings.in_a_child,
    "inference mode": surroundings.inference,
    "subclass": surroundings.subclassed,
    "module": surroundings.in_a_module,
    "export": surroundings.exported,
    "jit.trace": surroundings.jit_traced,
    "make_fx": surroundings.fx_traced_value,
    "make_fx of grad": surroundings.fx_traced,
    "make_fx of grad of grad": surroundings.fx_traced_second_order,
    "make_fx of jvp of grad": surroundings.fx_traced_jvp_of_grad,
    "compile jvp": surroundings.compiled_function(derivatives.func_jvp),
    "compile jvp, eager": surroundings.compiled_function(derivatives.func_jvp, "eager"),
    "compile jvp of grad": surroundings.compiled_function(derivatives.func_jvp_of_grad),
    "compile eager": surroundings.compiled(derivatives.to_first_order, backend="eager"),
    "compile eager, second order": surroundings.compiled(
        derivatives.to_second_order, backend="eager"
    ),
    "compile fullgraph": surroundings.compiled(
        derivatives.to_first_order, backend="aot_eager", fullgraph=True
    ),
    "compile dynamic": surroundings.compiled(
        derivatives.to_first_order, backend="aot_eager", dynamic=True
    ),
    "compile inductor": surroundings.compiled(
        derivatives.to_first_order, backend="inductor", fullgraph=True
    ),
    "compile aot_eager, second order": surroundings.compiled(
        derivatives.to_second_order, backend="aot_eager"
    ),
    "compile grad, eager": surroundings.compiled_function(derivatives.func_grad, "eager"),
    "compile grad, aot_eager": surroundings.compiled_function(derivatives.func_grad),
    "compile grad of grad": surroundings.compiled_function(derivatives.func_grad_of_grad),
    "compile vmap of grad": surroundings.compiled_mapped_gradient,
    "compile around": surroundings.compiled_regions,
}
# Another way to the same for ordinary torch, which does not do all of them, or takes long.
OTHERWISE = {
    "functional.jacobian forward": derivatives.func_jacfwd,
    "hooks that lay out anew": derivatives.to_second_order,
    "compile eager": derivatives.to_first_order,
    "compile jvp": derivatives.func_jvp,
    "compile jvp, eager": derivatives.func_jvp,
    "compile jvp of grad": derivatives.func_jvp_of_grad,
    "compile eager, second order": derivatives.to_second_order,
    "compile fullgraph": derivatives.to_first_order,
    "compile dynamic": derivatives.to_first_order,
    "compile inductor": derivatives.to_first_order,
    "compile grad, eager": derivatives.func_grad,
    "compile grad, aot_eager": derivatives.func_grad,
    "compile grad of grad": derivatives.func_grad_of_grad,
    "compile vmap of grad": derivatives.mapped(derivatives.grad_of, lambda n: (0,) * n),
}
# Those that torch itself learnt late.
RECENT = ("make_fx of jvp of grad", "compile jvp", "compile jvp, eager", "compile jvp of grad")
# An error that a backend may raise where it keeps what was written to, as torch's own ops do.
POSSIBLE = {"result written to": "modified by an inplace operation"}
# Errors that say what is wrong, instead of a wrong number.
NAMED = {
    "compile aot_eager, second order": "not currently support double backward|in-place operation",
}
