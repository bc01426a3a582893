"""The guestbook's API: GET /messages, POST /messages, GET /healthz."""

import json
import os
import signal
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import redis

STORE = redis.Redis(
    host=os.environ.get("REDIS_HOST", "redis"),
    port=6379,
    socket_timeout=2,
    decode_responses=True,
)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/healthz":
            return self.answer(lambda: {"redis": STORE.ping()})
        if self.path == "/messages":
            return self.answer(lambda: STORE.lrange("messages", 0, 99))
        return self.send(404, {"error": "there is no such path"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/messages":
            return self.send(404, {"error": "there is no such path"})
        return self.answer(lambda: {"messages": STORE.lpush("messages", body.decode()[:500])})

    def answer(self, ask):
        try:
            self.send(200, ask())
        except redis.RedisError as error:
            self.send(503, {"error": str(error)})

    def send(self, status, value):
        body = json.dumps(value).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Api-Pod", socket.gethostname())
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("", 8080), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
print("guestbook api listens on 8080", flush=True)
server.serve_forever()
