# SPDX-License-Identifier: LGPL-2.1-or-later
"""The unit files: systemd understands them, and their sandbox is as tight as they say."""

import json
import re
import shutil
import subprocess

import pytest

from blockstep import BLOCKSTEP, BUILD, DEADLINE_S, ROOT

UNITS = BUILD / "packaging/systemd"
SERVICES = ["blockstep@.service", "blockstepd@.service"]
# Of systemd-analyze security, 0 to 10, less is better; "OK" begins below 3.
MAX_EXPOSURE = 1.2

pytestmark = pytest.mark.skipif(not shutil.which("systemd-analyze") or not UNITS.exists(),
                                reason="there is no systemd-analyze, or no unit files")


def analyze(*words):
    return subprocess.run(["systemd-analyze", *map(str, words)], capture_output=True, text=True,
                          check=False, timeout=DEADLINE_S)


@pytest.fixture
def units(folder):
    """Instances of the units, with the programs of this build."""
    installed = r"^(ExecStart=)\S*/(blockstepd?) "
    for name in SERVICES:
        text = (UNITS / name).read_text(encoding="utf-8")
        assert re.search(installed, text, re.M)
        text = re.sub(installed, rf"\g<1>{BLOCKSTEP.parent}/\g<2> ", text, flags=re.M)
        (folder / name.replace("@", "@vm1")).write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "packaging/systemd/blockstepd@.socket", folder / "blockstepd@vm1.socket")
    return folder


def test_systemd_has_nothing_to_say_about_the_units(units):
    done = analyze("verify", "--man=no", *sorted(units.glob("*@vm1.*")))
    said = [line for line in done.stderr.splitlines() if "blockstep" in line]
    assert done.returncode == 0 and said == [], done.stderr


@pytest.mark.parametrize("service", SERVICES)
def test_the_sandbox_stays_tight(units, service):
    done = analyze("security", "--offline=true", "--json=short", "--no-pager",
                   f"--threshold={MAX_EXPOSURE * 10:.0f}", units / service.replace("@", "@vm1"))
    assert done.returncode == 0, done.stdout + done.stderr
    open_doors = {row["json_field"] for row in json.loads(done.stdout)
                  if row["set"] is False and row["json_field"]}
    # What a daemon that talks over TCP, to clients that are not in a list, has to leave open.
    assert open_doors <= {"IPAddressDeny", "PrivateNetwork", "RestrictAddressFamilies_AF_INET_INET6",
                          "RestrictAddressFamilies_AF_UNIX", "PrivateDevices", "RootDirectory",
                          "ProcSubset", "DeviceAllow", "RootDirectoryOrRootImage"}, open_doors


def test_the_system_calls_of_io_uring_pass_the_filter(units):
    text = (units / "blockstep@vm1.service").read_text(encoding="utf-8")
    for call in ["io_uring_setup", "io_uring_enter", "io_uring_register"]:
        assert re.search(rf"^SystemCallFilter=[^~].*\b{call}\b", text, re.M)
