"""Nothing of a person leaves a payload: whatever is planted under a personal name, or as free text, is not shown."""

import json

from hypothesis import given
from hypothesis import strategies as st

from billing_pipeline.domain.event_redaction import REDACTED, redacted
from billing_pipeline_tests.webhooks.events import event, invoice, subscription

PERSONAL_KEYS = (
    "name", "customer_name", "email", "customer_email", "receipt_email", "phone", "customer_phone", "address",
    "customer_address", "line1", "city", "postal_code", "shipping", "shipping_details", "billing_details",
    "customer_details", "fingerprint", "last4", "iban", "tax_id", "customer_tax_ids", "account_tax_ids", "dob",
    "description", "statement_descriptor", "footer", "custom_fields", "hosted_invoice_url", "invoice_pdf_url",
    "client_secret", "individual", "ip_address", "nickname", "state", "receipt_number", "signature", "memo",
)  # fmt: skip
TEXTS = ["Ada Lovelace", "ada@example.com", "+44 20 7946 0000", "442079460000", "12 St James's Square", "DE123456789"]
FREE_TEXTS = st.sampled_from(TEXTS)
SECRETS = st.sampled_from(["ada", *TEXTS])
MACHINERY = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9999) | st.sampled_from(["active", "sub_1AbC", "usd", "2026-09-21"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["object", "items", "data", "price", "status", "lines"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@st.composite
def planted(draw):
    """A value with a person's secret somewhere in it, and that secret."""
    secret = draw(SECRETS)
    buried = draw(st.sampled_from([secret, [secret], {"value": secret}, {"data": [{"object": secret}]}]))
    value = {draw(st.sampled_from(PERSONAL_KEYS)): buried}
    if draw(st.booleans()):
        value = {"metadata": {draw(st.sampled_from(["contact", "sales_rep", "k1"])): secret}}
    elif draw(st.booleans()):
        secret = draw(FREE_TEXTS)
        value = {draw(st.sampled_from(["status", "anything", secret])): secret}
    for wrapper in draw(st.lists(st.sampled_from(["data", "object", "previous_attributes", "[]"]), max_size=4)):
        value = [draw(MACHINERY), value] if wrapper == "[]" else {"beside": draw(MACHINERY), wrapper: value}
    return value, secret


@given(planted())
def test_what_is_planted_is_never_shown(found):
    value, secret = found

    shown = json.dumps(redacted(value), ensure_ascii=False)

    assert f'"{secret}"' not in shown
    assert "Ada" not in shown
    assert "@" not in shown
    assert REDACTED in shown


@given(MACHINERY)
def test_machinery_is_shown_as_it_is(value):
    assert redacted(value) == value


def test_an_event_keeps_what_is_needed_to_understand_it():
    about = subscription(metadata={"organization_id": "acme", "contact": "Ada Lovelace"}, description="for Ada")
    shown = redacted(event("customer.subscription.updated", about, previous_attributes={"status": "trialing"}))

    assert shown["data"]["object"] == subscription(
        metadata={"organization_id": "acme", "contact": REDACTED}, description=REDACTED
    )
    assert shown["previous_attributes"] == {"status": "trialing"}
    assert redacted(invoice()) == invoice()


def test_the_given_payload_is_not_changed():
    about = {"email": "ada@example.com", "items": [{"name": "Ada"}]}
    redacted(about)

    assert about == {"email": "ada@example.com", "items": [{"name": "Ada"}]}


def test_that_something_is_not_set_is_shown():
    assert redacted({"email": None, "phone": None, "livemode": False}) == {
        "email": None,
        "phone": None,
        "livemode": False,
    }
