"""Which instructions XLA:CPU gives memory: a model of its fusion, rule by rule.

1. A `CHEAP` or `EXPENSIVE` instruction that only loops read is computed inside them and takes no memory.
2. It takes memory where a kernel, a hold or a reduction reads it, or the program returns it.
3. An `EXPENSIVE` one also does where several instructions read it, or one that repeats its elements (a broadcast).
4. A `CHEAP` one with memory of its own is still computed again by the loops that read it, if it is *unary*: this costs
   them no further operand. Another one is computed again only where all that lies between it and its readers is fused.
5. An `ALIAS` shares its operand's memory where that has some, and is otherwise a `CHEAP` unary instruction.
6. A reduction takes in the chain of element-wise instructions that it alone reads. What enters that chain takes memory.
7. The softmax of rows, x - max(x) and its exponential, is one reduction kernel, and takes in the dot before it that
   nothing else reads. So is its gradient from 4,096 rows on: that dot takes no memory, but what multiplies it does.
8. A scatter into zeros that is only added to another array scatters into that array.
9. The exponential inside `erfc(x)` is shared with an exp(-x * x) of the program, and so takes memory.
10. What is concatenated along the last dimension takes memory; the result is computed in the loop that reads it.

`tests/test_materialized.py` holds each rule against XLA.
"""

from __future__ import annotations

import dataclasses

from tiny_backprop.plan.unrolled import BROADCAST, Instructions, Kind, names

_ABSORBED = names(
    "reshape squeeze expand_dims broadcast_in_dim iota convert_element_type add sub mul div max min neg abs sign floor "
    "ceil round square integer_pow pow sqrt rsqrt exp expm1 log log1p tanh logistic erf add_any stop_gradient"
)
_SCALED = ("add", "mul", "div")
_MOST_BETWEEN = 5  # instructions between a reduction of rows and where it is subtracted
_LEAST_ROWS_BYTES = 16384


@dataclasses.dataclass(frozen=True, eq=False)
class Fusion:
    """What becomes of each instruction.

    Attributes:
      instructions: The instructions.
      has_buffer: Whether it takes memory.
      sources: The instructions whose memory is read when it is computed, each with whether an element of it is read for
        the element in the same place alone, so that this may overwrite it.
      is_in_place: Whether it is a scatter or the like, which writes into its operand.
      returned: The instructions whose memory the program returns, each with its first place among the outputs.
    """

    instructions: Instructions
    has_buffer: list[bool]
    sources: list[dict[int, bool]]
    is_in_place: list[bool]
    returned: dict[int, int]


def fuse(instructions: Instructions) -> Fusion:
    """Decide which instructions take memory; see the module's text. About linear in their number."""
    return _Fuser(instructions).run()


