import json
from pathlib import Path

import pytest
from coincurve import PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from lcp_gateway.lightning import bech32, bolt11
from lcp_gateway.lightning.bolt11 import InvoiceError, decode, encode
from tests.support.cases import each_case
from tests.support.examples import examples

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "quotes_regtest.json").read_text())
KEY = PrivateKey(bytes.fromhex("e126f68f7eafcc8b74f54d269fe206be715000f94dac067d1c04a8ca3b2db734"))
PAYEE = "03e7156ae33b0a208d0744199163177e909e80176e55d97a2f221ede0f934dd9ad"
HASH = bytes.fromhex("0001020304050607080900010203040506070809000102030405060708090102")
LIST_HASH = "3925b6f67e2c340036ed12093dd44e0368df1b6ea26c53dbe4811f58fd5db8c1"
AT = 1496314658

DONATION = "lnbc1pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdpl2pkx2ctnv5sxxmmwwd5kgetjypeh2ursdae8g6twvus8g6rfwvs8qun0dfjkxaq8rkx3yf5tcsyz3d73gafnh3cax9rn449d9p5uxz9ezhhypd0elx87sjle52x86fux2ypatgddc6k63n7erqz25le42c4u4ecky03ylcqca784w"
COFFEE = "lnbc2500u1pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdq5xysxxatsyp3k7enxv4jsxqzpuaztrnwngzn3kdzw5hydlzf03qdgm2hdq27cqv3agm2awhz5se903vruatfhq77w3ls4evs3ch9zw97j25emudupq63nyw24cg27h2rspfj9srp"
NONSENSE = "lnbc2500u1pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdpquwpc4curk03c9wlrswe78q4eyqc7d8d0xqzpuyk0sg5g70me25alkluzd2x62aysf2pyy8edtjeevuv4p2d5p76r4zkmneet7uvyakky2zr4cusd45tftc9c5fh0nnqpnl2jfll544esqchsrny"
THINGS = "lnbc20m1pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqhp58yjmdan79s6qqdhdzgynm4zwqd5d7xmw5fk98klysy043l2ahrqscc6gd6ql3jrc5yzme8v4ntcewwz5cnw92tz0pc8qcuufvq7khhr8wpald05e92xw006sq94mg8v2ndf4sefvf9sygkshp5zfem29trqq2yxxz7"
TESTNET = "lntb20m1pvjluezhp58yjmdan79s6qqdhdzgynm4zwqd5d7xmw5fk98klysy043l2ahrqspp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqfpp3x9et2e20v6pu37c5d9vax37wxq72un98kmzzhznpurw9sgl2v0nklu2g4d0keph5t7tj9tcqd8rexnd07ux4uv2cjvcqwaxgj7v4uwn5wmypjd5n69z2xm3xgksg28nwht7f6zspwp3f9t"
ROUTED = "lnbc20m1pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqhp58yjmdan79s6qqdhdzgynm4zwqd5d7xmw5fk98klysy043l2ahrqsfpp3qjmp7lwpagxun9pygexvgpjdc4jdj85fr9yq20q82gphp2nflc7jtzrcazrra7wwgzxqc8u7754cdlpfrmccae92qgzqvzq2ps8pqqqqqqpqqqqq9qqqvpeuqafqxu92d8lr6fvg0r5gv0heeeqgcrqlnm6jhphu9y00rrhy4grqszsvpcgpy9qqqqqqgqqqqq7qqzqj9n4evl6mr5aj9f58zp6fyjzup6ywn3x6sk8akg5v4tgn2q8g4fhx05wf6juaxu9760yp46454gpg5mtzgerlzezqcqvjnhjh8z3g2qqdhhwkj"
BEANS = "lnbc25m1pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdq5vdhkven9v5sxyetpdeessp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygs9q5sqqqqqqqqqqqqqqqqsgq2a25dxl5hrntdtn6zvydt7d66hyzsyhqs4wdynavys42xgl6sgx9c4g7me86a27t07mdtfry458rtjr0v92cnmswpsjscgt2vcse3sgpz3uapa"


def make(**changes):
    fields = {
        "network": "bcrt",
        "timestamp": AT,
        "payment_hash": HASH,
        "payment_secret": b"\x11" * 32,
        "amount_msat": 57_372,
        "description_hash": b"\x22" * 32,
        **changes,
    }
    return encode(KEY, **fields)


