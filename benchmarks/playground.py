"""What it costs to tell of each token what every expert said of it: ``/play`` beside ``/v1/completions``.

    python benchmarks/playground.py demo/composed

Asks one server in turns for the same greedy text by both, streamed, and takes the fastest of each.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
import urllib.request

from rich.console import Console
from rich.table import Table

from treering import tokenizer as tokenizers
from treering.composition import load_model
from treering.serving import server
from treering.serving.served import Served

RULES = ("", ":mean", ":top_k", ":evidence:switch=0.01,together=0.01", ":evidence:switch=0.01,cache=0.1")


def ask(url: str, body: dict[str, object]) -> tuple[float, int]:
    """Seconds until a stream ended, and its bytes."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    begin = time.perf_counter()
    with urllib.request.urlopen(request) as response:
        size = len(response.read())
    return time.perf_counter() - begin, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a composition's directory")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--times", type=int, default=15)
    given = parser.parse_args()
    model, tokenizer = load_model(given.model), tokenizers.load(given.model)
    table = Table("model", "/v1/completions", "/play", "sent for each token")
    with Served("joined", model, tokenizer) as served, server.listen("127.0.0.1", 0) as listener:
        running = server.http_server(served)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        endless = {"max_tokens": given.tokens, "logit_bias": {str(tokenizer.eos_token_id): -100}}
        asked = {"prompt": "To open", "temperature": 0, "stream": True, **endless}
        for rule in RULES:
            body = {**asked, "model": f"joined{rule}"}
            plain, played = [], []
            for _ in range(given.times):
                plain.append(ask(f"{address}/v1/completions", body))
                played.append(ask(f"{address}/play", body))
            best = [1000 * min(seconds for seconds, _ in some) / given.tokens for some in (plain, played)]
            sent = played[0][1] / given.tokens
            table.add_row(f"joined{rule}", *(f"{each:.2f} ms a token" for each in best), f"{sent:,.0f} bytes")
        running.should_exit = True
        thread.join()
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