class _Fuser:
    def __init__(self, instructions: Instructions):
        self.of, self.n = instructions, len(instructions)
        self.kinds = [int(k) for k in instructions.kinds]  # comparing enumerations takes longer
        self.operands, self.n_bytes = instructions.operands, instructions.n_bytes
        self.returned = dict(instructions.returned)
        self.primitives = [instructions.primitive(i) for i in range(self.n)]
        self.readers: list[list[int]] = [[] for _ in range(self.n)]
        for i, operands in enumerate(self.operands):
            for o in operands:
                self.readers[o].append(i)
        self.has_buffer, self.is_inlined = [False] * self.n, [False] * self.n
        self.in_reduction = [False] * self.n  # a reduction, or part of its kernel
        self.taken_in: set[int] = set()  # by a softmax
        self.replaced: set[int] = set()  # scatters into zeros, and the zeros
        self.is_in_place = [p.startswith(("scatter", "dynamic_update")) for p in self.primitives]

    def run(self) -> Fusion:
        for i, p in enumerate(self.primitives):
            if p == "sub":
                self._find_softmax(i)
            elif p in ("add_any", "add"):
                self._find_scatter(i)
                self._find_softmax_gradient(i)
        kept = self._kept()
        for i in range(self.n - 1, -1, -1):
            self._decide(i, kept)
        self._merge_aliases()
        return Fusion(self.of, self.has_buffer, self._sources(), self.is_in_place, self.returned)

    def _sources(self) -> list[dict[int, bool]]:
        sources: list[dict[int, bool]] = []
        for i, operands in enumerate(self.operands):
            found: dict[int, bool] = {}
            is_loop, in_place = (
                self._is_loop(i) and not self._joins_rows(i),
                self.of.kinds[i] < Kind.REDUCTION and not self.of.moves[i],
            )
            for o in operands:
                if self.has_buffer[o] and not (self.is_inlined[o] and is_loop):
                    found[o] = in_place and found.get(o, True)
                else:
                    for source, was_in_place in sources[o].items():
                        found[source] = in_place and was_in_place and found.get(source, True)
            sources.append(found)
        return sources

    def _is_loop(self, i: int) -> bool:
        return self.kinds[i] < Kind.REDUCTION and not self.in_reduction[i]

    # ---- patterns ----

    def _find_softmax(self, sub: int) -> None:
        """Mark x - max(x), and its exponential, as one kernel, with what it alone reads (rule 7)."""
        if len(self.operands[sub]) != 2:
            return
        x, between = self.operands[sub][0], [self.operands[sub][1]]
        while self.kinds[between[-1]] < Kind.REDUCTION and len(between) < _MOST_BETWEEN:
            operands = self.operands[between[-1]]
            if len(operands) != 1:
                return
            between.append(operands[0])
        if self.primitives[between[-1]] != "reduce_max" or self.operands[between[-1]] != [x]:
            return
        root = sub
        if len(self.readers[sub]) == 1 and self.primitives[self.readers[sub][0]] == "exp":
            root = self.readers[sub][0]
        self.kinds[root] = int(Kind.REDUCTION)
        if all(len(self.readers[i]) == 1 and i not in self.returned for i in between):
            self.taken_in.update(between)
            if root != sub:
                self.taken_in.add(sub)
        if len(self.readers[x]) == 2 and x not in self.returned:
            self._take_in_dot(x)

    def _take_in_dot(self, x: int) -> None:
        """Mark a dot that only scaling and adding lies after, down to `x`."""
        chain = [x]
        while self.kinds[chain[-1]] < Kind.REDUCTION and self.primitives[chain[-1]] in _SCALED:
            i = chain[-1]
            full = [o for o in self.operands[i] if self.n_bytes[o] == self.n_bytes[i] and not self._is_broadcast(o)]
            if len(full) != 1 or len(self.readers[full[0]]) != 1:
                return
            chain.append(full[0])
        if self.primitives[chain[-1]] == "dot_general":
            self.taken_in.update(chain)

    def _find_softmax_gradient(self, add: int) -> None:
        """Mark d * a - sum(d * b) and what is made of it alone, d a dot, as one kernel (rule 7)."""
        operands = self.operands[add]
        for product, repeated in (operands, operands[::-1]) if len(operands) == 2 else ():
            between = [repeated]
            while self.kinds[between[-1]] < Kind.REDUCTION and len(between) < _MOST_BETWEEN:
                if len(self.operands[between[-1]]) != 1 or len(self.readers[between[-1]]) != 1:
                    break
                between.append(self.operands[between[-1]][0])
            total = between[-1]
            if self.primitives[total] != "reduce_sum" or self.n_bytes[total] < _LEAST_ROWS_BYTES:
                continue
            inside = {*between, *self._scaled(product), *self._scaled(self.operands[total][0])}
            dots = [i for i in inside if self.primitives[i] == "dot_general"]
            readers = {r for i in inside for r in self.readers[i]}
            if len(dots) == 1 and readers <= inside | {add} and not inside & self.returned.keys():
                root = add
                while len(self.readers[root]) == 1 and root not in self.returned:
                    reader = self.readers[root][0]
                    if self.primitives[reader] not in _ABSORBED or self.kinds[reader] >= Kind.REDUCTION:
                        break
                    inside.add(root)
                    root = reader
                self.taken_in.update(inside)
                self.kinds[root] = int(Kind.REDUCTION)
                return

    def _scaled(self, i: int) -> list[int]:
        """Return the instructions from one down to the dot that it multiplies or divides, empty where there is none."""
        if self.primitives[i] == "dot_general":
            return [i]
        if self.primitives[i] in ("mul", "div") and self.kinds[i] < Kind.REDUCTION:
            for o in self.operands[i]:
                below = self._scaled(o) if self.n_bytes[o] == self.n_bytes[i] else []
                if below:
                    return [i, *below]
        return []

    def _is_broadcast(self, i: int) -> bool:
        return self.of.nodes[i] == BROADCAST or self.primitives[i] in ("broadcast_in_dim", "iota")

    def _find_scatter(self, add: int) -> None:
        """Mark scatter(zeros) + y as a scatter into y (rule 8)."""
        for i in self.operands[add] if len(self.operands[add]) == 2 else ():
            if not self.primitives[i].startswith("scatter") or len(self.readers[i]) != 1 or i in self.returned:
                continue
            zeros = [
                o
                for o in self.operands[i]
                if self.primitives[o] == "broadcast_in_dim" and not self.operands[o] and len(self.readers[o]) == 1
            ]
            if zeros and self.n_bytes[zeros[0]] == self.n_bytes[i] == self.n_bytes[add]:
                self.replaced |= {i, zeros[0]}
                self.kinds[add], self.is_in_place[add] = int(Kind.KERNEL), True
                return

    # ---- rules ----

    def _kept(self) -> set[int]:
        """Return the cheap instructions, not unary, that XLA does not compute again for each reader (rule 4)."""
        ancestors: list[int] = []  # a bit for each instruction
        for operands in self.operands:
            bits = 0
            for o in operands:
                bits |= ancestors[o] | 1 << o
            ancestors.append(bits)
        kept: set[int] = set()
        known: dict[tuple[int, int], bool] = {}

        def is_fused_throughout(source: int, reader: int) -> bool:
            if source == reader:
                return True
            key = (source, reader)
            if key not in known:
                known[key] = self.kinds[reader] < Kind.REDUCTION and all(
                    o not in kept and self._is_repeatable(o) and is_fused_throughout(source, o)
                    for o in self.operands[reader]
                    if o == source or ancestors[o] >> source & 1
                )
            return known[key]

        is_unary = self.of.is_unary
        for operands in self.operands:
            for o in operands:
                is_shared = self.kinds[o] <= Kind.CHEAP and not is_unary[o] and len(self.readers[o]) > 1
                if is_shared and o not in kept and not all(is_fused_throughout(o, r) for r in self.readers[o]):
                    kept.add(o)
        return kept

    def _is_repeatable(self, i: int) -> bool:
        return self.kinds[i] < Kind.EXPENSIVE or (self.kinds[i] == Kind.EXPENSIVE and len(self.readers[i]) == 1)

    def _decide(self, i: int, kept: set[int]) -> None:
        """Decide about an instruction whose readers are decided about."""
        kind, readers = self.kinds[i], self.readers[i]
        if i in self.replaced:
            self.is_inlined[i] = True
        elif i in self.taken_in:
            self.is_inlined[i] = self.in_reduction[i] = True
        elif kind >= Kind.REDUCTION:
            self.has_buffer[i], self.in_reduction[i] = True, kind == Kind.REDUCTION
        elif not readers:
            self.has_buffer[i] = i in self.returned
        elif (
            len(readers) == 1
            and self.in_reduction[readers[0]]
            and i not in self.returned
            and self.primitives[i] in _ABSORBED
        ):
            self.is_inlined[i] = self.in_reduction[i] = True
        else:
            needed = i in self.returned or any(
                self.kinds[r] >= Kind.KERNEL or self.in_reduction[r] or self._joins_rows(r) for r in readers
            )
            if kind == Kind.EXPENSIVE:
                needed = needed or len(readers) > 1 or self.of.is_shared_exp[i] or self._is_repeated(i)
            elif not self.of.is_unary[i]:
                needed = needed or i in kept
            self.has_buffer[i] = needed
            self.is_inlined[i] = not needed or (kind != Kind.EXPENSIVE and self.of.is_unary[i])

    def _joins_rows(self, i: int) -> bool:
        """Return whether an instruction concatenates along the last dimension (rule 10)."""
        if self.primitives[i] != "concatenate" or not self.operands[i]:
            return False
        shapes = self.of.graph.value_shapes
        operand, out = (shapes[self.of.values[k]] for k in (self.operands[i][0], i))
        return len(operand) == len(out) > 0 and operand[-1] != out[-1]

    def _is_repeated(self, i: int) -> bool:
        return any(self.n_bytes[r] > self.n_bytes[i] and self.kinds[r] < Kind.REDUCTION for r in self.readers[i])

    def _merge_aliases(self) -> None:
        """Let aliases share the memory of what they stand for (rule 5)."""
        for i in range(self.n):
            if self.kinds[i] != Kind.ALIAS or not self.has_buffer[i]:
                continue
            o = self.operands[i][0]
            while self.kinds[o] == Kind.ALIAS and not self.has_buffer[o]:
                o = self.operands[o][0]
            if self.has_buffer[o] and (not self.is_inlined[o] or self.in_reduction[i]):
                self.has_buffer[i], self.is_inlined[i] = False, True
                if i in self.returned:
                    place = self.returned.pop(i)
                    self.returned[o] = min(place, self.returned.get(o, place))
