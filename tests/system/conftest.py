# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures of the system tests."""

import functools
import shutil
import tempfile
from pathlib import Path

import pytest

import tls_files
from blockstep import HEARD, Daemons
from qmp_schema import Schema


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "commands(*names): the test changes state with these commands of the control "
        "protocol, or asks by them, and looks at what has become of it")


@pytest.fixture
def folder():
    """A folder whose path is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="bs-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def papers():
    """Folders of certificates and keys, see tls_files.py. Not to be changed."""
    path = Path(tempfile.mkdtemp(prefix="bs-tls-"))
    tls_files.make_all(path)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def daemons(folder):
    all_daemons = Daemons(folder)
    yield all_daemons
    all_daemons.clean_up()


@functools.cache
def our_schema():
    path = Path(tempfile.mkdtemp(prefix="bs-"))
    daemons = Daemons(path)
    try:
        return Schema(daemons.start().qmp.cmd("query-qmp-schema"))
    finally:
        daemons.clean_up()
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(autouse=True)
def heard(request):
    """Whatever our daemons say in a test is as their schema tells, and a test runs the commands that it
    is marked with, with success."""
    HEARD.forget()
    yield
    answers, events = HEARD.answers, HEARD.events
    for mark in request.node.iter_markers("commands"):
        assert not set(mark.args) - answers.keys(), "marked, but not run with success"
    if answers or events:
        schema = our_schema()
        wrong = [problem for name, values in answers.items() for value in values
                 for problem in schema.check_answer(name, value)]
        wrong += [problem for name, values in events.items() for value in values
                  for problem in schema.check_event(name, value)]
        assert not wrong, "not as the schema says:\n" + "\n".join(
            " ".join(problem) for problem in sorted(set(wrong)))