def rewrite(invoice, change):
    """Change an invoice's signed symbols and sign it again, as a hostile payee would."""
    prefix, symbols = bech32.split(invoice.encode())
    signed = change(symbols[:-104])
    digest = bolt11.sha256(prefix + bech32.to_padded_bytes(signed)).digest()
    signature = bech32.from_bytes(KEY.sign_recoverable(digest, hasher=None))
    return bech32.join(prefix, signed + signature).decode()


@pytest.mark.parametrize("quote", VECTORS["quotes"], ids=lambda quote: quote["job_id"][:8])
def test_a_real_invoice_reads_as_lnd_reads_it(quote):
    invoice, lnd = decode(quote["payment_request"]), quote["lnd_decodes"]

    assert {
        "destination": invoice.payee,
        "payment_hash": invoice.payment_hash.hex(),
        "num_msat": invoice.amount_msat,
        "timestamp": invoice.timestamp,
        "expiry": invoice.expiry_s,
        "description_hash": invoice.description_hash.hex(),
        "cltv_expiry": invoice.min_final_cltv,
    } == lnd
    assert invoice.network == "bcrt"
    assert invoice.features == bolt11.DEFAULT_FEATURES


@pytest.mark.parametrize("quote", VECTORS["quotes"], ids=lambda quote: quote["job_id"][:8])
def test_an_invoice_is_written_as_lnd_writes_it_up_to_the_signature(quote):
    real = quote["payment_request"]
    invoice = decode(real)
    ours = encode(
        KEY,
        network=invoice.network,
        timestamp=invoice.timestamp,
        payment_hash=invoice.payment_hash,
        payment_secret=invoice.payment_secret,
        amount_msat=invoice.amount_msat,
        description_hash=invoice.description_hash,
        expiry_s=invoice.expiry_s,
        min_final_cltv=invoice.min_final_cltv,
    )

    assert ours[: -104 - 6] == real[: -104 - 6]
    assert decode(ours).payee == PAYEE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DONATION, {"amount_msat": None, "description": "Please consider supporting this project"}),
        (COFFEE, {"amount_msat": 250_000_000, "description": "1 cup coffee", "expiry_s": 60}),
        (NONSENSE, {"amount_msat": 250_000_000, "description": "ナンセンス 1杯"}),
        (THINGS, {"amount_msat": 2_000_000_000, "description": None}),
        (TESTNET, {"network": "tb", "amount_msat": 2_000_000_000}),
        (ROUTED, {"network": "bc", "min_final_cltv": 18}),
        (BEANS, {"payment_secret": b"\x11" * 32, "features": 1 << 8 | 1 << 14 | 1 << 99}),
    ],
    ids=["donation", "coffee", "nonsense", "things", "testnet", "routed", "beans"],
)
def test_an_example_of_the_specification_reads_as_it_says(text, expected):
    invoice = decode(text)

    assert (invoice.payee, invoice.payment_hash, invoice.timestamp) == (PAYEE, HASH, AT)
    for name, value in expected.items():
        assert getattr(invoice, name) == value


def test_a_hashed_description_is_read():
    assert decode(THINGS).description_hash.hex() == LIST_HASH


def test_upper_case_is_the_same_invoice():
    assert decode(BEANS.upper()) == decode(BEANS)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (BEANS[:-1] + BEANS[-1].upper(), "mixes upper and lower"),
        (BEANS[:-1] + "q", "checksum"),
        (BEANS + "b", "alphabet"),
        ("", "separator"),
        ("1", "separator"),
        ("lnbc", "separator"),
        ("é" * 300, "ASCII"),
        ("lnbc1" + "q" * 8000, "too long"),
    ],
)
def test_what_is_no_bech32_is_refused(text, complaint):
    with pytest.raises(InvoiceError, match=complaint):
        decode(text)


@pytest.mark.parametrize(
    ("prefix", "complaint"),
    [
        ("lnxx", "network"),
        ("bc", "begin with ln"),
        ("lnbc2500x", "multiplier"),
        ("lnbc25a5m", "malformed"),
        ("lnbc0u", "malformed"),
        ("lnbc025m", "malformed"),
        ("lnbc1p", "fraction"),
        ("lnbc" + "9" * 21, "malformed"),
        ("lnbc22000000", "more than there is"),
        ("lnbcm", "network"),
    ],
)
def test_a_wrong_prefix_is_refused(prefix, complaint):
    _, symbols = bech32.split(BEANS.encode())
    with pytest.raises(InvoiceError, match=complaint):
        decode(bech32.join(prefix.encode(), symbols).decode())


