import asyncio
import sqlite3
import threading
from dataclasses import replace

import pytest

from lcp_gateway.node.lcp.messages import Protocol
from lcp_gateway.node.lcp.table import write_params
from lcp_gateway.node.ports import PaymentHashUsed
from lcp_gateway.node.storage.files import StoreUnavailable
from lcp_gateway.node.storage.history import open_history
from tests.support.node_records import (
    ANSWER,
    PREIMAGE,
    PROMPT,
    end,
    failure,
    manifest,
    number32,
    peer,
    piece,
    purchase,
    quote,
    sale,
)

BOTH = pytest.mark.parametrize("at_rest", ["encrypted", "memory"])
PARAMS_OF_A_CLIENT = b"params that a client wrote by itself"

NODE = peer(9)


def without_request(kept):
    return replace(kept, order=replace(kept.order, request=b""))


def on_disk(path):
    return b"".join(one.read_bytes() for one in sorted(path.parent.iterdir()))


async def kept_sale(store, number=1, **fields):
    made = sale(number, **fields)
    await store.keep_sale(made)
    return made


async def test_a_new_database_is_empty(open_store):
    store = await open_store()

    assert await store.manifests() == {}
    assert await store.purchases() == []
    assert await store.sales() == []
    assert await store.settle_index(NODE) == 0


@BOTH
async def test_manifests_of_both_versions_are_there_after_a_restart_and_go_when_removed(open_store, at_rest):
    store = await open_store(at_rest=at_rest)
    await store.keep_manifest(peer(1), Protocol.V02, manifest(1))
    await store.keep_manifest(peer(1), Protocol.V03, manifest(1, Protocol.V03))
    await store.keep_manifest(peer(2), Protocol.V02, manifest(2))
    await store.keep_manifest(peer(2), Protocol.V02, manifest(3))
    await store.keep_manifest(peer(1), Protocol.V02, None)

    assert await (await open_store(at_rest=at_rest)).manifests() == {
        (peer(1), Protocol.V03): manifest(1, Protocol.V03),
        (peer(2), Protocol.V02): manifest(3),
    }


async def test_a_manifest_of_version_0_has_no_form_on_the_wire_and_is_not_kept(open_store):
    store = await open_store()
    await store.keep_manifest(peer(1), Protocol.V02, manifest(1))

    await store.keep_manifest(peer(1), Protocol.V02, replace(manifest(1), protocol_version=0))

    assert await store.manifests() == {}


@BOTH
async def test_a_purchase_is_there_after_a_restart_without_its_request(open_store, at_rest):
    store = await open_store(at_rest=at_rest)
    both = [purchase(1), purchase(2, protocol=Protocol.V03, params_content_type="text/plain")]
    for one in both:
        await store.keep_purchase(one)

    found = await (await open_store(at_rest=at_rest)).purchases()

    assert sorted(found, key=repr) == sorted(map(without_request, both), key=repr)


@pytest.mark.parametrize("params", [None, b"", PARAMS_OF_A_CLIENT])
async def test_params_that_are_more_than_a_model_are_kept_sealed(open_store, path, params):
    store = await open_store()
    made = purchase(1, protocol=Protocol.V03, params=params)
    await store.keep_purchase(made)

    assert await (await open_store()).purchases() == [without_request(made)]
    assert PARAMS_OF_A_CLIENT not in on_disk(path)


async def test_in_memory_alone_params_that_are_more_than_a_model_are_not_written(open_store, path):
    store = await open_store(at_rest="memory")
    await store.keep_purchase(purchase(1, protocol=Protocol.V03, params=PARAMS_OF_A_CLIENT))

    assert (await store.purchases())[0].order.params is None
    assert PARAMS_OF_A_CLIENT not in on_disk(path)


