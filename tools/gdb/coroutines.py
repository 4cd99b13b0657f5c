# SPDX-License-Identifier: LGPL-2.1-or-later
"""Prints the suspended coroutines of a Blockstep process or core, each with its back trace.

    gdb -p PID -x tools/gdb/coroutines.py -ex 'coroutines'         names and where they wait
    gdb -p PID -x tools/gdb/coroutines.py -ex 'coroutines full'    whole back traces

A suspended coroutine has saved its callee-saved registers on its own stack and its stack pointer in
`struct co` (co_switch in src/loop/co.c). So its back trace is that of the current thread with rsp,
rbp and rip set to what was saved; all are put back afterwards. x86-64.
"""
import gdb

SUSPENDED = 2  # enum co_state
FRAMES_OF_THE_SWITCH = ("co_switch", "co_leave", "co_wait", "co_wait_until", "co_queue_wait",
                        "co_queue_wait_until")


def loops():
    """The loops of all threads: the one that runs on each, if any."""
    found = {}
    for thread in gdb.selected_inferior().threads():
        thread.switch()
        loop = gdb.parse_and_eval("current_loop")
        if int(loop) != 0:
            found[int(loop)] = loop
    return found.values()


def alive(loop):
    head = loop["coroutines"]["alive"]["head"]
    offset = [f.bitpos // 8 for f in gdb.lookup_type("struct co").fields() if f.name == "pool_link"][0]
    link = head["next"]
    while int(link) != int(head.address):
        yield gdb.Value(int(link) - offset).cast(gdb.lookup_type("struct co").pointer())
        link = link["next"]


def frames_of(co):
    """The names of the functions on a suspended coroutine's stack, innermost first."""
    words = gdb.lookup_type("unsigned long").pointer()
    stack = int(co["stack_pointer"])
    saved = [int(gdb.Value(stack).cast(words)[i]) for i in range(7)]  # r15..r12 rbx rbp rip
    before = {name: int(gdb.parse_and_eval("$" + name)) for name in ("rsp", "rbp", "rip", "rbx")}
    names = []
    try:
        gdb.execute("select-frame 0", to_string=True)
        for name, value in (("rsp", stack + 56), ("rbp", saved[5]), ("rbx", saved[4]), ("rip", saved[6])):
            gdb.execute(f"set var ${name} = {value}")
        frame = gdb.newest_frame()
        while frame is not None and len(names) < 64:
            sal = frame.find_sal()
            where = f"{sal.symtab.filename.rsplit('/', 1)[-1]}:{sal.line}" if sal.symtab else "?"
            names.append((frame.name() or "?", where))
            if frame.name() == "co_main":
                break
            frame = frame.older()
    finally:
        gdb.execute("select-frame 0", to_string=True)
        for name, value in before.items():
            gdb.execute(f"set var ${name} = {value}")
    return names


class Coroutines(gdb.Command):
    """coroutines [full]: list suspended coroutines."""

    def __init__(self):
        super().__init__("coroutines", gdb.COMMAND_STACK)

    def invoke(self, argument, from_tty):
        thread = gdb.selected_thread()
        for loop in loops():
            for co in alive(loop):
                if int(co["state"]) != SUSPENDED:
                    continue
                frames = frames_of(co)
                told = [f for f in frames if f[0] not in FRAMES_OF_THE_SWITCH] or frames
                print(f"{co['name'].string()} in {told[0][0]} at {told[0][1]}")
                if argument == "full":
                    for number, (name, where) in enumerate(frames):
                        print(f"    #{number} {name} at {where}")
        thread.switch()


Coroutines()