@pytest.mark.parametrize(
    ("amount_msat", "written"),
    [
        (1, "lnbcrt10p"),
        (100, "lnbcrt1n"),
        (57_372, "lnbcrt573720p"),
        (100_000, "lnbcrt1u"),
        (100_000_000, "lnbcrt1m"),
        (100_000_000_000, "lnbcrt1"),
        (None, "lnbcrt"),
    ],
)
def test_amounts_take_the_largest_multiplier(amount_msat, written):
    invoice = make(amount_msat=amount_msat)

    assert invoice.rpartition("1")[0] == written
    assert decode(invoice).amount_msat == amount_msat


def test_an_invoice_that_was_changed_names_another_payee_or_none():
    prefix, symbols = bech32.split(make().encode())
    changed = bech32.join(prefix.replace(b"573720p", b"573730p"), symbols).decode()
    try:
        payee = decode(changed).payee
    except InvoiceError:
        return
    assert payee != PAYEE


def test_a_signature_that_reveals_no_key_is_refused():
    broken = bolt11.with_signature(make(), b"\xff" * 64 + b"\x00")
    with pytest.raises(InvoiceError, match="signature"):
        decode(broken)


def test_a_recovery_id_out_of_range_is_refused():
    broken = bolt11.with_signature(make(), b"\x01" * 64 + b"\x04")
    with pytest.raises(InvoiceError, match="recovery id"):
        decode(broken)


def field(kind, symbols):
    return bytes([kind, len(symbols) >> 5, len(symbols) & 31]) + symbols


def test_a_stated_payee_is_checked_against_the_signature():
    stated = field(19, bech32.from_bytes(bytes.fromhex(PAYEE)))
    assert decode(rewrite(make(), lambda symbols: symbols + stated)).payee == PAYEE

    stranger = field(19, bech32.from_bytes(PrivateKey(b"\x07" * 32).public_key.format()))
    with pytest.raises(InvoiceError, match="signature"):
        decode(rewrite(make(), lambda symbols: symbols + stranger))

    no_key = field(19, bech32.from_bytes(b"\x02" + b"\xff" * 32))
    with pytest.raises(InvoiceError, match="signature"):
        decode(rewrite(make(), lambda symbols: symbols + no_key))


def test_unknown_fields_and_fields_of_the_wrong_length_are_skipped():
    noise = field(2, b"\x01" * 9) + field(16, b"\x01" * 51) + field(19, b"") + field(3, b"\x05" * 40)
    plain = decode(make())

    assert decode(rewrite(make(), lambda symbols: symbols + noise)) == plain


def test_of_a_field_that_comes_twice_the_first_counts():
    twice = field(1, bech32.from_bytes(b"\x99" * 32))

    assert decode(rewrite(make(), lambda symbols: symbols + twice)).payment_hash == HASH


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda symbols: symbols + b"\x01", "inside a field"),
        (lambda symbols: symbols + b"\x01\x01\x14", "inside a field"),
        (lambda symbols: symbols[:7], "no payment hash"),
        (lambda symbols: symbols[:3], "too short"),
        (lambda symbols: symbols[: 7 + 55], "description"),
        (lambda symbols: symbols + field(13, b"\x01\x02"), "not both|malformed"),
        (lambda symbols: symbols[: 7 + 55] + field(13, bech32.from_bytes(b"\xff\xfe")), "not UTF-8"),
        (lambda symbols: symbols[: 7 + 54] + b"\x1f" + symbols[7 + 55 :], "payment hash is malformed"),
    ],
)
def test_fields_that_do_not_add_up_are_refused(change, complaint):
    with pytest.raises(InvoiceError, match=complaint):
        decode(rewrite(make(), change))


@pytest.mark.parametrize("both_ways_round", [False, True])
def test_a_description_and_its_hash_together_are_refused(both_ways_round):
    """Each alone is valid, so only the combination can be the reason."""
    hashed, plain = field(23, bech32.from_bytes(b"\x22" * 32)), field(13, bech32.from_bytes(b"tea"))
    # Without the description hash that ``make`` writes after the payment hash.
    bare = rewrite(make(), lambda symbols: symbols[: 7 + 55] + symbols[7 + 55 + 55 :])
    assert decode(rewrite(bare, lambda symbols: symbols + plain)).description == "tea"
    assert decode(rewrite(bare, lambda symbols: symbols + hashed)).description_hash == b"\x22" * 32
    both = plain + hashed if both_ways_round else hashed + plain
    with pytest.raises(InvoiceError, match="not both"):
        decode(rewrite(bare, lambda symbols: symbols + both))
    with pytest.raises(InvoiceError, match="not both"):
        decode(bare)


