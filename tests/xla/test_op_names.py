"""Name stacks of instructions, as JAX writes them."""

from tiny_backprop.integration.jax.xla.op_names import phase_of, scope_of

KIB = 1024


def test_names_are_read_as_jax_writes_them():
    assert scope_of("jit(f)/jvp(a/b)/c/dot_general") == "a/b/c"
    assert scope_of("jit(f)/vmap(transpose(jvp(block0)))/while/body/closed_call/attention/mul") == "block0/attention"
    assert scope_of("jit(f)/jit(planned_gradient_of_f)/jvp(x)/rematted_computation/tanh") == "x"
    assert scope_of("w") == scope_of("") == ""
    assert scope_of("jit(f)/jvp(rematted_computation)/tanh") == ""
    assert phase_of("jit(f)/jvp(rematted_computation)/tanh") == "recomputed"
    assert phase_of("jit(f)/jvp(block0)/tanh") == "forward"
    assert phase_of("jit(f)/transpose(jvp(jvp()))/checkpoint/mul") == "gradient"
    assert phase_of("jit(f)/transpose(jvp())/while/body/checkpoint/rematted_computation/cos") == "recomputed"
    assert phase_of("jit(f)/transpose(jvp())/while/body/jvp()/cos") == "recomputed"
    assert phase_of("jit(f)/transpose(jvp())/while/body/transpose(jvp())/mul") == "gradient"
    assert phase_of("jit(f)/transpose") == phase_of("") == "other"
