"""Regular two-level fractions 2^(k-p): a share of all cells in which every main effect can still be told.

k - p basic factors take every combination; each of the p others is the product of some of them (its generator, with
levels as -1 and +1). Products of generators are the words of the defining relation, and two effects that differ by a
word are aliases: the same contrast of cells estimates their sum. The shortest word's length is the resolution: at III
a main effect may share its contrast with a two-factor interaction, at IV only interactions share theirs, at V not even
they do.
Where generators are not given, those of minimum aberration are found by going through all: the fewest short words
(Fries & Hunter 1980, Technometrics 22; Box, Hunter & Hunter, Statistics for Experimenters, chapter 6).

A set of factors is an int with a bit for each. The cell in which every factor is at its reference (-1) is always in the
fraction: a generator takes the sign that makes it so, minus for a product of an even number of factors.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from dinoswap.config.schema import ConfigError

LARGEST_SEARCH = 200_000
"""The most sets of generators that are gone through, which takes some seconds."""
ROMAN = ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X")


@dataclass(frozen=True)
class Fraction:
    """A regular fraction of the two-level factorial of `factors`. `generators` maps a factor to the basic factors whose
    product it is; without any this is the full factorial."""

    factors: tuple[str, ...]
    generators: Mapping[str, Sequence[str]]

    @property
    def runs(self) -> int:
        """The number of cells."""
        return 1 << len(self.factors) - len(self.generators)

    @property
    def resolution(self) -> int | None:
        """The length of the shortest word; None where nothing is aliased."""
        return min((word.bit_count() for word in self.words), default=None)

    @cached_property
    def words(self) -> list[int]:
        """The words of the defining relation without I, short ones first."""
        generating = [self._set([factor]) ^ self._set(parents) for factor, parents in self.generators.items()]
        return sorted(products(generating), key=lambda word: (word.bit_count(), self._positions(word)))

    def rows(self) -> list[tuple[int, ...]]:
        """Returns the cells: for each factor 0 (its reference) or 1. In the first all factors are at their
        reference."""
        basic = [factor for factor in self.factors if factor not in self.generators]
        cells = []
        for levels in itertools.product((0, 1), repeat=len(basic)):
            cell = dict(zip(basic, levels, strict=True))
            for factor, parents in self.generators.items():
                cell[factor] = sum(cell[parent] for parent in parents) % 2
            cells.append(tuple(cell[factor] for factor in self.factors))
        return cells

    def aliases(self) -> list[list[str]]:
        """Returns the main effects and two-factor interactions, grouped by the contrast that they share. A minus says
        that an effect enters it with the opposite sign."""
        single = [1 << index for index in range(len(self.factors))]
        remaining = [*single, *(first | second for first, second in itertools.combinations(single, 2))]
        groups = []
        while remaining:
            first = remaining[0]
            group = [effect for effect in remaining if effect == first or effect ^ first in self.words]
            remaining = [effect for effect in remaining if effect not in group]
            groups.append([self._term(effect, first) for effect in group])
        return groups

    def describe(self) -> list[str]:
        """Returns lines that hold the design in words, its defining relation and its alias table."""
        count = len(self.factors)
        if self.resolution is None:
            return [f"2^{count} full factorial: {self.runs} cells, nothing is aliased"]
        shared = [" = ".join(group) for group in self.aliases() if len(group) > 1]
        resolution = ROMAN[self.resolution] if self.resolution < len(ROMAN) else str(self.resolution)
        return [
            f"2^({count}-{len(self.generators)}) fraction of resolution {resolution}: {self.runs} cells of {2**count}",
            f"defining relation: {' = '.join(['I', *(self._term(word, 0) for word in self.words)])}",
            "aliases among main effects and two-factor interactions:" if shared else "none of them is aliased",
            *(f"  {line}" for line in shared),
        ]

    def _set(self, factors: Iterable[str]) -> int:
        """Returns a set of factors as a number that has a bit for each."""
        return sum(1 << self.factors.index(factor) for factor in factors)

    def _positions(self, effect: int) -> list[int]:
        """Returns the positions of an effect's factors; the effect is a number with a bit for each."""
        return [index for index in range(len(self.factors)) if effect >> index & 1]

    def _term(self, effect: int, first: int) -> str:
        """Returns the effect's name, with its sign relative to `first`. In every cell of the fraction a product of n
        factors is (-1)^n times what the parity of their levels says, and that parity is the same for aliases."""
        sign = "-" if (effect.bit_count() + first.bit_count()) % 2 else ""
        return sign + "*".join(self.factors[index] for index in self._positions(effect))