def test_a_number_too_long_to_mean_anything_is_refused():
    # The rest is valid, so only the expiry can be the reason.
    bare = rewrite(make(), lambda symbols: symbols[: 7 + 55 + 55])
    assert decode(bare).expiry_s == 3600
    with pytest.raises(InvoiceError, match="expiry is too large"):
        decode(rewrite(bare, lambda symbols: symbols + field(6, b"\x1f" * 14)))


@each_case(
    "changes",
    [
        {"network": "xx"},
        {"timestamp": 1 << 35},
        {"timestamp": -1},
        {"amount_msat": 0},
        {"amount_msat": -5},
        {"payment_hash": b"short"},
        {"payment_secret": b""},
        {"description_hash": b""},
        {"description": "both", "description_hash": b"\x22" * 32},
        {"description_hash": None},
        {"expiry_s": -1},
        {"description_hash": None, "description": "x" * 700},
    ],
)
def test_what_does_not_fit_an_invoice_is_not_written(changes):
    with pytest.raises(InvoiceError):
        make(**changes)


@settings(max_examples=examples(1.5), deadline=None)
@given(
    network=st.sampled_from(["bc", "tb", "tbs", "bcrt", "sb"]),
    timestamp=st.integers(0, (1 << 35) - 1),
    payment_hash=st.binary(min_size=32, max_size=32),
    payment_secret=st.binary(min_size=32, max_size=32),
    amount_msat=st.none() | st.integers(1, 21_000_000 * 10**11),
    what=st.text(max_size=100).filter(lambda text: text.isprintable()) | st.binary(min_size=32, max_size=32),
    expiry_s=st.integers(0, 10**9),
    min_final_cltv=st.integers(0, 10**6),
    features=st.integers(1, 1 << 120),
    secret=st.integers(1, 10**60),
)
def test_what_is_written_is_what_is_read(
    network, timestamp, payment_hash, payment_secret, amount_msat, what,
    expiry_s, min_final_cltv, features, secret,
):  # fmt: skip
    key = PrivateKey(secret.to_bytes(32, "big"))
    description = what if isinstance(what, str) else None
    description_hash = what if isinstance(what, bytes) else None
    text = encode(
        key,
        network=network,
        timestamp=timestamp,
        payment_hash=payment_hash,
        payment_secret=payment_secret,
        amount_msat=amount_msat,
        description=description,
        description_hash=description_hash,
        expiry_s=expiry_s,
        min_final_cltv=min_final_cltv,
        features=features,
    )

    assert decode(text) == bolt11.Invoice(
        network=network,
        amount_msat=amount_msat,
        timestamp=timestamp,
        payment_hash=payment_hash,
        payee=key.public_key.format().hex(),
        expiry_s=expiry_s,
        description=description,
        description_hash=description_hash,
        min_final_cltv=min_final_cltv,
        payment_secret=payment_secret,
        features=features,
    )


@settings(max_examples=examples(2), deadline=None)
@given(st.text(max_size=400))
def test_garbage_raises_nothing_but_an_invoice_error(text):
    with pytest.raises(InvoiceError):
        decode(text)


@settings(max_examples=examples(3), deadline=None)
@given(
    prefix=st.sampled_from([b"lnbcrt", b"lnbc1m", b"lntb10p", b"ln", b"lnbc0", b"x"]),
    symbols=st.lists(st.integers(0, 31), max_size=400).map(bytes),
)
def test_garbage_with_a_good_checksum_raises_nothing_but_an_invoice_error(prefix, symbols):
    text = bech32.join(prefix, symbols).decode()
    try:
        decode(text)
    except InvoiceError:
        return


@settings(max_examples=examples(2), deadline=None)
@given(st.data())
def test_any_single_change_of_a_letter_is_noticed(data):
    at = data.draw(st.integers(7, len(BEANS) - 1))
    letter = data.draw(st.sampled_from("qpzry9x8gf2tvdw0s3jn54khce6mua7l"))
    if BEANS[at] == letter:
        return
    with pytest.raises(InvoiceError):
        decode(BEANS[:at] + letter + BEANS[at + 1 :])
