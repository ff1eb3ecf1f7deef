import pytest

from lcp_gateway.lightning.error_codes import ErrorCode, read_code
from lcp_gateway.node.lcp.manifests import Limits, Offer, offers, own_manifest
from lcp_gateway.node.lcp.messages import CHAT, RESPONSES, Manifest, Protocol, TaskTemplate
from lcp_gateway.node.lcp.table import read_message, write_message
from lcp_gateway.node.lcp.tlv import WireError
from tests.support import lcp_vectors

MODELS = {"model-b", "model-a"}


def _recorded(protocol, sender):
    found = next(one for _, one in lcp_vectors.messages(protocol) if (one["name"], one["frm"]) == ("manifest", sender))
    return found["type"], bytes.fromhex(found["hex"])


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize(("sender", "models"), [("requester", ()), ("provider", MODELS)])
def test_our_manifest_is_the_daemons_byte_for_byte(protocol, sender, models):
    assert write_message(protocol, own_manifest(protocol, Limits(), models)) == _recorded(protocol, sender)


def test_a_manifest_of_0_2_offers_models_and_one_of_0_3_methods():
    _, manifest = read_message(*_recorded(Protocol.V02, "provider"))
    assert offers(Protocol.V02, manifest) == (
        Offer(CHAT, "model-a"),
        Offer(RESPONSES, "model-a"),
        Offer(CHAT, "model-b"),
        Offer(RESPONSES, "model-b"),
    )
    _, manifest = read_message(*_recorded(Protocol.V03, "provider"))
    assert offers(Protocol.V03, manifest) == (Offer(CHAT, None), Offer(RESPONSES, None))


def test_tasks_that_cannot_be_bought_are_no_offers():
    manifest = Manifest(
        protocol_version=2,
        max_payload_bytes=1,
        max_stream_bytes=1,
        max_job_bytes=1,
        tasks=(
            TaskTemplate(task_kind="other.v1", params=b"\x01\x01m"),
            TaskTemplate(task_kind=CHAT),
            TaskTemplate(task_kind=CHAT, params=b"junk"),
            TaskTemplate(task_kind=CHAT, params=b"\x01\x01m\x02\x00"),
        ),
    )

    assert offers(Protocol.V02, manifest) == ()


def test_more_models_than_a_message_holds_are_refused():
    models = {f"model-{number:04}" + "x" * 40 for number in range(512)}
    own_manifest(Protocol.V02, Limits(), sorted(models)[:300])

    with pytest.raises(WireError, match="512 models do not fit"):
        own_manifest(Protocol.V02, Limits(), models)
    with pytest.raises(WireError, match="513 models do not fit"):
        own_manifest(Protocol.V02, Limits(), {str(number) for number in range(513)})


@pytest.mark.parametrize("wrong", [{"max_payload_bytes": 0}, {"max_stream_bytes": 0}, {"max_payload_bytes": 65_534}])
def test_limits_that_no_peer_could_use_are_refused(wrong):
    with pytest.raises(ValueError, match="limits: "):
        Limits(**wrong)


def test_a_code_means_what_its_version_says():
    assert [read_code(Protocol.V02, number) for number in range(1, 13)] == list(ErrorCode)[:12]
    assert [read_code(Protocol.V03, number) for number in range(1, 14)] == [
        ErrorCode.UNSUPPORTED_VERSION,
        ErrorCode.MANIFEST_REQUIRED,
        ErrorCode.UNSUPPORTED_TASK,
        ErrorCode.QUOTE_EXPIRED,
        ErrorCode.PAYMENT_REQUIRED,
        ErrorCode.PAYMENT_INVALID,
        ErrorCode.PAYLOAD_TOO_LARGE,
        ErrorCode.RATE_LIMITED,
        ErrorCode.UNSUPPORTED_ENCODING,
        ErrorCode.INVALID_STATE,
        ErrorCode.CHUNK_OUT_OF_ORDER,
        ErrorCode.CHECKSUM_MISMATCH,
        ErrorCode.STREAM_LIMIT_EXCEEDED,
    ]
    assert read_code(Protocol.V02, 13) is None and read_code(Protocol.V03, 0) is None
    for code in ErrorCode:
        for protocol in Protocol:
            assert read_code(protocol, code.number(protocol)) is not None
