import pytest

from lcp_gateway.purchase.errors import PaymentFailed, UpstreamError
from lcp_gateway.purchase.idempotency import CacheLimits, IdempotencyCache, KeyReused, RepeatKeys, ResultLost
from lcp_gateway.purchase.order import Order, Task, TaskKind
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.result_buffer import BufferLimits, ResultBuffer, ResultHead
from lcp_gateway.purchase.states import PurchaseEvent, Verdict
from tests.support.purchases import quote
from tests.support.scripted_peers import BODY, OTHER_BODY, ordered

KEY = RepeatKeys(key="k")
RETRY = RepeatKeys(is_retry=True)
FIRST = RepeatKeys()
CODEX = RepeatKeys(client_request_id="c1")


class CacheUnderTest:
    """A cache with a clock that the test sets."""

    def __init__(self, **limits) -> None:
        self.at = 0.0
        self.cache = IdempotencyCache(CacheLimits(**limits), lambda: self.at)

    def find(self, order, repeat):
        return self.cache.find(order, repeat)

    def bought(self, order, repeat=FIRST, body=b"answer", end=PurchaseEvent.DELIVER) -> ResultBuffer:
        """Return the buffer of a purchase that has ended."""
        answer = self.running(order, repeat)
        purchase = answer.purchase = Purchase(order, quote())
        purchase.apply(PurchaseEvent.PAY)
        if end in {PurchaseEvent.FAIL_PAYMENT, PurchaseEvent.LOSE_SIGHT}:
            purchase.apply(end)
            cause = UpstreamError("UNKNOWN", "no")
            answer.fail(PaymentFailed(cause, purchase.verdict, quote=purchase.quote))
        else:
            purchase.apply(PurchaseEvent.SETTLE)
            purchase.apply(end)
            answer.append(body)
            answer.begin(ResultHead("application/json", "identity"))
            answer.end()
        self.cache.ended(answer, repeat)
        return answer

    def running(self, order, repeat=FIRST) -> ResultBuffer:
        answer = ResultBuffer(order, BufferLimits(), self.cache.pool)
        self.cache.add(answer, repeat)
        return answer


def test_nothing_is_found_of_a_request_that_never_came():
    assert CacheUnderTest().find(ordered(), KEY) is None


@pytest.mark.parametrize("ended", [False, True])
def test_the_same_key_and_body_find_their_result(ended):
    m = CacheUnderTest()
    answer = m.bought(ordered(), KEY) if ended else m.running(ordered(), KEY)
    assert m.find(ordered(), KEY) is answer
    assert m.find(ordered(), RepeatKeys(key="other")) is None


@pytest.mark.parametrize("ended", [False, True])
def test_a_key_is_for_one_body(ended):
    m = CacheUnderTest()
    (m.bought if ended else m.running)(ordered(), KEY)
    with pytest.raises(KeyReused):
        m.find(ordered(OTHER_BODY), KEY)


def test_a_key_is_for_one_kind_of_task():
    m = CacheUnderTest()
    m.bought(ordered(), KEY)
    task = Task(TaskKind.RESPONSES, "m", BODY, stream=False)
    other = Order.of(task, request_id="r", key_id="", limit_msat=None)
    with pytest.raises(KeyReused):
        m.find(other, KEY)
    assert m.find(other, RETRY) is None


@pytest.mark.parametrize("repeat", [KEY, RETRY, CODEX])
def test_no_credential_gets_the_result_of_another(repeat):
    m = CacheUnderTest()
    m.bought(ordered(key_id="one"), RepeatKeys(key="k", client_request_id="c1"))
    assert m.find(ordered(key_id="one"), repeat) is not None
    assert m.find(ordered(key_id="other"), repeat) is None
    assert m.find(ordered(key_id=""), repeat) is None


def test_a_marked_retry_finds_the_same_bytes_and_a_first_try_does_not():
    m = CacheUnderTest()
    answer = m.bought(ordered())
    assert m.find(ordered(), RETRY) is answer
    assert m.find(ordered(OTHER_BODY), RETRY) is None
    assert m.find(ordered(), FIRST) is None, "the same request may be meant twice"


def test_a_client_request_id_finds_the_same_bytes_only():
    m = CacheUnderTest()
    answer = m.bought(ordered(), CODEX)
    assert m.find(ordered(), CODEX) is answer
    assert m.find(ordered(OTHER_BODY), CODEX) is None, "codex keeps the id for a whole session"
    assert m.find(ordered(), RepeatKeys(client_request_id="c2")) is None


def test_an_unknown_key_is_no_repeat_even_when_it_is_marked_as_a_retry():
    """The key takes precedence over the retry header: a client that sends another key wants another result."""
    m = CacheUnderTest()
    m.bought(ordered(), KEY)
    assert m.find(ordered(), RepeatKeys(key="new", is_retry=True)) is None


def test_a_retry_finds_the_newest_of_several():
    m = CacheUnderTest()
    m.bought(ordered())
    newest = m.bought(ordered())
    assert m.find(ordered(), RETRY) is newest


@pytest.mark.parametrize(
    ("end", "found"),
    [
        (PurchaseEvent.FAIL_PAYMENT, False),
        (PurchaseEvent.LOSE_SIGHT, True),
        (PurchaseEvent.FAIL_DELIVERY, True),
        (PurchaseEvent.DELIVER, True),
    ],
)
@pytest.mark.parametrize("repeat", [KEY, RETRY])
def test_only_an_order_that_was_certainly_not_paid_may_be_bought_again(end, found, repeat):
    m = CacheUnderTest()
    m.bought(ordered(), KEY if repeat is KEY else FIRST, end=end)
    assert (m.find(ordered(), repeat) is not None) is found


