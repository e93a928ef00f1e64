"""Choose between 0 and 1 for many variables at once, as cheaply as can be: a minimum cut.

The vertices of a graph are the variables, its source is 0 and its sink is 1. A cut gives each variable the value of its
side, and the arcs from the 0 side to the 1 side are what it costs. The costs of a pair can be made of such arcs if they
are in sum not less where the two differ than where they agree (V. Kolmogorov and R. Zabih, "What energy functions can
be minimized via graph cuts?", 2004). Where a pair rather differs, one of the two is counted upside down, and with it
all that it is to agree with. A cost that is paid once, however many differ, takes an auxiliary vertex for each
direction, as a net does in the partitioning of circuits (E. Lawler, "Cutsets and partitions of hypergraphs", 1973).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import networkx as nx
from networkx.algorithms.flow import boykov_kolmogorov

Costs: TypeAlias = tuple[tuple[int, int], tuple[int, int]]
"""Of a pair: ``costs[value of the one][value of the other]``."""


@dataclass
class Cut:
    """Variables are numbered. Number 0 is the one that is 0 for certain, and 1 the one that is 1."""

    count: int = 2
    spreads: list[tuple[int, tuple[int, ...], int]] = field(default_factory=list)
    pairs: list[tuple[int, int, Costs]] = field(default_factory=list)

    def variable(self) -> int:
        """The number of a new variable."""
        self.count += 1
        return self.count - 1

    def agree(self, one: int, others: Sequence[int], weight: int) -> None:
        """``weight`` is to be paid, once, where any of ``others`` differs from ``one``."""
        self.spreads.append((one, tuple(dict.fromkeys(others)), weight))

    def pair(self, one: int, other: int, costs: Costs) -> None:
        """What the values of two variables cost together."""
        self.pairs.append((one, other, costs))

    def solve(self) -> list[int]:
        """The value of each variable.

        It is the cheapest choice, except where pairs that rather differ close a circle of an odd number of them: then
        such a pair is given what is cheapest for itself.
        """
        signs = _Signs(self.count)
        # Where 0 and 1 are wanted for certain the weight is to be paid in any case.
        spreads = [each for each in self.spreads if len({0, 1} & {each[0], *each[1]}) <= 1]
        for one, others, _ in spreads:
            free = [each for each in (one, *others) if each > 1]
            for each in free[1:]:
                signs.link(free[0], each, differ=False)
        known = {0: 0, 1: 1}
        for one, other, costs in sorted(self.pairs, key=lambda pair: _discord(pair[2]) > 0):
            is_free = one > 1 and other > 1
            if is_free and _discord(costs) and not signs.link(one, other, differ=_discord(costs) > 0):
                known[one], known[other] = _cheapest(costs)
        arcs = _Arcs(signs, known, self.count)
        for one, others, weight in spreads:
            arcs.spread(one, others, weight)
        for one, other, costs in self.pairs:
            arcs.pair(one, other, costs)
        ones = arcs.cut()
        return [known[each] if each in known else int(each in ones) ^ signs.find(each)[1] for each in range(self.count)]


def _cheapest(costs: Costs) -> tuple[int, int]:
    return min(((0, 0), (0, 1), (1, 0), (1, 1)), key=lambda values: costs[values[0]][values[1]])


def _discord(costs: Costs) -> int:
    """Above 0 where the pair rather differs, below 0 where it rather agrees."""
    return costs[0][0] + costs[1][1] - costs[0][1] - costs[1][0]


class _Signs:
    """Variables that are linked, and which of them are counted upside down: a union-find with parity."""

    def __init__(self, count: int) -> None:
        self.above = list(range(count))
        self.turned = [0] * count

    def find(self, each: int) -> tuple[int, int]:
        """The variable that stands for all that are linked with this one, and whether it is upside down to it."""
        path: list[int] = []
        while self.above[each] != each:
            path.append(each)
            each = self.above[each]
        turned = 0
        for passed in reversed(path):
            turned ^= self.turned[passed]
            self.above[passed], self.turned[passed] = each, turned
        return each, turned

    def link(self, one: int, other: int, *, differ: bool) -> bool:
        """Count the two upside down to each other, or not; False where that was settled otherwise."""
        (left, turned), (right, also) = self.find(one), self.find(other)
        if left == right:
            return turned ^ also == differ
        # The lower number stays as it is.
        left, right = sorted((left, right))
        self.above[right], self.turned[right] = left, turned ^ also ^ differ
        return True


class _Arcs:
    """The graph, an own one for each set of linked variables."""

    def __init__(self, signs: _Signs, known: dict[int, int], count: int) -> None:
        self.signs, self.known, self.count = signs, known, count
        self.capacities: dict[int, dict[tuple[int, int], int]] = defaultdict(lambda: defaultdict(int))
        """By the variable that stands for the set."""

    def spread(self, one: int, others: Sequence[int], weight: int) -> None:
        free = [each for each in (one, *others) if each not in self.known]
        if not free:
            return
        root, turned = self.signs.find(free[0])
        start = self._side(one, turned)
        ends = list(dict.fromkeys(self._side(each, turned) for each in others))
        self._fan(root, start, ends, weight, outwards=True)
        self._fan(root, start, ends, weight, outwards=False)

    def _side(self, each: int, turned: int) -> int:
        return self.known[each] ^ turned if each in self.known else each

    def _fan(self, root: int, start: int, ends: list[int], weight: int, *, outwards: bool) -> None:
        """``weight`` where start is 0 and any end is 1; where start is 1 and any end is 0 if not ``outwards``."""
        far = int(outwards)
        ends = [far] if far in ends else [each for each in ends if each > 1]
        if start == far or not ends:
            return
        hub = ends[0]
        if len(ends) > 1:
            hub, self.count = self.count, self.count + 1
            for end in ends:
                self._arc(root, hub, end, _ENDLESS, outwards=outwards)
        self._arc(root, start, hub, weight, outwards=outwards)

    def _arc(self, root: int, tail: int, head: int, weight: int, *, outwards: bool = True) -> None:
        if weight:
            self.capacities[root][(tail, head) if outwards else (head, tail)] += weight

    def pair(self, one: int, other: int, costs: Costs) -> None:
        match one in self.known, other in self.known:
            case True, True:
                return
            case True, False:
                self._alone(other, *costs[self.known[one]])
            case False, True:
                self._alone(one, *(row[self.known[other]] for row in costs))
            case _:
                # In the order of the upright: x(a, b) = x(0, 0) + a (x(1, 0) - x(0, 0)) + b (x(1, 1) - x(1, 0)) + what
                # remains for a = 0, b = 1.
                (root, left), (_, right) = self.signs.find(one), self.signs.find(other)
                neither, second = costs[left][right], costs[left][1 ^ right]
                first, both = costs[1 ^ left][right], costs[1 ^ left][1 ^ right]
                self._alone(one, *((neither, first) if not left else (first, neither)))
                self._alone(other, *((first, both) if not right else (both, first)))
                self._arc(root, one, other, first + second - neither - both)

    def _alone(self, each: int, zero: int, one: int) -> None:
        """What the values of one variable cost."""
        root, turned = self.signs.find(each)
        costs = (one, zero) if turned else (zero, one)
        self._arc(root, 0, each, max(costs[1] - costs[0], 0))
        self._arc(root, each, 1, max(costs[0] - costs[1], 0))

    def cut(self) -> set[int]:
        """The vertices on the side of the sink."""
        ones: set[int] = set()
        for capacities in self.capacities.values():
            network = nx.DiGraph()
            network.add_nodes_from((0, 1))
            network.add_weighted_edges_from(
                ((tail, head, weight) for (tail, head), weight in capacities.items()), weight="capacity"
            )
            _, (_, last) = nx.minimum_cut(network, 0, 1, flow_func=boykov_kolmogorov)
            ones |= last
        return ones


_ENDLESS = 1 << 62
"""More than all that can be to pay."""
