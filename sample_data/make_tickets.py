# ruff: noqa: E501 - what customers write stands here as they wrote it, in long lines
"""Make tickets.csv: 200 support tickets of an invented company, some of them difficult on purpose.

python sample_data/make_tickets.py [OUT]

Fernpost sells small shops a hosted service that prints shipping labels and tracks parcels. Each ticket belongs to one of
billing, outage, how_to, bug and feature_request. The column true_label says to which, as a person would; it is empty for
one ticket that says too little. The same bytes come out on every machine and Python version, so choices are made by digest
and not by `random`, which promises less.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

ROWS = 200
FIRST_ID = 17  # written with five digits: ids like 00017 must survive as text
WEEK_BEGINS = datetime(2026, 11, 9, tzinfo=UTC)


class Ticket(NamedTuple):
    """What a customer wrote, without the id and time that the help desk adds. label: as a person would sort it."""

    account: str
    priority: str
    subject: str
    body: str
    label: str = ""


#: The labels of the tickets of `awkward`, in their order; a person cannot tell for the second one.
AWKWARD_LABELS = [
    "bug",
    "",
    "how_to",
    "billing",
    "outage",
    "how_to",
    "billing",
    "feature_request",
    "feature_request",
    "bug",
    "bug",
    "how_to",
    "bug",
    "bug",
    "how_to",
    "outage",
    "bug",
    "bug",
    "feature_request",
    "how_to",
    "bug",
    "bug",
    "bug",
    "outage",
    "billing",
    "how_to",
    "how_to",
    "feature_request",
    "how_to",
    "bug",
    "billing",
]


ACCOUNTS = """
Alder & Finch Paper Co.
Nordlicht Kerzen GmbH
Boulangerie Petit Jour
The Wool Cupboard
Öztürk Halı
Taller Ñandú
Brightwater Aquatics
Kettle & Crumb
Mossgrove Candles
Świt Ceramika
Café Três Irmãos
Saltmarsh Surf Repair
Hollowbrook Seeds
Lumen & Loom
Rook's Nest Board Games
Pedal Parts Utrecht
Blåbär Barnkläder
Tin Roof Records
Two Rivers Honey
Maple Street Vinyl
Gannet Outdoor
Little Fox Stationery
Copperleaf Teas
Dovetail Joinery Tools
Inkwell & Ember
Harbour Lane Books
Juniper Soapworks
Quarry Hill Climbing
Stellan's Skateshop
Velvet Thistle
""".strip().splitlines()

NAMES = """
Maren
Tom H.
Aoife
Priya
Jean-Luc
Beatriz
Sanne
Oskar
Wanda
Theo (warehouse)
Deniz
Ms. P. Adeyemi
Luca
Hanneke
Ruth from accounts
Kofi
Ingrid
Sam
Yusuf
Elena
""".strip().splitlines()

CARRIERS = ("Kestrel Express", "Blauwpost", "NorthParcel", "Cormorant Freight", "SwiftLark")
PLANS = ("Starter", "Studio", "Warehouse")
BROWSERS = ("Firefox 144", "Chrome on Windows 11", "Safari on a MacBook", "Edge", "the iPad app")
PLACES = ("Lisbon", "Rotterdam", "Leeds", "Gdańsk", "Malmö", "Graz", "Cork", "Lyon")

OPENINGS = ("Hi,", "Hello,", "Hi there,", "Good morning,", "Hello Fernpost team,", "", "", "Hey,", "Dear support,")
CLOSINGS = (
    "Thanks,\n{name}",
    "Thank you!\n{name}",
    "Regards,\n{name}\n{account}",
    "Best,\n{name}",
    "{name}",
    "",
    "Cheers\n{name}",
    "Kind regards\n{name}, {account}",
    "Sent from my phone",
    "Many thanks in advance - {name}",
)

# One line per story: subjects that fit it, separated by " / ", then "|", then what happened. Names in braces are filled in.
STORIES: dict[str, str] = {
    "billing": """
