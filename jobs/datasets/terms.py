"""What a data set asks of its runs: quality gates, how long replaced and refused runs are kept, and who is told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any
from urllib.parse import urlsplit

CHECK = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
VARIABLE = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetTerms:
    """The terms of one data set; None asks for nothing. Shares are from 0 to 1.

    Means are over the succeeded rows, and so are the shares of rows cut at `max_tokens` and of rows whose text an
    earlier row of the run has. `checks` are functions of the user's, as `package.module:function`, which the settings
    must allow; each may run for `check_seconds`, None: as long as the settings say. Of the run folders that are not
    current, at most `keep_runs` are kept, and none longer than `keep_days`; but what was current within `grace_hours`
    stays for its readers, and what a gate refused stays `keep_failed_days`. The webhook's secret is in the environment
    variable `webhook_secret_env`.
    """

    min_success_rate: float | None = None
    min_mean_tokens: float | None = None
    max_mean_tokens: float | None = None
    min_mean_characters: float | None = None
    max_mean_characters: float | None = None
    max_cut_share: float | None = None
    max_duplicate_share: float | None = None
    checks: tuple[str, ...] = ()
    check_seconds: float | None = None
    keep_runs: int | None = None
    keep_days: float | None = None
    keep_failed_days: float = 30.0
    grace_hours: float = 24.0
    webhook_url: str | None = None
    webhook_secret_env: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a value that cannot be honoured."""
        for name in ("min_success_rate", "max_cut_share", "max_duplicate_share"):
            _check_number(name, getattr(self, name), most=1.0)
        for name in ("min_mean_tokens", "max_mean_tokens", "min_mean_characters", "max_mean_characters"):
            _check_number(name, getattr(self, name))
        for what in ("tokens", "characters"):
            least, most = getattr(self, f"min_mean_{what}"), getattr(self, f"max_mean_{what}")
            if least is not None and most is not None and least > most:
                raise ValueError(f"min_mean_{what} is {least} and max_mean_{what} {most}; no run can keep both")
        for name in ("check_seconds", "keep_days", "keep_failed_days", "grace_hours"):
            _check_number(name, getattr(self, name))
        _check_number("keep_runs", self.keep_runs, whole=True)
        self._check_checks()
        self._check_webhook()

    @staticmethod
    def from_dict(given: Mapping[str, Any]) -> DatasetTerms:
        """The inverse of `as_dict`; what is not given has its default. Raises ValueError, also for an unknown name."""
        known = [field.name for field in fields(DatasetTerms)]
        unknown = sorted(name for name in given if name not in known)
        if unknown:
            raise ValueError(f"there is no option {unknown[0]!r} of a data set; there are {', '.join(known)}")
        checks = given.get("checks", ())
        if not isinstance(checks, (list, tuple)):
            raise ValueError(f"checks is {checks!r}; it must be a list of package.module:function")
        return DatasetTerms(**{**given, "checks": tuple(checks)})

    def as_dict(self) -> dict[str, Any]:
        """Every option, JSON-ready."""
        return asdict(self) | {"checks": list(self.checks)}

    def _check_checks(self) -> None:
        if self.check_seconds == 0:
            raise ValueError("check_seconds is 0; it must be a number above 0")
        for check in self.checks:
            if not isinstance(check, str) or not CHECK.fullmatch(check):
                raise ValueError(f"checks holds {check!r}; write a check as package.module:function")

    def _check_webhook(self) -> None:
        if self.webhook_url is None:
            if self.webhook_secret_env is not None:
                raise ValueError("webhook_secret_env is given without webhook_url")
            return
        if not isinstance(self.webhook_url, str):
            raise ValueError(f"webhook_url is {self.webhook_url!r}; it must be text")
        if not self.webhook_url.isascii() or any(each.isspace() for each in self.webhook_url):
            raise ValueError("webhook_url holds a space or a letter beyond ASCII; write it percent-encoded")
        address = urlsplit(self.webhook_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError("webhook_url must begin with http:// or https:// and name a host")
        if address.username is not None or address.password is not None:
            raise ValueError("webhook_url holds a user or password; sign with webhook_secret_env instead")
        if not isinstance(self.webhook_secret_env, str) or not VARIABLE.fullmatch(self.webhook_secret_env):
            raise ValueError(
                f"webhook_secret_env is {self.webhook_secret_env!r}; "
                "name the environment variable that holds the webhook's secret"
            )


def _check_number(name: str, value: Any, *, most: float | None = None, whole: bool = False) -> None:
    if value is None and name not in ("keep_failed_days", "grace_hours"):
        return
    kinds = (int,) if whole else (int, float)
    wanted = f"a {'whole ' if whole else ''}number" + (" from 0 to 1" if most is not None else " of at least 0")
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= (float("inf") if most is None else most) or value == float("inf"):
        raise ValueError(f"{name} is {value!r}; it must be {wanted}")
