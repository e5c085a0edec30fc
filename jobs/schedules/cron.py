"""When a schedule fires: slots of its own zone's wall clock, each with a label and one moment in UTC. Pure.

A slot is what the cron expression names, read on a clock on the wall: `2026-03-29 02:30`. A slot that the clock jumps
over fires as much later as the clock was put forward (03:30), unless the expression names that moment as well. A slot
that the clock shows twice fires at the first. So a label never repeats, and no day loses its run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

FAR = datetime(9000, 1, 1)


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """`at`: the wall clock's time, without zone; `instant`: when that is, in UTC."""

    at: datetime
    instant: datetime
    label: str

    @property
    def name(self) -> str:
        """As SQL keeps it; the order of names is the order of slots."""
        return self.at.isoformat()


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression in a time zone. Five fields as crontab(5) has them, or six with seconds in front."""

    expression: str
    zone: ZoneInfo

    @staticmethod
    def parse(expression: str, zone: str) -> Cron:
        """Raises ValueError."""
        try:
            CronSim(expression, FAR)
        except CronSimError as error:
            raise ValueError(
                f"cron is {expression!r} ({error}); write minute, hour, day, month and weekday, as '30 2 * * *'"
            ) from None
        try:
            return Cron(expression, ZoneInfo(zone))
        except (ZoneInfoNotFoundError, ValueError, OSError):  # a folder of zones is no zone either
            raise ValueError(f"zone is {zone!r}; write an IANA name like Europe/Berlin or UTC") from None

    def wall(self, moment: datetime) -> datetime:
        """What the zone's clock shows at a moment."""
        return moment.astimezone(self.zone).replace(tzinfo=None, fold=0)

    def due(self, cursor: str, now: datetime, most: int) -> list[Slot]:
        """Slots after `cursor` whose moment has come, oldest first; of more than `most` the newest."""
        found: list[Slot] = []
        for slot in self._backwards(self._latest(now)):
            if slot.name <= cursor:
                break
            if slot.instant > now:
                found.clear()  # slots fire in order
            elif len(found) == most:
                break
            else:
                found.append(slot)
        return found[::-1]

    def upcoming(self, cursor: str) -> Slot | None:
        """The slot after `cursor`; None when there is none for decades."""
        return next(self._forwards(datetime.fromisoformat(cursor)), None)

    def between(self, first: date, last: date) -> list[Slot]:
        """All slots of these days, both included, oldest first."""
        end = datetime.combine(last, time.max)
        found = []
        for slot in self._forwards(datetime.combine(first, time.min) - timedelta(seconds=1)):
            if slot.at > end:
                break
            found.append(slot)
        return found

    def labelled(self, label: str) -> Slot | None:
        """The slot of this label, if the expression names one."""
        try:
            day = date.fromisoformat(label[:10])
        except ValueError:
            return None
        return next((slot for slot in self.between(day, day) if slot.label == label), None)

    def _latest(self, now: datetime) -> datetime:
        """The latest that the clock has shown so far: on its second way through an hour, the end of the first."""
        local = now.astimezone(self.zone)
        shown = local.replace(tzinfo=None, fold=0)
        if local.fold:
            back = (local.replace(fold=0).utcoffset() or timedelta()) - (local.utcoffset() or timedelta())
            shown += back
        return shown.replace(microsecond=0) + timedelta(seconds=1)

    def _backwards(self, before: datetime) -> Iterator[Slot]:
        return self._slots(CronSim(self.expression, before, reverse=True))

    def _forwards(self, after: datetime) -> Iterator[Slot]:
        return self._slots(CronSim(self.expression, after))

    def _slots(self, times: CronSim) -> Iterator[Slot]:
        form = _label_form(times)
        for at in times:
            instant = at.replace(tzinfo=self.zone).astimezone(UTC)
            shown = instant.astimezone(self.zone).replace(tzinfo=None, fold=0)
            if shown == at or not self._names(shown):
                yield Slot(at, instant, at.strftime(form))

    def _names(self, at: datetime) -> bool:
        return next(CronSim(self.expression, at - timedelta(seconds=1)), None) == at


def _label_form(times: CronSim) -> str:
    """Days where the expression names one time of the day, else minutes, or seconds."""
    if len(times.seconds) == len(times.minutes) == len(times.hours) == 1:
        return "%Y-%m-%d"
    return "%Y-%m-%dT%H-%M" if len(times.seconds) == 1 else "%Y-%m-%dT%H-%M-%S"