def products(words: Iterable[int]) -> list[int]:
    """Returns all products of one or more of these words; a factor that occurs twice in a product cancels."""
    results = [0]
    for word in words:
        results += [word ^ other for other in results]
    return results[1:]


def choose_fraction(
    factors: Sequence[str],
    runs: int | None = None,
    generators: Mapping[str, Sequence[str]] | None = None,
    interactions: bool = False,
) -> Fraction:
    """Returns the fraction with these generators; or else of `runs` cells, a power of two, with the best ones; or else
    the smallest that keeps main effects clear of two-factor interactions, and with `interactions` these of each other.
    Raises ConfigError for generators or a number of runs that make no such fraction."""
    if generators:
        given = _with_generators(factors, generators)
        if runs not in (None, given.runs):
            raise ConfigError(f"runs={runs}: these generators make {given.runs}; leave one of the two out")
        return given
    if runs is not None:
        return _of_minimum_aberration(factors, runs)
    least_resolution = 5 if interactions else 4
    for exponent in range(len(factors).bit_length(), len(factors)):
        fraction = _of_minimum_aberration(factors, 2**exponent)
        if fraction.resolution is not None and fraction.resolution >= least_resolution:
            return fraction
    return Fraction(tuple(factors), {})


def _with_generators(factors: Sequence[str], generators: Mapping[str, Sequence[str]]) -> Fraction:
    """Returns the fraction with these generators. Raises ConfigError for a generator that is no product of two or more
    free factors, and where two factors would always change together."""
    for factor, parents in generators.items():
        key = f"generators.{factor}={list(parents)}"
        if len(set(parents)) < max(len(parents), 2):
            raise ConfigError(f"{key}: must name two factors or more, each once")
        for parent in parents:
            if parent in generators:
                raise ConfigError(f"{key}: {parent} is generated itself; name only factors without a generator")
    fraction = Fraction(tuple(factors), generators)
    if fraction.resolution is not None and fraction.resolution < 3:
        same = fraction.describe()[1]
        raise ConfigError(
            f"generators={dict(generators)}: two factors always change together ({same}); give other ones"
        )
    return fraction


def _of_minimum_aberration(factors: Sequence[str], runs: int) -> Fraction:
    """Returns the fraction of `runs` cells with the fewest short words. The last factors are generated, and of equally
    good sets of generators the first is taken, in the order of the factors."""
    count, basic = len(factors), runs.bit_length() - 1
    if runs >= 2**count:
        return Fraction(tuple(factors), {})
    columns = [column for column in range(1, runs) if column.bit_count() > 1]
    if count - basic > len(columns):
        raise ConfigError(f"runs={runs}: too few for {count} factors; at least {2 ** count.bit_length()}")
    if math.comb(len(columns), count - basic) > LARGEST_SEARCH:
        raise ConfigError(
            f"runs={runs}: too many ways to choose {count - basic} generators; give them, as `generators`"
        )

    def lengths(chosen: tuple[int, ...]) -> list[int]:
        words = products(column | 1 << basic + place for place, column in enumerate(chosen))
        return [sum(word.bit_count() == length for word in words) for length in range(3, count + 1)]

    best = min(itertools.combinations(columns, count - basic), key=lengths)
    named = {
        factors[basic + place]: [factors[index] for index in range(basic) if column >> index & 1]
        for place, column in enumerate(best)
    }
    return Fraction(tuple(factors), named)