async def test_a_purchase_that_ended_is_a_line_of_history(open_store, path):
    store = await open_store(clock=lambda: 1_000)
    await store.keep_purchase(purchase(1))

    await store.end_purchase(purchase(1).kept.quote.job_id, outcome="delivered", paid=True, ended_at=1_010, fee_msat=3)
    await store.end_purchase(purchase(1).kept.quote.job_id, outcome="again", paid=True, ended_at=1_011)

    assert await store.purchases() == []
    with open_history(path) as history:
        (line,) = history.lines()
    assert (line.kind, line.peer_id, line.model, line.price_msat, line.fee_msat) == (
        "purchase",
        peer(1),
        "model-a",
        1_000,
        3,
    )
    assert (line.outcome, line.paid, line.began_at, line.ended_at) == ("delivered", True, 1_000, 1_010)


async def test_a_sale_is_there_after_a_restart_with_what_was_sent_in_its_order(open_store):
    store = await open_store()
    made = await kept_sale(store, hold_preimage=PREIMAGE)
    job_id = made.kept.request.job_id
    await store.keep_sent(peer(1), job_id, (piece(1), piece(1, 1)))
    await store.keep_sent(peer(1), job_id, ())
    await store.keep_sent(peer(1), job_id, (piece(1, 2),))
    await store.keep_sent(peer(2), job_id, (piece(1, 3),))

    assert await (await open_store()).sales() == [replace(made, sent=(piece(1), piece(1, 1), piece(1, 2)))]


async def test_a_sale_that_is_kept_again_replaces_the_first(open_store):
    store = await open_store()
    await kept_sale(store, sent=(piece(1), piece(1, 1)))
    second = await kept_sale(store, body=b"{}", sent=(piece(1),))

    assert await store.sales() == [second]


@BOTH
async def test_no_prompt_output_or_preimage_is_in_a_file_in_clear(open_store, path, at_rest):
    store = await open_store(at_rest=at_rest)
    await store.keep_purchase(purchase(1))
    made = await kept_sale(store, 2, hold_preimage=PREIMAGE, sent=(piece(2, 1),))
    await store.keep_sent(peer(2), made.kept.request.job_id, (piece(2, 1), failure(2, ANSWER.decode())))

    for secret in (PROMPT, ANSWER, PREIMAGE):
        assert secret not in on_disk(path)

    await store.close()
    for secret in (PROMPT, ANSWER, PREIMAGE):
        assert secret not in on_disk(path)


async def test_in_memory_alone_a_sale_comes_back_without_its_body_and_with_its_end_alone(open_store, path):
    store = await open_store(at_rest="memory")
    made = await kept_sale(store, hold_preimage=PREIMAGE)
    other = await kept_sale(store, 2)
    await store.keep_sent(peer(1), made.kept.request.job_id, (piece(1), piece(1, 1)))
    await store.keep_sent(peer(1), made.kept.request.job_id, (end(1),))
    await store.keep_sent(peer(2), other.kept.request.job_id, (failure(2, "the answer was too long"),))

    first, second = await (await open_store(at_rest="memory")).sales()

    assert first == replace(made, kept=replace(made.kept, body=b""), sent=(end(1),), hold_preimage=None)
    assert second.sent == (failure(2, None),)
    assert not path.with_name("node.db.key").exists()


async def test_what_was_sealed_is_still_read_after_a_change_to_memory_alone(open_store):
    store = await open_store()
    old = await kept_sale(store, hold_preimage=PREIMAGE, sent=(piece(1),))

    store = await open_store(at_rest="memory")
    await kept_sale(store, 2)
    await store.keep_sent(peer(1), old.kept.request.job_id, (end(1),))

    first, second = await store.sales()
    assert first == replace(old, sent=(piece(1), end(1)))
    assert second.kept.body == b""


