"""Which sizes symbolic dimensions may have, and at which of them to try a program that has them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

import tiny_backprop.integration.jax.compat as compat
from tiny_backprop.errors import CaptureError
from tiny_backprop.integration.jax.capture.call import Call

Sizes = dict[str, int]

_MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 3, 6, 12, 24, 48, 96, 5, 10, 60, 7, 420)
# Of each dimension, on a scale and with gaps of its own: what is one dimension plus a number is not another's.
_PRIMES = (
    (11, 17, 29, 41, 23),
    (59, 97, 151, 79, 113),
    (211, 313, 443, 271, 557),
    (661, 911, 1223, 787, 1499),
    (2003, 2503, 3307, 2203, 4001),
)
_N_TRIES = 2000
_SMALL_SIZES = tuple(range(2, 65))
_LARGE_SIZES = tuple(
    sorted((m * 2**k for k in range(5, 21) for m in (1, 3, 15, 105) if m * 2**k <= 2**20), reverse=True)
)


@dataclasses.dataclass(frozen=True, eq=False)
class PossibleSizes:
    """The symbolic dimensions of a call and what their sizes have to meet.

    Attributes:
      name: Name of the function.
      dimensions: Names of the dimensions, in the order in which they first appear in the arguments.
      given: Dimensions of the arguments, such as `2*batch`, each once.
      is_met: Constraints: their text, and whether given sizes meet them.
    """

    name: str
    dimensions: tuple[str, ...]
    given: tuple[Any, ...]
    is_met: Mapping[str, Callable[[Mapping[str, int]], bool]]

    @classmethod
    def of(cls, call: Call) -> PossibleSizes:
        """Return those of the arguments of a call."""
        found = call.symbolic_dimensions()
        names = dict.fromkeys(n for d in found for n in _names(d))
        given = {str(d): d for d in found}
        is_met = {text: is_met for d in found for text, is_met in compat.dimension_constraints(d)}
        return cls(call.name, tuple(names), tuple(given.values()), is_met)

    @property
    def constraints(self) -> tuple[str, ...]:
        """The constraints as they were written, such as `"mod(batch, 8) == 0"`."""
        return tuple(self.is_met)

    def example(self) -> Sizes:
        """Return some sizes that meet the constraints: 32 for all dimensions, or another power of two, if that does."""
        alike = (dict.fromkeys(self.dimensions, n) for n in (32, 16, 64, 8, 128, 4, 256, 512, 1024, 2))
        return next(sizes for sizes in itertools.chain(alike, self._candidates()) if self._are_met_by(sizes))

    def checked(self, sizes: Mapping[str, Any]) -> Sizes:
        """Return sizes in the order of `dimensions`.

        Args:
          sizes: A size for each of `dimensions`.

        Raises:
          CaptureError: A size is missing, unknown or no whole number of at least 1, or a constraint is not met.
        """
        asked = ", ".join(f"{k}={v!r}" for k, v in sizes.items()) or "no size"
        if set(sizes) != set(self.dimensions):
            wanted = ", ".join(f"{k}=…" for k in self.dimensions)
            raise CaptureError(
                f"{asked} was asked for; {self.name} has the dimensions {', '.join(self.dimensions)}. "
                f"Give each a size: at({wanted})."
            )
        for n in sizes.values():
            if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
                raise CaptureError(f"{asked} was asked for; sizes are whole numbers of at least 1")
        checked = {k: int(sizes[k]) for k in self.dimensions}
        unmet = [text for text, is_met in self.is_met.items() if not is_met(checked)]
        if unmet:
            raise CaptureError(f"{asked} was asked for, but {self.name} was captured under {' and '.join(unmet)}")
        for d in self.given:
            if compat.dimension_at(d, checked) < 0:
                raise CaptureError(f"{asked} was asked for; the dimension {d} of an argument would be negative")
        return checked

    def samples(self) -> list[Sizes]:
        """Return three choices of sizes, all different, with as little as can be in common with any other number."""
        n, chosen = len(self.dimensions), []
        for sizes in self._candidates():
            if all(sizes[k] != other[k] for k in self.dimensions for other in chosen):
                chosen.append(sizes)
            if len(chosen) == 3:
                return chosen
        under = f" under {' and '.join(self.constraints)}" if self.constraints else ""
        raise CaptureError(
            f"{self.name} was to be captured with the dimension{'s' * (n > 1)} {', '.join(self.dimensions)}{under}; to "
            "see what depends on sizes, it is traced at three choices of them that have none in common, and none were "
            "found. Loosen the constraints, or capture each size by capture_gradient."
        )

    def ends(self, sample: Sizes) -> Iterator[Sizes]:
        """Yield sizes like a sample's but for one dimension, which is as small or as large as may be."""
        for name in self.dimensions:
            for values in (range(2, sample[name]), _LARGE_SIZES):
                found = ({**sample, name: n} for n in values)
                yield from itertools.islice((sizes for sizes in found if self._are_met_by(sizes)), 1)

    def _candidates(self) -> Iterator[Sizes]:
        """Yield sizes that meet the constraints: multiples of primes, those of the same small numbers together."""
        n = len(self.dimensions)
        for factors in itertools.product(_MULTIPLES, repeat=min(n, 2)) if n <= len(_PRIMES) else ():
            scaled = ([p * factors[min(j, 1)] for j, p in enumerate(row)] for row in zip(*_PRIMES[:n], strict=True))
            found = [x for row in scaled if self._are_met_by(x := dict(zip(self.dimensions, row, strict=True)))]
            if len(found) >= 3:
                yield from found
        random = np.random.default_rng(0)
        tried = {tuple(random.choice(_SMALL_SIZES, n).tolist()) for _ in range(_N_TRIES)}
        for values in sorted(tried, key=lambda v: (len(set(v)), v), reverse=True):
            if self._are_met_by(sizes := dict(zip(self.dimensions, values, strict=True))):
                yield sizes

    def _are_met_by(self, sizes: Sizes) -> bool:
        return all(is_met(sizes) for is_met in self.is_met.values()) and all(
            compat.dimension_at(d, sizes) >= 2 for d in self.given
        )


def in_words(sizes: Sizes) -> str:
    """Return sizes as they are asked for: `batch=32, tokens=128`."""
    return ", ".join(f"{k}={n}" for k, n in sizes.items())


def _names(dimension: Any) -> list[str]:
    text = str(dimension)
    return sorted(compat.dimension_names(dimension), key=text.index)
