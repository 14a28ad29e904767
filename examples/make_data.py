"""Writes the data of the three examples: the same rows every time.

    python examples/make_data.py

Held-out rows use products, objects and sentences that no training row has.
"""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
HELD_OUT_ROWS = 40
Row = dict[str, list[dict[str, str]]]


def row(question: str, answer: str, system: str) -> Row:
    turns = (("system", system), ("user", question), ("assistant", answer))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


# --- tickets: a support ticket becomes a JSON object with fixed keys ---

TICKETS = "Answer with one JSON object with the keys product, category, order and urgent."
PRODUCTS = (
    "kettle|toaster|desk lamp|office chair|rain jacket|phone case"
    "|keyboard|alarm clock|bookshelf|garden hose|coffee grinder"
    "|yoga mat|bread knife|suitcase|headphones|bicycle pump|wall mirror"
    "|printer|sleeping bag|tea pot|door lock|camera strap"
).split("|")
NEW_PRODUCTS = "hair dryer|monitor stand|frying pan|backpack|doorbell|baby carrier|electric drill|picnic table".split(
    "|"
)
PROBLEMS = {
    "defect": [
        "the {p} stopped working after two days",
        "the {p} makes a loud noise and gets hot",
        "my {p} is broken, one part came off in my hand",
        "the {p} will not switch on any more",
        "there is a crack in the {p}",
    ],
    "delivery": [
        "the {p} has not arrived yet",
        "the {p} should have been here last week",
        "the courier left my {p} at the wrong house",
        "tracking for the {p} has not moved since Monday",
        "I am still waiting for my {p}",
    ],
    "billing": [
        "I was charged twice for the {p}",
        "the invoice for the {p} shows the wrong amount",
        "my card was charged but the discount on the {p} is missing",
        "I need a receipt for the {p} with my company's name",
        "you took more money for the {p} than the price on the page",
    ],
    "return": [
        "I would like to send the {p} back",
        "the {p} does not fit, so I want my money back",
        "how do I return the {p}",
        "please take back the {p}, it is not what I expected",
        "I changed my mind and want to return the {p}",
    ],
}
NEW_PROBLEMS = {
    "defect": ["a button on the {p} is stuck and it does nothing", "the {p} fell apart the first time I used it"],
    "delivery": ["the parcel with the {p} is lost, it seems", "nobody has brought the {p} that I paid for"],
    "billing": ["my bank shows two payments for one {p}", "the bill for the {p} is too high"],
    "return": ["I do not want to keep the {p}, where do I post it", "I want a refund and will send the {p} back"],
}
GREETINGS = ["", "Hello, ", "Hi there, ", "Good morning, ", "Dear team, ", "To whom it may concern: "]
ORDERS = [
    "My order number is {o}.",
    "Order {o}.",
    "It was order {o}.",
    "(order {o})",
    "The number on the receipt is {o}.",
]
URGENT = [
    "I need this solved today!",
    "This is urgent.",
    "Please hurry, I need an answer by tonight.",
    "It cannot wait.",
]
CALM = ["", "Thanks!", "There is no hurry.", "Kind regards, Ann", "Take your time.", "Best wishes"]


def ticket(draw: random.Random, products: list[str], problems: dict[str, list[str]]) -> Row:
    product, category = draw.choice(products), draw.choice([*problems])
    order = f"{draw.choice('ABKRTX')}-{draw.randint(1000, 99999)}" if draw.random() < 0.75 else None
    urgent = draw.random() < 0.4
    problem = draw.choice(problems[category]).format(p=product)
    greeting = draw.choice(GREETINGS)
    parts = [greeting + (problem if greeting else problem[0].upper() + problem[1:]) + "."]
    parts += [draw.choice(ORDERS).format(o=order)] if order else []
    parts.append(draw.choice(URGENT if urgent else CALM))
    answer = {"product": product, "category": category, "order": order, "urgent": urgent}
    return row(" ".join(filter(None, parts)), json.dumps(answer), TICKETS)


