# SPDX-License-Identifier: LGPL-2.1-or-later
"""A copy of the tree with a build of its own, to be broken on purpose: for run-mutants and run-teeth."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build-broken"
SIMULATOR = "tests/sim/blockstep-sim"


class Tree:
    """Number `number`, so that several can be broken at the same time. What has been built stays for
    the next run. `targets` are below the build folder; `build` names it, for a tree that is built in
    several ways, with `options` for meson."""

    def __init__(self, number, targets, build="build", options=()):
        self.source, self.build = WORK / f"{number}/tree", WORK / f"{number}/{build}"
        self.targets = targets
        self.copy()
        if not (self.build / "build.ninja").exists():
            self.run("meson", "setup", self.build, self.source, "--buildtype=debugoptimized",
                     "-Doptimization=1", *options, check=True)
        self.make(check=True)

    def copy(self):
        """What has changed since the last time, so that little is built anew."""
        names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True,
                               check=True).stdout.split("\n")
        for name in filter(None, names):
            source, target = ROOT / name, self.source / name
            if source.is_file() and (not target.exists() or
                                     target.read_bytes() != source.read_bytes()):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)

    def run(self, *words, check=False, env=None, timeout=600):
        return subprocess.run([str(word) for word in words], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL, check=check, timeout=timeout,
                              env={**os.environ, **(env or {})}).returncode == 0

    def make(self, *targets, check=False):
        return self.run("ninja", "-C", self.build, *(targets or self.targets), check=check)