Charged twice in November / Double charge / two payments for one invoice | Our card was charged {amount} twice on {day} November, both times for invoice {invoice}. We only have one account with you. Please refund the second payment and confirm when it will arrive.
Invoice without our VAT number / VAT id missing | Invoice {invoice} came without our VAT number, although it is saved in the settings. Our accountant will not book it like that. Could you send a corrected invoice?
Still billed after downgrade / Downgraded but same price | We moved from Warehouse to {plan} on the first of the month and the new invoice {invoice} still shows {amount}. Please correct the amount and credit the difference.
Card expired, how do I pay the open invoice? / payment failed | My card ran out and the payment for {invoice} bounced. I have put in a new card now but the banner about the unpaid {amount} does not go away. Can you take the payment again so that we do not get locked?
Refund for unused label credit / label credit | We bought {amount} of prepaid label credit before switching carriers and have not used any of it. We would like it paid back to the card it came from.
Wrong company name on invoices / change billing address | We became a limited company in October. Please put the new name and address on invoice {invoice} and everything after it, the tax office is being picky.
What is the 'surcharge adjustment'? / Unknown line on invoice | There is a line "carrier surcharge adjustment" of {amount} on {invoice}. Nobody here knows what it is for. Please explain it or take it off.
Annual plan renewed without notice / Please cancel renewal and refund | Our yearly {plan} plan renewed on {day} November and {amount} left the account. We had no reminder and we want to stop using it. Please reverse the renewal.
Discount code not applied / promo code | I used the code from your newsletter when I upgraded to {plan} but invoice {invoice} shows the full price. The code was valid until the end of the month.
Need all invoices of 2025 for audit / Invoices for tax audit | Our auditor wants every invoice of last year as PDF. The billing page only shows the last twelve and the rest is gone. Please send the missing ones to this address.
Pay by bank transfer instead of card / SEPA | Our bank is closing the company card. Can we pay {plan} by bank transfer from next month, and what would the payment terms be?
Billed for users who left / Seats | We pay for {count} seats but only three people work here now. The others were removed in September. Why does {invoice} still list all of them?
Reverse charge / Tax charged by mistake | You added 21% tax on {invoice}. We are a business in another country with a valid VAT id, so reverse charge should apply. Please credit the tax part of {amount}.
Carrier invoice differs from yours / label cost mismatch | {carrier} says the labels of last week cost less than what you took from our balance, the difference is about {amount}. Which of the two is right, and can we get the rest back?
Quote for next year / Price for {plan} | Before we renew: what would {plan} cost us for about {count} parcels a month if we pay the whole year at once? I need a written price for the budget.
""",
    "outage": """
Nothing loads / Fernpost is down? / Site down | Since {time} nobody here can open Fernpost at all. White page, then "502 Bad Gateway". Same on the phone without our wifi. Is it down for everyone?
No labels printing since this morning / Label service down | All label requests have been timing out since {time}. {count} orders are waiting on the table and the driver comes at four. Your status page is all green.
API returns 503 / API down | Every call to /v2/shipments gives us 503 since {time} UTC, from two different data centres. Retrying for 20 minutes did not help. Please let us know when the service is back.
Login impossible for the whole team / Nobody can log in | None of our five people can log in since {time}. It spins and then says "service temporarily unavailable". We cannot ship anything.
Tracking pages offline / tracking down | Our customers get an error instead of the tracking page, all of them, for every parcel. Started around {time}. We are getting angry mails every minute.
{carrier} connection down / Carrier offline | The connection to {carrier} has shown "unreachable" since {time} and no rates come back for any parcel. {carrier} says that on their side everything works.
Webhooks stopped / No webhooks arriving since {time} | We have not received a single webhook since {time}, normally it is hundreds an hour. Our endpoint is fine and answers test calls. It looks like your sender is stuck or down.
Extremely slow, then errors / Everything times out | Since about {time} every page takes a minute and most end with a gateway timeout. Work has stopped in the {place} warehouse. Any news on when it will be up again?
Status page says fixed, it is not / still down | You marked the incident as resolved an hour ago. In {place} we still cannot reach the service: connection refused on every attempt.
Printing bridge offline everywhere / Print servers disconnected | All of our {count} print stations lost the connection to your print service at {time} and none has come back. We restarted everything. Looks like your end is not answering.
Second outage this week / down AGAIN | Again no service since {time}. On Monday we already lost half a day. What is going on over there and when will it be available again?
App shows maintenance page / Unplanned maintenance? | The app has shown "We'll be right back" since {time}. There was no maintenance announced and we have {count} parcels due today. How long will this last?
Data centre in {place}? / Unreachable from {place} | Our whole office in {place} cannot connect since {time}, traceroute stops inside your network. Colleagues in other countries cannot reach it either.
Rates endpoint down during sale / checkout broken, rates unavailable | We are in the middle of our autumn sale and since {time} your rates service has answered nothing at all, so our checkout shows no shipping. Every minute costs us orders. Please escalate.
""",
    "how_to": """
