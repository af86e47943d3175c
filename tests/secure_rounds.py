"""Whole exchanges of secure aggregation between state machines, without messages."""

from dataclasses import dataclass, field
from random import Random

import numpy as np

from common.secure_aggregation.client import ClientMachine
from common.secure_aggregation.graph import count_least, count_needed, draw_neighbours
from common.secure_aggregation.server import ServerMachine


@dataclass
class Exchange:
    """One exchange of `count` clients, each with a vector of both kinds of words.

    Attributes:
        lost: stage -> places that drop out before they answer it.
    """

    count: int
    width: int = 5
    neighbours: int | str = "all"
    threshold: float = 0.66
    lost: dict[str, set[int]] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self):
        random = np.random.default_rng(self.seed)
        self.vectors = {
            place: [
                random.integers(0, 2**32, self.width, np.uint32),
                random.integers(0, 2**63, 3, np.uint64),
            ]
            for place in range(1, self.count + 1)
        }
        self.needed = count_needed(self.count, self.neighbours, self.threshold)
        self.clients = {place: ClientMachine("round-1") for place in self.vectors}
        self.least = count_least(self.count, self.threshold)
        self.server = ServerMachine("round-1", self.needed, self.least)
        self.masked = {}

    def there(self, stage: str, places) -> list[int]:
        return [place for place in sorted(places) if place not in self.lost.get(stage, ())]

    def meet(self):
        places = self.there("keys", self.vectors)
        keys = {place: self.clients[place].advertise() for place in places}
        # Places are given to those who have keys, so that they are 1 to their number.
        renamed = dict(enumerate(places, 1))
        self.clients = {new: self.clients[old] for new, old in renamed.items()}
        self.vectors = {new: self.vectors[old] for new, old in renamed.items()}
        self.lost = {
            stage: {new for new, old in renamed.items() if old in gone}
            for stage, gone in self.lost.items()
        }
        keys = {new: keys[old] for new, old in renamed.items()}
        graph = draw_neighbours(len(keys), self.neighbours, Random(self.seed))
        self.server.meet(keys, graph)

    def deal(self):
        for place in self.there("shares", self.clients):
            peers = {other: self.server.keys[other] for other in self.server.neighbours[place]}
            dealt = self.clients[place].deal(place, peers, self.needed, self.least)
            assert self.server.take_shares(place, dealt)
        self.server.close_shares()

    def cover(self):
        for place in self.there("mask", self.server.dealt):
            words = [vector.copy() for vector in self.vectors[place]]
            self.clients[place].cover(words, set(self.server.dealt))
            self.masked[place] = words
            self.server.add(place, words)
        self.server.close_masks()

    def uncover(self):
        staying = set(self.server.staying)
        for place in self.there("unmask", staying):
            found = self.clients[place].uncover(staying, self.server.sealed_for(place))
            self.server.take_uncovered(place, found)

    def run(self):
        self.meet()
        self.deal()
        self.cover()
        self.uncover()
        return self.server.total()

    def plain(self):
        """Add up the vectors of those whose masked ones arrived."""
        there = [self.vectors[place] for place in sorted(self.server.staying)]
        return [sum(vectors[1:], vectors[0].copy()) for vectors in zip(*there, strict=True)]
