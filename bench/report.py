# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is printed: a line per figure, with a verdict."""

import statistics
from dataclasses import dataclass

UNITS = {
    "/s": lambda v: f"{v / 1000:.1f}k/s",
    "B/s": lambda v: f"{v / 1e9:.2f} GB/s",
    "us": lambda v: f"{v:.1f} us",
    "ms": lambda v: f"{v:.2f} ms",
    "B": lambda v: f"{v / (1 << 20):.1f} MiB",
    "instr": lambda v: f"{v:.0f} instr",
}


# A generator that is this busy (of one processor, its one thread) cannot ask for more, and a server
# this near to those that have no disk to look at leaves nothing to gain by a better one.
BUSY_LIMIT = 0.95
CEILING_LIMIT = 0.9


@dataclass(frozen=True)
class Target:
    """`ratio`: ours to the peer's; else our figure itself, in its unit."""
    limit: float
    at_least: bool
    ratio: bool

    def met(self, value):
        return value >= self.limit if self.at_least else value <= self.limit

    def text(self, unit):
        sign = ">=" if self.at_least else "<="
        return f"{sign} {self.limit:g} x" if self.ratio else f"{sign} {UNITS[unit](self.limit)}"


def times_at_least(limit):
    return Target(limit, at_least=True, ratio=True)


def times_at_most(limit):
    return Target(limit, at_least=False, ratio=True)


def at_most(limit):
    return Target(limit, at_least=False, ratio=False)


@dataclass(frozen=True)
class Line:
    """Our values and, where there is a peer, its values, run for run in the same order. Without a
    target it is there to be read; with a `failure` there are no values. `busy`: how busy the load
    generator was in our runs; `ceilings`: what it got in each round from the best of the servers that
    hold no data. Where both say that there is no more to get, the ratio is only a lower bound."""
    name: str
    unit: str = ""
    ours: tuple = ()
    peer: str = ""
    peers: tuple = ()
    target: Target = None
    failure: str = ""
    busy: tuple = ()
    ceilings: tuple = ()

    @property
    def value(self):
        return statistics.median(self.ours)

    @property
    def peer_value(self):
        return statistics.median(self.peers)

    @property
    def ratio(self):
        return self.value / self.peer_value

    @property
    def spread(self):
        """Of the runs' own ratios, or of our values where there is no peer."""
        values = [a / b for a, b in zip(self.ours, self.peers)] if self.peers else self.ours
        return min(values), max(values)

    @property
    def verdict(self):
        if self.failure:
            return "VOID"
        if self.target is None:
            return "-"
        if self.target.met(self.ratio if self.target.ratio else self.value):
            return "ok"
        return "bound" if self.is_bound() else "MISSED"

    def is_bound(self):
        if not self.ceilings or self.ratio < 1:
            return False
        reached = statistics.median(a / b for a, b in zip(self.ours, self.ceilings))
        return statistics.median(self.busy) >= BUSY_LIMIT and reached >= CEILING_LIMIT

    def row(self):
        if self.failure:
            return [self.name, "", "", "", "", self.verdict]
        show = UNITS[self.unit]
        low, high = self.spread
        middle = f"{self.ratio:.2f} ({low:.2f}..{high:.2f})" if self.peers else \
            f"({show(low)}..{show(high)})"
        peer = f"{self.peer} {show(self.peer_value)}" if self.peers else ""
        target = self.target.text(self.unit) if self.target else ""
        return [self.name, show(self.value), peer, middle, target, self.verdict]

    def json(self):
        if self.failure:
            return {"name": self.name, "verdict": self.verdict, "failure": self.failure}
        result = {"name": self.name, "unit": self.unit, "ours": self.value,
                  "ours-runs": list(self.ours), "verdict": self.verdict}
        if self.peers:
            result |= {"peer-name": self.peer, "peer": self.peer_value,
                       "peer-runs": list(self.peers), "ratio": self.ratio,
                       "ratio-min": self.spread[0], "ratio-max": self.spread[1]}
        if self.target:
            result |= {"target": self.target.text(self.unit)}
        if self.ceilings:
            result |= {"generator-busy-runs": list(self.busy), "ceiling-runs": list(self.ceilings)}
        return result


WIDTHS = (31, 13, 22, 27, 14, 7)
HEADINGS = ("case", "ours", "peer", "ratio (min..max)", "target", "verdict")


def format_row(cells):
    return "".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS)).rstrip()