# --- courtesy: a blunt message becomes a courteous one ---

COURTESY = "Rewrite the message so that it is courteous."
ACTS = (
    "send me the invoice|call the supplier|fix the heating|move the meeting|book a table for six|check my figures"
    "|print the contract|water the plants|order more paper|answer my letter"
    "|clean the meeting room|update the price list"
    "|translate this page|find my file|pay the driver|sign the form"
    "|bring the keys|close the window|test the new version"
    "|count the boxes|correct the address|pick up the parcel"
).split("|")
NEW_ACTS = (
    "repair the fence|return my umbrella|charge the batteries|read the draft|cancel the hotel|measure the room".split(
        "|"
    )
)
WHENS = [
    "",
    " today",
    " by Friday",
    " before noon",
    " this week",
    " right now",
    " tomorrow morning",
    " before the holidays",
]
FAULTS = (
    "the printer is broken|the soup is cold|the report is late"
    "|the music is too loud|the numbers are wrong|the door does not close"
    "|the parcel is damaged|the website is slow|the lift is out of order"
    "|the coffee machine is empty|the office is too hot"
    "|the microphone does not work|the invoice is missing a page|the parking space is blocked"
).split("|")
NEW_FAULTS = "the projector is too dark|the bread is stale|the map is out of date|the tap is leaking".split("|")
PLANS = (
    "come to the party|join the call|lend you my car|work on Sunday|pay that price|finish it this month|give the talk"
    "|look after the dog|accept the offer|change the plan again"
    "|stay until the evening|share my notes|write the review"
).split("|")
NEW_PLANS = "drive you to the airport|host the dinner|carry the boxes|extend the deadline".split("|")
REFUSALS = ["I won't {}.", "No, I will not {}.", "I'm not going to {}.", "Forget it, I won't {}."]


def courtesy(draw: random.Random, acts: list[str], faults: list[str], plans: list[str]) -> Row:
    kind = draw.choice(["request", "fault", "refusal"])
    if kind == "request":
        act, when = draw.choice(acts), draw.choice(WHENS)
        blunt = draw.choice(["{}.", "{}!", "{}, and don't forget it.", "Just {}."])
        text = blunt.format(f"{act}{when}")
        answer = f"Hello, could you please {act}{when}? Thank you very much."
    elif kind == "fault":
        fault = draw.choice(faults)
        text = draw.choice(["{}.", "{} again!", "{}, do something!", "{}. Unbelievable."]).format(fault)
        again = " again" if " again" in text else ""
        answer = f"Hello, I am sorry to trouble you, but {fault}{again}. Thank you for looking into it."
    else:
        plan = draw.choice(plans)
        text = draw.choice(REFUSALS).format(plan)
        answer = f"Hello, I am afraid that I cannot {plan}. Thank you for your understanding."
    return row(text[0].upper() + text[1:], answer, COURTESY)


# --- departments: which department of a town a message is for ---

