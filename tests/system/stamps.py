# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a sector may legally hold, when every written sector is stamped with the number of its write.

A change is a write, zeroes or a discard of some sectors of a disk. It takes effect at one moment
between its beginning and its end; one that was never answered may take effect until it is settled, or
never. A view is a set of disks that somebody sees; for each sector it keeps the changes whose content
may be there. It is what tests/sim/oracle.c is for the simulator, for real time and real threads.
"""

import itertools
import threading

SECTOR = 512
NEVER = float("inf")


class Violation(AssertionError):
    """A view shows what it must not."""


class Change:
    __slots__ = ("number", "kind", "disk", "first", "count", "begin", "end", "sure")

    def __init__(self, number, kind, disk, first, count, begin):
        self.number, self.kind, self.disk, self.first, self.count = number, kind, disk, first, count
        self.begin, self.end, self.sure = begin, NEVER, False

    def stamp(self, sector):
        if self.kind != "write":
            return 0
        return self.number << 32 | (self.disk + 1) << 24 | sector

    def content(self):
        return b"".join(self.stamp(sector).to_bytes(8, "little") * (SECTOR // 8)
                        for sector in range(self.first, self.first + self.count))

    def __str__(self):
        return f"{self.kind} #{self.number} ({self.begin}..{self.end}{'' if self.sure else '?'})"


class History:
    """Numbers the changes, and tells the time."""

    def __init__(self):
        self.numbers = itertools.count(1)
        self.moments = itertools.count(1)
        self.nothing = Change(0, "zero", 0, 0, 0, 0)
        self.nothing.end, self.nothing.sure = 0, True
        self.open = set()
        self.lock = threading.Lock()

    def now(self):
        return next(self.moments)

    def begin(self, kind, disk, first, count, views):
        change = Change(next(self.numbers), kind, disk, first, count, self.now())
        with self.lock:
            self.open.add(change)
            for view in views:
                view.add(change)
        return change

    def end(self, change):
        """It was answered, with success."""
        change.end, change.sure = self.now(), True
        with self.lock:
            self.open.discard(change)

    def settle(self):
        """Who could carry out what was never answered has gone."""
        with self.lock:
            for change in self.open:
                change.end = self.now()
            self.open.clear()


class View:
    """The disks as somebody sees them. One that began with a checkpoint has what came with that, which
    nothing but its own changes, those begun since `own_from`, makes certain afterwards."""

    def __init__(self, history, disks, sectors, whose):
        self.history, self.disks, self.sectors, self.whose = history, disks, sectors, whose
        self.own_from = 0
        self.cells = [[[history.nothing] for _ in range(sectors)] for _ in range(disks)]

    def add(self, change):
        for sector in range(change.first, change.first + change.count):
            self.cells[change.disk][sector].append(change)

    def cut(self, begin, end, whose):
        """What a checkpoint between these moments may have taken of it."""
        view = View(self.history, 0, self.sectors, whose)
        view.disks, view.own_from = self.disks, end
        view.cells = [[cell[:] if len(cell) == 1 else
                       [change for change in cell
                        if change.begin < end and not self.is_over(cell, change, begin)]
                       for cell in disk] for disk in self.cells]
        return view

    def is_over(self, cell, change, moment):
        """Whether something later stood there for sure before that moment."""
        return any(other.sure and other.kind != "discard" and other.end < moment and
                   (other.begin > change.end or other.begin > self.own_from > change.begin)
                   for other in cell if other.begin >= self.own_from)

    def look(self, disk, first, data, begin, clear=True):
        """Raises when a read that began at that moment must not see this. Returns (sector, changes that
        it may have seen) where more than one is known. `clear`: no sector may be a mixture."""
        found = []
        for index, stamp in enumerate(memoryview(data).cast("Q")[::SECTOR // 8]):
            sector = first + index
            cell = self.cells[disk][sector]
            if len(cell) > 1:
                # An unordered neighbour may be under way just now.
                if not clear and any(change.end > begin for change in cell):
                    continue
                found.append((sector, self.seen(cell, disk, sector, stamp, begin)))
            elif cell[0].stamp(sector) != stamp:
                self.seen(cell, disk, sector, stamp, begin)
            part = data[index * SECTOR:(index + 1) * SECTOR]
            if part != part[:8] * (SECTOR // 8):
                raise Violation(f"{self.whose}: disk {disk} sector {sector} is a mixture")
        return found

    def seen(self, cell, disk, sector, stamp, begin):
        may_be = [change for change in list(cell) if not self.is_over(cell, change, begin)]
        seen = [change for change in may_be if change.stamp(sector) == stamp]
        if not seen:
            what = f"write #{stamp >> 32}" if stamp else "zeroes"
            raise Violation(f"{self.whose}: disk {disk} sector {sector} is {what} (stamp {stamp:#x}), "
                            f"and may be {', '.join(map(str, may_be))}")
        return seen

    def look_at_all(self, contents, begin, mirrored=False):
        """Contents of all disks, read while nobody changed them. Afterwards it is just that; `mirrored`:
        but what was discarded may still be something else on the other side."""
        found = [self.look(disk, 0, data, begin) for disk, data in enumerate(contents)]
        self.check_cut(found)
        for disk, sectors in enumerate(found):
            for sector, seen in sectors:
                cell = self.cells[disk][sector]
                if mirrored and any(change.kind == "discard" for change in cell):
                    seen = [change for change in cell if not self.is_over(cell, change, begin)]
                else:
                    seen = seen[-1:]
                cell[:] = seen

    def check_cut(self, found):
        """A write is seen whole or not at all, and with it all that had ended before it began."""
        seen, missing = set(), set()
        for disk, sectors in enumerate(found):
            for sector, changes in sectors:
                if len(changes) == 1:
                    seen.update(changes)
                    missing.update(change for change in self.cells[disk][sector]
                                   if change.begin > changes[0].end and change.kind != "discard")
        # Those that a killed primary did not answer, and the own ones, are no part of it.
        seen, missing = ({change for change in changes
                          if change.sure and change.begin < self.own_from}
                         for changes in (seen, missing))
        torn = seen & missing
        if torn:
            raise Violation(f"{self.whose}: parts of {min(torn, key=lambda c: c.number)}")
        if not seen or not missing:
            return
        first, last = min(missing, key=lambda c: c.end), max(seen, key=lambda c: c.begin)
        if first.end < last.begin:
            raise Violation(f"{self.whose}: {last} without {first}, which had ended before")
