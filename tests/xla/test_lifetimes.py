"""Lifetimes of buffers where instructions overlap."""

from tiny_backprop.integration.jax.xla import hlo
from tiny_backprop.integration.jax.xla.assignment import Assignment
from tiny_backprop.integration.jax.xla.lifetimes import follow

KIB = 1024


ASYNC = """\
HloModule jit_f, is_scheduled=true

%async (p: f32[256]) -> f32[256] {
  %p = f32[256]{0} parameter(0)
  ROOT %inside = f32[256]{0} negate(%p)
}

ENTRY %main (a: f32[256]) -> f32[256] {
  %a = f32[256]{0} parameter(0)
  %x = f32[256]{0} tanh(%a)
  %start = ((f32[256]{0}), f32[256]{0}, u32[]) async-start(%x), calls=%async
  %copy-start = (f32[256]{0}, f32[256]{0}, u32[]) copy-start(%x)
  %y = f32[256]{0} sine(%a)
  %done = f32[256]{0} async-done(%start)
  %copy-done = f32[256]{0} copy-done(%copy-start)
  %z = f32[256]{0} add(%done, %copy-done)
  ROOT %r = f32[256]{0} multiply(%z, %y)
}
"""


def test_asynchronous_instructions_keep_their_operands_until_they_are_done():
    places = {("x", ()): 0, ("inside", ()): 1, ("copy-start", (0,)): 2, ("y", ()): 3, ("z", ()): 4, ("r", ()): 5}
    from tiny_backprop.integration.jax.xla.assignment import Allocation, LogicalBuffer

    buffers = {i: LogicalBuffer(i, name, index, 0, 1024 * i, 1024) for (name, index), i in places.items()}
    assignment = Assignment({0: Allocation(0, 6 * 1024, "temp")}, buffers, {i: i for i in buffers})
    lives = follow(hlo.parse_hlo(ASYNC), assignment)
    order = [i.name for i in lives.schedule]
    assert order == ["a", "x", "p", "inside", "start", "copy-start", "y", "done", "copy-done", "z", "r"]
    spans = {buffers[i].instruction: (order[lives.first[i]], order[lives.last[i]]) for i in buffers}
    assert spans["x"] == ("x", "copy-done")
    assert spans["inside"] == ("inside", "z")
    assert spans["copy-start"] == ("copy-start", "z")
    assert spans["y"] == ("y", "r")
