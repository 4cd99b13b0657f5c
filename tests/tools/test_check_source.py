# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each rule of tools/check-source can fail, and accepts what is right."""

import subprocess
from pathlib import Path

import pytest

CHECKER = Path(__file__).resolve().parents[2] / "tools" / "check-source"
LICENSE = "/* SPDX-License-Identifier: LGPL-2.1-or-later */\n"


@pytest.fixture
def tree(tmp_path):
    """A small tree that passes; write(path, text) adds to it."""
    def write(path, text, license=LICENSE):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(license + text)
    write.root = tmp_path
    for floor in ("base", "loop", "block", "drivers"):
        write(f"src/{floor}/README.md", f"# src/{floor}\n", license="")
    write("src/base/err.h", "int err_set(void);\n")
    return write


def check(tree):
    """Exit code and complaints of the checker."""
    done = subprocess.run([CHECKER, "--root", tree.root], stdout=subprocess.PIPE, text=True,
                          check=False)
    return done.returncode, done.stdout.splitlines()[:-1]


def assert_refused(tree, path, rule, *words):
    code, complaints = check(tree)
    assert code == 1
    assert len(complaints) == 1, complaints
    assert complaints[0].startswith(path + ":") and complaints[0].endswith(f"[{rule}]")
    for word in words:
        assert word in complaints[0]


def assert_accepted(tree):
    assert check(tree) == (0, [])


def long_function(name, lines):
    return f"static int {name}(int x)\n{{\n" + "    x++;\n" * (lines - 3) + "}\n"


def test_a_clean_tree_passes(tree):
    assert_accepted(tree)


def test_a_floor_may_include_those_below_it(tree):
    tree("src/block/io.c", '#include "block/io.h"\n#include "base/err.h"\n#include "loop/loop.h"\n')
    assert_accepted(tree)


@pytest.mark.parametrize("floor, target", [
    ("base", "loop/loop.h"), ("loop", "block/node.h"), ("block", "drivers/table.h"),
    ("drivers", "replication/group.h"), ("block", "wire/nbd.h"),
])
def test_a_floor_may_not_include_those_above_or_beside_it(tree, floor, target):
    tree(f"src/{floor}/x.c", f'#include "{target}"\n')
    assert_refused(tree, f"src/{floor}/x.c:2", "floors", target, floor)


def test_an_include_names_its_floor(tree):
    tree("src/base/x.c", '#include "err.h"\n')
    assert_refused(tree, "src/base/x.c:2", "floors", "floor/file.h")


def test_a_new_folder_must_be_given_a_floor(tree):
    tree("src/attic/README.md", "# src/attic\n", license="")
    tree("src/attic/x.c", '#include "base/err.h"\n')
    assert_refused(tree, "src/attic/x.c:2", "floors", "no floor")


def test_a_library_is_included_only_where_it_belongs(tree):
    tree("src/base/json.c", "#include <json-c/json.h>\n")
    tree("src/block/x.c", "#include <liburing.h>\n")
    assert_refused(tree, "src/block/x.c:2", "floors", "liburing.h")


def test_a_public_header_includes_nothing_private(tree):
    tree("include/blockstep/x.h", '#include "base/err.h"\n')
    assert_refused(tree, "include/blockstep/x.h:2", "floors", "base/err.h")


@pytest.mark.parametrize("call", ["clock_gettime(0, 0)", "time(NULL)", "pread(1, 0, 0, 0)",
                                  "socket (1, 2, 3)", "rand()", "usleep(1)", "printf(\"x\")"])
def test_drivers_do_not_go_past_the_loop(tree, call):
    tree("src/drivers/x.c", f"int x(void)\n{{\n    return {call};\n}}\n")
    assert_refused(tree, "src/drivers/x.c:4", "raw_calls", call.split("(")[0].strip())


def test_hooks_comments_strings_and_other_names_are_no_calls(tree):
    tree("src/drivers/x.c", "int x(void)\n{\n    /* open() waits */\n    s(\"read(1)\");\n"
                            "    return d->open(n) + d.read(n) + file_open(n) + loop_time(l);\n}\n")
    assert_accepted(tree)


def test_the_loop_makes_the_calls_that_others_may_not(tree):
    tree("src/loop/x.c", "int x(void)\n{\n    return socket(1, 2, 3);\n}\n")
    assert_accepted(tree)


def test_a_raw_call_can_be_allowed_with_a_reason(tree):
    tree("src/drivers/x.c", "int x(void)\n{\n    return open(0);\n}\n")
    tree("tools/raw-calls.allow", "src/drivers/x.c open it never blocks\n", license="")
    assert_accepted(tree)