async def test_a_sale_that_ended_has_one_line_at_most_and_stays_until_it_is_forgotten(open_store, path):
    store = await open_store(clock=lambda: 1_000)
    made = [await kept_sale(store, number, sent=(piece(number),)) for number in (1, 2)]
    for number, line in ((1, False), (1, True), (1, True), (2, False)):
        ended = {"outcome": "failed", "price_msat": 7, "paid": line, "model": "model-a", "ended_at": 1_005}
        await store.end_sale(peer(number), number32("job", number), **ended, line=line)

    assert await store.sales() == made
    for number in (1, 2):
        await store.forget_sale(peer(number), number32("job", number))
    assert await store.sales() == []
    with open_history(path) as history:
        (line,) = history.lines()
    assert (line.kind, line.peer_id, line.price_msat, line.outcome, line.preimage) == (
        "sale",
        peer(1),
        7,
        "failed",
        None,
    )
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        assert connection.execute("SELECT count(*) FROM sent").fetchone() == (0,)
    connection.close()


async def test_the_settle_index_is_there_after_a_restart(open_store):
    store = await open_store()
    await store.keep_settle_index(NODE, 7)
    await store.keep_settle_index(NODE, 2**40)

    assert await (await open_store()).settle_index(NODE) == 2**40


@pytest.mark.parametrize(("bounds", "left"), [({"history_lines": 3}, [5, 6, 7]), ({"history_days": 1}, [6, 7])])
async def test_history_is_bounded_by_lines_and_by_days(open_store, path, bounds, left):
    now = 0
    store = await open_store(clock=lambda: now, **bounds)
    for number in range(8):
        now = number * 50_000
        await store.keep_purchase(purchase(number))
        await store.end_purchase(quote(number).job_id, outcome="delivered", paid=True, ended_at=now)

    with open_history(path) as history:
        assert [line.peer_id for line in reversed(history.lines())] == [peer(number) for number in left]


@pytest.mark.parametrize(("bounds", "until"), [({"history_lines": 3}, 4), ({"history_days": 1}, 5), ({}, None)])
async def test_ends_of_purchases_are_found_by_their_job_and_what_is_pruned_is_known(open_store, path, bounds, until):
    now = 0
    store = await open_store(clock=lambda: now, **bounds)
    for number in range(8):
        now = 1 + number * 50_000
        await store.keep_purchase(purchase(number))
        preimage = {"fee_msat": 7, "preimage": PREIMAGE} if number % 2 else {}
        await store.end_purchase(
            quote(number).job_id, outcome="delivered", paid=bool(number % 2), ended_at=now, **preimage
        )
    key = await store.job_key()
    store = await open_store(clock=lambda: now, **bounds)
    for number in range(8):
        ended = await store.ended_purchase(quote(number).job_id)
        if until is not None and number <= until:
            assert ended is None
            continue
        assert ended.payment_hash == purchase(number).kept.payment_hash
        paid = (True, 7, PREIMAGE) if number % 2 else (False, None, None)
        assert (ended.paid, ended.fee_msat, ended.preimage) == paid
    assert await store.forgotten_until() == (0 if until is None else 1 + until * 50_000)
    assert await store.ended_purchase(b"\x01" * 32) is None
    assert await store.job_key() == key and len(key) == 32
    other = await open_store(path=path.with_name("other.db"))
    assert await other.job_key() != key


async def test_a_purchase_with_the_payment_hash_of_one_that_is_open_or_paid_is_not_kept(open_store):
    store = await open_store()
    reused = replace(purchase(2), kept=replace(purchase(2).kept, payment_hash=purchase(1).kept.payment_hash))
    await store.keep_purchase(purchase(1))
    with pytest.raises(PaymentHashUsed):
        await store.keep_purchase(reused)
    await store.end_purchase(quote(1).job_id, outcome="delivered", paid=True, ended_at=10**10)
    with pytest.raises(PaymentHashUsed):
        await store.keep_purchase(reused)
    assert await store.purchases() == []

    # One that failed may be tried again, in another job.
    await store.keep_purchase(purchase(3))
    await store.end_purchase(quote(3).job_id, outcome="unpaid", paid=False, ended_at=10**10)
    again = replace(purchase(4), kept=replace(purchase(4).kept, payment_hash=purchase(3).kept.payment_hash))
    await store.keep_purchase(again)
    assert len(await store.purchases()) == 1


