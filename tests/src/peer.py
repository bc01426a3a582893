"""What the tests run in pods: `serve` answers TCP (HTTP) and UDP with who is asked and who asks, the rest asks.

Every answer is `NAME ADDRESS PORT LENGTH`: the server's name, the client as the server sees it, the bytes received.
"""

import os
import signal
import socket
import struct
import sys
import threading
import time


def serve(*listen):
    """serve [tcp:PORT | udp:PORT | linger:SECONDS]...: until SIGTERM, and then as long as told."""
    linger = 0.0
    for word in listen:
        kind, value = word.split(":")
        if kind == "linger":
            linger = float(value)
            continue
        if kind == "sctp":
            for family in (socket.AF_INET, socket.AF_INET6):
                threading.Thread(target=associations, args=(family, int(value)), daemon=True).start()
            continue
        stream = kind == "tcp"
        server = socket.socket(socket.AF_INET6, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not stream:
            # On a node, the answer has to leave from the address that was asked.
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        server.bind(("::", int(value)))
        if stream:
            server.listen(128)
        threading.Thread(target=accept if stream else datagrams, args=(server,), daemon=True).start()
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
    time.sleep(linger)


def who(peer, length):
    address = peer[0].removeprefix("::ffff:").split("%")[0]
    return f"{os.environ.get('NAME', 'nobody')} {address} {peer[1]} {length}\n".encode()


def accept(server):
    while True:
        connection, peer = server.accept()
        threading.Thread(target=requests, args=(connection, peer), daemon=True).start()


def requests(connection, peer):
    """HTTP/1.1, as much as is needed: bodies with a length, connections that stay."""
    buffer = b""
    with connection:
        while True:
            while b"\r\n\r\n" not in buffer:
                piece = connection.recv(65536)
                if not piece:
                    return
                buffer += piece
            head, buffer = buffer.split(b"\r\n\r\n", 1)
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            while len(buffer) < length:
                piece = connection.recv(65536)
                if not piece:
                    return
                buffer += piece
            buffer = buffer[length:]
            body = who(peer, length)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            if b"connection: close" in head.lower():
                return


def datagrams(server):
    while True:
        data, ancillary, _, peer = server.recvmsg(65536, 256)
        # The address without the interface, which is for routing to choose.
        source = [(level, kind, value[:16] + bytes(4)) for level, kind, value in ancillary]
        server.sendmsg([who(peer, len(data))], source, 0, peer)


def sctp(source, destination, tag, kind):
    """An SCTP packet with one chunk of twenty bytes, by hand, as not every kernel knows SCTP (RFC 9260)."""
    packet = struct.pack("!HHII", source, destination, tag, 0) + struct.pack("!BBHIIHHI", kind, 0, 20, 7, 65536, 1, 1, 7)
    return packet[:8] + struct.pack("<I", crc32c(packet)) + packet[12:]


def crc32c(data):
    """RFC 9260, appendix A."""
    rest = 0xFFFFFFFF
    for byte in data:
        rest ^= byte
        for _ in range(8):
            rest = rest >> 1 ^ (0x82F63B78 if rest & 1 else 0)
    return rest ^ 0xFFFFFFFF


def read_sctp(family, packet):
    """Ports, tag and chunk of a packet with a good checksum, else nothing."""
    if family == socket.AF_INET:
        packet = packet[(packet[0] & 15) * 4 :]
    blank = packet[:8] + bytes(4) + packet[12:]
    if len(packet) < 32 or struct.unpack("<I", packet[8:12])[0] != crc32c(blank):
        return None
    return struct.unpack("!HHI", packet[:8]) + (packet[12],)


def associations(family, port):
    """Answers INIT with INIT ACK, whose tag says what the client sent: its own port, as the server sees it."""
    server = socket.socket(family, socket.SOCK_RAW, 132)
    while True:
        data, peer = server.recvfrom(65536)
        seen = read_sctp(family, data)
        if seen and seen[1] == port and seen[3] == 1:
            server.sendto(sctp(port, seen[0], seen[0], 2), (peer[0], 0))


def initiate(host, port, patience):
    """Sends an INIT and waits for its answer from the very address and port that it was sent to."""
    family = socket.getaddrinfo(host, None)[0][0]
    client = socket.socket(family, socket.SOCK_RAW, 132)
    client.settimeout(patience)
    own = 20000 + os.getpid() % 20000
    client.sendto(sctp(own, port, 0, 1), (host, 0))
    until = time.monotonic() + patience
    while time.monotonic() < until:
        data, peer = client.recvfrom(65536)
        seen = read_sctp(family, data)
        if seen and seen[:2] == (port, own) and seen[3] == 2 and peer[0] == host:
            return "acknowledged"
    raise TimeoutError("timed out")


def connect(protocol, host, port, patience):
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    family, kind, number, _, address = socket.getaddrinfo(host, int(port), type=kind)[0]
    client = socket.socket(family, kind, number)
    client.settimeout(patience)
    client.connect(address)
    return client


def exchange(client, protocol, size):
    if protocol == "udp":
        client.send(b"x" * max(size, 1))
        return client.recv(65536).decode().strip()
    client.sendall(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
    answer = b""
    while not (answer.endswith(b"\n") and b"\r\n\r\n" in answer and answer.split(b"\r\n\r\n", 1)[1]):
        piece = client.recv(65536)
        if not piece:
            raise ConnectionError("the end of the connection")
        answer += piece
    return answer.split(b"\r\n\r\n", 1)[1].decode().strip()


def ask(protocol, host, port, count, patience, size="0"):
    """ask PROTOCOL HOST PORT COUNT PATIENCE [SIZE]: each time from a socket of its own; a line an answer."""
    for _ in range(int(count)):
        try:
            if protocol == "sctp":
                print(initiate(host, int(port), float(patience)), flush=True)
                continue
            with connect(protocol, host, port, float(patience)) as client:
                print(exchange(client, protocol, int(size)), flush=True)
        except OSError as error:
            print("!", error or type(error).__name__, flush=True)


def reach(protocol, host, port, backend):
    """A socket whose first answer came from the backend: balancing leaves that to chance, so there are a hundred tries."""
    for _ in range(100):
        client = connect(protocol, host, port, 2.0)
        if exchange(client, protocol, 0).startswith(backend + " "):
            return client
        client.close()
    raise ConnectionError("never reached " + backend)


def hold(protocol, host, port, seconds, backend=""):
    """hold PROTOCOL HOST PORT SECONDS [BACKEND]: one socket, asked again and again; a line an answer with its time."""
    began = time.monotonic()
    client = reach(protocol, host, port, backend) if backend else connect(protocol, host, port, 2.0)
    while (now := time.monotonic() - began) < float(seconds):
        try:
            print(f"{now:.2f}", exchange(client, protocol, 0), flush=True)
        except OSError as error:
            print(f"{time.monotonic() - began:.2f} !", error or type(error).__name__, flush=True)
            if protocol == "tcp" and not isinstance(error, TimeoutError):
                return
        time.sleep(0.05)


def resolve(name):
    """resolve NAME: its addresses, sorted, a line each."""
    found = {entry[4][0] for entry in socket.getaddrinfo(name, 1, type=socket.SOCK_STREAM)}
    print("\n".join(sorted(found)))


def resolving(name, seconds):
    """resolving NAME SECONDS: asked again and again, of the resolver each time; a line an answer with its time."""
    began = time.monotonic()
    while (now := time.monotonic() - began) < float(seconds):
        try:
            print(f"{now:.2f}", socket.getaddrinfo(name, 1, type=socket.SOCK_STREAM)[0][4][0], flush=True)
        except OSError as error:
            print(f"{time.monotonic() - began:.2f} !", error, flush=True)
        time.sleep(0.05)


def env(prefix):
    """env PREFIX: variables that begin with it."""
    print("\n".join(f"{key}={value}" for key, value in sorted(os.environ.items()) if key.startswith(prefix)))


if __name__ == "__main__":
    {"serve": serve, "ask": ask, "hold": hold, "resolve": resolve, "resolving": resolving, "env": env}[sys.argv[1]](*sys.argv[2:])