def test_an_exception_without_a_reason_is_refused(tree):
    tree("src/drivers/x.c", "int x(void)\n{\n    return 0;\n}\n")
    tree("tools/raw-calls.allow", "src/drivers/x.c open\n", license="")
    assert_refused(tree, "tools/raw-calls.allow:1", "raw_calls", "a reason")


def test_an_exception_that_is_no_longer_needed_is_refused(tree):
    tree("tools/raw-calls.allow", "src/drivers/x.c open it never blocks\n", license="")
    assert_refused(tree, "tools/raw-calls.allow:1", "raw_calls", "no longer needed")


def test_a_function_of_70_lines_is_accepted(tree):
    tree("src/base/x.c", long_function("x_do", 70))
    assert_accepted(tree)


def test_a_function_of_71_lines_is_refused(tree):
    tree("src/base/x.c", "int a(void);\n\n" + long_function("x_do", 71))
    assert_refused(tree, "src/base/x.c:4", "function_length", "x_do()", "71")


def test_a_long_function_can_be_allowed_with_a_reason(tree):
    tree("src/base/x.c", long_function("x_do", 90))
    tree("tools/long-functions.allow", "src/base/x.c x_do one table, read top down\n", license="")
    assert_accepted(tree)


def test_a_long_function_that_was_shortened_leaves_the_list(tree):
    tree("src/base/x.c", long_function("x_do", 60))
    tree("tools/long-functions.allow", "src/base/x.c x_do one table, read top down\n", license="")
    assert_refused(tree, "tools/long-functions.allow:1", "function_length", "no longer needed")


@pytest.mark.parametrize("line", [
    "static int opened;", "static struct node *last = NULL;", "int opened = 0;",
    "static const char *names[] = {", "static char line[80];", "struct list nodes;",
    "static const struct driver *found;",
])
def test_a_driver_has_no_mutable_statics(tree, line):
    tree("src/drivers/x.c", line + "\n")
    assert_refused(tree, "src/drivers/x.c:2", "no_statics")


def test_a_static_inside_a_driver_s_function_is_found_too(tree):
    tree("src/drivers/x.c", "int x(void)\n{\n    static int calls;\n    return calls++;\n}\n")
    assert_refused(tree, "src/drivers/x.c:4", "no_statics")


@pytest.mark.parametrize("line", [
    "static const int limit = 3;", "static const char *const names[] = {",
    "const struct driver driver_file = {", "static int file_open(struct node *n);",
    "struct node;", "extern const struct driver driver_file;", "typedef int (*hook)(void);",
])
def test_constants_and_declarations_are_no_statics(tree, line):
    tree("src/drivers/x.c", line + "\n")
    assert_accepted(tree)


@pytest.mark.parametrize("path", ["src/base/x.c", "src/base/x.h", "tests/system/test_x.py",
                                  "src/base/meson.build", "Makefile"])
def test_a_file_without_its_license_is_refused(tree, path):
    tree(path, "x\n", license="")
    assert_refused(tree, f"{path}:1", "license")


def test_a_script_carries_its_license_after_the_interpreter(tree):
    tree("tools/x", "#!/bin/bash\n# SPDX-License-Identifier: LGPL-2.1-or-later\n", license="")
    assert_accepted(tree)


@pytest.mark.parametrize("text, word", [("int a;\t\n", "tab"), ("int a; \n", "space at the end"),
                                        ("int a;", "newline")])
def test_white_space_is_kept_clean(tree, text, word):
    tree("src/base/x.c", text)
    code, complaints = check(tree)
    assert code == 1 and word in complaints[0] and "[white_space]" in complaints[0]


@pytest.mark.parametrize("where", ["../" + "shared/design", "/ho" + "me/ann/x", "/ro" + "ot/x"])
def test_nothing_points_at_one_machine(tree, where):
    tree("README.md", f"See {where}\n", license="")
    assert_refused(tree, "README.md:1", "own_machine")


def test_each_folder_of_src_has_a_readme(tree):
    tree("src/wire/x.c", "int x(void);\n")
    assert_refused(tree, "src/wire:1", "readme")


def test_a_dead_link_is_refused(tree):
    tree("README.md", "[there](docs/there.md), [here](src/base/err.h#x), [out](https://x.org)\n",
         license="")
    assert_refused(tree, "README.md:1", "links", "docs/there.md")


def test_build_directories_are_not_looked_at(tree):
    tree("build/x.c", "\t\n", license="")
    tree("build-asan/x.c", "\t\n", license="")
    assert_accepted(tree)
