# SPDX-License-Identifier: LGPL-2.1-or-later
"""A QMP client: enough to drive both QEMU and blockstepd."""

import json
import socket

from lab import BenchError

TIMEOUT_S = 90


class Qmp:
    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(str(path))
        self.file = self.sock.makefile("rwb")
        self.file.readline()  # the greeting
        self.cmd("qmp_capabilities")

    def cmd(self, name, arguments=None, **more):
        """Keyword arguments have their "_" turned into "-". Events on the way are dropped."""
        arguments = {**(arguments or {}), **{k.replace("_", "-"): v for k, v in more.items()}}
        request = {"execute": name, **({"arguments": arguments} if arguments else {})}
        try:
            self.file.write(json.dumps(request).encode() + b"\n")
            self.file.flush()
            while line := self.file.readline():
                answer = json.loads(line)
                if "error" in answer:
                    raise BenchError(f"{name}: {answer['error']['desc']}")
                if "return" in answer:
                    return answer["return"]
        except OSError as failure:
            raise BenchError(f"{name}: {failure}") from None
        raise BenchError(f"{name}: the control connection has ended")

    def close(self):
        self.file.close()
        self.sock.close()
