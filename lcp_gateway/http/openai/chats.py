"""GET, POST and DELETE of stored chat completions: the list, one of them, its metadata, its messages."""

from collections.abc import Mapping

from aiohttp import web

from lcp_gateway.adapters.json_bytes import dump_json
from lcp_gateway.http.context import CONTEXT
from lcp_gateway.http.errors import ApiError, bad_request
from lcp_gateway.http.fields import json_response
from lcp_gateway.http.openai.history import document_of, not_stored, page_response
from lcp_gateway.http.openai.request_body import parse_object, read_body
from lcp_gateway.http.openai.response import JSON
from lcp_gateway.responses.chats import message_object
from lcp_gateway.responses.history import join_segments
from lcp_gateway.responses.items import Item, ItemKind
from lcp_gateway.responses.paging import read_page, select_page
from lcp_gateway.responses.request_options import read_metadata
from lcp_gateway.responses.stored_items import StoredItems

_PREFIX, _SUFFIX = "metadata[", "]"


class ChatRoutes:
    """Serves completions stored with ``store: true``; an id of another credential is unknown here."""

    def __init__(self, store: StoredItems, *, read_timeout_s: float) -> None:
        self._store = store
        self._read_timeout_s = read_timeout_s

    async def list(self, request: web.Request) -> web.Response:
        """Serve GET /v1/chat/completions: filtered by ``model`` and ``metadata[key]``, a page at a time."""
        wanted = _metadata_filter(request.query)
        model = request.query.get("model")
        items = [
            (item.id, item)
            for item in await self._store.items(request[CONTEXT].key_id, ItemKind.CHAT)
            if item.matches(model=model, metadata=wanted)
        ]
        found = select_page(items, read_page(request.query, default_order="asc"))
        # The documents go out as they are: only the list around them is written here.
        around = dump_json(
            {"object": "list", "first_id": found.first_id, "last_id": found.last_id, "has_more": found.has_more}
        )
        # Those of a shared store come without their bytes; one may have been deleted since.
        whole = [await self._store.get(request[CONTEXT].key_id, ItemKind.CHAT, item.id) for item in found.data]
        documents = b",".join(document_of(item, "chat completion") for item in whole if item is not None)
        body = around[:-1] + b',"data":[' + documents + b"]}"
        return web.Response(body=body, headers={"Content-Type": JSON})

    async def get(self, request: web.Request) -> web.Response:
        """Serve GET /v1/chat/completions/{completion_id}."""
        return _json(document_of(await self._find(request), "chat completion"))

    async def update(self, request: web.Request) -> web.Response:
        """Serve POST /v1/chat/completions/{completion_id}: only the metadata can be changed."""
        await self._find(request)
        document = parse_object(await read_body(request, self._read_timeout_s))
        if "metadata" not in document:
            raise bad_request("metadata is required", "metadata", "missing_required_parameter")
        metadata = read_metadata(document)
        item = (await self._find(request)).with_metadata(metadata)
        await self._store.replace(request[CONTEXT].key_id, item)
        return _json(document_of(item, "chat completion"))

    async def delete(self, request: web.Request) -> web.Response:
        """Serve DELETE /v1/chat/completions/{completion_id}."""
        completion_id = request.match_info["completion_id"]
        if await self._store.remove(request[CONTEXT].key_id, ItemKind.CHAT, completion_id) is None:
            raise self._not_found()
        return json_response({"object": "chat.completion.deleted", "id": completion_id, "deleted": True})

    async def messages(self, request: web.Request) -> web.Response:
        """Serve GET /v1/chat/completions/{completion_id}/messages: the messages of its request."""
        item = await self._find(request)
        return page_response(request.query, join_segments(item.inputs), item.id, message_object, order="asc")

    async def _find(self, request: web.Request) -> Item:
        completion_id = request.match_info["completion_id"]
        item = await self._store.get(request[CONTEXT].key_id, ItemKind.CHAT, completion_id)
        if item is None:
            raise self._not_found()
        return item

    def _not_found(self) -> ApiError:
        return not_stored(self._store, "chat completion", "completion")


def _metadata_filter(query: Mapping[str, str]) -> Mapping[str, str]:
    return {
        name[len(_PREFIX) : -len(_SUFFIX)]: value
        for name, value in query.items()
        if name.startswith(_PREFIX) and name.endswith(_SUFFIX)
    }


def _json(document: bytes) -> web.Response:
    return web.Response(body=document, headers={"Content-Type": JSON})
