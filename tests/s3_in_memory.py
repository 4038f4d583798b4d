"""An S3 server in memory that counts its requests and takes a given time for each, for figures of a distant store.

    python -m tests.s3_in_memory 50        # milliseconds a request; prints its address

It knows one bucket and what the package asks of it: put, put-if-absent, copy, get, head, delete and listings of 1,000.
What Google and Azure do in another way when values are listed and read, it knows too.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
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
    written: dict[str, datetime] = field(default_factory=dict)
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

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
            "AZURE_STORAGE_ENDPOINT": self.address,
            "AZURE_STORAGE_ACCOUNT_NAME": "testing",
            "AZURE_STORAGE_ACCOUNT_KEY": "dGVzdGluZw==",
            "GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(
                {
                    "gcs_base_url": self.address,
                    "disable_oauth": True,
                    **dict.fromkeys(("client_email", "private_key", "private_key_id"), ""),
                }
            ),
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
        if "list-type" in query or query.get("comp") == "list":
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
            self._put(key, self.values[origin])
            return _xml(f"<CopyObjectResult><ETag>{_etag(self.values[key])}</ETag></CopyObjectResult>")
        if verb == "PUT":
            if request.headers.get("If-None-Match") == "*" and key in self.values:
                return _xml("<Error><Code>PreconditionFailed</Code></Error>", status=412)
            self._put(key, content)
            return web.Response(headers={"ETag": _etag(content)})
        if verb == "DELETE":
            self.values.pop(key, None)
            return web.Response(status=204)
        return self._value(request, key)

    def _put(self, key: str, content: bytes) -> None:
        self.values[key], self.written[key] = content, datetime.now(UTC)

    def modified(self, key: str) -> datetime:
        return self.written.get(key, self.began)

    def _value(self, request: web.Request, key: str) -> web.Response:
        if key not in self.values:
            return web.Response(status=404)
        value = self.values[key]
        if "If-Match" in request.headers and request.headers["If-Match"] != _etag(value):
            return web.Response(status=412)
        headers = {"ETag": _etag(value), "Last-Modified": format_datetime(self.modified(key), usegmt=True)}
        if request.method == "HEAD":
            headers["Content-Length"] = str(len(value))
        span = request.http_range
        if request.headers.get("Range") is None:
            return web.Response(body=value, headers=headers)
        start, stop, _ = slice(span.start, span.stop).indices(len(value))
        if start >= len(value):
            return web.Response(status=416)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(value)}"
        return web.Response(status=206, body=value[start:stop], headers=headers)

    def _listing(self, query: object) -> web.Response:
        asked = dict(query)  # type: ignore[call-overload]
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter")
        after = asked.get("continuation-token") or asked.get("marker") or asked.get("start-after", "")
        keys = sorted(key for key in self.values if key.startswith(prefix) and key > after)
        folders = set()
        if delimiter:
            folders = {key[: key.index("/", len(prefix)) + 1] for key in keys if "/" in key[len(prefix) :]}
            keys = [key for key in keys if "/" not in key[len(prefix) :]]
        page, more = keys[:PAGE], keys[PAGE - 1] if len(keys) > PAGE else ""
        return _azure_page(self, page, folders, more) if "comp" in asked else _s3_page(self, page, folders, more)


def _s3_page(server: InMemoryS3, page: list[str], folders: set[str], more: str) -> web.Response:
    contents = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>{server.modified(key):%Y-%m-%dT%H:%M:%S.000Z}</LastModified>"
        f"<ETag>{escape(_etag(server.values[key]))}</ETag><Size>{len(server.values[key])}</Size></Contents>"
        for key in page
    )
    below = "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders))
    token = f"<NextContinuationToken>{escape(more)}</NextContinuationToken>" if more else ""
    return _xml(
        f"<ListBucketResult><KeyCount>{len(page)}</KeyCount><IsTruncated>{str(bool(more)).lower()}</IsTruncated>"
        f"{token}{contents}{below}</ListBucketResult>"
    )


def _azure_page(server: InMemoryS3, page: list[str], folders: set[str], more: str) -> web.Response:
    blobs = "".join(
        f"<Blob><Name>{escape(key)}</Name><Properties><Last-Modified>"
        f"{format_datetime(server.modified(key), usegmt=True)}</Last-Modified>"
        f"<Content-Length>{len(server.values[key])}</Content-Length><Content-Type>x</Content-Type>"
        f"<Etag>{_etag(server.values[key])[1:-1]}</Etag></Properties></Blob>"
        for key in page
    )
    below = "".join(f"<BlobPrefix><Name>{escape(name)}</Name></BlobPrefix>" for name in sorted(folders))
    return _xml(
        f"<EnumerationResults><Blobs>{blobs}{below}</Blobs><NextMarker>{escape(more)}</NextMarker></EnumerationResults>"
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
