# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures of the system tests."""

import shutil
import tempfile
from pathlib import Path

import pytest

import tls_files
from blockstep import Daemons


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