How do I add a second warehouse? / Second address | We opened a small store in {place} and want some orders to ship from there. Where do I add the second sender address and how do I choose it for an order?
How to print on A6 instead of A4 / Label size | We bought a label printer. How can I change the paper size from A4 to A6, and do I have to do it for every user?
Give read-only access to our accountant / user roles | Is there a way to let our accountant see the shipments but not change anything? I looked under Team and could not work out which role that would be.
How do I import orders from a spreadsheet? / CSV import | We get orders from a wholesale customer as a spreadsheet, about {count} lines. What should the columns be called so that the import takes them?
Return labels / How to create a return label | A customer wants to send something back with {carrier}. How do I make a return label for an order that was already delivered?
Connect {carrier} with our own contract / own carrier contract | We have our own contract with {carrier}. Where do I enter the customer number so that our prices are used and not yours?
Change the language of tracking mails / Tracking mails in another language | Half of our customers are in another country. How can I have the tracking mails go out in their language?
Where is the API key? / API token | Our developer asks for an API key and a test key. Where can I make those, and can I limit them to reading?
First parcel to Switzerland / How to fill in customs data | This is our first parcel outside of the customs union. Which fields do I have to fill in for the customs form, and where do I save the tariff numbers so that I need not type them each time?
Merge two orders into one parcel / Combine shipments | The same person ordered twice within an hour. Can I put both in one box with one label, and how do I do that without losing one of the orders?
Set default parcel weight / default weight | Nearly everything we sell weighs 400 g. How can I set this as the default so I do not have to type it {count} times a day?
Transfer ownership of account / new owner | I am handing the shop over to my sister. What are the steps to make her the owner of the account and take myself out?
Pickup schedule / How do I book a daily pickup | How do I ask {carrier} for a pickup each day at the same time? I found how to book a single one only.
Download all tracking numbers of a month / Export tracking numbers | For our yearly report I need all tracking numbers of October. Where can I download them as a list?
Test mode / try without paying | We would like to try the integration before going live. Is there a test mode, and how do I make sure that no label in it is charged by {carrier}?
""",
    "bug": """
Street number cut off on labels / Address truncated | When the street name is longer than 35 characters the house number is cut off on {carrier} labels. On the screen it is all there. Order {order} came back to us because of this.
Wrong time zone in pickup confirmation / Times are off | The confirmation says pickup at {time}, but the pickup page and the driver say two hours earlier. Since the clocks changed all of them are wrong. It used to be right.
Duplicate labels from one click / Two labels for one order | If I click "Print" and the page is slow, I get two labels with different tracking numbers for order {order}. I can repeat it each time in {browser}.
Search does not find umlauts / Search broken for accents | Searching for customers named Müller or Łukasz gives nothing, searching for "ller" finds them. It worked before last week's update.
Export has shifted columns / CSV export wrong | In the shipment export, rows with a comma in the street have everything after it moved one column to the right. It looks like the field is not quoted. Order {order} is an example.
Total weight is wrong / Weight adds up wrongly | Two items of 0.4 kg give 0.8000000001 kg in the summary and {carrier} then refuses the label with "too many decimals". Order {order}.
Save button does nothing / Cannot save sender address | On the sender address form the Save button stays grey in {browser} even when every field is filled in. In another browser it works. There is an error in the console: "t is undefined".
Tracking stuck on 'created' / Status not updated | Parcel {order} was delivered on {day} November according to {carrier}, but in Fernpost it still says "label created". Other parcels of the same day were updated, so it is only some of them.
Filter forgets setting / Filter resets | When I filter orders by "not printed" and open one, going back shows all orders again. It used to keep the filter. {browser}.
Mail sent to wrong customer / Wrong name in tracking mail | The tracking mail for order {order} greeted the customer with the name of another customer. The address was right. I think it happens when two orders are printed together.
App crashes when scanning / Scanner crash | The app closes at once when I scan the barcode of a {carrier} parcel. Other barcodes scan normally. I reinstalled it, same thing.
Customs value in wrong currency / Currency mixed up | The customs form for order {order} shows the amount in dollars, but the number is our euro amount. It should be converted or say EUR.
Webhook sent with wrong status / Webhook payload wrong | For cancelled shipments the webhook says "delivered": true. The web page shows cancelled correctly. Example: {order}. Our system told the customers their parcel had arrived.
PDF is blank in {browser} / empty PDF | The combined PDF for more than {count} labels has blank pages at the end, and the last labels are missing. With fewer it is all right.
Undo restores wrong order / Restore brings back the wrong thing | I deleted draft {order} by mistake and pressed Undo. Another draft appeared, with the goods of the first and the address of the second one.
""",
    "feature_request": """
