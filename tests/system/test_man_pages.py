# SPDX-License-Identifier: LGPL-2.1-or-later
"""The man pages know what the programs know, and the other way round."""

import re
import shutil
import subprocess

import pytest

from blockstep import BLOCKSTEP, BLOCKSTEPD, DEADLINE_S, ROOT

MAN = ROOT / "docs/man"
# A page's headings of options that several verbs take, and how a verb's part names them.
SHARED = {"serving options": "Serving options", "client options": "Client options"}
# Understood, and documented, but not in the help of these verbs: it is for tests.
NOT_IN_HELP = {"primary": {"--loop-features-off"}, "secondary": {"--loop-features-off"}}


def help_of(program, *words):
    return subprocess.run([program, *words, "--help"], capture_output=True, text=True, check=True,
                          timeout=DEADLINE_S).stdout


def options_in_help(text):
    lines = re.findall(r"^\s{2,}((?:-\w, )?--[a-z][\w-]*(?:, --[a-z][\w-]*)*)", text, re.M)
    return {name for line in lines for name in line.split(", ")} | {"--help"}


def parts(page):
    """The page's text by its headings."""
    text = (MAN / page).read_text(encoding="utf-8")
    pieces = re.split(r"^##? (.*)$", text, flags=re.M)
    return dict(zip(pieces[1::2], pieces[2::2]))


def options_in_part(text):
    """What a definition's head names in bold: *-n*, *--name* _NAME_"""
    heads = [line for line in text.splitlines() if line.startswith("*-")]
    return {name for head in heads for name in re.findall(r"\*(--?[a-z][\w-]*)\*", head)}


def options_of_verb(page, verb):
    found = options_in_part(page[verb])
    text = " ".join(page[verb].split())
    for words, heading in SHARED.items():
        if f"*{words}*" in text:
            found |= options_in_part(page[heading])
    return found


def verbs_in_help():
    return re.findall(r"^  ([a-z]+) +\S", help_of(BLOCKSTEP), re.M)


def test_every_verb_of_the_program_is_in_the_page_and_no_other():
    page = (MAN / "blockstep.1.scd").read_text(encoding="utf-8")
    verbs = page.split("# VERBS\n")[1].split("\n# OPTIONS\n")[0]
    assert re.findall(r"^## (.*)$", verbs, re.M) == verbs_in_help()


@pytest.mark.parametrize("verb", verbs_in_help() if BLOCKSTEP.exists() else [])
def test_every_option_of_a_verb_is_in_the_page_and_no_other(verb):
    said = options_in_help(help_of(BLOCKSTEP, verb))
    written = options_of_verb(parts("blockstep.1.scd"), verb)
    # -h and --help are told once for all verbs.
    assert written - {"--help", "-h"} - NOT_IN_HELP.get(verb, set()) == said - {"--help", "-h"}


def test_every_option_of_the_daemon_is_in_the_page_and_no_other():
    page = parts("blockstepd.8.scd")
    assert options_in_part(page["OPTIONS"]) == options_in_help(help_of(BLOCKSTEPD))


def test_every_option_that_the_sources_know_is_in_a_help_text():
    """Nothing is understood in silence."""
    known = set()
    for path in (ROOT / "src/bin").glob("*.[ch]"):
        known |= set(re.findall(r'\{"([a-z][a-z-]*)",\s*(?:no|required)_argument',
                                path.read_text(encoding="utf-8")))
    texts = [help_of(BLOCKSTEPD), help_of(BLOCKSTEP)]
    texts += [help_of(BLOCKSTEP, verb) for verb in verbs_in_help()]
    said = set().union(*map(options_in_help, texts))
    assert {f"--{name}" for name in known} <= said


def test_words_of_verbs_are_in_the_page():
    for verb in verbs_in_help():
        for word in set(re.findall(rf"blockstep {verb} ([a-z]+)\b", help_of(BLOCKSTEP, verb))):
            assert f"*{verb} {word}*" in parts("blockstep.1.scd")[verb]


@pytest.mark.skipif(not shutil.which("scdoc"), reason="scdoc is not installed")
@pytest.mark.parametrize("page", ["blockstep.1", "blockstepd.8"])
def test_the_pages_are_well_formed(page):
    source = (MAN / f"{page}.scd").read_text(encoding="utf-8")
    done = subprocess.run(["scdoc"], input=source, capture_output=True, text=True, check=False,
                          timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    if shutil.which("groff"):
        done = subprocess.run(["groff", "-man", "-Tutf8", "-ww", "-z"], input=done.stdout, text=True,
                              capture_output=True, check=False, timeout=DEADLINE_S)
        assert done.stderr == ""
