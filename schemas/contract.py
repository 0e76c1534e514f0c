"""The event contract: one marshmallow schema per event, the one source of JSON Schema, AsyncAPI and docs/events.md.

``CreatedSchema`` describes the ``data`` of ``Created``, and so on. What one member alone must keep stands in its
field; what members must keep together stands in the schema's ``rules``, a function over the JSON as it was sent. The
hot path (``schemas.incoming``) calls the same functions, after the JSON Schema that is derived from here.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

from marshmallow import EXCLUDE, Schema, ValidationError, fields, validates_schema

from schemas import events
from schemas.fields import (
    JSON_CONTENT_PATTERN,
    LONG_TEXT,
    MEDIUM_TEXT,
    ODS_PATTERN,
    PRESCRIPTION_TYPE_PATTERN,
    SHORT_TEXT,
    TRACEPARENT_PATTERN,
    URI_REFERENCE_PATTERN,
    CalendarDate,
    Code,
    Flag,
    Form,
    FullPrescriptionId,
    Instant,
    Member,
    Members,
    NhsNumber,
    Quantity,
    Sequence,
    Text,
    Uuid,
    WholeNumber,
    traceparent,
)

ISSUE_STATUSES = (
    *("0000", "0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009"),
    *("9000", "9001", "9005"),
)
LINE_ITEM_STATUSES = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008")
DISPENSED_LINE_ITEM_STATUSES = ("0001", "0002", "0003", "0004", "0005", "0006", "0008")
DISPENSED_ISSUE_STATUSES = ("0003", "0006", "0007")

REPEAT_DISPENSING = "0003"
MOST_ISSUES = 99
MOST_LINE_ITEMS = 4
DEFAULT_DAYS_SUPPLY = 28
DEFAULT_ISSUES_AUTHORISED = 1
DEFAULT_ISSUED_STATUS = "0001"

Broken = tuple[str, str]
"""The path of a member, and what is wrong with it, without its value."""


def _repeated(values: Iterable[Hashable]) -> Iterator[int]:
    """The places of the values that stand for a second time."""
    seen: set[Hashable] = set()
    for place, value in enumerate(values):
        if value is None:
            continue
        if value in seen:
            yield place
        seen.add(value)


def _repeated_ids(line_items: Iterable[Mapping[str, Any] | None] | None) -> Iterator[Broken]:
    ids = [((item or {}).get("id") or "").upper() or None for item in line_items or ()]
    for place in _repeated(ids):
        yield f"lineItems.{place}.id", "must be unique in the event"


def created_rules(data: Mapping[str, Any]) -> Iterator[Broken]:
    """The window has its ends in order, only repeat dispensing has more issues, no item has more than the whole."""
    window = data.get("dispenseWindow") or {}
    low, high = window.get("low"), window.get("high")
    if low is not None and high is not None and high < low:
        yield "dispenseWindow.high", "must not be before low"
    authorised = data.get("issuesAuthorised", DEFAULT_ISSUES_AUTHORISED)
    treatment_type = data.get("treatmentType")
    if treatment_type not in (None, REPEAT_DISPENSING) and authorised is not None and authorised > 1:
        yield "issuesAuthorised", f"must be 1 unless treatmentType is {REPEAT_DISPENSING}"
    line_items = data.get("lineItems") or ()
    for place, item in enumerate(line_items):
        of_item = (item or {}).get("issuesAuthorised")
        if authorised is not None and of_item is not None and of_item > authorised:
            yield f"lineItems.{place}.issuesAuthorised", "must be at most the prescription's"
    yield from _repeated_ids(line_items)


def dispensed_rules(data: Mapping[str, Any]) -> Iterator[Broken]:
    """Each item is named once."""
    yield from _repeated_ids(data.get("lineItems"))


def cancelled_rules(data: Mapping[str, Any]) -> Iterator[Broken]:
    """The cancellation of an item says which."""
    if data.get("target") == "lineItem" and "lineItemId" not in data:
        yield "lineItemId", "is required when target is lineItem: a UUID written with dashes"


def corrected_rules(data: Mapping[str, Any]) -> Iterator[Broken]:
    """Each issue is named once, and in it each item."""
    issues = [issue or {} for issue in data.get("issues") or ()]
    for place in _repeated(issue.get("issueNumber") for issue in issues):
        yield f"issues.{place}.issueNumber", "must be unique in the event"
    for place, issue in enumerate(issues):
        for path, message in _repeated_ids(issue.get("lineItems")):
            yield f"issues.{place}.{path}", message


class ContractSchema(Schema):
    """An object of the contract: members in camel case, those it does not know ignored."""

    class Meta:
        unknown = EXCLUDE

    error_messages = {"type": "must be an object"}  # noqa: RUF012 - declared by marshmallow

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        """Name the member after the attribute, in camel case."""
        first, *others = field_name.split("_")
        field_obj.data_key = first + "".join(map(str.capitalize, others))

    @validates_schema(pass_original=True)
    def keep_rules(self, data: object, original: Mapping[str, Any], **kwargs: object) -> None:
        """Refuse what breaks the rules between members."""
        if broken := list(self.rules(original)):
            raise ValidationError({path: [message] for path, message in broken})

    def handle_error(self, error: ValidationError, data: object, **kwargs: object) -> NoReturn:
        """Raise the error anew.

        The frame in which marshmallow raises it refers to it, and it to that frame: a cycle for each refused payload,
        with whatever exception is being handled meanwhile and all that its frames hold, until garbage is collected.
        """
        raise ValidationError(error.messages, data=error.data, valid_data=error.valid_data)

    @staticmethod
    def rules(data: Mapping[str, Any]) -> Iterator[Broken]:
        """What members break together. A member that is ``None`` is not known and no reason to complain."""
        return iter(())


class EnvelopeSchema(ContractSchema):
    """The CloudEvents attributes around the data."""

    specversion = Code("1.0", description="The version of CloudEvents.", required=True)
    id = Text(
        "With `source` the idempotency key: a second event with the same pair is a duplicate, ignored and counted.",
        shortest=1,
        longest=128,
        required=True,
    )
    source = Form(
        "a URI reference of 1 to 200 characters",
        URI_REFERENCE_PATTERN,
        str,
        "The publisher, for example `urn:nhs:asid:200000000946`.",
        form="uri-reference",
        longest=SHORT_TEXT,
        required=True,
    )
    type = Text("One of the event types, with its version suffix.", shortest=1, required=True)
    subject = FullPrescriptionId(
        "The prescription id. It is folded to upper case; then its form and its check character are verified "
        "(a setting accepts wrong check characters).",
        required=True,
    )
    time = Instant("When the change was accepted upstream. Stored and shown in UTC.", required=True)
    datacontenttype = Form(
        "application/json, if need be with ;charset=utf-8",
        JSON_CONTENT_PATTERN,
        str,
        "The content type of `data`; in binary mode the `content-type` header says it.",
    )
    sequence = Sequence(
        "The event's number in its stream, from 1, over all sources. Publishers who share no counter leave it out. "
        "The first event that folds decides whether the stream has sequences; on one without, they are ignored."
    )
    traceparent = Form(
        "a W3C trace context",
        TRACEPARENT_PATTERN,
        traceparent,
        "Carried into the logs.",
        longest=SHORT_TEXT,
    )


class OrganisationSchema(ContractSchema):
    """A prescriber, dispenser or canceller."""

    ods = Form("an ODS code: 3 to 10 of A-Z and 0-9", ODS_PATTERN, str, "The organisation's ODS code.", required=True)
    name = Text("What the organisation is called.")
    telecom = Text("A telephone number or another way to reach it.")
    address = Text("One line, its parts joined with comma and space.", longest=MEDIUM_TEXT)


class DispenseWindowSchema(ContractSchema):
    """The dates between which the prescription is meant to be dispensed."""

    low = CalendarDate("The first date.", required=True)
    high = CalendarDate("The last date, not before the first.", required=True)


class PrescribedItemSchema(ContractSchema):
    """One medication line as prescribed; its place in the array, from 1, is its item number."""

    id = Uuid("The item's id, unique in the event.", required=True)
    description = Text("What is prescribed, in words.", shortest=1, longest=MEDIUM_TEXT, required=True)
    code = Text("Its dm+d code.", shortest=1, required=True)
    quantity = Quantity(
        "How much. Text is shown as sent, a number as a plain decimal without trailing zeros.", required=True
    )
    unit = Text("What the quantity counts; may be empty.", required=True)
    dosage = Text("How to take it; may be empty.", longest=LONG_TEXT, required=True)
    issues_authorised = WholeNumber(
        1, MOST_ISSUES, "In how many issues the item is to be had: at most the prescription's, which is the default."
    )


class DispensedItemSchema(ContractSchema):
    """What became of one item in a dispense notification."""

    id = Uuid("The item's id.", required=True)
    status = Code(*DISPENSED_LINE_ITEM_STATUSES, description="The item's status in this issue.", required=True)


class CorrectedItemSchema(ContractSchema):
    """The status that a correction gives to one item."""

    id = Uuid("The item's id.", required=True)
    status = Code(*LINE_ITEM_STATUSES, description="The item's status in this issue.", required=True)


class CancellationReasonSchema(ContractSchema):
    """Why a prescriber cancels."""

    code = Text("The reason's code, such as 0001.", shortest=1, required=True)
    text = Text("The reason in words; may be empty, since the code says it.", longest=LONG_TEXT, required=True)


class CorrectedIssueSchema(ContractSchema):
    """What a correction says of one issue; what it does not name stays as it is."""

    issue_number = WholeNumber(1, MOST_ISSUES, "The issue to set right, named once.", required=True)
    status = Code(*ISSUE_STATUSES, description="The issue's status.")
    line_items = Members(
        CorrectedItemSchema, fewest=0, most=MOST_LINE_ITEMS, description="The items to set right, each named once."
    )
    dispensing_organisation = Member(OrganisationSchema, "The issue's dispenser; null takes it away.", allow_none=True)
    release_date = CalendarDate("When the issue was released; stands for midnight UTC.")
    last_dispense_date = CalendarDate("When the issue was last dispensed; stands for midnight UTC.")


class DataSchema(ContractSchema):
    """The ``data`` of an event."""


def _issue_number(description: str = "The issue that this is about.") -> WholeNumber:
    return WholeNumber(1, MOST_ISSUES, description, required=True)


class CreatedSchema(DataSchema):
    """A signed prescription was accepted."""

    rules = staticmethod(created_rules)

    nhs_number = NhsNumber("The patient.", required=True)
    treatment_type = Code(
        "0001", "0002", "0003", description="Acute, repeat prescribing or repeat dispensing.", required=True
    )
    prescription_type = Form(
        "four digits",
        PRESCRIPTION_TYPE_PATTERN,
        str,
        "The kind of prescriber. A code that nobody knows is accepted and shown with an empty text.",
        required=True,
    )
    prescribed_at = Instant("The date from which the prescription counts, chosen by the prescriber.", required=True)
    signed_at = Instant("When it was signed.", required=True)
    days_supply = WholeNumber(1, 999, "For how many days one issue lasts.", load_default=DEFAULT_DAYS_SUPPLY)
    issues_authorised = WholeNumber(
        1,
        MOST_ISSUES,
        "How many issues there are; above 1 only when treatmentType is 0003.",
        load_default=DEFAULT_ISSUES_AUTHORISED,
    )
    dispense_window = Member(DispenseWindowSchema, "The dates between which it is meant to be dispensed.")
    prescribing_organisation = Member(OrganisationSchema, "The prescriber's organisation.", required=True)
    nominated_dispenser = Member(
        OrganisationSchema, "Where the patient wants it dispensed; null when nowhere.", allow_none=True, required=True
    )
    line_items = Members(
        PrescribedItemSchema,
        fewest=1,
        most=MOST_LINE_ITEMS,
        description="What is prescribed, in the order of the item numbers.",
        required=True,
    )


class IssuedSchema(DataSchema):
    """An issue became available, or will at its download date."""

    issue_number = _issue_number()
    status = Code("0000", "0001", description="0001 when it can be released now.", load_default=DEFAULT_ISSUED_STATUS)
    nominated_download_date = CalendarDate("From when the nominated dispenser can download it.")


class ReleasedSchema(DataSchema):
    """A dispenser downloaded an issue."""

    issue_number = _issue_number()
    dispensing_organisation = Member(OrganisationSchema, "Who downloaded it.", required=True)


class DispensedSchema(DataSchema):
    """A dispense notification."""

    rules = staticmethod(dispensed_rules)

    issue_number = _issue_number()
    notification_id = Uuid("The notification's id, new in the issue.", required=True)
    dispensing_organisation = Member(OrganisationSchema, "Who dispensed.", required=True)
    dispensed_at = Instant("When it was dispensed.", required=True)
    line_items = Members(
        DispensedItemSchema,
        fewest=1,
        most=MOST_LINE_ITEMS,
        description="What became of every item of the issue, each named once.",
        required=True,
    )
    prescription_status = Code(
        *DISPENSED_ISSUE_STATUSES, description="The status of the issue; without it, the items' statuses say it."
    )
    amends = Uuid("The issue's last notification, when this one replaces it.")


class DispenseWithdrawnSchema(DataSchema):
    """The last dispense notification of an issue was taken back."""

    issue_number = _issue_number()
    notification_id = Uuid("The issue's last notification.", required=True)


class ReturnedSchema(DataSchema):
    """A dispenser gave an issue back."""

    issue_number = _issue_number()
    keep_nomination = Flag("Whether the nominated dispenser stays.", load_default=False)


class CancelledSchema(DataSchema):
    """A cancellation request, and what came of it."""

    rules = staticmethod(cancelled_rules)

    cancellation_id = Uuid("The cancellation's id; the event that settles a pending one repeats it.", required=True)
    nhs_number = NhsNumber("The patient; must be the prescription's.", required=True)
    target = Code("prescription", "lineItem", description="What is to be cancelled.", required=True)
    line_item_id = Uuid("The item; required when target is lineItem, otherwise without meaning.")
    outcome = Code(
        "applied",
        "pending",
        "unsuccessful",
        description="Whether it was done, waits for the dispenser, or came to nothing.",
        required=True,
    )
    reason = Member(CancellationReasonSchema, "Why.", required=True)
    issue_number = WholeNumber(1, MOST_ISSUES, "The first issue that it acts on; without it, the current one.")
    cancelling_organisation = Member(OrganisationSchema, "Who cancels.")


class ClaimedSchema(DataSchema):
    """A dispenser claimed payment for an issue."""

    issue_number = _issue_number()
    claim_id = Uuid("The claim's id.", required=True)
    amends = Uuid("An earlier claim that this one replaces.")


class NotClaimedSchema(DataSchema):
    """Nobody claimed an issue in time."""

    issue_number = _issue_number()


class ExpiredSchema(DataSchema):
    """An issue and every later one expired."""

    issue_number = _issue_number("The first issue that expired.")


class NominatedSchema(DataSchema):
    """The nominated dispenser was replaced, or removed."""

    nominated_dispenser = Member(
        OrganisationSchema, "Where the patient wants it dispensed; null when nowhere.", allow_none=True, required=True
    )


class CorrectedSchema(DataSchema):
    """An administrator set fields right."""

    rules = staticmethod(corrected_rules)

    reason = Text("Why, for whoever asks later.", shortest=1, longest=LONG_TEXT, required=True)
    current_issue_number = WholeNumber(1, MOST_ISSUES, "The current issue from now on.")
    issues = Members(
        CorrectedIssueSchema,
        fewest=0,
        most=MOST_ISSUES,
        description="The issues to set right, each named once.",
        required=True,
    )


class DeletedSchema(DataSchema):
    """The prescription left the record."""


EVENT_TYPES: dict[str, tuple[type[events.Event], type[DataSchema]]] = {
    "eps.prescription.created.v1": (events.Created, CreatedSchema),
    "eps.prescription.issued.v1": (events.Issued, IssuedSchema),
    "eps.prescription.released.v1": (events.Released, ReleasedSchema),
    "eps.prescription.dispensed.v1": (events.Dispensed, DispensedSchema),
    "eps.prescription.dispense-withdrawn.v1": (events.DispenseWithdrawn, DispenseWithdrawnSchema),
    "eps.prescription.returned.v1": (events.Returned, ReturnedSchema),
    "eps.prescription.cancelled.v1": (events.Cancelled, CancelledSchema),
    "eps.prescription.claimed.v1": (events.Claimed, ClaimedSchema),
    "eps.prescription.not-claimed.v1": (events.NotClaimed, NotClaimedSchema),
    "eps.prescription.expired.v1": (events.Expired, ExpiredSchema),
    "eps.prescription.nominated.v1": (events.Nominated, NominatedSchema),
    "eps.prescription.corrected.v1": (events.Corrected, CorrectedSchema),
    "eps.prescription.deleted.v1": (events.Deleted, DeletedSchema),
}
"""The CloudEvents types, in the order of docs/events.md, each with its class and the contract of its data."""

TYPE_OF: dict[type[events.Event], str] = {event: name for name, (event, _) in EVENT_TYPES.items()}
"""The CloudEvents type of each class of event."""