async def test_a_model_of_any_length_takes_a_bounded_line(open_store, path):
    store = await open_store()
    await store.keep_purchase(purchase(1, params=write_params("m" * 10_000)))
    await store.end_purchase(quote(1).job_id, outcome="delivered", paid=True, ended_at=10**10)

    with open_history(path) as history:
        assert history.lines()[0].model == "m" * 200


async def test_prices_beyond_what_the_database_counts_are_kept_in_the_quote(open_store, path):
    store = await open_store()
    made = purchase(1)
    dear = replace(made, kept=replace(made.kept, quote=replace(made.kept.quote, price_msat=2**64 - 1)))
    await store.keep_purchase(dear)

    assert await store.purchases() == [without_request(dear)]
    with open_history(path) as history:
        assert history.open_jobs()[0].price_msat == 2**63 - 1


async def test_a_quote_without_a_form_on_the_wire_is_refused_before_it_is_paid(open_store):
    store = await open_store()
    made = purchase(1)
    bad = replace(made, kept=replace(made.kept, quote=replace(made.kept.quote, protocol_version=0)))

    with pytest.raises(StoreUnavailable, match="protocol_version"):
        await store.keep_purchase(bad)
    await store.keep_purchase(made)

    assert await store.purchases() == [without_request(made)]


async def test_what_waits_together_is_committed_together(open_store):
    store = await open_store()
    commits, held = [], threading.Event()

    def watch(connection):
        connection.set_trace_callback(lambda statement: commits.append(statement) if statement == "COMMIT" else None)
        held.wait(60)

    watching = asyncio.create_task(store._database.run(watch))
    await asyncio.sleep(0)
    keeping = [asyncio.create_task(store.keep_sale(sale(number))) for number in range(100)]
    await asyncio.sleep(0)
    held.set()
    await asyncio.gather(watching, *keeping)

    # The first may be committed with or without those that came while it ran.
    assert len(commits) <= 2
    assert len(await store.sales()) == 100


async def test_what_precedes_money_is_synced_and_a_part_of_a_result_is_not(open_store):
    store = await open_store()
    statements = []
    await store._database.run(lambda connection: connection.set_trace_callback(statements.append))
    await kept_sale(store)
    after_sale = [one for one in statements if "synchronous" in one]
    await store.keep_sent(peer(1), sale(1).kept.request.job_id, (piece(1),))
    await store.keep_purchase(purchase(1))

    assert after_sale == ["PRAGMA synchronous=FULL"]
    assert [one for one in statements if "synchronous=" in one] == [
        "PRAGMA synchronous=FULL",
        "PRAGMA synchronous=NORMAL",
        "PRAGMA synchronous=FULL",
    ]


async def test_a_full_disk_is_said_and_nothing_of_the_works_that_waited_is_half_there(open_store, path):
    store = await open_store()
    await kept_sale(store, 1)

    def fill(connection):
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages}").close()

    await store._database.run(fill)
    made = await asyncio.gather(
        store.keep_sale(sale(2, body=b"x" * 100_000)), store.keep_settle_index(NODE, 5), return_exceptions=True
    )
    assert isinstance(made[0], StoreUnavailable)
    assert str(made[0]) == f"{path}: database or disk is full"
    kept = await store.sales()
    assert [one.peer_id for one in kept] == [peer(1)]

    # A new connection has found room again.
    await kept_sale(store, 2, body=b"x" * 100_000)
    assert len(await store.sales()) == 2


async def test_after_the_close_every_call_fails(open_store):
    store = await open_store()
    await store.close()

    with pytest.raises(StoreUnavailable, match="the database is closed"):
        await store.keep_settle_index(NODE, 1)


async def test_a_caller_that_is_cancelled_does_not_undo_what_it_began(open_store):
    store = await open_store()
    held = threading.Event()
    holding = asyncio.create_task(store._database.run(lambda _: held.wait(60)))
    await asyncio.sleep(0)
    keeping = asyncio.create_task(store.keep_settle_index(NODE, 9))
    await asyncio.sleep(0)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    held.set()
    await holding

    assert await store.settle_index(NODE) == 9