def test_a_key_whose_order_was_not_paid_is_still_for_its_body():
    m = CacheUnderTest()
    m.bought(ordered(), KEY, end=PurchaseEvent.FAIL_PAYMENT)
    with pytest.raises(KeyReused):
        m.find(ordered(OTHER_BODY), KEY)


def test_keys_and_marks_are_forgotten_in_their_time():
    m = CacheUnderTest(keys_for_s=1_000, repeats_for_s=100, bytes_for_s=5_000)
    m.bought(ordered(), RepeatKeys(key="k", client_request_id="c1"))
    m.at = 100
    assert m.find(ordered(), RETRY) and m.find(ordered(), CODEX)
    m.at = 101
    assert m.find(ordered(), RETRY) is None and m.find(ordered(), CODEX) is None
    m.at = 1_000
    assert m.find(ordered(), KEY)
    m.at = 1_001
    assert m.find(ordered(), KEY) is None


def test_bytes_are_held_for_their_time_and_then_the_result_is_gone():
    m = CacheUnderTest(bytes_for_s=10)
    m.bought(ordered(), KEY)
    m.at = 11
    m.bought(ordered(OTHER_BODY), RepeatKeys(key="other"))
    with pytest.raises(ResultLost) as caught:
        m.find(ordered(), KEY)
    assert caught.value.verdict is Verdict.SETTLED
    assert caught.value.quote is not None
    assert m.cache.pool.held_bytes == len(b"answer")


def test_unmarked_results_are_held_for_the_window_of_retries_only():
    m = CacheUnderTest(bytes_for_s=600, repeats_for_s=120)
    m.bought(ordered(), FIRST)
    m.bought(ordered(OTHER_BODY), KEY)
    m.at = 121
    m.bought(ordered(b"third"), FIRST, body=b"")
    assert m.cache.pool.held_bytes == len(b"answer")
    assert m.find(ordered(OTHER_BODY), KEY).readable


def test_past_the_budget_of_bytes_the_oldest_go_first_and_unmarked_ones_before_all():
    m = CacheUnderTest(bytes_in_all=30)
    keyed = m.bought(ordered(b"1"), RepeatKeys(key="1"), body=b"x" * 10)
    unmarked = m.bought(ordered(b"2"), body=b"x" * 10)
    newer = m.bought(ordered(b"3"), RepeatKeys(key="3"), body=b"x" * 10)
    assert all(a.readable for a in (keyed, unmarked, newer))
    fourth = m.bought(ordered(b"4"), RepeatKeys(key="4"), body=b"x" * 10)
    assert not unmarked.readable and keyed.readable
    m.bought(ordered(b"5"), RepeatKeys(key="5"), body=b"x" * 10)
    assert not keyed.readable and newer.readable and fourth.readable
    assert m.cache.pool.held_bytes == 30
    with pytest.raises(ResultLost):
        m.find(ordered(b"1"), RepeatKeys(key="1"))


def test_an_error_is_found_though_it_has_no_bytes():
    m = CacheUnderTest(bytes_in_all=1)
    answer = m.bought(ordered(), KEY, end=PurchaseEvent.LOSE_SIGHT)
    answer.forget()
    assert m.find(ordered(), KEY) is answer


def test_the_request_is_not_kept_with_its_result():
    m = CacheUnderTest()
    m.bought(ordered(b"a secret question"), KEY)
    (held, _) = next(iter(m.cache._by_key._held.values()))
    assert held.order.task.body == b"" and held.purchase.order.task.body == b""


def test_a_result_kept_beyond_the_limit_is_released_once_it_has_ended():
    m = CacheUnderTest(bytes_in_all=10)
    kept = []
    for name in ("a", "b"):
        answer = m.running(ordered(), RepeatKeys(key=name))
        answer.retained_for = object()
        answer.append(b"12345678")
        kept.append(answer)
    assert m.cache.pool.held_bytes == 16
    for name, answer in zip(("a", "b"), kept, strict=True):
        answer.end()
        m.cache.ended(answer, RepeatKeys(key=name))
    assert m.cache.pool.held_bytes == 8
    assert [answer.readable for answer in kept] == [False, True]


# -- other limits ---------------------------------------------------------------------------------


def test_a_smaller_cache_evicts_the_excess_at_once():
    held = CacheUnderTest(bytes_in_all=100)
    held.bought(ordered(body=BODY), KEY, b"x" * 60)
    held.bought(ordered(body=OTHER_BODY), FIRST, b"y" * 30)
    held.cache.use(CacheLimits(bytes_in_all=70))
    assert held.cache.pool.held_bytes == 60, "the result without a key is evicted first"
    held.cache.use(CacheLimits(bytes_in_all=10))
    assert held.cache.pool.held_bytes == 0


def test_changed_times_apply_to_later_requests():
    held = CacheUnderTest(repeats_for_s=100)
    held.bought(ordered())
    held.at = 50
    held.cache.use(CacheLimits(repeats_for_s=10))
    assert held.find(ordered(), RETRY) is None
    held.cache.use(CacheLimits(repeats_for_s=100))
    assert held.find(ordered(), RETRY) is not None
