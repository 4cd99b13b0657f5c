# SPDX-License-Identifier: LGPL-2.1-or-later
"""A TCP link between two daemons that can be slow, stand still in one direction, break at any byte,
and bring what a connection had sent long after its sender has gone.

    link = Link(target_port)
    link.port                               where the client connects
    link.delay(0.005)                       each piece takes this long, both ways
    link.hold(TO_SERVER); link.release()    nothing arrives in that direction for a while
    link.cut(TO_SERVER, 1234)               breaks all connections there are after 1234 more bytes
    link.wait_ended()                       the clients have gone, and the server knows it
    link.hold_old(); link.wake_old()        connections there are stand still towards the server,
                                            also when their client has gone; new ones do not
"""

import socket
import threading

TO_SERVER, TO_CLIENT = "to-server", "to-client"
PIECE_BYTES = 1 << 16


class Pipe(threading.Thread):
    """One direction of a connection."""

    def __init__(self, link, direction, source, target):
        super().__init__(daemon=True)
        self.link, self.direction, self.source, self.target = link, direction, source, target
        self.left = None  # bytes until it breaks
        self.old = False

    def is_held(self):
        return self.old or self.direction in self.link.held

    def run(self):
        try:
            while data := self.source.recv(PIECE_BYTES):
                if not self.pass_on(data):
                    return self.link.close(self)
            self.wait()
            self.target.shutdown(socket.SHUT_WR)
        except OSError:
            # What its peer has already been sent is for wait() to hold back.
            self.wait()
            self.link.close(self)

    def wait(self):
        with self.link.changed:
            if self.link.delay_s:
                self.link.changed.wait(self.link.delay_s)
            self.link.changed.wait_for(lambda: self.link.closed or not self.is_held())

    def pass_on(self, data):
        """False when the connection is to break."""
        self.wait()
        with self.link.changed:
            if self.left is not None:
                data = data[:self.left]
                self.left -= len(data)
        self.target.sendall(data)
        return self.left != 0


class Link:
    """Listens on a port of its own and passes on to another, on loopback."""

    def __init__(self, target_port):
        self.target_port = target_port
        self.changed = threading.Condition()
        self.delay_s, self.held, self.closed = 0, set(), False
        self.pipes = []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.accept, daemon=True)
        self.thread.start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target_port))
            except OSError:
                client.close()
                continue
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = [Pipe(self, TO_SERVER, client, server), Pipe(self, TO_CLIENT, server, client)]
            with self.changed:
                self.pipes += pair
            for pipe in pair:
                pipe.start()

    def close(self, pipe):
        """Both ways of its connection."""
        for sock in (pipe.source, pipe.target):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        with self.changed:
            self.pipes = [other for other in self.pipes if other.source not in
                          (pipe.source, pipe.target)]
            self.changed.notify_all()

    def delay(self, seconds):
        with self.changed:
            self.delay_s = seconds
            self.changed.notify_all()

    def hold(self, direction):
        with self.changed:
            self.held.add(direction)

    def release(self):
        with self.changed:
            self.held.clear()
            self.changed.notify_all()

    def cut(self, direction, after_bytes=0):
        with self.changed:
            pipes = [pipe for pipe in self.pipes if pipe.direction == direction]
            for pipe in pipes:
                pipe.left = after_bytes
        if after_bytes == 0:
            for pipe in pipes:
                self.close(pipe)

    def wait_ended(self):
        """Until the server has heard that its clients have gone, and has closed all connections."""
        for pipe in list(self.pipes):
            pipe.join()

    def hold_old(self):
        with self.changed:
            for pipe in self.pipes:
                pipe.old = pipe.direction == TO_SERVER

    def wake_old(self):
        with self.changed:
            for pipe in self.pipes:
                pipe.old = False
            self.changed.notify_all()

    def end(self):
        # Closed under its thread, the listener would go on, as whatever gets its number next.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listener.close()
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        for pipe in list(self.pipes):
            self.close(pipe)