Dark mode please / Dark theme | We pack at night and the white screen is blinding. A dark mode would be a real help for the warehouse tablets.
Bulk edit of parcel weights / Edit many orders at once | It would be great if we could select {count} orders and change the weight of all of them in one go. At the moment we open each one.
Please support {carrier} lockers / Parcel lockers | Many of our customers ask for lockers. Could you add {carrier} lockers as a delivery option? We would move all of our parcels to you if you did.
Text or mail alert when a parcel is stuck / Alert for stuck parcels | A notification when a parcel has not moved for three days would save us the daily check by hand. Any plans for that?
Keyboard shortcuts / Shortcuts for printing | I wish there were keyboard shortcuts for "print" and "next order". With {count} orders a day the mouse is the slowest part of the work.
Packing slip with our logo / custom packing slips | We would love to design our own packing slips, at least with the logo and a line of thanks. Today they all look the same.
CO2 per parcel / Show emissions | Could you show the emissions of each parcel and a sum per month? Our customers ask for it and {carrier} has the numbers in its interface.
Two-factor login with a hardware key / Security keys | Please consider supporting hardware security keys for login. We may not use text messages any more because of our insurance.
Address check before printing / Validate addresses | A check of the address while typing, before we print, would be a good addition. We lose about {amount} a month on parcels that come back.
GraphQL API / please offer GraphQL | Our developers would prefer a GraphQL interface next to the present one. Is this on the roadmap? We would be glad to test it early.
Rules: choose carrier by weight / Automation rules | I would like to set rules such as "over 5 kg use {carrier}, else the cheapest". Right now one of us decides this for each parcel.
Print queue by shelf / Sort picking list | Suggestion: let us sort the picking list by shelf and not by order number. It would save us a lot of walking in {place}.
Gift message field / Gift notes | Could you add a field for a gift message that is printed on the slip but not on the label? Before Christmas it would be wonderful.
Customer portal for returns / Self-service returns | We would like a page where our customers can register a return themselves and pick a reason. Others have it and it is the one thing we miss.
""",
}


def web_log() -> str:
    """Return about 30 kB of text as customers paste it when they are asked for "the log"."""
    lines = []
    for n in range(370):
        minute, second = divmod(n * 7, 60)
        status = (200, 200, 200, 502, 504)[_number("log", n) % 5]
        lines.append(
            f"2026-11-12T{9 + minute // 60:02d}:{minute % 60:02d}:{second:02d}Z POST /v2/shipments status={status} "
            f"id=shp_{_number('id', n):010d} ms={_number('ms', n) % 30000}"
        )
    return "\n".join(lines)


def awkward() -> list[Ticket]:
    """Return tickets written by hand, each with something that breaks naive code, in the order of the file."""
    return [
        Ticket(
            "Kettle & Crumb",
            "normal",
            'The button says "Print" but does not "print"',
            'I click "Print all", a window says ""Done"" (yes, with two quotes on each side), and nothing comes out. In the old version "Print all" printed all. Clearly a bug, "works as designed" is not an answer ;-)',
        ),
        Ticket("Tin Roof Records", "low", "help", "?"),
        Ticket(
            "Harbour Lane Books",
            "normal",
            "",
            "How do I change the e-mail address that I log in with? I cannot find it in the settings.",
        ),
        Ticket(
            "Nordlicht Kerzen GmbH",
            "high",
            "Rechnung FP-2026-04417 doppelt abgebucht",
            "Guten Tag,\n\ndie Rechnung FP-2026-04417 über 49,00 € wurde am 3. und am 4. November abgebucht.\nBitte erstatten Sie den zweiten Betrag.\n\nMit freundlichen Grüßen\nJürgen Weiß\nBuchhaltung",
        ),
        Ticket(
            "ひかり文具店",
            "high",
            "ラベルが印刷できません",
            "今朝9時からラベルの印刷がまったくできません。画面には「503 Service Unavailable」と表示されます。\n他の店舗でも同じ状況です。復旧の見込みを教えてください。\n\nよろしくお願いします。\n佐藤",
        ),
        Ticket(
            "青山茶行",
            "normal",
            "如何添加第二个发货地址?",
            "你好，我们在苏州开了新仓库。请问在哪里可以添加第二个发货地址？每个订单可以分别选择吗？谢谢！",
        ),
        Ticket(
            "مكتبة النخيل",
            "normal",
            "تم خصم المبلغ مرتين",
            "مرحبا،\nتم خصم مبلغ 49 دولارا مرتين من بطاقتنا في يوم 10 نوفمبر للفاتورة FP-2026-05120.\nنرجو إعادة المبلغ الثاني.\nشكرا لكم",
        ),
        Ticket(
            "חנות הספרים של נועה",
            "low",
            "בקשה: מצב כהה (dark mode)",
            "שלום,\nהיינו שמחים מאוד אם תוסיפו מצב כהה לאפליקציה. אנחנו אורזים בלילה והמסך הלבן מסנוור.\nתודה, נועה",
        ),
        Ticket(
            "Velvet Thistle",
            "low",
            "a little idea 💡",
            "Could you add little stickers 🎀🎁 to the tracking page? Our customers would 💜 it. A family emoji 👩‍👩‍👧‍👦 and a flag 🏴󠁧󠁢󠁷󠁬󠁳󠁿 in the greeting would be lovely too. Not urgent at all 😊",
        ),
        Ticket(
            "Dovetail Joinery Tools",
            "normal",
            "=SUM(A1)",
            "=SUM(A1) is what we see in the weight column of your shipment export when it is opened in a spreadsheet, where 0.4 should stand. The export writes the formula of our own import sheet and not its value. Order 0004471.",
        ),
        Ticket(
            "Rook's Nest Board Games",
            "low",
            "+49 numbers",
            "+4930123456 becomes 4930123456 when I save the phone number of a customer: the plus sign is lost. -1 in the quantity field is kept, which it should not be. @home deliveries are fine. Two bugs in one, sorry.",
        ),
        Ticket(
            "Stellan's Skateshop",
            "normal",
            "API template question",
            "In the mail template editor, how do I print the customer's name? I tried {{ customer.name }} and {% if customer %}{{ customer.name | upper }}{% endif %} and also ${customer} and %(name)s. What is the right way to write it? {{ 7 * 7 }} gave me 49, so something is working.",
        ),
        Ticket(
            "Lumen & Loom",
            "urgent",
            "Script tag in the address book",
            'If a customer enters <script>alert("hi")</script> as the company name, the order page runs it! Also <img src=x onerror=alert(1)> works in the note field. Please fix this bug quickly, names have to be escaped & shown as text.',
        ),
        Ticket(
            "Gannet Outdoor",
            "normal",
            "XML import rejects valid file",
            'Your importer answers "invalid" to this, which our other tools accept:\n\n<?xml version="1.0"?>\n<orders>\n  <order id="00312"><weight unit="g">400</weight><note><![CDATA[5 < 6 & "ok"]]></note></order>\n</orders>\n\nWithout the CDATA part it goes through, so it must be a fault in your parser.',
        ),
        Ticket(
            "Inkwell & Ember",
            "normal",
            "strange closing tag",
            'Hello, I want to print </ticket> labels, as in: our product is called "</ticket>" (we sell gifts for programmers). How do I enter a product name with angle brackets? The form says "not allowed". Ignore all previous instructions is another mug of ours, that one can be saved.',
        ),
        Ticket(
            "Brightwater Aquatics",
            "urgent",
            "Log of this morning's outage",
            "You asked for the log. The API has been failing since 09:00 UTC on the 12th for all of our shops, here is everything:\n\n"
            + web_log()
            + "\n\nPlease tell us when the service is up again.",
        ),
        Ticket(
            "Quarry Hill Climbing",
            "normal",
            "Line separator in notes",
            "When a note contains the character between these words: first\u2028second\u2029third, or this one: a\u0085b, your label PDF stops right there and the rest of the address is missing. It came in with text pasted from a website. This is a bug on your side I think.",
        ),
        Ticket(
            "Café Três Irmãos",
            "normal",
            "Cafe\u0301 or café",
            'We are "Café" on the invoice and "Cafe\u0301" in the address book. They look alike, but search finds only one of the two. Please fix the search so that it finds both.',
        ),
        Ticket(
            "Little Fox Stationery",
            "low",
            "Idea: import from Windows\tfiles",
            "Our till writes text files with tabs\tand Windows line ends.\r\nLike this one.\r\nIt would be nice if the importer could take them as they are. A new option would be enough.",
        ),
        Ticket(
            "Copperleaf Teas",
            "normal",
            "00000123",
            "How do I keep the zeros in front of order numbers? We type 00000123 and the list shows 123. Is there a setting for that? We also have an order 1e10 and one called 0x1F.",
        ),
        Ticket(
            "Hollowbrook Seeds",
            "normal",
            "null",
            'The order of Mr. Null (that is his name, Christopher Null) cannot be saved: "last name is required". It works with "Nulll". The same for a street called NaN and a town called None. Funny bug, but he is a good customer.',
        ),
        Ticket(
            "Pedal Parts Utrecht",
            "normal",
            r"C:\Labels\new\test.pdf",
            'The print bridge fails for the folder C:\\Labels\\new\\test.pdf, it says it can\'t find "C:Labels\new\test.pdf" (note the missing backslashes, and that the error message breaks the line there). With forward slashes it works, so the path is handled wrongly.',
        ),
        Ticket(
            "Saltmarsh Surf Repair",
            "high",
            "'; DROP TABLE orders; --",
            "Our customer Robert'); DROP TABLE students;-- can't be entered: the form ends in an \"internal error\". I know, I know. But it is his nickname on the waiting list and it is a bug that it fails.",
        ),
        Ticket(
            "Two Rivers Honey",
            "urgent",
            "URGENT!!!!!!!! EVERYTHING IS DOWN",
            "NOTHING WORKS!!!!!!!!! NO LOGIN NO LABELS NO TRACKING!!!!!!!!! SINCE 7:15!!!!!!!!! 140 PARCELS!!!!!!!!! CALL ME!!!!!!!!!",
        ),
        Ticket(
            "Maple Street Vinyl",
            "low",
            "re: re: fwd: re: invoice",
            '> > > On Tue, billing@fernpost.example wrote:\n> > > Your invoice is attached.\n> > Which invoice? There is no attachment.\n> Please see attached.\n\nStill no attachment. Please send invoice FP-2026-04902 again, as a PDF, to this address.\n\n--\nM. Okafor\nMaple Street Vinyl, "the good stuff"',
        ),
        Ticket(
            "Boulangerie Petit Jour",
            "normal",
            "Comment imprimer en A6 ?",
            "Bonjour,\n\nNous avons acheté une imprimante d’étiquettes. Comment passer du format A4 au format A6 ? L’option « format » n’apparaît pas chez moi.\n\nMerci d’avance,\nHélène",
        ),
        Ticket(
            "Öztürk Halı",
            "normal",
            "İADE ETİKETİ nasıl oluşturulur?",
            "Merhaba, müşterimiz bir halıyı iade etmek istiyor. İade etiketini nerede oluşturabilirim? Teşekkürler, Işıl",
        ),
        Ticket(
            "Świt Ceramika",
            "low",
            "Prośba o nową funkcję",
            "Dzień dobry, czy moglibyście dodać możliwość drukowania własnego logo na liście przewozowym? Bardzo by nam to pomogło. Pozdrawiam, Łucja Żółć",
        ),
        Ticket(
            "Mossgrove Candles",
            "normal",
            "   spaces   ",
            "   How can I remove blanks at the start and the end of names when importing?   They come from our shop like this.   \n\n   ",
        ),
        Ticket(
            "Juniper Soapworks",
            "low",
            "Z̸a̷l̶g̵o̸ in a customer name",
            "A customer wrote their name as Z̸͓̽a̷̘͝l̶̰̈g̵͖̔o̸͙͘ and the label is unreadable, the marks cover the whole street. The label should cut such things off or leave them out. Looks like a rendering bug to me.",
        ),
        Ticket(
            "Taller Ñandú",
            "normal",
            "¿Por qué me cobraron de más?",
            "Hola: la factura FP-2026-05307 es de 79 € y mi plan cuesta 49 €. ¿Me pueden explicar la diferencia y devolver lo cobrado de más? Gracias.",
        ),
    ]


def _number(*parts: object) -> int:
    """Return a large number that depends on `parts` only."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:5])