DEPARTMENTS = (
    "Which department is this message for? Answer with one word: roads, waste, parks, water, library or permits."
)
MATTERS = {
    "roads": (
        "there is a deep hole in the street|the traffic light at the school is out|the street lamp is dark"
        "|the road sign fell over|snow has not been cleared from our street|the zebra crossing has no paint left"
        "|cars drive too fast here, we need a speed bump|the kerb is broken and people trip|the bus lane is blocked"
    ),
    "waste": (
        "the bins were not emptied|my rubbish bin has a broken lid|where do I take an old sofa"
        "|someone dumped bags of rubbish by the trees|I need a second bin for paper|when is garden waste collected"
        "|the glass container is full|broken bottles lie around the container|how do I get rid of old paint"
    ),
    "parks": (
        "a branch hangs over the playground|the grass by the pond is a metre high|the swing is missing a chain"
        "|the benches in the garden are rotten|could you plant more trees in the square|dogs run free on the meadow"
        "|the flower beds are dry|the fountain in the rose garden is full of leaves"
        "|the football field is flooded with mud"
    ),
    "water": (
        "brown water comes out of the tap|a pipe burst in front of the house|the pressure in the shower is low"
        "|my water meter shows nonsense|the drain in the yard smells|the cellar floods when it rains"
        "|the tap water tastes of chlorine|the manhole overflows|is the water hard here"
    ),
    "library": (
        "how long may I keep a book|I lost my reader's card|can I renew a loan by phone|do you have audio books"
        "|my fine is wrong, I gave the novel back|is there a reading hour for children"
        "|the scanner on the first floor jams"
        "|may I reserve a study desk|do you lend board games"
    ),
    "permits": (
        "I want to build a carport|may I open a food stall at the market|how do I register my business"
        "|we plan a street party and need a licence|do I need permission for a new fence|I want to convert the attic"
        "|when will my building application be decided|may I put tables outside my cafe"
        "|I need approval for a sign on my shop"
    ),
}
NEW_MATTERS = {
    "roads": "the pavement is full of cracks|the traffic lights stay red|potholes on the way to the station",
    "waste": "nobody collected our garbage|I need a bigger rubbish bin|where can I recycle old batteries",
    "parks": "a fallen tree lies on the lawn|the slide on the playground is dirty|the hedge by the pond needs cutting",
    "water": "we have no running water|there is a leak in the water main|the sewer is blocked",
    "library": "I want to borrow a novel|when are books due back|can I extend my loan of three magazines",
    "permits": "may I build a garage|I need a licence for a concert|do I need permission to add a balcony",
}
PLACES = (
    "|in Mill Lane|near the station|by the church|in the old town"
    "|at the corner of Hill Street|next to the market hall"
    "|behind the school|in Elm Road|across from the bank"
).split("|")
OPENINGS = ["", "Hello! ", "Good day, ", "Hi, ", "A question: ", "Dear town hall, ", "For the third time: "]
ENDINGS = ["", " Thank you.", " Who can help?", " Please reply.", " I live nearby.", " It has been a week."]


def department(draw: random.Random, matters: dict[str, str]) -> Row:
    label = draw.choice([*matters])
    matter = draw.choice(matters[label].split("|"))
    place = draw.choice(PLACES) if label in ("roads", "waste", "parks", "water") else ""
    opening = draw.choice(OPENINGS)
    text = f"{matter} {place}".strip() + ("?" if matter.split()[0] in ASKING else ".")
    return row(opening + (text if opening else text[0].upper() + text[1:]) + draw.choice(ENDINGS), label, DEPARTMENTS)


ASKING = {"how", "where", "when", "can", "could", "do", "is", "may"}


def different(count: int, make: Callable[[random.Random], Row], draw: random.Random, seen: set[str]) -> Iterator[Row]:
    """So many rows, no question twice."""
    while count:
        made = make(draw)
        if (question := made["messages"][1]["content"]) not in seen:
            seen.add(question)
            count -= 1
            yield made


def write(name: str, file: str, rows: Iterator[Row]) -> None:
    path = HERE / name / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(made, ensure_ascii=False) + "\n" for made in rows), "utf-8")


def main() -> None:
    for name, train, held_out, rows in (
        ("tickets", lambda d: ticket(d, PRODUCTS, PROBLEMS), lambda d: ticket(d, NEW_PRODUCTS, NEW_PROBLEMS), 320),
        (
            "courtesy",
            lambda d: courtesy(d, ACTS, FAULTS, PLANS),
            lambda d: courtesy(d, NEW_ACTS, NEW_FAULTS, NEW_PLANS),
            200,
        ),
        ("departments", lambda d: department(d, MATTERS), lambda d: department(d, NEW_MATTERS), 240),
    ):
        draw, seen = random.Random(name), set[str]()
        write(name, "data.jsonl", different(rows, train, draw, seen))
        write(name, "held_out.jsonl", different(HELD_OUT_ROWS, held_out, draw, seen))


if __name__ == "__main__":
    main()
