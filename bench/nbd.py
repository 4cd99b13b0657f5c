# SPDX-License-Identifier: LGPL-2.1-or-later
"""A small NBD client, one request at a time, for what a load generator does not tell: when exactly
a request was sent and answered."""

import socket
import struct

from lab import BenchError

OPTION_MAGIC, REPLY_MAGIC = 0x49484156454F5054, 0x0003E889045565A9
OPT_GO, REP_ACK = 7, 1
REQUEST_MAGIC, SIMPLE_REPLY_MAGIC = 0x25609513, 0x67446698
CMD_READ, CMD_WRITE = 0, 1
FIXED_NEWSTYLE_NO_ZEROES = 3
BLOCK_BYTES = 4096
TIMEOUT_S = 30


class NbdClient:
    """`address`: a socket's path or a (host, port)."""

    def __init__(self, address, export):
        self.sock = socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(address if isinstance(address, tuple) else str(address))
        if isinstance(address, tuple):
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.receive(18)
        name = export.encode()
        self.sock.sendall(struct.pack(">I", FIXED_NEWSTYLE_NO_ZEROES) +
                          struct.pack(">QIII", OPTION_MAGIC, OPT_GO, len(name) + 6, len(name)) +
                          name + struct.pack(">H", 0))
        while True:
            magic, _, kind, length = struct.unpack(">QIII", self.receive(20))
            self.receive(length)
            if magic != REPLY_MAGIC or kind >> 31:
                raise BenchError(f"NBD export '{export}' refused (reply {kind:#x})")
            if kind == REP_ACK:
                return

    def receive(self, length):
        data = bytearray()
        while len(data) < length:
            part = self.sock.recv(length - len(data))
            if not part:
                raise BenchError("the NBD server has closed the connection")
            data += part
        return bytes(data)

    def answer(self):
        magic, error, _ = struct.unpack(">IIQ", self.receive(16))
        if magic != SIMPLE_REPLY_MAGIC or error:
            raise BenchError(f"NBD request failed: error {error}")

    def read(self, offset, length=BLOCK_BYTES):
        self.sock.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, CMD_READ, 1, offset, length))
        self.answer()
        return self.receive(length)

    def write(self, offset, data):
        self.sock.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, CMD_WRITE, 1, offset, len(data)) +
                          data)
        self.answer()

    def close(self):
        self.sock.close()