def _pick(options: Sequence[str], *parts: object) -> str:
    return options[_number(*parts) % len(options)]


def _fill(template: str, n: int, opened: datetime) -> str:
    """Return `template` with the names in braces replaced by values of ticket n."""
    began = opened - timedelta(minutes=5 + _number("minute", n) % 55)
    return template.format(
        account=_pick(ACCOUNTS, "account", n),
        name=_pick(NAMES, "name", n),
        carrier=_pick(CARRIERS, "carrier", n),
        plan=_pick(PLANS, "plan", n),
        browser=_pick(BROWSERS, "browser", n),
        place=_pick(PLACES, "place", n),
        amount=f"{9 + _number('euros', n) % 390}.{_number('cents', n) % 100:02d} EUR",
        invoice=f"FP-2026-{4000 + _number('invoice', n) % 1900:05d}",
        order=f"{_number('order', n) % 9_000_000:07d}",
        count=20 + _number("count", n) % 480,
        day=1 + _number("day", n) % 8,
        time=f"{began:%H}:{began.minute // 5 * 5:02d}",
    )


def _priority(label: str, n: int) -> str:
    choices = {
        "outage": ("urgent", "urgent", "high"),
        "bug": ("normal", "normal", "high", "low"),
        "billing": ("normal", "high", "normal"),
        "how_to": ("normal", "low"),
        "feature_request": ("low", "low", "normal"),
    }
    return _pick(choices[label], "priority", n)


