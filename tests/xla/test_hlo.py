"""HLO as text: hand-written and of real programs."""

import pytest

from tests.compiled_programs import measured
from tiny_backprop.errors import TinyBackpropError
from tiny_backprop.integration.jax.xla.hlo import HloError, parse_hlo, parse_shape
from tiny_backprop.integration.jax.xla.hlo_flops import HloFlops, count_flops

HAND_WRITTEN = """\
HloModule jit_f, is_scheduled=true

%body (p: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %p = (s32[], f32[4,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element((s32[], f32[4,4]{1,0}) %p), index=0
  %x = f32[4,4]{1,0} get-tuple-element(%p), index=1, metadata={op_name="a, \\"b\\" (c) {d" stack_frame_id=3}
  %gemm = (f32[4,4]{1,0}, s8[128]{0}) custom-call(%x, %x), custom_call_target="__cublas$gemm", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
  %y = f32[4,4]{1,0} get-tuple-element(%gemm), index=0
  ROOT %t = (s32[], f32[4,4]{1,0}) tuple(%i, /*index=1*/%y)
}

%test (q: (s32[], f32[4,4])) -> pred[] {
  %q = (s32[], f32[4,4]{1,0}) parameter(0)
  ROOT %go = pred[] constant(true)
}

ENTRY %main (a: f32[4,4]) -> (s32[], f32[4,4]) {
  %a = f32[4,4]{1,0:T(8,128)S(1)} parameter(0)
  %c = s32[2,2]{1,0} constant({
    { 1, 2 },
    { 3, 4 } })
  %zero = s32[] constant(0)
  %state = (s32[], f32[4,4]{1,0}) tuple(%zero, %a)
  ROOT %w = (s32[], f32[4,4]{1,0}) while(%state), condition=%test, body=%body, \
backend_config={"known_trip_count":{"n":"6"}}
}
"""


def test_hand_written_text_is_parsed():
    module = parse_hlo(HAND_WRITTEN)
    assert module.name == "jit_f"
    assert list(module.computations) == ["body", "test", "main"]
    assert [i.name for i in module.entry.instructions] == ["a", "c", "zero", "state", "w"]
    assert module.entry.root.called == ("test", "body")
    body = module.computations["body"]
    assert body.by_name["i"].operands == ("p",)
    assert body.root.operands == ("i", "y")
    assert body.by_name["x"].attributes["index"] == "1"
    assert body.by_name["x"].attributes["metadata"].endswith("stack_frame_id=3}")
    assert [shape.dims for shape in body.by_name["gemm"].shape.leaves] == [(4, 4), (128,)]
    assert module.entry.by_name["a"].shape.layout == "1,0:T(8,128)S(1)"
    assert module.entry.root.trip_count == 6
    assert count_flops(HAND_WRITTEN) == HloFlops(6 * 2 * 4**3)


def test_shapes():
    assert parse_shape("(f32[2,3]{1,0}, (s4[], token[]), /*index=2*/pred[<=5])").leaves == (
        parse_shape("f32[2,3]{1,0}"),
        parse_shape("s4[]"),
        parse_shape("token[]"),
        parse_shape("pred[5]"),
    )
    assert parse_shape("(f32[2,3]{1,0}, s32[4])").num_elements == 10
    assert parse_shape("()").leaves == ()
    with pytest.raises(HloError, match="cannot read the shape 'nonsense'"):
        parse_shape("nonsense")


@pytest.mark.parametrize("name", ["convolution's gradient", "gpt's gradient", "nested loops' gradient"])
def test_every_operand_and_call_of_a_real_program_is_known(name):
    text = measured(name).program.hlo_text
    module = parse_hlo(text)
    assert sum(len(c.instructions) for c in module.computations.values()) == sum(
        line.startswith(("  %", "  ROOT")) for line in text.splitlines()
    )
    for computation in module.computations.values():
        for instruction in computation.instructions:
            assert all(name in computation.by_name for name in instruction.operands)
            assert all(name in module.computations for name in instruction.called)


def test_text_that_is_not_hlo_is_refused():
    with pytest.raises(HloError, match=r"no ENTRY computation.*'module @jit_f'.*compiled.as_text\(\)"):
        parse_hlo("module @jit_f")
    with pytest.raises(TinyBackpropError, match="cannot read the HLO line '%a = f32"):
        parse_hlo("ENTRY %main () -> f32[] {\n  %a = f32[2\n}\n")


def test_source_lines_written_into_instructions_are_read_too():
    text = (
        "HloModule jit_f, is_scheduled=true\n\nENTRY %main (a: f32[4]) -> f32[4] {\n"
        "  %a = f32[4]{0} parameter(0)\n"
        '  ROOT %t = f32[4]{0} tanh(%a), metadata={op_name="jit(f)/tanh" source_file="/me/f.py" source_line=7}\n}\n'
    )
    module = parse_hlo(text)
    assert module.is_scheduled
    assert module.source_line(module.entry.root) == "/me/f.py:7"
    assert module.entry.root.op_name == "jit(f)/tanh"
    assert module.source_line(module.entry.by_name["a"]) == ""
