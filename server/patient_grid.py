"""Flower's grid for a deployment: quick polls, a deadline no clock can move, replies with a sender.

Flower's own `send_and_receive` polls every 3 s by the wall clock, fails with the first failed pull,
and tells of a node that is gone without saying which. Here a round's messages are pushed and pulled
one poll after another until all are answered or the deadline has passed by the monotonic clock.
What came before the deadline counts; what comes later is never pulled, so it counts nowhere.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import httpx
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import TIMESTAMP_TOLERANCE, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from common.wire import REFUSED

logger = logging.getLogger("fedmtl.server")
T = TypeVar("T")

# A message and its reply live for the deadline and this much longer. A reply's life ends with that
# of its message by the server's clock; but a node whose clock is ahead counts the life that is left
# by its own, and Flower refuses a reply that has none. Flower's own tolerance, twice: for a clock
# that is wrong by as much as it allows, at the very end of the deadline.
SLACK_S = 2.0 * TIMESTAMP_TOLERANCE
FIRST_POLL_S, LAST_POLL_S, POLL_SHARE = 0.1, 1.0, 0.02  # a poll costs a round at most 2 % of it
RETRY_S = 60.0  # for calls without a deadline: as long as Flower lets a ServerApp miss heartbeats

OFFLINE = "went offline before it answered"
NOT_TAKEN = "the SuperLink did not take its message; the node may have been removed"
LOST = "its message or its reply expired, or was not uploaded whole"
UNREADABLE = "its reply cannot be read"
BY_CODE = {
    ErrorCode.NODE_UNAVAILABLE: OFFLINE,
    ErrorCode.MESSAGE_UNAVAILABLE: LOST,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: LOST,
}


def poll_after(waited_s: float) -> float:
    """Say how long to wait until the next poll: longer where a round takes long anyway.

    >>> poll_after(0.0), poll_after(20.0), poll_after(600.0)
    (0.1, 0.4, 1.0)
    """
    return min(LAST_POLL_S, max(FIRST_POLL_S, waited_s * POLL_SHARE))


class PatientGrid(Grid):
    """Wraps the grid that a deployed ServerApp is given.

    Args:
        grid: Flower's.
        beat: called at every poll, to show that the server is alive.
        clock: seconds that only ever go forward.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        grid: Grid,
        beat: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.grid, self.beat, self.clock, self.sleep = grid, beat, clock, sleep
        self._open: dict[str, Message] = {}  # id -> message that was not answered yet
        self._one_by_one = False  # after a reply that broke the pull of all others

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self.grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self.grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message; `Message(...)` does the same."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Name the nodes that are online."""
        self.beat()
        return list(self._insist(self.grid.get_node_ids, self.clock() + RETRY_S))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Push messages; returns the ids of those that the SuperLink took."""
        return self._push(list(messages), self.clock() + RETRY_S)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Pull the replies that are there, each with the node that was asked as its sender.

        A reply is given out once, and only to a message that is still open.
        """
        ids = list(message_ids)
        return list(self._insist(partial(self._pull, ids), self.clock() + RETRY_S))

    def _pull(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = [i for i in message_ids if i in self._open]
        if not wanted:
            return []
        if self._one_by_one:
            return self._pull_each(wanted)
        try:
            return self._take(self.grid.pull_messages(wanted))
        except httpx.HTTPError:
            raise
        except Exception as error:
            # A reply that cannot be read breaks the pull; the others of this pull are lost with it.
            logger.warning("a reply cannot be read (%s): from now on one by one", _name(error))
            self._one_by_one = True
            return []

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
        is_enough: Callable[[Message], bool] | None = None,
    ) -> list[Message]:
        """Ask, and collect what is answered before the deadline, errors included.

        Args:
            messages: what to send.
            timeout: seconds until the deadline; None for none.
            is_enough: told of each reply as it comes; the rest is not waited for once it says yes.
        """
        asked, start = list(messages), self.clock()
        if not asked:
            return []
        end = float("inf") if timeout is None else start + timeout
        for message in asked:
            if timeout is not None:
                message.metadata.ttl = timeout + SLACK_S
        replies: list[Message] = []

        def is_closed(new: Iterable[Message]) -> bool:
            come = list(new)
            replies.extend(come)
            return is_enough is not None and any(map(is_enough, come))

        taken = set(self._push(asked, end))
        closed = is_closed(_error(m, NOT_TAKEN) for m in asked if _id_of(m) not in taken)
        try:
            while taken and not closed:
                closed = is_closed(self._insist(partial(self._pull, taken), end))
                taken &= self._open.keys()
                now = self.clock()
                if closed or not taken or now >= end:
                    break
                self.beat()
                self.sleep(min(poll_after(now - start), end - now))
        finally:
            self.forget(taken)
        return replies

    def forget(self, message_ids: Iterable[str]) -> None:
        """Close messages: a reply that is still to come is never pulled."""
        for message_id in message_ids:
            self._open.pop(message_id, None)

    def _push(self, messages: Sequence[Message], end: float) -> list[str]:
        # Pushing again is safe: a message has the same id each time, and is stored once.
        taken = {i for i in self._insist(lambda: self.grid.push_messages(messages), end) if i}
        self._open |= {_id_of(m): m for m in messages if _id_of(m) in taken}
        return list(taken)

    def _pull_each(self, message_ids: Iterable[str]) -> list[Message]:
        came: list[Message] = []
        for message_id in message_ids:
            try:
                came += self._take(self.grid.pull_messages([message_id]))
            except httpx.HTTPError:
                if not came:
                    raise
                break  # what came must not be lost; the rest is for the next poll
            except Exception as error:
                asked = self._open.pop(message_id)
                came.append(_error(asked, f"{UNREADABLE} ({_name(error)})"))
        return came

    def _take(self, replies: Iterable[Message]) -> list[Message]:
        taken = []
        for reply in replies:
            asked = self._open.pop(reply.metadata.reply_to_message_id, None)
            if asked is None:
                logger.warning("a reply to nothing that is open is passed over")
            else:
                taken.append(_signed(reply, asked))
        return taken

    def _insist(self, call: Callable[[], Iterable[T]], end: float) -> Iterable[T]:
        """Call again while the SuperLink fails to answer, until the end; then nothing came.

        Flower itself repeats calls that cannot connect, without an end: this is for errors that
        the SuperLink answers with, as while its database is locked.
        """
        told = False
        while True:
            try:
                return call()
            except httpx.HTTPError as error:
                if not told:
                    logger.warning("the SuperLink cannot be asked (%s); trying again", _name(error))
                told, left = True, end - self.clock()
                if left <= 0:
                    return ()
                self.beat()
                self.sleep(min(LAST_POLL_S, left))


def _id_of(message: Message) -> str:
    return str(message.metadata.message_id)


def _name(error: Exception) -> str:
    return type(error).__name__


def _signed(reply: Message, asked: Message) -> Message:
    """Give errors of the SuperLink the node that they are about as their sender."""
    if reply.metadata.src_node_id == asked.metadata.dst_node_id:
        return reply
    if reply.has_error():
        return _error(asked, BY_CODE.get(reply.error.code) or reply.error.reason, reply.error.code)
    return _error(asked, "another node answered in its place")


def _error(asked: Message, reason: str | None, code: int = REFUSED) -> Message:
    return Message(Error(code=code, reason=reason), reply_to=asked)
