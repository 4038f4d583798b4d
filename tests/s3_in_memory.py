"""An S3 server in memory that counts its requests and takes a given time for each, for figures of a distant store.

    python -m tests.s3_in_memory 50        # milliseconds a request; prints its address

It knows one bucket and what the package asks of it: put, put-if-absent, copy, get, head, delete and listings of 1,000.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from urllib.parse import unquote
from xml.sax.saxutils import escape

from aiohttp import web

PAGE = 1000  # keys of a listing, as S3 has it
BUCKET = "bertray"


@dataclass
class InMemoryS3:
    """Values by key, and what was asked of them.

    Args:
        delay_s: of each request.
        values: content by key.
        asked: (verb, key) of every request; listings as ("LIST", prefix).
    """

    delay_s: float = 0.0
    values: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def counted(self) -> Counter[str]:
        """Requests by verb since the last call."""
        verbs = Counter(verb for verb, _ in self.asked)
        self.asked.clear()
        return verbs

    @property
    def environment(self) -> dict[str, str]:
        """Settings that lead a client to it."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }

    address: str = ""

    @contextmanager
    def serving(self) -> Iterator[InMemoryS3]:
        """Serve from a thread of this process."""
        loop, ready = asyncio.new_event_loop(), threading.Event()

        async def start() -> web.AppRunner:
            app = web.Application(client_max_size=1 << 30)
            app.router.add_route("*", "/{path:.*}", self._handle)
            runner = web.AppRunner(app)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
            return runner

        def serve() -> None:
            asyncio.set_event_loop(loop)
            runner = loop.run_until_complete(start())
            ready.set()
            loop.run_forever()
            loop.run_until_complete(runner.cleanup())
            loop.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        ready.wait(10)
        yield self
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)

    async def _handle(self, request: web.Request) -> web.Response:
        path = unquote(request.raw_path.partition("?")[0]).lstrip("/")
        key = path.partition("/")[2]
        content = await request.read()
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        return self._reply(request, key, content)

    def _reply(self, request: web.Request, key: str, content: bytes) -> web.Response:
        query, source = request.query, request.headers.get("x-amz-copy-source")
        if "list-type" in query:
            self.asked.append(("LIST", query.get("prefix", "")))
            return self._listing(query)
        if "delete" in query:
            keys = [unquote(part.partition("</Key>")[0]) for part in content.decode().split("<Key>")[1:]]
            self.asked.append(("DELETE", ",".join(keys)))
            for one in keys:
                self.values.pop(one, None)
            deleted = "".join(f"<Deleted><Key>{escape(one)}</Key></Deleted>" for one in keys)
            return _xml(f"<DeleteResult>{deleted}</DeleteResult>")
        verb = "COPY" if source else request.method
        self.asked.append((verb, key))
        if verb == "COPY":
            origin = unquote(source or "").lstrip("/").partition("/")[2]
            if origin not in self.values:
                return _xml("<Error><Code>NoSuchKey</Code></Error>", status=404)
            self.values[key] = self.values[origin]
            return _xml(f"<CopyObjectResult><ETag>{_etag(self.values[key])}</ETag></CopyObjectResult>")
        if verb == "PUT":
            if request.headers.get("If-None-Match") == "*" and key in self.values:
                return _xml("<Error><Code>PreconditionFailed</Code></Error>", status=412)
            self.values[key] = content
            return web.Response(headers={"ETag": _etag(content)})
        if verb == "DELETE":
            self.values.pop(key, None)
            return web.Response(status=204)
        return self._value(request, key)

    def _value(self, request: web.Request, key: str) -> web.Response:
        if key not in self.values:
            return web.Response(status=404)
        value = self.values[key]
        headers = {"ETag": _etag(value), "Last-Modified": format_datetime(datetime.now(UTC), usegmt=True)}
        span = request.http_range
        if request.headers.get("Range") is None:
            return web.Response(body=value, headers=headers)
        start, stop, _ = slice(span.start, span.stop).indices(len(value))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(value)}"
        return web.Response(status=206, body=value[start:stop], headers=headers)

    def _listing(self, query: object) -> web.Response:
        asked = dict(query)  # type: ignore[call-overload]
        after = asked.get("continuation-token") or asked.get("start-after", "")
        keys = sorted(key for key in self.values if key.startswith(asked.get("prefix", "")) and key > after)
        page, more = keys[:PAGE], len(keys) > PAGE
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>{now}</LastModified>"
            f"<ETag>{escape(_etag(self.values[key]))}</ETag><Size>{len(self.values[key])}</Size></Contents>"
            for key in page
        )
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        return _xml(
            f"<ListBucketResult><KeyCount>{len(page)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"{token}{contents}</ListBucketResult>"
        )


def _etag(value: bytes) -> str:
    return f'"{hashlib.md5(value).hexdigest()}"'


def _xml(body: str, status: int = 200) -> web.Response:
    return web.Response(
        status=status, text=f'<?xml version="1.0" encoding="UTF-8"?>{body}', content_type="application/xml"
    )


if __name__ == "__main__":
    with InMemoryS3(delay_s=float(sys.argv[1]) / 1000).serving() as server:
        print(server.address, flush=True)
        threading.Event().wait()
