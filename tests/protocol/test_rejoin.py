"""A worker that the hub no longer counts comes back; one that it refuses learns why."""

from safeladder.protocol import codec
from safeladder.protocol import link as links
from safeladder.protocol import messages as m
from safeladder.protocol.hub import HubCore, HubOptions
from safeladder.protocol.link import LinkCore

PEER = b"worker/0|boot"


def exchange(hub: HubCore, link: LinkCore, now: float) -> list[links.Event]:
    """Carries messages to and fro until there are none; returns what the link has to tell."""
    events: list[links.Event] = []
    while True:
        effects = link.collect()
        events += effects.events
        for parts in effects.sends:
            hub.receive(PEER, parts, now)
        answers = hub.collect().sends
        if not answers and not effects.sends:
            return events
        for _, parts in answers:
            link.receive(parts, now)


def joined(silence_s: float) -> tuple[HubCore, LinkCore]:
    hub = HubCore(HubOptions(silence_s=silence_s, durability="memory"))
    link = LinkCore(m.Hello("worker/0", "boot", ["queue"], credit=1), silence_s=10.0)
    link.start(0.0)
    exchange(hub, link, 0.0)
    assert len(hub.workers) == 1
    return hub, link


def test_a_worker_dropped_by_a_hub_of_less_patience_is_back_with_its_next_beat() -> None:
    hub, link = joined(silence_s=3.0)
    parcel = codec.pack(m.Document("note"), id="w1", route=["queue"])
    link.submit([parcel], 0.0)
    (leased,) = [event for event in exchange(hub, link, 0.0) if isinstance(event, links.Leased)]
    for now in range(1, 5):  # the worker is paused for longer than the hub waits, and for less than the link does
        hub.tick(float(now))
    assert not hub.workers
    link.tick(4.5)
    events = exchange(hub, link, 4.5)
    assert links.Revoked(leased.lease) in events
    assert [event.parcel.work.id for event in events if isinstance(event, links.Leased)] == ["w1"]
    assert len(hub.workers) == 1


def test_a_worker_that_has_said_goodbye_does_not_come_back() -> None:
    hub, link = joined(silence_s=3.0)
    link.leave("over")
    link.tick(5.0)
    exchange(hub, link, 5.0)
    link.receive(codec.encode(m.Pong(0), "hub"), 5.0)
    link.tick(20.0)
    assert exchange(hub, link, 20.0) == []
    assert not hub.workers


def test_a_hub_of_another_schema_refuses_by_name_and_the_link_stops_asking() -> None:
    link = LinkCore(m.Hello("worker/0", "boot", ["queue"]))
    link.start(0.0)
    link.receive(codec.encode(m.Refused("no"), "hub", schema="1:other"), 0.0)
    (refused,) = link.collect().events
    assert isinstance(refused, links.Refused)
    assert "'1:other'" in refused.reason and m.SCHEMA in refused.reason
    link.tick(60.0)
    assert link.collect().sends == []
