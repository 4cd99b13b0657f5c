# SPDX-License-Identifier: LGPL-2.1-or-later
"""docs/drivers.md says what the option tables say, and its examples work.

With BLOCKSTEP_UPDATE_DOCS=1 the option lists in it are written anew."""

import os
import re

import pytest

from blockstep import BLOCKSTEPD, ROOT, make_file, run

PAGE = ROOT / "docs/drivers.md"
BLOCK = re.compile(r"<!-- options: (\S+) -->\n```\n(.*?)```\n", re.DOTALL)
# These want somebody at the other end.
NOT_RUN = {"nbd", "replication"}


def drivers():
    return run(BLOCKSTEPD, "--blockdev", "help").split()[1:]


def options(driver):
    """The help text without its title."""
    lines = run(BLOCKSTEPD, "--blockdev", f"{driver},help").splitlines()
    return "".join(line.strip() + "\n" for line in lines[1:])


def sections():
    """Text by the driver whose section it is."""
    parts = re.split(r"^## (\S+)$", PAGE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def test_the_page_has_every_driver_with_its_options():
    if os.environ.get("BLOCKSTEP_UPDATE_DOCS"):
        PAGE.write_text(BLOCK.sub(
            lambda m: f"<!-- options: {m[1]} -->\n```\n{options(m[1])}```\n", PAGE.read_text()))
    page = PAGE.read_text()
    described = dict(BLOCK.findall(page))
    assert sorted(described) == sorted(drivers())
    for driver, text in described.items():
        assert text == options(driver), f"{driver}: see BLOCKSTEP_UPDATE_DOCS in {__file__}"
        assert f"[{driver}](#{driver})" in page, f"{driver} is not in the first table"
        assert f"<!-- options: {driver} -->" in sections()[driver]


@pytest.mark.parametrize("driver", [name for name, _ in BLOCK.findall(PAGE.read_text())])
def test_its_example_works(daemons, folder, driver):
    examples = re.findall(r"^ +(--blockdev|--object) (\S+)$", sections()[driver], re.MULTILINE)
    assert examples, "no example"
    assert any(f"driver={driver}," in text for _, text in examples)
    if driver in NOT_RUN:
        return
    for name in ("disk.raw", "a.raw", "b.raw", "c.raw"):
        make_file(folder / name, 64 << 20)
    make_file(folder / "changes.log", 0)
    daemons.cli("image", "create", "-f", "overlay", folder / "a.overlay", "64M")
    daemon = daemons.start(*(word for option, text in examples for word in
                             (option, text.replace("filename=", f"filename={folder}/"))))
    made = {node["drv"] for node in daemon.qmp.cmd("query-named-block-nodes")}
    assert driver in made
