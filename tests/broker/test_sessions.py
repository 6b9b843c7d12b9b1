"""The window and the queue of one client."""

from collections import deque

from support.raw_mqtt import Packet

from broker.packets import Splitter
from broker.sessions import MAX_WAITING, WINDOW, Delivery, Message, Session
from wire.topics import Peer


class Pipe:
    def __init__(self):
        self.writable = True
        self.sent = []

    def write(self, data):
        self.sent += [Packet(first >> 4, first & 15, body) for first, body in Splitter().feed(data)]


def make(count, pipe):
    session = Session(Peer("a", frozenset({"dso"})), False, 0)
    session.pipe = pipe
    for n in range(count):
        session.offer(Delivery(n, Message(n, "t", b"%d" % n, 1), False))
    return session


def payloads(pipe):
    return [int(p.payload) for p in pipe.sent]


def test_at_most_a_window_is_under_way_and_acknowledgements_open_it():
    pipe = Pipe()
    session = make(WINDOW + 5, pipe)
    assert payloads(pipe) == list(range(WINDOW))
    assert session.acknowledge(pipe.sent[0].packet_id).number == 0
    assert session.acknowledge(pipe.sent[0].packet_id) is None, "twice is once"
    assert payloads(pipe) == list(range(WINDOW + 1))


def test_after_a_loss_all_comes_again_in_the_order_it_was_published():
    first, second = Pipe(), Pipe()
    session = make(WINDOW + 5, first)
    session.detach()
    session.pipe = second
    session.pump()
    assert payloads(second) == list(range(WINDOW))
    assert all(p.is_dup for p in second.sent)
    for packet in list(second.sent):
        session.acknowledge(packet.packet_id)
    assert payloads(second) == list(range(WINDOW + 5))
    assert not second.sent[-1].is_dup, "that one had never been sent"


def test_nothing_is_sent_while_the_client_does_not_read():
    pipe = Pipe()
    pipe.writable = False
    session = make(3, pipe)
    assert pipe.sent == []
    pipe.writable = True
    session.pump()
    assert payloads(pipe) == [0, 1, 2]


def test_packet_ids_go_round_and_skip_those_under_way():
    pipe = Pipe()
    session = make(1, pipe)  # never acknowledged
    for n in range(1, 70_000):
        session.offer(Delivery(n, Message(n, "t", b"", 1), False))
        assert pipe.sent[-1].packet_id not in (0, 1)
        session.acknowledge(pipe.sent.pop().packet_id)


def test_a_queue_has_an_end():
    session = Session(Peer("a", frozenset()), False, 0)
    session.waiting = deque([None] * MAX_WAITING)
    assert session.full