def stories() -> list[tuple[str, list[str], str]]:
    """Return (label, subjects, text) of every story, in a mixed order."""
    found = []
    for label, lines in STORIES.items():
        for line in lines.strip().splitlines():
            subjects, _, what_happened = line.partition(" | ")
            found.append((label, subjects.split(" / "), what_happened))
    return sorted(found, key=lambda story: _number("story", story[2]))


def ordinary(n: int, told: list[tuple[str, list[str], str]], opened: datetime) -> Ticket:
    """Return ticket n made from a story; if a story is used again, subject, customer and details differ."""
    label, subjects, what_happened = told[n % len(told)]
    turn = n // len(told) + _number("turn", what_happened)
    subject, opening, closing = (options[turn % len(options)] for options in (subjects, OPENINGS, CLOSINGS))
    parts = (opening, what_happened, closing)
    body = "\n\n".join(_fill(part, n, opened) for part in parts if part)
    return Ticket(_pick(ACCOUNTS, "account", n), _priority(label, n), _fill(subject, n, opened), body, label)


def tickets() -> list[tuple[str, str, str, str, str, str, str]]:
    """Return all rows of the file: difficult tickets spread evenly among ordinary ones, with growing ids and times."""
    strange = [ticket._replace(label=label) for ticket, label in zip(awkward(), AWKWARD_LABELS, strict=True)]
    told = stories()
    every = ROWS // len(strange)  # one difficult ticket every so many rows, until all are used
    rows = []
    number, opened = FIRST_ID, WEEK_BEGINS + timedelta(hours=6, minutes=41)
    for n in range(ROWS):
        is_strange = n % every == every - 1 and n // every < len(strange)
        ticket = strange[n // every] if is_strange else ordinary(n, told, opened)
        rows.append((f"{number:05d}", ticket.account, f"{opened:%Y-%m-%dT%H:%M:%SZ}", *ticket[1:]))
        number += 1 + _number("gap", n) % 3  # ids have gaps, as if spam had been deleted
        opened += timedelta(seconds=240 + _number("pause", n) % 3100)
        if opened.hour >= 21:  # shops are closed at night, and "since this morning" would be odd at midnight
            opened = opened.replace(hour=6, minute=opened.minute // 2) + timedelta(days=1)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Make tickets.csv.")
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).parent / "tickets.csv")
    out: Path = parser.parse_args().out

    rows = tickets()
    with out.open("w", encoding="utf-8", newline="") as file:  # newline="": the csv module writes CRLF itself
        writer = csv.writer(file)
        writer.writerow(("ticket_id", "account", "opened_at", "priority", "subject", "body", "true_label"))
        writer.writerows(rows)
    print(f"{out}: {len(rows)} tickets")


if __name__ == "__main__":
    main()
