# SPDX-License-Identifier: LGPL-2.1-or-later
"""The completion of bash: in a real bash, asked as readline asks, and typed into a terminal."""

import os
import pty
import select
import shutil
import socket
import subprocess
import time

import pytest

from blockstep import BLOCKSTEP, BUILD, DEADLINE_S

SCRIPT = BUILD / "completions/blockstep"
# What readline does with a line: cut it into words, call the function that `complete -p` names.
ASK = r"""
set -u
source "$1"
program=$2 COMP_LINE=$3 COMP_POINT=${#3} COMP_TYPE=9 COMP_KEY=9
[[ $(complete -p "$program") =~ -F\ ([^ ]+) ]] || exit 3
read -ra COMP_WORDS <<<"$(sed 's/[=:]/ & /g' <<<"$COMP_LINE")"
[[ $COMP_LINE != *' ' ]] || COMP_WORDS+=('')
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
COMPREPLY=()
"${BASH_REMATCH[1]}" "$program" "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}" || exit 4
[[ ${#COMPREPLY[@]} -eq 0 ]] || printf '%s\n' "${COMPREPLY[@]}"
"""

pytestmark = pytest.mark.skipif(not SCRIPT.exists() or not shutil.which("bash"),
                                reason="the build has no completion")


def complete(line, cwd=None, env=None):
    done = subprocess.run(["bash", "--norc", "-c", ASK, "ask", SCRIPT, line.split()[0], line],
                          capture_output=True, text=True, check=False, cwd=cwd, timeout=DEADLINE_S,
                          env={**os.environ, **(env or {})})
    assert done.returncode == 0, f"{line}: {done.returncode} {done.stderr}"
    assert done.stderr == "", done.stderr
    return done.stdout.splitlines()


def help_of(*words):
    return subprocess.run([BLOCKSTEP, *words, "--help"], capture_output=True, text=True, check=True,
                          timeout=DEADLINE_S).stdout


def test_all_verbs_of_the_help_are_offered():
    verbs = [line.split()[0] for line in help_of().splitlines() if line.startswith("  ")]
    assert len(verbs) >= 9
    assert complete("blockstep ") == [*verbs, "--help", "--version"]
    assert complete("blockstep chec") == ["checkpoint"]
    assert complete("blockstep nonsense") == []


def test_options_of_the_verb_alone_are_offered():
    assert complete("blockstep failover --w") == ["--wait"]
    assert complete("blockstep status --q") == ["--qmp"]
    assert complete("blockstep checkpoint --quit") == []
    assert "--fresh" in complete("blockstep secondary --name x --")
    assert "--fresh" not in complete("blockstep primary --")
    assert "--blockdev" in complete("blockstepd -")


def test_values_are_offered_by_their_kind(folder):
    (folder / "disk.raw").touch()
    (folder / "over").mkdir()
    assert complete("blockstep status -o ") == ["text", "json"]
    assert complete("blockstep status --output=j") == ["json"]
    assert complete("blockstep primary --log-level w") == ["warning"]
    assert complete("blockstep image create -f o") == ["overlay"]
    assert complete("blockstep image inf") == ["info"]
    assert complete("blockstep image info d", cwd=folder) == ["disk.raw"]
    assert complete("blockstep secondary --overlays ", cwd=folder) == ["over/"]
    assert complete("blockstep secondary --disk di", cwd=folder) == ["disk.raw"]
    assert complete("blockstep doctor d", cwd=folder) == ["disk.raw"]
    assert complete("blockstep primary --peer ") == []


def test_the_part_behind_a_colon_or_equals_sign_is_what_bash_replaces(folder):
    (folder / "sock").touch()
    assert complete("blockstep primary --export u") == ["unix:"]
    assert complete("blockstep primary --export unix:s", cwd=folder) == ["sock"]
    assert complete("blockstep wait --for link=") == ["up", "down"]
    assert complete("blockstepd --blockdev fil") == ["file"]
    assert complete("blockstepd --blockdev file,fil") == ["file,filename="]
    assert complete("blockstepd --blockdev file,node-name=a,aio=in") == ["inline"]
    assert complete("blockstepd --blockdev driver=file,lock") == ["file,locking="]
    assert "overlay" in complete("blockstepd --blockdev ")
    assert complete("blockstepd --export nbd,wr") == ["nbd,writable="]
    assert complete("blockstepd --qmp unix:/nowhere/x,role=p") == ["peer"]


def test_names_of_daemons_that_run_are_offered(folder):
    (folder / "dead.qmp").touch()
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(str(folder / "vm1.qmp"))
        env = {"BLOCKSTEP_RUNTIME_DIR": str(folder)}
        assert complete("blockstep status --name ", env=env) == ["vm1"]
        assert complete("blockstep primary --name ", env=env) == []


def test_the_tab_key_completes_in_a_terminal():
    pid, terminal = pty.fork()
    if pid == 0:
        environment = {"PATH": os.environ["PATH"], "PS1": "ready> ", "TERM": "dumb"}
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environment)
    seen = b""

    def read_until(text):
        nonlocal seen
        end = time.monotonic() + DEADLINE_S
        while text not in seen:
            assert select.select([terminal], [], [], end - time.monotonic())[0], seen
            seen += os.read(terminal, 4096)

    try:
        read_until(b"ready> ")
        os.write(terminal, f"source {SCRIPT}; echo loaded-$((1 + 1))\n".encode())
        read_until(b"loaded-2")
        os.write(terminal, b"echo blockstep; blockstep chec\t")
        read_until(b"blockstep checkpoint ")
        os.write(terminal, b"--pe\t")
        read_until(b"checkpoint --peer-control ")
    finally:
        os.write(terminal, b"\x03exit\n")
        os.close(terminal)
        os.waitpid(pid, 0)
