"""A language model's endpoint that takes its time, in a process of its own: `python bench/endpoint.py PORT LATENCY`.

It answers every chat request after LATENCY seconds with the same words, in the form that DSPy asks for; as many calls
may be under way at once as there are connections. GET tells when the first call came (Unix time), and how many came.
"""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWER = {"reasoning": "it asks for a search", "agent": "search_agent", "modality": "text", "confidence": "0.9",
          "plan": '["search_agent"]', "fuse": "no"}  # fmt: skip


def text() -> str:
    fields = "\n\n".join(f"[[ ## {name} ## ]]\n{value}" for name, value in ANSWER.items())
    return f"{fields}\n\n[[ ## completed ## ]]"


def serve(port: int, latency: float) -> None:
    calls: list[float] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._send({"first": calls[0] if calls else None, "calls": len(calls)})

        def do_DELETE(self) -> None:
            calls.clear()
            self._send({})

        def do_POST(self) -> None:
            with lock:
                calls.append(time.time())
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            time.sleep(latency)
            message = {"role": "assistant", "content": text()}
            self._send(
                {
                    "id": "x",
                    "object": "chat.completion",
                    "created": 0,
                    "model": body["model"],
                    "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
                }
            )

        def _send(self, document: dict[str, Any]) -> None:
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 256

    Server(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]), float(sys.argv[2]))
