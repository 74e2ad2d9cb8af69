"""The user's own `jax.checkpoint` is what plans are held against: its bytes, its policies, and no plan above it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import tiny_backprop as tb
from tests.programs import assert_close

POLICIES = jax.checkpoint_policies
D, B = 64, 256
WEIGHTS = [jnp.eye(D).reshape(1, D, D).repeat(2, 0) * 0.9] * 6
X = jnp.linspace(-1.0, 1.0, B * D).reshape(B, D)


def block(w, x):
    h = checkpoint_name(jnp.sin(x @ w[0]), "a")
    return checkpoint_name(jnp.tanh(h @ w[1]), "b") + x


def layers(**options):
    layer = jax.checkpoint(block, **options)

    def loss(ws, x):
        for w in ws:
            x = layer(w, x)
        return jnp.mean(x**2)

    return loss


def looped(**options):
    step = jax.checkpoint(block, **options)
    return lambda ws, x: jnp.mean(lax.scan(lambda c, w: (step(w, c), None), x, jnp.stack(ws))[0] ** 2)


def in_each_other(ws, x):
    """Checkpoint pairs of checkpointed layers."""
    pair = jax.checkpoint(lambda v, w, x: jax.checkpoint(block)(w, jax.checkpoint(block)(v, x)))
    for v, w in zip(ws[::2], ws[1::2], strict=True):
        x = pair(v, w, x)
    return jnp.mean(x**2)


def chunks(ws, x):
    """Checkpoint loops in a loop."""
    chunk = jax.checkpoint(lambda c, ws: lax.scan(lambda c, w: (block(w, c), None), c, ws)[0])
    stacked = jnp.stack(ws).reshape(2, 3, 2, D, D)
    return jnp.mean(lax.scan(lambda c, ws: (chunk(c, ws), None), x, stacked)[0] ** 2)


def attention(ws, x):
    @jax.checkpoint
    def layer(w, x):
        return x + jax.nn.softmax(x @ w[0] @ x.T / 8) @ (x @ w[1])

    for w in ws:
        x = layer(w, x)
    return jnp.mean(x**2)


PROGRAMS = {
    "nothing": (layers(), 0.08),
    "dots": (layers(policy=POLICIES.dots_saveable), 0.05),
    "everything": (layers(policy=POLICIES.everything_saveable), 0.05),
    "names": (layers(policy=POLICIES.save_only_these_names("a")), 0.06),
    "all names but": (layers(policy=POLICIES.save_any_names_but_these("a")), 0.08),
    "in each other": (in_each_other, 0.2),
    "in a loop": (looped(), 0.08),
    "in a loop, dots": (looped(policy=POLICIES.dots_saveable), 0.05),
    "in a loop, names": (looped(policy=POLICIES.save_only_these_names("a")), 0.06),
    "in a loop, no barrier": (looped(prevent_cse=False), 0.08),
    "loops in a loop": (chunks, 0.08),
    "attention": (attention, 0.06),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_a_program_with_its_own_checkpoints_takes_is_predicted(name):
    loss, tolerance = PROGRAMS[name]
    plan = tb.plan_jax_gradient(tb.capture_gradient(loss, WEIGHTS, X))
    assert plan.peak_bytes == pytest.approx(tb.measure(jax.grad(loss), WEIGHTS, X).peak_bytes, rel=tolerance)


@pytest.mark.parametrize("loss", [layers(), looped(), chunks], ids=["layers", "loop", "loops in a loop"])
def test_no_plan_without_a_wish_takes_more_than_the_users_checkpoints(loss):
    planned = tb.height_compressed_grad(loss)
    assert_close(planned(WEIGHTS, X), jax.jit(jax.grad(loss))(WEIGHTS, X))
    assert tb.measure(planned, WEIGHTS, X).peak_bytes <= 1.02 * tb.measure(jax.grad(loss), WEIGHTS, X).peak_bytes


def test_a_budget_above_the_users_checkpoints_runs_less_again():
    loss = layers()
    graph = tb.capture_gradient(loss, WEIGHTS, X)
    own, everything = tb.plan_jax_gradient(graph), tb.plan_save_everything(graph)
    budget = (own.peak_bytes + everything.peak_bytes) // 2
    plan = tb.height_compressed_grad(loss, budget=budget).plan(WEIGHTS, X)
    assert plan.recompute_flops < own.recompute_flops
    assert plan.peak_bytes <= budget


def test_what_checkpoints_do_is_told_by_line_and_policy():
    policy = POLICIES.save_only_these_names("a", "b")
    graph = tb.capture_gradient(layers(policy=policy), WEIGHTS, X)
    (told,) = tb.plan_save_everything(graph).checkpointed_calls
    assert told.policy == "save_only_these_names('a', 'b')"
    assert told.n_calls == len(WEIGHTS)
    assert told.saved_bytes == len(WEIGHTS) * X.nbytes  # "b" ends a layer, and nothing reads it in the backward phase
    assert "test_own_checkpoints.py" in told.source
    assert tb.analyze_graph(graph).checkpointed_calls == (told,)
    assert "save_only_these_names(&#x27;a&#x27;, &#x27;b&#x27;)" in tb.analyze_graph(graph)._repr_html_()


def test_steps_of_loops_count_as_calls_and_run_again():
    (told,) = tb.plan_save_everything(tb.capture_gradient(looped(), WEIGHTS, X)).checkpointed_calls
    assert (told.policy, told.n_calls, told.saved_bytes) == ("nothing_saveable", len(WEIGHTS), 0)
    assert told.again_flops >= len(WEIGHTS) * 2 * B * D * D  # a layer's first product; the second is not read


def test_what_is_offloaded_is_told():
    policy = POLICIES.offload_dot_with_no_batch_dims("device", "pinned_host")
    (told,) = tb.plan_save_everything(tb.capture_gradient(layers(policy=policy), WEIGHTS, X)).checkpointed_calls
    assert told.offloaded_bytes == 2 * len(WEIGHTS) * X.nbytes
    assert told.saved_bytes == 0
    assert "offloads" in str(told)
    assert told.policy == "offload_dot_with_no_batch_dims(offload_dst='pinned_host', offload_src='device')"


def test_jaxs_own_gradient_runs_again_what_jax_runs_again():
    graph = tb.capture_gradient(layers(), WEIGHTS, X)
    plan = tb.plan_jax_gradient(graph)
    own, plain = (
        tb.measure(jax.grad(f), WEIGHTS, X).flops for f in (layers(), layers(policy=POLICIES.everything_saveable))
    )
    assert plan.flops / tb.plan_save_everything(graph).flops == pytest.approx(own / plain, rel=0.02)


def test_plans_do_not_depend_on_the_users_checkpoints():
    def plain(ws, x):
        for w in ws:
            x = block(w, x)
        return jnp.mean(x**2)

    graphs = [tb.capture_gradient(f, WEIGHTS, X) for f in (layers(), plain)]
    assert graphs[0].fingerprint == graphs[1].fingerprint
    a, b = (tb.plan_blocks(g, 5) for g in graphs)
    assert np.array_equal(a.targets, b.targets)
    assert a.peak_bytes == b.peak_bytes
    scopes = [set(g.scopes) for g in graphs]
    assert scopes[0] == scopes[1]


def test_graphs_are_saved_with_their_checkpoints():
    graph = tb.capture_gradient(looped(), WEIGHTS, X)
    again = tb.Graph.from_json(graph.to_json())
    assert again.nested[0].bodies[0].checkpoints == graph.nested[0].bodies[0].checkpoints
    assert tb.plan_jax_gradient(again).peak_bytes == tb.plan_jax_gradient(graph).peak_bytes
    data = tb.capture_gradient(layers(), WEIGHTS, X).to_data()
    data["checkpoints"][0]["nodes"] = [10**6]
    with pytest.raises(tb.GraphError, match="checkpoint 0 must have nodes of the graph"):
        tb.Graph.from_data(data)


def test_a_policy_of_the_users_own_is_asked_and_named():
    def my_policy(primitive, *_, **__):
        return primitive.name == "sin"

    (told,) = tb.plan_save_everything(tb.capture_gradient(layers(policy=my_policy), WEIGHTS, X)).checkpointed_calls
    assert told.policy == "my_policy"
    assert told.saved_bytes == len(WEIGHTS) * X.nbytes
