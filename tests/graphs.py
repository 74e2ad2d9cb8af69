"""Small graphs that several tests share: chains and hypothesis-drawn training graphs."""

from hypothesis import strategies as st

from tiny_backprop import Graph


def chain(n: int, n_bytes: int = 1) -> Graph:
    """Return a chain of n forward nodes and its gradient, every value of `n_bytes` bytes and one FLOP a node."""
    forward = [dict(name=f"f{i}", bytes=n_bytes, flops=1, reads=[f"f{i - 1}" if i else "x"]) for i in range(n)]
    backward = [
        dict(
            name=f"b{i}",
            bytes=n_bytes,
            flops=1,
            reads=[f"f{i - 1}" if i else "x"] + ([f"b{i + 1}"] if i < n - 1 else []),
            is_backward=True,
        )
        for i in reversed(range(n))
    ]
    return Graph.from_nodes([*forward, *backward], inputs={"x": n_bytes}, outputs=[f"f{n - 1}", "b0"])


@st.composite
def training_graphs(draw: st.DrawFn, max_forward: int = 12, in_order: bool = False) -> Graph:
    """Draw a forward DAG and a backward phase that reads arbitrary residuals, in reverse order where asked for."""
    n = draw(st.integers(1, max_forward))
    sizes = st.integers(0, 9)
    nodes = []
    for i in range(n):
        reads = draw(st.lists(st.integers(max(0, i - 4), i - 1), max_size=3, unique=True)) if i else []
        far = [0] if i and draw(st.integers(0, 9)) == 0 else []
        nodes.append(
            dict(
                name=f"f{i}",
                bytes=draw(sizes),
                flops=draw(st.integers(0, 9)),
                reads=["x", *(f"f{j}" for j in {*reads, *far})],
                has_effect=draw(st.integers(0, 19)) == 0,
            )
        )
    m = draw(st.integers(1, max_forward))
    for i in range(m):
        top = n - 1 - (i * n) // m if in_order else n - 1
        reads = draw(st.lists(st.integers(max(0, top - 3) if in_order else 0, top), max_size=2, unique=True))
        before = draw(st.lists(st.integers(max(0, i - 3), i - 1), max_size=2, unique=True)) if i else []
        nodes.append(
            dict(
                name=f"b{i}",
                bytes=draw(sizes),
                flops=draw(st.integers(0, 9)),
                reads=[*(f"f{j}" for j in reads), *(f"b{j}" for j in before)],
                is_backward=True,
            )
        )
    forward_outputs = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=2, unique=True))
    outputs = [*(f"f{j}" for j in forward_outputs), f"b{m - 1}"]
    return Graph.from_nodes(nodes, inputs={"x": 5}, outputs=outputs)
